"""Optimisers: a torch factory, a Pyro optimiser, or one for the model and one for the guide."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

from ingle.engine.group import Group, PyroGroup
from ingle.errors import FileError, OptionError
from ingle.options import positive_integer
from ingle.saved import plain

__all__ = ["Optimisers", "from_file", "resolve_optimisers", "to_file"]

DEFAULT_LR = 0.02
SDS_LR = 0.1
_FINAL_SHARE = 0.05  # of the default learning rate, reached at the last of a given number of steps


class Optimisers:
    """Steps the parameters of model and guide, together or each by its own optimiser.

    Attributes:
        description: for the card.
        kind: the same without how a learning rate of Ingle's decays, which follows from the steps asked for.
        guide_steps: the guide moves at every step, the model at every `guide_steps`-th.
        decays: some learning rate is Ingle's to lower, because the user named no optimiser for it.
        planned: steps over which it is lowered; None where a rule lowers it, or nothing does.
        groups: the optimisers, one for "both" sides, or one for the "model" and one for the "guide".
    """

    def __init__(
        self, groups: Mapping[str, Group], *, guide_steps: int, description: str, kind: str, steps: int | None
    ) -> None:
        self.groups = dict(groups)
        self.guide_steps = guide_steps
        self.description = description
        self.kind = kind
        self.decays = any(group.decays for group in groups.values())
        self.planned = steps if self.decays else None
        self._taken = 0

    def step(self, model_leaves: Mapping[str, Tensor], guide_leaves: Mapping[str, Tensor]) -> None:
        """One update from the gradients that are there, which are used up; no leaf is on both sides."""
        self._taken += 1
        if "both" in self.groups:
            self.groups["both"].step({**model_leaves, **guide_leaves})
            return
        self.groups["guide"].step(guide_leaves)
        if self._taken % self.guide_steps == 0:
            self.groups["model"].step(model_leaves)
        else:
            for leaf in model_leaves.values():
                leaf.grad = None

    def begun(self, side: str) -> bool:
        """The side has had its first turn to move."""
        return self._taken >= (self.guide_steps if side == "model" else 1)

    def turns(self, steps: int) -> dict[str, npt.NDArray[np.bool_]]:
        """Whether each side moves at each of the next steps, arrays of shape (steps,); counts the steps as taken."""
        numbers = np.arange(self._taken + 1, self._taken + steps + 1)
        self._taken += steps
        return {side: numbers % (self.guide_steps if side == "model" else 1) == 0 for side in self.groups}

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rates that are Ingle's to lower."""
        for group in self.groups.values():
            group.scale_lr(factor)

    def rewind_lr(self) -> None:
        """Learning rates of Ingle's are again what they began with."""
        for group in self.groups.values():
            group.rewind_lr()

    def in_sds(self) -> None:
        """Before the first step: parameters are in posterior sds, so that learning rates of Ingle's can be larger."""
        for group in self.groups.values():
            if group.decays:
                group.lr = SDS_LR
        before, after = (f"ClippedAdam at {lr}" for lr in (DEFAULT_LR, SDS_LR))
        self.description, self.kind = (told.replace(before, after) for told in (self.description, self.kind))

    def capture(self) -> dict[str, Any]:
        """State of every optimiser and schedule, copied."""
        return {"taken": self._taken, "sides": {side: group.capture() for side, group in self.groups.items()}}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a captured state."""
        self._taken = state["taken"]
        for side, group in self.groups.items():
            group.restore(state["sides"][side])

    def changed(self, state: Mapping[str, Any]) -> str | None:
        """How the user's options differ from those of a captured state, in words; None where they do not."""
        found = ((side, group.changed(state["sides"][side])) for side, group in self.groups.items())
        return next((f"{_label(side)} has {told}" for side, told in found if told is not None), None)

    def check_plain(self, model_leaves: Mapping[str, Tensor], guide_leaves: Mapping[str, Tensor]) -> None:
        """Raises `OptionError` where an optimiser or schedule starts with something that a file cannot hold."""
        leaves = {"both": {**model_leaves, **guide_leaves}, "model": model_leaves, "guide": guide_leaves}
        sides = {side: group.joined([leaves[side]]).capture() for side, group in self.groups.items()}
        to_file({"taken": 0, "sides": sides})


