"""What every place held at one moment, and which hold something else by now: compared in a few microseconds."""

from __future__ import annotations

import operator
import types
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ingle.program.libraries import asks_the_user, attributes
from ingle.program.place import GONE, Place, is_plain, same
from ingle.program.reach import LONGEST, Holder, Reach

__all__ = ["Change", "ChangeKind", "Snapshot"]

SMALL = 2_048  # bytes of an array that are compared before every step
LARGE = 2**24  # bytes of an array, or elements of a container, that are compared in full

ChangeKind = Literal["value", "contents", "in place", "code", "random state"]

_LOST = (AttributeError, IndexError, KeyError, ValueError)  # a key or an element that is gone, a cell that is empty
_PLAIN_ITEMS = (list, deque, dict, OrderedDict)  # a defaultdict would make what is missing
_PLAIN_LENGTH = (set, defaultdict, *_PLAIN_ITEMS)


@dataclass(frozen=True)
class Change:
    """A place whose value is no longer the same.

    Attributes:
        place: which.
        kind: "value" where it holds another value or object, "contents" where a container has more, fewer or other
            elements, "in place" where a tensor or array was written to, "code" where a function has other code or
            defaults, "random state" where a generator was drawn from.
        before, after: for "value" what it held and holds, `GONE` for nothing; for "contents" the lengths; for
            "in place" the versions of a tensor; else None.
    """

    place: Place
    kind: ChangeKind
    before: Any = None
    after: Any = None

    def __str__(self) -> str:
        if self.kind == "value":
            what = f"changed from {_short(self.before)} to {_short(self.after)}"
        elif self.kind == "contents" and self.before != self.after:
            what = f"has {self.after} elements after {self.before}"
        else:
            words = {
                "contents": "has other elements",
                "in place": "was written to in place",
                "code": "has other code or other defaults",
                "random state": "was drawn from",
            }
            what = words[self.kind]
        return f"{self.place.name} {what}" + (f" ({self.place.where})" if self.place.where else "")

    @property
    def plain(self) -> bool:
        """Whether it is one number, string or other plain value after another, so that nothing else is reached."""
        return self.kind == "value" and self.before is not GONE and is_plain(self.before) and is_plain(self.after)


class _Rows:
    """One kind of comparison for many things, in columns, so that as long as all is the same it runs in C."""

    def __init__(
        self,
        read: Callable[..., Any],
        check: Callable[[Any, Any], list[Change]],
        equal: Callable[[Any, Any], bool] = operator.is_,
    ) -> None:
        self.read, self.check, self.equal = read, check, equal
        self.columns: tuple[list[Any], ...] = ()
        self.before: list[Any] = []
        self.whose: list[Any] = []

    def add(self, whose: Any, before: Any, *arguments: Any) -> None:
        self.columns = self.columns or tuple([] for _ in arguments)
        for column, argument in zip(self.columns, arguments, strict=True):
            column.append(argument)
        self.before.append(before)
        self.whose.append(whose)

    def changes(self) -> list[Change]:
        try:
            if all(map(self.equal, map(self.read, *self.columns), self.before)):
                return []
        except _LOST:
            pass
        return [
            change
            for whose, before in zip(self.whose, self.before, strict=True)
            for change in self.check(whose, before)
        ]


