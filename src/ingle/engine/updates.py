"""The updates of the optimisers as a graph takes them: formulas on tensors, and their numbers planned beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ingle.engine.group import Group, Rates
from ingle.engine.optimiser import Optimisers
from ingle.engine.rules import Rule, rules_of

__all__ = ["Clock", "Updates", "updates_of"]

_HALVES = (torch.float16, torch.bfloat16)


@dataclass(eq=False)
class Clock:
    """Leaves of one parameter group that have counted the same updates, and so share their numbers."""

    side: str
    group: Group
    index: int
    rule: Rule
    known: dict[str, Any]
    leaves: list[Tensor]
    first: int  # of its columns
    flag: int | None  # the column that says whether it moves, where it does not always

    def state(self, leaf: Tensor) -> dict[str, Any]:
        """What torch's optimiser keeps of a leaf."""
        optimiser: Any = self.group.optimiser  # read anew, since restoring may build another
        found: dict[str, Any] = optimiser.state[leaf]
        return found

    def counted(self, leaves: Sequence[Tensor]) -> float:
        """Updates so far."""
        counts = {float(self.state(leaf)["step"]) for leaf in leaves} if self.rule.counts else {0.0}
        if len(counts) > 1:
            raise RuntimeError("leaves that had counted the same updates no longer have: ask for their updates anew")
        return counts.pop() if counts else 0.0

    def count(self, leaves: Sequence[Tensor], updates: int) -> None:
        """Count further updates."""
        for leaf in leaves if self.rule.counts else ():
            self.state(leaf)["step"] += updates

    def shape(self) -> tuple[Any, ...]:
        """What a formula that was written for it takes as given."""
        return (self.side, self.index, type(self.rule), self.known, [id(leaf) for leaf in self.leaves])


class Updates:
    """One update of all leaves as tensor operations, and the numbers of many to come.

    Attributes:
        leaves: all that some optimiser may move, each once.
        width: of a row of numbers.
        whole: the graph is all of a step.
    """

    whole = True

    def __init__(self, optimisers: Optimisers, clocks: list[Clock], idle: list[Tensor], width: int) -> None:
        self.leaves = [leaf for clock in clocks for leaf in clock.leaves] + idle
        self._idle = len(idle)  # of the leaves the last, which torch has no state for
        self._counted = {id(leaf) for clock in clocks if clock.rule.counts for leaf in clock.leaves}
        self.width = width
        self._optimisers = optimisers
        self._clocks = clocks
        self._without: set[int] = set()  # leaves that an update skips, and a plan does not count
        self._planned = False
        self._clips: dict[int, list[dict[str, Any]]] = {}
        for group in optimisers.groups.values():
            for leaf, clip in group.clips:
                self._clips.setdefault(id(leaf), []).append(clip)

    @property
    def state(self) -> list[Tensor]:
        """The tensors of torch's optimisers that an update changes, as they are now: restoring replaces them."""
        return [clock.state(leaf)[slot] for clock in self._clocks for leaf in clock.leaves for slot in clock.rule.slots]

    def hold(self) -> bool:
        """The optimisers are still those that the formulas were written for: ask before a graph goes on.

        Options that a formula holds as constants, hooks, and parameters that came or went decide it.
        """
        now = updates_of(self._optimisers)
        return isinstance(now, Updates) and self._shape() == now._shape()

    def _shape(self) -> list[Any]:
        return [*(clock.shape() for clock in self._clocks), [id(leaf) for leaf in self.leaves], self._clips]

    def plan(self, steps: int) -> Tensor:
        """The numbers of the next steps, float64 on the CPU, shape (steps, width), one row a step.

        All that the optimisers keep on the host (counts, learning rates, schedules) is afterwards what as many calls
        of `Optimisers.step` leave; leaves and state tensors follow when `update` has read the rows. Leaves that had
        no gradient in an update before the first plan, a traced one say, are skipped as torch skips them.

        Raises:
            OptionError: a schedule is at its end, or fails; part of the host's state is then ahead, to be restored.
        """
        self._planned = True
        turns = self._optimisers.turns(steps)
        rates = {side: group.plan(int(turns[side].sum())) for side, group in self._optimisers.groups.items()}
        table = np.zeros((steps, self.width))
        for clock in self._clocks:
            self._fill(table, clock, turns[clock.side], rates[clock.side][clock.index])
        return torch.from_numpy(table)

    def _fill(self, table: npt.NDArray[np.float64], clock: Clock, turns: npt.NDArray[np.bool_], rates: Rates) -> None:
        counting = [leaf for leaf in clock.leaves if id(leaf) not in self._without]
        numbers = clock.rule.numbers(rates, clock.counted(counting))
        clock.count(counting, len(rates.lr))
        for column, (still, number) in enumerate(zip(clock.rule.still.values(), numbers, strict=True), clock.first):
            if clock.flag is None:
                table[:, column] = number
            else:
                table[:, column] = still
                table[turns, column] = number
        if clock.flag is not None:
            table[:, clock.flag] = turns

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """Move the leaves by their gradients, in place, by tensor operations only; a graph of them runs under no_grad.

        Args:
            gradients: in the order of `leaves`, of their shapes, dtypes and devices; None skips a leaf.
            state: the tensors of `state`, in its order.
            numbers: a row of `plan`, float64 on the device of the leaves, shape (width,).

        Raises:
            RuntimeError: a leaf has its first gradient, and torch no state for it yet; a leaf lost its gradient after
                updates of it were planned; a gradient is sparse. Nothing has changed then.
        """
        self._check(gradients)
        rows: dict[torch.dtype, tuple[Tensor, ...]] = {}
        given, left = iter(gradients), iter(state)
        with torch.no_grad():
            for clock in self._clocks:
                for leaf in clock.leaves:
                    gradient, slots = next(given), [next(left) for _ in clock.rule.slots]
                    if gradient is None:
                        continue
                    dtype = torch.float32 if leaf.dtype in _HALVES else leaf.dtype
                    if dtype not in rows:
                        rows[dtype] = numbers.to(dtype).unbind()
                    self._move(clock, leaf, gradient, slots, rows[dtype], dtype)

    def _check(self, gradients: Sequence[Tensor | None]) -> None:
        if any(gradient is not None and gradient.layout is not torch.strided for gradient in gradients):
            raise RuntimeError("a gradient is sparse")
        if any(gradient is not None for gradient in gradients[len(self.leaves) - self._idle :]):
            raise RuntimeError("a parameter has its first gradient: its optimiser has yet to see it")
        without = {id(leaf) for leaf, gradient in zip(self.leaves, gradients, strict=True) if gradient is None}
        without &= self._counted
        if self._planned and without != self._without:
            raise RuntimeError("a parameter lost or found its gradient after its updates were planned")
        self._without = without

    def _move(
        self, clock: Clock, leaf: Tensor, gradient: Tensor, slots: list[Tensor], row: Sequence[Tensor], dtype: Any
    ) -> None:
        names = clock.rule.still
        numbers = {**clock.rule.constants, **dict(zip(names, row[clock.first :], strict=False))}
        # Halves are updated as torch does it inside each operation: in 32 bits, with numbers such as 0.999.
        wide = [tensor.to(dtype) for tensor in (leaf, *slots)]
        gradient = gradient.to(dtype)
        if clock.flag is not None:
            gradient = gradient.masked_fill(row[clock.flag] == 0, 0.0)  # not a product: it may be infinite
        for clip in self._clips.get(id(leaf), ()):
            gradient = _clipped(gradient, clip)
        clock.rule.move(wide[0], gradient, wide[1:], numbers)
        if leaf.dtype != dtype:
            for tensor, result in zip((leaf, *slots), wide, strict=True):
                tensor.copy_(result)


