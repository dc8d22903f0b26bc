"""Whether several series of losses are of the same fit, and each has fresh noise at every step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["disagreement", "repeated_noise"]

WINDOW = 21  # steps over which the loss is taken to be a straight line
DRIFT = 2e-3  # of the loss: what two ways may be apart because noise led their parameters elsewhere


def disagreement(losses: Mapping[str, Sequence[float]]) -> list[str]:
    """What is wrong, in words: pairs of ways whose mean loss over the second half differs beyond noise.

    Five standard errors and a small part of the loss; a standard error is that of the noise around the trend.
    """
    found, ways = [], list(losses)
    means = {way: float(np.mean(series[len(series) // 2 :])) for way, series in losses.items()}
    errors = {way: _standard_error(series) for way, series in losses.items()}
    for way in ways[1:]:
        first = ways[0]
        bound = 5 * math.hypot(errors[first], errors[way]) + DRIFT * abs(means[first])
        if not abs(means[way] - means[first]) <= bound:
            found.append(
                f"the mean loss of {way} is {means[way]:,.3f}, that of {first} is {means[first]:,.3f}, "
                f"further apart than {bound:,.3f}"
            )
    return found


def repeated_noise(losses: Sequence[float]) -> str:
    """What is wrong, in words, or "": noise that is not there, or comes again some steps later.

    The autocorrelation of the noise's ranks at every lag up to a quarter of the series, against five times its
    standard deviation for independent noise, 1/sqrt(n).
    """
    noise = _noise(losses[len(losses) // 4 :])
    if not np.ptp(noise) > 0:
        return "its loss has no noise"
    ranks = noise.argsort().argsort().astype(float)
    ranks -= ranks.mean()
    n = len(ranks)
    full = np.fft.irfft(np.abs(np.fft.rfft(ranks, 2 * n)) ** 2)[:n]
    correlation = full[1 : n // 4] / full[0]
    lag = int(correlation.argmax()) + 1
    worst = correlation[lag - 1]
    if worst > 5 / math.sqrt(n):
        return f"its noise is not fresh: correlation {worst:.2f} at a distance of {lag} steps"
    return ""


def _noise(losses: Sequence[float]) -> NDArray[np.float64]:
    series = np.asarray(losses, dtype=np.float64)
    trend = np.convolve(series, np.full(WINDOW, 1 / WINDOW), mode="valid")
    return series[WINDOW // 2 : len(series) - WINDOW // 2] - trend


def _standard_error(losses: Sequence[float]) -> float:
    half = losses[len(losses) // 2 :]
    return float(_noise(half).std(ddof=1)) / math.sqrt(len(half))
