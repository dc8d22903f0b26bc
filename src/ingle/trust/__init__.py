"""Where a fit starts, when it stops, what its gradients are worth, and what went wrong where it broke."""

from ingle.trust.gradient_report import GradientReport, GradientRow, ObjectiveRow, gradient_report, report_on
from ingle.trust.judge import Course, judge
from ingle.trust.log_joint import Refused
from ingle.trust.margins import placed
from ingle.trust.nonfinite import find_fault, nonfinite_parameter
from ingle.trust.paths import Path, ascend, why_no_path
from ingle.trust.plateau import Decision, Plateau, Trend, trend
from ingle.trust.start import Start, best_start, start_from_file
from ingle.trust.stop import Steady, Stopping
from ingle.trust.verdict import Status, Verdict, Worst

__all__ = [
    "Course",
    "Decision",
    "GradientReport",
    "GradientRow",
    "ObjectiveRow",
    "Path",
    "Plateau",
    "Refused",
    "Start",
    "Status",
    "Steady",
    "Stopping",
    "Trend",
    "Verdict",
    "Worst",
    "ascend",
    "best_start",
    "find_fault",
    "gradient_report",
    "judge",
    "nonfinite_parameter",
    "placed",
    "report_on",
    "start_from_file",
    "trend",
    "why_no_path",
]
