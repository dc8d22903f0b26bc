"""Whether a sequence of points wanders around one place: split R-hat over trailing windows, effective sample size.

A tenth of the coordinates may lag behind in R-hat, though none may drift: of a hundred that are at rest, some are above
1.1 by chance, and none above 1.4. Of effective sizes the median is told: it says whether errors of averages, which are
known one by one, can be estimated.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

__all__ = ["best_window", "effective_size"]

_SHARES = (1.0, 0.8, 0.6, 0.4, 0.2)  # of the points, from the last one back
_FEWEST = 10  # points of a window
_LAGGING, _EXCESS = 0.1, 4.0  # share of the coordinates, and times the excess over 1 that they may have


def best_window(points: NDArray[np.float64]) -> tuple[int, float]:
    """The trailing window in which the points look most stationary.

    Split R-hat holds the halves of a window against each other: with m and s² the means and variances of the halves,
    of h points each,

        R² = (h - 1) / h + (m₁ - m₂)² / (s₁² + s₂²)

    A coordinate that only drifts has 2.6, whatever the window.

    Args:
        points: shape (points, coordinates).

    Returns:
        How many points the best of five windows has, and the R-hat of its coordinates (all but a tenth of them, which
        may have four times the excess over 1); 0 and infinity where there are fewer than 10 points. Of windows that
        are as good, the longest.

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
        rhat = _of_most(np.sqrt((half - 1) / half + ratio))
        if rhat < best - 1e-3:
            found, best = 2 * half, rhat
    return found, best


def _of_most(rhats: NDArray[np.float64]) -> float:
    """The R-hat of all but the lagging coordinates, or what the largest of all stands for if that is more."""
    if not len(rhats):
        return 0.0
    most = float(np.quantile(rhats, 1.0 - _LAGGING, method="higher"))
    return max(most, 1.0 + (float(rhats.max()) - 1.0) / _EXCESS)


def effective_size(points: NDArray[np.float64]) -> float:
    """How many independent points the middle one of the coordinates is worth.

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
    return n / max(float(np.median(time[~still])), 1.0) if not still.all() else float(n)
