"""A coin with a Beta prior on its chance of heads: the smallest model whose answers are all known."""

import math
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["Coin"]


@dataclass(frozen=True)
class Coin:
    """Tosses of one coin, conjugate, so that posterior, prediction and evidence have closed forms.

    p ~ Beta(alpha, beta), x_i ~ Bernoulli(p).

    With h heads in n tosses the posterior is Beta(alpha + h, beta + n - h), so the prior counts as much as alpha + beta
    tosses seen before, alpha of them heads. The methods beside the model give these answers, in float64.

    Args:
        alpha: first concentration of the prior, positive.
        beta: second concentration of the prior, positive.

    Raises:
        ValueError: a concentration that is not positive and finite.

    References:
        Bayes (1763), An Essay towards solving a Problem in the Doctrine of Chances.
        Gelman et al. (2013), Bayesian Data Analysis, section 2.4.
    """

    alpha: float = 1.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        for name, value in (("alpha", self.alpha), ("beta", self.beta)):
            if not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value}")

    def __call__(self, x: Tensor | None = None, tosses: int | None = None) -> None:
        """One run of the model.

        Args:
            x: 1 for heads and 0 for tails, any dtype, shape (N,); None draws them.
            tosses: N, needed where there is no x.

        Raises:
            ValueError: values other than 0 and 1, another shape, no toss, or an N that is not that of x.
        """
        if x is None and (tosses is None or tosses < 1):
            raise ValueError(f"without x, tosses must say how many to draw, 1 or more: got {tosses}")
        n = len(_checked(x)) if x is not None else tosses
        if tosses not in (None, n):
            raise ValueError(f"tosses is {tosses}, and x has {n}: leave tosses out")
        if n == 0:
            raise ValueError(
                "x holds no toss, and a model needs one: the posterior is then the prior, as `posterior` says"
            )
        p = pyro.sample("p", dist.Beta(self.alpha, self.beta))
        with pyro.plate("toss", n) as i:
            pyro.sample("x", dist.Bernoulli(p), obs=None if x is None else x[i].to(p.dtype))

    def posterior(self, x: Tensor) -> dist.Beta:
        """The distribution of p given tosses x, shape (N,), exactly; float64, on the CPU."""
        heads, tails = self._counts(x)
        return dist.Beta(*torch.tensor([self.alpha + heads, self.beta + tails], dtype=torch.float64))

    def predictive(self, x: Tensor) -> float:
        """P(heads at the next toss | x), exactly."""
        heads, tails = self._counts(x)
        return (self.alpha + heads) / (self.alpha + self.beta + heads + tails)

    def log_evidence(self, x: Tensor) -> float:
        """Log of the probability of these tosses in this order, p integrated out, in nats, exactly."""
        heads, tails = self._counts(x)
        return _log_beta(self.alpha + heads, self.beta + tails) - _log_beta(self.alpha, self.beta)

    def _counts(self, x: Tensor) -> tuple[int, int]:
        heads = int(_checked(x).sum())
        return heads, len(x) - heads


def _checked(x: Tensor) -> Tensor:
    if x.dim() != 1:
        raise ValueError(f"x must have shape (tosses,), got {tuple(x.shape)}")
    strange = x[(x != 0) & (x != 1)]
    if len(strange):
        found = ", ".join(f"{value:g}" for value in strange.unique()[:5].tolist())
        raise ValueError(
            f"x must hold 1 for heads and 0 for tails, and {len(strange)} of {len(x)} are neither: {found}"
        )
    return x


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
