"""One fit while it runs: steps until they are done, the rule says stop, Ctrl-C, or something breaks."""

from __future__ import annotations

import math
import time
from array import array
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pyro.infer import ELBO
from torch import Tensor

from ingle.checkpoint import Checkpoint
from ingle.engine import Engine, Optimisers, State, from_file, to_file
from ingle.errors import FileError, IngleError, IngleWarning, ProgramError, warn
from ingle.objectives import Choice
from ingle.program import Program, Values, changed_arguments, describe, difference, digests
from ingle.progress import Progress
from ingle.runtime import RandomState, Runtime
from ingle.saved import plain
from ingle.trained import warn_of_trained
from ingle.trust import Decision, Start, Steady, Stopping, find_fault, nonfinite_parameter

__all__ = ["Stopped", "Training", "finish", "told_end"]

Stopped = Literal["steps", "settled", "budget", "interrupted", "failed"]

_SECONDS = 5.0  # that a call is meant to take at most, so that a checkpoint of slow steps is written every minute


class Training:
    """The loop of a fit, inside a scope of its runtime. It can be run again, and goes on from where it stopped.

    Attributes:
        losses: of the steps so far, in nats.
        seconds: of wall-clock time that the steps took.
        stopped, reason: why it stopped, as a word and in words.
        notes: what else should be known.
        start: where the guide was started.
        show: whether to show a bar; None shows it on a terminal.
    """

    def __init__(
        self,
        program: Program,
        choice: Choice,
        optimisers: Optimisers,
        engine: Engine,
        runtime: Runtime,
        *,
        checkpoint: Checkpoint | None = None,
        show: bool | None = None,
        start: Start,
    ) -> None:
        self.program = program
        self.choice = choice
        self.optimisers = optimisers
        self.runtime = runtime
        self.start = start
        self.checkpoint = checkpoint
        self.show = show
        self.engine = engine
        self.losses = array("d")
        self.seconds = 0.0
        self.stopped: Stopped = "steps"
        self.reason = ""
        self.notes: list[str] = []
        self._guide = program.guide  # what is trained; `finish` may replace it in the program
        self._rule = Stopping(program, runtime, decays=optimisers.decays, waits=optimisers.planned is not None)
        self._mark = self.engine.capture(), self._rule.capture()
        self._values = Values(program)
        self._description = describe(program, self._values)
        self._digests: dict[str, str] | None = None

    @property
    def state(self) -> State:
        """After the last step, copied."""
        return self._mark[0]

    def evidence(self) -> tuple[Steady | None, ELBO]:
        """How settled the parameters were at the end, None where there were too few steps to tell; and the objective.

        Called inside a scope of the runtime.
        """
        return self._rule.steady(), self.choice.objective

    def outcome(self) -> dict[str, Any]:
        """What came out so far, by the attributes of `Fit`."""
        return {
            "losses": np.array(self.losses, dtype=np.float64),
            "stopped": self.stopped,
            "reason": self.reason,
            "steps": len(self.losses),
            "seconds": self.seconds,
            "guide": self.program.guide,
            "objective": self.choice.name,
            "objective_reason": self.choice.reason,
            "optimiser": self.optimisers.description,
            "engine": self.engine.name,
            "dtype": self.runtime.dtype,
            "device": self.runtime.device,
            "seed": self.runtime.seed,
            "start": self.start.description,
            "notes": (*self.notes, *self.engine.notes),
        }

    def go(self, steps: int | None) -> None:
        """Train up to `steps` in all, or until the rule stops, then finish the guide and write the last checkpoint.

        Raises:
            ProgramError, NonFiniteError, OptionError: a step failed; the state is the one before it.
            FileError: the last checkpoint cannot be written; the fit is whole.
        """
        try:
            with Progress(steps, self.show, done=len(self.losses)) as bar:
                self.run(steps, bar)
            self.finish()
        except IngleError:
            with suppress(IngleError):  # what broke the fit is the news
                self._write_last()
            raise
        self._write_last()

    def go_back(self) -> None:
        """Be again where the last run ended, whatever was done since, so as to run on from there."""
        self.program.guide = self._guide
        warn_of_trained(self._values.overwritten(self.state.values), "put back to where this fit ended")
        self._restore()
        self.notes.clear()
        self._rule.extend(len(self.losses), self.seconds)

    def run(self, steps: int | None, bar: Progress) -> None:
        """Advance to `steps`, or until the rule stops.

        Raises:
            ProgramError, NonFiniteError, OptionError: a step failed; the state is the one before it.
        """
        bad = nonfinite_parameter(self.program.leaves())
        if bad is not None:
            raise ProgramError(f"parameter {bad} is not finite before the first step: start it from a number")
        self._rule.forget()
        start = time.perf_counter() - self.seconds
        # Between two calls the state is copied, losses go to the host, and a rule may look.
        whole = most = self.engine.call if steps is not None else min(self.engine.call, Stopping.EVERY)
        try:
            while not self._done(steps):
                # Calls end where those of an unbroken run end, so that the rule looks at the same steps.
                call = min(whole - len(self.losses) % whole, most)
                began = time.perf_counter()
                losses = self._advance(self.state, call if steps is None else min(call, steps - len(self.losses)))
                pace = (time.perf_counter() - began) / len(losses)
                most = whole if pace * whole <= _SECONDS else max(1, int(_SECONDS / pace))
                self.losses.extend(losses)
                self._capture()
                bar.advance(losses)
                self.seconds = time.perf_counter() - start
                if self.checkpoint is not None:
                    self.checkpoint.keep(lambda: self.content("running"))
        except KeyboardInterrupt:
            if len(self.losses) == self.state.step:  # inside a call, perhaps inside an update: go back to its start
                self._restore()
            else:
                self._capture()
            self.stopped, self.reason = "interrupted", "interrupted from the keyboard"
            if steps is None:
                self._rule.broken_off()
                self._capture_rule()
        finally:
            self.seconds = time.perf_counter() - start

    def finish(self) -> None:
        """Put averages in the place of the last parameters, and replace the guide where its recipe says so."""
        note = finish(self.program, self._rule.average)
        if note is not None:
            self.notes.append(note)

    def content(self, stopped: str) -> dict[str, Any]:
        """All that a file needs to load this fit, or to go on with it. Runs where the fit's store is Pyro's.

        Raises:
            FileError: a parameter came too late to be put back.
            OptionError: an optimiser holds what a file cannot hold.
        """
        late = [name for name in self.state.values["leaves"] if name not in self._description["parameters"]]
        if late:
            raise FileError(
                f"the fit cannot be written: parameter {late[0]!r} did not appear in the first run of the program, "
                "so that a file could not put it back; move its statement to where every run reaches it"
            )
        return {
            "about": self.about(),
            "program": self._description,
            "data": self._digested(),
            "values": plain(self._values.to_file(self.state.values), "the program"),
            "optimisers": to_file(self.state.optimisers),
            "random": plain(self.state.random.plain(), "the random state"),
            "rows": plain(self.state.rows, "the rows of minibatches"),
            "rule": plain(self._mark[1], "the stopping rule"),
            "losses": torch.from_numpy(np.array(self.losses, dtype=np.float64)),
            "seconds": self.seconds,
            "stopped": stopped,
            "reason": self.reason,
        }

    def about(self) -> dict[str, Any]:
        """What runs, in words and numbers: what `checkpoint` compares, and what the card of a loaded fit says."""
        return {
            "seed": self.runtime.seed,
            "dtype": str(self.runtime.dtype).removeprefix("torch."),
            "device": str(self.runtime.device),
            "batch_size": {name: batch for name, (_, batch) in self.program.batch_sizes.items()},
            "objective": self.choice.name,
            "objective options": self.choice.options,
            "objective reason": self.choice.reason,
            "particles": getattr(self.choice.objective, "num_particles", 1),
            "optimiser": self.optimisers.kind,
            "optimiser described": self.optimisers.description,
            "engine": self.engine.name,
            "engine notes": tuple(self.engine.notes),
            "start": self.start.to_file(),
        }

    def adopt(self, path: Path, content: dict[str, Any]) -> None:
        """Go on from the content of a file.

        Raises:
            FileError: it is of another program, other data or other options.
        """
        told = _different_options(self.about(), content["about"]) or difference(self._description, content["program"])
        changed = changed_arguments(self._digested(), content["data"])
        if told is None and changed:
            told = f"the data differ in {', '.join(changed)}"
        if told is None:
            optimisers = from_file(content["optimisers"], self.program.leaves())
            told = self.optimisers.changed(optimisers)
        if told is not None:
            raise FileError(
                f"checkpoint {path} is of another fit: {told}. To go on with it, give what it was begun with; "
                "to begin anew, give another path or delete the file"
            )
        warn_of_trained(self._values.overwritten(content["values"]), f"overwritten from {path}")
        self._values.from_file(content["values"])
        state = State(
            step=len(content["losses"]),
            values=content["values"],
            optimisers=optimisers,
            random=RandomState.from_plain(content["random"], self.runtime.device),
            rows=content["rows"],
        )
        self._mark = state, content["rule"]
        self._restore()
        self._capture()
        self.optimisers.description = content["about"]["optimiser described"]
        self.losses = array("d", content["losses"].tolist())
        self.seconds = content["seconds"]
        self.stopped, self.reason = told_end(content)

    def complete(self, steps: int | None) -> bool:
        """Whether an adopted fit already is what `steps` asks for."""
        if steps is None:
            return self.stopped in ("settled", "budget")
        return self.stopped in ("steps", "settled", "budget") and len(self.losses) >= steps

    def _capture(self) -> None:
        self._mark = self.engine.capture(), self._rule.capture()  # one assignment: Ctrl-C finds both or neither

    def _capture_rule(self) -> None:
        self._mark = self._mark[0], self._rule.capture()

    def _restore(self) -> None:
        self.engine.restore(self._mark[0])
        self._rule.restore(self._mark[1])

    def _digested(self) -> dict[str, str]:
        if self._digests is None:
            self._digests = digests(self.program.data)
        return self._digests

    def _write_last(self) -> None:
        if self.checkpoint is None or not self.losses:  # a start that broke at once is not one to go on from
            return
        try:
            self.checkpoint.last(self.content(self.stopped))
        except KeyboardInterrupt:
            self.notes.append(f"interrupted while {self.checkpoint.path} was written, which is of an earlier step")

    def _done(self, steps: int | None) -> bool:
        if steps is None:
            return self._decided()
        if len(self.losses) < steps:
            return False
        self.stopped, self.reason = "steps", "the steps that were asked for"
        return True

    def _advance(self, before: State, steps: int) -> list[float]:
        """The losses of one call, all finite; otherwise the error that says what broke it."""
        cause, bad = None, None
        try:
            losses: list[float] = self.engine.advance(steps, self._rule.trail).double().tolist()
            bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if bad is None and nonfinite_parameter(self.program.leaves()) is None:
                return losses
        except (IngleError, IngleWarning):  # the second where the user has made errors of warnings
            self.engine.restore(before)
            self.stopped, self.reason = "failed", f"step {before.step} or one of the {steps - 1} after it failed"
            raise
        except Exception as error:  # model and guide are the user's, and may raise anything
            cause = error
        replay = self.engine.reference()
        fault, good = find_fault(replay, before, steps, seen=bad, raised=cause is not None)
        self.engine.restore(replay.capture())
        self._rule.restore(self._mark[1])
        self.losses.extend(good)
        self._capture()
        self.stopped, self.reason = "failed", "the step after it failed"
        raise fault from (fault.__cause__ or cause)

    def _decided(self) -> bool:
        """Whether the rule stops the fit now; it may lower the learning rate instead."""
        rule, taken = self._rule, len(self.losses)
        if taken % Stopping.EVERY or taken == rule.looked:
            return False
        if not rule.begun:
            if taken < (self.optimisers.planned or 0):
                return False
            self.optimisers.rewind_lr()
            rule.begin(taken)
            self._capture()
        decision = rule.look(np.array(self.losses), self.seconds)
        if decision is Decision.DECAY:
            self.optimisers.scale_lr(rule.factor)
            put(self.program, rule.home)
        elif decision is Decision.STOP:
            self.stopped, self.reason = "settled", rule.reason
        elif decision is Decision.BUDGET:
            self.stopped, self.reason = "budget", rule.reason
        if decision is not Decision.GO_ON:
            self._capture()
        return decision in (Decision.STOP, Decision.BUDGET)


