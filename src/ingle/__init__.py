"""Ingle: variational inference for Pyro programs, from `fit` to ArviZ."""

from ingle.calibration import Calibration, calibrate
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
from ingle.evidence import Comparison, ElboGap, Evidence, compare, elbo_gap, log_evidence
from ingle.fit import fit
from ingle.fitted import Fit
from ingle.load import load
from ingle.program import Check, Finding, check
from ingle.results import prior_predictive
from ingle.svi import SVI
from ingle.trust import GradientReport, gradient_report
from ingle.version import __version__

__all__ = [
    "SVI",
    "Calibration",
    "Check",
    "Comparison",
    "DataError",
    "ElboGap",
    "Evidence",
    "FileError",
    "Finding",
    "Fit",
    "GradientReport",
    "IngleError",
    "IngleWarning",
    "NonFiniteError",
    "OptionError",
    "ProgramError",
    "TrainedModuleWarning",
    "__version__",
    "calibrate",
    "check",
    "compare",
    "elbo_gap",
    "fit",
    "gradient_report",
    "load",
    "log_evidence",
    "prior_predictive",
]
