"""A functional graph made smaller before it is compiled: what stays is computed once, what does nothing goes."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from functools import partial
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
    _spread_last(graph.graph)
    _merge(graph.graph)
    graph.graph.eliminate_dead_code()
    _turn(graph.graph, inputs, fixed, kept)
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
                value = node.target(*args, **kwargs)
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
        return "nan" if math.isnan(value) else (type(value), value, math.copysign(1.0, value))
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
        copied: Any = node.target
        source = node.args[_COPIES.get(copied, 0)]
        # A copy of an input may stand for its value before the change at the end.
        own = node.target not in _COPIES or (isinstance(source, Node) and source.op != "placeholder")
        return source if isinstance(source, Node) and own else None
    operation: Any = node.target
    neutral = _NEUTRAL.get(operation)
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


def _spread_last(graph: Graph) -> None:
    """Compute what is spread over more elements before it is spread: the log of 3 scales, not of a thousand each."""
    for node in list(graph.nodes):
        if node.op != "call_function" or torch.Tag.pointwise not in getattr(node.target, "tags", ()):
            continue
        result, sources = node.meta.get("val"), node.all_input_nodes
        if not isinstance(result, Tensor) or not sources or not _foldable(node):
            continue
        small = {source: base for source in sources if (base := _spread_from(source)) is not None}
        bases = [small.get(source, source) for source in sources]
        if not small or any(not isinstance(base.meta.get("val"), Tensor) for base in bases):
            continue
        kinds = {base.meta["val"].dtype for base in bases} - {torch.bool}
        if len(kinds) > 1:
            continue  # without its dimensions a tensor may no longer decide the dtype of the result
        shape = torch.broadcast_shapes(*(base.meta["val"].shape for base in bases))
        if math.prod(shape) * 2 > result.numel():
            continue
        with graph.inserting_before(node):
            made = graph.call_function(
                node.target,
                map_arg(node.args, partial(_instead, small)),
                map_arg(node.kwargs, partial(_instead, small)),
            )
            spread = graph.call_function(aten.expand.default, (made, list(result.shape)))
        made.meta["val"] = torch.empty(shape, dtype=result.dtype, device="meta")
        spread.meta["val"] = made.meta["val"].expand(result.shape)
        node.replace_all_uses_with(spread)
        graph.erase_node(node)


def _instead(others: Mapping[Node, Node], node: Node) -> Node:
    return others.get(node, node)


def _spread_from(node: Node) -> Node | None:
    """What a node spreads over more elements; a constant is made anew as a single number."""
    if node.target is aten.expand.default and isinstance(node.args[0], Node):
        return node.args[0]
    if node.target is aten.full.default and node.args[0]:
        value = node.meta["val"]
        with node.graph.inserting_before(node):
            made = node.graph.call_function(aten.full.default, ([1] * value.dim(), node.args[1]), dict(node.kwargs))
        made.meta["val"] = torch.empty([1] * value.dim(), dtype=value.dtype, device="meta")
        return made
    return None


def _turn(graph: Graph, inputs: Sequence[Tensor], fixed: Sequence[bool], kept: list[int | Tensor]) -> None:
    """Lay fixed tensors out with their longest dimension last in memory, where it is much longer than the last.

    Kernels run along what is last in memory: along two columns they are many times slower than along a thousand rows.
    """
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    for place, (node, held) in enumerate(zip(placeholders, kept, strict=True)):
        if isinstance(held, int) and not fixed[held]:
            continue
        tensor = inputs[held] if isinstance(held, int) else held
        order = _order(tensor)
        if order is None or not node.users:
            continue
        kept[place] = tensor.permute(order).contiguous()
        with graph.inserting_after(placeholders[-1]):
            turned = graph.call_function(aten.permute.default, (node, _inverse(order)))
        turned.meta["val"] = tensor
        for user in [user for user in node.users if user is not turned]:
            user.replace_input_with(node, turned)


def _order(tensor: Tensor) -> list[int] | None:
    """The dimensions in the order in which they should lie in memory; None where they may stay."""
    if tensor.dim() < 2 or not tensor.is_floating_point() or tensor.numel() > _LARGEST or tensor.device.type != "cpu":
        return None
    longest = max(range(tensor.dim()), key=lambda dim: tensor.shape[dim])
    inner = min(
        range(tensor.dim()), key=lambda dim: (tensor.stride(dim), -dim) if tensor.shape[dim] > 1 else (2**62, 0)
    )
    if tensor.shape[longest] < 128 or tensor.shape[inner] * 8 > tensor.shape[longest]:
        return None
    return [*(dim for dim in range(tensor.dim()) if dim != longest), longest]


def _inverse(order: Sequence[int]) -> list[int]:
    return sorted(range(len(order)), key=order.__getitem__)


def _drop_unused(graph: Graph, inputs: list[int | Tensor]) -> list[int | Tensor]:
    kept = []
    for node, tensor in zip([node for node in graph.nodes if node.op == "placeholder"], inputs, strict=True):
        if node.users:
            kept.append(tensor)
        else:
            graph.erase_node(node)
    return kept
