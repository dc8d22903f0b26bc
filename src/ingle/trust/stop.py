"""When a fit stops by itself: at fixed learning rates, by what the averages of the parameters have settled to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro.nn import PyroModule
from torch import Tensor

from ingle.program import Program
from ingle.runtime import Runtime
from ingle.trust.margins import Margins, countable, margins, placed
from ingle.trust.plateau import Decision, Plateau, trend
from ingle.trust.rise import Rise
from ingle.trust.stationary import best_window, effective_size
from ingle.trust.trail import Trail

__all__ = ["Steady", "Stopping"]

_RHAT = 1.1  # at most, of a window that is stationary
_ESS = 25.0  # at least, of the parameters in the window
_AVERAGED = 1.3  # R-hat up to which an average is better than the last point, where steps or time are up
_MCSE = 0.1  # at most, of the averages at the first learning rate, in sds; halved with the rate
_FINEST = 0.025  # below which the error of an average is not asked to go
_GAIN = 0.1  # sds by which averages at two learning rates may differ beyond noise
_DEARER = 2.0  # times that at most, where the steps of another learning rate are many times those so far
_LATER = 0.05  # of the steps at a learning rate, from one look to the next
_PARTS = 10  # of a window, whose averages tell the error of the whole


@dataclass(frozen=True)
class Steady:
    """How settled the parameters are over the steps that look most settled.

    Attributes:
        window: how many steps those are, back from the last.
        rhat: split R-hat of the parameters there, all but a tenth of them; of 64 random sums of them where there are
            above 2,000.
        ess: the median of the parameters' effective sample sizes there.
        drift: the largest difference between the averages of their halves: of a latent's mean, in its sds, or of its
            log sd. NaN where nothing varies under the guide, or it draws too many numbers.
        mcse: the largest Monte Carlo standard error of the averages over them, in the same units.
    """

    window: int
    rhat: float
    ess: float
    drift: float
    mcse: float


class Stopping:
    """The rule that ends a fit, a look every 200 steps, and when those are many every twentieth of them.

    At a learning rate the fit goes on until, over the best of five trailing windows, split R-hat of the parameters is
    at most 1.1; until their averages over that window have a Monte Carlo standard error of at most 0.1 sd of what the
    guide draws (halved at each further rate, to 0.025) and 25 effective samples; and until the ELBO no longer rises.
    Then the rate is halved, unless the averages at the last two rates differ by less than 0.1 sd beyond their errors:
    as the bias falls with the rate, that is also how far the last is from its limit. Where the steps predicted for
    another rate are twice those so far or more, 0.2 sd do not repay them. Each rate begins from the average at the one
    before. The result is the average at the last rate.

    Where the losses rise above what they were, the rate is too large: it is halved too, and the parameters go back to
    the last average, or to where they began.

    Networks and point masses, which have no such units, or never come to rest, are judged by the ELBO alone
    (`Plateau`), and averaged over the last half of the steps at the last rate.

    Args:
        program, runtime: of the fit.
        decays: the learning rate is Ingle's to lower; otherwise the first that is settled is the last.
        waits: the fit takes a given number of steps first, with a learning rate that falls as it goes; the rule begins
            when it is told to.

    Attributes:
        begun: the rule counts.
        reason: why it stopped, in words.
        looked: the step of the last look.
        trail: where the parameters have been at this learning rate.
        home: where the next learning rate begins, unconstrained, by name; None where it goes on from where it is.

    References:
        Welandawe, Andersen, Vehtari and Huggins (2022), A Framework for Improving the Reliability of Black-box
        Variational Inference.
        Dhaka, Catalina, Andersen, Magnusson, Huggins and Vehtari (2020), Robust, Accurate Stochastic Optimization for
        Variational Inference.
        Polyak and Juditsky (1992), Acceleration of Stochastic Approximation by Averaging.
    """

    EVERY = 200
    FACTOR = 0.5
    MAX_STEPS = 50_000
    SECONDS = 1_800.0

    def __init__(self, program: Program, runtime: Runtime, *, decays: bool, waits: bool = False) -> None:
        self._program, self._runtime = program, runtime
        self._decays = decays
        self.looked = 0
        self.reason = ""
        self.trail = Trail()
        self.begun = not waits
        self.home: dict[str, Tensor] | None = None
        self._began: dict[str, Tensor] | None = None if waits else self._here()
        self._plateau = Plateau(decays=decays)
        self._rise = Rise()
        self._by_losses: bool | None = None
        self._level = 1
        self._wait = 0  # the step before which another look is not worth it
        self._steps = self.MAX_STEPS
        self._seconds = self.SECONDS
        self._before: Margins | None = None
        self._error_before = 0.0
        self._average: dict[str, Tensor] | None = None

    @property
    def factor(self) -> float:
        """By which the learning rate is lowered."""
        return Plateau.FACTOR if self._is_by_losses() else self.FACTOR

    @property
    def average(self) -> dict[str, Tensor] | None:
        """The parameters that it settled on, unconstrained, by name; None before that."""
        return self._average

    def look(self, losses: NDArray[np.float64], seconds: float) -> Decision:
        """Decide from all losses so far, shape (steps,), the trail, and the seconds that the steps took."""
        self.looked = taken = len(losses)
        decision = self._plateaued(losses) if self._is_by_losses() else self._settled(losses)
        if decision is Decision.GO_ON and taken >= self._steps:
            self.reason = f"{taken:,} steps, the most that a fit takes by itself; resume() goes on"
            decision = Decision.BUDGET
        if decision is Decision.GO_ON and seconds >= self._seconds:
            self.reason = f"{seconds / 60:.0f} minutes, the most that a fit takes by itself; resume() goes on"
            decision = Decision.BUDGET
        if decision is Decision.BUDGET:
            self._average = self._best_average()
        return decision

    def begin(self, step: int) -> None:
        """From `step` on it counts."""
        self.begun = True
        self.trail, self._plateau = Trail(step), Plateau(decays=self._decays, since=step)
        self._rise, self._began = Rise(), self._here()

    def forget(self) -> None:
        """Another run begins: what the last one settled on is not its result."""
        self._average = None

    def extend(self, steps: int, seconds: float) -> None:
        """Allow another budget after `steps` steps."""
        self._steps, self._seconds = steps + self.MAX_STEPS, seconds + self.SECONDS

    def broken_off(self) -> None:
        """The run ends before the rule is done: the result is the average, where there is a settled stretch."""
        self._average = self._best_average()

    def steady(self) -> Steady | None:
        """How settled the parameters are; None where there were too few steps to tell."""
        points = self.trail.points()
        window, rhat = best_window(points)
        if not window:
            return None
        ess = effective_size(points[-window:])
        steps = window * self.trail.every
        if not self._has_margins():
            return Steady(steps, rhat, ess, math.nan, math.nan)
        halves = [self._margins_at(values) for values in self.trail.averages(window, 2, self._program.leaves())]
        drift = float(np.abs(halves[0].distances(halves[-1])).max(initial=0.0))
        return Steady(steps, rhat, ess, drift, float(self._errors(window).max(initial=0.0)))

    def capture(self) -> dict[str, Any]:
        """The state, in numbers and tensors that nothing changes any more."""
        return {
            "looked": self.looked,
            "begun": self.begun,
            "trail": self.trail.capture(),
            "plateau": self._plateau.capture(),
            "rise": self._rise.capture(),
            "level": self._level,
            "wait": self._wait,
            "steps": self._steps,
            "seconds": self._seconds,
            "before": None if self._before is None else torch.tensor(np.stack([self._before.mean, self._before.sd])),
            "error": self._error_before,
            "average": self._average,
            "began": self._began,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a captured state."""
        self.looked, self.begun = state["looked"], state["begun"]
        self.trail.restore(state["trail"], self._runtime.device)
        self._plateau.restore(state["plateau"])
        self._rise.restore(state["rise"])
        self._level, self._wait = state["level"], state["wait"]
        self._steps, self._seconds = state["steps"], state["seconds"]
        self._before = None if state["before"] is None else Margins(*state["before"].numpy())
        self._error_before, self._average = state["error"], state["average"]
        self._began = state["began"]

    def _settled(self, losses: NDArray[np.float64]) -> Decision:
        taken, points = len(losses), self.trail.points()
        if self._decays and self._rise.risen(losses):
            self._wait, self.trail = 0, Trail(taken)
            self.home = self._began if self._average is None else self._average
            return Decision.DECAY
        if taken < self._wait:
            return Decision.GO_ON
        self._wait = taken + int(_LATER * (taken - self.trail.since))
        window, rhat = best_window(points)
        if rhat > _RHAT or effective_size(points[-window:]) < _ESS:
            return Decision.GO_ON
        steps = window * self.trail.every
        if trend(losses[-steps:]).falling:
            return Decision.GO_ON
        target = max(_FINEST, _MCSE * self.FACTOR ** (self._level - 1)) if self._decays else _MCSE * self.FACTOR
        error = float(self._errors(window).max(initial=0.0))
        if error > target:
            self._wait = max(self._wait, taken + int(steps * min(4.0, (error / target) ** 2 - 1.0) / 2))
            return Decision.GO_ON
        (average,) = self.trail.averages(window, 1, self._program.leaves())
        now = self._margins_at(average)
        gain = math.inf if self._before is None else self._gain(now, error)
        self._before, self._error_before = now, error
        self._average, self._began = average, None
        if not self._decays:
            self.reason = f"settled: R-hat {rhat:.2f}, averages over {steps:,} steps known to {error:.2f} sd"
            return Decision.STOP
        ahead = (taken - self.trail.since) / self.FACTOR**2  # half the error takes four times the steps
        if self._level > 1 and gain <= _GAIN * min(_DEARER, max(1.0, ahead / taken)):
            self.reason = (
                f"settled: R-hat {rhat:.2f}, averages over {steps:,} steps known to {error:.2f} sd, and "
                f"{gain:.2f} sd from those at twice the learning rate"
            )
            return Decision.STOP
        self._level += 1
        self._wait = 0
        self.trail = Trail(taken)
        self.home = average
        return Decision.DECAY

    def _here(self) -> dict[str, Tensor] | None:
        """The parameters as they are, where the rule may have to go back to them."""
        if not self._decays or _networks(self._program):
            return None
        return {name: leaf.detach().clone() for name, leaf in self._program.leaves().items()}

    def _gain(self, now: Margins, error: float) -> float:
        """How far the averages moved with the learning rate, in sds: the largest distance beyond noise."""
        assert self._before is not None
        moved = np.abs(now.distances(self._before))
        noise = math.hypot(error, self._error_before)
        return float(max(0.0, moved.max(initial=0.0) - noise))

    def _plateaued(self, losses: NDArray[np.float64]) -> Decision:
        decision = self._plateau.look(losses)
        if decision is Decision.DECAY:
            self.trail = Trail(len(losses))
        elif decision is Decision.STOP:
            rates = f" at each of {self._plateau.levels} learning rates" if self._plateau.levels > 1 else ""
            self.reason = f"the smoothed ELBO levelled off{rates}"
            self._average = self._best_average()
        return decision

    def _best_average(self) -> dict[str, Tensor] | None:
        points = self.trail.points()
        window, rhat = best_window(points)
        if self._is_by_losses():
            window = len(points) // 2
        elif rhat > _AVERAGED:
            return None
        return self.trail.averages(window, 1, self._program.leaves())[0] if window else None

    def _is_by_losses(self) -> bool:
        if self._by_losses is None:
            self._by_losses = bool(_networks(self._program)) or not self._has_margins()
        return self._by_losses

    def _has_margins(self) -> bool:
        return countable(self._program) and margins(self._program, self._runtime).spread

    def _errors(self, window: int) -> NDArray[np.float64]:
        """Standard errors of the averages over the last `window` points, in sds, from the averages of their parts."""
        parts = self.trail.averages(window, _PARTS, self._program.leaves())
        (whole,) = self.trail.averages(window, 1, self._program.leaves())
        centre = self._margins_at(whole)
        apart = np.stack([self._margins_at(part).distances(centre) for part in parts])
        errors: NDArray[np.float64] = apart.std(0, ddof=1) / math.sqrt(len(parts))
        return errors

    def _margins_at(self, values: Mapping[str, Tensor]) -> Margins:
        with placed(self._program, values):
            return margins(self._program, self._runtime)


def _networks(program: Program) -> list[str]:
    """Names of the trained parameters that are those of networks."""
    trained = {id(leaf): name for name, leaf in program.leaves().items()}
    return [
        trained[id(parameter)]
        for module in program.modules()
        for part in module.modules()
        if _is_layer(part) or not isinstance(part, PyroModule)
        for parameter in part.parameters(recurse=False)
        if id(parameter) in trained
    ]


def _is_layer(part: torch.nn.Module) -> bool:
    bases = (base for base in type(part).__mro__ if base is not torch.nn.Module)
    return any(base.__module__.startswith("torch.nn") for base in bases)
