"""Optimisers: a torch factory, a Pyro optimiser, or one for the model and one for the guide."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.optim import PyroOptim
from pyro.optim.clipped_adam import ClippedAdam
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ingle.errors import OptionError
from ingle.options import positive_integer

__all__ = ["Optimisers", "resolve_optimisers"]

DEFAULT_LR = 0.02
_FINAL_SHARE = 0.05  # of the default learning rate, reached at the last of a given number of steps


class _Group:
    """One torch optimiser over all leaves of a side; leaves that appear later join it.

    Attributes:
        decays: the learning rate is Ingle's to lower.
    """

    def __init__(self, build: Callable[..., Any], label: str, *, decays: bool = False) -> None:
        self._build = build
        self._label = label
        self.decays = decays
        self.optimiser: torch.optim.Optimizer | None = None
        self._known: dict[str, Tensor] = {}

    def step(self, leaves: Mapping[str, Tensor]) -> None:
        self._join(leaves)
        if self.optimiser is None:
            return
        try:
            self._step(self.optimiser)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise OptionError(f"{self._label}: {type(self.optimiser).__name__} cannot take a step: {error}") from error
        for leaf in leaves.values():
            leaf.grad = None

    def _step(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.step()

    def _join(self, leaves: Mapping[str, Tensor]) -> None:
        fresh = {name: leaf for name, leaf in leaves.items() if self._known.get(name) is not leaf}
        if not fresh:
            return
        try:
            entries = self._entries(fresh)
            if self.optimiser is None:
                self.optimiser = self._checked(self._build(entries))
                self._built()
            else:
                for entry in entries:
                    self.optimiser.add_param_group(entry if isinstance(entry, dict) else {"params": [entry]})
                    if self.decays:
                        self.optimiser.param_groups[-1]["lr"] = self.optimiser.param_groups[0]["lr"]
        except OptionError:
            raise
        except Exception as error:  # the callable is the user's, and may raise anything
            raise OptionError(f"{self._label} cannot be built: {type(error).__name__}: {error}") from error
        self._known.update(fresh)

    def _entries(self, fresh: Mapping[str, Tensor]) -> list[Any]:
        return list(fresh.values())

    def _built(self) -> None:
        """What else begins with the optimiser."""

    def _checked(self, optimiser: object) -> torch.optim.Optimizer:
        if isinstance(optimiser, torch.optim.LBFGS):
            raise OptionError(f"{self._label}: LBFGS evaluates the loss several times a step, which SVI does not offer")
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise OptionError(f"{self._label} must build a torch.optim.Optimizer, it built {type(optimiser).__name__}")
        return optimiser

    def scale_lr(self, factor: float) -> None:
        for group in self.optimiser.param_groups if self.optimiser is not None and self.decays else ():
            group["lr"] *= factor

    def capture(self) -> Any:
        return dict(self._known), None if self.optimiser is None else _copied(self.optimiser.state_dict())

    def restore(self, state: Any) -> None:
        known, of_optimiser = state
        if set(known) != set(self._known):  # leaves joined since: the optimiser is built again without them
            self.optimiser, self._known = None, {}
            self._join(known)
        if self.optimiser is not None and of_optimiser is not None:
            self.optimiser.load_state_dict(_copied(of_optimiser))


class _PyroGroup(_Group):
    """The torch optimiser that a Pyro optimiser describes: its options, clipping and schedule for each leaf."""

    def __init__(self, described: PyroOptim, label: str) -> None:
        build: Any = described.pt_optim_constructor
        super().__init__(build, label)
        self._described = described
        self._clips: list[tuple[Tensor, dict[str, Any]]] = []
        self._scheduler: Any = None

    def _entries(self, fresh: Mapping[str, Tensor]) -> list[Any]:
        described: Any = self._described
        groups: list[dict[str, Any]] = []
        for leaf in fresh.values():
            # Pyro's own look-ups, so that options given by a function of the name mean what they mean there.
            options = described._get_optim_args(leaf)
            clip = described._get_grad_clip_args(leaf)
            if clip:
                self._clips.append((leaf, clip))
            for group in groups:
                if {name: value for name, value in group.items() if name != "params"} == options:
                    group["params"].append(leaf)
                    break
            else:
                described.pt_optim_constructor([leaf], **options)  # refuses what a group of its own would let pass
                groups.append({"params": [leaf], **options})
        return groups

    def _built(self) -> None:
        if isinstance(self._described, PyroLRScheduler):
            self._scheduler = self._described.pt_scheduler_constructor(self.optimiser, **self._described.kwargs)

    def _step(self, optimiser: torch.optim.Optimizer) -> None:
        for leaf, clip in self._clips:
            if leaf.grad is not None:
                if clip.get("clip_norm") is not None:
                    clip_grad_norm_(leaf, clip["clip_norm"])
                if clip.get("clip_value") is not None:
                    clip_grad_value_(leaf, clip["clip_value"])
        optimiser.step()
        if self._scheduler is not None:
            self._scheduler.step()

    def capture(self) -> Any:
        schedule = None if self._scheduler is None else copy.deepcopy(self._scheduler.state_dict())
        return super().capture(), schedule

    def restore(self, state: Any) -> None:
        if set(state[0][0]) != set(self._known):
            self._clips, self._scheduler = [], None
        super().restore(state[0])
        if self._scheduler is not None and state[1] is not None:
            self._scheduler.load_state_dict(copy.deepcopy(state[1]))


class Optimisers:
    """Steps the parameters of model and guide, together or each by its own optimiser.

    Attributes:
        description: for the card.
        guide_steps: the guide moves at every step, the model at every `guide_steps`-th.
        decays: some learning rate is Ingle's to lower, because the user named no optimiser for it.
    """

    def __init__(self, groups: Mapping[str, _Group], *, guide_steps: int, description: str) -> None:
        self._groups = dict(groups)
        self.guide_steps = guide_steps
        self.description = description
        self.decays = any(group.decays for group in groups.values())
        self._taken = 0

    def step(self, model_leaves: Mapping[str, Tensor], guide_leaves: Mapping[str, Tensor]) -> None:
        """One update from the gradients that are there, which are used up; no leaf is on both sides."""
        self._taken += 1
        if "both" in self._groups:
            self._groups["both"].step({**model_leaves, **guide_leaves})
            return
        self._groups["guide"].step(guide_leaves)
        if self._taken % self.guide_steps == 0:
            self._groups["model"].step(model_leaves)
        else:
            for leaf in model_leaves.values():
                leaf.grad = None

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rates that are Ingle's to lower."""
        for group in self._groups.values():
            group.scale_lr(factor)

    def capture(self) -> Any:
        """State of every optimiser and schedule, copied."""
        return self._taken, {side: group.capture() for side, group in self._groups.items()}

    def restore(self, state: Any) -> None:
        """Go back to a captured state."""
        self._taken = state[0]
        for side, group in self._groups.items():
            group.restore(state[1][side])


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
        groups[side] = _group(given, "optim" if side == "both" else f"optim[{side!r}]", decay)
    names = {side: _name(given, steps) for side, given in sides.items()}
    description = names["both"] if "both" in names else f"model {names['model']}, guide {names['guide']}"
    if repeats > 1:
        description += f", {repeats} guide steps for each of the model"
    return Optimisers(groups, guide_steps=repeats, description=description)


def _group(given: object, label: str, decay: float) -> _Group:
    if given is None:
        return _Group(lambda leaves: ClippedAdam(leaves, lr=DEFAULT_LR, lrd=decay), label, decays=True)
    if isinstance(given, PyroOptim):
        if getattr(given, "pt_scheduler_constructor", None) is torch.optim.lr_scheduler.ReduceLROnPlateau:
            raise OptionError(f"{label}: ReduceLROnPlateau wants a metric at each step, which SVI does not offer")
        return _PyroGroup(given, label)
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
    return _Group(given, label)


def _name(given: object, steps: int | None) -> str:
    if given is None:
        how = "to a twentieth over the fit" if steps is not None else "as the ELBO levels off"
        return f"ClippedAdam at {DEFAULT_LR}, decaying {how}"
    if isinstance(given, PyroOptim):
        return getattr(given.pt_optim_constructor, "__name__", type(given).__name__)
    return getattr(getattr(given, "func", given), "__name__", type(given).__name__)


def _copied(state: Any) -> Any:
    """A state dict with its tensors copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_copied(value) for value in state)
    return state
