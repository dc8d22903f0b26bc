"""The tensors that an operation of torch is given and gives, and those that it writes to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

__all__ = ["tensors", "written"]


def tensors(tree: Any) -> list[Tensor]:
    """The tensors in lists, tuples and mappings, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, (list, tuple)):
        return [tensor for part in tree for tensor in tensors(part)]
    if isinstance(tree, Mapping):
        return [tensor for part in tree.values() for tensor in tensors(part)]
    return []


def written(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
    """The tensors among the arguments that an aten operation changes in place."""
    if not func._schema.is_mutable:
        return []
    found: list[Tensor] = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found += tensors(args[place] if place < len(args) else kwargs.get(argument.name))
    return found
