"""Which objective a fit uses, and why."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro.infer
import torch

from ingle.errors import OptionError
from ingle.objectives.estimator import Estimator
from ingle.objectives.renyi import RenyiELBO
from ingle.objectives.rloo import RLOO_ELBO
from ingle.objectives.trace import Trace_ELBO
from ingle.objectives.trace_enum import TraceEnum_ELBO
from ingle.objectives.trace_graph import TraceGraph_ELBO
from ingle.objectives.trace_mean_field import TraceMeanField_ELBO
from ingle.program import Program

__all__ = ["Choice", "choose", "exactly_ours", "ours"]

_OURS: dict[type, type[Estimator]] = {
    pyro.infer.RenyiELBO: RenyiELBO,
    pyro.infer.Trace_ELBO: Trace_ELBO,
    pyro.infer.TraceEnum_ELBO: TraceEnum_ELBO,
    pyro.infer.TraceGraph_ELBO: TraceGraph_ELBO,
    pyro.infer.TraceMeanField_ELBO: TraceMeanField_ELBO,
}
_ENUMERATING = (pyro.infer.TraceEnum_ELBO, pyro.infer.TraceTMC_ELBO)


@dataclass(frozen=True)
class Choice:
    """An objective and the reason for it, in words for the card."""

    objective: Any
    reason: str

    @property
    def name(self) -> str:
        """The class of the objective."""
        return type(self.objective).__name__

    @property
    def options(self) -> str:
        """What the objective was made with, as it would be written."""
        options = self.objective.options if isinstance(self.objective, Estimator) else {}
        return ", ".join(f"{name}={value!r}" for name, value in options.items())

    def prepared(self, program: Program) -> Choice:
        """The same once the objective has run on the program, which then holds its memory.

        Raises:
            ProgramError: the objective cannot serve the pair, or the pair raised.
        """
        if not isinstance(self.objective, Estimator):
            return self
        program.memory = self.objective.memory
        if self.objective.vectorize_particles and math.isinf(self.objective.max_plate_nesting):
            self.objective.max_plate_nesting = program.max_plate_nesting + (self.objective.num_particles > 1)
        args, kwargs = program.data.args, program.data.kwargs
        with torch.no_grad(), program.probe, program.explained("model or guide"):
            told = self.objective.told(program.model, program.guide, *args, **kwargs)
        reasons = [self.reason, *(part for part in (self.options, told) if part)]
        return Choice(self.objective, "; ".join(reasons))


def choose(objective: object, program: Program) -> Choice:
    """The user's objective, or the one that the program's sites ask for.

    TraceEnum where something is summed out, RLOO where a guide site has no pathwise gradient, Trace_ELBO otherwise. An
    objective of Pyro's becomes the one of the same name here, where there is one. It remembers nothing of other fits.

    Raises:
        OptionError: for anything that is no `pyro.infer.ELBO`, an objective that reports no loss, or one that
            cannot sum out what the guide leaves out.
    """
    if objective is not None:
        return Choice(_given(objective, program), "given")
    marked = [site.name for site in program.guide_sites if site.marked]
    if program.enumerated or marked:
        names = ", ".join(program.enumerated or marked)
        enumerating = TraceEnum_ELBO(max_plate_nesting=program.max_plate_nesting)
        return Choice(enumerating, f"{names} summed out")
    sampled = [site.name for site in program.guide_sites if site.kind != "observed" and not site.reparameterised]
    if sampled:
        return Choice(RLOO_ELBO(), f"score function, {', '.join(sampled)} has no pathwise gradient")
    return Choice(Trace_ELBO(), "every guide site has a pathwise gradient")


def _given(objective: object, program: Program) -> Any:
    if not isinstance(objective, pyro.infer.ELBO):
        raise OptionError(
            f"objective must be a pyro.infer.ELBO such as pyro.infer.Trace_ELBO(), got {objective!r}"
            + ("; it is a class: did you mean an instance of it?" if isinstance(objective, type) else "")
        )
    if isinstance(objective, pyro.infer.TraceTailAdaptive_ELBO):
        raise OptionError(
            "TraceTailAdaptive_ELBO reports an infinite loss at every step, so a fit by it cannot be watched or "
            "stopped; use it with ingle.SVI"
        )
    if program.enumerated and not isinstance(objective, _ENUMERATING):
        raise OptionError(
            f"the guide leaves out {', '.join(program.enumerated)}, which {type(objective).__name__} cannot sum out; "
            "use pyro.infer.TraceEnum_ELBO(), or sample it in the guide"
        )
    adopted = ours(objective)
    return adopted.fresh() if isinstance(adopted, Estimator) else adopted


def ours(objective: Any) -> Any:
    """An objective of Pyro's as the one of the same name here; any other as it is."""
    kind = _OURS.get(type(objective))
    if kind is None:
        return objective
    adopted = object.__new__(kind)
    adopted.__dict__.update(vars(objective))
    return adopted


def exactly_ours(objective: Any) -> Any:
    """The same where losses and gradients are those of Pyro's; what differs stays Pyro's, or says so when traced."""
    if type(objective) is pyro.infer.RenyiELBO:
        return objective
    adopted = ours(objective)
    if adopted is not objective:
        adopted.as_pyro = True
    return adopted
