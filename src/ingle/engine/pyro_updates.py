"""The end of a step of `pyro.infer.SVI`, whose optimiser keeps a torch optimiser for each parameter.

Where formulas cover those, the graph moves the parameters; where none do, it leaves gradients, and Pyro's optimiser
goes on from there.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from torch import Tensor

from ingle.engine.endings import Gradients
from ingle.engine.group import Rates
from ingle.engine.rules import rules_of
from ingle.engine.updates import Clock, Updates

__all__ = ["PyroGradients", "PyroUpdates", "Unsuited"]

_AHEAD = 256  # updates whose numbers are computed at once, where nothing changes them
_RATES = ("lr", "lrd")
_MOMENTA = ("momentum", "betas")


class Unsuited(Exception):
    """The optimiser does something that no formula covers."""


@dataclass(eq=False)
class _Adopted:
    """Leaves whose torch optimisers do the same: in the place of a group of Ingle's."""

    label: str
    optimiser: Any
    scheduler: Any
    members: list[_Member] = field(default_factory=list)
    clips: tuple[()] = ()


class _Member:
    """One leaf with its torch optimiser, and what a graph takes for given of it."""

    def __init__(self, optim: Any, leaf: Tensor) -> None:
        self.leaf = leaf
        self.entry = optim.optim_objs.get(leaf)
        self.scheduler = None if isinstance(self.entry, torch.optim.Optimizer) else self.entry
        self.optimiser: Any = self.entry if self.scheduler is None else self.entry.optimizer
        if len(self.optimiser.param_groups) != 1 or [id(each) for each in self._options["params"]] != [id(leaf)]:
            raise Unsuited("a torch optimiser of it has other parameters than its own")
        self.states = self.optimiser.state
        self.state: dict[str, Any] = self.states.get(leaf, {})
        self.lr = 0.0

    @property
    def _options(self) -> dict[str, Any]:
        options: dict[str, Any] = self.optimiser.param_groups[0]
        return options

    def take(self, slots: Sequence[str], names: Sequence[str], rates: Sequence[str]) -> None:
        """Note slots of the state and options as they are: a graph has them as inputs, and as constants."""
        self.options = self._options
        self._named = operator.itemgetter("params", *names)
        self._known = self._named(self.options)
        self._rates = operator.itemgetter("params", *rates)
        self._slots = operator.itemgetter(*slots, *slots[:1]) if slots else None
        self._tensors = self._slots(self.state) if self._slots else ()

    def holds(self) -> bool:
        """The optimiser, its options and the tensors of its state are those that were there."""
        optimiser = self.optimiser
        return (
            optimiser.state is self.states
            and optimiser.param_groups[0] is self.options
            and (self._slots is None or all(map(operator.is_, self._slots(self.state), self._tensors)))
            and self._named(self.options) == self._known
        )

    def rates(self) -> Any:
        """Options that an update reads as numbers."""
        return self._rates(self.options)[1:]


