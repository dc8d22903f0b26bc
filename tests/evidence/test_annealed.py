"""Annealed importance sampling against closed forms, by element, and where a start cannot serve."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support import eight_schools_data
from torch import Tensor

import ingle
from ingle.evidence.annealed import _BATCHES, _together
from ingle.models.hierarchical import eight_schools

DOUBLE: dict[str, Any] = {"dtype": torch.float64}
SIZE = 10
COVARIANCE = 0.9 ** (torch.arange(SIZE)[:, None] - torch.arange(SIZE)).abs().double()


def correlated(y: Tensor) -> None:
    """Ten dimensions, neighbours correlated by 0.9."""
    z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(SIZE), covariance_matrix=COVARIANCE.to(y)))
    pyro.sample("y", dist.Normal(z, 0.5).to_event(1), obs=y)


def off(y: Tensor) -> None:
    """Three of its own sds from where it should be, and without correlations."""
    pyro.sample("z", dist.Normal(torch.ones(SIZE), 0.3).to_event(1))


@pytest.mark.long
def test_ten_correlated_dimensions_from_a_poor_start() -> None:
    """Within 0.1 nat, where importance sampling is thirty off."""
    y = 2 * torch.randn(SIZE, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    exact = dist.MultivariateNormal(torch.zeros(SIZE).double(), COVARIANCE + 0.25 * torch.eye(SIZE)).log_prob(y)
    evidence = ingle.log_evidence(correlated, off, y, num_samples=4_000, proposal="ais", **DOUBLE)
    assert evidence.verdict == "reliable"
    assert evidence.log_z == pytest.approx(float(exact), abs=0.1)
    assert set(evidence.starts) == {"the guide", "the prior"}
    assert "from        the prior" in repr(evidence)
    plain = ingle.log_evidence(correlated, off, y, num_samples=4_000, **DOUBLE)
    assert plain.verdict == "unreliable"
    assert plain.log_z < float(exact) - 10


def schools_exact() -> float:
    """By quadrature over mu and tau, the effects integrated out."""
    data = eight_schools_data()
    y, sigma = (torch.tensor(np.asarray(data[name])) for name in ("y", "sigma"))
    mu = torch.linspace(-40, 50, 1_201, dtype=torch.float64)[:, None]
    angle = torch.linspace(0, math.pi / 2, 1_202, dtype=torch.float64)[:-1]  # tau = 5 tan(angle), uniform in the angle
    tau = 5 * angle.tan()
    total = dist.Normal(0.0, 5.0).log_prob(mu) + torch.zeros_like(tau)
    for effect, error in zip(y, sigma, strict=True):
        total = total + dist.Normal(mu, (error**2 + tau**2).sqrt()).log_prob(effect)
    cell = (mu[1] - mu[0]) / len(tau)
    return float((total.exp().sum() * cell).log())


def poor(sigma: Tensor, y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(20.0, 1.0))
    pyro.sample("tau", dist.LogNormal(3.0, 0.1))
    with pyro.plate("school", 8):
        pyro.sample("eta", dist.Normal(2.0, 0.2))


@pytest.mark.long
def test_eight_schools_from_a_poor_start() -> None:
    """Within 0.1 nat of quadrature."""
    evidence = ingle.log_evidence(eight_schools, poor, eight_schools_data(), num_samples=10_000, proposal="ais")
    assert evidence.log_z == pytest.approx(schools_exact(), abs=0.1)


def test_each_element_by_itself() -> None:
    """Ten data with two correlated latents each: all within five of their standard errors."""
    weight = torch.tensor([[1.0, 0.6], [0.2, -1.0], [0.5, 0.5]], dtype=torch.float64)
    x = torch.randn(10, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def model(x: Tensor) -> None:
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, 0.4).to_event(1), obs=x)

    covariance = weight @ weight.T + 0.16 * torch.eye(3)
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(x).numpy()
    evidence = ingle.log_evidence(model, None, x, num_samples=2_000, per="row", proposal="ais", **DOUBLE)
    assert evidence.pointwise is not None
    assert np.all(np.abs(evidence.pointwise.log_z - exact) < 5 * evidence.pointwise.se)
    assert evidence.pointwise.se.max() < 0.1
    assert evidence.log_z == pytest.approx(exact.sum(), abs=5 * evidence.se)


@pytest.mark.long
def test_errors_are_of_the_size_that_they_say() -> None:
    """Over 40 seeds the squared errors in units of theirs average one: chi-squared bounds with 1e-4 on both sides.

    With 20 batches the error bar is itself off by a sixth, which widens the bounds as a t distribution does.
    """

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), torch.tensor([1.0, 3.0])).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 0.5), obs=y)

    y = torch.tensor(2.5, dtype=torch.float64)
    exact = float(dist.Normal(0.0, math.sqrt(10.25)).log_prob(y))
    scores = []
    for seed in range(40):
        evidence = ingle.log_evidence(model, None, y, num_samples=1_000, proposal="ais", seed=seed, **DOUBLE)
        scores.append((evidence.log_z - exact) / evidence.se)
    assert 0.4 < np.mean(np.square(scores)) < 2.3
    assert abs(np.mean(scores)) < 4 / math.sqrt(len(scores))


def test_same_seed_same_bits_whatever_the_chunk() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("z", dist.LogNormal(0.0, 1.0)), 0.3), obs=y)

    y = torch.tensor(1.5, dtype=torch.float64)
    options: dict[str, Any] = {"num_samples": 600, "proposal": "ais", **DOUBLE}
    first = ingle.log_evidence(model, None, y, **options)
    assert ingle.log_evidence(model, None, y, **options).log_z == first.log_z
    # The form of the posterior: a log normal prior, on the positive half line.
    grid = torch.linspace(1e-4, 12, 200_001, dtype=torch.float64)
    joint = dist.LogNormal(0.0, 1.0).log_prob(grid) + dist.Normal(grid, 0.3).log_prob(y)
    assert first.log_z == pytest.approx(float((joint.exp().sum() * (grid[1] - grid[0])).log()), abs=5 * first.se)


def test_starts_that_disagree_are_told() -> None:
    """Two starts, the weights of which have not met: unreliable, whatever their tails look like."""
    torch.manual_seed(0)
    one, two = 0.3 * torch.randn(1_000).double(), 2 + 0.3 * torch.randn(1_000).double()
    found = _together({"the guide": one, "the prior": two}, 2_000)
    assert found.apart > 4
    assert found.starts["the guide"][0] == pytest.approx(0.045, abs=0.1)
    assert found.starts["the prior"][0] == pytest.approx(2.045, abs=0.1)
    alike = _together({"the guide": one, "the prior": two - 2}, 2_000)
    assert alike.apart < 4
    assert float(alike.summary.log_z) == pytest.approx(0.045, abs=5 * float(alike.summary.se))
    assert 1_000 % _BATCHES == 0


def test_refuses_discrete_latents() -> None:
    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Poisson(3.0))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("k", dist.Poisson(2.0))

    with pytest.raises(ingle.OptionError, match="moves continuous latents, and 'k' is discrete"):
        ingle.log_evidence(model, guide, torch.tensor(1.0), proposal="ais")


def test_a_start_that_cannot_serve_is_told() -> None:
    """An improper prior cannot be drawn from, so that annealing starts from the guide alone."""

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.5, 2.0))

    y = torch.tensor(1.0, dtype=torch.float64)
    evidence = ingle.log_evidence(model, guide, y, num_samples=400, proposal="ais", **DOUBLE)
    assert set(evidence.starts) == {"the guide"}
    assert "AIS did not start from the prior: the prior of 'z' is improper" in repr(evidence)
    assert evidence.log_z == pytest.approx(0.0, abs=5 * evidence.se)  # the integral of the likelihood over z


@pytest.mark.parametrize("points", [1, 2, 39])
def test_refuses_fewer_points_than_batches(points: int) -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 1.0))

    with pytest.raises(ingle.OptionError, match="num_samples must be at least 40"):
        ingle.log_evidence(model, guide, torch.tensor(0.8), proposal="ais", num_samples=points)


def test_prior_of_latents_that_depend_on_one_that_is_summed_out() -> None:
    """The density that annealing starts from is theirs with the other summed out, without the data."""
    y = torch.tensor([1.5, -2.0, 0.3], dtype=torch.float64)

    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(4.0 * k - 2.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.5), obs=y)

    sd = 1.25**0.5
    one, two = math.log(0.7) + dist.Normal(-2.0, sd).log_prob(y), math.log(0.3) + dist.Normal(2.0, sd).log_prob(y)
    each = torch.logaddexp(one, two).numpy()
    found = ingle.log_evidence(model, None, y, proposal="ais", per="row", num_samples=400, **DOUBLE)
    assert found.pointwise is not None
    assert np.all(np.abs(found.pointwise.log_z - each) < 5 * found.pointwise.se + 1e-6)
    assert found.se < 0.3
