"""What each term of a run was computed from, through arithmetic and through Python."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from objectives.programs import double, real
from pyro import poutine
from torch import Tensor

from ingle.program import Origins, origins, sample_nodes, score_sampled


@pytest.fixture(autouse=True)
def _double() -> Any:
    with double():
        yield


def found(program: Any, marked: Any = score_sampled) -> dict[str, frozenset[str]]:
    with Origins(marked) as run:
        trace: Any = poutine.trace(program).get_trace()
        trace.compute_log_prob()
        run.note(trace)
    return {site["name"]: origins(site) for site in sample_nodes(trace)}


def switches(use: Any) -> Any:
    """Two switches, and an observation whose mean is a function of the first."""

    def program() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("other", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(use(k), 1.0), obs=torch.tensor(0.3))

    return program


def _doubled(k: Tensor) -> Tensor:
    return 2.0 * k + 1.0


def _written(k: Tensor) -> Tensor:
    into = torch.zeros(2)
    into[0] = k
    return into.sum()


def _added(k: Tensor) -> Tensor:
    into = torch.zeros(())
    into.add_(k)
    return into


def _out(k: Tensor) -> Tensor:
    into = torch.zeros(())
    torch.add(k, 1.0, out=into)
    return into


def _viewed(k: Tensor) -> Tensor:
    into = torch.zeros(4)
    view = into.reshape(2, 2)
    into[0] = k
    return view.sum()


def _scripted(k: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_doubled)(k)  # type: ignore[no-any-return]


class _Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, k: Tensor) -> Tensor:
        return 2.0 * k

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        return 2.0 * gradients[0]


ARITHMETIC = {
    "product": lambda k: 2.0 * k,
    "where": lambda k: torch.where(k > 0, torch.tensor(1.0), torch.tensor(-1.0)),
    "index": lambda k: torch.tensor([-1.0, 1.0])[k.long()],
    "gather": lambda k: torch.tensor([-1.0, 1.0]).gather(0, k.long().reshape(1))[0],
    "stack": lambda k: torch.stack([k, torch.zeros(())]).sum(),
    "a list in a dict": lambda k: {"values": [k, 0.0]}["values"][0] + 1.0,
    "max with its place": lambda k: torch.stack([k, torch.zeros(())]).max(0).values,
    "split": lambda k: torch.stack([k, k]).split(1)[1].sum(),
    "detached": lambda k: k.detach() * 3.0,
    "data": lambda k: k.data * 3.0,
    "a network": lambda k: torch.nn.Linear(1, 1)(k.reshape(1))[0],
    "an autograd function": lambda k: _Doubled.apply(k),
    "an autograd function, then more": lambda k: 3.0 * _Doubled.apply(k + 1.0).exp(),
    "a scripted function": lambda k: _scripted(k),
    "vmap": lambda k: torch.func.vmap(lambda one: 2.0 * one)(k.reshape(1))[0],
    "written into another tensor": _written,
    "added in place to another tensor": _added,
    "out=": _out,
    "put by index": lambda k: torch.zeros(2).index_add_(0, torch.tensor([1]), k.reshape(1)).sum(),
    "a view of what it was written to": lambda k: _viewed(k),
    "einsum": lambda k: torch.einsum("i,i->", k.reshape(1), torch.ones(1)),
}
PYTHON = {
    "if": lambda k: 2.0 if k else -1.0,
    "if on a comparison": lambda k: 2.0 if k > 0.5 else -1.0,
    "item": lambda k: k.item(),
    "float": lambda k: float(k),
    "int as an index": lambda k: [-1.0, 1.0][int(k)],
    "range": lambda k: float(len(range(k.long()))),
    "tolist": lambda k: k.reshape(1).tolist()[0],
    "numpy": lambda k: float(np.asarray(k)),
    "tensor of a list": lambda k: torch.tensor([k, k]).sum(),
    "torch.equal": lambda k: 1.0 if torch.equal(k, torch.ones(())) else 0.0,
    "any": lambda k: 1.0 if any(k.reshape(1) > 0) else 0.0,
    "a bound of a slice": lambda k: torch.arange(3.0)[: 1 + k.long()].sum(),
    "a size": lambda k: float(len(torch.arange(2.0)[torch.stack([k, k]) > 0])),
    "nonzero": lambda k: float(len(k.reshape(1).nonzero())),
    "full": lambda k: torch.full((2,), k).sum(),
    "arange": lambda k: float(len(torch.arange(1 + k.long()))),
    "split sizes": lambda k: float(len(torch.arange(3.0).split([int(k), 3 - int(k)])[0])),
    "format": lambda k: float(f"{k}"),
}


@pytest.mark.parametrize("use", ARITHMETIC.values(), ids=ARITHMETIC)
def test_through_arithmetic(use: Any) -> None:
    """`other` comes after and knows nothing of it."""
    assert found(switches(use)) == {"k": {"k"}, "other": {"other"}, "y": {"k"}}


@pytest.mark.parametrize("use", PYTHON.values(), ids=PYTHON)
def test_through_python(use: Any) -> None:
    assert found(switches(use)) == {"k": {"k"}, "other": {"other"}, "y": {"k"}}


def test_after_a_decision_everything_counts() -> None:
    """Which statements come next is what was decided; draws carry it on."""

    def program() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        before = pyro.sample("before", dist.Normal(0.0, 1.0))
        if k:
            pass
        after = pyro.sample("after", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(before, 1.0), obs=torch.tensor(0.0))
        pyro.sample("y", dist.Normal(after, 1.0), obs=torch.tensor(0.0))

    marks = found(program)
    assert (marks["before"], marks["after"], marks["x"], marks["y"]) == (frozenset(), {"k"}, {"k"}, {"k"})


def test_checks_of_distributions_decide_nothing() -> None:
    """Pyro's validation reads every parameter."""

    def program() -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5, validate_args=True))
        pyro.sample("x", dist.Normal(k, 1.0 + k, validate_args=True), obs=torch.tensor(0.0))
        pyro.sample("y", dist.Normal(0.0, 1.0, validate_args=True), obs=torch.tensor(0.0))

    with pyro.validation_enabled():
        assert found(program) == {"k": {"k"}, "x": {"k"}, "y": frozenset()}


