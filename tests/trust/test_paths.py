"""Paths up the log joint: exact Gaussian posteriors, known curvatures, densities without a peak, refusals in words."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from support import eight_schools_data
from torch import Tensor
from trust.climbs import ill_conditioned, local, not_centred, posterior, prepared, regression, two_modes, with_parameter

from ingle.trust import Path, Refused, ascend
from ingle.trust.log_joint import LogJoint


@pytest.mark.parametrize("data", [not_centred, ill_conditioned])
def test_gaussian_posterior_is_met(data: Callable[[], tuple[Tensor, Tensor]], where: dict[str, Any]) -> None:
    """In units of the posterior's own sds, whatever its condition."""
    x, y = data()
    if where["dtype"] is torch.float32:  # what a fit in single precision sees
        x, y = x.float().double(), y.float().double()
    mean, root = posterior(x, y)
    with prepared(regression, "multivariate_normal", {"x": x, "y": y}, where) as (program, runtime):
        path = ascend(program, runtime, 4)[0]
    assert path.kind == "Laplace"
    assert float((root @ (path.loc.cpu() - mean)).abs().max()) < 1e-6
    ours = root @ path.factor.cpu()
    assert torch.allclose(ours @ ours.mT, torch.eye(len(mean), dtype=torch.float64), atol=1e-6)
    assert path.evaluations < 100


def test_elbo_of_an_exact_posterior_is_the_evidence(where: dict[str, Any]) -> None:
    x, y = not_centred()
    x = torch.stack([x[:, 0], x[:, 1] - 2010], -1)  # so that the matrix below can be decomposed
    if where["dtype"] is torch.float32:
        x, y = x.float().double(), y.float().double()
    covariance = 100.0**2 * x @ x.mT + 0.25 * torch.eye(len(y), dtype=torch.float64)
    log_z = float(dist.MultivariateNormal(torch.zeros_like(y), covariance).log_prob(y))
    with prepared(regression, "multivariate_normal", {"x": x, "y": y}, where) as (program, runtime):
        path = ascend(program, runtime, 2)[0]
    assert path.elbo == pytest.approx(log_z, abs=1e-5)  # whatever is drawn, since the weights are constant
    assert path.se < 1e-5


def logistic(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 2.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights), obs=y)


def test_laplace_of_a_logistic_regression(where: dict[str, Any]) -> None:
    """Beside Newton's method written out."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(200, 3, dtype=torch.float64, generator=generator) * torch.tensor([1.0, 10.0, 0.1])
    y = (torch.rand(200, generator=generator) < torch.sigmoid(x @ torch.tensor([1.0, 0.1, 5.0]).double())).double()
    x = x.to(where["dtype"]).double()
    weights = torch.zeros(3, dtype=torch.float64)
    for _ in range(50):
        p = torch.sigmoid(x @ weights)
        hessian = (x.mT * (p * (1 - p))) @ x + torch.eye(3).double() / 4
        weights = weights + torch.linalg.solve(hessian, x.mT @ (y - p) - weights / 4)
    for guide in ("laplace", "delta"):
        with prepared(logistic, guide, {"x": x, "y": y}, where) as (program, runtime):
            path = ascend(program, runtime, 4)[0]
        assert torch.allclose(path.mode.cpu(), weights, atol=1e-6)
    with prepared(logistic, "multivariate_normal", {"x": x, "y": y}, where) as (program, runtime):
        paths = ascend(program, runtime, 4)
    assert paths[0].elbo >= max(path.elbo for path in paths)
    root = torch.linalg.cholesky(hessian).mT
    assert float((root @ (paths[0].loc.cpu() - weights)).abs().max()) < 0.3  # skew moves the best Gaussian a little


def centred(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, sigma), obs=y)


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_a_density_without_a_peak_is_left_in_time(guide: str, where: dict[str, Any]) -> None:
    """At tau = 0 the density is infinite, and a Gaussian there is worth nothing."""
    with prepared(centred, guide, eight_schools_data(), where) as (program, runtime):
        path = ascend(program, runtime, 4)[0]
        density = path._density
        assert float(density.value(path.mode.unsqueeze(0))) > float(density.value(path.loc.unsqueeze(0)))
        tau = path.draws(4_000)["tau"]
    assert path.elbo > -38.0  # the best of this family has about -34; the spike's have less than -100
    assert 0.5 < float(tau.median()) < 10.0


def mixture(y: Tensor) -> None:
    share = pyro.sample("share", dist.Beta(2.0, 3.0))
    means = pyro.sample("means", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(share)).long()
        pyro.sample("y", dist.Normal(means[k], 1.0), obs=y)


def test_log_joint_sums_out_and_follows_bounds(where: dict[str, Any]) -> None:
    """Of a mixture, written out; gradient and Hessian beside automatic ones of that."""
    y = torch.tensor([-2.0, -1.5, 2.5, 3.0, 0.1])

    def by_hand(point: Tensor) -> Tensor:
        share, means = torch.sigmoid(point[0]), point[1:]
        data = y.double()
        each = [dist.Normal(mean, 1.0).log_prob(data) for mean in means]
        likelihood = torch.logaddexp((1 - share).log() + each[0], share.log() + each[1]).sum()
        prior = dist.Beta(2.0, 3.0).log_prob(share) + dist.Normal(0.0, 3.0).log_prob(means).sum()
        return likelihood + prior + share.log() + (1 - share).log()

    points = torch.tensor([[0.3, -1.0, 2.0], [-2.0, 0.5, 0.0]], dtype=torch.float64)
    expected = torch.stack([by_hand(point) for point in points])
    with prepared(mixture, "normal", y, where) as (program, runtime):
        density = LogJoint(program, runtime)
        there = points.to(runtime.device)
        value, gradient = density.with_gradient(there)
        hessian = density.hessian(there).cpu()
        assert density.alone is None
        values = density.values(there)
    assert torch.allclose(value.cpu(), expected, atol=1e-9)
    for place, point in enumerate(points):
        assert torch.allclose(gradient[place].cpu(), torch.autograd.functional.jacobian(by_hand, point), atol=1e-9)
        assert torch.allclose(hessian[place], torch.autograd.functional.hessian(by_hand, point), atol=1e-8)
    assert torch.allclose(values["share"].double().cpu(), points[:, 0].sigmoid(), atol=1e-6)
    assert values["share"].dtype == where["dtype"]


def bounded(n: Tensor) -> None:
    pyro.sample("rate", dist.Gamma(3.0, 2.0))
    pyro.sample("place", dist.Uniform(-1.0, 4.0))
    pyro.sample("shares", dist.Dirichlet(torch.tensor([2.0, 3.0, 4.0])))
    pyro.sample("n", dist.Normal(0.0, 1.0), obs=n)


def test_density_of_bounded_latents_integrates(where: dict[str, Any]) -> None:
    """The ELBO of no family is above the evidence, and a path's Gaussian comes near."""
    n = torch.tensor(0.3)
    log_z = float(dist.Normal(0.0, 1.0).log_prob(n))
    with prepared(bounded, "multivariate_normal", {"n": n}, where) as (program, runtime):
        path = ascend(program, runtime, 4)[0]
        drawn = path.draws(2_000)
    assert log_z - 0.3 < path.elbo < log_z + 4 * path.se
    assert drawn["shares"].shape == (2_000, 3)
    assert bool(((drawn["place"] > -1) & (drawn["place"] < 4) & (drawn["rate"] > 0)).all())
    assert float(drawn["rate"].mean()) == pytest.approx(1.5, abs=0.2)


