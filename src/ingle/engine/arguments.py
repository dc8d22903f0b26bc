"""The arguments of one call of a program taken apart: tensors, numbers, and what neither is."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingle.program.place import is_plain

__all__ = ["Arguments"]

Whole = tuple[tuple[Any, ...], dict[str, Any]]


class Arguments:
    """What one call hands to model and guide.

    Args:
        args, kwargs: of the call.
        last: those of the call before: of the same objects the layouts need not be read again.

    Attributes:
        whole: args and kwargs.
        leaves: what they hold, one after the other; lists, tuples and dicts opened.
        tensors: the places of the tensors among the leaves, each object once.
    """

    __slots__ = ("_key", "_lifted", "_same", "_shape", "_sizes", "leaves", "tensors", "whole")

    def __init__(self, args: tuple[Any, ...], kwargs: dict[str, Any], last: Arguments | None = None) -> None:
        self.whole: Whole = args, kwargs
        self.leaves: list[Any] = []
        self._shape: Any = self._open(args), self._open(kwargs)
        self._key: Any = None
        self._lifted: Any = None
        self.tensors: list[int]
        self._same: tuple[int, ...]
        self._sizes: list[torch.Size]
        leaves = self.leaves
        if last is not None and len(last.leaves) == len(leaves) and all(map(operator.is_, leaves, last.leaves)):
            self.tensors, self._same, self._sizes = last.tensors, last._same, last._sizes
            if self._shape == last._shape and [leaves[place].shape for place in self.tensors] == self._sizes:
                self._key, self._lifted = last._key, last._lifted
                return
        known: dict[int, int] = {}
        same = []
        for place, leaf in enumerate(leaves):
            if isinstance(leaf, Tensor):
                same.append(known.setdefault(id(leaf), place))
        self.tensors = list(known.values())
        self._same = tuple(same)
        self._sizes = [leaves[place].shape for place in self.tensors]

    def _open(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple or kind is list:
            return kind, *map(self._open, value)
        if kind is dict:
            return kind, *((name, self._open(part)) for name, part in value.items())
        if issubclass(kind, tuple) and hasattr(kind, "_make"):
            return kind, *map(self._open, value)
        self.leaves.append(value)
        return None

    def key(self, lifted: Collection[int]) -> Any:
        """What a graph for these arguments is found by: layouts of tensors, values of numbers that are no inputs."""
        if self._key is None or self._lifted != lifted:
            self._lifted = frozenset(lifted)
            self._key = self._shape, self._same, tuple(map(self._part, range(len(self.leaves)), self.leaves))
        return self._key

    def _part(self, place: int, leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return layout(leaf)
        if place in self._lifted and is_number(leaf):
            return "a number"
        if is_plain(leaf):
            return type(leaf), "nan" if leaf != leaf else leaf
        return id(leaf)

    def others(self) -> list[Any]:
        """The leaves that are neither tensors nor plain values: modules, functions, objects of the user's."""
        return [leaf for leaf in self.leaves if not isinstance(leaf, Tensor) and not is_plain(leaf)]

    def changed(self, last: Arguments | None) -> list[int]:
        """Places of numbers that were others in the call before."""
        if last is None or self._shape != last._shape:
            return []
        pairs = enumerate(zip(self.leaves, last.leaves, strict=True))
        return [place for place, (ours, theirs) in pairs if is_number(ours) and is_number(theirs) and ours != theirs]

    def told(self, last: Arguments | None) -> str | None:
        """How they differ from those of the call before, in words; None where they do not."""
        if last is None:
            return None
        if self._shape != last._shape:
            return "the arguments have another form than in the call before"
        for place, (ours, theirs) in enumerate(zip(self.leaves, last.leaves, strict=True)):
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
                if ours.shape != theirs.shape:
                    return f"{self._name(place)} has shape {tuple(ours.shape)} after {tuple(theirs.shape)}"
                if layout(ours) != layout(theirs):
                    return f"{self._name(place)} has another layout, dtype or device than before"
            elif ours is not theirs and not (is_plain(ours) and is_plain(theirs) and ours == theirs):
                return f"{self._name(place)} is {_short(ours)} after {_short(theirs)}"
        return None

    def refused(self) -> str | None:
        """Why a graph cannot take them, in words; None where it can."""
        for place, leaf in enumerate(self.leaves):
            name = self._name(place)
            if isinstance(leaf, np.ndarray):
                return f"{name} is a numpy array, whose changes nobody sees: hand over a tensor"
            if isinstance(leaf, Tensor):
                if leaf.layout != torch.strided:
                    return f"{name} is a sparse tensor"
                if leaf.requires_grad:
                    return f"{name} requires a gradient"
            elif hasattr(type(leaf), "__next__"):
                return f"{name} is an iterator"
        return None

    def put(self, others: Mapping[int, Tensor]) -> Whole:
        """The arguments with tensors in the place of some leaves."""
        leaves = iter([others.get(place, leaf) for place, leaf in enumerate(self.leaves)])

        def close(shape: Any) -> Any:
            if shape is None:
                return next(leaves)
            kind, *parts = shape
            if kind is dict:
                return {name: close(part) for name, part in parts}
            closed = list(map(close, parts))
            return kind(closed) if kind in (list, tuple) else kind._make(closed)

        args, kwargs = map(close, self._shape)
        return args, kwargs

    def _name(self, place: int) -> str:
        """What a leaf is called in a message."""
        args, kwargs = self._shape
        at = 0
        named = [(f"argument {index}", part) for index, part in enumerate(args[1:])]
        for name, part in [*named, *((f"argument {name!r}", part) for name, part in kwargs[1:])]:
            at += _leaves(part)
            if place < at:
                return name if part is None else f"something in {name}"
        return "an argument"


def is_number(value: object) -> bool:
    """Whether it is a number, no bool, that a tensor can stand for."""
    kind = type(value)
    return kind is float or kind is int or issubclass(kind, (np.floating, np.integer))


def layout(tensor: Tensor) -> tuple[Any, ...]:
    """All of a tensor but its numbers."""
    stride = tensor.stride() if tensor.layout == torch.strided else None
    return tensor.shape, stride, tensor.dtype, tensor.device, tensor.requires_grad


def _leaves(shape: Any) -> int:
    if shape is None:
        return 1
    kind, *parts = shape
    return sum(_leaves(part[1] if kind is dict else part) for part in parts)


def _short(value: object) -> str:
    return repr(value)[:60] if is_plain(value) else f"another {type(value).__name__}"
