"""Whether the ELBO still rises, and when to stop by that alone, which is all that networks and point masses allow."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

__all__ = ["FEWEST", "Decision", "Plateau", "Trend", "trend"]

FEWEST = 40  # losses that have a trend


class Decision(Enum):
    """What to do after a look at the losses."""

    GO_ON = "go on"
    DECAY = "lower the learning rate"
    STOP = "stop"
    BUDGET = "stop at the budget"


@dataclass(frozen=True)
class Trend:
    """How much a stretch of losses fell from its first to its second half, in nats, with its standard error."""

    fall: float
    se: float

    @property
    def falling(self) -> bool:
        """The fall is more than noise: two standard errors, and a hundredth of a nat."""
        return self.fall > max(2.0 * self.se, 0.01)


def trend(losses: NDArray[np.float64]) -> Trend:
    """The fall of the mean from the first to the second half of `losses`, shape (steps,).

    The standard error is that of batch means, 10 in each half, so that slow wandering of the parameters counts
    as noise.
    """
    if len(losses) < FEWEST:
        return Trend(math.nan, math.nan)
    half = len(losses) // 2
    first, second = losses[:half], losses[len(losses) - half :]
    variance = sum(_variance_of_mean(part) for part in (first, second))
    return Trend(float(first.mean() - second.mean()), math.sqrt(variance))


def _variance_of_mean(losses: NDArray[np.float64]) -> float:
    size = len(losses) // 10
    means = losses[len(losses) - 10 * size :].reshape(10, size).mean(axis=1)
    return float(means.var(ddof=1)) / 10


class Plateau:
    """Stops once the smoothed ELBO has levelled off at the last of several learning rates.

    Every 400 steps the last two thirds of the steps at this learning rate are looked at. They are level where their
    second half is no better than their first by more than noise, and where the noise is small enough to tell (a
    standard error of 0.05 nats) or there were steps enough (3,200 at the first learning rate, 800 at the others).
    Then the learning rate is lowered to 0.3 of itself, or, after the last, the fit stops.

    Args:
        decays: lower the learning rate `LEVELS - 1` times; where it is the user's, the first plateau is the last.
        since: the step from which the learning rate stays where it is.

    Attributes:
        levels: how many learning rates there are.
        looked: the step of the last look.
    """

    EVERY = 400
    LEVELS = 5
    FACTOR = 0.3
    SE = 0.05

    def __init__(self, *, decays: bool, since: int = 0) -> None:
        self.levels = self.LEVELS if decays else 1
        self.looked = 0
        self._level = 1
        self._since = math.ceil(since / self.EVERY) * self.EVERY

    def look(self, losses: NDArray[np.float64]) -> Decision:
        """Decide from all losses so far, shape (steps,)."""
        self.looked = len(losses)
        here = len(losses) - self._since
        if here >= 2 * self.EVERY and here % self.EVERY == 0:
            found = trend(losses[-2 * here // 3 :])
            enough = here >= (8 if self._level == 1 else 2) * self.EVERY
            if not found.falling and (enough or found.se <= self.SE):
                if self._level == self.levels:
                    return Decision.STOP
                self._level += 1
                self._since = len(losses)
                return Decision.DECAY
        return Decision.GO_ON

    def capture(self) -> dict[str, int]:
        """The state, in numbers."""
        return {
            "levels": self.levels,
            "level": self._level,
            "since": self._since,
            "looked": self.looked,
        }

    def restore(self, state: dict[str, int]) -> None:
        """Go back to a captured state."""
        self.levels, self._level, self._since = state["levels"], state["level"], state["since"]
        self.looked = state["looked"]
