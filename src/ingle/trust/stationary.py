"""Whether a sequence of points wanders around one place: split R-hat over trailing windows, effective sample size."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_window", "effective_sizes"]

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the points, from the last one back
_FEWEST = 10  # points of a window


def best_window(points: NDArray[np.float64]) -> tuple[int, float]:
    """The trailing window in which the points look most stationary.

    Split R-hat holds the halves of a window against each other: with m and s² the means and variances of the halves,
    of h points each,

        R² = (h - 1) / h + (m₁ - m₂)² / (s₁² + s₂²)

    A coordinate that only drifts has 2.6, whatever the window.

    Args:
        points: shape (points, coordinates).

    Returns:
        How many points the best of five windows has, and the largest R-hat of its coordinates; 0 and infinity where
        there are fewer than 10 points. Of windows that are as good, the longest.

    References:
        Gelman et al. (2013), Bayesian Data Analysis. Dhaka et al. (2020), Robust, Accurate Stochastic Optimization
        for Variational Inference.
    """
    n = len(points)
    centred = points - points[-1:]
    zero = np.zeros((1, points.shape[1] if n else 0))
    sums = np.concatenate([zero, np.cumsum(centred, 0)])
    squares = np.concatenate([zero, np.cumsum(centred**2, 0)])
    found, best = 0, math.inf
    for share in _SHARES:
        half = int(share * n) // 2
        if 2 * half < _FEWEST:
            break
        means, variances = [], []
        for end in (n - half, n):
            mean = (sums[end] - sums[end - half]) / half
            square = (squares[end] - squares[end - half]) / half
            means.append(mean)
            variances.append(np.maximum(square - mean**2, 0.0) * half / (half - 1))
        gap = (means[0] - means[1]) ** 2
        within = variances[0] + variances[1]
        rounding = 1e-12 * (squares[-1] / n + 1e-300)  # of a coordinate that stands still
        ratio = np.where(within > rounding, gap / np.maximum(within, 1e-300), np.where(gap > rounding, np.inf, 0.0))
        rhat = math.sqrt((half - 1) / half + float(ratio.max(initial=0.0)))
        if rhat < best - 1e-3:
            found, best = 2 * half, rhat
    return found, best


def effective_sizes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many independent points each coordinate is worth, shape (coordinates,).

    n / (1 + 2 Σ r), the sum of autocorrelations r cut at the first pair that is not positive; a coordinate that stands
    still is worth all.

    Args:
        points: shape (points, coordinates).

    References:
        Geyer (1992), Practical Markov Chain Monte Carlo.
    """
    n = len(points)
    centred = points - points.mean(0)
    spectrum = np.fft.rfft(centred, 2 * n, axis=0)
    covariances = np.fft.irfft(np.abs(spectrum) ** 2, axis=0)[:n]
    still = covariances[0] <= 0
    rho = covariances / np.where(still, 1.0, covariances[0])
    pairs = rho[: n // 2 * 2].reshape(n // 2, 2, -1).sum(1)
    positive = np.cumprod(pairs > 0, axis=0)
    time = np.maximum(2.0 * (pairs * positive).sum(0) - 1.0, 1.0 / n)
    sizes: NDArray[np.float64] = np.where(still, float(n), np.minimum(n / time, n))
    return sizes