def test_draws_with_a_pathwise_gradient_are_followed_where_asked_for() -> None:
    def program() -> None:
        z = pyro.sample("z", dist.Normal(real("loc"), 1.0))
        w = pyro.sample("w", dist.Normal(z, 1.0))
        with pyro.plate("data", 3, subsample_size=2):
            pyro.sample("y", dist.Normal(w, 1.0), obs=torch.zeros(2))

    assert found(program) == {"z": frozenset(), "w": frozenset(), "y": frozenset()}
    assert found(program, lambda site: True) == {"z": {"z"}, "w": {"z", "w"}, "y": {"z", "w"}}


def test_draws_that_are_views_of_one_tensor_are_told_from_each_other() -> None:
    """Until one of them is written to, which changes what the others may be views of."""

    def program(*, written: bool) -> Any:
        def run() -> None:
            joint = torch.zeros(2)
            a, b = (pyro.sample(name, dist.Delta(value)) for name, value in zip("ab", joint, strict=True))
            if written:
                a += 1.0
            pyro.sample("x", dist.Normal(a, 1.0), obs=torch.tensor(0.0))
            pyro.sample("y", dist.Normal(b, 1.0), obs=torch.tensor(0.0))

        return run

    apart, mixed = (found(program(written=written), lambda site: True) for written in (False, True))
    assert (apart["x"], apart["y"]) == ({"a"}, {"b"})
    assert (mixed["x"], mixed["y"]) == ({"a"}, {"a", "b"})


def test_gradients_go_through_marks() -> None:
    with Origins(lambda site: True):
        leaf = torch.tensor(0.7, requires_grad=True)
        trace: Any = poutine.trace(lambda: pyro.sample("z", dist.Delta(leaf))).get_trace()
        _Doubled.apply(trace.nodes["z"]["value"].exp()).backward()
    assert float(leaf.grad) == pytest.approx(2.0 * np.exp(0.7))  # type: ignore[arg-type]


def test_runs_inside_each_other_and_after_an_error() -> None:
    with pytest.raises(RuntimeError, match="broken"), Origins(score_sampled):
        raise RuntimeError("broken")
    with Origins(score_sampled):
        with poutine.block():
            inner = found(switches(lambda k: 2.0 if k else 1.0))
        outer: Any = poutine.trace(lambda: pyro.sample("z", dist.Normal(0.0, 1.0))).get_trace()
    assert inner["y"] == {"k"}
    assert outer.nodes["z"]["decided_by"] == frozenset()
