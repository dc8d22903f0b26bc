"""One place that a program reads a value from: what it is called, how it is read, and how it is set."""

from __future__ import annotations

import enum
import functools
import os
import types
from collections import deque
from typing import Any, Final, Literal, cast

import numpy as np
import torch

from ingle.program.mentions import Line

__all__ = ["GONE", "PLAIN", "Kind", "Place", "is_plain", "same"]

Kind = Literal["item", "cell", "slot", "class", "default", "context", "thing"]

# Values that are the same where they are equal and of one type; nothing of the user's runs when they are compared.
PLAIN: Final = frozenset(
    {
        bool, bytes, complex, float, int, range, str, type(None), type(...),
        torch.device, torch.dtype, torch.layout, torch.memory_format,
    }
)  # fmt: skip


class _Gone:
    """What a place holds once it is no longer there, or before it is."""

    def __repr__(self) -> str:
        return "nothing"


GONE: Final = _Gone()


class Place:
    """Where a value is held that a program can read.

    Two places are equal if they are one and the same: the same key of the same holder.

    Attributes:
        name: what it is called in a message: "global 'beta' of model", "self.epoch of Model", "config.beta".
        kind: "item" of a dict, list or deque, those of attributes and globals included; "cell" of a closure; "slot" of
            an instance with `__slots__`; attribute of a "class"; "default" of a function; "context" variable; or
            a "thing" itself, as a list whose length is watched.
        holder: what has the value.
        key: where in it.
        line: of the user's code that names it first; None where no code does, as for `training`.
    """

    __slots__ = ("holder", "key", "kind", "line", "name")

    def __init__(self, kind: Kind, holder: Any, key: Any, name: str, line: Line | None = None) -> None:
        self.kind = kind
        self.holder = holder
        self.key = key
        self.name = name
        self.line = line

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Place)
            and self.kind == other.kind
            and self.holder is other.holder
            and (self.key is other.key or same(self.key, other.key))
        )

    def __hash__(self) -> int:
        return hash((self.kind, id(self.holder), self.key if is_plain(self.key) else id(self.key)))

    def __repr__(self) -> str:
        return f"<{self.name}>"

    @property
    def where(self) -> str | None:
        """The line in words, "model.py line 12"."""
        return None if self.line is None else f"{os.path.basename(self.line[0])} line {self.line[1]}"

    def value(self) -> Any:
        """What it holds now, `GONE` where it is not there. No property and no `__getattr__` of the user's is run."""
        try:
            return self._read()
        except (AttributeError, IndexError, KeyError, LookupError, TypeError, ValueError):
            return GONE

    def _read(self) -> Any:
        holder, key = self.holder, self.key
        if self.kind == "item":
            if issubclass(type(holder), dict):
                return dict.get(holder, key, GONE)  # a subclass may make what is missing
            if issubclass(type(holder), list):
                return list.__getitem__(holder, key)
            return holder[key]
        if self.kind == "cell":
            return holder.cell_contents
        if self.kind == "slot":
            return key.__get__(holder)
        if self.kind == "class":
            return holder.__dict__[key]
        if self.kind == "default":
            return holder.__defaults__[key]
        if self.kind == "context":
            return holder.get(GONE)
        return holder

    @property
    def settable(self) -> bool:
        """Whether another value can be put here."""
        if self.kind == "item":
            return issubclass(type(self.holder), (dict, list, deque))
        return self.kind != "thing" and not (self.kind == "class" and issubclass(type(self.holder), enum.EnumMeta))

    @property
    def liftable(self) -> bool:
        """Whether it holds a number, no bool, that a 0-dimensional tensor can stand for."""
        kind = type(self.value())
        return self.settable and (kind in (int, float) or issubclass(kind, (np.floating, np.integer)))

    def put(self, value: object) -> None:
        """Set it, past any `__setattr__` and property, frozen dataclasses too."""
        holder, key = self.holder, self.key
        if not self.settable:
            raise TypeError(f"{self.name} cannot be set")
        if self.kind == "item":
            (dict if issubclass(type(holder), dict) else list if issubclass(type(holder), list) else deque).__setitem__(
                holder, key, value
            )
        elif self.kind == "cell":
            holder.cell_contents = value
        elif self.kind == "slot":
            key.__set__(holder, value)
        elif self.kind == "class":
            type.__setattr__(holder, key, value)
        elif self.kind == "default":
            holder.__defaults__ = (*holder.__defaults__[:key], value, *holder.__defaults__[key + 1 :])
        else:
            holder.set(value)


def is_plain(value: object) -> bool:
    """Whether a value is compared by type and equality: a number, a string, a dtype, or a tuple of such."""
    kind = type(value)
    if kind in PLAIN or issubclass(kind, (np.generic, enum.Enum)) or kind is torch.Size:
        return True
    return issubclass(kind, tuple) and all(map(is_plain, tuple.__iter__(cast("tuple[object, ...]", value))))


def same(before: Any, after: Any) -> bool:
    """Whether a program reads the same from both: plain values by type and ==, containers by content, else identity.

    NaN is the same as NaN. Tensors and arrays are the same only as objects. No `__eq__` of the user's is run.
    """
    if before is after:
        return True
    kind: Any = type(before)
    if kind is not type(after):
        return False
    if kind in PLAIN or issubclass(kind, np.generic):
        return bool(before == after) or bool(before != before and after != after)
    try:
        if kind is list or issubclass(kind, tuple):
            base: Any = list if kind is list else tuple
            lengths = base.__len__(before) == base.__len__(after)
            return lengths and all(map(same, base.__iter__(before), base.__iter__(after)))
        if kind is dict:
            keys = len(before) == len(after) and all(map(same, before, after))  # their order is read too
            return keys and all(map(same, before.values(), after.values()))
    except RecursionError:
        return False
    if kind in (set, frozenset):
        return all(map(is_plain, (*before, *after))) and bool(before == after)
    if kind is types.MethodType:
        return before.__self__ is after.__self__ and before.__func__ is after.__func__
    if kind is functools.partial:
        parts = ((thing.func, thing.args, thing.keywords) for thing in (before, after))
        return same(*parts)
    return False
