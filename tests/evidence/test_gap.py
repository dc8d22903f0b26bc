"""`elbo_gap` against divergences in closed form: conjugate normals and the linear autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

import ingle
from ingle import ElboGap, Fit, OptionError

ROWS, NOISE = 12, 0.5


def untrained(model: Any, guide: Any, data: Any, **options: Any) -> Fit:
    """A fit whose parameters are where they begin, so that they are known."""
    return ingle.fit(
        model, guide, data, steps=1, dtype=options.pop("dtype", torch.float64), optim=_still, compile="off", **options
    )


def _still(leaves: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(leaves, lr=0.0)


# One mean of ten data, all known.

Y = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64)
POSTERIOR = dist.Normal(Y.sum() / 11, torch.tensor(11.0, dtype=torch.float64) ** -0.5)


def mean(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mean_guide(shift: float, width: float) -> Callable[[Tensor], None]:
    """Beside the posterior by this many of its standard deviations, and wider by this factor."""

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", POSTERIOR.loc + shift * POSTERIOR.scale)
        pyro.sample("mu", dist.Normal(loc, pyro.param("scale", width * POSTERIOR.scale)))

    return guide


def mean_log_z() -> float:
    covariance = torch.eye(10, dtype=torch.float64) + 1
    return float(MultivariateNormal(torch.zeros(10, dtype=torch.float64), covariance).log_prob(Y))


# The linear autoencoder with rows of data x = W z + noise.


class Linear:
    """Its posterior and evidence for each row, exactly."""

    def __init__(self, weight: Tensor, seed: int = 0, rows: int = ROWS) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.weight = weight.double()
        width, codes = weight.shape
        noise = {"generator": generator, "dtype": torch.float64}
        z = torch.randn(rows, codes, **noise)
        self.x = z @ self.weight.T + NOISE * torch.randn(rows, width, **noise)
        precision = torch.eye(codes, dtype=torch.float64) + self.weight.T @ self.weight / NOISE**2
        self.covariance = torch.linalg.inv(precision)
        self.mean = self.x @ self.weight @ self.covariance / NOISE**2
        self.best_scale = precision.diag() ** -0.5  # of a diagonal guide
        marginal = self.weight @ self.weight.T + NOISE**2 * torch.eye(width, dtype=torch.float64)
        self.log_z = MultivariateNormal(torch.zeros(width, dtype=torch.float64), marginal).log_prob(self.x)

    def __call__(self, x: Tensor) -> None:
        weight = self.weight.to(x)
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(weight.shape[1]), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, NOISE).to_event(1), obs=x[i])

    def kl(self, loc: Tensor, scale: Tensor) -> Tensor:
        """Of a diagonal guide from the posterior, row by row."""
        posterior = MultivariateNormal(self.mean, self.covariance)
        return kl_divergence(MultivariateNormal(loc, torch.diag_embed(scale**2)), posterior)


TILTED = Linear(torch.tensor([[1.0, 0.6], [0.0, 0.8], [-0.5, 0.3]]))
UPRIGHT = Linear(torch.tensor([[1.2, 0.0], [0.0, 0.7], [0.0, 0.0]]))
START = (torch.tensor([0.3, -0.2], dtype=torch.float64), torch.tensor([0.5, 0.8], dtype=torch.float64))


def constant(x: Tensor) -> None:
    """An encoder that does not look at the data."""
    loc = pyro.param("loc", START[0])
    scale = pyro.param("scale", START[1], constraint=constraints.positive)
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(loc.expand(len(x), 2), scale).to_event(1))


def close(estimate: Any, exact: Any, se: Any) -> bool:
    """Within 4.5 standard errors, which one of 150,000 is not, and rounding."""
    apart = np.abs(np.asarray(estimate) - np.asarray(exact))
    return bool((apart <= 4.5 * np.asarray(se) + 1e-6).all())


def test_gap_is_the_divergence() -> None:
    for shift, width in ((0.0, 1.5), (1.0, 1.2), (0.5, 1.0)):
        guide = mean_guide(shift, width)
        gap = untrained(mean, guide, Y).elbo_gap(20_000)
        exact = float(
            kl_divergence(dist.Normal(POSTERIOR.loc + shift * POSTERIOR.scale, width * POSTERIOR.scale), POSTERIOR)
        )
        assert close(gap.gap, exact, gap.gap_se)
        assert close(gap.log_z, mean_log_z(), gap.log_z_se)
        assert close(gap.elbo, mean_log_z() - exact, gap.elbo_se)
        assert gap.gap == gap.log_z - gap.elbo
        assert 0 < gap.gap_se < 0.02
        assert gap.per is None
        assert gap.pointwise is None
        assert gap.unsplit == "no plate holds all latents, row by row"
        assert math.isnan(gap.amortisation)


def test_the_posterior_leaves_nothing() -> None:
    gap = untrained(mean, mean_guide(0.0, 1.0), Y).elbo_gap(1_000)
    assert gap.log_z == pytest.approx(mean_log_z(), abs=1e-9)
    assert abs(gap.gap) < 1e-9
    assert gap.verdict == "exact"
    assert gap.unsplit == "there is nothing to split"
    assert "The guide is the posterior: nothing is left." in repr(gap)


def test_error_of_the_gap_is_calibrated() -> None:
    """Over 150 seeds the mean square of a standard normal lies within 4.5 of its standard deviations, 0.115, of one."""
    fit = untrained(mean, mean_guide(0.3, 1.3), Y)
    exact = float(kl_divergence(dist.Normal(POSTERIOR.loc + 0.3 * POSTERIOR.scale, 1.3 * POSTERIOR.scale), POSTERIOR))
    scores = []
    for seed in range(150):
        gap = fit.elbo_gap(1_000, seed=seed)
        scores.append((gap.gap - exact) / gap.gap_se)
    assert np.mean(np.square(scores)) == pytest.approx(1.0, abs=4.5 * math.sqrt(2 / 150))


def test_a_diagonal_posterior_has_no_approximation_gap() -> None:
    gap = untrained(UPRIGHT, constant, UPRIGHT.x).elbo_gap(4_000)
    exact = UPRIGHT.kl(START[0].expand(ROWS, 2), START[1])
    assert gap.per == "data"
    assert gap.unsplit == ""
    assert abs(gap.approximation) < 1e-5
    assert close(gap.amortisation, float(exact.sum()), gap.amortisation_se)
    assert gap.log_z == pytest.approx(float(UPRIGHT.log_z.sum()), abs=1e-5)  # by the refined guide, which is exact
    assert gap.pointwise is not None
    assert close(gap.pointwise.amortisation, exact, gap.pointwise.amortisation_se)
    assert close(gap.pointwise.gap, exact, gap.pointwise.gap_se)
    assert "100% of it is the encoder's and 0% the family's" in gap.sentence


def test_a_tilted_posterior_splits_in_both() -> None:
    gap = untrained(TILTED, constant, TILTED.x).elbo_gap(20_000)
    best = TILTED.kl(TILTED.mean, TILTED.best_scale)
    whole = TILTED.kl(START[0].expand(ROWS, 2), START[1])
    # Adam comes to rest within 0.1% of the least divergence, or 0.003 nats in all.
    assert abs(gap.approximation - float(best.sum())) < 4.5 * gap.approximation_se + 0.003
    assert 0 < gap.approximation_se < 0.02
    assert abs(gap.amortisation - float((whole - best).sum())) < 4.5 * gap.amortisation_se + 0.003
    assert gap.approximation + gap.amortisation == pytest.approx(gap.gap, rel=1e-12)
    points = gap.pointwise
    assert points is not None
    assert close(points.log_z, TILTED.log_z, points.log_z_se)
    assert close(points.approximation, best, points.approximation_se + 1e-4)
    for name in ("log_z", "elbo", "gap", "refined_elbo", "approximation", "amortisation"):
        assert getattr(points, name).sum() == pytest.approx(getattr(gap, name), rel=1e-9)
        errors = getattr(points, f"{name}_se")
        assert math.sqrt((errors**2).sum()) == pytest.approx(getattr(gap, f"{name}_se"), rel=1e-9)
    assert gap.refined is not None
    assert gap.refined.proposal == "the refined guide"
    assert gap.log_z == gap.refined.log_z


def test_a_good_encoder_leaves_the_family() -> None:
    slope = TILTED.weight @ TILTED.covariance / NOISE**2

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", TILTED.best_scale, constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ pyro.param("slope", slope), scale).to_event(1))

    gap = untrained(TILTED, guide, TILTED.x).elbo_gap(20_000)
    best = float(TILTED.kl(TILTED.mean, TILTED.best_scale).sum())
    assert close(gap.gap, best, gap.gap_se)
    assert abs(gap.amortisation) < 4.5 * gap.amortisation_se + 0.003
    assert "the family's: a richer family" in gap.sentence


def test_what_nothing_trains_is_of_the_family() -> None:
    """The scale of this guide is 1 for good, so that the best of the family has it too."""

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", START[0]).expand(len(x), 2), 1.0).to_event(1))

    gap = untrained(TILTED, guide, TILTED.x).elbo_gap(20_000)
    best = float(TILTED.kl(TILTED.mean, torch.ones(2, dtype=torch.float64)).sum())
    assert abs(gap.approximation - best) < 4.5 * gap.approximation_se + 0.003


def test_full_covariance() -> None:
    def guide(x: Tensor) -> None:
        tril = pyro.param("tril", torch.diag(START[1]), constraint=constraints.lower_cholesky)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(pyro.param("loc", START[0]).expand(len(x), 2), scale_tril=tril))

    gap = untrained(TILTED, guide, TILTED.x).elbo_gap(2_000)
    assert abs(gap.approximation) < 1e-4
    assert close(gap.amortisation, float(TILTED.kl(START[0].expand(ROWS, 2), START[1]).sum()), gap.amortisation_se)


def test_positive_latents() -> None:
    """A rate for each count: the posterior is a gamma distribution."""
    counts = torch.tensor([0.0, 1.0, 2.0, 5.0, 9.0], dtype=torch.float64)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Poisson(pyro.sample("rate", dist.Gamma(2.0, 1.0))), obs=y)

    def gamma(y: Tensor) -> None:
        shape, rate = (pyro.param(name, torch.tensor(3.0), constraint=constraints.positive) for name in ("a", "b"))
        with pyro.plate("data", len(y)):
            pyro.sample("rate", dist.Gamma(shape, rate).expand([len(y)]))

    def log_normal(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.7), constraint=constraints.positive)
        with pyro.plate("data", len(y)):
            pyro.sample("rate", dist.LogNormal(torch.log1p(y) * pyro.param("slope", torch.tensor(0.5)), scale))

    posterior = torch.distributions.Gamma(2.0 + counts, torch.tensor(2.0, dtype=torch.float64))
    exact = float(kl_divergence(torch.distributions.Gamma(torch.tensor(3.0).double(), 3.0), posterior).sum())
    gap = untrained(model, gamma, counts).elbo_gap(4_000)
    assert abs(gap.approximation) < 4.5 * gap.approximation_se + 1e-3
    assert close(gap.amortisation, exact, gap.amortisation_se + 1e-3)
    other = untrained(model, log_normal, counts).elbo_gap(20_000)
    assert close(other.log_z, gap.log_z, other.log_z_se + gap.log_z_se)
    assert 4 * other.approximation_se < other.approximation < other.gap


def test_nothing_moves() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

    def guide(x: Tensor) -> None:
        pyro.module("net", net)
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(net(x[i]), 0.7).to_event(1))

    fit = ingle.fit(TILTED, guide, TILTED.x.float(), steps=3)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    params = fit.params
    pyro.set_rng_seed(3)
    expected = torch.rand(1)
    pyro.set_rng_seed(3)
    first = fit.elbo_gap(500, refine=20)
    assert first.unsplit == ""
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert all(parameter.grad is None for parameter in net.parameters())
    assert all(torch.equal(value, params[name]) for name, value in fit.params.items())
    assert net.training
    again, other = fit.elbo_gap(500, refine=20), fit.elbo_gap(500, refine=20, seed=5)
    assert (again.gap, again.amortisation) == (first.gap, first.amortisation)
    assert other.gap != first.gap
    assert ingle.elbo_gap(fit, 500, refine=20).gap == first.gap


def test_minibatches_and_masks() -> None:
    """All rows are refined after a fit in minibatches, and what is hidden has no part in it."""
    hidden = torch.arange(ROWS) % 3 > 0

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)) as i, pyro.poutine.mask(mask=hidden[i]):
            tilted_rows(x[i])

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", START[1], constraint=constraints.positive)
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", dist.Normal(pyro.param("loc", START[0]).expand(len(i), 2), scale).to_event(1))

    fit = untrained(model, guide, TILTED.x, batch_size={"data": 4})
    gap = fit.elbo_gap(4_000)
    whole = TILTED.kl(START[0].expand(ROWS, 2), START[1])
    best = TILTED.kl(TILTED.mean, TILTED.best_scale)
    points = gap.pointwise
    assert points is not None
    shown = np.flatnonzero(hidden.numpy())
    assert close(points.gap[shown], whole[shown], points.gap_se[shown])
    assert close(points.approximation[shown], best[shown], points.approximation_se[shown] + 1e-4)
    assert np.abs(points.gap[np.flatnonzero(~hidden.numpy())]).max() == 0.0


def tilted_rows(x: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    pyro.sample("x", dist.Normal(z @ TILTED.weight.T, NOISE).to_event(1), obs=x)


def test_guides_that_are_not_split_say_why() -> None:
    def deep(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            top = pyro.sample("top", dist.Normal(0.0, 1.0))
            low = pyro.sample("low", dist.Normal(top, 1.0))
            pyro.sample("x", dist.Normal(low, 1.0), obs=x[:, 0])

    def chained(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            low = pyro.sample("low", dist.Normal(pyro.param("a", torch.tensor(0.5)) * x[:, 0], 1.0))
            pyro.sample("top", dist.Normal(pyro.param("b", torch.tensor(0.5)) * low, 1.0))

    def each(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("locs", torch.zeros(len(x), 2)), 1.0).to_event(1))

    def fixed(x: Tensor) -> None:
        pyro.param("unused", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :2], 1.0).to_event(1))

    def stretched(x: Tensor) -> None:
        loc = pyro.param("loc", START[0])
        with pyro.plate("data", len(x)):
            base = dist.Normal(loc.expand(len(x), 2), 1.0).to_event(1)
            stretch = dist.transforms.AffineTransform(0.0, 0.5, event_dim=1)
            pyro.sample("z", dist.TransformedDistribution(base, [stretch]))

    def reasons(model: Any, guide: Any, **options: Any) -> str:
        gap = untrained(model, guide, TILTED.x).elbo_gap(200, **options)
        assert math.isnan(gap.approximation)
        assert gap.refined is None
        assert gap.steps == 0
        assert gap.per == "data"
        assert f"  not split   {gap.unsplit}" in repr(gap)
        return gap.unsplit

    assert reasons(deep, chained) == "the guide's distribution of top depends on its draw of low"
    assert "the guide of z is not amortised over plate 'data': it keeps parameters for each row" in reasons(
        TILTED, each
    )
    assert "the guide of z is not amortised" in reasons(TILTED, "normal")
    assert reasons(TILTED, fixed) == "the guide's Normal of z has no parameter that was trained"
    assert "TransformedDistribution of z" in reasons(TILTED, stretched)
    assert reasons(TILTED, constant, refine=0) == "refine=0"


def test_discrete_latents() -> None:
    """Those that the guide draws have no pathwise gradient; those that are summed out do no harm."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z + 3 * k, 1.0), obs=x)

    def both(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2)) * x))
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(0.2)) * x, 0.8))

    def one(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("slope", torch.tensor(-0.2)) * x, scale))

    x = torch.tensor([-1.0, 0.5, 2.0, 4.0], dtype=torch.float64)
    drawn = untrained(model, both, x).elbo_gap(500)
    assert drawn.unsplit == "the guide's Bernoulli of k has no pathwise gradient"
    gap = untrained(model, one, x).elbo_gap(20_000)
    scale = math.sqrt(2.0)
    exact = torch.logaddexp(
        dist.Normal(0.0, scale).log_prob(x) + math.log(0.6), dist.Normal(3.0, scale).log_prob(x) + math.log(0.4)
    )
    assert gap.pointwise is not None
    assert close(gap.pointwise.log_z, exact, gap.pointwise.log_z_se)
    assert gap.amortisation > 10 * gap.amortisation_se
    assert gap.approximation > 0


