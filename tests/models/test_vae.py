"""The autoencoder: closed forms of linear decoders, likelihoods, codes and what is done with them, digits."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.optim import ExponentialLR
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from torch import Tensor

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.factor_analysis import FactorAnalysis
from ingle.models.likelihoods import Kind, Likelihood
from ingle.models.vae import VAE
from ingle.objectives import IWAE_ELBO, STL_ELBO

ADAM = functools.partial(torch.optim.Adam, lr=2e-3)
DOUBLE = torch.float64


def linear(latent_dim: int = 2, **settings: Any) -> tuple[VAE, Tensor, Tensor]:
    """A model of 4 columns with a linear decoder, its matrix, and its bias; scale 1 until something is fitted."""
    torch.manual_seed(0)
    model = VAE(4, latent_dim, hidden=(), likelihood="normal", **settings).double()
    weight, bias = (parameter.detach() for parameter in model.decoder[0].parameters())
    return model, 2.0 * weight, bias


def doubled(model: VAE) -> VAE:
    """The decoder's matrix times two, so that codes matter."""
    with torch.no_grad():
        model.decoder[0].weight.mul_(2.0)
    return model


def standing(model: VAE, data: Any, params: Mapping[str, Tensor] | None = None) -> ingle.Evidence:
    """The evidence of each row where nothing was fitted."""
    torch.manual_seed(1)
    with pyro.get_param_store().scope():
        guide = VAEGuide(model).double()
        for name, value in (params or {}).items():
            pyro.get_param_store()[name] = value
        return ingle.log_evidence(
            model, guide, data, per="data", num_samples=4_000, proposal="prior", seed=0, dtype=DOUBLE
        )


def test_linear_decoder_has_the_evidence_of_probabilistic_pca(where: dict[str, Any]) -> None:
    """Where the likelihood is highest, the guide's family holds the posterior, whose means vary by 1 - s^2 / lambda."""
    generator = torch.Generator().manual_seed(3)
    loading = torch.randn(2, 5, generator=generator).double() * torch.tensor([[2.0], [1.0]])
    x = torch.randn(200, 2, generator=generator).double() @ loading
    x = x + 0.5 * torch.randn(200, 5, generator=generator).double()
    best = FactorAnalysis(5, 2, noise="isotropic").closed_form(x)
    noise = best["noise_scale"].square()
    exact = float(dist.LowRankMultivariateNormal(best["mean"], best["loading"], noise.expand(5)).log_prob(x).sum())

    torch.manual_seed(0)
    model, steps = VAE(5, 2, hidden=(), likelihood="normal"), 2_500
    guide = VAEGuide(model)
    rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.15}, "gamma": 1e-3 ** (1 / steps)}
    where = {**where, "dtype": DOUBLE}
    fit = ingle.fit(
        model, guide, x, objective=STL_ELBO(), optim=ExponentialLR(rate), steps=steps, compile="off", **where
    )
    assert abs(fit.log_evidence(1_000, per="data").log_z - exact) < 0.05
    variances = torch.linalg.eigvalsh(torch.cov(x.T, correction=0))[-2:]
    activity = guide.activity(x.to(fit.device)).cpu().sort().values
    torch.testing.assert_close(activity, 1 - noise / variances, atol=0.05, rtol=0)


@pytest.mark.parametrize("steps", [3_000, pytest.param(None, marks=pytest.mark.long)])
def test_linear_decoder_has_its_exact_posterior(steps: int | None, where: dict[str, Any]) -> None:
    """Given a linear decoder x = W z + b + noise, z given x is Gaussian with precision I + W'W / s^2.

    A mean-field code rotates until W'W is diagonal, so that its family holds the posterior.
    """
    generator = torch.Generator().manual_seed(3)
    loading = torch.tensor([[2.0, 0.0], [1.0, 1.0], [0.0, -1.0], [1.0, 0.5]]).double()
    x = torch.randn(300, 2, generator=generator).double() @ loading.T
    x = x + 0.5 * torch.randn(300, 4, generator=generator).double()
    torch.manual_seed(0)
    model = VAE(4, latent_dim=2, hidden=(), likelihood="normal")
    fit = ingle.fit(model, VAEGuide(model), x, steps=steps, **where)

    weight, bias = (parameter.detach().double().cpu() for parameter in model.decoder[0].parameters())
    variance = float(fit.params["scale"]) ** 2
    covariance = torch.linalg.inv(torch.eye(2) + weight.T @ weight / variance)
    mean = (x - bias) @ weight @ covariance / variance
    sd = covariance.diagonal().sqrt()
    z = fit.draws(2_000)["z"].double().cpu()
    assert float(((z.mean(0) - mean) / sd).abs().max()) < 0.3
    assert float((z.std(0) / sd - 1).abs().max()) < 0.3


