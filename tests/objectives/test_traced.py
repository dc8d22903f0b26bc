"""One step of each objective as one graph of tensors: nothing is read back, nothing is frozen."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.infer
import pytest
import torch
from objectives.programs import CASES, NESTING, PAIRS, Program, Y, double, leaves
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from ingle import objectives
from ingle.runtime import validation


@pytest.fixture(autouse=True)
def _double() -> Any:
    with double():
        yield


def step(elbo: Any, model: Program, guide: Program) -> tuple[Tensor, list[Tensor]]:
    """The loss and the gradients of the parameters that it reaches, as the compiled engine asks for them."""
    total: Any = 0.0
    surrogate: Any = 0.0
    for loss, part in elbo.particles(model, guide, Y):
        total, surrogate = total + loss, surrogate + part
    found = torch.autograd.grad(surrogate, list(leaves().values()), allow_unused=True)
    return total, [gradient for gradient in found if gradient is not None]


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=[f"{name} {case}" for name, case in PAIRS])
@pytest.mark.parametrize("vectorized", [False, True], ids=["one by one", "vectorised"])
def test_traced(name: str, case: str, vectorized: bool) -> None:
    model, guide = CASES[name][case]
    elbo = getattr(objectives, name)(2, NESTING.get(case, 1), vectorize_particles=vectorized)
    with validation(False):
        pyro.set_rng_seed(0)
        step(elbo, model, guide)  # makes the parameters
        assert elbo.untraceable(pyro.poutine.trace(guide).get_trace(Y)) is None
        inputs = list(leaves().values())
        graph = make_fx(lambda *_: step(elbo, model, guide))(*inputs)

        with torch.no_grad():
            for leaf in inputs:
                leaf.add_(0.05 * torch.randn_like(leaf))
        pyro.set_rng_seed(3)
        loss, gradients = graph(*inputs)
        pyro.set_rng_seed(3)
        expected_loss, expected = step(elbo, model, guide)

    called = {str(node.target) for node in graph.graph.nodes}
    assert not {target for target in called if "_local_scalar_dense" in target or "nonzero" in target}
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert len(gradients) == len(expected) > 0
    for gradient, other in zip(gradients, expected, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-11, atol=1e-12)
