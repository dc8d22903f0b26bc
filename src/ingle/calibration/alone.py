"""Replicates fitted one by one, where they cannot be fitted in one run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingle.calibration.measured import Measured
from ingle.calibration.replicates import Replicates
from ingle.data import Data
from ingle.errors import NonFiniteError, ProgramError, TrainedModuleWarning
from ingle.fit import fit
from ingle.fitted import Fit
from ingle.program import Observed, find_modules
from ingle.progress import Progress
from ingle.runtime import Runtime

__all__ = ["fit_alone"]

_STREAM = 3141  # seeds of the fits, apart from those of the simulator


def fit_alone(
    model: Callable[..., Any],
    guide: Any,
    replicates: Replicates,
    runtime: Runtime,
    *,
    draws: int,
    bar: Progress,
    options: Mapping[str, Any],
) -> tuple[list[dict[str, Tensor] | None], list[dict[str, Tensor]], list[np.ndarray], str | None]:
    """For each replicate draws of its guide, what is read at the truth, and losses; None for draws of a failed one.

    Modules of the user's start each fit as they are, and are that again afterwards.

    Args:
        model, guide: of the fits.
        replicates: their data.
        runtime: dtype, device and seed of all.
        draws: of each guide.
        bar: moved once a fit.
        options: of `ingle.fit`.

    Returns:
        The three lists, and what the first that failed said.
    """
    parameters = [leaf for module in find_modules(model, guide) for leaf in module.parameters()]
    before = [leaf.detach().clone() for leaf in parameters]
    found: list[dict[str, Tensor] | None] = []
    truths: list[dict[str, Tensor]] = []
    losses: list[np.ndarray] = []
    told: str | None = None
    for place, data in enumerate(replicates.data):
        seen = replicates.seen(place)
        seed = int(np.random.SeedSequence([runtime.seed, _STREAM, place]).generate_state(1, np.uint32)[0])
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", TrainedModuleWarning)  # each starts from the same numbers
                done = fit(
                    Observed(seen)(model) if seen else model,
                    guide,
                    _as_given(data),
                    seed=seed,
                    dtype=runtime.dtype,
                    device=runtime.device,
                    progress=False,
                    **options,
                )
                drawn, truth = _drawn(done, replicates, place, draws)
            found.append(drawn)
            truths.append(truth)
            losses.append(done.losses)
            bar.advance([float(done.losses[-1])])
        except (NonFiniteError, ProgramError) as error:
            if place == 0 and not isinstance(error, NonFiniteError) and error.fit is None:
                raise  # before the first step: the program is at fault, and not these data
            told = told or str(error).split("\n")[0]
            found.append(None)
            truths.append({})
            losses.append(np.empty(0))
        finally:
            with torch.no_grad():
                for leaf, value in zip(parameters, before, strict=True):
                    leaf.data.copy_(value)
    return found, truths, losses, told


def _drawn(done: Fit, replicates: Replicates, place: int, draws: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    program = done._program
    measured = Measured(program)
    with done._scope(None), torch.no_grad(), program.at_rest(), program.explained("model or guide"):
        drawn = measured.draws(program.data, draws)
        latents = {name: value[place] for name, value in replicates.truths.items()}
        whole = set(measured.latents) <= set(latents)
        truth = measured.at(program.data, {name: latents[name] for name in measured.latents}) if whole else {}
    return drawn, truth


def _as_given(data: Data) -> Any:
    if not data.args:
        return data.kwargs if data.kwargs else ()
    return data.args