def told_end(content: dict[str, Any]) -> tuple[Stopped, str]:
    """Why the fit in a file stopped, as a word and in words."""
    if content["stopped"] == "running":  # written on the way
        return "interrupted", "broken off; this is what its checkpoint holds"
    return content["stopped"], content["reason"]


def _different_options(ours: dict[str, Any], file: dict[str, Any]) -> str | None:
    """The first option of `fit` that is not that of a file, in words."""
    if file["device"].split(":")[0] != ours["device"].split(":")[0]:
        return f"it ran on device {file['device']!r}, and this fit runs on {ours['device']!r}"
    for name in ("seed", "dtype", "batch_size", "objective", "particles", "objective options", "optimiser"):
        if ours[name] != file[name]:
            return f"it has {name} {_shown(file[name])}, and this fit has {_shown(ours[name])}"
    return None


def _shown(option: Any) -> Any:
    return "none" if option == "" else option


def put(program: Program, values: Mapping[str, Tensor] | None) -> None:
    """Give the parameters values, unconstrained, by name, where these are of the same parameters."""
    leaves = program.leaves()
    if values is not None and values.keys() == leaves.keys():
        with torch.no_grad():
            for name, leaf in leaves.items():
                leaf.copy_(values[name])


def finish(program: Program, average: Mapping[str, Tensor] | None = None) -> str | None:
    """Give a trained program the parameters and the guide that it ends with.

    Args:
        program: with the parameters of its last step.
        average: what they settled to, unconstrained, by name.

    Returns:
        What went wrong where the recipe replaces the guide, for the card.
    """
    put(program, average)
    replace, data = program.recipe.finish, program.data
    if replace is None:
        return None
    try:
        with program.explained("model or guide"):
            program.guide = replace(program.guide, data.args, data.kwargs)
        return None
    except KeyboardInterrupt:
        return "interrupted before the curvature at the mode was found: the draws are all at the mode"
    except ProgramError as error:
        if not isinstance(error.__cause__, torch.linalg.LinAlgError):  # type: ignore[attr-defined]
            raise
        note = (
            "the curvature at the mode is not positive definite, so there is no Laplace approximation and the "
            "draws are all at the mode: fit on, or use 'multivariate_normal'"
        )
        warn(note, IngleWarning)
        return note
