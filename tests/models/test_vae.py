"""The autoencoder: the exact posterior of a linear decoder, minibatches, digits."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.vae import VAE

ADAM = functools.partial(torch.optim.Adam, lr=2e-3)


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


def test_digits_in_minibatches(where: dict[str, Any]) -> None:
    """Bits of 8 by 8 digits: better than independent pixels, whose log likelihood is the baseline."""
    x = torch.tensor(load_digits().data > 7.5, dtype=torch.float64)
    rates = x.mean(0).clamp(1e-3, 1 - 1e-3)
    baseline = float(torch.distributions.Bernoulli(rates).log_prob(x).sum())
    torch.manual_seed(0)
    model = VAE(64, latent_dim=5)
    guide = VAEGuide(model)
    fit = ingle.fit(model, guide, x, batch_size={"data": 128}, steps=700, optim=ADAM, **where)
    assert fit.elbo[0] > baseline + 1_000
    assert fit.draws(3)["z"].shape == (3, len(x), 5)
    assert "128 of 1797 rows" in repr(fit)


def test_unknown_likelihood_is_refused() -> None:
    with pytest.raises(ValueError, match="'bernoulli', 'normal'"):
        VAE(4, likelihood="poisson")  # type: ignore[arg-type]