class PyroUpdates(Updates):
    """One update of the leaves that a Pyro optimiser has met, in the graph.

    Args:
        optim: which has taken a step.
        leaves: parameters of the program, unconstrained.

    Raises:
        Unsuited: the optimiser does something that no formula covers.
    """

    def __init__(self, optim: PyroOptim, leaves: Sequence[Tensor]) -> None:
        self._optim: Any = optim
        kind = type(optim)
        if kind.__call__ not in (PyroOptim.__call__, PyroLRScheduler.__call__) or (
            kind._clip_grad is not PyroOptim._clip_grad or kind._get_grad_clip is not PyroOptim._get_grad_clip
        ):
            raise Unsuited(f"{kind.__name__} has a step of its own")
        clocks: dict[Any, Clock] = {}
        idle: list[Tensor] = []
        width = 0
        for leaf in leaves:
            if leaf.is_complex():
                raise Unsuited("a parameter is complex")
            member = _Member(optim, leaf)
            adopted: Any = _Adopted("the optimiser", member.optimiser, member.scheduler)
            rules: Any = rules_of(adopted, halts=False)
            if isinstance(rules, str):
                raise Unsuited(rules)
            rule, known = rules[0]
            if not all(isinstance(member.state.get(slot), Tensor) for slot in rule.slots):
                idle.append(leaf)
                continue
            options = member.optimiser.param_groups[0]
            rates = [name for name in (*_RATES, *(_MOMENTA if rule.varying else ())) if name in options]
            names = [name for name in options if name in rule.covers and name not in rates]
            member.take(rule.slots, names, rates)
            counted = float(member.state["step"]) if rule.counts else 0.0
            key = type(rule), repr(sorted(known.items())), member.rates(), counted
            if key not in clocks:
                adopted.optimiser = SimpleNamespace(state={}, param_groups=member.optimiser.param_groups)
                clocks[key] = Clock("both", adopted, 0, rule, known, [], width, None)
                width += len(rule.still)
            clock: Any = clocks[key]
            clock.leaves.append(leaf)
            clock.group.members.append(member)
            clock.group.optimiser.state[leaf] = member.state
        super().__init__(SimpleNamespace(groups={}), list(clocks.values()), idle, width)  # type: ignore[arg-type]
        for leaf in self.leaves:
            named: Any = leaf  # which Pyro takes for a name
            clip = optim._get_grad_clip_args(named)
            if clip:
                self._clips.setdefault(id(leaf), []).append(clip)
        self._fill_in = {id(leaf) for leaf in self.leaves if leaf.grad is not None}
        self._stretch = 1
        self._noted: list[Any] = []
        self._versions: list[int] = []
        self._numbers: list[int] = []

    @property
    def state(self) -> list[Tensor]:
        """As of `Updates`, and torch's counters of the steps, which the graph moves on for less than Python can."""
        return [*super().state, *(state["step"] for _, state in self._counting())]

    def _counting(self) -> list[tuple[Tensor, dict[str, Any]]]:
        """Leaves whose steps are counted in a tensor, with their states."""
        members = [member for clock in self._clocks if clock.rule.counts for member in self._of(clock)]
        return [(each.leaf, each.state) for each in members if isinstance(each.state["step"], Tensor)]

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """As `Updates.update`; a leaf that had a gradient once, which Pyro then keeps as zeros, has zeros again."""
        counting = self._counting()
        counters = dict(zip((id(leaf) for leaf, _ in counting), state[len(state) - len(counting) :], strict=True))
        filled = [
            torch.zeros_like(leaf) if gradient is None and id(leaf) in self._fill_in else gradient
            for leaf, gradient in zip(self.leaves, gradients, strict=True)
        ]
        super().update(filled, state, numbers)
        for leaf, gradient in zip(self.leaves, filled, strict=True):
            if gradient is not None and id(leaf) in counters:
                counters[id(leaf)].add_(1)

    def begin(self) -> None:
        """Recording is over: from now on `hold` compares with what is there now."""
        self._members: list[_Member] = [member for clock in self._clocks for member in self._of(clock)]
        moved = [
            (clock, member)
            for clock in self._clocks
            for member in self._of(clock)
            if clock.rule.counts and id(member.leaf) not in self._without
        ]
        states = [member.state for _, member in moved]
        self._counters = [state["step"] for state in states if isinstance(state["step"], Tensor)]
        self._with_counters = [state for state in states if isinstance(state["step"], Tensor)]
        self._integers = [state for state in states if not isinstance(state["step"], Tensor)]
        self._decaying = [
            (clock, member)
            for clock in self._clocks
            for member in self._of(clock)
            if member.options.get("lrd", 1.0) != 1.0
        ]
        self._entries = [member.entry for member in self._members]
        self._leaves = [member.leaf for member in self._members]
        self._states = list(map(_state_of, self._members))
        self._at = 0
        self._rows = 0
        self._lrs: dict[int, list[float]] = {}
        self._note()

    def hold(self) -> bool:
        """The torch optimisers are those that the formulas were written for, and their leaves go on together."""
        objs = self._optim.optim_objs
        if not (
            all(map(operator.is_, map(objs.get, self._leaves), self._entries))
            and all(map(operator.is_, map(_state_of, self._members), self._states))
            and all(map(_Member.holds, self._members))
        ):
            return False
        if (
            list(map(_Member.rates, self._members)) == self._noted
            and list(map(_version, self._counters)) == self._versions
            and all(map(operator.is_, map(_step, self._with_counters), self._counters))
            and list(map(_step, self._integers)) == self._numbers
        ):
            return True
        if self._rows != 0:
            self._stretch = 1
        self._noted = []
        self._versions = []
        self._numbers = []
        self._rows = self._at = 0
        if self._note():
            return True
        self._noted = []  # so that it is asked again the next time
        return False

    @property
    def restarted(self) -> bool:
        """The rows that were given last are of no use any more."""
        return self._rows == 0

    def _of(self, clock: Clock) -> list[_Member]:
        group: Any = clock.group
        members: list[_Member] = group.members
        return members

    def _note(self) -> bool:
        """Take rates and counts for those of the next update; False where leaves of one clock differ."""
        self._noted = list(map(_Member.rates, self._members))
        self._counters = list(map(_step, self._with_counters))
        if not all(isinstance(counter, Tensor) for counter in self._counters):
            return False
        self._versions = list(map(_version, self._counters))
        self._numbers = list(map(_step, self._integers))
        for clock in self._clocks:
            members = self._of(clock)
            if any(member.rates() != members[0].rates() for member in members):
                return False
            moved = [member.state for member in members if id(member.leaf) not in self._without]
            if clock.rule.counts and len({float(state["step"]) for state in moved}) > 1:
                return False
        return True

    def rows(self, most: int) -> Tensor:
        """The numbers of the next updates, float64 on the CPU, shape (updates, width), at most so many."""
        count = min(most, self._stretch)
        self._stretch = min(2 * self._stretch, _AHEAD)
        table = np.zeros((count, self.width))
        self._lrs = {}
        for place, clock in enumerate(self._clocks):
            members = self._of(clock)
            options = members[0].options
            lr = np.full(count, float(options["lr"]))
            if options.get("lrd", 1.0) != 1.0:
                lr = np.full(count + 1, float(options["lrd"]))
                lr[0] = options["lr"]
                lr = np.multiply.accumulate(lr)[1:]  # one after the other, and so to the bit what steps give
                self._lrs[place] = lr.tolist()
            momentum = None
            if clock.rule.varying:
                momentum = np.full(count, options["betas"][0] if "betas" in options else options.get("momentum", 0.0))
            moved = [member.leaf for member in members if id(member.leaf) not in self._without]
            for column, number in enumerate(clock.rule.numbers(Rates(lr, momentum), clock.counted(moved)), clock.first):
                table[:, column] = number
        self._rows, self._at = count, 0
        return torch.from_numpy(table)

    def done(self) -> None:
        """The graph has taken a step: the torch optimisers count it, and their learning rates decay."""
        counters = self._counters
        if counters:
            torch.autograd.graph.increment_version(counters)  # so that whoever else steps them sees it
            self._versions = list(map(_version, counters))
        if self._integers:
            for state in self._integers:
                state["step"] += 1
            self._numbers = list(map(_step, self._integers))
        if self._decaying:
            for clock, member in self._decaying:
                member.options["lr"] = self._lrs[self._clocks.index(clock)][self._at]
            self._noted = list(map(_Member.rates, self._members))
        self._at += 1


