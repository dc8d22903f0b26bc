"""Guides for factor analysis and probabilistic PCA: an encoder, parameters for each row, or the posterior itself."""

from __future__ import annotations

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.models.factor_analysis import FactorAnalysis, encoder

__all__ = ["FactorAnalysisExactGuide", "FactorAnalysisGuide", "FactorAnalysisRowGuide"]


@dataclass(frozen=True)
class FactorAnalysisGuide:
    """q(z_i | x_i) = Normal(bias + weights x_i, covariance), amortised: new rows need no new fit.

    The exact posterior is of this form, with one covariance for all rows, so that neither the family nor the
    amortisation costs anything: the best ELBO is log p(x).

    Args:
        model: the factor analysis that this is a guide for.

    References:
        Lucas, Tucker, Grosse and Norouzi (2019), Don't Blame the ELBO! A Linear VAE Perspective on Posterior Collapse.
    """

    model: FactorAnalysis

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, D).
        """
        with pyro.plate("row", len(x)) as i:
            pyro.sample("z", self.encode(x[i]))

    def encode(self, x: Tensor) -> dist.MultivariateNormal:
        """The guide's distribution of the factors: x of shape (N, D) gives batch shape (N,), event shape (K,)."""
        d, k = self.model.data_dim, self.model.latent_dim
        weights = pyro.param("z_weights", torch.zeros(k, d))
        bias = pyro.param("z_bias", torch.zeros(k))
        scale_tril = pyro.param("z_scale_tril", 0.1 * torch.eye(k), constraint=constraints.softplus_lower_cholesky)
        return dist.MultivariateNormal(bias + x @ weights.T, scale_tril=scale_tril)

    def adopt_posterior(self) -> None:
        """Put the guide at the exact posterior given the model's parameters, in Pyro's store as it is now."""
        at_zero = self.model.posterior(torch.zeros(1, self.model.data_dim).to(pyro.param("mean")))
        weights, _ = encoder(
            pyro.param("loading").detach(), pyro.param("noise_scale").detach().expand(self.model.data_dim)
        )
        store = pyro.get_param_store()
        store["z_weights"], store["z_bias"], store["z_scale_tril"] = weights, at_zero.loc[0], at_zero.scale_tril[0]


@dataclass(frozen=True)
class FactorAnalysisRowGuide:
    """q(z_i) = Normal(loc_i, covariance_i), a location and a Cholesky factor of its own for each row.

    N K (K + 3) / 2 numbers in place of an encoder's: no amortisation, and nothing for rows that were not fitted. In
    minibatches each step moves the rows that were drawn, so that each needs as many visits as steps without. Under
    `STL_ELBO`, whose gradient is noisy far from the posterior, it may go astray at a learning rate of 0.1.

    Args:
        model: the factor analysis that this is a guide for.

    References:
        Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
    """

    model: FactorAnalysis

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, D); only its rows are counted.
        """
        n, k = len(x), self.model.latent_dim
        with pyro.plate("row", n):
            loc = pyro.param("z_loc", torch.zeros(n, k), event_dim=1)
            start = (0.1 * torch.eye(k)).repeat(n, 1, 1)
            scale_tril = pyro.param("z_scale_tril", start, constraint=constraints.softplus_lower_cholesky, event_dim=2)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=scale_tril))

    def adopt_posterior(self, x: Tensor) -> None:
        """Put the guide at the exact posterior given the model's parameters, in Pyro's store as it is now.

        Args:
            x: data of the fit, shape (N, D), in its dtype and on its device.
        """
        posterior = self.model.posterior(x)
        store = pyro.get_param_store()
        store["z_loc"] = posterior.loc
        store["z_scale_tril"] = posterior.scale_tril.expand(len(x), -1, -1).clone()


@dataclass(frozen=True)
class FactorAnalysisExactGuide:
    """q(z_i | x_i) = p(z_i | x_i) at the model's own parameters, wherever those are: nothing of its own to learn.

    Every draw then has log p(x, z) - log q(z) = log p(x), so that under `Trace_ELBO` loss and gradient are those of
    the exact log likelihood, without noise: with a falling learning rate a fit finds its maximum to rounding.

    Args:
        model: the factor analysis that this is a guide for.

    References:
        Rubin and Thayer (1982), EM Algorithms for ML Factor Analysis (the E step).
    """

    model: FactorAnalysis

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, D).
        """
        loading, mean, noise_scale = self.model.parameters(x)
        weights, scale_tril = encoder(loading, noise_scale)
        with pyro.plate("row", len(x)) as i:
            pyro.sample("z", dist.MultivariateNormal((x[i] - mean) @ weights.T, scale_tril=scale_tril))
