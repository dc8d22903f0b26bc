"""Errors that a model or a guide raises, told with the site, the line, the shapes and the likely fix."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch

from ingle.data import Data
from ingle.errors import DataError, IngleError, ProgramError
from ingle.program.handlers import Watch

__all__ = ["check_call", "explained"]

_INGLE = Path(__file__).parents[1]
_NOT_THE_USERS = (
    *(str(Path(str(module.__file__)).parent) for module in (torch, pyro, np)),
    *(str(_INGLE / room) for room in ("engine", "objectives", "program", "results", "trust")),
    sysconfig.get_path("stdlib") + "/contextlib",
)

# What the message of Pyro or torch holds, and what a user should do then. The first match is told.
_FIXES = (
    (
        "shape mismatch inside plate",
        "the plate has another number of rows than the value inside it: give the plate the length of the data, "
        "and under batch_size index every tensor by the plate's rows, `with pyro.plate(…) as i: … x[i]`",
    ),
    (
        "invalid log_prob shape",
        "the site has batch dimensions that no plate declares: put it inside a pyro.plate, or make them event "
        "dimensions with .to_event(n)",
    ),
    ("must match the size", "two tensors have different lengths: compare the shapes of the data above"),
    ("must match the existing size", "two tensors have different lengths: compare the shapes of the data above"),
    ("shape mismatch", "two tensors have different shapes: compare the shapes of the data above"),
    ("not broadcastable", "two tensors have shapes that do not fit: compare the shapes of the data above"),
    ("to be within the support", "a value lies outside the support of its distribution: check the data, or the family"),
    (
        "to satisfy the constraint",
        "a parameter of a distribution left its range: transform it (exp, softplus, softmax), or check the data",
    ),
    ("on the same device", "a tensor that the program closes over is on another device: pass it as data"),
    ("same dtype", "a tensor or module that the program closes over has another dtype: pass the tensor as data, "
                   "call .to(dtype) on the module"),
    ("expected scalar type", "a tensor that the program closes over has another dtype: pass it as data"),
    ("multiple sample sites named", "every sample site needs a name of its own"),
    ("num_samples", "a distribution could not be sampled: check its parameters"),
)  # fmt: skip


@contextmanager
def explained(role: str, data: Data) -> Iterator[None]:
    """Raise any error inside as one `ProgramError` that says where it happened and what to change."""
    watch = Watch()
    try:
        with watch:
            yield
    except IngleError:
        raise
    except Exception as error:
        raise ProgramError(_tell(role, data, watch, error)) from error


def check_call(role: str, program: Callable[..., Any], data: Data) -> None:
    """Raise `DataError` where the arguments do not fit the signature of a model or a guide."""
    target = program.forward if isinstance(program, torch.nn.Module) else program
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):  # a callable without a signature says nothing, so it is not refused
        return
    try:
        signature.bind(*data.args, **data.kwargs)
    except TypeError as error:
        name = getattr(program, "__name__", type(program).__name__)
        raise DataError(
            f"the data do not fit the call of the {role}: {error}\n"
            f"  {role}: {name}{signature}\n  data: {data.describe()}"
        ) from error


def _tell(role: str, data: Data, watch: Watch, error: Exception) -> str:
    if watch.entered is not None:
        place = f"at site {watch.entered!r}"
    elif watch.last is not None:
        place = f"after site {watch.last!r}"
    else:
        place = "before any sample site"
    where = _user_line(error)
    what = str(error).strip() or type(error).__name__
    lines = [
        f"the {role} raised {type(error).__name__} {place}{f', {where}' if where else ''}: {what}",
        f"  data: {data.describe()}",
    ]
    fix = next((fix for sign, fix in _FIXES if sign in what.lower()), None)
    if fix is not None:
        lines.append(f"  likely fix: {fix}")
    return "\n".join(lines)


def _user_line(error: Exception) -> str | None:
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if not frame.filename.startswith((*_NOT_THE_USERS, "<"))
    ]
    return f"{Path(frames[-1].filename).name} line {frames[-1].lineno}" if frames else None
