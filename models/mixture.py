"""A Gaussian mixture with a diagonal covariance for each component."""

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor

__all__ = ["GaussianMixture"]


@dataclass(frozen=True)
class GaussianMixture:
    """Points from K Gaussian components, K given.

    weights ~ Dirichlet(concentration, …), loc_k ~ Normal(centre, spread), scale_k ~ LogNormal(log(spread / K), 1),
    component_i ~ Categorical(weights), x_i ~ Normal(loc_component[i], scale_component[i]) in each column.

    `centre` and `spread` are given, since a prior that looks at the data would count them twice; standardised
    columns go well with the defaults. A guide that leaves `component` out has it summed out. Components are marked
    exchangeable, so that their evidence counts every order of the labels, whichever one a guide has found.

    Args:
        num_components: K.
        concentration: of the Dirichlet prior on the weights, positive.
        centre: of the prior on the locations, in the units of the data.
        spread: scale of the prior on the locations, in the units of the data.

    References:
        Bishop (2006), Pattern Recognition and Machine Learning, section 9.2 and 10.2.
    """

    num_components: int
    concentration: float = 1.0
    centre: float = 0.0
    spread: float = 2.0

    def __call__(self, x: Tensor) -> None:
        """One run of the model.

        Args:
            x: points, shape (N, D).
        """
        k, (n, d) = self.num_components, x.shape
        # The prior does not tell components apart: the posterior has K! modes, which `ingle.log_evidence` must know.
        last: Any = {"exchangeable": -1}
        first: Any = {"exchangeable": -2}
        weights = pyro.sample("weights", dist.Dirichlet(torch.full((k,), self.concentration)), infer=last)
        with pyro.plate("component_k", k):
            normal = dist.Normal(self.centre, self.spread).expand([d]).to_event(1)
            loc = pyro.sample("loc", normal, infer=first)
            typical = math.log(self.spread / k)
            log_normal = dist.LogNormal(typical, 1.0).expand([d]).to_event(1)
            scale = pyro.sample("scale", log_normal, infer=first)
        with pyro.plate("point", n) as i:
            component = pyro.sample("component", dist.Categorical(weights))
            # A place for the points left of K and D, so that particles in front of it stay in front.
            mean, sd = (Vindex(value.unsqueeze(-3))[..., component, :] for value in (loc, scale))
            pyro.sample("x", dist.Normal(mean, sd).to_event(1), obs=x[i])
