"""Whether ranks are uniform: exact p-values of Kolmogorov and Smirnov's distance, and the band around their ECDF."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

__all__ = ["band", "distance", "ks_p_value", "scores", "stays"]

Floats = NDArray[np.float64]
Integers = NDArray[np.int64]

_ROUNDING = 1e-9  # of a distance


def distance(ranks: NDArray[np.int64], draws: int) -> float:
    """The largest distance between the ECDF of ranks and that of the uniform distribution on 0, …, draws.

    Args:
        ranks: shape (n,).
        draws: L; ranks lie among 0, …, L.
    """
    values = draws + 1
    counts = np.bincount(ranks, minlength=values).cumsum()
    return float(np.abs(counts / len(ranks) - np.arange(1, values + 1) / values).max())


def ks_p_value(ranks: NDArray[np.int64], draws: int) -> float:
    """The probability that as many uniform ranks lie as far from uniform as these, exact, ties and all.

    The continuous formula is conservative for ranks. Here the counts C_k of ranks up to k are followed from k to k + 1,
    C_{k+1} - C_k ~ Binomial(n - C_k, 1 / (L + 1 - k)), inside the distance.

    Args:
        ranks: shape (n,).
        draws: L; ranks lie among 0, …, L.

    References:
        Kolmogorov (1933), Smirnov (1948); Säilynoja, Bürkner and Vehtari (2022) for the recursion.
    """
    return _ks(round(distance(ranks, draws) * len(ranks), 9), len(ranks), draws)


@lru_cache(maxsize=4096)
def _ks(steps: float, n: int, draws: int) -> float:
    """The same from n times the distance, of which there are few values."""
    expected = n * np.arange(1, draws + 2) / (draws + 1)
    low = np.floor(expected - steps + _ROUNDING * n).astype(np.int64) + 1
    high = np.ceil(expected + steps - _ROUNDING * n).astype(np.int64) - 1
    return min(1.0, max(0.0, 1.0 - stays(np.maximum(low, 0), np.minimum(high, n), n)))


def stays(low: NDArray[np.int64], high: NDArray[np.int64], n: int) -> float:
    """The probability that the counts of `n` uniform ranks up to k lie in low[k], …, high[k] for every k at once.

    Args:
        low, high: shape (L + 1,), whole numbers in 0, …, n; the count at the last place is n.
        n: how many ranks.
    """
    values = len(low)
    log_factorial = np.array([math.lgamma(count + 1.0) for count in range(n + 1)])
    states, mass = np.array([0]), np.array([1.0])
    for place in range(values):
        if high[place] < low[place]:
            return 0.0
        after = np.arange(low[place], high[place] + 1)
        left = values - place
        if left == 1:
            return float(mass.sum()) if low[place] <= n <= high[place] else 0.0
        moved = after[:, None] - states[None, :]
        rest = n - after[:, None]
        log_p = (
            log_factorial[n - states][None, :]
            - log_factorial[np.maximum(moved, 0)]
            - log_factorial[rest]
            - moved * math.log(left)
            + rest * math.log1p(-1.0 / left)
        )
        mass = np.where(moved >= 0, np.exp(np.minimum(log_p, 0.0)), 0.0) @ mass
        states = after
    raise AssertionError("unreachable")


@lru_cache(maxsize=64)
def band(n: int, draws: int, coverage: float = 0.95) -> tuple[Integers, Integers]:
    """Counts between which those of `n` uniform ranks lie at every k at once, with probability `coverage` or more.

    At each k the count is Binomial(n, (k + 1) / (L + 1)); the band takes its central quantiles, all at one level, which
    is lowered until the whole of the counts stays inside often enough.

    Args:
        n: how many ranks.
        draws: L; ranks lie among 0, …, L.
        coverage: in (0, 1).

    Returns:
        low and high, shape (L + 1,).

    References:
        Säilynoja, Bürkner and Vehtari (2022), Graphical Test for Discrete Uniformity and its Applications in
        Goodness-of-Fit Evaluation and Multiple Sample Comparison.
    """
    share = np.arange(1, draws + 1) / (draws + 1)
    counts = np.arange(n + 1)
    log_choose = np.array([math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1) for k in range(n + 1)])
    log_pmf = log_choose + counts * np.log(share)[:, None] + (n - counts) * np.log1p(-share)[:, None]
    below = np.exp(log_pmf).cumsum(1)

    def at(level: float) -> tuple[Integers, Integers]:
        low = (below < level / 2 - _ROUNDING * level).sum(1)
        high = (below < 1 - level / 2 + _ROUNDING * level).sum(1)
        return np.append(low, n), np.append(np.minimum(high, n), n)

    inside, outside = (1 - coverage) / (2 * (draws + 1)), 1 - coverage  # Bonferroni's level holds; one place's does not
    for _ in range(20):
        middle = math.sqrt(inside * outside)
        low, high = at(middle)
        inside, outside = (middle, outside) if stays(low, high, n) >= coverage else (inside, middle)
    return at(inside)


def scores(ranks: Floats | Integers, draws: int) -> Floats:
    """Ranks as normal scores, Phi^-1((rank + 1/2) / (L + 1)), of variance 1 where the ranks are uniform.

    Args:
        ranks: any shape.
        draws: L; ranks lie among 0, …, L.
    """
    table = torch.special.ndtri((torch.arange(draws + 1, dtype=torch.float64, device="cpu") + 0.5) / (draws + 1))
    found: Floats = (table / table.square().mean().sqrt()).numpy()[np.asarray(ranks, dtype=np.int64)]
    return found
