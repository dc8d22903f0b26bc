"""Guides for the regressions: one normal over intercept and weights together, with a full covariance."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.models.regression import LinearRegression, LogisticRegression

__all__ = ["LinearRegressionGuide", "LogisticRegressionGuide"]


@dataclass(frozen=True)
class LinearRegressionGuide:
    """Noise LogNormal; intercept and weights MultivariateNormal together given it, as wide as the noise is large.

    So are they under the prior that is conjugate, which the priors of the model come near where the data say much.
    Where the noise is given, the family holds the posterior.

    Args:
        model: the regression that this is a guide for.
    """

    model: LinearRegression

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the guide.

        Args:
            x: columns, shape (N, D).
            y: not used.
        """
        unit, noise = self.model.y_spread, self.model.noise
        if noise is not None:
            _coefficients(self.model, x, torch.tensor(noise / unit), noise / unit)
            return
        start = self.model.noise_scale
        loc = pyro.param("noise_loc", torch.tensor(math.log(start * unit)))
        scale = pyro.param("noise_scale", torch.tensor(0.1), constraint=constraints.softplus_positive)
        _coefficients(self.model, x, pyro.sample("noise", dist.LogNormal(loc, scale)) / unit, start)


@dataclass(frozen=True)
class LogisticRegressionGuide:
    """Intercept and weights MultivariateNormal together.

    Args:
        model: the regression that this is a guide for.
    """

    model: LogisticRegression

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the guide.

        Args:
            x: columns, shape (N, D).
            y: not used.
        """
        # A label of even odds says as much about its log odds as a number with noise of sd 2.
        _coefficients(self.model, x, torch.tensor(2.0), 2.0)


def _coefficients(model: LinearRegression | LogisticRegression, x: Tensor, noise: Tensor, typical: float) -> None:
    """Intercept, then weights given it: together a normal with a lower triangular factor.

    Location and factor are learned in coordinates in which the columns are uncorrelated, so that columns that move
    together are no harder than others. There the posterior of a line is round, and noise / sqrt(N) wide: the start.

    Args:
        model: of the standardised columns and the priors.
        x: columns, shape (N, D).
        noise: of one row about the line, on the scale of intercept and weights.
        typical: a value of it, which does not change from draw to draw.
    """
    n, size = len(x), x.shape[-1] + 1
    basis = _uncorrelated(model, x, typical).to(torch.get_default_dtype())
    loc = basis @ pyro.param("coefficients_loc", torch.zeros(size))
    scale = pyro.param("coefficients_scale", torch.full((size,), n**-0.5), constraint=constraints.softplus_positive)
    tril = pyro.param("coefficients_tril", torch.eye(size), constraint=constraints.unit_lower_cholesky)
    factor = noise[..., None, None] * (basis @ (scale.unsqueeze(-1) * tril))
    # Two sites, and no joint one whose parts they are, so that each has a density of its own to be weighed by.
    intercept = pyro.sample("intercept", dist.Normal(loc[0], factor[..., 0, 0]))
    moved = ((intercept - loc[0]) / factor[..., 0, 0]).unsqueeze(-1) * factor[..., 1:, 0]
    pyro.sample("weights", dist.MultivariateNormal(loc[1:] + moved, scale_tril=factor[..., 1:, 1:]))


def _uncorrelated(model: LinearRegression | LogisticRegression, x: Tensor, noise: float) -> Tensor:
    """Lower triangular B, shape (D + 1, D + 1): B B' noise^2 / N is the posterior's covariance for normal noise.

    In float64, where the prior keeps it from failing also if a column is a copy of another.
    """
    z = model.standardise(x).double()
    design = torch.cat([torch.ones_like(z[:, :1]), z], dim=1)
    prior = torch.full((design.shape[1],), model.weights_scale, dtype=z.dtype, device=z.device)
    prior[0] = model.intercept_scale
    precision = (design.T @ design + torch.diag((noise / prior) ** 2)) / len(x)
    basis: Tensor = torch.linalg.cholesky(torch.linalg.inv(precision))
    return basis
