"""Ingle: variational inference for Pyro programs, from `fit` to ArviZ."""

from ingle.errors import (
    DataError,
    IngleError,
    IngleWarning,
    NonFiniteError,
    OptionError,
    ProgramError,
    TrainedModuleWarning,
)
from ingle.fit import fit
from ingle.fitted import Fit
from ingle.program import Check, Finding, check
from ingle.svi import SVI
from ingle.version import __version__

__all__ = [
    "SVI",
    "Check",
    "DataError",
    "Finding",
    "Fit",
    "IngleError",
    "IngleWarning",
    "NonFiniteError",
    "OptionError",
    "ProgramError",
    "TrainedModuleWarning",
    "__version__",
    "check",
    "fit",
]
