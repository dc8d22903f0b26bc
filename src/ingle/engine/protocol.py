"""What every engine does. Nothing else in the library knows which one runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from ingle.runtime import RandomState

__all__ = ["Engine", "State"]


@dataclass(frozen=True)
class State:
    """All that the next step depends on: values of the program, optimisers, random states, rows to come.

    A state that a program keeps in Python of its own is not here.
    """

    step: int
    values: dict[str, Any]
    optimisers: Any
    random: RandomState
    rows: Any


class Engine(Protocol):
    """Advances a fit by whole steps, changing the parameters in place.

    For the same noise every engine gives the losses of `EagerEngine`.
    """

    name: str
    step: int

    def advance(self, steps: int) -> Tensor:
        """Take `steps` steps and return their losses in nats, shape (steps,), dtype and device of the fit."""

    def capture(self) -> State:
        """The state before the next step, copied."""

    def restore(self, state: State) -> None:
        """Go back to a captured state."""
