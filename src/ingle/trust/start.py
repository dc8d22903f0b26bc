"""Where a guide by name starts: at the best of a few paths up the log joint, or of several draws from the prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ingle.errors import IngleError, ProgramError
from ingle.program import Program, Whitening, new_whitening, set_guide
from ingle.runtime import RandomState, Runtime
from ingle.trust.log_joint import Refused
from ingle.trust.paths import Path, ascend

__all__ = ["Start", "StartKind", "best_start", "start_from_file"]

StartKind = Literal["path", "prior", "own", "file"]

NUM_DRAWS = 20
_NUM_LOSSES = 4  # draws of the ELBO for each start
_NUM_PATHS = 4


@dataclass(frozen=True)
class Start:
    """Where a guide was started, and how that was found.

    Attributes:
        kind: "path" (L-BFGS), "prior" (the best of several draws), or "own" (what the guide does by itself).
        description: the same in words, for the card.
        evaluations: of the model's gradient; of its loss where draws of the prior were compared.
        whitened: whether the guide moves in units of a curvature, with all correlations ("dense") or sds alone
            ("diagonal"); "no" where it does not.
        path: the one that was taken.
    """

    kind: StartKind
    description: str
    evaluations: int = 0
    whitened: Literal["no", "dense", "diagonal"] = "no"
    path: Path | None = field(default=None, repr=False, compare=False)

    def to_file(self) -> dict[str, Any]:
        """In plain values, from which `start_from_file` makes the guide again."""
        size = 0 if self.path is None else len(self.path.loc)
        return {
            "kind": self.kind,
            "description": self.description,
            "evaluations": self.evaluations,
            "whitened": self.whitened,
            "size": size or self._size,
        }

    _size: int = field(default=0, repr=False, compare=False)


def best_start(program: Program, objective: Any, runtime: Runtime) -> Start:
    """Make the guide of `program`, started where it needs the fewest steps.

    A guide by name starts from the best Gaussian along a path of L-BFGS, and moves in units of the curvature there.
    Where there is no path, it starts where its ELBO is highest among prior draws and the prior median. Any other guide
    is made once, as it is.

    Args:
        program: whose guide is to be made.
        objective: the ELBO by which draws of the prior are compared.
        runtime: of the fit.
    """
    if program.recipe.whiten is None:
        set_guide(program)
        return Start("own", "the guide's own")
    try:
        path = ascend(program, runtime, _NUM_PATHS)[0]
        return _from_path(program, path, runtime)
    except (Refused, IngleError, RuntimeError) as error:  # no start is worth the fit; torch's own errors are the last
        program.guide_leaves.keep(())
        return _from_prior(program, objective, runtime, f"{error}".split("\n")[0])


def start_from_file(program: Program, told: Mapping[str, Any] | None) -> Start:
    """Make the guide of `program` as `best_start` made that of a file, whose numbers are put in afterwards."""
    if told is None or told["whitened"] == "no":
        set_guide(program)
    else:
        try:
            set_guide(program, whitening=new_whitening(told["size"], dense=told["whitened"] == "dense"))
        except IngleError:  # of another model; whoever reads the file says how it differs
            program.keep_leaves(set(program.model_leaves.by_name))
            set_guide(program)
    if told is None:
        return Start("file", "not known: the file is of an earlier version")
    return Start(told["kind"], told["description"], told["evaluations"], told["whitened"], _size=told["size"])


def _from_path(program: Program, path: Path, runtime: Runtime) -> Start:
    peak = program.recipe.name in ("delta", "laplace")
    values = path.at_mode() if peak else path.at_loc()
    whitening = Whitening(path.mode if peak else path.loc, path.factor, path.scale, values)
    before = RandomState.capture(runtime.device)
    with runtime.trial(), torch.no_grad():
        set_guide(program, whitening=whitening, check=False)
        _check_same(program, values)
    before.restore()
    program.guide_leaves.keep(())
    set_guide(program, whitening=whitening)
    dense = path.factor.dim() == 2
    how = {"L-BFGS": "curvature", "Laplace": "exact curvature", "mean Hessian": "mean curvature"}[path.kind]
    size = len(path.loc)
    description = f"L-BFGS path, {path.evaluations} gradients, {how} of {size:,} number{'s' if size != 1 else ''}" + (
        "" if dense else " (sds alone)"
    )
    return Start("path", description, path.evaluations, "dense" if dense else "diagonal", path)


def _check_same(program: Program, values: Mapping[str, Tensor]) -> None:
    """The guide has to read the same numbers as the same latents."""
    if program.recipe.name in ("flow", "laplace"):  # which have no median
        return
    guide: Any = program.guide
    for name, value in guide.median().items():
        scale = 1e-3 * (1.0 + values[name].abs())
        if value.shape != values[name].shape or not bool(((value - values[name]).abs() <= scale).all()):
            raise Refused(f"the support of {name!r} moves with other latents")


def _from_prior(program: Program, objective: Any, runtime: Runtime, why: str) -> Start:
    best: Mapping[str, Tensor] | None = None
    if not program.recipe.takes_start:
        set_guide(program)
        return Start("own", f"the guide's own, as {why}")
    lowest = _loss(program, objective, runtime, None)
    for _ in range(NUM_DRAWS):
        try:
            start = program.prior_draw()
            loss = _loss(program, objective, runtime, start)
        except ProgramError:  # a draw so far out that the program refuses it is no start
            continue
        if loss < lowest:
            best, lowest = start, loss
    set_guide(program, best)
    told = f"best of {NUM_DRAWS} prior draws, as {why}"
    return Start("prior", told, (NUM_DRAWS + 1) * _NUM_LOSSES)


def _loss(program: Program, objective: Any, runtime: Runtime, start: Mapping[str, Tensor] | None) -> float:
    """Mean loss of the guide from one start; infinite where it is not finite."""
    data = program.data
    with runtime.trial(), torch.no_grad():
        set_guide(program, start, check=start is None)
        with program.probe, program.explained("model or guide"):
            losses = [
                float(objective.loss(program.model, program.guide, *data.args, **data.kwargs))
                for _ in range(_NUM_LOSSES)
            ]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf
