"""One fit of a case, and what is kept of it: its verdict, its errors, and what it cost."""

from __future__ import annotations

import json
import math
import time
import warnings
from typing import Any

from trust.families import Case
from trust.families.errors import errors

import ingle
from benchmarks.trust import CACHE
from benchmarks.trust.results import Record

__all__ = ["GUIDES", "fit_case", "load_reference", "moments"]

GUIDES = ("normal", "multivariate_normal")
_DRAWS = 20_000


def load_reference(family: str, seed: int) -> dict[str, Any]:
    """What `benchmarks.trust.references` wrote."""
    found: dict[str, Any] = json.loads((CACHE / "references" / f"{family}-{seed}.json").read_text())
    return found


def moments(fit: ingle.Fit, latents: tuple[str, ...]) -> dict[str, Any]:
    """Means and sds of the guide, of each latent."""
    draws = fit.draws(_DRAWS)
    drawn = {name: draws[name].double().cpu() for name in latents}
    return {name: {"mean": value.mean(0).numpy(), "sd": value.std(0).numpy()} for name, value in drawn.items()}


def fit_case(case: Case, guide: Any, reference: Any, **options: Any) -> Record:
    """Fit, ask for the verdict, and compare with the reference.

    Args:
        case: of the suite.
        guide: a name, or any guide.
        reference: {"mean": …, "sd": …} of each latent.
        options: of `ingle.fit`.
    """
    began = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            fit = ingle.fit(case.model, guide, case.data, progress=False, **options)
        except ingle.IngleError as error:
            # An error is a verdict too: nobody is given a wrong answer.
            told = {"status": "failed", "reasons": [f"{type(error).__name__}: {error}"], "mean_error": None}
            return {**told, "sd_error": None, "seconds": time.perf_counter() - began, "raised": True}
        fitted = time.perf_counter()
        status, reasons, figures = _verdict(fit)
        judged = time.perf_counter()
        mean_error, sd_error = errors(moments(fit, case.latents), reference)
        elbo, elbo_se, khat = _evidence(fit)
    return {
        "status": status,
        "reasons": reasons,
        "figures": figures,
        "mean_error": mean_error,
        "sd_error": sd_error,
        "steps": fit.steps,
        "evaluations": getattr(fit, "evaluations", fit.steps),
        "stopped": fit.stopped,
        "notes": list(fit.notes),
        "seconds": fitted - began,
        "step_seconds": fit.seconds,
        "verdict_seconds": judged - fitted,
        "elbo": elbo,
        "elbo_se": elbo_se,
        "khat": khat,
        "raised": False,
    }


def _verdict(fit: ingle.Fit) -> tuple[str | None, list[str], dict[str, float]]:
    """Status, reasons and figures; None where fits carry no verdict yet."""
    verdict = getattr(fit, "verdict", None)
    if verdict is None:
        return None, [], {}
    figures = {name: value for name, value in vars(verdict).items() if isinstance(value, (int, float))}
    return verdict.status, list(verdict.reasons), figures


def _evidence(fit: ingle.Fit) -> tuple[float, float, float]:
    """ELBO, its standard error and k-hat; NaN for a guide whose scales have come down to nothing."""
    try:
        evidence = fit.log_evidence(10_000)
    except ingle.IngleError:
        return math.nan, math.nan, math.nan
    return evidence.elbo, evidence.elbo_se, evidence.khat
