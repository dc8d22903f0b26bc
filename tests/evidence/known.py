"""Programs whose evidence is known to the last digit, each with an exact guide and an imperfect one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from numpy.polynomial.hermite_e import hermegauss
from numpy.polynomial.legendre import leggauss
from pyro import poutine
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm
from support import eight_schools_data
from torch import Tensor

Program = Callable[..., Any]


@dataclass(frozen=True)
class Known:
    """A model with data whose log p(x) is known.

    Attributes:
        guide: of how wrong it should be: `guide(0.0)` is the posterior.
        log_z: log p(x), in nats; with `per`, of each element.
        size: how many data there are.
        per: the plate whose elements have evidence of their own.
    """

    model: Program
    guide: Callable[[float], Program]
    data: Mapping[str, Any]
    log_z: Any
    size: int
    per: str | None = None

    @property
    def total(self) -> float:
        return float(np.sum(self.log_z))


def double(*shape: int, seed: int = 0) -> Tensor:
    """Standard normal numbers."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def regression() -> Known:
    """y = X w + noise, w normal: y is normal with covariance X X' + s^2."""
    x = double(40, 3, seed=1)
    y = x @ torch.tensor([1.0, -0.5, 0.3], dtype=torch.float64) + 0.7 * double(40, seed=2)
    precision = torch.eye(3, dtype=torch.float64) + x.T @ x / 0.49
    mean = torch.linalg.solve(precision, x.T @ y / 0.49)

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(x @ w, 0.7), obs=y)

    def guide(off: float) -> Program:
        scale = torch.linalg.cholesky(torch.linalg.inv(precision)).to(torch.float64) * (1 + 0.5 * off)
        loc = mean + 0.5 * off * scale.diagonal()

        def posterior(x: Tensor, y: Tensor) -> None:
            pyro.sample("w", dist.MultivariateNormal(loc.to(x), scale_tril=scale.to(x)))

        return posterior

    covariance = (x @ x.T).numpy() + 0.49 * np.eye(40)
    log_z = multivariate_normal(np.zeros(40), covariance).logpdf(y.numpy())
    return Known(model, guide, {"x": x, "y": y}, log_z, 40)


def beta_binomial() -> Known:
    """Heads of a coin of unknown bias: B(a + heads, b + tails) / B(a, b)."""
    y = torch.tensor([1.0, 1.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0], dtype=torch.float64)

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 3.0))
        with pyro.plate("toss", len(y)):
            pyro.sample("y", dist.Bernoulli(p), obs=y)

    def guide(off: float) -> Program:
        def posterior(y: Tensor) -> None:
            pyro.sample("p", dist.Beta(2.0 + y.sum() - 2 * off, 3.0 + (1 - y).sum() + off))

        return posterior

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    return Known(model, guide, {"y": y}, log_beta(9.0, 6.0) - log_beta(2.0, 3.0), 10)


def linear_gaussian() -> Known:
    """x = W z + noise with a latent of its own for each row: probabilistic PCA, as a VAE with a linear decoder."""
    w = double(2, 5, seed=3)
    x = double(12, 2, seed=4) @ w + 0.6 * double(12, 5, seed=5)
    precision = torch.eye(2, dtype=torch.float64) + w @ w.T / 0.36
    encoder = torch.linalg.solve(precision, w / 0.36).T

    def model(x: Tensor) -> None:
        with pyro.plate("row", len(x)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
            pyro.sample("x", dist.Normal(z @ w.to(x), 0.6).to_event(1), obs=x)

    def guide(off: float) -> Program:
        scale = torch.linalg.cholesky(torch.linalg.inv(precision)) * (1 + 0.4 * off)

        def posterior(x: Tensor) -> None:
            with pyro.plate("row", len(x)):
                loc = x @ encoder.to(x) * (1 + 0.1 * off)
                pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale.to(x)))

        return posterior

    covariance = (w.T @ w).numpy() + 0.36 * np.eye(5)
    log_z = multivariate_normal(np.zeros(5), covariance).logpdf(x.numpy())
    return Known(model, guide, {"x": x}, log_z, 60, "row")


SHARES = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
CENTRES = torch.tensor([-2.0, 0.5, 3.0], dtype=torch.float64)


