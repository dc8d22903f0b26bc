"""What a place is called in a message, from the way that it was reached."""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import Any

from pyro.poutine.messenger import Messenger

from ingle.program.mentions import Line

__all__ = ["Path", "home_of", "root_of", "title_of"]


@dataclass(frozen=True)
class Path:
    """How something was reached, told as "`head` 'text' of `owner`".

    Attributes:
        head: "global", "closure", "default", "argument", or nothing.
        text: a name, and the steps from there: "config", "config.beta", "steps['n']".
        owner: the function or the class that it starts from.
        line: of the code that names it.
    """

    head: str
    text: str
    owner: str | None = None
    line: Line | None = None

    def __str__(self) -> str:
        text = repr(self.text) if self.head and self.text.isidentifier() else self.text
        return f"{self.head} {text}".strip() + (f" of {self.owner}" if self.owner else "")

    def step(self, text: str, line: Line | None = None) -> Path:
        """One step on, an attribute or an item; on the same line if it is on none of its own."""
        return Path(self.head, f"{self.text}{text}", self.owner, line or self.line)


def root_of(program: Any) -> Path:
    """The start of all paths from a program: attributes of an instance are `self`'s."""
    cls = type(program)
    if issubclass(cls, (types.FunctionType, types.MethodType, functools.partial, type, types.ModuleType)):
        return Path("", title_of(program))
    return Path("", "self", cls.__name__)


def home_of(program: Any) -> str:
    """The name of the Python module that a program is written in, whatever handlers and partials are around it."""
    while issubclass(type(program), functools.partial):
        handled = len(program.args) > 1 and issubclass(type(program.args[0]), Messenger)
        program = program.args[1] if handled else program.func
    if type(program) is types.MethodType:
        program = program.__func__
    if type(program) is types.FunctionType:
        return str(program.__globals__.get("__name__"))
    return str((program if issubclass(type(program), type) else type(program)).__module__)


def title_of(program: Any) -> str:
    """What a function, a method, a partial or a class is called."""
    cls = type(program)
    if issubclass(cls, functools.partial):
        return title_of(program.func)
    if cls is types.MethodType:
        return title_of(program.__func__)
    if cls is types.FunctionType:
        name: str = program.__qualname__.rpartition("<locals>.")[2]
        return name if name != "<lambda>" else f"the lambda in line {program.__code__.co_firstlineno}"
    return str(program.__name__) if issubclass(cls, (type, types.ModuleType)) else cls.__name__
