"""Runs of a program held against each other, and what it reads from outside its arguments kept under watch."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ingle.engine.noise import Noise, OwnDraws
from ingle.engine.recording import Untraceable
from ingle.engine.structure import Statement, Structure, difference
from ingle.program import Change, OwnState, Place, Places, Snapshot, find_places, state_of_its_own

__all__ = ["Observation", "Observer"]


@dataclass(frozen=True)
class Observation:
    """What several runs had in common.

    Attributes:
        statements: of sites and parameters, in order.
        draws: how many numbers each draw took, in order, and whether they were "normal" or "uniform".
    """

    statements: list[Statement]
    draws: list[tuple[str, int]]

    def drawn(self, stream: str) -> int:
        """How many numbers a run takes from a stream."""
        return sum(count for name, count in self.draws if name == stream)


class Observer:
    """Watches a model and a guide.

    Args:
        programs: model and guide.
        ignored: tensors that the engine itself looks after, such as parameters and buffers.
    """

    def __init__(self, programs: Iterable[object], ignored: Callable[[], Iterable[Tensor]]) -> None:
        self._programs = tuple(programs)
        self._ignored = ignored
        self._places: Places | None = None
        self._seen: Snapshot | None = None

    def observe(self, run: Callable[[], None], times: int) -> Observation:
        """Run the program some times without effect: `run` puts back what a run changes.

        Raises:
            Untraceable: the runs differ, or the program keeps a state of its own.
        """
        found: list[Observation] = []

        def runs() -> None:
            for _ in range(times):
                draws = OwnDraws()
                with Structure() as structure, Noise(draws):
                    run()
                found.append(Observation(structure.statements, draws.calls))

        told = self.own_state(runs)
        if told is not None:
            raise Untraceable(told)
        first, *others = found
        for other in others:
            told = difference(first.statements, other.statements)
            if told is None and first.draws != other.draws:
                told = "it draws other numbers of random numbers from run to run"
            if told is not None:
                raise Untraceable(told)
        return first

    def own_state(self, run: Callable[[], None]) -> str | None:
        """Run the program; returns what it changed that a graph of its tensors would not, in words."""
        own = state_of_its_own(self.places, run)
        hidden = next((unseen for unseen in self.places.unseen if hasattr(type(unseen.place.holder), "__next__")), None)
        return _told(own) or (None if hidden is None else f"the program reads {hidden}")

    @property
    def places(self) -> Places:
        """What the programs read from outside their arguments."""
        if self._places is None:
            ours = list(self._ignored())
            found = find_places(*self._programs, ignore=ours)
            memory = {_memory(tensor) for tensor in ours} - {0}
            # A parameter may lie on the memory of the tensor that it started from, and that moves with it.
            same = [value for place in found if isinstance(value := place.value(), Tensor) and _memory(value) in memory]
            self._places = find_places(*self._programs, ignore=[*ours, *same]) if same else found
        return self._places

    def mark(self, *, without: Collection[Place] = (), full: bool = False) -> Snapshot:
        """Take what is there now for what a graph was recorded with, apart from some places.

        Args:
            without: those places.
            full: also the contents of what is large, for a comparison that is made less often than at every step.
        """
        self._seen = self.places.snapshot(without=without, full=full)
        return self._seen

    def lifted(self, tensors: Mapping[Place, Tensor]) -> AbstractContextManager[None]:
        """Tensors are in the place of numbers inside."""
        return nullcontext() if self._places is None else self._places.lifted(tensors)

    def changed(self) -> list[Change]:
        """What differs from the last `mark`."""
        return [] if self._places is None or self._seen is None else self._places.changed(self._seen)

    def numbers(self) -> tuple[Place, ...]:
        """Places of numbers that can be inputs of a graph instead."""
        return () if self._places is None else self._places.numbers()


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr() if tensor.layout == torch.strided else 0


def _told(own: OwnState) -> str | None:
    reasons = own.reasons()
    if reasons:
        return f"the program {reasons[0]}"
    return f"the program changes what it reads: {own.in_place[0]}" if own.in_place else None
