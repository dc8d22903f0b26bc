"""One fit while it runs: steps until they are done, the rule says stop, Ctrl-C, or something breaks."""

from __future__ import annotations

import math
import time
from typing import Literal

import numpy as np
import torch

from ingle.engine import EagerEngine, Engine, Optimisers, State
from ingle.errors import IngleError, IngleWarning, ProgramError, warn
from ingle.objectives import Choice
from ingle.program import Program
from ingle.progress import Progress
from ingle.runtime import Runtime
from ingle.trust import Decision, Plateau, find_fault, nonfinite_parameter

__all__ = ["Stopped", "Training"]

Stopped = Literal["steps", "plateau", "budget", "interrupted", "failed"]

_CALL = 50  # steps between two looks: a copy of the state before, losses to the host after


class Training:
    """The loop of a fit, inside a scope of its runtime.

    Attributes:
        losses: of the steps so far, in nats.
        seconds: of wall-clock time that the steps took.
        stopped, reason: why it stopped, as a word and in words.
        notes: what else should be known.
    """

    def __init__(self, program: Program, choice: Choice, optimisers: Optimisers, runtime: Runtime) -> None:
        self.program = program
        self.choice = choice
        self.optimisers = optimisers
        self.runtime = runtime
        self.engine: Engine = self._eager()
        self.losses: list[float] = []
        self.seconds = 0.0
        self.stopped: Stopped = "steps"
        self.reason = ""
        self.notes: list[str] = []

    def run(self, steps: int | None, bar: Progress) -> None:
        """Advance by `steps`, or until the plateau rule stops.

        Raises:
            ProgramError, NonFiniteError, OptionError: a step failed; the state is the one before it.
        """
        bad = nonfinite_parameter(self.program.leaves())
        if bad is not None:
            raise ProgramError(f"parameter {bad} is not finite before the first step: start it from a number")
        rule = Plateau(decays=self.optimisers.decays)
        start = time.perf_counter()
        before = self.engine.capture()
        try:
            while steps is None or len(self.losses) < steps:
                call = _CALL if steps is None else min(_CALL, steps - len(self.losses))
                losses = self._advance(before, call)
                self.losses.extend(losses)
                before = self.engine.capture()
                bar.advance(losses)
                if steps is None and self._decided(rule):
                    return
            self.stopped, self.reason = "steps", "the steps that were asked for"
        except KeyboardInterrupt:
            if len(self.losses) == before.step:  # inside a call, perhaps inside an update: go back to its start
                self.engine.restore(before)
            self.stopped, self.reason = "interrupted", "interrupted from the keyboard"
        finally:
            self.seconds = time.perf_counter() - start

    def finish(self) -> None:
        """Replace the guide where its recipe says so, by the Laplace approximation for one."""
        finish, data = self.program.recipe.finish, self.program.data
        if finish is None:
            return
        try:
            with self.program.explained("model or guide"):
                self.program.guide = finish(self.program.guide, data.args, data.kwargs)
        except KeyboardInterrupt:
            self.notes.append("interrupted before the curvature at the mode was found: the draws are all at the mode")
        except ProgramError as error:
            if not isinstance(error.__cause__, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
                raise
            note = (
                "the curvature at the mode is not positive definite, so there is no Laplace approximation and the "
                "draws are all at the mode: fit on, or use 'multivariate_normal'"
            )
            warn(note, IngleWarning)
            self.notes.append(note)

    def _eager(self) -> EagerEngine:
        return EagerEngine(self.program, self.choice.objective, self.optimisers, self.runtime)

    def _advance(self, before: State, steps: int) -> list[float]:
        """The losses of one call, all finite; otherwise the error that says what broke it."""
        cause, bad = None, None
        try:
            losses: list[float] = self.engine.advance(steps).double().tolist()
            bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if bad is None and nonfinite_parameter(self.program.leaves()) is None:
                return losses
        except IngleError:
            self.engine.restore(before)
            self.stopped, self.reason = "failed", f"step {before.step} or one of the {steps - 1} after it failed"
            raise
        except Exception as error:  # model and guide are the user's, and may raise anything
            cause = error
        replay = self._eager()
        fault, good = find_fault(replay, before, steps, seen=bad, raised=cause is not None)
        self.engine.restore(replay.capture())
        self.losses.extend(good)
        self.stopped, self.reason = "failed", "the step after it failed"
        raise fault from (fault.__cause__ or cause)

    def _decided(self, rule: Plateau) -> bool:
        """Whether the rule stops the fit now; it may lower the learning rate instead."""
        if len(self.losses) % Plateau.EVERY:
            return False
        decision = rule.look(np.asarray(self.losses))
        if decision is Decision.DECAY:
            self.optimisers.scale_lr(Plateau.FACTOR)
        elif decision is Decision.STOP:
            rates = f" at each of {Plateau.LEVELS} learning rates" if self.optimisers.decays else ""
            self.stopped, self.reason = "plateau", f"the smoothed ELBO levelled off{rates}"
        elif decision is Decision.BUDGET:
            self.stopped, self.reason = "budget", "the most that a fit takes by itself"
        return decision in (Decision.STOP, Decision.BUDGET)
