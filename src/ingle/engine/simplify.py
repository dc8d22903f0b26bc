"""A functional graph made smaller before it is compiled: what stays the same is computed once, what does nothing goes."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.fx import Graph, GraphModule, Node
from torch.fx.node import map_arg

__all__ = ["simplify"]

aten = torch.ops.aten

_LARGEST = 16 * 2**20  # elements of a constant that is kept instead of computed


def simplify(graph: GraphModule, inputs: Sequence[Tensor], fixed: Sequence[bool]) -> list[int | Tensor]:
    """Change a graph in place; returns what it is to be run on: places among `inputs`, and tensors computed here.

    Args:
        graph: functional, but for `copy_` into its inputs at the end; as `internals.functional` gives it.
        inputs: of the graph, with their numbers.
        fixed: whether each keeps its numbers as long as the graph is used.
    """
    _drop_idle(graph.graph)
    kept = _fold(graph.graph, inputs, fixed)
    _merge(graph.graph)
    _drop_idle(graph.graph)
    graph.graph.eliminate_dead_code()
    kept = _drop_unused(graph.graph, kept)
    graph.recompile()
    return kept


def _fold(graph: Graph, inputs: Sequence[Tensor], fixed: Sequence[bool]) -> list[int | Tensor]:
    """Compute once whatever depends on fixed inputs alone."""
    kept: list[int | Tensor] = list(range(len(inputs)))
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    values: dict[Node, Any] = {
        node: tensor for node, tensor, stays in zip(placeholders, inputs, fixed, strict=True) if stays
    }
    with torch.no_grad():
        for node in graph.nodes:
            if node.op == "call_function" and _foldable(node) and all(arg in values for arg in node.all_input_nodes):
                args = map_arg(node.args, lambda arg: values[arg])
                kwargs = map_arg(node.kwargs, lambda arg: values[arg])
                value = node.target(*args, **kwargs)  # type: ignore[operator]
                if not isinstance(value, Tensor) or value.untyped_storage().nbytes() <= _LARGEST * 8:
                    values[node] = value
    last = placeholders[-1]
    for node, value in values.items():
        users = [user for user in node.users if user not in values]
        if not users or not isinstance(value, Tensor):
            continue
        number = _single(value)
        if number is not None:
            with graph.inserting_after(last):
                made = graph.call_function(
                    aten.full.default,
                    (list(value.shape), number),
                    {"dtype": value.dtype, "device": value.device, "pin_memory": False},
                )
            made.meta["val"] = value
        elif node.op == "placeholder":
            continue
        else:
            with graph.inserting_after(last):
                made = last = graph.placeholder(f"kept_{len(kept)}")
            kept.append(value.contiguous() if _overlaps(value) else value)
            made.meta["val"] = kept[-1]
        for user in users:
            user.replace_input_with(node, made)
    return kept


def _foldable(node: Node) -> bool:
    target: Any = node.target
    if not isinstance(target, torch._ops.OpOverload):
        return target is operator.getitem
    if target in _EMPTY:
        return False
    return not (target._schema.is_mutable or torch.Tag.nondeterministic_seeded in target.tags)


_EMPTY = {  # memory that nobody has written to: its numbers are not the same in the next process
    aten.empty.memory_format,
    aten.empty_strided.default,
    aten.empty_like.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}


def _single(value: Tensor) -> float | int | bool | None:
    """The number that a tensor has in every place; None where it has several, or is large enough to be read instead."""
    if value.numel() == 0 or value.is_complex() or value.numel() > 4096:
        return None
    first = value.flatten()[0]
    same = bool((value == first).all()) or (value.is_floating_point() and bool(value.isnan().all()))
    return first.item() if same else None


def _overlaps(value: Tensor) -> bool:
    return any(stride == 0 and size > 1 for stride, size in zip(value.stride(), value.shape, strict=True))


def _merge(graph: Graph) -> None:
    """Compute the same thing once."""
    seen: dict[Any, Node] = {}
    for node in list(graph.nodes):
        if node.op != "call_function" or not _foldable(node):
            continue
        key = (node.target, _hashable(node.args), _hashable(node.kwargs))
        if key in seen:
            node.replace_all_uses_with(seen[key])
            graph.erase_node(node)
        else:
            seen[key] = node


def _hashable(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(part) for part in value)
    if isinstance(value, dict):
        return tuple((name, _hashable(part)) for name, part in sorted(value.items()))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    if isinstance(value, float):
        return ("nan" if math.isnan(value) else (type(value), value, math.copysign(1.0, value)))
    return value if isinstance(value, Node) else (type(value), value)


_PASSES_ON = {
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
    aten.expand.default,
    aten.view.default,
    aten.reshape.default,
    aten._unsafe_view.default,
    torch.ops.prims.convert_element_type.default,
    aten._to_copy.default,
    aten.squeeze.dims,
}
_COPIES = {aten.clone.default: 0, aten.copy.default: 1}  # which argument is copied
_NEUTRAL = {
    aten.mul.Tensor: 1,
    aten.div.Tensor: 1,
    aten.add.Tensor: 0,
    aten.sub.Tensor: 0,
    aten.mul.Scalar: 1,
    aten.div.Scalar: 1,
    aten.add.Scalar: 0,
    aten.sub.Scalar: 0,
}


def _drop_idle(graph: Graph) -> None:
    """Take out operations that give back what they are given."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        source = _passed_on(node)
        if source is not None and _alike(node, source):
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def _passed_on(node: Node) -> Node | None:
    if node.target in _PASSES_ON or node.target in _COPIES:
        source = node.args[_COPIES.get(node.target, 0)]
        # A copy of an input may stand for its value before the change at the end.
        own = node.target not in _COPIES or (isinstance(source, Node) and source.op != "placeholder")
        return source if isinstance(source, Node) and own else None
    neutral = _NEUTRAL.get(node.target)
    if neutral is None or node.kwargs:
        return None
    first, second = node.args[:2]
    if isinstance(first, Node) and _is_number(second, neutral):
        return first
    symmetric = node.target in (aten.mul.Tensor, aten.add.Tensor)
    return second if symmetric and isinstance(second, Node) and _is_number(first, neutral) else None


def _is_number(value: Any, number: int) -> bool:
    if isinstance(value, Node):
        return value.target is aten.full.default and _is_number(value.args[1], number)
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value == number


def _alike(node: Node, source: Node) -> bool:
    ours, theirs = node.meta.get("val"), source.meta.get("val")
    return (
        isinstance(ours, Tensor)
        and isinstance(theirs, Tensor)
        and ours.shape == theirs.shape
        and ours.dtype == theirs.dtype
        and ours.stride() == theirs.stride()
    )


def _drop_unused(graph: Graph, inputs: list[int | Tensor]) -> list[int | Tensor]:
    kept = []
    for node, tensor in zip([node for node in graph.nodes if node.op == "placeholder"], inputs, strict=True):
        if node.users:
            kept.append(tensor)
        else:
            graph.erase_node(node)
    return kept
