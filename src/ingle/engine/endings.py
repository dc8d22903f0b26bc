"""Ends of a step other than an optimiser's formulas: gradients handed over, or counted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ingle.program import Program

__all__ = ["Gradients", "Moments"]


class Gradients:
    """The gradients alone in the graph; an optimiser moves the leaves after each step.

    Attributes:
        leaves: parameters of the program, unconstrained.
        state: a tensor for the gradient of each.
        there: which of them the last step had a gradient for.
        width: the graph needs no numbers.
        whole: whether the graph is all of a step.
    """

    width = 0
    whole = False

    def __init__(self, leaves: Iterable[Tensor]) -> None:
        self.leaves = list(leaves)
        self.state = [torch.zeros_like(leaf, requires_grad=False) for leaf in self.leaves]
        self.there = [False] * len(self.leaves)

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """Leave the gradients in `state`."""
        self.there = [gradient is not None for gradient in gradients]
        for gradient, place in zip(gradients, state, strict=True):
            if gradient is not None:
                place.copy_(gradient)

    def hold(self) -> bool:
        """Whatever the optimiser is by now, it finds gradients."""
        return True

    def plan(self, steps: int) -> Tensor:
        """No numbers."""
        return torch.zeros(steps, 0, dtype=torch.float64, device="cpu")

    def hand_over(self) -> None:
        """Leave the gradients where torch's optimisers look for them."""
        for leaf, gradient, there in zip(self.leaves, self.state, self.there, strict=True):
            leaf.grad = gradient if there else None


class Moments:
    """In the place of optimisers: nothing moves, and mean and variance of each gradient are kept.

    Args:
        program: whose parameters; all of them are there already.

    Attributes:
        leaves, names: parameters of the program, unconstrained.
        state: means, then sums of squared deviations, float64, of the shapes of the leaves.
        count: of gradients so far.
        guide_steps: as of optimisers.

    References:
        Welford (1962), Note on a Method for Calculating Corrected Sums of Squares and Products.
    """

    guide_steps = 1
    width = 1
    whole = True

    def __init__(self, program: Program) -> None:
        leaves = program.leaves()
        self.names, self.leaves = list(leaves), list(leaves.values())
        self.state = [torch.zeros_like(leaf, dtype=torch.float64, requires_grad=False) for leaf in self.leaves * 2]
        self.count = 0

    def step(self, *sides: Mapping[str, Tensor]) -> None:
        """Take the gradients that are there, and clear them; one that is missing is zero."""
        gradients = [leaf.grad for leaf in self.leaves]
        with torch.no_grad():
            self.update(gradients, self.state, self.plan(1)[0])
        for leaf in self.leaves:
            leaf.grad = None

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """Count gradients by tensor operations alone; `numbers` is a row of `plan`."""
        share = numbers[0]
        means, squares = state[: len(self.leaves)], state[len(self.leaves) :]
        for gradient, mean, square in zip(gradients, means, squares, strict=True):
            deviation = -mean if gradient is None else gradient.to(torch.float64) - mean
            change = deviation * share
            square.add_(deviation * (deviation - change))
            mean.add_(change)

    def plan(self, steps: int) -> Tensor:
        """One over the count after each of the next steps, float64, shape (steps, 1); counts them as taken."""
        counts = torch.arange(self.count + 1, self.count + steps + 1, dtype=torch.float64, device="cpu")
        self.count += steps
        return counts.reciprocal().unsqueeze(1)

    def hold(self) -> bool:
        """It is always the same."""
        return True

    def capture(self) -> dict[str, Any]:
        """What has been counted, copied."""
        return {"count": self.count, "state": [tensor.clone() for tensor in self.state]}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go back to what was captured."""
        self.count = state["count"]
        for tensor, before in zip(self.state, state["state"], strict=True):
            tensor.copy_(before)

    def found(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and variance of the gradient of each parameter, elementwise, float64 on the CPU."""
        parts = len(self.leaves)
        return {
            name: (self.state[place].cpu(), self.state[parts + place].cpu() / max(1, self.count - 1))
            for place, name in enumerate(self.names)
        }