def test_mixture_prior_and_linear_decoder_have_a_mixture_of_gaussians() -> None:
    """p(x) = sum_k w_k Normal(W m_k + b, W diag(s_k^2) W' + I): the evidence within 4.5 standard errors.

    Of 20 rows one is farther off by chance once in 7,000 seeds.
    """
    model, weight, bias = linear(components=3)
    params = {
        "prior_weights": torch.tensor([0.2, 0.5, 0.3], dtype=DOUBLE),
        "prior_loc": torch.tensor([[-2.0, 0.0], [1.0, 1.0], [0.0, -2.0]], dtype=DOUBLE),
        "prior_scale": torch.tensor([[0.5, 1.0], [1.0, 0.3], [0.7, 0.7]], dtype=DOUBLE),
    }
    codes = dist.Normal(params["prior_loc"], params["prior_scale"])
    covariance = weight @ torch.diag_embed(codes.variance) @ weight.T + torch.eye(4).double()
    data = dist.MultivariateNormal(codes.mean @ weight.T + bias, covariance)
    exact = dist.MixtureSameFamily(dist.Categorical(params["prior_weights"]), data)
    x = exact.sample((20,))
    found = standing(doubled(model), x, params).pointwise
    assert (np.abs(found.log_z - exact.log_prob(x).numpy()) < 4.5 * found.se).all()


def test_labels_move_a_linear_decoder() -> None:
    """p(x | y) = Normal(W e_y + b, V V' + I), the label's column of the decoder in the mean."""
    model, weight, bias = linear(num_labels=3)
    label = torch.arange(15) % 3
    exact = dist.MultivariateNormal(bias + weight[:, 2:].T[label], torch.eye(4) + weight[:, :2] @ weight[:, :2].T)
    x = exact.sample()
    found = standing(doubled(model), (x, label)).pointwise
    assert (np.abs(found.log_z - exact.log_prob(x).numpy()) < 4.5 * found.se).all()


def written_out(kind: Kind, out: Tensor, x: Tensor) -> Tensor:
    """The log density of single numbers, (3, 2, 4, 5), from a decoder's output, outputs second."""
    if kind == "bernoulli":
        return x * out[:, 0] - torch.log1p(out[:, 0].exp())
    if kind == "categorical":
        return out.log_softmax(1).gather(1, x[:, None].long())[:, 0]
    scale = torch.tensor(0.7) if kind == "normal" else torch.log1p(out[:, 1].exp()) + 1e-3
    return -0.5 * ((x - out[:, 0]) / scale) ** 2 - scale.log() - 0.5 * math.log(2 * math.pi)


@pytest.mark.parametrize("kind", ["bernoulli", "normal", "heteroscedastic", "categorical"])
def test_likelihoods_are_those_written_out(kind: Kind) -> None:
    torch.manual_seed(0)
    likelihood = Likelihood(kind, levels=4)
    out = torch.randn(3, likelihood.outputs, 2, 4, 5)
    found = likelihood(out, 3, 0.7)
    x = found.sample()
    assert x.shape == likelihood.mean(out, 3).shape == (3, 2, 4, 5)
    torch.testing.assert_close(found.log_prob(x), written_out(kind, out, x).sum((1, 2, 3)))
    many = likelihood(out, 3, 0.7).sample((4_000,)).to(torch.get_default_dtype())
    error = many.std(0) / 4_000**0.5  # of 120 means one is 5 errors off once in 15,000 seeds
    assert bool(((many.mean(0) - likelihood.mean(out, 3)).abs() < 5 * error).all())
    likelihood.check(x, (2, 4, 5))