def updates_of(optimisers: Optimisers) -> Updates | str:
    """The updates of these optimisers for a graph.

    Every optimiser must have taken a step, since torch makes its state then: as many steps of the fit as
    `guide_steps`.

    Returns:
        The reason in words where a graph cannot take them.
    """
    clocks: list[Clock] = []
    idle: list[Tensor] = []
    width = 0
    for side, group in optimisers.groups.items():
        if not optimisers.begun(side):
            return f"{group.label} has not taken a step yet"
        if group.optimiser is None:
            continue  # no parameters on this side
        halts = side == "model" and optimisers.guide_steps > 1
        rules = rules_of(group, halts=halts)
        if isinstance(rules, str):
            return rules
        flag = width if halts else None
        width += halts
        for index, (rule, known) in enumerate(rules):
            by_count: dict[float, list[Tensor]] = {}
            for leaf in group.optimiser.param_groups[index]["params"]:
                if leaf.is_complex() or leaf.layout is not torch.strided:
                    return f"{group.label}: a parameter is {'complex' if leaf.is_complex() else 'sparse'}"
                state = group.optimiser.state.get(leaf, {})
                if all(isinstance(state.get(slot), Tensor) for slot in rule.slots):
                    by_count.setdefault(float(state["step"]) if rule.counts else 0.0, []).append(leaf)
                else:
                    idle.append(leaf)
            for leaves in by_count.values():
                clocks.append(Clock(side, group, index, rule, known, leaves, width, flag))
                width += len(rule.still)
    updates = Updates(optimisers, clocks, idle, width)
    if len({id(leaf) for leaf in updates.leaves}) < len(updates.leaves):
        return "optim: two optimisers move the same parameter"
    return updates


def _clipped(gradient: Tensor, clip: dict[str, Any]) -> Tensor:
    """As torch's `clip_grad_norm_` and `clip_grad_value_` do it, in another tensor."""
    norm, value = clip.get("clip_norm"), clip.get("clip_value")
    if norm is not None:
        share = float(norm) / (torch.linalg.vector_norm(gradient) + 1e-6)
        gradient = gradient * share.clamp(max=1.0)
    if value is not None:
        gradient = gradient.clamp(-float(value), float(value))
    return gradient
