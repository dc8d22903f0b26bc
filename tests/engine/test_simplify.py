"""Graphs before they are compiled: the same numbers from fewer operations."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.fx import GraphModule

from ingle.engine import internals
from ingle.engine.decompositions import DECOMPOSITIONS
from ingle.engine.simplify import simplify

aten = torch.ops.aten


def made(step: Callable[..., None], inputs: list[Tensor], fixed: list[bool]) -> tuple[GraphModule, list[Tensor]]:
    """The simplified graph of a step that changes its first input, and what it is to be run on."""

    def run(*tensors: Tensor) -> tuple[()]:
        step(*tensors)
        return ()

    copies = [tensor.clone() for tensor in inputs]
    graph = internals.functional(internals.record(run, copies), copies, decompose=DECOMPOSITIONS)
    kept = simplify(graph, inputs, fixed)
    return graph, [inputs[part] if isinstance(part, int) else part for part in kept]


def targets(graph: GraphModule) -> list[object]:
    return [node.target for node in graph.graph.nodes if node.op == "call_function"]


def assert_same(step: Callable[..., None], inputs: list[Tensor], fixed: list[bool]) -> GraphModule:
    """The graph changes the first input as the step does, at each of three runs."""
    ours, theirs = inputs[0], inputs[0].clone()
    graph, tensors = made(step, inputs, fixed)
    for _ in range(3):
        graph(*tensors)
        step(theirs, *inputs[1:])
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12, equal_nan=True)
    return graph


def test_what_depends_on_fixed_inputs_alone_is_computed_once() -> None:
    def step(x: Tensor, data: Tensor) -> None:
        x.add_((data.log() * 2).sum())

    graph = assert_same(step, [torch.zeros(3).double(), torch.rand(50).double() + 1], [False, True])
    assert aten.log.default not in targets(graph)
    assert aten.log.default in targets(made(step, [torch.zeros(3), torch.rand(50)], [False, False])[0])


def test_memory_that_nobody_wrote_to_is_never_kept() -> None:
    def step(x: Tensor, data: Tensor) -> None:
        scratch = torch.empty(3, dtype=x.dtype)
        scratch.copy_(x * 2)
        x.copy_(scratch + data)

    assert_same(step, [torch.ones(3).double(), torch.rand(3).double()], [False, True])


def test_a_constant_that_a_step_writes_to_starts_anew_at_each_step() -> None:
    def step(x: Tensor) -> None:
        total = torch.zeros(3, dtype=x.dtype)
        total[0] = x.sum()
        total += 1
        x.copy_(total)

    assert_same(step, [torch.ones(3).double()], [False])


def test_the_same_thing_is_computed_once() -> None:
    def step(x: Tensor) -> None:
        x.copy_(x.exp() + x.exp() * x.exp())

    graph = assert_same(step, [torch.full((3,), -2.0).double()], [False])
    assert targets(graph).count(aten.exp.default) == 1


def test_equal_numbers_of_different_kind_are_not_one() -> None:
    def step(x: Tensor) -> None:
        x.copy_(torch.where(x > 0, 1.0, x) + torch.where(x > 0, True, x) + torch.full_like(x, -0.0).sign())

    assert_same(step, [torch.tensor([1.0, -1.0, 0.0]).double()], [False])


def test_what_gives_back_what_it_is_given_goes() -> None:
    def step(x: Tensor) -> None:
        x.copy_((((x * 1.0) + 0.0) / 1).expand(3).view(3).detach() - 0 + 3)

    graph = assert_same(step, [torch.ones(3).double()], [False])
    assert targets(graph) == [aten.add.Tensor, aten.copy_.default]


def test_what_promotes_is_no_neutral_number() -> None:
    def step(x: Tensor, counts: Tensor) -> None:
        x.copy_((counts * 1.0) / 2 + (counts + 0.0))

    assert_same(step, [torch.zeros(3).double(), torch.tensor([1, 2, 3])], [False, False])


def test_a_copy_of_an_input_keeps_its_value_before_the_step() -> None:
    def step(pair: Tensor, other: Tensor) -> None:
        before = pair.clone()
        pair.copy_(other)
        other.copy_(before)

    inputs = [torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])]
    graph, tensors = made(step, inputs, [False, False])
    graph(*tensors)
    assert inputs[0].tolist() == [3.0, 4.0]
    assert inputs[1].tolist() == [1.0, 2.0]


def test_small_things_are_computed_before_they_are_spread() -> None:
    def step(x: Tensor, data: Tensor) -> None:
        scale = x.exp().expand(1000, 3)
        x.sub_(((data / scale) ** 2 / 2 + scale.log()).sum(0) * 1e-3)

    graph = assert_same(step, [torch.zeros(3).double(), torch.rand(1000, 3).double()], [False, True])
    sizes = {node.target: node.meta["val"].numel() for node in graph.graph.nodes if node.op == "call_function"}
    assert sizes[aten.log.default] == 3


def test_spreading_last_leaves_dtypes_alone() -> None:
    def step(x: Tensor, small: Tensor) -> None:
        wide = small.sum().expand(8)  # float32; without its dimension it would no longer make the product float32
        x.copy_((wide * torch.full((), 0.1, dtype=torch.float64)).double() + torch.ones(8, dtype=torch.float64) * 0.1)

    assert_same(step, [torch.zeros(8).double(), torch.rand(4)], [False, False])


@pytest.mark.parametrize("shape", [(1000, 3), (3, 1000), (2, 500, 4), (200, 200)])
def test_a_fixed_matrix_may_lie_in_memory_as_its_longest_dimension_asks(shape: tuple[int, ...]) -> None:
    def step(x: Tensor, data: Tensor) -> None:
        x.add_((data * x[0]).sum() + data[..., 0].sum())

    inputs = [torch.ones(2).double(), torch.rand(shape).double()]
    assert_same(step, inputs, [False, True])
    tensors = made(step, inputs, [False, True])[1]
    assert all(tensor.shape[-1] == max(shape) for tensor in tensors if tensor.dim() > 1 and min(shape[1:]) < 8)


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 100])
@pytest.mark.parametrize("scan", [torch.cumsum, torch.cumprod])
def test_scans_written_out_agree(scan: Callable[[Tensor, int], Tensor], length: int) -> None:
    def step(x: Tensor, data: Tensor) -> None:
        x.copy_(scan(data * x, 0) + scan(data.t(), 1).t().flip(0) + scan(data > 0.5, 0))

    graph = assert_same(step, [torch.ones(length, 2).double(), torch.rand(length, 2).double()], [False, False])
    named = {torch.cumsum: aten.cumsum.default, torch.cumprod: aten.cumprod.default}[scan]
    assert (named in targets(graph)) is (length > 32)


def test_infinite_terms_pass_through_a_scan() -> None:
    def step(x: Tensor, data: Tensor) -> None:
        x.copy_((data + x * 0).cumsum(0))

    assert_same(step, [torch.zeros(3).double(), torch.tensor([1.0, -torch.inf, 2.0]).double()], [False, False])
