"""Draws from a fitted program: latents from the guide, all else from the model given them."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from ingle.errors import OptionError
from ingle.program import Given, Program, Site, repeat

__all__ = [
    "chunk_of",
    "chunked",
    "deterministic_sites",
    "discrete",
    "drawn_anew",
    "drawn_latents",
    "guided",
    "guided_with_density",
    "modelled",
    "observed_sites",
    "posterior",
    "refuse_too_large",
]

_ELEMENTS = 2**24  # numbers held by the sites of one chunk of draws
_MOST_VALUES = 256  # a site seldom depends on more combinations of discrete latents at a time


def posterior(
    program: Program, n: int, *, discrete_too: bool, drawn: dict[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """`n` draws of every latent and deterministic site, all rows of every plate, in the order of the model.

    Runs inside a scope of the fit. Returns tensors of shape (n, *site shape), where a site has the shape that it
    has in one run of the program.

    Args:
        program: the fitted one.
        n: number of draws.
        discrete_too: latents that are summed out, drawn from their exact posterior given the others, and the
            deterministic sites that depend on them.
        drawn: the latents; the guide's draws where None.
    """
    sites = deterministic_sites(program, discrete_too=discrete_too)
    latents = {site.name for site in drawn_latents(program)} | ({*program.enumerated} if discrete_too else set())
    held = (*sites, *(site for site in program.latents if site.name in latents))
    refuse_too_large(held, n, program.dtype, program.device, "the draws")
    drawn = guided(program, n) if drawn is None else drawn
    if discrete_too:
        drawn.update(discrete(program, drawn, n))
    if sites:
        drawn.update(modelled(program, drawn, n, keep=[site.name for site in sites]))
    return {site.name: drawn[site.name] for site in program.model_sites if site.name in drawn}


def drawn_latents(program: Program) -> tuple[Site, ...]:
    """The latents that the guide draws, those inside a plate that draws rows by itself left out."""
    return tuple(site for site in program.latents if site.name not in program.enumerated and not program.partial(site))


def deterministic_sites(program: Program, *, discrete_too: bool) -> tuple[Site, ...]:
    """The deterministic sites, with or without those that depend on a latent that is summed out."""
    left_out = frozenset() if discrete_too else program.hidden
    return tuple(
        site
        for site in program.model_sites
        if site.kind == "deterministic" and site.name not in left_out and not program.partial(site)
    )


def observed_sites(program: Program) -> tuple[Site, ...]:
    """The observed sites of which every row can be drawn anew."""
    return tuple(site for site in drawn_anew(program.model_sites) if not program.partial(site))


def drawn_anew(sites: Iterable[Site]) -> tuple[Site, ...]:
    """The sites that `Unobserve` draws anew: `pyro.factor` statements are no data."""
    return tuple(site for site in sites if site.kind == "observed" and site.distribution not in ("Unit", "Delta"))


def guided(
    program: Program, n: int, *, given: Mapping[str, Tensor] | None = None, keep: Collection[str] | None = None
) -> dict[str, Tensor]:
    """Draws of the guide: every latent, shape (n, *site shape).

    Args:
        program: the fitted one.
        n: number of draws.
        given: draws of latents that the guide takes instead of its own.
        keep: the latents wanted; all where None.
    """
    names = [site.name for site in drawn_latents(program) if keep is None or site.name in keep]
    if not names:
        return {}

    def run(values: Any) -> dict[str, Any]:
        with Given(values):
            trace = program.trace_guide()
        return {name: trace.nodes[name]["value"] for name in names}

    with program.explained("guide"):
        return chunked(program, run, n, given=given)  # type: ignore[no-any-return]


def guided_with_density(program: Program, n: int) -> tuple[dict[str, Tensor], Tensor]:
    """The draws of `guided`, and log q of all that the guide draws, auxiliary sites included, shape (n,), float64."""
    names = [site.name for site in drawn_latents(program)]

    def run(_: Any) -> dict[str, Any]:
        trace = program.trace_guide()
        trace.compute_log_prob()
        return {"latents": {name: trace.nodes[name]["value"] for name in names}, "log_q": log_prob_sum(trace)}

    with program.explained("guide"):
        drawn = chunked(program, run, n)
    return drawn.get("latents", {}), drawn["log_q"]


def modelled(
    program: Program, drawn: Mapping[str, Tensor], n: int, *, keep: Collection[str], anew: bool = False
) -> dict[str, Tensor]:
    """The sites `keep` of the model given draws of its latents; with `anew`, observed sites are drawn."""

    def run(given: Any) -> dict[str, Tensor]:
        trace = program.trace_model(given, anew=anew)
        return {name: trace.nodes[name]["value"] for name in keep}

    with program.explained("model"):
        return chunked(program, run, n, given=drawn)  # type: ignore[no-any-return]


def discrete(program: Program, drawn: Mapping[str, Tensor], n: int) -> dict[str, Tensor]:
    """The latents that are summed out, drawn from their exact posterior given draws of the others."""
    if not program.enumerated:
        return {}
    with program.explained("model"):
        return chunked(program, lambda given: program.summed(given).draw(), n, given=drawn)  # type: ignore[no-any-return]


def log_prob_sum(trace: Any) -> Tensor:
    """The log joint of every site of a trace whose log probabilities are there, scalar, float64."""
    terms = [node["log_prob_sum"] for node in trace.nodes.values() if node["type"] == "sample"]
    return sum((torch.as_tensor(term).double() for term in terms), torch.zeros((), dtype=torch.float64))


def chunked(
    program: Program, run: Callable[[Any], Mapping[str, Any]], n: int, *, given: Mapping[str, Tensor] | None = None
) -> Any:
    """`repeat` in chunks that fit in memory, without gradients, modules at rest."""
    chunk = chunk_of(program.model_sites, n, summed=program.enumerated)
    with torch.no_grad(), program.at_rest():
        return repeat(run, n, chunk=chunk, given=given)


def chunk_of(sites: Iterable[Site], n: int, *, summed: Collection[str] = ()) -> int:
    """How many of `n` draws go through the program together, all values of latents that are summed out counted."""
    sites = list(sites)
    values = math.prod(max(len(site.support), 1) for site in sites if site.name in summed)
    numbers = 1 + min(values, _MOST_VALUES) * sum(_numbers(site) for site in sites)
    return max(1, min(n, _ELEMENTS // numbers))


def refuse_too_large(sites: Iterable[Site], n: int, dtype: torch.dtype, device: torch.device, what: str) -> None:
    """Raise `OptionError` where `n` draws of the sites are more than the memory of the device can hold."""
    numbers = n * sum(_numbers(site) for site in sites)
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    elif hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    else:
        return
    needed = numbers * torch.finfo(dtype).bits // 8
    if needed > memory:
        raise OptionError(
            f"{n:,} draws take {needed / 2**30:,.0f} GiB for {what}, and the {device.type} has {memory / 2**30:,.0f}: "
            "take fewer draws or fewer rows, and leave out what is not needed"
        )


def _numbers(site: Site) -> int:
    """How many numbers one draw of a site holds, with all rows."""
    return int(math.prod(site.value_shape) * math.prod(plate.full_size / plate.size for plate in site.plates))
