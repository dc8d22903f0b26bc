"""Hierarchies whose levels are Gaussian given one scale, so that a grid over that scale is exact; and a funnel."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from trust.families.case import Array, Data, Family, Moments
from trust.families.exact import half_normal, marginal, mixed, normal, on_grid

__all__ = ["FAMILIES"]


def centred(y: Tensor, error: Tensor, unit: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    tau = pyro.sample("tau", dist.HalfNormal(3.0 * unit))
    with pyro.plate("group", len(y)):
        theta = pyro.sample("theta", dist.Normal(mu, tau))
        pyro.sample("y", dist.Normal(theta, error), obs=y)


def non_centred(y: Tensor, error: Tensor, unit: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    tau = pyro.sample("tau", dist.HalfNormal(3.0 * unit))
    with pyro.plate("group", len(y)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, error), obs=y)


def _draw(errors: tuple[float, float]) -> Callable[[np.random.Generator, int], Data]:
    def draw(rng: np.random.Generator, size: int) -> Data:
        unit = 10 ** rng.uniform(-1, 1)
        tau = unit * rng.uniform(0.7, 2.0)
        error = tau * rng.uniform(*errors) * rng.uniform(0.7, 1.4, size)
        theta = unit * 5 * rng.standard_normal() + tau * rng.standard_normal(size)
        return {"y": theta + error * rng.standard_normal(size), "error": error, "unit": unit}

    return draw


def exact(data: Data) -> Moments:
    """Moments of mu, tau, theta and eta."""
    y, error, unit = data["y"], data["error"], float(data["unit"])
    size = len(y)

    def at(nodes: Array) -> tuple[Array, Array, Array]:
        x = np.concatenate(
            [np.ones((len(nodes), size, 1)), np.exp(nodes)[:, :, None] * np.eye(size)], -1
        )  # of mu and eta
        prior = np.concatenate([[10 * unit], np.ones(size)]) * np.ones((len(nodes), 1))
        return marginal(x, y, error * np.ones((len(nodes), 1)), 0 * prior, prior)

    start = np.log(unit)
    grid = on_grid(lambda nodes: at(nodes)[2] + half_normal(nodes[:, 0], 3 * unit), [start - 12.0], [start + 4.0], 600)
    means, covariances, _ = at(grid.nodes)
    variances = np.diagonal(covariances, axis1=-2, axis2=-1)
    tau = np.exp(grid.nodes)
    theta = means[:, :1] + tau * means[:, 1:]
    spread = variances[:, :1] + tau**2 * variances[:, 1:] + 2 * tau * covariances[:, 0, 1:]
    mean, sd = mixed(grid.weights, means, variances)
    return {
        "mu": (mean[0], sd[0]),
        "tau": grid.moments(tau[:, 0]),
        "theta": mixed(grid.weights, theta, spread),
        "eta": (mean[1:], sd[1:]),
    }


def _without(name: str) -> Callable[[Data], Moments]:
    return lambda data: {site: moments for site, moments in exact(data).items() if site != name}


def funnel(y: Tensor, error: Tensor) -> None:
    """Neal's, with a noisy look at each coordinate of its mouth."""
    v = pyro.sample("v", dist.Normal(0.0, 3.0))
    with pyro.plate("coordinate", len(y)):
        x = pyro.sample("x", dist.Normal(0.0, torch.exp(v / 2)))
        pyro.sample("y", dist.Normal(x, error), obs=y)


def draw_funnel(rng: np.random.Generator, size: int) -> Data:
    error, v = 10 ** rng.uniform(-1, 0.7), rng.uniform(-1, 2)
    return {"y": np.exp(v / 2) * rng.standard_normal(size) + error * rng.standard_normal(size), "error": error}


def funnel_exact(data: Data) -> Moments:
    y, error = data["y"], float(data["error"])

    def log_density(nodes: Array) -> Array:
        total = np.exp(nodes) + error**2
        return (-0.5 * (y**2 / total + np.log(total))).sum(-1) + normal(nodes[:, 0], 0.0, 3.0)

    grid = on_grid(log_density, [-25.0], [25.0], 2_000)
    share = np.exp(grid.nodes) / (np.exp(grid.nodes) + error**2)
    return {
        "v": grid.moments(grid.nodes[:, 0]),
        "x": mixed(grid.weights, share * y, np.broadcast_to(share * error**2, (len(share), len(y)))),
    }


FAMILIES = {
    "hierarchical centred": Family(centred, _draw((0.1, 0.8)), (8, 20), ("mu", "tau", "theta"), _without("eta")),
    "hierarchical non-centred": Family(
        non_centred, _draw((0.5, 2.0)), (8, 20), ("mu", "tau", "eta"), _without("theta")
    ),
    "funnel": Family(funnel, draw_funnel, (5, 10), ("v", "x"), funnel_exact),
}