@pytest.mark.parametrize("architecture", ["mlp", "convolutional"])
@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 7, 5), (2, 1, 6)])
def test_networks_take_images_of_any_size(shape: tuple[int, ...], architecture: Any) -> None:
    torch.manual_seed(0)
    model = VAE(shape, 3, (8, 4), "heteroscedastic", architecture=architecture, num_labels=2)
    guide = VAEGuide(model)
    x, label = torch.rand(2, 5, *shape), torch.tensor([[0, 1, 1, 0, 1]] * 2)
    code = guide.encode(x, label)
    assert (code.batch_shape, code.event_shape) == ((2, 5), (3,))
    torch.testing.assert_close(code.mean[1, 3], guide.encode(x[1, 3], label[1, 3]).mean)
    assert not torch.equal(code.mean, guide.encode(x, 1 - label).mean)
    back = guide.reconstruct(x, label)
    assert back.shape == x.shape
    torch.testing.assert_close(back, model.decode(code.mean, label))
    torch.testing.assert_close(back[1, 3], model.decode(code.mean[1, 3], label[1, 3]))


@pytest.mark.parametrize("compiled", ["off", pytest.param("full", marks=pytest.mark.long)])
@pytest.mark.parametrize("settings", [
    {"architecture": "convolutional", "hidden": (6, 4), "activation": "relu"},
    {"likelihood": "categorical", "levels": 17},
    {"likelihood": "heteroscedastic", "components": 3},
    {"num_labels": 10, "objective": IWAE_ELBO(3, vectorize_particles=True)},
])  # fmt: skip
def test_every_kind_is_fitted_in_minibatches(settings: dict[str, Any], compiled: Any, where: dict[str, Any]) -> None:
    settings = dict(settings)
    objective = settings.pop("objective", None)
    digits = load_digits()
    x = torch.tensor(digits.images[:60, None])
    kind = settings.get("likelihood", "bernoulli")
    x = (x > 7.5).to(DOUBLE) if kind == "bernoulli" else x.long() if kind == "categorical" else x / 16
    torch.manual_seed(0)
    model = VAE((1, 8, 8), **{"latent_dim": 3, "hidden": (5,), **settings})
    data = (x, torch.tensor(digits.target[:60])) if model.num_labels else x
    how: dict[str, Any] = {"batch_size": {"data": 20}, "optim": ADAM, "objective": objective, **where}
    fit = ingle.fit(model, VAEGuide(model), data, steps=30, compile=compiled, **how)
    assert ("compiled" in fit.engine) == (compiled == "full")
    assert fit.losses[-10:].mean() < fit.losses[:10].mean()
    assert fit.draws(2)["z"].shape == (2, 60, 3)


def test_walks_between_codes_and_along_one_number() -> None:
    torch.manual_seed(0)
    model = VAE((1, 4, 4), 3, (6,))
    start, end = torch.randn(2, 3), torch.randn(2, 3)
    between = model.interpolate(start, end, 5)
    assert between.shape == (5, 2, 1, 4, 4)
    torch.testing.assert_close(between[[0, -1]], model.decode(torch.stack([start, end])))
    torch.testing.assert_close(between[2], model.decode((start + end) / 2))
    values = torch.linspace(-2, 2, 7)
    walk = model.traverse(start, 1, values)
    assert walk.shape == (7, 2, 1, 4, 4)
    moved = start.clone()
    moved[:, 1] = values[5]
    torch.testing.assert_close(walk[5], model.decode(moved))
    torch.manual_seed(1)
    fresh = model.generate(4)
    torch.manual_seed(1)
    torch.testing.assert_close(fresh, model.decode(torch.randn(4, 3)))


