"""What a program changes by running: counters and logs in Python, tensors, random numbers that torch knows not of."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ingle.program.held import Places
from ingle.program.snapshot import Change

__all__ = ["OwnState", "state_of_its_own"]


def state_of_its_own(places: Places, run: Callable[[], object]) -> OwnState:
    """What a program changes by running.

    The run is a run like any other: what it changes stays changed. An error of it is passed on.

    Args:
        places: of the model and the guide.
        run: runs them once.
    """
    before, states = places.snapshot(full=True), _states()
    run()
    changes, after = places.changed(before), _states()
    return OwnState(
        kept=tuple(change for change in changes if change.kind != "in place"),
        in_place=tuple(change for change in changes if change.kind == "in place"),
        random=tuple(name for name, state in states.items() if state != after[name]),
        random_line=places.random_line,
    )


@dataclass(frozen=True)
class OwnState:
    """What a run changed that a replay of its tensors alone would not. False if it is nothing.

    Attributes:
        kept: values that were replaced, containers that grew, generators of the program's own that were drawn from.
        in_place: tensors and arrays that were written to; in a replay a tensor is written to as well.
        random: of "random" and "numpy.random", those whose global state moved.
        random_line: where the program names one of these.
    """

    kept: tuple[Change, ...] = ()
    in_place: tuple[Change, ...] = ()
    random: tuple[str, ...] = ()
    random_line: str | None = None

    def __bool__(self) -> bool:
        return bool(self.kept or self.in_place or self.random)

    def reasons(self) -> tuple[str, ...]:
        """A sentence for each, without the tensors that were written to in place."""
        where = f" ({self.random_line})" if self.random_line else ""
        drawn = (f"draws from {name}, whose state torch does not know{where}" for name in self.random)
        return (*(f"keeps state in Python: {change}" for change in self.kept), *drawn)


def _states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state(legacy=True)
    return {"random": random.getstate(), "numpy.random": (name, np.asarray(keys).tobytes(), *rest)}