def test_unreliable_evidence_is_told() -> None:
    gap = untrained(mean, mean_guide(6.0, 0.3), Y).elbo_gap(1_000)
    assert gap.verdict == "unreliable"
    assert "nats or more: log Z is unreliable, and where its draws miss something it comes out too low" in gap.sentence


def test_draws_outside_of_the_support_are_told() -> None:
    """The model's interval holds what the guide draws at first, and not what it draws later."""

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Uniform(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 0.1), obs=x)

    def guide(x: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.02), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.5)).expand(len(x)), scale))

    x = torch.tensor([0.4, 0.99], dtype=torch.float64)
    gap = untrained(model, guide, x).elbo_gap(1_000)
    assert gap.unsplit == "some draws of the refined guide have no weight, so that its ELBO is not finite"
    assert gap.refined is None
    assert math.isnan(gap.amortisation)
    assert math.isfinite(gap.gap)


def test_too_few_steps_are_told() -> None:
    far = Linear(TILTED.weight)
    far.x = far.x + 40.0
    gap = untrained(far, constant, far.x).elbo_gap(200, refine=60)
    assert any("of the refined parameters were still under way" in note for note in gap.notes)
    assert any("take refine=240" in note for note in gap.notes)
    assert not untrained(TILTED, constant, TILTED.x).elbo_gap(200).notes