def mixture(*, drawn: bool) -> Known:
    """Components fixed, assignments summed out, or drawn by the guide from their posterior."""
    y = torch.tensor([-2.3, 0.1, 0.9, 2.8, 4.0, -1.0, 1.6], dtype=torch.float64)

    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(SHARES.to(y)))
            pyro.sample("y", dist.Normal(CENTRES.to(y)[k], 0.8), obs=y)

    def guide(off: float) -> Program:
        def posterior(y: Tensor) -> None:
            logits = SHARES.to(y).log() + dist.Normal(CENTRES.to(y), 0.8).log_prob(y[:, None])
            with pyro.plate("data", len(y)):
                pyro.sample("k", dist.Categorical(logits=logits * (1 - 0.3 * off)))

        return posterior if drawn else lambda y: None

    joint = SHARES.log() + dist.Normal(CENTRES, 0.8).log_prob(y[:, None])
    return Known(model, guide, {"y": y}, joint.logsumexp(1).numpy(), 7, "data")


SEEN = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1]], dtype=torch.bool)


def missing(way: str) -> Known:
    """Normal rows around a shared mean, some of their entries missing, marked by `poutine.mask`, `.mask` or a guide.

    With `obs_mask` the guide draws what is missing from what the model says of it given the mean.
    """
    y = 1.0 + double(5, 3, seed=6)
    y = torch.where(SEEN, y, 100.0)

    def model(y: Tensor, seen: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0).expand([3]).to_event(1))
        with pyro.plate("row", 5, dim=-2), pyro.plate("column", 3, dim=-1):
            if way == "obs_mask":
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y, obs_mask=seen)
            elif way == ".mask":
                pyro.sample("y", dist.Normal(mu, 1.0).mask(seen), obs=y)
            else:
                with poutine.mask(mask=seen):
                    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    def guide(off: float) -> Program:
        def posterior(y: Tensor, seen: Tensor) -> None:
            precision = seen.sum(0) + 0.25
            loc = torch.where(seen, y, torch.zeros_like(y)).sum(0) / precision + 0.2 * off
            mu = pyro.sample("mu", dist.Normal(loc, precision.rsqrt() * (1 + 0.3 * off)).to_event(1))
            if way == "obs_mask":
                with pyro.plate("row", 5, dim=-2), pyro.plate("column", 3, dim=-1):
                    pyro.sample("y_unobserved", dist.Normal(mu + 0.3 * off, 1.0))

        return posterior

    log_z = 0.0
    for column, shown in zip(y.T.numpy(), SEEN.T.numpy(), strict=True):
        n = int(shown.sum())
        log_z += multivariate_normal(np.zeros(n), np.eye(n) + 4.0).logpdf(column[shown])
    return Known(model, guide, {"y": y, "seen": SEEN}, log_z, int(SEEN.sum()))


def eight_schools() -> Known:
    """Not centred; the effects of the schools in closed form, mu and tau by quadrature.

    Its guide has the effects' posterior given mu and tau, and for these a normal and a half Cauchy: it is never exact.
    """
    table = eight_schools_data()
    y, sigma = (torch.tensor(table[name].to_numpy(), dtype=torch.float64) for name in ("y", "sigma"))

    def model(y: Tensor, sigma: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
        tau = pyro.sample("tau", dist.HalfCauchy(5.0))
        with pyro.plate("school", 8):
            eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)

    def guide(off: float) -> Program:
        def posterior(y: Tensor, sigma: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(4.4, 3.6))
            tau = pyro.sample("tau", dist.HalfCauchy(4.0))
            precision = 1 + (tau / sigma) ** 2
            with pyro.plate("school", 8):
                pyro.sample("eta", dist.Normal(tau * (y - mu) / sigma**2 / precision, precision.rsqrt()))

        return posterior

    nodes, weights = hermegauss(200)
    mu, log_mu = 5.0 * nodes, np.log(weights / weights.sum())
    angle, weights = leggauss(2_000)  # tau = 5 tan(angle) is half Cauchy where the angle is uniform up to a right one
    tau, log_tau = 5.0 * np.tan((angle + 1) * np.pi / 4), np.log(weights / 2)
    sd = np.hypot(sigma.numpy()[:, None, None], tau[None, None, :])
    inner = norm.logpdf(y.numpy()[:, None, None], mu[None, :, None], sd).sum(0)
    log_z = logsumexp(inner + log_mu[:, None] + log_tau)
    return Known(model, guide, {"y": y, "sigma": sigma}, log_z, 8)
