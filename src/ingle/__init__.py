"""Ingle: variational inference for Pyro programs, from `fit` to ArviZ."""

from ingle.errors import (
    DataError,
    FileError,
    IngleError,
    IngleWarning,
    NonFiniteError,
    OptionError,
    ProgramError,
    TrainedModuleWarning,
)
from ingle.fit import fit
from ingle.fitted import Fit
from ingle.load import load
from ingle.results import prior_predictive
from ingle.svi import SVI
from ingle.version import __version__

__all__ = [
    "SVI",
    "DataError",
    "FileError",
    "Fit",
    "IngleError",
    "IngleWarning",
    "NonFiniteError",
    "OptionError",
    "ProgramError",
    "TrainedModuleWarning",
    "__version__",
    "fit",
    "load",
    "prior_predictive",
]
