"""The Python values that model and guide can read beside their arguments: found, compared, and put in place of."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from ingle.program.place import Place
from ingle.program.reach import Reach, Unseen
from ingle.program.snapshot import Change, Snapshot

__all__ = ["Places", "find_places"]


def find_places(*programs: object, ignore: Iterable[Tensor] = ()) -> Places:
    """Every place outside their arguments that the programs can read a Python value, a tensor or an array from.

    A program may make attributes in its first run, as an AutoGuide its parameters: run it once before.

    Args:
        programs: model and guide, in any form that Pyro can call.
        ignore: tensors that somebody else keeps track of, such as parameters and buffers: changes of them in place
            are not reported. That another tensor is put in their place is.

    Example:
        >>> import types, torch
        >>> config = types.SimpleNamespace(beta=0.5)
        >>> def model():
        ...     return torch.ones(3) * config.beta
        >>> places = find_places(model)
        >>> before = places.snapshot()
        >>> config.beta = 0.75
        >>> print(places.changed(before)[0].place.name)
        global config.beta of model
        >>> with places.lifted({place: torch.tensor(2.0) for place in places.numbers()}):
        ...     print(model())
        tensor([2., 2., 2.])
        >>> config.beta
        0.75
    """
    return Places(programs, ignore)


class Places:
    """The places of one model and guide. Iterating gives those that hold a value.

    Attributes:
        unseen: what the programs hold and that cannot be watched, or not in full.
    """

    unseen: tuple[Unseen, ...]

    def __init__(self, programs: Iterable[object], ignore: Iterable[Tensor]) -> None:
        self._programs = tuple(programs)
        self._ignored = {id(tensor): tensor for tensor in ignore}
        self._walk()

    def __iter__(self) -> Iterator[Place]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    @property
    def generators(self) -> list[Any]:
        """Generators of random numbers that the programs hold."""
        return [place.holder for place in self._reach.generators]

    def numbers(self) -> tuple[Place, ...]:
        """Places of numbers, no bools, that a tensor can be put in."""
        return tuple(place for place in self._places if place.liftable)

    @property
    def random_line(self) -> str | None:
        """Where the programs name Python's or numpy's random numbers first, in words."""
        line = next(iter(self._reach.randomness.values()), None)
        return Place("thing", None, None, "", line).where

    def snapshot(self, *, without: Collection[Place] = (), full: bool = False) -> Snapshot:
        """What the places hold now. Objects that came since they were found are looked through as well.

        Args:
            without: places that are left out of the comparison, such as those whose number is an input.
            full: also the elements of long containers, the bytes of large arrays, and the states of generators of
                random numbers, for a comparison that may take its time.
        """
        if any(change.kind != "in place" and not change.plain for change in self._found.changes()):
            self._walk()
        return Snapshot(self._reach, ignore=self._ignored, without=frozenset(without), full=full)

    def changed(self, snapshot: Snapshot) -> list[Change]:
        """The places whose value is no longer the same as in a snapshot; none if all are.

        Numbers, strings, bools and other plain values are the same by type and ==, NaN with NaN; tuples, lists, dicts
        and sets by content; tensors and anything else as objects; tensors also by `_version`, arrays of up to 2 KiB by
        content. A value that is only set anew to something equal is the same.
        """
        return snapshot.changes()

    @contextmanager
    def lifted(self, tensors: Mapping[Place, Tensor]) -> Iterator[None]:
        """Tensors are in the place of numbers inside; the numbers are back outside, also after an exception.

        Args:
            tensors: 0-dimensional, by the place that each stands in.

        Raises:
            TypeError: for a place that holds no number, or that cannot be set.
        """
        before: list[tuple[Place, Any]] = []
        try:
            for place, tensor in tensors.items():
                if not place.liftable:
                    raise TypeError(f"no tensor can be put in the place of {place.name}")
                before.append((place, place.value()))
                place.put(tensor)
            yield
        finally:
            for place, value in reversed(before):
                place.put(value)

    def _walk(self) -> None:
        self._reach = Reach(self._programs)
        self._places = tuple(self._reach.places)
        self.unseen = tuple(self._reach.unseen)
        self._found = Snapshot(self._reach, ignore=self._ignored, without=(), full=False)
