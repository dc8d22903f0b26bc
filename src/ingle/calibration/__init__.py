"""Simulation-based calibration: fits to data whose parameters are known, and what the ranks of these say."""

from ingle.calibration.calibrate import calibrate
from ingle.calibration.result import Calibration
from ingle.calibration.words import Quantity

__all__ = ["Calibration", "Quantity", "calibrate"]
