"""Every error and warning that Ingle raises.

Each error also inherits the builtin that a caller would reach for, so `except ValueError` keeps working, and
keeps the error of Pyro or torch that it translates as its `__cause__`.

    IngleError
    ├── DataError (ValueError)        what was handed over as data cannot be used, or does not fit the model's call
    ├── OptionError (ValueError)      an option of Ingle has a value that it cannot take
    ├── ProgramError (ValueError)     the model or the guide raised, or the two do not belong together
    ├── FileError (OSError)           a file cannot be written or read, or is not of this fit
    └── NonFiniteError (ArithmeticError)   a loss, gradient or parameter became NaN or infinite

An error that ends a fit after it began carries the `step` and the `fit` so far.

    IngleWarning (UserWarning)
    └── TrainedModuleWarning          a module that another fit has trained is trained on
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ingle.fitted import Fit
    from ingle.program.finding import Finding

__all__ = [
    "DataError",
    "FileError",
    "IngleError",
    "IngleWarning",
    "NonFiniteError",
    "OptionError",
    "ProgramError",
    "TrainedModuleWarning",
]

_HERE = str(Path(__file__).parent) + os.sep


class IngleError(Exception):
    """Base of every error that Ingle raises.

    Attributes:
        step: the step at which it happened, counted from 0; None before the first.
        fit: the fit as it was before that step, which may have taken no step; None before the first.
        findings: what is wrong with the program, one by one as `check` tells it; empty for other errors.
    """

    def __init__(self, message: str, *, step: int | None = None, fit: Fit | None = None) -> None:
        super().__init__(message)
        self.step = step
        self.fit = fit
        self.findings: tuple[Finding, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled without the fit, which holds the user's functions."""
        return type(self), self.args, {"step": self.step, "fit": None, "findings": self.findings}


class DataError(IngleError, ValueError):
    """The data cannot be turned into tensors, or do not fit the call of the model."""


class OptionError(IngleError, ValueError):
    """An option of Ingle has a value that it cannot take."""


class ProgramError(IngleError, ValueError):
    """The model or the guide raised an error, or the two do not belong together."""


class FileError(IngleError, OSError):
    """A file cannot be written or read, is not one of Ingle's, or belongs to another fit."""


class NonFiniteError(IngleError, ArithmeticError):
    """A loss, a gradient or a parameter became NaN or infinite."""


class IngleWarning(UserWarning):
    """Base of every warning that Ingle gives."""


class TrainedModuleWarning(IngleWarning):
    """A module that another fit has trained is about to be trained on."""


def warn(message: str, category: type[IngleWarning]) -> None:
    """Warn at the line of the caller's that led here: the first frame that is not Ingle's own."""
    depth, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_HERE):
        depth, frame = depth + 1, frame.f_back
    warnings.warn(message, category, stacklevel=depth)
