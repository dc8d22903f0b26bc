"""Where a fit starts, when it stops, and what went wrong where it broke."""

from ingle.trust.nonfinite import find_fault, nonfinite_parameter
from ingle.trust.start import best_start
from ingle.trust.stop import Decision, Plateau, Trend, trend

__all__ = ["Decision", "Plateau", "Trend", "best_start", "find_fault", "nonfinite_parameter", "trend"]
