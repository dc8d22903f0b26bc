"""The card of a fit: what ran, why it stopped, and what it does not say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ingle.program import Program, Site
from ingle.trust import trend

if TYPE_CHECKING:
    from ingle.fitted import Fit

__all__ = ["card"]


def card(fit: Fit, program: Program) -> str:
    """At most 15 lines, one fact a line."""
    name = getattr(fit.model, "__name__", type(fit.model).__name__)
    lines = [
        f"Fit of {name}",
        f"  guide       {program.recipe.description}: {_latents(program)}",
        f"  objective   {fit.objective}: {fit.objective_reason}",
        f"  optimiser   {fit.optimiser}",
        f"  engine      {fit.engine}, {str(fit.dtype).removeprefix('torch.')} on {fit.device}, seed {fit.seed}, "
        f"torch {torch.__version__}",
        *(
            f"  minibatch   {batch} of {full} rows of plate {plate!r} a step"
            for plate, (full, batch) in program.batch_sizes.items()
        ),
        f"  stopped     after {fit.steps:,} steps in {fit.seconds:.1f} s: {fit.reason}",
    ]
    if fit.steps:
        mean, se, window = fit.elbo
        lines.append(f"  ELBO        {mean:,.2f} ± {se:.2g} (mean and standard error of the last {window:,} steps)")
    lines.append(f"  converged   {_converged(fit)}")
    lines.extend(f"  note        {note}" for note in fit.notes)
    return "\n".join(lines)


def _latents(program: Program) -> str:
    sites: list[Site] = [site for site in program.latents if site.name not in program.enumerated]
    if not sites:
        return "no latents to draw"
    shown = ", ".join(site.name for site in sites[:6]) + (", …" if len(sites) > 6 else "")
    return f"{len(sites)} latent {'site' if len(sites) == 1 else 'sites'} ({shown})"


def _converged(fit: Fit) -> str:
    """In words, from the rule that stopped the fit and the course of the ELBO over its last fifth."""
    last = trend(fit.losses[-max(len(fit.losses) // 5, 40) :])
    if fit.stopped == "plateau":
        return "by the plateau rule on the ELBO; how near the guide is to the posterior was not checked"
    if math.isnan(last.se):
        return "not known: too few steps to tell"
    if last.falling:
        return f"no: the ELBO still rose by {last.fall:.2g} nats within the last fifth of the steps; give it more"
    if fit.stopped == "steps":
        return "the ELBO did not rise in the last fifth of the steps; how near the posterior is was not checked"
    return "not known: the fit was stopped before its end"
