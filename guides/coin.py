"""A guide for the coin whose family holds the posterior."""

from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.models.coin import Coin

__all__ = ["CoinGuide"]


@dataclass(frozen=True)
class CoinGuide:
    """p ~ Beta(total * share, total * (1 - share)), both learned.

    The total starts at alpha + beta + N, where the posterior's lies, because its own gradient is faint beside the
    noise of the share's; it counts tosses, one or millions, so it is learned on the log scale. The share starts at a
    half. Where heads or tails alone were seen under a prior below 1, draws in float32 round to 1 or 0, whose density is
    infinite: fit with dtype=torch.float64.

    Args:
        model: the coin that this is a guide for.

    References:
        Figurnov, Mohamed and Mnih (2018), Implicit Reparameterization Gradients (what makes a Beta learnable).
    """

    model: Coin

    def __call__(self, x: Tensor | None = None, tosses: int | None = None) -> None:
        """One run of the guide.

        Args:
            x: tosses, shape (N,); only their number is used.
            tosses: N where there is no x.
        """
        n = float(len(x) if x is not None else tosses or 0)
        share = pyro.param("p_share", torch.tensor(0.5), constraint=constraints.unit_interval)
        start = torch.tensor(self.model.alpha + self.model.beta + n)
        total = pyro.param("p_total", start, constraint=constraints.positive)
        pyro.sample("p", dist.Beta(total * share, total * (1 - share)))
