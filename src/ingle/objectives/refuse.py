"""What an objective says to a pair that it cannot serve."""

from __future__ import annotations

from typing import Any

from pyro import poutine
from pyro.poutine.guide import GuideMessenger

from ingle.errors import ProgramError
from ingle.program import sample_nodes, score_sampled

__all__ = ["refuse_rerun", "refuse_score_sampled"]


def refuse_score_sampled(objective: object, guide_trace: Any, serving: str) -> None:
    """Raises `ProgramError` for a guide with a site without a pathwise gradient, naming the objectives that serve."""
    for site in sample_nodes(guide_trace):
        if not site["is_observed"] and score_sampled(site):
            kind = type(site["fn"]).__name__
            other = ""
            if getattr(site["fn"], "has_enumerate_support", False):
                other = "; or leave it out of the guide, and TraceEnum_ELBO sums it out"
            raise ProgramError(
                f"{type(objective).__name__} wants a pathwise gradient at every site of the guide, and site "
                f"{site['name']!r}, a {kind}, has none: use {serving}{other}"
            )


def refuse_rerun(objective: object, guide: Any) -> None:
    """Raises `ProgramError` for a guide that runs the model by itself, and so cannot be run for its densities alone."""
    if isinstance(poutine.unwrap(guide), GuideMessenger):
        raise ProgramError(
            f"{type(objective).__name__} runs the guide a second time without the model, and this guide, "
            f"{type(poutine.unwrap(guide)).__name__}, runs the model by itself; use Trace_ELBO or IWAE_ELBO"
        )
