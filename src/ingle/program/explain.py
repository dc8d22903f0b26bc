"""Errors that a model or a guide raises, told with the site, the line, the shapes and the likely fix."""

from __future__ import annotations

import inspect
import re
import sysconfig
import traceback
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from ingle.data import Data
from ingle.errors import DataError, IngleError, OptionError
from ingle.program.finding import Finding, as_error
from ingle.program.fixes import likely_fix
from ingle.program.handlers import Watch

__all__ = ["argument_names", "check_call", "explained", "refused_by_itself", "told"]

_INGLE = Path(__file__).parents[1]
_NOT_THE_USERS = (
    *(str(Path(str(module.__file__)).parent) for module in (torch, pyro, np)),
    *(str(_INGLE / room) for room in ("engine", "objectives", "program", "results", "trust")),
    sysconfig.get_path("stdlib") + "/contextlib",
)

_PYROS_TABLE = re.compile(r"\n\s*Trace Shapes:")


@contextmanager
def explained(role: str, data: Data, *, batched: Collection[str] = ()) -> Iterator[None]:
    """Raise any error inside as one `ProgramError` that says where it happened and what to change.

    Args:
        role: "model", "guide", or "model or guide".
        data: the arguments, whose shapes are told.
        batched: names of the plates whose rows come from outside.
    """
    watch = Watch()
    try:
        with watch:
            yield
    except IngleError as error:
        # Pyro's trace raises a copy with its table of shapes added; what it copied says all.
        if isinstance(error.__cause__, type(error)):
            raise error.__cause__ from None
        raise
    except Exception as error:
        if watch.entered is not None:
            place = f"at site {watch.entered!r}"
        elif watch.last is not None:
            place = f"after site {watch.last!r}"
        else:
            place = "before any sample site"
        raise as_error(told(role, data, error, place=place, site=watch.entered, batched=batched)) from error


def told(
    role: str, data: Data, error: Exception, *, place: str, site: str | None, batched: Collection[str] = ()
) -> Finding:
    """What a program raised, as a finding.

    Args:
        role: "model", "guide", or "model or guide".
        data: the arguments, whose shapes are told.
        error: what it raised.
        place: where that was, in words.
        site: the site at which it happened, where that is known.
        batched: names of the plates whose rows come from outside.
    """
    where = _user_line(error)
    what = _PYROS_TABLE.split(str(error))[0].strip() or type(error).__name__
    place = "" if "at site" in what else f" {place}"
    missing = [name for name, value in data.items() if _has_nan(value)]
    kind, fix = likely_fix(what, missing=missing, batched=batched)
    message = (
        f"the {role} raised {type(error).__name__}{place}{f', {where}' if where else ''}: {what}\n"
        f"  data: {data.describe()}"
    )
    return Finding(kind, "error", site, message, fix, cause=error)


def check_call(role: str, program: Callable[..., Any], data: Data) -> Data:
    """The data, their positions named as the program names them.

    Raises:
        DataError: the arguments do not fit the signature of the program.
    """
    target = _target(program)
    if any(inspect.isgeneratorfunction(part) or inspect.iscoroutinefunction(part) for part in (program, target)):
        raise OptionError(f"the {role} is a generator or a coroutine, which Pyro cannot run: write a plain function")
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a callable without a signature says nothing, so it is not refused
        return data
    try:
        bound = signature.bind(*data.args, **data.kwargs)
    except TypeError as error:
        name = getattr(program, "__name__", type(program).__name__)
        message = (
            f"the data do not fit the call of the {role}: {error}\n  {role}: {name}{signature}\n"
            f"  data: {data.describe()}"
        )
        fix = f"give data the names that the {role} takes; model and guide are called with the same arguments"
        raise as_error(Finding("call", "error", None, message, fix, DataError, error)) from error
    names = [name for name in bound.arguments if name not in data.kwargs]
    return replace(data, names=tuple(names)) if len(names) == len(data.args) else data


def argument_names(program: Callable[..., Any], data: Data) -> tuple[str, ...]:
    """Names of the arguments that the data give, and of those that are left at None."""
    names = [name for name, _ in data.items()]
    try:
        bound = inspect.signature(_target(program)).bind(*data.args, **data.kwargs)
    except (TypeError, ValueError):
        return tuple(names)
    given = set(bound.arguments)
    bound.apply_defaults()
    return (*names, *(name for name, value in bound.arguments.items() if name not in given and value is None))


def _target(program: Any) -> Any:
    """What is run when a program is called."""
    if isinstance(program, torch.nn.Module) and type(program).forward is not torch.nn.Module.forward:
        return program.forward
    return program


def _has_nan(value: object) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point() and bool(value.isnan().any())


def refused_by_itself(error: Exception | None) -> bool:
    """Whether it was a `raise` of the user's program, which knows best what is wrong, and not torch or Pyro."""
    frames = traceback.extract_tb(error.__traceback__) if error is not None else []
    return bool(frames) and _is_users(frames[-1]) and (frames[-1].line or "").startswith("raise ")


def _user_line(error: Exception) -> str | None:
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_users(frame)]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else None


def _is_users(frame: traceback.FrameSummary) -> bool:
    return not frame.filename.startswith((*_NOT_THE_USERS, "<"))