def test_card() -> None:
    gap = untrained(TILTED, constant, TILTED.x).elbo_gap(2_000, per="data", refine=100)
    lines = repr(gap).splitlines()
    assert lines[0] == "ELBO gap of Linear"
    assert [line.split()[0] for line in lines[1:]] == ["log", "ELBO", "gap", "family", "encoder", "in", "ran"]
    assert lines[1].endswith("from draws of the refined guide, summed over 12 elements of 'data'")
    assert lines[3].endswith("= KL(q || posterior)")
    assert "after 100 steps for each element" in lines[4]
    assert "2,000 draws, float64 on cpu, seed 0; guide constant" in lines[-1]
    assert isinstance(gap, ElboGap)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"refine": -1}, "refine must be a positive integer, got -1"),
        ({"refine": 2.5}, "refine must be a positive integer, got 2.5"),
        ({"refine": False}, "refine must be a positive integer, got False"),
        ({"num_samples": 0}, "num_samples must be a positive integer"),
        ({"per": "nowhere"}, "per must name a plate of the model, got 'nowhere'; its plates: 'data'"),
        ({"per": "data"}, "mu' lies outside of plate 'data'"),
        ({"seed": -1}, "seed must be an integer from 0"),
    ],
)
def test_bad_input(options: dict[str, Any], message: str) -> None:
    fit = untrained(mean, mean_guide(0.0, 1.2), Y)
    with pytest.raises(OptionError, match=message):
        ingle.elbo_gap(fit, **options)


def test_guides_without_weights_are_refused() -> None:
    with pytest.raises(OptionError, match="point mass at mu"):
        untrained(mean, "delta", Y).elbo_gap()
    with pytest.raises(OptionError, match=r"elbo_gap takes a Fit, as ingle.fit gives it, got function"):
        ingle.elbo_gap(mean)
