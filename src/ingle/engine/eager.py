"""The eager engine: one Pyro step at a time, as Pyro itself would take it. The reference for the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

from ingle.data import Minibatches
from ingle.engine.endings import Moments
from ingle.engine.optimiser import Optimisers
from ingle.engine.protocol import Follower, State
from ingle.program import Program, Values
from ingle.runtime import RandomState, Runtime, validation

__all__ = ["EagerEngine"]


class EagerEngine:
    """Takes steps inside a scope of the runtime; the first one with Pyro's validation on.

    Args:
        program, objective, optimisers, runtime: of the fit.
        noise: from the number of a step and its rows to a context inside which the step draws its noise; None leaves
            the noise to torch's global generator.

    Attributes:
        step: how many steps were taken.
        batches: the rows of the steps to come.
    """

    name = "eager"
    call = 50

    def __init__(
        self,
        program: Program,
        objective: Any,
        optimisers: Optimisers | Moments,
        runtime: Runtime,
        *,
        noise: Callable[[int, Mapping[str, Tensor]], AbstractContextManager[object]] | None = None,
    ) -> None:
        self.program = program
        self.objective = objective
        self.optimisers = optimisers
        self.step = 0
        self._runtime = runtime
        self.batches = Minibatches(program.batch_sizes, seed=runtime.seed, device=runtime.device)
        self._model, self._guide = program.observing_model, program.observing_guide
        self._values = Values(program)
        self._particles = getattr(objective, "particles", None)
        self._noise = noise
        self.notes: list[str] = []

    def advance(self, steps: int, follower: Follower | None = None) -> Tensor:
        """Take `steps` steps and return their losses in nats, shape (steps,), dtype and device of the fit."""
        losses = []
        for _ in range(steps):
            losses.append(self._advance())
            if follower is not None:
                follower.note(self.step, self.program.leaves())
        return torch.stack(losses)

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
        self.program.rows.rows = self.batches.next()
        with self.as_drawn():
            return self._differentiate()

    @contextmanager
    def as_drawn(self) -> Iterator[None]:
        """Inside, the program runs on the rows of the step about to be taken, with its noise from the beginning."""
        rows = self.program.rows
        noise = nullcontext() if self._noise is None else self._noise(self.step, rows.rows)
        with rows if self.program.batch_sizes else nullcontext(), noise:
            yield

    def _differentiate(self) -> Tensor:
        data = self.program.data
        if self._particles is None:
            value = self.objective.loss_and_grads(self._model, self._guide, *data.args, **data.kwargs)
            return _scalar(sum(value) if isinstance(value, tuple) else value, self._runtime)
        total: Any = 0.0
        for loss, surrogate in self._particles(self._model, self._guide, *data.args, **data.kwargs):
            if getattr(surrogate, "requires_grad", False):
                surrogate.backward(retain_graph=self.objective.retain_graph)
            total = total + loss
        return _scalar(total, self._runtime)

    def observe(self) -> None:
        """Run loss and gradient of the next step with whatever noise there is, and throw the gradients away."""
        self.program.rows.rows = self.batches.next()
        with self.program.rows if self.program.batch_sizes else nullcontext():
            self._differentiate()
        for leaf in self.program.leaves().values():
            leaf.grad = None

    def update(self) -> None:
        """Move the parameters by the gradients that are there."""
        self.optimisers.step(*self.program.sides())
        self.step += 1

    def reference(self) -> EagerEngine:
        """An eager engine of its own on the same program, which takes the same steps with the same noise."""
        return EagerEngine(self.program, self.objective, self.optimisers, self._runtime, noise=self._noise)

    def capture(self) -> State:
        """The state before the next step, copied."""
        return State(
            step=self.step,
            values=self._values.capture(),
            optimisers=self.optimisers.capture(),
            random=RandomState.capture(self._runtime.device),
            rows=self.batches.capture(),
        )

    def restore(self, state: State) -> None:
        """Go back to a captured state; a parameter that came after it is forgotten."""
        self._values.restore(state.values)
        self.optimisers.restore(state.optimisers)
        state.random.restore()
        self.batches.restore(state.rows)
        self.step = state.step


def _scalar(value: Any, runtime: Runtime) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach()
    return torch.tensor(float(value), dtype=runtime.dtype, device=runtime.device)
