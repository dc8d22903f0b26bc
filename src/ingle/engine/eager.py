"""The eager engine: one Pyro step at a time, as Pyro itself would take it. The reference for the others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ingle.data import Minibatches
from ingle.engine.optimiser import Optimisers
from ingle.engine.protocol import State
from ingle.program import Program, Values
from ingle.runtime import RandomState, Runtime, validation

__all__ = ["EagerEngine"]


class EagerEngine:
    """Takes steps inside a scope of the runtime; the first one with Pyro's validation on."""

    name = "eager"

    def __init__(self, program: Program, objective: Any, optimisers: Optimisers, runtime: Runtime) -> None:
        self.program = program
        self.objective = objective
        self.optimisers = optimisers
        self.step = 0
        self._runtime = runtime
        self._batches = Minibatches(program.batch_sizes, seed=runtime.seed, device=runtime.device)
        self._model, self._guide = program.observing_model, program.observing_guide
        self._values = Values(program)
        self._particles = getattr(objective, "particles", None)

    def advance(self, steps: int) -> Tensor:
        """Take `steps` steps and return their losses in nats, shape (steps,), dtype and device of the fit."""
        return torch.stack([self._advance() for _ in range(steps)])

    def _advance(self) -> Tensor:
        if self.step == 0:
            for leaf in self.program.leaves().values():
                leaf.grad = None  # what the user left on a module is no gradient of this fit
            with validation(True), self.program.explained("model or guide"):
                loss = self.differentiate()
        else:
            loss = self.differentiate()
        self.update()
        return loss

    def differentiate(self) -> Tensor:
        """Draw the rows and the noise of one step, leave its gradients on the leaves, return its loss, scalar."""
        program, data = self.program, self.program.data
        program.rows.rows = self._batches.next()
        with program.rows if program.batch_sizes else nullcontext():
            if self._particles is None:
                value = self.objective.loss_and_grads(self._model, self._guide, *data.args, **data.kwargs)
                return _scalar(sum(value) if isinstance(value, tuple) else value, self._runtime)
            total: Any = 0.0
            for loss, surrogate in self._particles(self._model, self._guide, *data.args, **data.kwargs):
                if getattr(surrogate, "requires_grad", False):
                    surrogate.backward(retain_graph=self.objective.retain_graph)
                total = total + loss
        return _scalar(total, self._runtime)

    def update(self) -> None:
        """Move the parameters by the gradients that are there."""
        self.optimisers.step(*self.program.sides())
        self.step += 1

    def capture(self) -> State:
        """The state before the next step, copied."""
        return State(
            step=self.step,
            values=self._values.capture(),
            optimisers=self.optimisers.capture(),
            random=RandomState.capture(self._runtime.device),
            rows=self._batches.capture(),
        )

    def restore(self, state: State) -> None:
        """Go back to a captured state; a parameter that came after it is forgotten."""
        self._values.restore(state.values)
        self.optimisers.restore(state.optimisers)
        state.random.restore()
        self._batches.restore(state.rows)
        self.step = state.step


def _scalar(value: Any, runtime: Runtime) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(float(value), dtype=runtime.dtype, device=runtime.device)