def to_file(state: Mapping[str, Any]) -> dict[str, Any]:
    """A captured state in values that a file can hold, leaves by their names.

    Raises:
        OptionError: an optimiser or schedule holds something else.
        FileError: a parameter was made anew while the fit ran, and its name stands for two.
    """
    sides = {}
    for side, group in state["sides"].items():
        names = [name for join in group["joins"] for name in join]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise FileError(
                f"the fit cannot be written: the program made parameter {twice!r} anew while it was trained"
            )
        named = {**group, "joins": [list(join) for join in group["joins"]]}
        sides[side] = {part: plain(value, f"{_label(side)}: {part}") for part, value in named.items()}
    return {"taken": state["taken"], "sides": sides}


def from_file(state: Mapping[str, Any], leaves: Mapping[str, Tensor]) -> dict[str, Any]:
    """The captured state that `to_file` was given, with the leaves of this program."""
    sides = {
        side: {**group, "joins": [{name: leaves[name] for name in join} for join in group["joins"]]}
        for side, group in state["sides"].items()
    }
    return {"taken": state["taken"], "sides": sides}


def resolve_optimisers(optim: object, *, guide_steps: object, steps: int | None) -> Optimisers:
    """The optimisers of a fit.

    Args:
        optim: a callable from parameters to a `torch.optim.Optimizer`, a Pyro optimiser, a mapping with one of
            these for "model" and one for "guide", or None for ClippedAdam at 0.02, decaying; None may also stand
            in the mapping.
        guide_steps: updates of the guide for each of the model.
        steps: of the fit, over which the default decays; None leaves the decay to the stopping rule.

    Raises:
        OptionError: for an optimiser that is already built, or anything else.
    """
    repeats = positive_integer("guide_steps", guide_steps)
    sides: dict[str, object] = {"both": optim}
    if isinstance(optim, Mapping):
        if set(optim) != {"model", "guide"}:
            raise OptionError(f'optim as a mapping has the keys "model" and "guide", got {sorted(map(str, optim))}')
        sides = dict(optim)
    elif repeats > 1:
        sides = {"model": optim, "guide": optim}
    groups = {}
    for side, given in sides.items():
        updates = None if steps is None else max(1, steps // repeats if side == "model" else steps)
        decay = 1.0 if updates is None else _FINAL_SHARE ** (1 / updates)
        groups[side] = _group(given, _label(side), decay, updates)
    how = "to a twentieth over the fit" if steps is not None else "as the fit settles"
    return Optimisers(
        groups,
        guide_steps=repeats,
        description=_described(sides, repeats, f", decaying {how}"),
        kind=_described(sides, repeats, ""),
        steps=steps,
    )


def _label(side: str) -> str:
    return "optim" if side == "both" else f"optim[{side!r}]"


def _group(given: object, label: str, decay: float, updates: int | None) -> Group:
    if given is None:

        def build(leaves: Any) -> ClippedAdam:
            return ClippedAdam(leaves, lr=group.lr or DEFAULT_LR, lrd=decay)

        group = Group(build, label, updates=updates, lr=DEFAULT_LR)
        return group
    if isinstance(given, PyroOptim):
        if getattr(given, "pt_scheduler_constructor", None) is torch.optim.lr_scheduler.ReduceLROnPlateau:
            raise OptionError(f"{label}: ReduceLROnPlateau wants a metric at each step, which SVI does not offer")
        return PyroGroup(given, label)
    if not isinstance(given, type) and str(getattr(given, "__module__", "")).startswith("pyro.optim"):
        raise OptionError(f'{label} is a Pyro optimiser without its options: give them first, Adam({{"lr": 0.01}})')
    if isinstance(given, torch.optim.Optimizer):
        raise OptionError(
            f"{label} is an optimiser that is already built, but the parameters of a fit do not exist before it "
            f"starts: give a callable, such as functools.partial(torch.optim.{type(given).__name__}, lr=1e-2)"
        )
    if not callable(given):
        raise OptionError(
            f"{label} must be a callable from parameters to a torch.optim.Optimizer, a Pyro optimiser, or None, "
            f"got {given!r}"
        )
    return Group(given, label)


def _described(sides: Mapping[str, object], repeats: int, decay: str) -> str:
    names = {side: _name(given, decay) for side, given in sides.items()}
    described = names["both"] if "both" in names else f"model {names['model']}, guide {names['guide']}"
    return described + (f", {repeats} guide steps for each of the model" if repeats > 1 else "")


def _name(given: object, decay: str) -> str:
    if given is None:
        return f"ClippedAdam at {DEFAULT_LR}{decay}"
    if isinstance(given, PyroOptim):
        return getattr(given.pt_optim_constructor, "__name__", type(given).__name__)
    return getattr(getattr(given, "func", given), "__name__", type(given).__name__)
