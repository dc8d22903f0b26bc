"""What each ArviZ group holds, against closed forms."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.reparam import LocScaleReparam
from support import arviz_line, az
from torch import Tensor
from torch.distributions import AffineTransform

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.models.mixture import GaussianMixture

STILL = functools.partial(torch.optim.SGD, lr=0.0)
Y = torch.tensor([1.0, 3.0, 2.5, -0.5, 4.0, 1.5])


def mean_of_normals(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def posterior_of(y: Tensor) -> tuple[float, float]:
    """Mean and sd of mu given y in `mean_of_normals`."""
    precision = len(y) + 0.25
    return float(y.sum()) / precision, precision**-0.5


def guide_with(loc: float, scale: float) -> Any:
    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(loc)), scale))

    return guide


@pytest.fixture(scope="module")
def exact() -> ingle.Fit:
    return ingle.fit(mean_of_normals, guide_with(*posterior_of(Y)), Y, steps=1, optim=STILL, dtype=torch.float64)


def log_evidence() -> float:
    covariance = torch.eye(6) + 4.0
    return float(dist.MultivariateNormal(torch.zeros(6), covariance).log_prob(Y))


def test_weights_of_an_exact_guide_are_the_evidence(exact: ingle.Fit) -> None:
    stats = exact.to_arviz(50).sample_stats
    assert set(stats.data_vars) == {"log_p", "log_q", "log_weight"}
    np.testing.assert_allclose(stats["log_weight"].to_numpy(), log_evidence(), atol=1e-5)
    np.testing.assert_allclose(stats["log_p"] - stats["log_q"], stats["log_weight"])


def test_log_likelihood_is_that_of_each_datum(exact: ingle.Fit) -> None:
    data = exact.to_arviz(50)
    assert data.log_likelihood["y"].dims == ("chain", "draw", "data")
    mu = torch.tensor(data.posterior["mu"].to_numpy()[0])
    expected = dist.Normal(mu[:, None], 1.0).log_prob(Y.double())
    np.testing.assert_allclose(data.log_likelihood["y"].to_numpy()[0], expected, atol=1e-6)


def test_log_likelihood_has_neither_the_scale_of_minibatches_nor_the_users() -> None:
    batched = ingle.fit(mean_of_normals, guide_with(0.0, 1.0), Y, steps=1, optim=STILL, batch_size={"data": 2})
    scaled = ingle.fit(poutine.scale(mean_of_normals, scale=0.1), guide_with(0.0, 1.0), Y, steps=1, optim=STILL)
    ours, theirs = batched.to_arviz(20), scaled.to_arviz(20)
    np.testing.assert_allclose(ours.log_likelihood["y"], theirs.log_likelihood["y"])
    assert ours.log_likelihood["y"].shape == (1, 20, 6)
    np.testing.assert_allclose(theirs.sample_stats["log_p"] * 10, ours.sample_stats["log_p"], rtol=1e-5)


def test_masked_data_have_no_log_likelihood() -> None:
    def masked(y: Tensor, seen: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0).mask(seen), obs=y)

    seen = torch.tensor([True, True, False, True, True, True])
    fit = ingle.fit(masked, "normal", {"y": Y, "seen": seen}, steps=2)
    with pytest.warns(ingle.IngleWarning, match="1 of 6 data of 'y' are masked"):
        data = fit.to_arviz(5)
    assert data.posterior.attrs["masked"] == "y: 1 of 6"
    assert np.isnan(data.observed_data["y"].to_numpy()).tolist() == [False, False, True, False, False, False]
    likelihood = data.log_likelihood["y"].to_numpy()
    assert np.isfinite(likelihood).all()
    assert (likelihood[..., 2] == 0).all()
    assert set(data.constant_data.data_vars) == {"seen"}


def test_a_mask_inside_of_an_event_hides_single_numbers() -> None:
    """As many rows as columns, which must not be taken for each other."""

    def masked(y: Tensor, seen: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0).expand([3, 3]).mask(seen).to_event(1), obs=y)

    y = Y[:3, None] + torch.arange(3.0)
    seen = torch.tensor([[True, False, True], [False, False, False], [True, True, True]])
    fit = ingle.fit(masked, "normal", {"y": y, "seen": seen}, steps=2)
    with pytest.warns(ingle.IngleWarning, match="1 of 3 data of 'y' are masked"):
        data = fit.to_arviz(5)
    np.testing.assert_array_equal(np.isfinite(data.observed_data["y"].to_numpy()), seen)
    mu = data.posterior["mu"].to_numpy()[..., None, None]
    each = -0.5 * (y.numpy() - mu) ** 2 - 0.5 * np.log(2 * np.pi)
    np.testing.assert_allclose(data.log_likelihood["y"], np.where(seen, each, 0).sum(-1), rtol=1e-5)


def test_missing_data_by_obs_mask_are_no_local_latent() -> None:
    def partly(y: Tensor, seen: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)

    seen = torch.tensor([True, True, False, True, True, True])
    fit = ingle.fit(partly, "normal", {"y": torch.where(seen, Y, 0.0), "seen": seen}, steps=2)
    with pytest.warns(ingle.IngleWarning, match="1 of 6 data of 'y_observed' are masked") as caught:
        data = fit.to_arviz(5)
    assert len(caught) == 1
    assert data.log_likelihood["y_observed"].shape == (1, 5, 6)
    assert "local_latents" not in data.posterior.attrs
    assert data.posterior["y"].sizes["data"] == 6


def two_clusters() -> ingle.Fit:
    model = GaussianMixture(2)
    points = torch.cat([torch.linspace(-3.0, -2.0, 8), torch.linspace(1.5, 3.0, 5)])[:, None]
    return ingle.fit(model, GaussianMixtureGuide(model), points, steps=200)


def test_soft_clusters_and_exact_likelihood_of_a_mixture() -> None:
    data = two_clusters().to_arviz(30)
    posterior = data.posterior
    assert posterior["component_prob"].dims == ("chain", "draw", "point", "component_value")
    assert posterior["component_value"].to_numpy().tolist() == [0, 1]
    weights, loc, scale = (torch.tensor(posterior[name].to_numpy()[0]) for name in ("weights", "loc", "scale"))
    x = torch.tensor(data.observed_data["x"].to_numpy())
    joint = weights.log()[:, None] + dist.Normal(loc[..., 0][:, None], scale[..., 0][:, None]).log_prob(x)
    np.testing.assert_allclose(data.log_likelihood["x"].to_numpy()[0], joint.logsumexp(-1), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(posterior["component_prob"].to_numpy()[0], joint.softmax(-1), atol=1e-4)
    assert data.posterior_predictive["x"].dims == ("chain", "draw", "point", "x_dim_1")
    assert "local_latents" not in posterior.attrs


def test_discrete_draws_follow_their_probabilities() -> None:
    """Frequencies over 2,000 draws and 13 points within 5 standard errors."""
    fit = two_clusters()
    data = fit.to_arviz(2_000)
    drawn, probability = data.posterior["component"].to_numpy()[0], data.posterior["component_prob"].to_numpy()[0]
    gap = (drawn - probability[..., 1]).mean(0)
    se = np.sqrt((probability[..., 0] * probability[..., 1]).mean(0) / 2_000)
    assert (np.abs(gap) <= 5 * se + 1e-6).all()
    assert np.array_equal(fit.draws(2_000, discrete=True)["component"].cpu(), drawn)
    assert "component" not in fit.draws(3)


def test_deterministic_sites_that_depend_on_a_discrete_latent() -> None:
    def switched(y: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.5))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        level = pyro.deterministic("level", 3.0 * on)
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(level, scale), obs=y)

    fit = ingle.fit(switched, "normal", torch.full((4,), 3.0), steps=5)
    assert set(fit.draws(4)) == {"scale"}
    drawn = fit.draws(4, discrete=True)
    assert list(drawn) == ["on", "scale", "level"]
    assert torch.equal(drawn["level"], 3 * drawn["on"])
    posterior = fit.to_arviz(4).posterior
    assert set(posterior.data_vars) == {"on", "scale", "level", "on_prob"}


def test_local_latents_are_told(recwarn: pytest.WarningsRecorder) -> None:
    def local(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("unused", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            pyro.sample("free", dist.Normal(mu, 1.0), obs=y)

    fit = ingle.fit(local, "normal", Y, steps=2)
    with pytest.warns(ingle.IngleWarning, match=r"log likelihood of 'y' is given 'z'") as caught:
        data = fit.to_arviz(5)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert data.log_likelihood.attrs["local_latents"] == "z"
    fit.to_arviz(5, groups=["posterior", "sample_stats"])
    fit.summary(5)
    assert not recwarn.list


def _written(z: Tensor) -> Any:
    rates = torch.zeros(len(Y))
    rates[1:] = z[1:]
    return dist.Normal(rates, 1.0)


def _mixed(z: Tensor) -> Any:
    means = torch.stack([z, torch.zeros(len(Y))], -1)
    return dist.MixtureSameFamily(dist.Categorical(torch.ones(2)), dist.Normal(means, 1.0))


def _moved(z: Tensor) -> Any:
    return dist.TransformedDistribution(dist.Normal(torch.zeros(len(Y)), 1.0), [AffineTransform(z, 1.0)])


def _decided(z: Tensor) -> Any:
    return dist.Normal(torch.tensor([1.0 if number > 0 else -1.0 for number in z.tolist()]), 1.0)


@pytest.mark.parametrize("of", [_written, _mixed, _moved, _decided])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_whatever_the_way_from_a_local_latent(of: Any, guide: Any) -> None:
    def local(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("unused", dist.Normal(0.0, 1.0))
            pyro.sample("free", dist.Normal(mu, 1.0), obs=y)
            pyro.sample("y", of(z), obs=y)

    fit = ingle.fit(local, guide, Y, steps=2, compile="off")
    with pytest.warns(ingle.IngleWarning, match="is given") as caught:
        data = fit.to_arviz(5, groups=["log_likelihood"])
    assert [str(one.message).split(",")[0] for one in caught] == ["the log likelihood of 'y' is given 'z'"]
    assert data.log_likelihood.attrs["local_latents"] == "z"


def test_prior_groups() -> None:
    """Means and variances of 4,000 draws within 5 standard errors."""
    data = ingle.fit(mean_of_normals, "normal", Y, steps=2).to_arviz(4_000)
    for values, variance in ((data.prior["mu"], 4.0), (data.prior_predictive["y"], 5.0)):
        drawn = values.to_numpy()[0]
        assert np.abs(drawn.mean(0)).max() < 5 * (variance / 4_000) ** 0.5
        assert np.abs(drawn.var(0) - variance).max() < 5 * variance * (2 / 4_000) ** 0.5


def test_improper_prior_is_left_out_and_said() -> None:
    def improper(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    data = ingle.fit(improper, "normal", Y, steps=2).to_arviz(5)
    assert not hasattr(data, "prior")
    assert "NotImplementedError" in data.posterior.attrs["no_prior"]


@pytest.mark.parametrize("guide", ["delta", autoguide.AutoDelta])
def test_point_mass_has_no_weights(guide: Any) -> None:
    fit = ingle.fit(mean_of_normals, guide, Y, steps=2)
    data = fit.to_arviz(5)
    assert set(data.sample_stats.data_vars) == {"log_p"}
    assert "point mass at mu" in data.posterior.attrs["no_log_weight"]
    with pytest.raises(ingle.OptionError, match="point mass at mu"):
        fit.to_arviz(5, weighted=True)


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "low_rank", "flow", "laplace"])
def test_weights_of_automatic_guides_are_those_of_their_density(guide: Any) -> None:
    """For a positive latent beside a real one: h / q averages to 1 over draws of q, for any density h.

    h is half as wide as q, so that h / q is bounded; 5 standard errors. Without the Jacobian of the exponential it
    would average to the typical scale, which is far from 1.
    """

    def scale_and_shift(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(3.0, 1.0))
        shift = pyro.sample("shift", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(shift, scale), obs=y)

    data = ingle.fit(scale_and_shift, guide, 20 * Y, steps=60).to_arviz(4_000)
    scale, shift = (torch.tensor(data.posterior[name].to_numpy()[0]).double() for name in ("scale", "shift"))
    assert float(scale.median()) > 2.5
    inner = dist.LogNormal(scale.log().median(), scale.log().std() / 2).log_prob(scale)
    inner = inner + dist.Normal(shift.median(), shift.std() / 2).log_prob(shift)
    ratios = np.exp(inner.numpy() - data.sample_stats["log_q"].to_numpy()[0])
    assert abs(ratios.mean() - 1) < 5 * ratios.std() / 4_000**0.5


def test_auxiliary_draws_that_are_no_change_of_variables_leave_no_weights() -> None:
    def guide(y: Tensor) -> None:
        a = pyro.sample("a", dist.Bernoulli(0.1), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.zeros(2))[a.long()], 1.0))

    data = ingle.fit(mean_of_normals, guide, Y, steps=2).to_arviz(5)
    assert set(data.sample_stats.data_vars) == {"log_p"}
    assert "the guide draws a beside" in data.posterior.attrs["no_log_weight"]


def mu_and_nu(y: Tensor) -> None:
    mu, nu = (pyro.sample(name, dist.Normal(0.0, 1.0)) for name in ("mu", "nu"))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu + nu, 1.0), obs=y)


def test_auxiliary_draws_that_decide_leave_no_weights() -> None:
    """`both` is carried into `mu` and gives `nu` another mean: the density of the two is not that of `both`."""

    def guide(y: Tensor) -> None:
        both = pyro.sample("both", dist.Normal(torch.zeros(2), 1.0).to_event(1), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(both[0]))
        pyro.sample("nu", dist.Normal(pyro.param("loc", torch.zeros(2))[1 if both[1] > 0 else 0], 1.0))

    data = ingle.fit(mu_and_nu, guide, Y, steps=2, compile="off").to_arviz(5)
    assert "the guide draws both beside" in data.posterior.attrs["no_log_weight"]


def test_auxiliary_draws_written_in_place_into_latents_have_weights() -> None:
    """So have those that Python looks at before: it is no change of variables, and does not undo one."""

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", torch.zeros(2))
        both = pyro.sample("both", dist.Normal(loc, 1.0).to_event(1), infer={"is_auxiliary": True})
        if not bool(both.isfinite().all()):
            raise ValueError("the guide has broken down")
        carried = torch.zeros(2)
        carried[:] = both.flip(0)
        for name, value in zip(("mu", "nu"), carried, strict=True):
            pyro.sample(name, dist.Delta(value))

    fit = ingle.fit(mu_and_nu, guide, Y, steps=2, compile="off")
    data = fit.to_arviz(5)
    assert "no_log_weight" not in data.posterior.attrs
    both = torch.tensor(np.stack([data.posterior[name].to_numpy()[0] for name in ("nu", "mu")], -1))
    expected = dist.Normal(fit.params["loc"].cpu(), 1.0).log_prob(both).sum(-1)
    assert data.sample_stats["log_q"].to_numpy()[0] == pytest.approx(expected.numpy(), rel=1e-5)


def test_reparameterised_latent_is_there() -> None:
    def centred(y: Tensor) -> None:
        tau = pyro.sample("tau", dist.LogNormal(0.0, 0.3))
        with pyro.plate("data", len(y)):
            theta = pyro.sample("theta", dist.Normal(0.0, tau))
            pyro.sample("y", dist.Normal(theta, 1.0), obs=y)

    model = poutine.reparam(centred, {"theta": LocScaleReparam(0.0)})
    fit = ingle.fit(model, "normal", Y, steps=5)
    drawn = fit.draws(10)
    torch.testing.assert_close(drawn["theta"], drawn["theta_decentered"] * drawn["tau"][:, None])
    assert "theta" in fit.to_arviz(5, groups=["posterior"]).posterior


def test_arguments_that_happen_to_equal_the_data_stay() -> None:
    def model(treat: Tensor, y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0).expand([2]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Bernoulli(p[treat.long()]), obs=y)

    same = torch.tensor([0.0, 1.0, 0.0, 1.0])
    data = ingle.fit(model, "normal", {"treat": same, "y": same.clone()}, steps=2).to_arviz(3)
    assert set(data.constant_data.data_vars) == {"treat"}


def test_prior_that_leaves_the_range_of_an_argument_is_left_out_and_said() -> None:
    def careless(y: Tensor) -> None:
        s = pyro.sample("s", dist.Normal(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, s), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("s", dist.Delta(pyro.param("loc", torch.tensor(1.0))))

    data = ingle.fit(careless, guide, Y, steps=2).to_arviz(200)
    assert not hasattr(data, "prior")
    assert "scale of its Normal at site 'y' is out of its range in" in data.posterior.attrs["no_prior"]


def test_observation_shared_by_all_rows_and_a_site_with_a_plus() -> None:
    def shared(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            pyro.sample("a+b", dist.Normal(mu + k, 1.0), obs=y)

    data = ingle.fit(shared, "normal", torch.tensor(0.3), steps=2).to_arviz(4)
    assert data.log_likelihood["a+b"].shape == (1, 4)
    assert data.observed_data["a+b"].shape == ()


def test_deterministic_value_with_more_dimensions_than_plates_is_not_guessed_at() -> None:
    def square(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.deterministic("wide", mu * torch.ones(6, 6))
            pyro.deterministic("told", mu * torch.ones(6, 6), event_dim=1)
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = ingle.fit(square, "normal", Y, steps=2).to_arviz(3).posterior
    assert posterior["wide"].dims == ("chain", "draw", "wide_dim_0", "wide_dim_1")
    assert posterior["told"].dims == ("chain", "draw", "data", "told_dim_1")


def test_groups_can_be_chosen(exact: ingle.Fit) -> None:
    data = exact.to_arviz(5, groups=["posterior", "constant_data", "log_likelihood"])
    assert hasattr(data, "posterior")
    assert hasattr(data, "log_likelihood")
    assert not any(hasattr(data, name) for name in ("prior", "posterior_predictive", "sample_stats", "constant_data"))
    np.testing.assert_allclose(data.posterior["mu"], exact.to_arviz(5).posterior["mu"])


def test_arguments_that_are_not_observed_are_constant_data() -> None:
    def regression(x: Tensor, y: Tensor, degree: int) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(w * x[:, 0] ** degree, 1.0), obs=y)

    fit = ingle.fit(regression, "normal", (torch.randn(6, 2), Y, 2), steps=2)
    data = fit.to_arviz(5, dims={"x": ["data", "column"]}, coords={"data": list("abcdef"), "column": ["p", "q"]})
    assert data.constant_data["x"].dims == ("data", "column")
    assert set(data.constant_data.data_vars) == {"x"}
    assert data.log_likelihood["data"].to_numpy().tolist() == list("abcdef")


def test_dims_of_a_site_name_those_of_its_log_likelihood_too() -> None:
    data = two_clusters().to_arviz(5, dims={"x": ["star", "feature"]}, coords={"feature": ["size"]})
    assert data.observed_data["x"].dims == ("star", "feature")
    assert data.log_likelihood["x"].dims == ("chain", "draw", "star")
    assert data.posterior_predictive["feature"].to_numpy().tolist() == ["size"]


def test_attributes_tell_what_ran(exact: ingle.Fit) -> None:
    told = exact.to_arviz(5).observed_data.attrs
    assert told["inference_library"] == "ingle"
    assert told["inference_library_version"] == ingle.__version__
    assert told["pyro_version"] == pyro.__version__
    assert told["torch_version"] == str(torch.__version__)
    assert (told["objective"], told["steps"], told["stopped"], told["seed"]) == ("Trace_ELBO", 1, "steps", 0)
    assert told["stop_reason"] == "the steps that were asked for"
    assert told["draws_from"] == "the guide"


def leave_one_out() -> np.ndarray[Any, Any]:
    """The exact log predictive density of each datum given the others."""
    found = []
    for place in range(len(Y)):
        mean, sd = posterior_of(torch.cat([Y[:place], Y[place + 1 :]]))
        found.append(float(dist.Normal(mean, math.sqrt(1 + sd**2)).log_prob(Y[place])))
    return np.array(found)


def error_of(data: Any) -> float:
    """Five standard errors of the sum over data of the importance-sampling estimates, taken as fully correlated."""
    ratios = np.exp(-data.log_likelihood["y"].to_numpy()[0])
    return float(5 * (ratios.std(0) / ratios.mean(0)).sum() / len(ratios) ** 0.5)


def test_loo_of_an_exact_guide_is_exact_leave_one_out(exact: ingle.Fit) -> None:
    data = exact.to_arviz(4_000)
    found = az.loo(data, pointwise=True)
    elpd = found.elpd_loo if arviz_line() == 0 else found.elpd
    assert abs(float(elpd) - leave_one_out().sum()) < error_of(data)
    pointwise = np.asarray(found.loo_i if arviz_line() == 0 else found.elpd_i)
    assert np.abs(pointwise - leave_one_out()).max() < error_of(data)


def test_loo_of_a_narrow_guide_needs_weighted_draws() -> None:
    """A guide with 0.75 of the posterior's sd: k-hat of its weights is 1 - 0.75**2, which smoothing can bear."""
    mean, sd = posterior_of(Y)
    fit = ingle.fit(mean_of_normals, guide_with(mean + 0.4 * sd, 0.75 * sd), Y, steps=1, optim=STILL)
    plain, weighted = fit.to_arviz(20_000), fit.to_arviz(20_000, weighted=True)
    exact, elpd = leave_one_out().sum(), "elpd_loo" if arviz_line() == 0 else "elpd"
    tolerance = 3 * error_of(weighted)  # of about 20,000 / 9 independent draws at the least
    assert abs(float(getattr(az.loo(weighted), elpd)) - exact) < tolerance
    assert abs(float(getattr(az.loo(plain), elpd)) - exact) > tolerance
    assert float(weighted.posterior["mu"].std()) == pytest.approx(sd, rel=0.05)
    assert float(plain.posterior["mu"].std()) == pytest.approx(0.75 * sd, rel=0.05)
    assert set(weighted.sample_stats.data_vars) == {"log_p", "log_q"}
    told = weighted.posterior.attrs
    assert told["draws_from"] == "the guide, resampled by smoothed importance weights"
    assert 0.2 < told["khat"] < told["khat_threshold"] == 0.7
    assert 1_000 < told["ess"] < 20_000


@pytest.mark.skipif(arviz_line() == 0, reason="ArviZ 0.23 has no loo_approximate_posterior")
def test_loo_for_approximate_posteriors_takes_the_densities_of_the_draws() -> None:
    mean, sd = posterior_of(Y)
    fit = ingle.fit(mean_of_normals, guide_with(mean + 0.4 * sd, 1.3 * sd), Y, steps=1, optim=STILL)
    data = fit.to_arviz(20_000)
    stats = data.sample_stats
    assert abs(float(az.loo(data).elpd) - leave_one_out().sum()) > 3 * error_of(data)
    found = az.loo_approximate_posterior(data, stats["log_p"], stats["log_q"])
    assert abs(float(found.elpd) - leave_one_out().sum()) < 3 * error_of(data)


def test_weights_that_cannot_be_trusted_are_told() -> None:
    mean, sd = posterior_of(Y)
    fit = ingle.fit(mean_of_normals, guide_with(mean, 0.1 * sd), Y, steps=1, optim=STILL)
    with pytest.warns(ingle.IngleWarning, match=r"k-hat \d"):
        fit.to_arviz(1_000, weighted=True)
