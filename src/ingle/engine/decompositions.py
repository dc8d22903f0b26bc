"""Operations that Inductor leaves to ATen on the CPU, written so that it can put them into a kernel of its own.

A call of ATen's in the middle of a step costs more than the arithmetic of a small model, and keeps the step from being
one loop. Each rule declines, by `NotImplemented`, where the operation is worth a call of its own.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["DECOMPOSITIONS"]

aten = torch.ops.aten

_SHORT = 32  # the longest scan whose every element may look at all others


def _scan(x: Tensor, dim: int, neutral: int, reduce: Callable[..., Tensor], dtype: torch.dtype | None) -> Any:
    if x.dim() == 0 or x.shape[dim] > _SHORT or x.is_complex() or x.device.type != "cpu":
        return NotImplemented
    x = x.to(dtype or (x.dtype if x.is_floating_point() else torch.int64))
    moved = x.movedim(dim, -1)
    before = torch.ones(x.shape[dim], x.shape[dim], dtype=torch.bool, device=x.device).tril()
    parts = torch.where(before, moved.unsqueeze(-2), torch.full((), neutral, dtype=x.dtype, device=x.device))
    return reduce(parts, -1).movedim(-1, dim)


def _cumsum(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    return _scan(x, dim, 0, torch.sum, dtype)


def _cumprod(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Any:
    return _scan(x, dim, 1, torch.prod, dtype)


DECOMPOSITIONS: dict[Any, Callable[..., Any]] = {
    aten.cumsum.default: _cumsum,
    aten.cumprod.default: _cumprod,
}
