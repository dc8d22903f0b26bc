"""How far means and sds are from a reference, and when that is right."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["MEAN", "SD", "errors", "is_right"]

MEAN = 0.3  # of the reference's sd
SD = 0.3  # of the reference's sd, in ratio


def errors(found: Mapping[str, Any], reference: Mapping[str, Any]) -> tuple[float, float]:
    """Largest error of a mean, in reference sds, and largest |ratio of sds - 1|, over all elements of all sites.

    Args:
        found, reference: {"mean": …, "sd": …} of each site, constrained.
    """
    means, sds = [0.0], [0.0]
    for name, expected in reference.items():
        mean, sd = (np.asarray(found[name][key], dtype=float) for key in ("mean", "sd"))
        scale = np.asarray(expected["sd"], dtype=float)
        means.append(float(np.max(np.abs(mean - np.asarray(expected["mean"], dtype=float)) / scale)))
        sds.append(float(np.max(np.abs(sd / scale - 1.0))))
    bad = math.isnan(sum(means)) or math.isnan(sum(sds))
    return (math.inf, math.inf) if bad else (max(means), max(sds))


def is_right(mean_error: float, sd_error: float) -> bool:
    """Means within 0.3 sd and sds within 30%."""
    return mean_error <= MEAN and sd_error <= SD
