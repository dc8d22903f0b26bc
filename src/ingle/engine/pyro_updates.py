"""The updates of a Pyro optimiser, which keeps a torch optimiser for each parameter, as a graph takes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pyro.optim import PyroOptim
from torch import Tensor

from ingle.engine.group import Rates
from ingle.engine.recording import Untraceable
from ingle.engine.rules import Rule, rules_of
from ingle.engine.updates import Clock, Updates

__all__ = ["PyroUpdates"]


@dataclass(eq=False)
class _Adopted:
    """Leaves whose torch optimisers do the same: in the place of a group of Ingle's."""

    label: str
    optimiser: Any
    scheduler: Any
    optimisers: list[torch.optim.Optimizer] = field(default_factory=list)
    clips: tuple[()] = ()


class PyroUpdates(Updates):
    """One update of the leaves that a Pyro optimiser has met, one step at a time.

    Args:
        optim: which has taken a step.
        leaves: the parameters of the program, unconstrained.

    Raises:
        Untraceable: the optimiser does something that no formula covers.
    """

    def __init__(self, optim: PyroOptim, leaves: Sequence[Tensor]) -> None:
        self._optim: Any = optim
        clocks: dict[Any, Clock] = {}
        width = 0
        for leaf in leaves:
            optimiser, scheduler = self._of(leaf)
            adopted = _Adopted("the optimiser", optimiser, scheduler)
            rules: Any = rules_of(adopted, halts=False)  # type: ignore[arg-type]
            if isinstance(rules, str):
                raise Untraceable(rules)
            rule, known = rules[0]
            state = optimiser.state.get(leaf, {})
            if not all(isinstance(state.get(slot), Tensor) for slot in rule.slots):
                raise Untraceable("the optimiser has yet to see a gradient of one of the parameters")
            key = (type(rule), repr(sorted(known.items())), _lr(optimiser), _count(rule, state))
            if key not in clocks:
                adopted.optimiser = SimpleNamespace(state={}, param_groups=optimiser.param_groups)
                clocks[key] = Clock("both", adopted, 0, rule, known, [], width, None)  # type: ignore[arg-type]
                width += len(rule.still)
            clock: Any = clocks[key]
            clock.leaves.append(leaf)
            clock.group.optimisers.append(optimiser)
            clock.group.optimiser.state[leaf] = optimiser.state[leaf]
        super().__init__(SimpleNamespace(groups={}), list(clocks.values()), [], width)  # type: ignore[arg-type]
        for leaf in leaves:
            clip = self._optim._get_grad_clip_args(leaf)
            if clip:
                self._clips.setdefault(id(leaf), []).append(clip)

    def _of(self, leaf: Tensor) -> tuple[Any, Any]:
        """The torch optimiser of a leaf, and its schedule, which its user moves on."""
        found = self._optim.optim_objs.get(leaf)
        if found is None:
            raise Untraceable("the optimiser has yet to see one of the parameters")
        return (found, None) if isinstance(found, torch.optim.Optimizer) else (found.optimizer, found)

    def hold(self) -> bool:
        """The torch optimisers are those that the formulas were written for, and their leaves go on together."""
        for clock in self._clocks:
            group: Any = clock.group
            for leaf, optimiser in zip(clock.leaves, group.optimisers, strict=True):
                if self._of(leaf)[0] is not optimiser or optimiser.state.get(leaf) is not group.optimiser.state[leaf]:
                    return False
                if _lr(optimiser) != _lr(group.optimisers[0]):
                    return False
        return True

    def plan(self, steps: int) -> Tensor:
        """The numbers of the next step, float64 on the CPU, shape (1, width); the torch optimisers count it."""
        row: list[float] = []
        for clock in self._clocks:
            group: Any = clock.group
            for optimiser in group.optimisers:
                options = optimiser.param_groups[0]
                if "lrd" in options:
                    options["lr"] *= options["lrd"]
            options = group.optimisers[0].param_groups[0]
            momentum = None
            if clock.rule.varying:
                momentum = np.array([options["betas"][0] if "betas" in options else options.get("momentum", 0.0)])
            numbers = clock.rule.numbers(
                Rates(np.array([float(options["lr"])]), momentum), clock.counted(clock.leaves[:1])
            )
            clock.count(clock.leaves, 1)
            row.extend(float(np.asarray(number).reshape(-1)[0]) for number in numbers)
        return torch.tensor([row], dtype=torch.float64, device="cpu")


def _lr(optimiser: Any) -> tuple[float, ...]:
    return tuple(float(group["lr"]) for group in optimiser.param_groups)


def _count(rule: Rule, state: Any) -> float:
    return float(state["step"]) if rule.counts else 0.0
