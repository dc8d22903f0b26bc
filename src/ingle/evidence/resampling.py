"""Draws taken again, each as often as its weight says."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic"]


def systematic(log_weights: Tensor) -> Tensor:
    """Which draws to take, for each element by itself, each within one of its expected number of times.

    Args:
        log_weights: shape (n, *elements), in nats, not normalised.

    Returns:
        Places of draws, int64, shape (n, *elements).

    References:
        Kitagawa (1996), Monte Carlo Filter and Smoother for Non-Gaussian Nonlinear State Space Models.
    """
    n = len(log_weights)
    ends = log_weights.double().softmax(0).cumsum(0).movedim(0, -1).contiguous()
    offset = torch.rand((*ends.shape[:-1], 1), dtype=ends.dtype, device=ends.device)
    points = (torch.arange(n, dtype=ends.dtype, device=ends.device) + offset) / n
    return torch.searchsorted(ends, points.contiguous()).clamp(max=n - 1).movedim(-1, 0)
