"""Guides that move in units of a curvature are Pyro's own, with other parameters."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor

import ingle
from ingle.program.affine import autoregressive_flow
from ingle.program.whitened import WHITENED, Whitening, new_whitening

FACTOR = torch.tensor([[2.0, 0.0, 0.0], [-1.0, 0.5, 0.0], [0.3, 0.2, 0.1]], dtype=torch.float64)
CENTRE = torch.tensor([80.0, 0.5, -1.0], dtype=torch.float64)
SCALE = torch.tensor([1.5, 0.3, 0.05], dtype=torch.float64)


def model() -> None:
    pyro.sample("a", dist.Normal(0.0, 100.0))
    with pyro.plate("two", 2):
        pyro.sample("sub.b", dist.Gamma(2.0, 2.0))


@pytest.fixture(autouse=True)
def _in_double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)
    pyro.clear_param_store()


def whitening(*, dense: bool = True) -> Whitening:
    return Whitening(CENTRE, FACTOR if dense else FACTOR.square().sum(-1).sqrt(), SCALE)


def made(parent: type, *, dense: bool = True, **options: Any) -> Any:
    guide = WHITENED[parent](model, whitening=whitening(dense=dense), **options)
    guide()
    return guide


def moved(guide: Any) -> None:
    """Give parameters values at which nothing is zero or one."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in guide.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def log_q(guide: Any) -> tuple[Tensor, dict[str, Tensor]]:
    trace = pyro.poutine.trace(guide).get_trace()
    values = {name: trace.nodes[name]["value"] for name in ("a", "sub.b")}
    total: Tensor = trace.log_prob_sum()
    return total, values


def unconstrained(values: dict[str, Tensor]) -> Tensor:
    return torch.cat([values["a"].reshape(1), values["sub.b"].log()])


def test_normal_is_one_of_pyros() -> None:
    guide = made(autoguide.AutoNormal)
    assert {name for name, _ in guide.named_pyro_params()} == {"shift", "stretch"}
    assert torch.allclose(guide.median()["a"], CENTRE[0])
    assert torch.allclose(guide.median()["sub.b"], CENTRE[1:].exp())
    moved(guide)
    loc = CENTRE + FACTOR @ guide.shift
    scale = SCALE * guide.stretch
    assert torch.allclose(guide.locs.a, loc[0])
    assert torch.allclose(guide.locs.sub.b, loc[1:])
    assert torch.allclose(guide.scales.sub.b, scale[1:])
    total, values = log_q(guide)
    point = unconstrained(values)
    expected = dist.Normal(loc, scale).log_prob(point).sum() - point[1:].sum()
    assert torch.allclose(total, expected)
    low, high = guide.quantiles([0.1, 0.9])["sub.b"]
    assert torch.allclose(low, (loc[1:] - 1.2815515655 * scale[1:]).exp())
    assert bool((high > low).all())


@pytest.mark.parametrize("dense", [True, False])
def test_multivariate_normal_is_one_of_pyros(dense: bool) -> None:
    guide = made(autoguide.AutoMultivariateNormal, dense=dense)
    factor = FACTOR if dense else torch.diag(FACTOR.square().sum(-1).sqrt())
    assert torch.allclose(guide.get_posterior().covariance_matrix, factor @ factor.mT)
    moved(guide)
    inner = guide.shear.tril(-1) / 3**0.5 + torch.diag(guide.stretch)
    loc, tril = CENTRE + factor @ guide.shift, factor @ inner
    gaussian = guide.get_posterior()
    assert torch.allclose(gaussian.loc, loc)
    assert torch.allclose(gaussian.scale_tril, tril)
    total, values = log_q(guide)
    point = unconstrained(values)
    assert torch.allclose(total, gaussian.log_prob(point) - point[1:].sum())
    transform = guide.get_transform()
    noise = torch.tensor([0.3, -1.0, 2.0])
    assert torch.allclose(transform(noise), loc + tril @ noise)
    assert torch.allclose(transform.inv(loc + tril @ noise.clone()), noise)
    assert torch.allclose(transform.log_abs_det_jacobian(noise, noise), tril.diagonal().log().sum())
    sd = (tril @ tril.mT).diagonal().sqrt()
    assert torch.allclose(guide.quantiles([0.9])["sub.b"][0], (loc[1:] + 1.2815515655 * sd[1:]).exp())