def test_digits_in_minibatches(where: dict[str, Any]) -> None:
    """Bits of 8 by 8 digits: better than independent pixels, whose log likelihood is the baseline.

    Codes tell digits apart no worse than as many principal components, by logistic regression on rows not seen.
    """
    digits = load_digits()
    x = torch.tensor(digits.data > 7.5, dtype=DOUBLE)
    rates = x.mean(0).clamp(1e-3, 1 - 1e-3)
    baseline = float(torch.distributions.Bernoulli(rates).log_prob(x).sum())
    torch.manual_seed(0)
    model = VAE(64, latent_dim=5)
    guide = VAEGuide(model)
    fit = ingle.fit(model, guide, x, batch_size={"data": 128}, steps=700, optim=ADAM, **where)
    assert fit.elbo[0] > baseline + 1_000
    assert fit.draws(3)["z"].shape == (3, len(x), 5)
    assert "128 of 1797 rows" in repr(fit)
    with torch.no_grad():
        codes = guide.encode(x.to(fit.device, fit.dtype)).mean.cpu().numpy()
    ours, theirs = (probe(found, digits.target) for found in (codes, PCA(5, random_state=0).fit_transform(x.numpy())))
    assert ours > theirs - 0.02
    assert (guide.activity(x.to(fit.device, fit.dtype)) > 0.01).all()


def probe(codes: np.ndarray, target: np.ndarray) -> float:
    codes = (codes - codes.mean(0)) / codes.std(0)
    return float(
        LogisticRegression(max_iter=1_000).fit(codes[:1_200], target[:1_200]).score(codes[1_200:], target[1_200:])
    )


X, GREY = torch.arange(12.0).reshape(2, 6) % 2, torch.rand(2, 6, generator=torch.Generator().manual_seed(0))
LABEL = torch.tensor([0, 2])


@pytest.mark.parametrize(("settings", "data", "message"), [
    ({}, X[:, :5], r"x must have shape \(N, 6\), since data_shape is that; got \(2, 5\)"),
    ({}, X[0], r"got \(6,\): for one datum give x\[None\]"),
    ({}, X.reshape(2, 2, 3), r"give x.reshape\(-1, 6\)"),
    ({}, GREY, "0 or 1 for likelihood 'bernoulli', and 12 of its 12 values are not.*'normal' or 'hetero.*x > "),
    ({}, 100 * X, "likelihood='categorical' with levels=101 or more"),
    ({}, X.where(X > 0, torch.nan), r"6 of the 12 values in x are NaN or infinite, the first at \[0, 0\].*completion"),
    ({"likelihood": "categorical", "levels": 4}, 7 * X.long(), "a whole number below 4.*they go from 0 to 7.*levels=8"),
    ({"likelihood": "categorical", "levels": 4}, X - 0.5, "takes them as they are"),
    ({"num_labels": 3}, X, r"conditional on a label: give label, integers from 0 to 2 of shape \(2,\)"),
    ({"num_labels": 2}, (X, LABEL), "labels must be from 0 to 1, and 1 of 2 are not: they go from 0 to 2"),
    ({"num_labels": 3}, (X, LABEL[:1]), r"label must be integers of shape \(2,\), got torch.int64 of shape \(1,\)"),
    ({}, (X, LABEL), "labels were given to a model without"),
])  # fmt: skip
def test_data_that_do_not_fit_are_refused_in_words(settings: dict[str, Any], data: Any, message: str) -> None:
    model = VAE(6, 2, (3,), **settings)
    with pytest.raises(ingle.ProgramError, match=message):
        ingle.fit(model, VAEGuide(model), data, steps=2)


