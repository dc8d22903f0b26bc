"""Ingle's objectives are Pyro's estimators: equal losses and gradients for the same noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ingle
from ingle import objectives

Y = torch.linspace(-1.0, 2.0, 8)


def continuous(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 8, subsample_size=4) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def continuous_guide(y: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), scale))
    with pyro.plate("data", 8, subsample_size=4) as i:
        loc = pyro.param("z_loc", torch.zeros(8))
        pyro.sample("z", dist.Normal(loc[i] + 0.3 * mu, scale))


def mixed(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.4))
    mu = pyro.sample("mu", dist.Normal(k, 1.0))
    with pyro.plate("data", len(y)):
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mu + b, 0.5), obs=y)


def mixed_guide(y: Tensor) -> None:
    p = pyro.param("p", torch.tensor(0.6), constraint=constraints.unit_interval)
    k = pyro.sample("k", dist.Bernoulli(p))
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)) + 0.1 * k, 0.7))
    with pyro.plate("data", len(y)):
        rates = pyro.param("rates", torch.full((8,), 0.4), constraint=constraints.unit_interval)
        pyro.sample("b", dist.Bernoulli(rates))


@pyro.infer.config_enumerate
def summed(y: Tensor) -> None:
    mixed(y)


def summed_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.2)), 0.7))


PAIRS: dict[str, tuple[Callable[..., Any], Callable[..., Any], str]] = {
    "pathwise": (continuous, continuous_guide, "Trace_ELBO"),
    "score function": (mixed, mixed_guide, "Trace_ELBO"),
    "summed in the model": (summed, summed_guide, "TraceEnum_ELBO"),
    "summed in the guide": (mixed, pyro.infer.config_enumerate(mixed_guide), "TraceEnum_ELBO"),
    "sequential in the guide": (mixed, pyro.infer.config_enumerate(mixed_guide, "parallel"), "TraceEnum_ELBO"),
}


@pytest.fixture(autouse=True)
def _double() -> Any:
    with pyro.get_param_store().scope():
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def loss_and_grads(elbo: Any, model: Any, guide: Any) -> tuple[float, dict[str, Tensor]]:
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    loss = elbo.loss_and_grads(model, guide, Y.double())
    store = pyro.get_param_store()
    return loss, {name: leaf.grad.clone() for name, leaf in store.named_parameters() if leaf.grad is not None}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("options", [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}])
def test_equal_to_pyro(pair: str, options: dict[str, Any]) -> None:
    model, guide, name = PAIRS[pair]
    if options.get("vectorize_particles"):
        options = {**options, "max_plate_nesting": 1}
    loss, gradients = loss_and_grads(getattr(objectives, name)(**options), model, guide)
    expected, expected_gradients = loss_and_grads(getattr(pyro.infer, name)(**options), model, guide)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert set(gradients) == set(expected_gradients) != set()
    for name, gradient in gradients.items():
        torch.testing.assert_close(gradient, expected_gradients[name], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["Trace_ELBO", "TraceEnum_ELBO"])
def test_works_in_svi(name: str) -> None:
    model, guide, _ = PAIRS["summed in the model" if name == "TraceEnum_ELBO" else "score function"]
    losses = []
    for home in (objectives, pyro.infer):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), getattr(home, name)())
        losses.append([svi.step(Y.double()) for _ in range(5)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-12)


@pytest.mark.parametrize(
    ("objective", "pair"),
    [
        (pyro.infer.Trace_ELBO(num_particles=2), "pathwise"),
        (pyro.infer.TraceMeanField_ELBO(), "pathwise"),
        (pyro.infer.RenyiELBO(alpha=0.5, num_particles=2), "pathwise"),
        (pyro.infer.TraceGraph_ELBO(), "score function"),
        (pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), "summed in the model"),
        (pyro.infer.ReweightedWakeSleep(num_particles=2), "score function"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_pyro_objective_fits(objective: Any, pair: str) -> None:
    model, guide, _ = PAIRS[pair]
    fit = ingle.fit(model, guide, Y, objective=objective, steps=5)
    assert fit.steps == 5
    assert fit.objective == type(objective).__name__
