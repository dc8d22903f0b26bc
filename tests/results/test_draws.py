"""Draws: shapes as in one run, each run by itself, all noise independent."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.program.vectorise import repeat

GROUP = torch.tensor([0, 1, 2, 2, 1, 0])
Y = torch.linspace(-1.0, 1.0, 6)


def grouped(y: Tensor, group: Tensor) -> None:
    """Indexes the group's effects without `...`, as people do."""
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.3))
    with pyro.plate("group", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, scale))
    w = pyro.sample("w", dist.Dirichlet(torch.ones(4)))
    pyro.deterministic("largest", w.max())
    with pyro.plate("data", len(y)):
        mean = pyro.deterministic("mean", effect[group], event_dim=0)
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture
def fit(where: dict[str, Any]) -> ingle.Fit:
    return ingle.fit(grouped, "normal", {"y": Y, "group": GROUP}, steps=20, **where)


def test_shapes_are_those_of_one_run(fit: ingle.Fit) -> None:
    shapes = {name: tuple(value.shape[1:]) for name, value in fit.draws(7).items()}
    assert shapes == {"scale": (), "effect": (3,), "w": (4,), "largest": (), "mean": (6,)}
    assert all(len(value) == 7 for value in fit.draws(7).values())


def test_deterministic_sites_follow_from_the_latents_of_the_same_draw(fit: ingle.Fit) -> None:
    draws = fit.draws(50)
    assert torch.equal(draws["mean"], draws["effect"][:, GROUP])
    assert torch.equal(draws["largest"], draws["w"].max(-1).values)


def test_draws_are_repeatable_and_seeded(fit: ingle.Fit) -> None:
    first, again, other = fit.draws(5), fit.draws(5), fit.draws(5, seed=1)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_one_draw(fit: ingle.Fit) -> None:
    assert fit.draws(1)["effect"].shape == (1, 3)


def test_predictions_are_drawn_around_the_means(fit: ingle.Fit) -> None:
    """Residuals of 3,000 predictions at 6 points are standard normal: 5 standard errors, fails 1 in a million."""
    data = fit.to_arviz(3_000)
    residual = (data.posterior_predictive["y"] - data.posterior["mean"]).to_numpy()[0]
    assert residual.shape == (3_000, 6)
    assert abs(residual.mean()) < 5 / residual.size**0.5
    assert abs(residual.var() - 1) < 5 * (2 / residual.size) ** 0.5
    correlation = np.corrcoef(residual.T) - np.eye(6)
    assert np.abs(correlation).max() < 5 / 3_000**0.5


FAMILIES = {
    "Normal": dist.Normal(1.0, 2.0),
    "Uniform": dist.Uniform(-1.0, 3.0),
    "Exponential": dist.Exponential(2.0),
    "Laplace": dist.Laplace(0.0, 1.0),
    "Gamma": dist.Gamma(2.0, 3.0),
    "Beta": dist.Beta(2.0, 3.0),
    "Dirichlet": dist.Dirichlet(torch.tensor([1.0, 2.0, 3.0])),
    "LogNormal": dist.LogNormal(0.0, 0.3),
    "StudentT": dist.StudentT(8.0, 0.0, 1.0),
    "Gumbel": dist.Gumbel(0.0, 1.0),
    "Weibull": dist.Weibull(1.0, 2.0),
    "HalfNormal": dist.HalfNormal(1.0),
    "Poisson": dist.Poisson(3.0),
    "Bernoulli": dist.Bernoulli(0.3),
    "Binomial": dist.Binomial(5, torch.tensor(0.3)),
    "Geometric": dist.Geometric(torch.tensor(0.4)),
    "MultivariateNormal": dist.MultivariateNormal(torch.zeros(2), torch.tensor([[2.0, 0.5], [0.5, 1.0]])),
    "NegativeBinomial": dist.NegativeBinomial(5.0, torch.tensor(0.3)),
    "VonMises": dist.VonMises(0.0, 2.0),
}


@pytest.mark.parametrize("family", FAMILIES)
def test_noise_of_every_family_is_independent_and_right(family: str) -> None:
    """4,000 runs of 2 sites: mean and variance within 5 standard errors, all runs different, sites uncorrelated."""
    fn = FAMILIES[family]
    n = 4_000

    def run(_: Any) -> dict[str, Tensor]:
        return {name: pyro.sample(name, fn) for name in ("a", "b")}

    with torch.no_grad(), pyro.poutine.block():
        drawn = repeat(run, n, chunk=1_500)
    a, b = (drawn[name].double().reshape(n, -1) for name in ("a", "b"))
    mean = torch.as_tensor(fn.mean if family != "VonMises" else 0.0).double().reshape(-1)
    assert bool(((a.mean(0) - mean).abs() < 5 * a.std(0) / n**0.5).all())
    if family != "VonMises":
        variance = torch.as_tensor(fn.variance).double().reshape(-1)
        kurtosis = ((a - a.mean(0)) ** 4).mean(0) / a.var(0) ** 2
        assert bool(((a.var(0) - variance).abs() < 6 * variance * ((kurtosis + 1) / n).sqrt()).all())
    for column in range(a.shape[1]):
        assert abs(float(torch.corrcoef(torch.stack([a[:, column], b[:, column]]))[0, 1])) < 5 / n**0.5
        chain = a[:, column]
        assert abs(float(torch.corrcoef(torch.stack([chain[1:], chain[:-1]]))[0, 1])) < 5 / n**0.5
    if fn.support is not None and not fn.support.is_discrete:
        assert len(torch.unique(a[:, 0])) > n - 5