@pytest.mark.parametrize(("settings", "message"), [
    ({"likelihood": "poisson"}, "'bernoulli', 'normal', 'heteroscedastic', 'categorical', got 'poisson'"),
    ({"latent_dim": 0}, "latent_dim must be 1 or more, got 0"),
    ({"components": 0}, "components must be 1 or more, got 0"),
    ({"num_labels": 1}, "num_labels must be 2 or more, or 0"),
    ({"levels": 1}, "levels must be a whole number of 2 or more, got 1"),
    ({"hidden": 8}, r"hidden must be a sequence, as in \(8,\), got 8"),
    ({"hidden": (8, 0)}, r"hidden must be whole numbers of 1 or more, got \(8, 0\)"),
    ({"activation": "gelu"}, "activation must be one of 'softplus', 'tanh', 'relu', 'silu', got 'gelu'"),
    ({"architecture": "transformer"}, "'mlp' or 'convolutional', got 'transformer'"),
    ({"architecture": "convolutional"}, r"\(channels, height, width\), got data_shape \(6,\).*\(1, 28, 28\)"),
    ({"data_shape": (1, 8, 8), "architecture": "convolutional", "hidden": ()}, "at least one number of channels"),
    ({"data_shape": (0, 8)}, "data_shape must be 1 or more, got 0, 8"),
])  # fmt: skip
def test_settings_that_do_not_fit_are_refused_in_words(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VAE(**{"data_shape": 6, **settings})


@pytest.mark.parametrize(("kind", "x"), [
    ("bernoulli", X > 0.5),
    ("bernoulli", X.to(torch.uint8)),
    ("categorical", (255 * GREY).to(torch.uint8)),
    ("normal", X.long()),
])  # fmt: skip
def test_images_may_be_bytes_or_booleans(kind: Kind, x: Tensor, where: dict[str, Any]) -> None:
    losses = []
    for given in (x, x.to(DOUBLE)):
        torch.manual_seed(0)
        model = VAE(6, 2, (3,), kind)
        losses.append(ingle.fit(model, VAEGuide(model), given, steps=5, compile="off", **where).losses)
    np.testing.assert_array_equal(*losses)


def test_a_mixture_prior_is_drawn_from_inside_its_fit(where: dict[str, Any]) -> None:
    model = VAE(6, 2, (3,), components=2)
    fit = ingle.fit(model, VAEGuide(model), X, steps=2, compile="off", **where)
    guide, x = fit.guide, X.to(fit.device, fit.dtype)
    for asked in (lambda: model.generate(3), lambda: guide.activity(x)):
        with pytest.raises(
            ValueError, match=r"no fitted prior_weights in Pyro's store: .* inside `with fit.active\(\):`"
        ):
            asked()
    with fit.active():
        assert model.generate(3).shape == (3, 6)
        wanted = guide.encode(x).mean.var(0) / model.prior().variance
        torch.testing.assert_close(guide.activity(x), wanted)


def test_codes_and_data_that_do_not_fit_are_refused_by_the_methods() -> None:
    model = VAE((3, 2), num_labels=2)
    guide, code, x = VAEGuide(model), torch.zeros(5, 2), torch.zeros(5, 3, 2)
    asked: dict[str, Any] = {
        "one of the code's 2 dimensions, from 0, got 2": lambda: model.traverse(code, 2, torch.zeros(3)),
        r"codes must have shape \(…, 2\), got \(5, 3\)": lambda: model.decode(torch.zeros(5, 3)),
        r"one shape, and num be 2 or more; got \(5, 2\), \(2,\) and 10": lambda: model.interpolate(code, code[0]),
        r"\(5, 2\), \(5, 2\) and 1": lambda: model.interpolate(code, code, 1),
        r"from 0 to 1 of shape \(5,\)": lambda: model.interpolate(code, code),
        r"x must have shape \(…, 3, 2\), since data_shape is that; got \(5, 2, 3\)": lambda: guide.encode(x.mT),
        r"got \(6,\)": lambda: guide.reconstruct(torch.zeros(6)),
        "0 or 1 for likelihood 'bernoulli'": lambda: guide.encode(x - 1),
        "2 or more of them, got 1": lambda: guide.activity(x[:1], torch.zeros(1).long()),
        "VAEGuide is a guide of VAE, got Linear": lambda: VAEGuide(torch.nn.Linear(2, 2)),  # type: ignore[arg-type]
    }
    for told, ask in asked.items():
        with pytest.raises(ValueError, match=told):
            ask()
