"""A guide for the Gaussian mixture: one component for each of K points of the data that lie far apart."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.models.mixture import GaussianMixture

__all__ = ["GaussianMixtureGuide"]


@dataclass(frozen=True)
class GaussianMixtureGuide:
    """Independent factors: weights Dirichlet, locations Normal, scales LogNormal. The assignments are left out.

    The Dirichlet is a total times shares. The total starts at N, where the posterior's lies for components well
    apart, because its own gradient is faint. The locations start at K points that lie far from one another, the first
    nearest the mean, so that each component begins in a place of its own; the labels keep that order.

    Args:
        model: the mixture that this is a guide for.

    References:
        Gonzalez (1985), Clustering to minimize the maximum intercluster distance (the start).
    """

    model: GaussianMixture

    def __call__(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: points, shape (N, D).
        """
        k, d = self.model.num_components, x.shape[-1]
        share = pyro.param("weights_share", torch.full((k,), 1 / k), constraint=constraints.simplex)
        total = pyro.param("weights_total", torch.tensor(float(len(x))), constraint=constraints.softplus_positive)
        pyro.sample("weights", dist.Dirichlet(total * share))
        with pyro.plate("component_k", k):
            loc = pyro.param("loc_loc", lambda: _far_points(x, k))
            loc_scale = pyro.param("loc_scale", torch.full((k, d), 0.1), constraint=constraints.softplus_positive)
            pyro.sample("loc", dist.Normal(loc, loc_scale).to_event(1))
            scale = pyro.param("scale_loc", torch.full((k, d), math.log(self.model.spread / k)))
            scale_scale = pyro.param("scale_scale", torch.full((k, d), 0.1), constraint=constraints.softplus_positive)
            pyro.sample("scale", dist.LogNormal(scale, scale_scale).to_event(1))


def _far_points(x: Tensor, k: int) -> Tensor:
    """K rows of x, each the one farthest from those before it, shape (K, D)."""
    chosen = [int((x - x.mean(0)).norm(dim=-1).argmin())]
    while len(chosen) < k:
        nearest = torch.cdist(x, x[chosen]).min(dim=-1).values
        chosen.append(int(nearest.argmax()))
    return x[chosen].clone()
