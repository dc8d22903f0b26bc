"""Many runs of one program at once give what they give one by one."""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from ingle.program import repeat, together


def ordered(x: Tensor) -> Tensor:
    """Pyro writes the probabilities into zeros of its own."""
    of = dist.OrderedLogistic(torch.tensor([-0.3, 0.0, 2.0]), x.exp().cumsum(-1), validate_args=False)
    return of.log_prob(torch.tensor([0, 1, 2]))


def filled(x: Tensor) -> Tensor:
    made = torch.ones(5)
    made[1:4] = x
    return made.cumsum(0)


def counted(x: Tensor) -> Tensor:
    made = x.new_zeros(3, dtype=torch.long)
    made[:] = (x > 0).long()
    mask = torch.full((3,), False)
    mask[1] = x[0] > 0
    return torch.where(mask, made, -made)


@pytest.mark.parametrize("run", [ordered, filled, counted])
def test_what_is_written_into_new_tensors_differs_from_run_to_run(run: Callable[[Tensor], Tensor]) -> None:
    points = torch.linspace(-1.0, 2.0, 12).reshape(4, 3)
    expected = torch.stack([run(point) for point in points])
    torch.testing.assert_close(together(run, points), expected)
    told: list[str] = []
    found = repeat(lambda one: {"out": run(one["x"])}, 4, chunk=3, given={"x": points}, alone=told.append)
    torch.testing.assert_close(found["out"], expected)
    assert not told


def test_gradients_go_through_what_is_written() -> None:
    points = torch.linspace(-1.0, 2.0, 12).reshape(4, 3).requires_grad_()
    (found,) = torch.autograd.grad(together(ordered, points).sum(), points)
    alone = torch.stack(
        [torch.autograd.grad(ordered(point).sum(), point)[0] for point in points.detach().requires_grad_()]
    )
    torch.testing.assert_close(found, alone)


def test_a_tensor_from_outside_is_still_refused() -> None:
    kept = torch.zeros(3)

    def run(x: Tensor) -> Tensor:
        kept[:] = x
        return kept + 1

    with pytest.raises(RuntimeError, match="inplace"):
        together(run, torch.ones(2, 3))
