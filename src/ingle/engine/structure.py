"""What the statements of one run look like, so that a later run can be held against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger
from torch import Tensor

from ingle.engine.recording import users_line

__all__ = ["Statement", "Structure", "difference"]


@dataclass(frozen=True)
class Statement:
    """One sample or parameter statement: all of it that a graph takes as given.

    Attributes:
        name: of the site or parameter.
        traits: each a pair of what it is called and what it is.
        line: file and line of the user's code.
    """

    name: str
    traits: tuple[tuple[str, Any], ...]
    line: str


class Structure(Messenger):
    """Notes every statement that is reached inside, in order, of model and guide alike."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[Statement] = []

    def _pyro_post_sample(self, msg: Any) -> None:
        value, fn = msg["value"], msg["fn"]
        traits = [
            ("distribution", type(fn).__name__),
            ("shape", _shape(value)),
            ("dtype", getattr(value, "dtype", None)),
            ("batch shape", tuple(getattr(fn, "batch_shape", ()))),
            ("observed", bool(msg["is_observed"])),
            ("plates", tuple((frame.name, frame.size, frame.dim) for frame in msg["cond_indep_stack"])),
            ("scale", msg["scale"] if isinstance(msg["scale"], (int, float)) else "a tensor"),
            ("mask", msg["mask"] if isinstance(msg["mask"], (bool, type(None))) else "a tensor"),
        ]
        self.statements.append(Statement(msg["name"], tuple(traits), users_line()))

    def _pyro_post_param(self, msg: Any) -> None:
        self.statements.append(Statement(msg["name"], (("shape", _shape(msg["value"])),), users_line()))


def difference(first: list[Statement], second: list[Statement]) -> str | None:
    """How two runs differ, in words with the site and its line; None where they do not."""
    for ours, theirs in zip(first, second, strict=False):
        if ours.name != theirs.name:
            return (
                f"one run went on with {ours.name!r}{_at(ours)} where another went on with {theirs.name!r}{_at(theirs)}"
            )
        for (name, mine), (_, other) in zip(ours.traits, theirs.traits, strict=False):
            if mine != other:
                return f"{ours.name!r} has {name} {mine} in one run and {other} in another{_at(ours)}"
    longer = max(first, second, key=len)[min(len(first), len(second)) :]
    return f"{longer[0].name!r} is there in one run and not in another{_at(longer[0])}" if longer else None


def _shape(value: Any) -> Any:
    return tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__


def _at(statement: Statement) -> str:
    return f" ({statement.line})" if statement.line else ""
