"""What every engine does. Nothing else in the library knows which one runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor

from ingle.runtime import RandomState

if TYPE_CHECKING:
    from ingle.engine.eager import EagerEngine

__all__ = ["Engine", "Follower", "State"]


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


class Follower(Protocol):
    """Takes note of where the parameters are after some of the steps."""

    def until(self, step: int) -> int:
        """Steps from `step` to the next that it wants to see."""

    def note(self, step: int, leaves: Mapping[str, Tensor]) -> None:
        """The parameters after `step` steps."""

    def extend(self, step: int, rows: Tensor, leaves: Mapping[str, Tensor]) -> None:
        """All parameters, one after the other, after each of the steps that follow `step`, shape (steps, numbers)."""


class Engine(Protocol):
    """Advances a fit by whole steps, changing the parameters in place.

    For the same noise every engine gives the losses of `EagerEngine`.
    """

    @property
    def name(self) -> str:
        """The engine that takes the next step."""

    @property
    def step(self) -> int:
        """How many steps were taken."""

    @property
    def notes(self) -> list[str]:
        """What the card should say of it."""

    @property
    def call(self) -> int:
        """How many steps one call of `advance` is meant for."""

    def advance(self, steps: int, follower: Follower | None = None) -> Tensor:
        """Take `steps` steps and return their losses in nats, shape (steps,), dtype and device of the fit."""

    def reference(self) -> EagerEngine:
        """An eager engine on the same program, which takes the same steps with the same noise."""

    def capture(self) -> State:
        """The state before the next step, copied."""

    def restore(self, state: State) -> None:
        """Go back to a captured state."""
