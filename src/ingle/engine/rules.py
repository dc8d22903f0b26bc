"""The formulas of the optimisers that a graph can step, as tensor operations on numbers that are known beforehand.

What depends on nothing but the count of the updates (learning rate, bias corrections) is computed for many updates
at once, in float64 on the host; a formula reads it as 0-dimensional tensors and asks the host for nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt
import torch
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor
from torch.optim import lr_scheduler
from torch.optim import optimizer as hooks

from ingle.engine.group import Group, Rates

__all__ = ["Rule", "rules_of"]

Array = npt.NDArray[np.float64]

# Read anew for each update, or how torch computes it, or what a schedule notes for itself: nothing of a formula.
_BESIDE = {
    "lr", "params", "param_names", "name", "foreach", "fused", "capturable", "differentiable", "initial_lr",
    "max_lr", "min_lr", "max_momentum", "base_momentum",
}  # fmt: skip


class Rule:
    """How the leaves of one parameter group are updated.

    Args:
        options: of the group, as torch has them.
        varying: momentum or betas are numbers of the update, not of the formula, because a schedule changes them or
            because the group stands still at some steps.

    Attributes:
        slots: names of the tensors that torch keeps of each leaf.
        counts: torch counts the updates of each leaf.
        still: names of the numbers of an update, in their order, with values for which a gradient of zero changes
            neither leaf nor state.
        constants: numbers of the formula, by name.
    """

    covers: ClassVar[frozenset[str]]
    counts: ClassVar[bool]

    def __init__(self, options: Mapping[str, Any], *, varying: bool) -> None:
        self.varying = varying
        self.slots: tuple[str, ...] = ()
        self.still: dict[str, float] = {}
        self.constants: dict[str, float] = {}

    def numbers(self, rates: Rates, counted: float) -> list[Array | float]:
        """Numbers of the updates after the first `counted`, in the order of `still`: one for all, or (updates,)."""
        raise NotImplementedError

    def move(self, leaf: Tensor, gradient: Tensor, state: Sequence[Tensor], row: Mapping[str, Any]) -> None:
        """Change leaf and state in place.

        Args:
            leaf: of any shape.
            gradient: of the same shape; it stays as it is.
            state: the tensors of `slots`, of the same shape.
            row: numbers and constants by name, 0-dimensional tensors of the leaf's dtype or floats.
        """
        raise NotImplementedError


class _SGD(Rule):
    covers = frozenset({"momentum", "dampening", "weight_decay", "nesterov", "maximize"})
    counts = False

    def __init__(self, options: Mapping[str, Any], *, varying: bool) -> None:
        super().__init__(options, varying=varying)
        self._maximise, self._nesterov, self._decay = options["maximize"], options["nesterov"], options["weight_decay"]
        self._momentum, self._share = options["momentum"], 1.0 - options["dampening"]
        self.still["size"] = 0.0
        if self._momentum != 0:
            self.slots = ("momentum_buffer",)
            if varying:
                self.still |= {"keep": 1.0, "share": 0.0}
            else:
                self.constants = {"keep": float(self._momentum), "share": self._share}

    def numbers(self, rates: Rates, counted: float) -> list[Array | float]:
        """The negative learning rate; momentum, and how much of a gradient joins the buffer."""
        momentum = self._momentum if rates.momentum is None else rates.momentum
        return [-rates.lr, *([momentum, self._share] if "keep" in self.still else [])]

    def move(self, leaf: Tensor, gradient: Tensor, state: Sequence[Tensor], row: Mapping[str, Any]) -> None:
        """Along the gradient, or along its running sum, whose buffer torch makes at a first update."""
        gradient = _decayed(-gradient if self._maximise else gradient, leaf, self._decay)
        for buffer in state:
            _add(buffer.mul_(row["keep"]), row["share"], gradient)
            gradient = gradient + buffer * row["keep"] if self._nesterov else buffer
        leaf.addcmul_(gradient, row["size"])


class _Adam(Rule):
    """Adam and AdamW, with the second bias correction in step size and eps: the same step, one division less."""

    covers = frozenset({"betas", "eps", "weight_decay", "amsgrad", "maximize", "decoupled_weight_decay"})
    counts = True

    def __init__(self, options: Mapping[str, Any], *, varying: bool) -> None:
        super().__init__(options, varying=varying)
        self._betas, self._eps, self._decay = options["betas"], float(options["eps"]), options["weight_decay"]
        self._maximise = options.get("maximize", False)
        self._decoupled = options.get("decoupled_weight_decay", False) and self._decay != 0
        largest = ("max_exp_avg_sq",) if options.get("amsgrad", False) else ()
        self.slots = ("exp_avg", "exp_avg_sq", *largest)
        self.still["size"] = 0.0
        if varying:
            self.still |= {"keep": 1.0, "share": 0.0, "keep_sq": 1.0, "share_sq": 0.0}
        else:
            keep, keep_sq = map(float, self._betas)
            self.constants = {"keep": keep, "share": 1 - keep, "keep_sq": keep_sq, "share_sq": 1 - keep_sq}
        self._begin()

    def _begin(self) -> None:
        self.still["eps"] = 1.0  # it divides, and so is not zero
        if self._decoupled:
            self.still["shrink"] = 1.0

    def numbers(self, rates: Rates, counted: float) -> list[Array | float]:
        """The negative step size; betas and their complements; eps; what a decoupled decay leaves of a leaf."""
        keep, keep_sq = self._betas[0] if rates.momentum is None else rates.momentum, self._betas[1]
        count = np.arange(counted + 1, counted + 1 + len(rates.lr))
        root = np.sqrt(1 - np.power(keep_sq, count))
        numbers: list[Array | float] = [-(rates.lr * root / (1 - np.power(keep, count)))]
        if self.varying:
            numbers += [keep, 1 - keep, keep_sq, 1 - keep_sq]
        if "eps" in self.still:
            numbers.append(self._eps * root)
        if "shrink" in self.still:
            numbers.append(1 - rates.lr * self._decay)
        return numbers

    def move(self, leaf: Tensor, gradient: Tensor, state: Sequence[Tensor], row: Mapping[str, Any]) -> None:
        """By the mean of the gradients over the root of the mean of their squares."""
        average, average_sq, *largest = state
        gradient = self._clipped(-gradient if self._maximise else gradient)
        if self._decoupled:
            leaf.mul_(row["shrink"])
        else:
            gradient = _decayed(gradient, leaf, self._decay)
        _add(average.mul_(row["keep"]), row["share"], gradient)
        deviation = self._deviation(gradient, average)
        _add(average_sq.mul_(row["keep_sq"]), row["share_sq"], deviation, deviation)
        for most in largest:
            average_sq = most.copy_(torch.maximum(most, average_sq))
        leaf.addcdiv_(average * row["size"], average_sq.sqrt().add_(row["eps"]))

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient

    def _deviation(self, gradient: Tensor, average: Tensor) -> Tensor:
        return gradient


class _ClippedAdam(_Adam):
    """Pyro's: entries of the gradient are clipped, and eps is added to the root before its correction."""

    covers = frozenset({"betas", "eps", "weight_decay", "clip_norm", "centered_variance", "lrd"})

    def __init__(self, options: Mapping[str, Any], *, varying: bool) -> None:
        super().__init__(options, varying=varying)
        self._clip, self._centred = options["clip_norm"], options.get("centered_variance", False)

    def _begin(self) -> None:
        self.constants["eps"] = self._eps

    def _clipped(self, gradient: Tensor) -> Tensor:
        return gradient.clamp(-self._clip, self._clip)

    def _deviation(self, gradient: Tensor, average: Tensor) -> Tensor:
        return gradient - average if self._centred else gradient