def test_gradients_are_those_of_the_density_written_out() -> None:
    """The density of a draw is found from the noise that made it, with no system solved; so is its gradient."""
    guide = made(autoguide.AutoMultivariateNormal)
    moved(guide)
    leaves = [guide.shift, guide.stretch_unconstrained, guide.shear]
    found = []
    for written_out in (False, True):
        torch.manual_seed(4)
        total, values = log_q(guide)
        if written_out:
            point = unconstrained(values)
            total = guide.get_posterior().log_prob(point) - point[1:].sum()
        found.append(torch.autograd.grad(total, leaves, allow_unused=True, materialize_grads=True))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-8)


def test_low_rank_starts_near_the_covariance() -> None:
    own, loading = torch.tensor([0.5, 1.0, 0.1]), torch.tensor([[1.0, 0.3], [-0.5, 2.0], [0.2, 0.1]])
    covariance = loading @ loading.mT + torch.diag(own)
    scale = covariance.inverse().diagonal().rsqrt()
    start = Whitening(CENTRE, torch.linalg.cholesky(covariance), scale)
    guide = WHITENED[autoguide.AutoLowRankMultivariateNormal](model, whitening=start, rank=2)
    guide()
    ours = guide.get_posterior()
    assert torch.allclose(ours.loc, CENTRE)
    best = dist.MultivariateNormal(CENTRE, covariance)
    apart = torch.distributions.kl_divergence(dist.MultivariateNormal(CENTRE, ours.covariance_matrix.detach()), best)
    assert float(apart) < 0.3
    mean_field = torch.distributions.kl_divergence(dist.MultivariateNormal(CENTRE, torch.diag(scale.square())), best)
    assert float(apart) < float(mean_field)


def test_low_rank_can_leave_a_diagonal() -> None:
    """At a factor of zero it would have no gradient."""
    guide = made(autoguide.AutoLowRankMultivariateNormal, dense=False)
    assert float(guide.cov_factor.detach().abs().min()) > 0


def test_laplace_finds_the_curvature_in_its_own_units() -> None:
    def gaussian() -> None:
        pyro.sample("x", dist.MultivariateNormal(CENTRE, scale_tril=FACTOR))

    guide = WHITENED[autoguide.AutoLaplaceApproximation](gaussian, whitening=whitening(dense=False))
    guide()
    made_of_it = guide.laplace_approximation()
    assert type(made_of_it) is autoguide.AutoMultivariateNormal
    assert torch.allclose(made_of_it.get_posterior().covariance_matrix, FACTOR @ FACTOR.mT)
    assert torch.allclose(made_of_it.get_posterior().loc, CENTRE)


def test_delta_is_a_point() -> None:
    guide = made(autoguide.AutoDelta)
    assert torch.allclose(guide.median()["sub.b"], CENTRE[1:].exp())
    assert float(log_q(guide)[0]) == 0.0


@pytest.mark.parametrize("size", [2, 5])
def test_flow_is_first_the_identity(size: int) -> None:
    flow = autoregressive_flow(size)
    x = torch.randn(7, size)
    y = flow(x)
    assert torch.allclose(y.flip(-1), x)
    assert torch.allclose(flow.log_abs_det_jacobian(x, y), torch.zeros(7))
    loss = (flow(x) - 3).square().sum() + flow.log_abs_det_jacobian(x, flow(x)).sum()
    loss.backward()
    assert all(bool(part.grad.isfinite().all()) for part in flow.parameters() if part.grad is not None)
    assert any(bool((part.grad != 0).any()) for part in flow.parameters() if part.grad is not None)


def test_flow_ends_with_the_whitening() -> None:
    guide = WHITENED[autoguide.AutoNormalizingFlow](model, whitening=whitening(), init_transform_fn=autoregressive_flow)
    guide()
    drawn = guide.get_transform()(torch.randn(4_000, 3))
    away = torch.linalg.solve_triangular(FACTOR, (drawn - CENTRE).mT, upper=False)
    assert torch.allclose(away.mean(-1), torch.zeros(3), atol=0.08)
    assert torch.allclose(away.cov(), torch.eye(3), atol=0.12)  # five standard errors


def test_curvature_of_another_size_is_refused() -> None:
    guide = WHITENED[autoguide.AutoNormal](model, whitening=new_whitening(4, dense=True))
    with pytest.raises(ValueError, match="the guide has 3 numbers, and the curvature is of 4"):
        guide()


def eight(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + eta, sigma), obs=y)


@pytest.mark.long
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "delta"])
def test_step_is_one_loop(guide: str) -> None:
    """No call of a matrix kernel in a step."""
    data = {"sigma": torch.tensor([15.0, 10.0, 16.0]), "y": torch.tensor([28.0, 8.0, -3.0])}
    fit: Any = ingle.fit(eight, guide, data, steps=600, compile="full")
    assert fit.engine == "compiled"
    assert [compiled.graph.how for compiled in fit._training.engine._graphs.values()] == ["loop"]
