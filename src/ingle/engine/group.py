"""One torch optimiser over the leaves of a side, and what of it can be captured, restored and compared."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from ingle.errors import OptionError

__all__ = ["Group", "PyroGroup", "Rates"]


@dataclass(frozen=True)
class Rates:
    """What one parameter group has at each of the updates to come, arrays of shape (updates,).

    Attributes:
        lr: the learning rate that the update takes.
        momentum: the momentum, or the first of two betas; None where nothing changes it.
    """

    lr: npt.NDArray[np.float64]
    momentum: npt.NDArray[np.float64] | None = None


class Group:
    """One torch optimiser over all leaves of a side; leaves that appear later join it.

    Args:
        build: from leaves, or groups of them, to the optimiser.
        label: what the user calls it.
        updates: over which a learning rate of Ingle's decays, to stay where it is from then on; None for no end.
        lr: the learning rate where it is Ingle's, to lower and to raise; None where it is the user's.

    Attributes:
        optimiser: from the first update on; None before it, and on a side without leaves.
        clips: leaves whose gradients are clipped, with `clip_norm`, `clip_value` or both.
        scheduler: what moves the learning rates after each update, if anything.
    """

    def __init__(
        self, build: Callable[..., Any], label: str, *, updates: int | None = None, lr: float | None = None
    ) -> None:
        self._build = build
        self.label = label
        self._updates = updates
        self._taken = 0
        self.lr = lr
        self.optimiser: torch.optim.Optimizer | None = None
        self._clear()

    @property
    def decays(self) -> bool:
        """The learning rate is Ingle's."""
        return self.lr is not None

    def _clear(self) -> None:
        self.optimiser = None
        self.clips: list[tuple[Tensor, dict[str, Any]]] = []
        self.scheduler: Any = None
        self._known: dict[str, Tensor] = {}
        self._joins: list[dict[str, Tensor]] = []  # leaves that joined together are one group, or several, of their own
        self._options: list[Any] = []  # of each join, as the user gave them

    def step(self, leaves: Mapping[str, Tensor]) -> None:
        """Move the leaves by their gradients, which are used up."""
        self._join(leaves)
        if self.optimiser is None:
            return
        with self._explained():
            self._step(self.optimiser)
        for leaf in leaves.values():
            leaf.grad = None
        self._count(1)

    def plan(self, updates: int) -> list[Rates]:
        """The rates of the next updates, one entry for each parameter group, for updates that are taken elsewhere.

        Learning rates, schedule and count are afterwards what as many calls of `step` leave; the state that
        torch's optimiser has of each leaf is not touched.
        """
        if self.optimiser is None or updates == 0:
            empty = Rates(np.empty(0), np.empty(0))
            return [] if self.optimiser is None else [empty for _ in self.optimiser.param_groups]
        with self._explained():
            rates = self._rates(self.optimiser, updates)
        self._count(updates)
        return rates

    def _rates(self, optimiser: torch.optim.Optimizer, updates: int) -> list[Rates]:
        left = updates if self._updates is None or self._taken >= self._updates else self._updates - self._taken
        rates = []
        for group in optimiser.param_groups:
            lr = np.full(updates, float(group["lr"]))
            if group.get("lrd", 1.0) != 1.0:
                factors = np.full(updates + 1, float(group["lrd"]))
                factors[0], factors[1 + left :] = group["lr"], 1.0
                lr = np.multiply.accumulate(factors)[1:]  # one after the other, and so to the bit what steps give
                group["lr"] = lr[-1].item()
            rates.append(Rates(lr))
        return rates

    def _count(self, updates: int) -> None:
        before, self._taken = self._taken, self._taken + updates
        if self.optimiser is not None and self._updates is not None and before < self._updates <= self._taken:
            for group in self.optimiser.param_groups:
                group["lrd"] = 1.0

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError) as error:
            raise OptionError(f"{self.label}: {type(self.optimiser).__name__} cannot take a step: {error}") from error

    def _step(self, optimiser: torch.optim.Optimizer) -> None:
        optimiser.step()

    def _join(self, leaves: Mapping[str, Tensor]) -> None:
        fresh = {name: leaf for name, leaf in leaves.items() if self._known.get(name) is not leaf}
        if not fresh:
            return
        try:
            entries = self._entries(fresh)
            there = 0 if self.optimiser is None else len(self.optimiser.param_groups)
            if self.optimiser is None:
                self.optimiser = self._checked(self._build(entries))
            else:
                for entry in entries:
                    self.optimiser.add_param_group(entry if isinstance(entry, dict) else {"params": [entry]})
                    if self.decays:
                        for rate in ("lr", "lrd"):
                            self.optimiser.param_groups[-1][rate] = self.optimiser.param_groups[0][rate]
            self._options.append(_copied([_without_params(group) for group in self.optimiser.param_groups[there:]]))
            if there == 0:
                self._built()
        except OptionError:
            raise
        except Exception as error:  # the callable is the user's, and may raise anything
            raise OptionError(f"{self.label} cannot be built: {type(error).__name__}: {error}") from error
        self._known.update(fresh)
        self._joins.append(fresh)

    def _entries(self, fresh: Mapping[str, Tensor]) -> list[Any]:
        return list(fresh.values())

    def _built(self) -> None:
        """What else begins with the optimiser."""

    def _checked(self, optimiser: object) -> torch.optim.Optimizer:
        if isinstance(optimiser, torch.optim.LBFGS):
            raise OptionError(f"{self.label}: LBFGS evaluates the loss several times a step, which SVI does not offer")
        if not isinstance(optimiser, torch.optim.Optimizer):
            raise OptionError(f"{self.label} must build a torch.optim.Optimizer, it built {type(optimiser).__name__}")
        return optimiser

    def scale_lr(self, factor: float) -> None:
        """Multiply the learning rate, where it is Ingle's to lower."""
        for group in self.optimiser.param_groups if self.optimiser is not None and self.decays else ():
            group["lr"] *= factor

    def rewind_lr(self) -> None:
        """Give the learning rate the value that it began with, where it is Ingle's."""
        for group in self.optimiser.param_groups if self.optimiser is not None and self.decays else ():
            group["lr"] = self.lr

    def capture(self) -> dict[str, Any]:
        """The state, copied, with the leaves that joined."""
        return {
            "joins": list(self._joins),
            **self._given(),
            "taken": self._taken,
            "updates": self._updates,
            "optimiser": None if self.optimiser is None else _copied(self.optimiser.state_dict()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a captured state."""
        if not _same_leaves(state["joins"], self._joins):  # built again, join by join, since each makes groups
            self._clear()
            for join in state["joins"]:
                self._join(join)
        self._taken, self._updates = state["taken"], state["updates"]
        if self.optimiser is not None and state["optimiser"] is not None:
            self.optimiser.load_state_dict(_copied(state["optimiser"]))

    def joined(self, joins: Iterable[Mapping[str, Tensor]]) -> Self:
        """A group of the same kind with these leaves, to look at and throw away."""
        group = copy.copy(self)
        group._clear()
        for join in joins:
            group._join(join)
        return group

    def changed(self, state: Mapping[str, Any]) -> str | None:
        """How the options that the user gave differ from those of a captured state, in words."""
        if self.decays:
            return None  # the options are Ingle's, and follow the steps of the first call
        return _changed(self.joined(state["joins"])._given(), {name: state[name] for name in self._given()})

    def _given(self) -> dict[str, Any]:
        return {"options": self._options}


class PyroGroup(Group):
    """The torch optimiser that a Pyro optimiser describes: its options, clipping and schedule for each leaf."""

    def __init__(self, described: PyroOptim, label: str) -> None:
        self._described = described
        build: Any = described.pt_optim_constructor
        super().__init__(build, label)

    def _clear(self) -> None:
        super()._clear()
        self._planned: Any = None  # the schedule before its first step

    def _entries(self, fresh: Mapping[str, Tensor]) -> list[Any]:
        described: Any = self._described
        groups: list[dict[str, Any]] = []
        for leaf in fresh.values():
            # Pyro's own look-ups, so that options given by a function of the name mean what they mean there.
            options = described._get_optim_args(leaf)
            clip = described._get_grad_clip_args(leaf)
            if clip:
                self.clips.append((leaf, clip))
            for group in groups:
                if _without_params(group) == options:
                    group["params"].append(leaf)
                    break
            else:
                described.pt_optim_constructor([leaf], **options)  # refuses what a group of its own would let pass
                groups.append({"params": [leaf], **options})
        return groups

    def _built(self) -> None:
        if isinstance(self._described, PyroLRScheduler):
            self.scheduler = self._described.pt_scheduler_constructor(self.optimiser, **self._described.kwargs)
            self._planned = copy.deepcopy(self.scheduler.state_dict())

    def _step(self, optimiser: torch.optim.Optimizer) -> None:
        for leaf, clip in self.clips:
            if leaf.grad is not None:
                if clip.get("clip_norm") is not None:
                    clip_grad_norm_(leaf, clip["clip_norm"])
                if clip.get("clip_value") is not None:
                    clip_grad_value_(leaf, clip["clip_value"])
        optimiser.step()
        if self.scheduler is not None:
            self.scheduler.step()

    def _rates(self, optimiser: torch.optim.Optimizer, updates: int) -> list[Rates]:
        if self.scheduler is None:
            return super()._rates(optimiser, updates)
        lrs, momenta = np.empty((2, updates, len(optimiser.param_groups)))
        for update in range(updates):
            for index, group in enumerate(optimiser.param_groups):
                if "lrd" in group:
                    group["lr"] *= group["lrd"]
                lrs[update, index] = group["lr"]
                momenta[update, index] = group["betas"][0] if "betas" in group else group.get("momentum", 0.0)
            self.scheduler.step()
        return [Rates(lr, momentum) for lr, momentum in zip(lrs.T, momenta.T, strict=True)]

    def capture(self) -> dict[str, Any]:
        """The state, copied, with the leaves that joined and the schedule."""
        return {
            **super().capture(),
            "schedule": None if self.scheduler is None else copy.deepcopy(self.scheduler.state_dict()),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to a captured state."""
        super().restore(state)
        if self.scheduler is not None and state["schedule"] is not None:
            self.scheduler.load_state_dict(copy.deepcopy(state["schedule"]))

    def _given(self) -> dict[str, Any]:
        clips = [dict(clip) for _, clip in self.clips]
        return {"options": self._options, "clips": clips, "planned": self._planned}


def _without_params(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in group.items() if name != "params"}


def _same_leaves(first: list[dict[str, Tensor]], second: list[dict[str, Tensor]]) -> bool:
    ids = [[[(name, id(leaf)) for name, leaf in join.items()] for join in joins] for joins in (first, second)]
    return ids[0] == ids[1]


def _changed(ours: Any, theirs: Any, name: str = "options") -> str | None:
    """The first value that is not the same in both, as "lr 0.1, in the file 0.2"; names that one lacks are let pass.

    Another version of torch may know more options.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        pairs = [(ours[key], theirs[key], str(key)) for key in ours if key in theirs]
    elif isinstance(ours, (list, tuple)) and isinstance(theirs, (list, tuple)) and len(ours) == len(theirs):
        pairs = [(mine, other, name) for mine, other in zip(ours, theirs, strict=True)]
    else:
        tensors = isinstance(ours, Tensor) and isinstance(theirs, Tensor)
        same = torch.equal(ours.cpu(), theirs.cpu()) if tensors else ours == theirs
        return None if same else f"{name} {ours}, in the file {theirs}"
    return next((told for told in (_changed(*pair) for pair in pairs) if told is not None), None)


def _copied(state: Any) -> Any:
    """A state dict with its tensors copied."""
    if isinstance(state, Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: _copied(value) for name, value in state.items()}
    if isinstance(state, (list, tuple)):
        return type(state)(_copied(value) for value in state)
    return state
