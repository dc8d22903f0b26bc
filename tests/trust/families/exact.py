"""Posterior moments without sampling: Gaussian given a few hyperparameters, and those on a grid."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from trust.families.case import Array

__all__ = ["Grid", "gaussian", "half_normal", "log_normal", "marginal", "mixed", "normal", "on_grid"]

_DEPTH = 25.0  # nats below the highest point that are left out of the fine grid


class Grid:
    """Nodes (nodes, k) with normalised weights (nodes,)."""

    def __init__(self, nodes: Array, weights: Array) -> None:
        self.nodes, self.weights = nodes, weights

    def moments(self, values: Array) -> tuple[Array, Array]:
        """Mean and sd of values known at each node, shape (nodes, ...)."""
        return mixed(self.weights, values, np.zeros_like(values))


def on_grid(log_density: Callable[[Array], Array], low: Array, high: Array, points: int, *, coarse: int = 0) -> Grid:
    """A grid over the part of a box that holds the mass, found on a coarse one.

    The trapezoid rule on a smooth density that vanishes at both ends converges faster than any power of the spacing.

    Args:
        log_density: of nodes (nodes, k), in nats, shape (nodes,).
        low, high: corners of the box, shape (k,).
        points: along each axis.
        coarse: the same for the first look; 0 is as many.
    """
    low, high = np.atleast_1d(np.asarray(low, float)), np.atleast_1d(np.asarray(high, float))
    for count in (coarse or points, points, points):
        axes = [np.linspace(a, b, count) for a, b in zip(low, high, strict=True)]
        nodes = np.array(list(itertools.product(*axes)))
        logs = log_density(nodes)
        inside = nodes[logs > logs.max() - _DEPTH]
        step = (high - low) / (count - 1)
        low, high = np.maximum(low, inside.min(0) - step), np.minimum(high, inside.max(0) + step)
    weights = np.exp(logs - logs.max())
    return Grid(nodes, weights / weights.sum())


def mixed(weights: Array, means: Array, variances: Array) -> tuple[Array, Array]:
    """Mean and sd of a mixture of Gaussians, from (nodes,), (nodes, ...) and (nodes, ...)."""
    mean = np.tensordot(weights, means, 1)
    return mean, np.sqrt(np.tensordot(weights, variances + (means - mean) ** 2, 1))


def gaussian(precision: Array, shift: Array) -> tuple[Array, Array]:
    """Mean and covariance of exp(-x' P x / 2 + h' x), batched."""
    covariance = np.linalg.inv(precision)
    return np.einsum("...ij,...j->...i", covariance, shift), covariance


def marginal(x: Array, y: Array, sd: Array, mean: Array, prior_sd: Array) -> tuple[Array, Array, Array]:
    """y ~ Normal(x w, sd), w ~ Normal(mean, prior_sd): posterior mean and covariance of w, and log p(y); batched.

    Args:
        x: (..., n, d). y: (n,). sd: (..., n). mean, prior_sd: (..., d).
    """
    scaled = x / sd[..., None]
    rest = (y - np.einsum("...nd,...d->...n", x, mean)) / sd
    precision = np.swapaxes(scaled, -1, -2) @ scaled + np.eye(x.shape[-1]) / prior_sd[..., None, :] ** 2
    shift = np.einsum("...nd,...n->...d", scaled, rest)
    moved, covariance = gaussian(precision, shift)
    log_det = np.linalg.slogdet(precision)[1] + 2 * np.log(prior_sd).sum(-1) + 2 * np.log(sd).sum(-1)
    log_p = -0.5 * ((rest**2).sum(-1) - (shift * moved).sum(-1) + log_det + y.shape[-1] * math.log(2 * math.pi))
    return mean + moved, covariance, log_p


def normal(x: Array, loc: float, scale: float) -> Array:
    """Log density, up to a constant."""
    return -0.5 * ((x - loc) / scale) ** 2


def log_normal(log_x: Array, loc: float, scale: float) -> Array:
    """Log density of log x, where x is log-normal, up to a constant."""
    return normal(log_x, loc, scale)


def half_normal(log_x: Array, scale: float) -> Array:
    """Log density of log x, where x is half-normal, up to a constant."""
    return -0.5 * (np.exp(log_x) / scale) ** 2 + log_x
