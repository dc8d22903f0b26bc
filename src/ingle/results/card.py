"""The card of a fit: what ran, why it stopped, and what it does not say."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from ingle.program import Program, Site
from ingle.trust import Verdict

if TYPE_CHECKING:
    from ingle.fitted import Fit

__all__ = ["card"]

_LINES = 15


def card(fit: Fit, program: Program, verdict: Verdict | None) -> str:
    """At most 15 lines, one fact a line."""
    name = getattr(fit.model, "__name__", type(fit.model).__name__)
    lines = [
        f"Fit of {name}",
        f"  guide       {program.recipe.description}: {_latents(program)}",
        f"  objective   {fit.objective}: {fit.objective_reason}",
        f"  start       {fit.start}",
        f"  optimiser   {fit.optimiser}",
        f"  engine      {fit.engine}, {str(fit.dtype).removeprefix('torch.')} on {fit.device}, seed {fit.seed}, "
        f"torch {torch.__version__}",
        *(
            f"  minibatch   {batch} of {full} rows of plate {plate!r} a step"
            for plate, (full, batch) in program.batch_sizes.items()
        ),
        f"  stopped     after {fit.steps:,} step{'s' if fit.steps != 1 else ''} in {fit.seconds:.1f} s: {fit.reason}",
    ]
    notes = [f"  note        {note}" for note in fit.notes]
    if verdict is None:
        told = ["  verdict     not of this fit any more: it was gone on with"]
    else:
        told = _verdict(verdict, _LINES - len(lines) - min(len(notes), 2))
    if fit.steps and (verdict is None or math.isnan(verdict.elbo)):
        mean, se, window = fit.elbo
        told.append(f"  ELBO        {mean:,.2f} ± {se:.2g} (mean and standard error of the last {window:,} steps)")
    return "\n".join([*lines, *told, *notes][:_LINES])


def _verdict(verdict: Verdict, room: int) -> list[str]:
    """What it is and why, what to try, and as many of its figures as there is room for."""
    first, *others = verdict.reasons or ("",)
    told = [f"  verdict     {verdict.status}: {first}"]
    if verdict.status != "ok":
        told += [f"              {reason}" for reason in others[:1]]
        told += [f"  try         {advice}" for advice in verdict.advice[:1]]
    figures = [f"  {name:<12}{figure}" for name, figure in verdict.figures]
    return [*told, *figures[: max(1, room - len(told))]]


def _latents(program: Program) -> str:
    sites: list[Site] = [site for site in program.latents if site.name not in program.enumerated]
    if not sites:
        return "no latents to draw"
    shown = ", ".join(site.name for site in sites[:6]) + (", …" if len(sites) > 6 else "")
    return f"{len(sites)} latent {'site' if len(sites) == 1 else 'sites'} ({shown})"