_RULES: dict[type[torch.optim.Optimizer], type[Rule]] = {
    torch.optim.SGD: _SGD,
    torch.optim.Adam: _Adam,
    torch.optim.AdamW: _Adam,
    ClippedAdam: _ClippedAdam,
}


def rules_of(group: Group, *, halts: bool) -> list[tuple[Rule, dict[str, Any]]] | str:
    """The rule of each parameter group of a built optimiser, with the options that it was written for.

    Args:
        group: of leaves, with its optimiser.
        halts: the leaves stand still at some steps.

    Returns:
        The reason in words where an optimiser does something that no rule covers.
    """
    optimiser = group.optimiser
    kind = type(optimiser)
    if optimiser is None or kind not in _RULES:
        return f"{group.label}: no formula for {kind.__module__}.{kind.__qualname__}"
    if _hooked(optimiser):
        return f"{group.label}: {kind.__name__} has hooks"
    step = vars(optimiser).get("step")
    if step is not None and not hasattr(step, "_wrapped_by_lr_sched"):
        return f"{group.label}: {kind.__name__} has a step of its own"
    if group.scheduler is not None and not _plain(group.scheduler):
        return f"{group.label}: the schedule {type(group.scheduler).__name__} has a step of its own"
    rules = []
    for options in optimiser.param_groups:
        reason = _reason(options, _RULES[kind].covers)
        if reason is not None:
            return f"{group.label}: {kind.__name__} with {reason}"
        known = {name: options[name] for name in _RULES[kind].covers - {"lrd"} if name in options}
        rule = _RULES[kind](options, varying=halts or group.scheduler is not None)
        if group.scheduler is not None:  # the momentum and the first of the betas are read anew
            known["momentum"], known["betas"] = None, known.get("betas", ())[1:]
        rules.append((rule, known))
    return rules


def _reason(options: Mapping[str, Any], covers: frozenset[str]) -> str | None:
    for name, value in options.items():
        parts = value if isinstance(value, (list, tuple)) else [value]
        if name not in ("params", "initial_lr") and any(isinstance(part, Tensor) for part in parts):
            return f"a tensor for {name}"
        if name not in covers | _BESIDE and value not in (None, False, 0):
            return f"the option {name}"
    if options.get("differentiable"):
        return "differentiable"
    if options.get("base_momentum") == 0:
        return "a schedule that brings the momentum to zero"  # where torch leaves the buffer out
    return None


def _plain(scheduler: Any) -> bool:
    """It changes learning rates, momenta too where it is torch's own, and nothing else."""
    kind = type(scheduler)
    return kind.__module__ == lr_scheduler.__name__ or getattr(kind, "step", None) is lr_scheduler.LRScheduler.step


def _hooked(optimiser: torch.optim.Optimizer) -> bool:
    own = ("_optimizer_step_pre_hooks", "_optimizer_step_post_hooks")
    every = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
    return any(getattr(optimiser, name, None) for name in own) or any(getattr(hooks, name, None) for name in every)


def _decayed(gradient: Tensor, leaf: Tensor, decay: float) -> Tensor:
    return gradient if decay == 0 else gradient.add(leaf, alpha=decay)


def _add(into: Tensor, factor: float | Tensor, *values: Tensor) -> None:
    """Add the product in place: of a number that is a tensor, without asking the host for its value."""
    first, *others = values
    if isinstance(factor, Tensor):
        into.addcmul_(first * others[0] if others else first, factor)
    elif others:
        into.addcmul_(first, others[0], value=factor)
    else:
        into.add_(first, alpha=factor)
