"""Optimisers: one over all leaves, Pyro's options leaf by leaf, two with guide_steps, schedules, states."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ingle
from ingle.engine import resolve_optimisers

Y = torch.linspace(0.0, 2.0, 5)


def model(y: Tensor) -> None:
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, noise), obs=y[i])


def guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)))


def by_name(name: str) -> dict[str, float]:
    return {"lr": {"loc": 0.1, "scale": 0.01, "noise": 0.003}[name]}


PYRO = {
    "Adam": lambda: pyro.optim.Adam({"lr": 0.05}),
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99, "clip_norm": 1.0}),
    "SGD with momentum": lambda: pyro.optim.SGD({"lr": 1e-3, "momentum": 0.9}),
    "by name": lambda: pyro.optim.Adam(by_name),
    "clip norm": lambda: pyro.optim.SGD({"lr": 1e-2}, {"clip_norm": 0.5}),
    "clip value": lambda: pyro.optim.SGD({"lr": 1e-2}, {"clip_value": 0.5}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.1}),
}


@pytest.mark.parametrize("name", PYRO)
def test_pyro_optimisers_move_as_in_pyro(name: str) -> None:
    fit = ingle.fit(model, guide, Y, optim=PYRO[name](), steps=40, dtype=torch.float64)
    losses, parameters = pyro_svi(PYRO[name](), 40)
    np.testing.assert_allclose(fit.losses, losses, rtol=1e-11)
    for key, value in parameters.items():
        torch.testing.assert_close(fit.params[key], value, rtol=1e-11, atol=1e-12)


def test_pyro_schedule_advances_once_a_step() -> None:
    def schedule() -> Any:
        return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02}, "gamma": 0.9})

    fit = ingle.fit(model, guide, Y, optim=schedule(), steps=30, dtype=torch.float64)
    losses, _ = pyro_svi(schedule(), 30, each_step=lambda optim: optim.step())
    np.testing.assert_allclose(fit.losses, losses, rtol=1e-11)


def pyro_svi(optim: Any, steps: int, each_step: Any = None) -> tuple[list[float], dict[str, Tensor]]:
    torch.set_default_dtype(torch.float64)
    try:
        with pyro.get_param_store().scope():
            pyro.set_rng_seed(0)
            svi = pyro.infer.SVI(model, guide, optim, pyro.infer.Trace_ELBO())
            losses = []
            for _ in range(steps):
                losses.append(svi.step(Y.double()))
                if each_step is not None:
                    each_step(optim)
            return losses, {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    finally:
        torch.set_default_dtype(torch.float32)


def test_one_optimiser_over_all_leaves() -> None:
    built = []

    def factory(leaves: list[Tensor]) -> torch.optim.Optimizer:
        built.append(leaves)
        return torch.optim.Adam(leaves, lr=0.01)

    ingle.fit(model, guide, Y, optim=factory, steps=5)
    assert [len(leaves) for leaves in built] == [3]


def test_guide_moves_at_every_step_and_model_at_every_third() -> None:
    seen: list[tuple[float, float]] = []

    def watched(y: Tensor) -> None:
        guide(y)
        store = pyro.get_param_store()
        seen.append((store["loc"].item(), store["noise"].item()))

    sgd = functools.partial(torch.optim.SGD, lr=1e-3)
    ingle.fit(model, watched, Y, optim={"model": sgd, "guide": sgd}, guide_steps=3, steps=12)
    loc, noise = (np.array(values) for values in zip(*seen[-12:], strict=True))
    assert np.all(np.diff(loc) != 0)
    assert np.flatnonzero(np.diff(noise)).tolist() == [2, 5, 8]


def test_two_optimisers_are_each_for_their_side() -> None:
    frozen, moving = functools.partial(torch.optim.SGD, lr=0.0), functools.partial(torch.optim.SGD, lr=1e-3)
    fit = ingle.fit(model, guide, Y, optim={"model": frozen, "guide": moving}, steps=5)
    assert float(fit.params["noise"]) == pytest.approx(1.0)
    assert float(fit.params["loc"]) != 0.0
    fit = ingle.fit(model, guide, Y, optim={"model": moving, "guide": frozen}, steps=5)
    assert float(fit.params["noise"]) != pytest.approx(1.0)
    assert float(fit.params["loc"]) == 0.0


def test_one_optimiser_is_two_of_a_kind_with_guide_steps() -> None:
    sgd = functools.partial(torch.optim.SGD, lr=1e-3)
    one = ingle.fit(model, guide, Y, optim=sgd, guide_steps=2, steps=10)
    two = ingle.fit(model, guide, Y, optim={"model": sgd, "guide": sgd}, guide_steps=2, steps=10)
    assert np.array_equal(one.losses, two.losses)


def test_parameters_that_appear_later_are_trained() -> None:
    calls = iter(range(10**6))

    def late(y: Tensor) -> None:
        extra = pyro.param("late", torch.tensor(0.0)) if next(calls) > 30 else 0.0
        loc = pyro.param("loc", torch.tensor(0.0))
        pyro.sample("mu", dist.Normal(loc + extra, 0.3))

    fit = ingle.fit(model, late, Y, optim=functools.partial(torch.optim.Adam, lr=0.05), steps=100)
    assert float(fit.params["late"]) != 0.0


@pytest.mark.parametrize("optim", [None, functools.partial(torch.optim.Adam, lr=0.1), pyro.optim.Adam({"lr": 0.1})])
def test_captured_state_is_restored(optim: Any) -> None:
    leaf = torch.tensor([1.0, 2.0], requires_grad=True)
    optimisers = resolve_optimisers(optim, guide_steps=1, steps=10)

    def step() -> None:
        leaf.grad = 2 * leaf.detach()
        optimisers.step({}, {"leaf": leaf})

    with pyro.get_param_store().scope():
        step()
        state, start = optimisers.capture(), leaf.detach().clone()
        step(), step()
        ahead = leaf.detach().clone()
        with torch.no_grad():
            leaf.copy_(start)
        optimisers.restore(state)
        step(), step()
    assert torch.equal(leaf, ahead)
