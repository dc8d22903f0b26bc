"""Where a fit starts, when it stops, what its gradients are worth, and what went wrong where it broke."""

from ingle.trust.gradient_report import GradientReport, GradientRow, ObjectiveRow, gradient_report, report_on
from ingle.trust.nonfinite import find_fault, nonfinite_parameter
from ingle.trust.start import best_start
from ingle.trust.stop import Decision, Plateau, Trend, trend

__all__ = [
    "Decision",
    "GradientReport",
    "GradientRow",
    "ObjectiveRow",
    "Plateau",
    "Trend",
    "best_start",
    "find_fault",
    "gradient_report",
    "nonfinite_parameter",
    "report_on",
    "trend",
]
