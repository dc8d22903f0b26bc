"""What breaks a fit is named, and the last finite state stays in reach."""

from __future__ import annotations

import functools
import pickle
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle

Y = torch.linspace(-1.0, 1.0, 6)
ADAM = functools.partial(torch.optim.Adam, lr=0.05)
FAST = functools.partial(torch.optim.Adam, lr=0.4)


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.5)), 0.1))


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def scale_goes_negative(y: Tensor) -> None:
    """The factor pushes the scale down by 0.4 a step, from 41.5 to below zero after about 100 steps."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    scale = pyro.param("free", torch.tensor(41.5))
    pyro.factor("push", -1e6 * scale)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, scale), obs=y)


def test_scale_out_of_range_names_step_site_and_state() -> None:
    with pytest.raises(ingle.NonFiniteError) as caught:
        ingle.fit(scale_goes_negative, guide, Y, optim=FAST, steps=400)
    error = caught.value
    assert isinstance(error, ArithmeticError)
    fit = error.fit
    assert fit is not None
    assert error.step == fit.steps == len(fit.losses) > 0
    assert f"step {error.step}: the loss is nan: model site 'y' has NaN" in str(error)
    assert np.isfinite(fit.losses).all()
    assert all(value.isfinite().all() for value in fit.params.values())
    assert fit.stopped == "failed"
    assert "the step after it failed" in repr(fit)
    assert fit.draws(3)["mu"].shape == (3,)


def test_state_is_that_of_the_step_before() -> None:
    """The same fit, asked for as many steps as went well, has the same losses and parameters."""
    with pytest.raises(ingle.NonFiniteError) as caught:
        ingle.fit(scale_goes_negative, guide, Y, optim=FAST, steps=400)
    fit = caught.value.fit
    assert fit is not None
    same = ingle.fit(scale_goes_negative, guide, Y, optim=FAST, steps=fit.steps)
    assert np.array_equal(same.losses, fit.losses)
    assert all(torch.equal(same.params[name], value) for name, value in fit.params.items())


def test_gradient_that_is_not_finite_names_the_parameter() -> None:
    """The root of zero has a finite value and an infinite slope."""

    def rooted(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("square", torch.tensor(0.0)).abs().sqrt(), 0.1))

    with pytest.raises(
        ingle.NonFiniteError, match=r"step 0: the loss is finite, but not the gradient.*'square' \(NaN\)"
    ):
        ingle.fit(model, rooted, Y, optim=ADAM, steps=5)


def test_infinite_loss_is_named() -> None:
    def cut(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("cut", torch.where(mu > 0.3, 0.0, -float("inf")) * torch.ones(()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ingle.NonFiniteError, match=r"the loss is inf: model site 'cut'"):
        ingle.fit(cut, guide, Y, optim=ADAM, steps=400)


def test_parameter_that_starts_bad() -> None:
    def bad(y: Tensor) -> None:
        pyro.param("odd", torch.tensor([1.0, float("nan")]))
        guide(y)

    with pytest.raises(ingle.ProgramError, match=r"'odd' \(NaN in 1 of 2 elements\) is not finite before the first"):
        ingle.fit(model, bad, Y, steps=5)


def raises_at(call: int) -> Callable[[Tensor], None]:
    calls = iter(range(10**6))

    def broken(y: Tensor) -> None:
        model(y)
        if next(calls) >= call:
            raise KeyError("midway")

    return broken


def test_program_that_raises_midway_keeps_the_fit() -> None:
    whole = ingle.fit(model, guide, Y, optim=ADAM, steps=200)
    with pytest.raises(ingle.ProgramError, match=r"step \d+: .*KeyError") as caught:
        ingle.fit(raises_at(120), guide, Y, optim=ADAM, steps=200)
    error = caught.value
    assert isinstance(error.__cause__, KeyError)
    assert error.fit is not None
    assert error.step == error.fit.steps >= 50
    assert np.array_equal(error.fit.losses, whole.losses[: error.fit.steps])


def test_program_with_state_of_its_own_is_told_apart() -> None:
    calls = iter(range(10**6))

    def once(y: Tensor) -> None:
        model(y)
        pyro.factor("odd", torch.tensor(float("nan") if next(calls) == 30 else 0.0))

    with pytest.raises(ingle.NonFiniteError, match="keeps a state of its own") as caught:
        ingle.fit(once, guide, Y, optim=ADAM, steps=100)
    assert caught.value.fit is not None
    assert np.isfinite(caught.value.fit.losses).all()


def test_errors_can_be_pickled_without_their_fit() -> None:
    with pytest.raises(ingle.NonFiniteError) as caught:
        ingle.fit(scale_goes_negative, guide, Y, optim=FAST, steps=400)
    copy = pickle.loads(pickle.dumps(caught.value))
    assert str(copy) == str(caught.value)
    assert (copy.step, copy.fit) == (caught.value.step, None)
