"""Where a guide by name starts: the best of several draws from the prior."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ingle.errors import ProgramError
from ingle.program import Program, set_guide
from ingle.runtime import Runtime

__all__ = ["best_start"]

NUM_DRAWS = 20
_NUM_LOSSES = 4  # draws of the ELBO for each start


def best_start(program: Program, objective: Any, runtime: Runtime) -> None:
    """Make the guide of `program`, started where its ELBO is highest among prior draws and the prior median.

    A guide that takes no start is made once. Starts whose ELBO is not finite are passed over; where all are,
    the prior median is taken, and the first step will name the site.
    """
    best: Mapping[str, Tensor] | None = None
    if program.recipe.takes_start:
        lowest = _loss(program, objective, runtime, None)
        for _ in range(NUM_DRAWS):
            try:
                start = program.prior_draw()
                loss = _loss(program, objective, runtime, start)
            except ProgramError:  # a draw so far out that the program refuses it is no start
                continue
            if loss < lowest:
                best, lowest = start, loss
    set_guide(program, best)


def _loss(program: Program, objective: Any, runtime: Runtime, start: Mapping[str, Tensor] | None) -> float:
    """Mean loss of the guide from one start; infinite where it is not finite."""
    data = program.data
    with runtime.trial(), torch.no_grad():
        set_guide(program, start, check=start is None)
        with program.probe, program.explained("model or guide"):
            losses = [
                float(objective.loss(program.model, program.guide, *data.args, **data.kwargs))
                for _ in range(_NUM_LOSSES)
            ]
    mean = sum(losses) / len(losses)
    return mean if math.isfinite(mean) else math.inf
