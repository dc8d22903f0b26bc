"""Faults of a program, which only a simulator written apart from it can show."""

from __future__ import annotations

from functools import partial
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.optim.clipped_adam import ClippedAdam
from torch import Tensor

import ingle

ROWS, BATCH, SLOPE = 200, 20, 2.0
X = torch.linspace(-1.0, 1.0, 12)


def simulated_mean(seed: int) -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mu = torch.randn((), generator=generator)
    return {"mu": mu}, mu + 2 * torch.randn(ROWS, generator=generator)


def simulated_line(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    a, b = torch.randn((), generator=generator), SLOPE + torch.randn((), generator=generator)
    return {"a": a, "b": b}, {"x": X, "y": a + b * X + 0.5 * torch.randn(len(X), generator=generator)}


def minibatch(scale: float) -> Any:
    """A minibatch by hand; `scale` should be the rows for each row that is drawn."""

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        rows = torch.randint(len(y), (BATCH,))
        with pyro.plate("data", BATCH), poutine.scale(scale=scale):
            pyro.sample("y", dist.Normal(mu, 2.0), obs=y[rows])

    return model


def line(sign: float) -> Any:
    def model(x: Tensor, y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        b = pyro.sample("b", dist.Normal(SLOPE, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(a + sign * b * x, 0.5), obs=y)

    return model


# From 0.1 to a fiftieth in 200 steps.
FAST: dict[str, Any] = {"steps": 200, "optim": partial(ClippedAdam, lr=0.1, lrd=0.98), "compile": "off"}


def test_a_missing_plate_scale(where: dict[str, Any]) -> None:
    """Without it the likelihood counts a tenth, and the posterior sd is 2.5 times what it should be."""
    wrong = ingle.calibrate(minibatch(1.0), "normal", simulate=simulated_mean, **FAST, **where)
    assert wrong["mu"].verdict == "too wide"
    assert wrong["mu"].spread < 0.6
    assert wrong.source == "the simulator given"
    own = ingle.calibrate(minibatch(1.0), "normal", torch.zeros(ROWS), **FAST, **where)
    assert own["mu"].verdict == "calibrated"  # the model draws as many rows as it takes in, and knows of no others


def test_the_scale_of_a_plate_makes_it_right(where: dict[str, Any]) -> None:
    """The log likelihood that is ranked is of a minibatch, which differs from draw to draw: the mean alone is told."""
    right = ingle.calibrate(minibatch(ROWS / BATCH), "normal", simulate=simulated_mean, **FAST, **where)
    assert right["mu"].verdict == "calibrated"


def test_a_sign_error_in_the_mean(where: dict[str, Any]) -> None:
    wrong = ingle.calibrate(line(-1.0), "normal", simulate=simulated_line, **FAST, **where)
    assert wrong["b"].verdict.startswith("biased")
    assert "too low" in wrong["b"].words
    own = ingle.calibrate(line(-1.0), "normal", {"x": X, "y": torch.zeros(len(X))}, **FAST, **where)
    assert own.calibrated
    right = ingle.calibrate(line(1.0), "normal", simulate=simulated_line, **FAST, **where)
    assert right.calibrated


def test_a_guide_that_has_not_seen_the_data_shows_in_the_log_likelihood_alone(where: dict[str, Any]) -> None:
    def prior(x: Tensor, y: Tensor) -> None:
        pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(SLOPE, 1.0))

    found = ingle.calibrate(line(1.0), prior, {"x": X, "y": torch.zeros(len(X))}, **where)
    assert found["a"].verdict == found["b"].verdict == "calibrated"
    assert found["log_likelihood"].verdict != "calibrated"
    assert "too low" in found["log_likelihood"].words


def test_independent_normals_on_a_correlated_posterior_are_too_narrow(where: dict[str, Any]) -> None:
    """Two columns that are nearly one: the variance of each is the inverse of its precision, P_jj, and not S_jj."""

    def model(x: Tensor, y: Tensor) -> None:
        b = pyro.sample("b", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ b, 1.0), obs=y)

    common = torch.sin(3.0 * torch.arange(20.0))
    x = torch.stack([common, common + 0.48 * torch.cos(5.0 * torch.arange(20.0))], 1)
    precision = x.T @ x + torch.eye(2)
    ratio = float((precision.diag() * precision.inverse().diag()).mean().sqrt())
    assert ratio > 1.5
    found = ingle.calibrate(model, "normal", {"x": x, "y": torch.zeros(20)}, **FAST, **where)
    assert found["b"].verdict == "too narrow"
    # Of 100 fits whose two numbers are nearly one number: 4 standard errors of an sd.
    assert abs(found["b"].spread / ratio - 1) < 4 / 200**0.5
