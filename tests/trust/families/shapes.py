"""Posteriors of other shapes: two components, heavy tails, a Gaussian process, two modes."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor
from trust.families.case import Array, Data, Family, Moments
from trust.families.exact import log_normal, normal, on_grid
from trust.families.regression import predictors

__all__ = ["FAMILIES"]


def mixture(y: Tensor) -> None:
    """Two components that lie well apart, the lower one first, so that labels cannot change places."""
    low = pyro.sample("low", dist.Normal(0.0, 20.0))
    gap = pyro.sample("gap", dist.LogNormal(1.0, 1.0))
    scales = pyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    weight = pyro.sample("weight", dist.Beta(2.0, 2.0))
    locs = torch.stack([low, low + gap], -1)
    with pyro.plate("row", len(y)):
        upper = pyro.sample("upper", dist.Categorical(torch.stack([1 - weight, weight], -1)))
        pyro.sample("y", dist.Normal(locs[upper], scales[upper]), obs=y)


def draw_mixture(rng: np.random.Generator, size: int) -> Data:
    scales = 10 ** rng.uniform(-0.4, 0.4, 2)
    upper = rng.random(size) < rng.uniform(0.25, 0.75)
    locs = 8 * rng.standard_normal() + np.array([0.0, rng.uniform(2.5, 5.0) * scales.sum()])
    return {"y": locs[upper.astype(int)] + scales[upper.astype(int)] * rng.standard_normal(size)}


def robust(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 20.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 10.0).expand([x.shape[-1]]).to_event(1))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    nu = pyro.sample("nu", dist.Gamma(2.0, 0.1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.StudentT(nu, intercept + x @ slopes, sigma), obs=y)


def draw_robust(rng: np.random.Generator, size: int) -> Data:
    x, sigma = predictors(rng, size, 2), 10 ** rng.uniform(-0.7, 0.5)
    noise = sigma * rng.standard_t(rng.uniform(1.5, 10), size)
    return {"x": x, "y": 5 * rng.standard_normal() + x @ (2 * rng.standard_normal(2)) + noise}


def process(x: Tensor, y: Tensor) -> None:
    """The hyperparameters of a Gaussian process with a squared exponential kernel."""
    amplitude = pyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    length = pyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = pyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    kernel = amplitude**2 * torch.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    covariance = kernel + (noise**2 + 1e-4) * torch.eye(len(x))
    pyro.sample("y", dist.MultivariateNormal(torch.zeros(len(x)), covariance), obs=y)


def draw_process(rng: np.random.Generator, size: int) -> Data:
    amplitude, length, noise = 10 ** rng.uniform([-0.3, -0.4, -1.0], [0.5, 0.2, -0.2])
    x = np.sort(rng.uniform(-4, 4, size))
    kernel = amplitude**2 * np.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    covariance = kernel + (noise**2 + 1e-4) * np.eye(size)
    return {"x": x, "y": np.linalg.cholesky(covariance) @ rng.standard_normal(size)}


def process_exact(data: Data) -> Moments:
    x, y = data["x"], data["y"]
    apart = (x[:, None] - x) ** 2

    def part(nodes: Array) -> Array:
        amplitude, length, noise = np.exp(nodes).T[..., None, None]
        kernel = amplitude**2 * np.exp(-0.5 * apart / length**2) + (noise**2 + 1e-4) * np.eye(len(x))
        root = np.linalg.cholesky(kernel)
        white = np.linalg.solve(root, np.broadcast_to(y[:, None], (len(nodes), len(y), 1)))[..., 0]
        log_det = 2 * np.log(np.diagonal(root, axis1=-2, axis2=-1)).sum(-1)
        prior = sum(log_normal(column, loc, 1.0) for column, loc in zip(nodes.T, (0.0, 0.0, -1.0), strict=True))
        return -0.5 * ((white**2).sum(-1) + log_det) + prior

    def log_density(nodes: Array) -> Array:
        return np.concatenate([part(some) for some in np.array_split(nodes, len(nodes) // 2_000 + 1)])

    grid = on_grid(log_density, [-4.0, -4.0, -6.0], [4.0, 4.0, 3.0], 32)
    names = ("amplitude", "length", "noise")
    return {name: grid.moments(np.exp(column)) for name, column in zip(names, grid.nodes.T, strict=True)}


def two_modes(y: Tensor, sigma: Tensor, tilt: Tensor) -> None:
    """The data tell the square of a number, its prior leans to one side."""
    mu = pyro.sample("mu", dist.Normal(tilt, 2.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu**2, sigma), obs=y)


def draw_two_modes(rng: np.random.Generator, size: int) -> Data:
    sigma, mu = 10 ** rng.uniform(-0.5, 0.7), rng.uniform(0.3, 3.0)
    return {"y": mu**2 + sigma * rng.standard_normal(size), "sigma": sigma, "tilt": rng.uniform(-0.8, 0.8)}


def two_modes_exact(data: Data) -> Moments:
    y, sigma, tilt = data["y"], float(data["sigma"]), float(data["tilt"])

    def log_density(nodes: Array) -> Array:
        return (-0.5 * ((y - nodes**2) / sigma) ** 2).sum(-1) + normal(nodes[:, 0], tilt, 2.0)

    grid = on_grid(log_density, [-12.0], [12.0], 4_000)
    return {"mu": grid.moments(grid.nodes[:, 0])}


FAMILIES = {
    "mixture": Family(mixture, draw_mixture, (60, 150), ("low", "gap", "scales", "weight")),
    "robust": Family(robust, draw_robust, (40, 120), ("intercept", "slopes", "sigma", "nu")),
    "process": Family(process, draw_process, (20, 32), ("amplitude", "length", "noise"), process_exact),
    "two modes": Family(two_modes, draw_two_modes, (4, 12), ("mu",), two_modes_exact),
}
