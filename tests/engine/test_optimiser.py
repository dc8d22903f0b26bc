"""Optimisers: one over all leaves, Pyro's options leaf by leaf, two with guide_steps, schedules, states."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.infer.autoguide
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


ADAM = functools.partial(torch.optim.Adam, lr=0.05)


def exponential() -> Any:
    return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02}, "gamma": 0.9})


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
    fit = ingle.fit(model, guide, Y, optim=exponential(), steps=30, dtype=torch.float64)
    losses, _ = pyro_svi(exponential(), 30, each_step=lambda optim: optim.step())
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


def test_late_parameter_is_forgotten_where_a_call_is_taken_back() -> None:
    """Ctrl-C in the call in which a parameter first appears: the fit is as it was before that call."""
    calls = iter(range(10**6))

    def late(y: Tensor) -> None:
        call = next(calls)
        if call == 130:
            raise KeyboardInterrupt
        extra = pyro.param("late", torch.tensor(1.0)) if call > 110 else 0.0
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)) + extra, 0.3))

    for optim in (ADAM, pyro.optim.Adam({"lr": 0.05}), exponential()):
        calls = iter(range(10**6))
        fit = ingle.fit(model, late, Y, optim=optim, steps=300)
        assert fit.stopped == "interrupted"
        assert set(fit.params) == {"loc", "noise"}
        calls = iter(range(10**6))
        whole = ingle.fit(model, late, Y, optim=optim, steps=fit.steps)
        assert np.array_equal(fit.losses, whole.losses)


def test_tensor_under_two_names_moves_once() -> None:
    """A net that the model registers as one module and the guide as another is one set of parameters."""
    moves = []
    for names in (("net", "net"), ("net", "encoder")):
        net = torch.nn.Linear(1, 1, bias=False)
        torch.nn.init.ones_(net.weight)

        def shared_model(y: Tensor, name: str = names[0], net: torch.nn.Module = net) -> None:
            pyro.module(name, net)
            mu = pyro.sample("mu", dist.Normal(net(torch.ones(1))[0], 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        def shared_guide(y: Tensor, name: str = names[1], net: torch.nn.Module = net) -> None:
            pyro.module(name, net)
            pyro.sample("mu", dist.Normal(net(torch.ones(1))[0], 0.5))

        fit = ingle.fit(shared_model, shared_guide, Y, optim=functools.partial(torch.optim.SGD, lr=1e-3), steps=3)
        assert len(fit.params) == 1
        moves.append(net.weight.item())
    assert moves[0] == moves[1] != 1.0


def test_messenger_guide_leaves_the_model_its_optimiser() -> None:
    still = {"model": functools.partial(torch.optim.SGD, lr=0.0), "guide": ADAM}
    fit = ingle.fit(model, pyro.infer.autoguide.AutoNormalMessenger, Y, optim=still, steps=20)
    assert float(fit.params["noise"]) == pytest.approx(1.0)


def test_default_may_stand_in_the_mapping_and_decays() -> None:
    fit = ingle.fit(model, guide, Y, optim={"model": None, "guide": None})
    assert "from those at twice the learning rate" in fit.reason
    fit = ingle.fit(model, guide, Y, optim={"model": None, "guide": None}, guide_steps=5, steps=100)
    assert "5 guide steps" in fit.optimiser


def test_gradient_left_on_a_module_is_no_gradient_of_the_fit() -> None:
    losses = []
    for left in (False, True):
        torch.manual_seed(0)
        net = torch.nn.Linear(1, 1)
        if left:
            (100 * net(torch.ones(1))).sum().backward()

        def with_net(y: Tensor, net: torch.nn.Module = net) -> None:
            pyro.module("net", net)
            mu = pyro.sample("mu", dist.Normal(net(torch.ones(1))[0], 1.0))
            with pyro.plate("data", len(y)):
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

        losses.append(
            ingle.fit(with_net, "normal", Y, optim=functools.partial(torch.optim.SGD, lr=1e-2), steps=5).losses
        )
    assert np.array_equal(*losses)


def test_optimiser_that_fails_midway_keeps_the_fit() -> None:
    class Failing(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            self.count = getattr(self, "count", 0) + 1
            if self.count == 70:
                raise RuntimeError("tired")
            return super().step(closure)

    with pytest.raises(ingle.OptionError, match="Failing cannot take a step: tired") as caught:
        ingle.fit(model, guide, Y, optim=functools.partial(Failing, lr=1e-3), steps=100)
    assert caught.value.fit is not None
    assert caught.value.fit.steps == 50


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
