"""What is kept of importance weights while draws stream past, on their device and in float64."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle.evidence.psis import khat_of, tail_length

__all__ = ["Stream", "Summary"]

Array = NDArray[np.float64]

_FEWEST = 100  # draws below which a tail says nothing
_AT_ONCE = 2**18  # weights that are summed together
_EVEN = 1e-8  # variance of log weights below which it is that of the weights, relative to their mean, to one in 10^4


@dataclass(frozen=True)
class Summary:
    """Of the weights of all draws; arrays of the shape of the elements, on the host.

    Attributes:
        log_z: log of the mean weight, in nats.
        se: its standard error by the delta method.
        ess: effective sample size, (sum w)^2 / sum w^2.
        khat: the shape of the right tail; NaN with fewer than 100 draws, and where the largest weights are all equal.
        elbo, elbo_se: mean log weight and its standard error, in nats.
        gap_se: the standard error of log_z - elbo, which the same draws have given.
        zero, nan, infinite: how many weights are so.
    """

    log_z: Array
    se: Array
    ess: Array
    khat: Array
    elbo: Array
    elbo_se: Array
    gap_se: Array
    zero: NDArray[np.int64]
    nan: NDArray[np.int64]
    infinite: NDArray[np.int64]


class Stream:
    """Sums over the draws of one or several proposals, each of which gives its own share of all draws.

    Weights that are NaN or infinite are counted and take part as zero.

    Args:
        shape: of the elements, each of which has its own weights.
        num_samples: how many draws there will be in all.
        device: where the sums are kept.
        sources: how many proposals.

    References:
        Owen and Zhou (2000), Safe and Effective Importance Sampling (error of a mixture drawn by strata).
    """

    def __init__(self, shape: Sequence[int], num_samples: int, device: torch.device, *, sources: int = 1) -> None:
        self.num_samples = num_samples
        double = {"dtype": torch.float64, "device": device}
        self._count = [0] * sources
        self._top = torch.full(tuple(shape), -torch.inf, **double)  # type: ignore[call-overload]
        # By source: sums of w, w^2, l, l^2 and w l, where w is relative to the largest, and l = log w to a shift.
        self._sums = torch.zeros((sources, 5, *shape), **double)  # type: ignore[call-overload]
        self._shift: Tensor | None = None
        self._odd = torch.zeros((3, *shape), dtype=torch.int64, device=device)
        self._tail = torch.empty((0, *shape), **double)  # type: ignore[call-overload]
        self._recent: list[Tensor] = []  # that the tail lacks still
        self._kept = tail_length(num_samples) + 1

    def add(self, log_weights: Tensor, source: int = 0) -> None:
        """Count draws of one source, log weights of shape (n, *shape)."""
        most = max(1, _AT_ONCE // max(1, self._top.numel()))
        for part in log_weights.split(most):
            self._add(part, source)

    def _add(self, log_weights: Tensor, source: int) -> None:
        weights = log_weights.to(torch.float64)
        nan, infinite = weights.isnan(), weights == torch.inf
        self._odd += torch.stack([(weights == -torch.inf).sum(0), nan.sum(0), infinite.sum(0)])
        weights = weights.masked_fill(nan | infinite, -torch.inf)
        self._count[source] += len(weights)
        largest = weights.amax(0)
        top = torch.maximum(self._top, largest)
        down = (self._top - top).nan_to_num(nan=0.0).exp()  # both -inf: nothing to bring down
        self._sums[:, 0] *= down
        self._sums[:, 1] *= down * down
        self._sums[:, 4] *= down
        self._top = top
        if self._shift is None:
            self._shift = largest.nan_to_num(neginf=0.0)
        level = (weights - self._shift).clamp(min=-1e300)  # a weight of zero, for which the sums of l are not used
        relative = (weights - top.nan_to_num(neginf=0.0)).exp()
        self._sums[source] += torch.stack(
            [
                relative.sum(0),
                relative.square().sum(0),
                level.sum(0),
                level.square().sum(0),
                (relative * level.masked_fill(weights == -torch.inf, 0.0)).sum(0),
            ]
        )
        self._recent.append(weights)
        if sum(map(len, self._recent)) >= self._kept:
            self._merge()

    def _merge(self) -> None:
        """Bring the largest weights up to date."""
        both = torch.cat([self._tail, *self._recent])
        self._recent = []
        if len(both) > self._kept:
            columns = both.reshape(len(both), -1).split(max(1, _AT_ONCE // len(both)), dim=1)
            largest = [part.topk(self._kept, dim=0).values for part in columns]
            both = torch.cat(largest, 1).reshape(self._kept, *self._top.shape)
        self._tail = both

    def summary(self) -> Summary:
        """All of it, in one trip to the host."""
        self._merge()
        shift = torch.zeros_like(self._top) if self._shift is None else self._shift
        khat = khat_of(self._tail) if self.num_samples >= _FEWEST else torch.full_like(self._top, torch.nan)
        if self.num_samples >= _FEWEST:
            flat = self._tail.amax(0) - self._tail.amin(0) < 1e-12  # an atom, as discrete latents have, is no tail
            khat = khat.masked_fill(flat | (self._tail.amax(0) == -torch.inf), torch.nan)
        packed = torch.cat([self._sums.flatten(0, 1), torch.stack([self._top, shift, khat]), self._odd.double()]).cpu()
        sources = len(self._count)
        sums = packed[: 5 * sources].unflatten(0, (sources, 5)).numpy()
        top, shift_, khat_, zero, nan, infinite = packed[5 * sources :].numpy()
        with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
            return self._told(sums, top, shift_, khat_, zero, nan, infinite)

    def _told(
        self, sums: Array, top: Array, shift: Array, khat: Array, zero: Array, nan: Array, infinite: Array
    ) -> Summary:
        n = self.num_samples
        mean = sums[:, 0].sum(0) / n
        # Where all weights are nearly the same, their differences are lost in the sum of squares; their logs' are not.
        even = sums[:, 3].sum(0) / n - (sums[:, 2].sum(0) / n) ** 2 < _EVEN
        variance = np.zeros_like(mean)
        for count, (w, w2, l1, l2, _) in zip(self._count, sums, strict=True):
            if count > 1:  # of the source's mean, times the square of its share
                inside = np.where(even, (l2 / count - (l1 / count) ** 2) * mean**2, w2 / count - (w / count) ** 2)
                variance += np.maximum(inside, 0.0) * count / (count - 1) * count / n**2
            elif count == 1:
                variance += math.nan
        log_z = np.where(infinite > 0, np.inf, top + np.log(mean))
        se = np.sqrt(variance) / mean
        ess = sums[:, 0].sum(0) ** 2 / sums[:, 1].sum(0)
        w, w2, l1, l2, wl = sums.sum(0)
        bare = zero + nan + infinite
        elbo = np.where(bare > 0, -np.inf, shift + l1 / n)
        spread = np.maximum(l2 / n - (l1 / n) ** 2, 0.0)
        # Influence of a draw on log_z - elbo: w / mean - 1 - (l - mean of l).
        both = wl / n / mean - l1 / n
        gap = np.maximum(variance * n / mean**2 + spread - 2 * both, 0.0)
        gone = np.where(bare > 0, math.nan, 1.0)
        return Summary(
            log_z=np.where(mean == 0, np.where(infinite > 0, np.inf, -np.inf), log_z),
            se=np.where((mean == 0) | (infinite > 0), math.nan, se),
            ess=np.where(mean == 0, 0.0, ess),
            khat=khat,
            elbo=elbo,
            elbo_se=gone * np.sqrt(spread / max(n - 1, 1)),
            gap_se=gone * np.sqrt(gap / max(n - 1, 1)),
            zero=zero.astype(np.int64),
            nan=nan.astype(np.int64),
            infinite=infinite.astype(np.int64),
        )