def test_overdispersed_paths_find_both_modes(where: dict[str, Any]) -> None:
    y = torch.full((20,), 6.0)
    with prepared(two_modes, "normal", y, where) as (program, runtime):
        paths = ascend(program, runtime, 8, overdispersed=True)
    ends = sorted(round(float(path.loc)) for path in paths)
    assert len(paths) == 16  # cheap ones twice
    assert set(ends) == {-6, 6}
    assert {round(path.elbo, 2) for path in paths} == {round(paths[0].elbo, 2)}


def test_same_seed_same_paths_and_nothing_is_moved(where: dict[str, Any]) -> None:
    found: list[Path] = []
    for seed in (0, 0, 1):
        with prepared(mixture, "normal", torch.tensor([-2.0, 2.5, 3.0]), where, seed=seed) as (program, runtime):
            before = torch.get_rng_state().clone()
            leaves = set(pyro.get_param_store())
            found.append(ascend(program, runtime, 3)[0])
            assert torch.equal(torch.get_rng_state(), before)
            assert set(pyro.get_param_store()) == leaves
            assert torch.get_default_dtype() == where["dtype"]
    assert torch.equal(found[0].loc, found[1].loc)
    assert found[0].elbo == found[1].elbo
    assert torch.equal(found[0].factor, found[1].factor)
    assert found[2].elbo != found[0].elbo


def own_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y), subsample_size=2) as rows:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])


def never(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0).expand([3]).to_event(1), obs=y)
    pyro.factor("impossible", torch.where(mu < math.inf, -math.inf, 0.0))


def large(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([2_001]).to_event(1))
    pyro.sample("y", dist.Normal(0.0, 1.0).expand([3]).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "batch_size", "told"),
    [
        (with_parameter, None, "the model has parameters of its own, such as 'sd'"),
        (local, {"data": 2}, "latents inside plate 'data', which is drawn in minibatches"),
        (own_rows, None, "draws its rows by itself"),
        (never, None, "not finite at any draw of the prior"),
        (large, None, "2,001 numbers to find, more than 2,000"),
    ],
)
def test_refusals_say_why(model: Any, batch_size: Any, told: str, where: dict[str, Any]) -> None:
    y = torch.tensor([0.3, 0.5, -1.0])
    with (
        prepared(model, "normal", y, where, batch_size=batch_size) as (program, runtime),
        pytest.raises(Refused, match=told),
    ):
        ascend(program, runtime, 2)


def test_minibatched_data_are_seen_whole(where: dict[str, Any]) -> None:
    """Of a model that takes a few rows at a time, all of them tell where to start."""
    y = torch.linspace(-1.0, 3.0, 50)

    def mean(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)) as rows:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[rows])

    with prepared(mean, "normal", y, where, batch_size={"data": 5}) as (program, runtime):
        path = ascend(program, runtime, 2)[0]
    precision = 50 + 0.01
    assert float(path.loc) == pytest.approx(50.0 / precision, abs=1e-5)
    assert float(path.scale) == pytest.approx(precision**-0.5, rel=1e-5)
