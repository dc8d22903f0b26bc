"""Likelihoods of pixels and columns, from what a decoder puts out, and what each of them takes for data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor
from torch.nn import functional

__all__ = ["Kind", "Likelihood"]

Kind = Literal["bernoulli", "normal", "heteroscedastic", "categorical"]

_KINDS = ("bernoulli", "normal", "heteroscedastic", "categorical")
_FLOOR = 1e-3  # of a standard deviation that a network puts out: a density without a bound has no best fit


@dataclass(frozen=True)
class Likelihood:
    """How the numbers of a datum are distributed, independently of each other, given a decoder's output.

    | kind | x | distribution | outputs for each number |
    | --- | --- | --- | --- |
    | "bernoulli" | 0 or 1 | Bernoulli(logits) | 1 |
    | "normal" | real | Normal(mean, scale), one learned scale for all | 1 |
    | "heteroscedastic" | real | Normal(mean, softplus(raw) + 0.001) | 2 |
    | "categorical" | whole numbers from 0 to levels - 1 | Categorical(logits) | levels |

    Args:
        kind: one of the four.
        levels: values that a pixel can have, for "categorical" alone: 256 for images of 8 bits.

    Raises:
        ValueError: another kind, or fewer than 2 levels.
    """

    kind: Kind = "bernoulli"
    levels: int = 256

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(f"likelihood must be one of {', '.join(map(repr, _KINDS))}, got {self.kind!r}")
        if isinstance(self.levels, bool) or not isinstance(self.levels, int) or self.levels < 2:
            raise ValueError(f"levels must be a whole number of 2 or more, got {self.levels!r}")

    @property
    def outputs(self) -> int:
        """Numbers that the decoder has to give for each number of a datum."""
        return {"heteroscedastic": 2, "categorical": self.levels}.get(self.kind, 1)

    def __call__(self, out: Tensor, dims: int, scale: Tensor | float = 1.0) -> dist.TorchDistribution:
        """The distribution of data, all of a datum's dimensions in the event.

        Args:
            out: of a decoder, shape (…, outputs, *shape).
            dims: dimensions of a datum, the length of `shape`.
            scale: of "normal", positive, shape ().

        Returns:
            Batch shape (…), event shape `shape`.
        """
        parts = out.movedim(-1 - dims, -1)
        if self.kind == "bernoulli":
            found: dist.TorchDistribution = dist.Bernoulli(logits=parts[..., 0])
        elif self.kind == "categorical":
            found = dist.Categorical(logits=parts)
        elif self.kind == "normal":
            found = dist.Normal(parts[..., 0], scale)
        else:
            found = dist.Normal(parts[..., 0], functional.softplus(parts[..., 1]) + _FLOOR)
        whole: dist.TorchDistribution = found.to_event(dims)
        return whole

    def mean(self, out: Tensor, dims: int) -> Tensor:
        """Expected values: shape (…, outputs, *shape) gives (…, *shape)."""
        parts = out.movedim(-1 - dims, -1)
        if self.kind == "categorical":
            return torch.softmax(parts, -1) @ torch.arange(self.levels).to(parts)
        return torch.sigmoid(parts[..., 0]) if self.kind == "bernoulli" else parts[..., 0]

    def as_input(self, x: Tensor) -> Tensor:
        """Data as a network takes them: levels from 0 to 1, and what is real or binary as it is, floating."""
        if self.kind == "categorical":
            return x.to(torch.get_default_dtype()) / (self.levels - 1)
        return self.as_observed(x)

    def as_observed(self, x: Tensor) -> Tensor:
        """Data as the distribution takes them, from bytes or booleans too: whole levels, anything else floating."""
        if self.kind == "categorical":
            return x.long()
        return x if x.is_floating_point() else x.to(torch.get_default_dtype())

    def check(self, x: Tensor, shape: Sequence[int]) -> None:
        """Whether these are data of this likelihood; values are looked at where Pyro's validation is on.

        Args:
            x: data, shape (N, *shape).
            shape: of one datum.

        Raises:
            ValueError: another shape, missing values, or values outside the support, with the likelihood that fits.
        """
        if x.dim() != 1 + len(shape) or x.shape[1:] != torch.Size(shape):
            raise ValueError(_other_shape(x, tuple(shape)))
        self.check_each(x, shape)

    def check_each(self, x: Tensor, shape: Sequence[int]) -> None:
        """The same where any batch dimensions may come before: data of shape (…, *shape)."""
        if x.shape[max(x.dim() - len(shape), 0) :] != torch.Size(shape):
            told = ", ".join(map(str, shape))
            raise ValueError(f"x must have shape (…, {told}), since data_shape is that; got {tuple(x.shape)}")
        if is_validation_enabled():
            self._check_values(x if x.is_floating_point() else x.long())  # bytes do not hold 256 levels

    def _check_values(self, x: Tensor) -> None:
        strange = ~torch.isfinite(x)
        if strange.any():
            raise ValueError(
                f"{int(strange.sum()):,} of the {x.numel():,} values in x are NaN or infinite, the first at "
                f"{strange.nonzero()[0].tolist()}: where pixels are missing, say which, with the image completion pair"
            )
        if self.kind == "bernoulli":
            strange, wanted = (x != 0) & (x != 1), "0 or 1"
        elif self.kind == "categorical":
            strange, wanted = (x % 1 != 0) | (x < 0) | (x >= self.levels), f"a whole number below {self.levels}"
        else:
            return
        if strange.any():
            place = strange.nonzero()[0].tolist()
            raise ValueError(
                f"x must be {wanted} for likelihood {self.kind!r}, and {int(strange.sum()):,} of its {x.numel():,} "
                f"values are not, the first {float(x[tuple(place)]):g} at {place}; they go from {float(x.min()):g} to "
                f"{float(x.max()):g}: {_fitting(x)}"
            )


def _fitting(x: Tensor) -> str:
    """Which likelihood takes these values."""
    least, most = float(x.min()), float(x.max())
    if bool((x % 1 == 0).all()) and least >= 0:
        return f"likelihood='categorical' with levels={int(most) + 1} or more takes them as they are"
    told = "likelihood='normal' or 'heteroscedastic' takes them as they are"
    if least >= 0 and most <= 1:
        told += ", and 'bernoulli' takes them made black and white, x > 0.5 or torch.bernoulli(x)"
    return told


def _other_shape(x: Tensor, shape: tuple[int, ...]) -> str:
    told = f"x must have shape (N, {', '.join(map(str, shape))}), since data_shape is that; got {tuple(x.shape)}"
    if x.shape == torch.Size(shape):
        return f"{told}: for one datum give x[None]"
    if x.dim() > 1 and math.prod(x.shape[1:]) == math.prod(shape):
        return f"{told}: give x.reshape(-1, {', '.join(map(str, shape))})"
    return told
