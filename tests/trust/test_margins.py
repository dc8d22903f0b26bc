"""Means and sds of what a guide draws, by the same noise each time."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.trust.margins import Margins, countable, margins, placed


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu.sum(), 1.0), obs=y[i])


def guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.zeros(3))
    log_scale = pyro.param("log_scale", torch.zeros(3))
    pyro.sample("mu", dist.Normal(loc, log_scale.exp()).to_event(1))


def fitted() -> ingle.Fit:
    return ingle.fit(model, guide, torch.zeros(4), steps=5, dtype=torch.float64)


def test_distances_are_exact_for_normals() -> None:
    """The noise is the same at both, so a shift of the mean is told without error, and so is a scale."""
    fit = fitted()
    with fit._runtime.scope():
        program = fit._program
        before = margins(program, fit._runtime)
        moved = {"loc": program.leaves()["loc"] + torch.tensor([0.3, 0.0, 0.0])}
        with placed(program, moved):
            shift = margins(program, fit._runtime).distances(before)
        with placed(program, {"log_scale": program.leaves()["log_scale"] + math.log(1.5)}):
            scale = margins(program, fit._runtime).distances(before)
    np.testing.assert_allclose(shift[0] * before.sd, [0.3, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(shift[1], 0.0, atol=1e-12)
    np.testing.assert_allclose(scale[1], math.sqrt(2) * math.log(1.5), rtol=1e-12)


def test_squares_are_the_symmetric_divergence() -> None:
    one, two = Margins(np.array([0.0]), np.array([1.0])), Margins(np.array([0.05]), np.array([1.04]))
    p, q = (torch.distributions.Normal(float(m.mean[0]), float(m.sd[0])) for m in (one, two))
    kl = torch.distributions.kl_divergence
    assert float(np.square(one.distances(two)).sum()) == pytest.approx(float(kl(p, q) + kl(q, p)), rel=0.01)


def test_what_stands_still_has_no_distance() -> None:
    still = Margins(np.array([1.0, 2.0]), np.array([0.0, 1.0]))
    assert still.spread
    assert not Margins(np.array([1.0]), np.array([0.0])).spread
    np.testing.assert_array_equal(still.distances(Margins(np.array([5.0, 2.0]), np.array([0.0, 1.0]))), 0.0)


def test_noise_and_parameters_are_left_alone() -> None:
    fit = fitted()
    with fit._runtime.scope():
        leaves = {name: leaf.detach().clone() for name, leaf in fit._program.leaves().items()}
        state = torch.get_rng_state()
        with placed(fit._program, {"loc": torch.ones(3)}):
            margins(fit._program, fit._runtime)
        assert torch.equal(torch.get_rng_state(), state)
        for name, leaf in fit._program.leaves().items():
            assert torch.equal(leaf, leaves[name])


def test_nothing_to_draw_is_not_counted() -> None:
    def likelihood(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(pyro.param("m", torch.tensor(0.0)), 1.0), obs=y)

    fit = ingle.fit(likelihood, lambda y: None, torch.zeros(4), steps=2)
    assert not countable(fit._program)
    assert countable(fitted()._program)
