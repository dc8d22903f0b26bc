"""The guide of diffusion: noise added in fixed steps, nothing to learn; and the bound, step by step."""

from __future__ import annotations

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import kl_divergence

from ingle.models.diffusion import Diffusion, RandomSteps

__all__ = ["DiffusionGuide", "RandomStepsGuide"]


@dataclass(frozen=True)
class DiffusionGuide:
    """q(x_1 … x_T | x): x_t ~ Normal(sqrt(1 - beta_t) x_{t-1}, beta_t I) from x_0 = x, without parameters.

    It is drawn from the far end, x_T given x, then each x_{t-1} given x_t and x, which is the same joint distribution.
    The divergence of each step given x_t then has a formula, which `TraceMeanField_ELBO` takes.

    The methods tell the bound, at torch's random state.

    Args:
        model: the diffusion that this is a guide for.

    References:
        Ho, Jain and Abbeel (2020), Denoising Diffusion Probabilistic Models, equations 5 to 7.
    """

    model: Diffusion

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        chain = self.model
        chain.check(x)
        with pyro.plate("data", len(x)) as i:
            row = x[i]
            z = pyro.sample(f"x_{chain.num_steps}", chain.noised(row, chain.at(chain.num_steps, row)))
            for t in range(chain.num_steps, 1, -1):
                z = pyro.sample(f"x_{t - 1}", _before(chain, z, row, chain.at(t, z)))

    def path(self, x: Tensor) -> Tensor:
        """Data as they become noise, in the guide's own steps.

        Args:
            x: data, shape (N, *data_shape).

        Returns:
            x_0 = x, x_1, …, x_T: shape (T + 1, N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        self.model.check(x)
        found = [x]
        for beta in self.model.beta[1:].to(x):
            found.append((1.0 - beta).sqrt() * found[-1] + beta.sqrt() * torch.randn_like(x))
        return torch.stack(found)

    def prior_term(self, x: Tensor) -> Tensor:
        """KL(q(x_T | x) || p(x_T)) of each datum, in nats, shape (N,): what the noise still tells of the data.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        self.model.check(x)
        return kl_divergence(self.model.noised(x, self.model.at(self.model.num_steps, x)), self.model.prior())

    def step_terms(self, x: Tensor) -> Tensor:
        """What each step costs each datum, in nats, at one draw of x_t ~ q(x_t | x): the bound is minus the sum.

        Args:
            x: data, shape (N, *data_shape), in the dtype and on the device of the denoiser.

        Returns:
            Shape (T, N). Row t - 1 is KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t)) for t > 1, and -log p(x | x_1), which
            may be negative, for t = 1. `prior_term` is no part of it.

        Raises:
            ValueError: as from the model.
        """
        chain = self.model
        chain.check(x)
        found = []
        with torch.no_grad():
            for step in range(1, chain.num_steps + 1):
                t = chain.at(step, x)
                x_t = chain.noised(x, t).sample()
                reverse = chain.reverse(x_t, t)
                if step == 1:
                    found.append(-reverse.log_prob(x))
                else:
                    found.append(kl_divergence(_before(chain, x_t, x, t), reverse))
        return torch.stack(found)

    def bits_per_dim(self, x: Tensor) -> tuple[float, float]:
        """Minus the bound in bits for each number of a datum, averaged over data, and its standard error.

        It bounds the mean of -log2 p(x) / D from above. That of a density may be negative, and depends on the units of
        the data: for pixels of K levels scaled to -1 to 1 see `Diffusion`. The standard error is that of data drawn
        anew, with the noise of the steps in it.

        Args:
            x: data, shape (N, *data_shape), N of 2 or more, in the dtype and on the device of the denoiser.

        Raises:
            ValueError: as from the model, or a single datum.
        """
        if len(x) < 2:
            raise ValueError(f"a standard error over data wants 2 or more of them, got {len(x)}")
        costs = (self.step_terms(x).sum(0) + self.prior_term(x)) / (x[0].numel() * math.log(2.0))
        return float(costs.mean()), float(costs.std()) / math.sqrt(len(x))


@dataclass(frozen=True)
class RandomStepsGuide:
    """The guide of `RandomSteps`: a step for each datum, x_t given x, and x_{t-1} given both.

    Args:
        model: the program that this is a guide for.
    """

    model: RandomSteps

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        chain = self.model.diffusion
        chain.check(x)
        time = pyro.sample("time", self.model.time())
        with pyro.plate("data", len(x)) as i:
            row = x[i]
            t = self.model.steps(time, len(row))
            pyro.sample(f"x_{chain.num_steps}", chain.noised(row, chain.at(chain.num_steps, row)))
            x_t = pyro.sample("x_t", chain.noised(row, t).mask(False))
            with poutine.scale(scale=self.model.weight(t)):
                pyro.sample("x_before", _before(chain, x_t, row, t).mask(t > 1))


def _before(chain: Diffusion, x_t: Tensor, x: Tensor, t: Tensor) -> dist.TorchDistribution:
    """q(x_{t-1} | x_t, x) for t > 1; at t = 1, where it is x itself, something finite that a mask hides."""
    beta, noise = chain.spread(chain.beta, t, x), chain.spread(chain.noise_var, t, x)
    before = chain.spread(chain.noise_var, t - 1, x)
    of_x = chain.spread(chain.alpha_bar, t - 1, x).sqrt() * beta / noise
    of_x_t = (1.0 - beta).sqrt() * before / noise
    variance = torch.where(before > 0, beta * before / noise, torch.ones_like(beta))
    return chain.normal(of_x * x + of_x_t * x_t, variance.sqrt())