class PyroGradients(Gradients):
    """The gradients alone in the graph; Pyro's optimiser moves the leaves after it, whatever it is.

    Args:
        optim: of Pyro's.
        leaves: parameters of the program, unconstrained; one that has had a gradient goes on to have one.
    """

    restarted = False

    def __init__(self, optim: Callable[[set[Tensor]], None], leaves: Sequence[Tensor]) -> None:
        super().__init__(leaves)
        self._optim = optim
        self._had = [leaf.grad is not None for leaf in leaves]

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """Leave the gradients in `state`."""
        super().update(gradients, state, numbers)
        self.there = [had or there for had, there in zip(self._had, self.there, strict=True)]

    def begin(self) -> None:
        """Recording is over."""
        for place in self.state:
            place.zero_()

    def rows(self, most: int) -> Tensor:
        """No numbers, for as many steps as are asked for."""
        return self.plan(most)

    def done(self) -> None:
        """The graph has left gradients: the optimiser takes its step, and they are zeros, as Pyro leaves them."""
        for leaf, gradient, there in zip(self.leaves, self.state, self.there, strict=True):
            if there:
                leaf.grad = gradient
        self._optim(set(self.leaves))
        for leaf, gradient in zip(self.leaves, self.state, strict=True):
            gradient.zero_()
            if leaf.grad is not None:
                leaf.grad = gradient


_version = operator.attrgetter("_version")
_step = operator.itemgetter("step")


def _state_of(member: _Member) -> Any:
    return member.states.get(member.leaf)