def test_program_that_reads_numbers_is_run_draw_by_draw() -> None:
    def run(_: Any) -> dict[str, Tensor]:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        return {"x": x, "sign": torch.tensor(1.0 if float(x) > 0 else -1.0)}

    with pyro.poutine.block():
        drawn = repeat(run, 40, chunk=40)
    assert torch.equal(drawn["sign"], drawn["x"].sign())


def test_noise_of_numpy_is_drawn_draw_by_draw() -> None:
    drawn = repeat(lambda _: {"x": torch.tensor(np.random.rand())}, 20, chunk=20)
    assert len(torch.unique(drawn["x"])) == 20


@pytest.mark.parametrize("concentration", [0.01, 0.3, 5.0])
def test_dirichlet_draws_have_the_shape_of_torchs_own(concentration: float) -> None:
    """Kolmogorov-Smirnov on 4,000 draws of the first share: rejected at 1.95/sqrt(n/2), once in a thousand."""
    fn = dist.Dirichlet(torch.full((3,), concentration))
    with torch.no_grad(), pyro.poutine.block():
        ours = repeat(lambda _: {"x": pyro.sample("x", fn)}, 4_000, chunk=4_000)["x"]
    assert torch.allclose(ours.sum(-1), torch.ones(4_000))
    ours, theirs = (shares.clamp(1e-6, 1 - 1e-5) for shares in (ours, fn.sample((4_000,))))  # rounding at both ends
    both = torch.cat([ours[:, 0], theirs[:, 0]]).sort().values
    gap = [(torch.searchsorted(share[:, 0].sort().values, both, right=True) / 4_000) for share in (ours, theirs)]
    assert float((gap[0] - gap[1]).abs().max()) < 1.95 / 2_000**0.5


class Net(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)

    def forward(self, y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z + self.norm(y[:, None])[:, 0], 1.0), obs=y)


def registered(norm: torch.nn.Module) -> Any:
    def model(y: Tensor) -> None:
        pyro.module("norm", norm)
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(z + norm(y[:, None])[:, 0], 1.0), obs=y)

    return model


@pytest.mark.parametrize("kind", ["module", "registered"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_running_statistics_count_the_steps_and_nothing_else(kind: str, dtype: torch.dtype) -> None:
    net = Net()
    fit = ingle.fit(net if kind == "module" else registered(net.norm), "normal", Y + 1, steps=3, dtype=dtype)
    assert int(net.norm.num_batches_tracked) == 3  # type: ignore[arg-type]
    assert float(net.norm.running_mean) == pytest.approx(1 - 0.9**3, rel=1e-5)  # type: ignore[arg-type]
    before = net.norm.running_mean.clone()  # type: ignore[union-attr,operator]
    fit.draws(10)
    fit.to_arviz(5)
    assert torch.equal(net.norm.running_mean, before)  # type: ignore[arg-type]
    assert net.norm.running_mean.dtype == dtype  # type: ignore[union-attr]


def test_weighted_draws_are_those_of_the_posterior() -> None:
    """A guide that is half a sd off and too wide: the mean of 20,000 resampled draws within five standard errors."""
    y = torch.tensor([0.4, 1.1, 0.2])

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.deterministic("double", 2 * mu)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.65)), 0.75))

    optim = functools.partial(torch.optim.SGD, lr=0.0)
    fit = ingle.fit(model, guide, y, steps=1, optim=optim, dtype=torch.float64)
    n = 20_000
    drawn = fit.draws(n, weighted=True)
    mean, sd = float(y.sum()) / 4, 0.5
    assert float(drawn["mu"].mean()) == pytest.approx(mean, abs=5 * sd * (2 / n) ** 0.5)
    assert float(drawn["mu"].std()) == pytest.approx(sd, rel=0.05)
    torch.testing.assert_close(drawn["double"], 2 * drawn["mu"])
    assert float(fit.draws(n)["mu"].mean()) == pytest.approx(0.65, abs=0.05)


def test_weighted_draws_of_a_point_mass_are_refused() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("y", dist.Normal(pyro.sample("mu", dist.Normal(0.0, 1.0)), 1.0), obs=y)

    fit = ingle.fit(model, "delta", torch.tensor(0.3), steps=2)
    with pytest.raises(ingle.OptionError, match="no importance weights: the guide is a point mass at mu"):
        fit.draws(100, weighted=True)
