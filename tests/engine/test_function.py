"""A compiled function gives what the function gives, and says so where it cannot be compiled."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from ingle.engine import CompiledFunction, Untraceable

WEIGHT = torch.randn(7, 5, generator=torch.Generator().manual_seed(0))


def bent(x: Tensor, y: Tensor) -> Tensor:
    """Under vmap, with a tensor that is no input, and a gradient inside."""
    leaf = x.detach().requires_grad_()
    with torch.enable_grad():
        total = torch.vmap(lambda row: (WEIGHT @ row).tanh().sum())(leaf)
        (gradient,) = torch.autograd.grad((total * y).sum(), leaf)
    return torch.cat([total.detach()[:, None], gradient], 1)


def test_gives_what_the_function_gives() -> None:
    first, second = (torch.randn(6, 5), torch.randn(6)), (torch.randn(6, 5), torch.randn(6))
    compiled = CompiledFunction(bent, first)
    kept = compiled(*first)
    torch.testing.assert_close(kept, bent(*first))
    torch.testing.assert_close(compiled(*second), bent(*second))
    torch.testing.assert_close(kept, bent(*first))  # a result is the caller's


@pytest.mark.parametrize(
    ("run", "match"),
    [
        (lambda x: x + torch.randn(3), "draws random numbers"),
        (lambda x: torch.vmap(lambda row: row * 2 if float(row) > 0 else row)(x), "vmap"),
    ],
)
def test_says_why_not(run: object, match: str) -> None:
    with pytest.raises(Untraceable, match=match):
        CompiledFunction(run, [torch.ones(3)])  # type: ignore[arg-type]
