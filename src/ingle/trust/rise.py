"""Whether a learning rate is too large to hold what an earlier stretch of the fit had reached."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Rise"]

_STRETCH = 200  # steps whose losses are compared
_CLEAR = 6.0  # standard errors, as the lowest of many stretches is low by chance
_NATS = 0.5
_MOST = 8  # halvings


class Rise:
    """Compares medians of 200 losses with the lowest so far: means of losses that run away say nothing.

    Attributes:
        count: how often the losses were found to have risen.
    """

    def __init__(self) -> None:
        self.count = 0
        self._lowest = math.inf
        self._last = math.inf
        self._at = 0  # the step from which a stretch counts

    def risen(self, losses: NDArray[np.float64]) -> bool:
        """Whether the last 200 of all losses so far, shape (steps,), lie above an earlier stretch, and do not fall."""
        if len(losses) < self._at + _STRETCH or self.count == _MOST:
            return False
        stretch = losses[-_STRETCH:]
        median = float(np.median(stretch))
        # Of independent draws; 1.86 is 1.25 (a median beside a mean) times 1.48 (an sd beside a mean deviation).
        se = 1.86 * float(np.median(np.abs(stretch - median))) / math.sqrt(_STRETCH)
        rising, self._last = median >= self._last - se, median
        self._lowest = min(self._lowest, median)
        if not rising or median <= self._lowest + _CLEAR * se + _NATS:
            return False
        self.count += 1
        self._at = len(losses)
        self._last = math.inf
        return True

    def capture(self) -> dict[str, Any]:
        """The state, in numbers."""
        return {"count": self.count, "lowest": self._lowest, "last": self._last, "at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a captured state."""
        self.count, self._lowest = state["count"], state["lowest"]
        self._last, self._at = state["last"], state["at"]
