"""What cannot be calibrated, and why, in words."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from ingle.data import Data
from ingle.errors import DataError, IngleError, OptionError, ProgramError
from ingle.program import Program
from ingle.results import deterministic_sites, drawn_latents

__all__ = [
    "ranked_sites",
    "refuse_model",
    "refuse_names",
    "refuse_point_mass",
    "refuse_reading_guide",
    "refuse_reading_prior",
]


def ranked_sites(program: Program) -> tuple[str, ...]:
    """The continuous latents that the guide draws, and deterministic sites that depend on no latent summed out."""
    sites = (*drawn_latents(program), *deterministic_sites(program, discrete_too=False))
    return tuple(site.name for site in sites if not site.discrete)


def refuse_names(names: Sequence[str], program: Program) -> None:
    """Raises `DataError` for names of a simulator that are no latents, or where none of them can be ranked."""
    known = [site.name for site in program.model_sites if site.kind in ("latent", "deterministic")]
    wrong = [name for name in names if name not in known]
    if wrong:
        raise DataError(
            f"simulate gave {', '.join(map(repr, wrong))}, which "
            f"{'is no latent' if len(wrong) == 1 else 'are no latents'} of the model; "
            f"it has {', '.join(map(repr, known)) or 'none'}"
        )
    if not set(names) & set(ranked_sites(program)):
        raise DataError(
            "simulate gave no value that can be ranked: give the true values of some of "
            f"{', '.join(map(repr, ranked_sites(program)))}"
        )


def refuse_model(program: Program) -> None:
    """Raises `ProgramError` where draws of the model are not draws of what a fit takes it to say."""
    factors = [site.name for site in program.model_sites if site.kind == "observed" and site.distribution == "Unit"]
    if factors:
        raise ProgramError(
            f"the model weighs its latents by pyro.factor at {', '.join(map(repr, factors))}, which cannot be drawn, "
            "so draws of the model are not from its prior: give simulate=, which draws parameters and data"
        )
    partial = [site.name for site in program.model_sites if program.partial(site)]
    if partial:
        raise ProgramError(
            f"{', '.join(map(repr, partial))} lies in a plate that draws rows by itself, so that a run of the model "
            "draws some rows only: take subsample_size out of the plate, or give simulate="
        )
    if not any(site.kind == "observed" and site.distribution != "Delta" for site in program.model_sites):
        raise ProgramError(
            "the model observes nothing with these data, so there is nothing to fit to: give what it observes some "
            "values, such as torch.zeros(n), which are replaced by simulated ones"
        )


def refuse_point_mass(program: Program) -> None:
    """Raises `OptionError` where the guide has no spread, so that ranks say nothing."""
    ranked = ranked_sites(program)
    if not ranked:
        raise OptionError("the model has no continuous latent that the guide draws, so there is nothing to rank")
    if program.recipe.finish is not None:  # it gets its spread once it is trained
        return
    with torch.no_grad(), program.probe, program.at_rest(), program.explained("guide"):
        first, second = program.trace_guide(), program.trace_guide()
    latents = [name for name in ranked if name in first.nodes]
    if latents and all(_equal(first.nodes[name]["value"], second.nodes[name]["value"]) for name in latents):
        raise OptionError(
            f"the guide is a point mass at {', '.join(map(repr, latents))}, and the rank of a true value among draws "
            "that are all the same says nothing: calibrate a guide with a spread, such as 'normal'"
        )


def refuse_reading_guide(program: Program, names: Collection[str]) -> None:
    """Raises `OptionError` where the guide reads an argument that observed values were derived from.

    Those values come to the model by a handler, and the guide would go on encoding the old ones.
    """
    if not names:
        return
    first = _runs(program, program.data)
    for place, (argument, value) in enumerate(program.data.items()):
        if not isinstance(value, Tensor) or value.numel() == 0:
            continue
        moved = value + 1 if value.is_floating_point() else value.roll(1, 0) if value.dim() else value
        try:
            second = _runs(program, _replaced(program.data, place, moved))
        except IngleError:  # the program refuses such values, which says nothing
            continue
        touched = [name for name in names if not _equal(first[0].get(name), second[0].get(name))]
        reads = [name for name in first[1] if not _equal(first[1][name], second[1].get(name))]
        if touched and reads:
            raise OptionError(
                f"the guide reads {argument}, from which the model computes what it observes at "
                f"{', '.join(map(repr, touched))}, so simulated values cannot be put where both see them: hand "
                f"the observed values over as they are, as an argument of their own, or give simulate="
            )


def refuse_reading_prior(program: Program, latents: Mapping[str, Tensor], data: Data) -> None:
    """Raises `ProgramError` where the density of a latent moves with what is observed.

    Draws of such a model are not what a fit takes it to say: they were made given the old values.
    """
    moved: Program = replace(program, data=data)
    with torch.no_grad(), program.at_rest(), program.explained("model"):
        traces: list[Any] = [each.trace_model(latents) for each in (program, moved)]
        for trace in traces:
            trace.compute_log_prob()
    reading = [name for name in latents if not _close(*(trace.nodes[name]["unscaled_log_prob"] for trace in traces))]
    if reading:
        raise ProgramError(
            f"the prior of {', '.join(map(repr, reading))} reads what the model observes, so the model cannot be drawn "
            "from: compute such numbers from the data beforehand, or give simulate="
        )


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-4, atol=1e-4, equal_nan=True)


def _runs(program: Program, data: Data) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Observed values of the model, and what the guide draws, at the same noise."""
    moved: Program = replace(program, data=data)
    with torch.no_grad(), program.at_rest(), moved.explained("model or guide"):
        torch.manual_seed(0)
        guide: Any = moved.trace_guide()
        model: Any = moved.trace_model({})
    return (
        {name: node["value"] for name, node in model.nodes.items() if node["type"] == "sample" and node["is_observed"]},
        {name: node["value"] for name, node in guide.nodes.items() if node["type"] == "sample"},
    )


def _replaced(data: Data, place: int, value: Tensor) -> Data:
    count = len(data.args)
    if place < count:
        return replace(data, args=(*data.args[:place], value, *data.args[place + 1 :]))
    name = list(data.kwargs)[place - count]
    return replace(data, kwargs={**data.kwargs, name: value})


def _equal(one: Any, other: Any) -> bool:
    return (
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.shape == other.shape
        and bool((one == other).all())
    )
