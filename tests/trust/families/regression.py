"""Regressions with normal noise: Gaussian given their scales, so that their references are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
from torch import Tensor
from trust.families.case import Array, Data, Family, Moments
from trust.families.exact import half_normal, log_normal, marginal, mixed, on_grid

__all__ = ["FAMILIES", "predictors"]


def predictors(rng: np.random.Generator, rows: int, size: int) -> Array:
    """Correlated columns, each of its own scale and centre, shape (rows, size)."""
    mixing = np.eye(size) + 0.4 * rng.standard_normal((size, size))
    x = rng.standard_normal((rows, size)) @ mixing
    return (x + 0.5 * rng.standard_normal(size)) * 10 ** rng.uniform(-0.5, 0.5, size)


def normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 100.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, sigma), obs=y)


def draw_normal(rng: np.random.Generator, size: int) -> Data:
    return {"y": 50 * rng.standard_normal() + 10 ** rng.uniform(-1, 1.5) * rng.standard_normal(size)}


def linear(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 20.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 10.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(intercept + x @ slopes, sigma), obs=y)


def draw_linear(rng: np.random.Generator, size: int) -> Data:
    x = predictors(rng, size, 3)
    noise = 10 ** rng.uniform(-0.7, 0.5) * rng.standard_normal(size)
    return {"x": x, "y": 5 * rng.standard_normal() + x @ (2 * rng.standard_normal(3)) + noise}


def scaled(x: Tensor, y: Tensor) -> None:
    """A slope of about 0.5 beside an intercept of about 80, on a predictor that may be far from centred."""
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(intercept + slope * x, sigma), obs=y)


def draw_scaled(rng: np.random.Generator, size: int) -> Data:
    spread = 10 ** rng.uniform(0, 1.5)
    x = spread * (rng.choice([0.0, 0.3, 3.0]) + rng.standard_normal(size))
    intercept, slope = 80 + 10 * rng.standard_normal(), 0.5 + 0.1 * rng.standard_normal()
    return {"x": x, "y": intercept + slope * x + 10 ** rng.uniform(-0.3, 0.7) * rng.standard_normal(size)}


def ill_conditioned(x: Tensor, y: Tensor, sigma: Tensor) -> None:
    """The Gram matrix of the predictors has a condition number of 1e5."""
    slopes = pyro.sample("slopes", dist.Normal(0.0, 100.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ slopes, sigma), obs=y)


def draw_ill_conditioned(rng: np.random.Generator, size: int) -> Data:
    d, sigma = 6, 10 ** rng.uniform(-1, 0)
    left, right = (np.linalg.qr(rng.standard_normal((n, d)))[0] for n in (size, d))
    x = np.sqrt(size) * (left * np.geomspace(1.0, 1e5**-0.5, d)) @ right.T
    return {"x": x, "y": x @ (3 * rng.standard_normal(d)) + sigma * rng.standard_normal(size), "sigma": sigma}


def fifty(x: Tensor, y: Tensor, sigma: Tensor) -> None:
    """Fifty weakly correlated weights: mean field is a few per cent off, in each of them."""
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, sigma), obs=y)


def draw_fifty(rng: np.random.Generator, size: int) -> Data:
    x, sigma = rng.standard_normal((size, 50)), 10 ** rng.uniform(-0.5, 0.7)
    return {"x": x, "y": x @ rng.standard_normal(50) + sigma * rng.standard_normal(size), "sigma": sigma}


def autoregression(y: Tensor) -> None:
    """Of second order, given the first two values."""
    level = pyro.sample("level", dist.Normal(0.0, 10.0))
    lags = pyro.sample("lags", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    mean = level + lags[0] * y[1:-1] + lags[1] * y[:-2]
    with pyro.plate("time", len(y) - 2):
        pyro.sample("next", dist.Normal(mean, sigma), obs=y[2:])


def draw_autoregression(rng: np.random.Generator, size: int) -> Data:
    first, second = rng.uniform(0.2, 0.97), rng.uniform(-0.6, 0.6)  # roots, so that it is stationary
    lags, sigma = (first + second, -first * second), 10 ** rng.uniform(-0.7, 0.5)
    level = (1 - lags[0] - lags[1]) * rng.normal(0, 5)
    y = [0.0, 0.0]
    for noise in sigma * rng.standard_normal(size + 100):
        y.append(level + lags[0] * y[-1] + lags[1] * y[-2] + noise)
    return {"y": np.array(y[-size:])}


def ridge(x: Tensor, y: Tensor) -> None:
    """The weights' scale is learnt."""
    tau = pyro.sample("tau", dist.HalfNormal(2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    weights = pyro.sample("weights", dist.Normal(0.0, tau).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(x @ weights, sigma), obs=y)


def draw_ridge(rng: np.random.Generator, size: int) -> Data:
    d = 8
    x = rng.standard_normal((size, d)) @ (np.eye(d) + rng.uniform(0, 0.4) * rng.standard_normal((d, d)))
    weights = 10 ** rng.uniform(-0.7, 0.5) * rng.standard_normal(d)
    return {"x": x, "y": x @ weights + 10 ** rng.uniform(-0.5, 0.3) * rng.standard_normal(size)}


def _exact(design: Callable[[Data], tuple[Array, Array, dict[str, Any], Array, float]]) -> Callable[[Data], Moments]:
    """Exact moments where the coefficients have known prior sds and the noise a log-normal scale.

    `design` gives x (rows, d), y (rows,), the coefficients of each site, their prior sds (d,), and the sd of log sigma.
    """

    def exact(data: Data) -> Moments:
        x, y, sites, prior_sd, spread = design(data)

        def at(nodes: Array) -> tuple[Array, Array, Array]:
            sd = np.exp(nodes[:, :1]) * np.ones(len(y))
            mean = np.zeros((len(nodes), x.shape[1]))
            return marginal(np.broadcast_to(x, (len(nodes), *x.shape)), y, sd, mean, mean + prior_sd)

        grid = on_grid(lambda nodes: at(nodes)[2] + log_normal(nodes[:, 0], 0.0, spread), [-8.0], [8.0], 300)
        means, covariances, _ = at(grid.nodes)
        mean, sd = mixed(grid.weights, means, np.diagonal(covariances, axis1=-2, axis2=-1))
        return {
            **{name: (mean[place], sd[place]) for name, place in sites.items()},
            "sigma": grid.moments(np.exp(grid.nodes[:, 0])),
        }

    return exact


def _known_noise(name: str, prior_sd: float) -> Callable[[Data], Moments]:
    def exact(data: Data) -> Moments:
        x, ones = data["x"], np.ones(data["x"].shape[1])
        mean, covariance, _ = marginal(x, data["y"], data["sigma"] * np.ones(len(x)), 0 * ones, prior_sd * ones)
        return {name: (mean, np.sqrt(np.diag(covariance)))}

    return exact


def _with_intercept(data: Data) -> Array:
    x = data["x"].reshape(len(data["x"]), -1)
    return np.concatenate([np.ones((len(x), 1)), x], 1)


def _ridge_exact(data: Data) -> Moments:
    x, y = data["x"], data["y"]

    def at(nodes: Array) -> tuple[Array, Array, Array]:
        tau, sigma = np.exp(nodes).T[..., None]
        zero = np.zeros((len(nodes), x.shape[1]))
        return marginal(np.broadcast_to(x, (len(nodes), *x.shape)), y, sigma + 0 * y, zero, tau + zero)

    def log_density(nodes: Array) -> Array:
        return at(nodes)[2] + half_normal(nodes[:, 0], 2.0) + log_normal(nodes[:, 1], 0.0, 1.0)

    grid = on_grid(log_density, [-8.0, -5.0], [3.0, 4.0], 70)
    means, covariances, _ = at(grid.nodes)
    tau, sigma = (grid.moments(np.exp(column)) for column in grid.nodes.T)
    weights = mixed(grid.weights, means, np.diagonal(covariances, axis1=-2, axis2=-1))
    return {"tau": tau, "sigma": sigma, "weights": weights}


def _lagged(data: Data) -> Array:
    y = data["y"]
    return np.stack([np.ones(len(y) - 2), y[1:-1], y[:-2]], 1)


FAMILIES = {
    "normal": Family(
        normal,
        draw_normal,
        (10, 40, 200),
        ("mu", "sigma"),
        _exact(lambda data: (np.ones((len(data["y"]), 1)), data["y"], {"mu": 0}, np.array([100.0]), 2.0)),
    ),
    "linear": Family(
        linear,
        draw_linear,
        (25, 60, 200),
        ("intercept", "slopes", "sigma"),
        _exact(
            lambda data: (
                _with_intercept(data),
                data["y"],
                {"intercept": 0, "slopes": slice(1, None)},
                np.array([20.0, 10.0, 10.0, 10.0]),
                1.0,
            )
        ),
    ),
    "scaled": Family(
        scaled,
        draw_scaled,
        (20, 50, 120),
        ("intercept", "slope", "sigma"),
        _exact(
            lambda data: (
                _with_intercept(data),
                data["y"],
                {"intercept": 0, "slope": 1},
                np.array([100.0, 10.0]),
                2.0,
            )
        ),
    ),
    "ill conditioned": Family(
        ill_conditioned, draw_ill_conditioned, (30, 80), ("slopes",), _known_noise("slopes", 100.0)
    ),
    "fifty": Family(fifty, draw_fifty, (150, 300, 600), ("weights",), _known_noise("weights", 1.0)),
    "autoregression": Family(
        autoregression,
        draw_autoregression,
        (50, 150),
        ("level", "lags", "sigma"),
        _exact(
            lambda data: (
                _lagged(data),
                data["y"][2:],
                {"level": 0, "lags": slice(1, None)},
                np.array([10.0, 1.0, 1.0]),
                1.0,
            )
        ),
    ),
    "ridge": Family(ridge, draw_ridge, (30, 60), ("tau", "sigma", "weights"), _ridge_exact),
}