class Snapshot:
    """The values of all places, taken once and compared many times."""

    def __init__(self, reach: Reach, *, ignore: Collection[int], without: Collection[Place], full: bool) -> None:
        """Take the values.

        Args:
            reach: what the walk has found.
            ignore: ids of tensors whose changes in place do not matter.
            without: places that are left out.
            full: also long containers, large arrays and generators of random numbers.
        """
        self._items = _Rows(operator.getitem, _replaced)
        self._cells = _Rows(operator.attrgetter("cell_contents"), _replaced)
        self._reads = _Rows(Place.value, _replaced)
        self._lengths = _Rows(len, _resized, operator.eq)
        self._owners = _Rows(operator.attrgetter("__dict__"), _exchanged)
        self._functions = _Rows(_definition, _redefined, _defined_alike)
        self._versions = _Rows(operator.attrgetter("_version"), _written, operator.eq)
        self._probes = _Rows(operator.call, _probed, same)
        self._deep = _Rows(operator.call, _probed, same)
        for place in reach.places:
            if place not in without:
                self._value(place)
        for holder in reach.holders:
            self._holder(holder)
        for place in reach.functions:
            self._functions.add(place, _definition(place.holder), place.holder)
        for place in reach.tensors:
            if id(place.holder) not in ignore and _has_version(place.holder):
                self._versions.add(place, place.holder._version, place.holder)
        for place in reach.containers:
            self._container(place, full)
        for place in reach.arrays:
            size = place.holder.nbytes if isinstance(place.holder, np.ndarray) else memoryview(place.holder).nbytes
            if size <= SMALL or (full and size <= LARGE):
                self._probe(self._probes if size <= SMALL else self._deep, _bytes, place)
        for place in reach.generators if full else ():
            self._probe(self._deep, _random_state, place)
        rows = (
            self._items, self._cells, self._reads, self._lengths, self._owners, self._functions, self._versions,
            self._probes, self._deep,
        )  # fmt: skip
        self._rows = [each for each in rows if each.before]

    def changes(self) -> list[Change]:
        """The places that hold something else now."""
        return [change for rows in self._rows for change in rows.changes()]

    def _value(self, place: Place) -> None:
        value, holder = place.value(), place.holder
        if value is not GONE and place.kind == "item" and type(holder) in _PLAIN_ITEMS:
            self._items.add(place, value, holder, place.key)
        elif value is not GONE and place.kind == "class":
            self._items.add(place, value, vars(holder), place.key)
        elif value is not GONE and place.kind == "cell":
            self._cells.add(place, value, holder)
        elif place.kind != "default":  # those are seen by the function that has them
            self._reads.add(place, value, place)

    def _holder(self, holder: Holder) -> None:
        """The number of its attributes tells of a new one; then it is asked whether that one counts."""
        thing = holder.place.holder
        own = attributes(thing) if holder.kind == "item" else holder.held
        if holder.closed or own is None:
            return
        seen = [len(own)]
        self._lengths.add((holder, seen), seen[0], own)
        if holder.kind == "item" and not asks_the_user(type(thing)):
            self._owners.add(holder.place, own, thing)

    def _container(self, place: Place, full: bool) -> None:
        """How elements are compared, beside those that are places of their own."""
        thing = place.holder
        base = next((base for base in (list, dict, set, deque) if issubclass(type(thing), base)), None)
        length = len(thing) if base is None else base.__len__(thing)
        if type(thing) in _PLAIN_LENGTH or base is None:
            self._lengths.add(place, length, thing)
        else:
            self._probe(self._probes, base.__len__, place)  # the length that a subclass tells may be another
        odd = base is set or (base is dict and not all(map(is_plain, dict.keys(thing))))
        if odd and length <= LONGEST:
            self._probe(self._probes, _elements, place)
        elif full and LONGEST < length <= LARGE:
            self._probe(self._deep, _elements, place)

    def _probe(self, rows: _Rows, probe: Callable[[Any], Any], place: Place) -> None:
        rows.add((place, probe), probe(place.holder), probe, place.holder)


def _has_version(tensor: Tensor) -> bool:
    try:
        return tensor._version >= 0
    except (RuntimeError, ValueError):  # made in inference mode, or a lazy module's before its first run
        return False


def _replaced(place: Place, before: Any) -> list[Change]:
    after = place.value()
    return [] if same(before, after) else [Change(place, "value", before, after)]


def _resized(whose: Any, before: int) -> list[Change]:
    if isinstance(whose, Place):
        after = len(whose.holder)
        return [] if after == before else [Change(whose, "contents", before, after)]
    holder, seen = whose
    if len(holder.held) == seen[0]:
        return []
    new = holder.appeared()
    if not new:  # nothing that counts: not looked at again until there are more
        seen[0] = len(holder.held)
    return [Change(place, "value", GONE, place.value()) for place in new]


def _exchanged(place: Place, before: Any) -> list[Change]:
    return [] if place.holder.__dict__ is before else [Change(place, "contents")]


def _definition(function: types.FunctionType) -> tuple[Any, ...]:
    return function.__code__, function.__defaults__, function.__kwdefaults__


def _defined_alike(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    return before[0] is after[0] and before[1] is after[1] and before[2] is after[2]


def _redefined(place: Place, before: tuple[Any, ...]) -> list[Change]:
    after = _definition(place.holder)
    alike = before[0] is after[0] and same(before[1], after[1]) and same(before[2], after[2])
    return [] if alike else [Change(place, "code")]


def _written(place: Place, before: int) -> list[Change]:
    after = place.holder._version
    return [] if after == before else [Change(place, "in place", before, after)]


def _probed(whose: tuple[Place, Callable[[Any], Any]], before: Any) -> list[Change]:
    place, probe = whose
    if same(before, probe(place.holder)):
        return []
    if probe is _bytes:
        return [Change(place, "in place")]
    return [Change(place, "random state" if probe is _random_state else "contents")]


def _elements(thing: Any) -> list[Any]:
    """A copy, not ids: what is kept alive cannot be taken for something new in its place."""
    base = next((base for base in (list, set, deque) if issubclass(type(thing), base)), None)
    return list(dict.items(thing) if base is None else base.__iter__(thing))


def _bytes(array: Any) -> bytes:
    return np.ndarray.tobytes(array) if isinstance(array, np.ndarray) else bytes(memoryview(array))


def _random_state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state().tolist()
    if isinstance(generator, np.random.Generator):
        return repr(generator.bit_generator.state)
    if isinstance(generator, np.random.BitGenerator):
        return repr(generator.state)
    if isinstance(generator, np.random.RandomState):
        name, keys, *rest = generator.get_state(legacy=True)
        return (name, np.asarray(keys).tobytes(), *rest)
    return generator.getstate()


def _short(value: Any) -> str:
    if is_plain(value) or value is GONE:
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    return f"a {type(value).__name__}"
