"""Pareto smoothed importance sampling for many sets of weights at once, on their device."""

from __future__ import annotations

import math

import torch
from torch import Tensor

__all__ = ["draws_for", "khat_of", "khat_threshold", "psis", "tail_length"]

_FEWEST = 4  # a tail of as many or fewer says nothing
_FLOOR = math.log(torch.finfo(torch.float64).tiny)  # below the largest by more than this, a weight is no number
_AT_ONCE = 2**20  # numbers in the grid of one fit


def psis(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Log weights with a smoothed right tail, normalised, and the shape of that tail.

    The largest weights are replaced by the expected order statistics of a generalised Pareto distribution fitted to
    them, none above the largest raw weight. This makes expectations steadier and biased a little; an estimate of the
    evidence takes the raw weights.

    Args:
        log_weights: log p - log q of each draw, shape (S, *batch), in nats. Larger means the target has more there
            than the proposal: neither negated nor normalised.

    Returns:
        Smoothed log weights that sum to one over draws, float64, shape (S, *batch); and k-hat, float64, shape (*batch),
        infinite where the tail has four weights or fewer that differ from the cutoff.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
        Zhang and Stephens (2009), A New and Efficient Estimation Method for the Generalized Pareto Distribution.
    """
    columns = log_weights.to(torch.float64).reshape(len(log_weights), -1).T  # (batch, S)
    columns = columns - columns.amax(1, keepdim=True)
    largest, places = columns.topk(min(tail_length(len(log_weights)) + 1, len(log_weights)), dim=1)
    tail = _Tail(largest)
    khat, sigma = tail.fit()
    # In descending order, so the first of n is at the quantile (n - 1/2) / n.
    ranks = tail.number[:, None] - torch.arange(tail.excess.shape[1], dtype=torch.float64, device=khat.device)
    smooth = _quantile((ranks - 0.5) / tail.number[:, None].clamp(min=1), khat[:, None], sigma[:, None])
    smooth = (smooth + tail.cutoff.exp()).log().clamp(max=0.0)
    kept = torch.where(tail.inside & khat.isfinite()[:, None], smooth, largest[:, :-1])
    columns = columns.scatter(1, places[:, :-1], kept).log_softmax(1)
    return columns.T.reshape(log_weights.shape), khat.reshape(log_weights.shape[1:])


def khat_of(largest: Tensor) -> Tensor:
    """The shape k-hat of the tail of weights of which only the largest were kept.

    Args:
        largest: the `tail_length(S) + 1` largest log weights of S, in any order, shape (M + 1, *batch), in nats.

    Returns:
        float64, shape (*batch); infinite where four or fewer lie above the cutoff.
    """
    columns = largest.to(torch.float64).reshape(len(largest), -1).T
    columns = (columns - columns.amax(1, keepdim=True)).sort(1, descending=True).values
    return _Tail(columns).fit()[0].reshape(largest.shape[1:])


def tail_length(num_samples: int) -> int:
    """How many of S weights are the tail: the least of S / 5 and 3 sqrt(S)."""
    return math.ceil(min(num_samples / 5, 3 * math.sqrt(num_samples)))


def khat_threshold(num_samples: int) -> float:
    """The largest k-hat at which S draws can be trusted, min(1 - 1 / log10 S, 0.7), from Vehtari et al. (2024)."""
    return min(1 - 1 / math.log10(num_samples), 0.7) if num_samples > 1 else -math.inf


def draws_for(khat: float) -> float:
    """How many draws a k-hat asks for, 10^(1 / (1 - k)), from Vehtari et al. (2024); infinite from 1 on."""
    if math.isnan(khat):
        return math.nan
    if khat >= 1:
        return math.inf
    exponent = 1 / (1 - max(khat, 0.0))
    return 10.0**exponent if exponent < 300 else math.inf


class _Tail:
    """How far the largest weights, relative to the very largest, lie above the last of them.

    Args:
        largest: log weights in descending order, the first 0, shape (batch, M + 1).

    Attributes:
        cutoff: the log weight that the tail begins at, shape (batch, 1).
        inside: which lie above it, shape (batch, M).
        excess: weights less the cutoff's, in descending order, 0 where not inside, shape (batch, M).
        number: of those inside, shape (batch,).
    """

    def __init__(self, largest: Tensor) -> None:
        self.cutoff = largest[:, -1:].clamp(min=_FLOOR)
        self.inside = largest[:, :-1] > self.cutoff
        self.excess = torch.where(self.inside, largest[:, :-1].exp() - self.cutoff.exp(), 0.0)
        self.number = self.inside.sum(1)

    def fit(self) -> tuple[Tensor, Tensor]:
        """Shape and scale of a generalised Pareto distribution of the excess, each of shape (batch,)."""
        width = self.excess.shape[1]
        most = max(1, _AT_ONCE // max(1, width * (30 + math.isqrt(width))))
        parts = [_fit(*part) for part in zip(self.excess.split(most), self.number.split(most), strict=True)]
        khat, sigma = (torch.cat([part[place] for part in parts]) for place in (0, 1))
        return torch.where(self.number > _FEWEST, khat, torch.inf), sigma


def _fit(excess: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale at the posterior mean of b = -k / sigma, over a grid, under Zhang and Stephens' prior."""
    n = number.clamp(min=1).double()[:, None]
    points = 30 + n.sqrt().floor()
    place = torch.arange(1, int(points.max()) + 1, dtype=torch.float64, device=excess.device)
    quartile = excess.gather(1, (number[:, None] - (n / 4 + 0.5).floor().long()).clamp(0, excess.shape[1] - 1))
    grid = (1 - (points / (place - 0.5)).sqrt()) / (3 * quartile) + 1 / excess[:, :1]
    k = torch.log1p(-grid[:, :, None] * excess[:, None, :]).sum(2) / n
    profile = n * ((-grid / k).log() - k - 1)
    profile = torch.where((place <= points) & profile.isfinite(), profile, -torch.inf)
    weights = profile.softmax(1)
    weights = torch.where(weights >= 10 * torch.finfo(torch.float64).eps, weights, 0.0)
    b = (torch.where(weights > 0, grid, 0.0) * weights).sum(1) / weights.sum(1)
    shape = torch.log1p(-b[:, None] * excess).sum(1) / n[:, 0]
    weak = 10  # draws that a prior on k at one half counts as
    return (n[:, 0] * shape + weak * 0.5) / (n[:, 0] + weak), -shape / b


def _quantile(share: Tensor, k: Tensor, sigma: Tensor) -> Tensor:
    """Of a generalised Pareto distribution."""
    up = -torch.log1p(-share)
    return sigma * torch.where(k.abs() < torch.finfo(torch.float64).eps, up, torch.expm1(k * up) / k)
