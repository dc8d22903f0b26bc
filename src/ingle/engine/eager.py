"""The eager engine: one Pyro step at a time, as Pyro itself would take it. The reference for the others."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from ingle.data import Minibatches
from ingle.engine.optimiser import Optimisers
from ingle.engine.protocol import State
from ingle.program import Program
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
        self._buffers = [buffer for module in program.modules() for buffer in module.buffers()]
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
            leaves={name: leaf.detach().clone() for name, leaf in self.program.leaves().items()},
            buffers=[buffer.clone() for buffer in self._buffers],
            optimisers=self.optimisers.capture(),
            random=RandomState.capture(self._runtime.device),
            rows=self._batches.capture(),
        )

    @torch.no_grad()
    def restore(self, state: State) -> None:
        """Go back to a captured state; a parameter that came after it is forgotten."""
        for leaf in self.program.leaves().values():
            leaf.grad = None
        if set(self.program.leaves()) != set(state.leaves):
            self.program.keep_leaves(state.leaves)
        for name, leaf in self.program.leaves().items():
            leaf.copy_(state.leaves[name])
        for buffer, before in zip(self._buffers, state.buffers, strict=True):
            buffer.copy_(before)
        self.optimisers.restore(state.optimisers)
        state.random.restore()
        self._batches.restore(state.rows)
        self.step = state.step


def _scalar(value: Any, runtime: Runtime) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(float(value), dtype=runtime.dtype, device=runtime.device)
