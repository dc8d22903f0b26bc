"""What every group for ArviZ says of the fit that it came from."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import pyro
import torch

from ingle.program import Program
from ingle.trust import Verdict
from ingle.version import __version__

if TYPE_CHECKING:
    from ingle.fitted import Fit

__all__ = ["attributes"]


def attributes(fit: Fit, program: Program, verdict: Verdict | None) -> dict[str, Any]:
    """Versions, what ran, why it stopped, and the verdict, by name, in numbers and strings."""
    return {
        "inference_library": "ingle",
        "inference_library_version": __version__,
        "pyro_version": pyro.__version__,
        "torch_version": str(torch.__version__),
        "guide": program.recipe.description,
        "objective": fit.objective,
        "steps": fit.steps,
        "stopped": fit.stopped,
        "stop_reason": fit.reason,
        "seed": fit.seed,
        **({} if verdict is None else _of_verdict(verdict)),
    }


def _of_verdict(verdict: Verdict) -> dict[str, Any]:
    told: dict[str, Any] = {
        "verdict": verdict.status,
        "verdict_reasons": "; ".join(verdict.reasons),
        "verdict_advice": "; ".join(verdict.advice),
        "verdict_comparison": verdict.comparison,
    }
    figures = {"elbo": verdict.elbo, "elbo_se": verdict.elbo_se, "verdict_khat": verdict.khat}
    for name, worst in (("mean", verdict.shift_mean), ("sd", verdict.shift_sd)):
        if worst is not None:
            told[f"verdict_worst_{name}"] = worst.name
            figures |= {f"verdict_shift_{name}": worst.value, f"verdict_shift_{name}_se": worst.se}
    return {**told, **{name: value for name, value in figures.items() if not math.isnan(value)}}
