"""One scale for terms that are weighed together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro.infer.util import is_validation_enabled
from torch import Tensor

__all__ = ["common_scale"]


def common_scale(scales: Sequence[Any], told: str) -> Any:
    """The scale that all sites share.

    Tensors are compared under validation, since that reads them: each site has a tensor of its own even where
    all have one `poutine.scale`. A number beside a tensor is no common scale unless the tensor is that number.

    Args:
        scales: of the sites, numbers or scalar tensors.
        told: what shares them, for the message.

    Raises:
        ValueError: they differ, or one has dimensions.
    """
    if any(isinstance(scale, Tensor) and scale.dim() for scale in scales):
        raise ValueError(f"{told} take a scalar poutine.scale, and found one with dimensions")
    numbers = [scale for scale in scales if not isinstance(scale, Tensor)]
    compared = scales if is_validation_enabled() or 0 < len(numbers) < len(scales) else numbers
    if len({float(scale) for scale in compared}) > 1:
        raise ValueError(
            f"{told} must share one poutine.scale, and have "
            + ", ".join(sorted({f"{float(scale):g}" for scale in compared}))
        )
    return scales[0]
