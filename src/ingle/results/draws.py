"""Draws from a fitted program: latents from the guide, deterministic sites and predictions from the model."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ingle.program import Program, Site, buffers_kept
from ingle.results.vectorise import repeat

__all__ = ["drawn_sites", "observations", "posterior", "predictive_sites"]

_ELEMENTS = 2**24  # numbers held by the sites of one chunk of draws


def drawn_sites(program: Program) -> tuple[Site, ...]:
    """The sites that posterior draws are given for.

    Left out are latents that are summed out and deterministic sites that depend on them, and sites inside a
    plate that draws rows by itself, because each run has other rows there.
    """
    hidden = {*program.enumerated, *program.hidden}
    return tuple(
        site
        for site in program.model_sites
        if site.kind in ("latent", "deterministic") and site.name not in hidden and not _own_rows(program, site)
    )


def predictive_sites(program: Program) -> tuple[Site, ...]:
    """The observed sites that can be drawn anew, `pyro.factor` statements left out."""
    return tuple(
        site
        for site in program.model_sites
        if site.kind == "observed" and site.distribution not in ("Unit", "Delta") and not _own_rows(program, site)
    )


def posterior(program: Program, n: int, *, predictive: bool = False) -> dict[str, Tensor]:
    """`n` draws of every site of `drawn_sites`, and of `predictive_sites` where asked, all rows of every plate.

    Runs inside a scope of the fit. Returns tensors of shape (n, *site shape), where a site has the shape that it
    has in one run of the program.
    """
    sites = (*drawn_sites(program), *(predictive_sites(program) if predictive else ()))
    names = [site.name for site in sites]
    model = (
        _Unobserve([site.name for site in predictive_sites(program)])(program.model) if predictive else program.model
    )
    data = program.data

    def run() -> dict[str, Tensor]:
        replayed = poutine.replay(model, trace=program.trace_guide())
        model_trace: Any = poutine.trace(replayed).get_trace(*data.args, **data.kwargs)
        return {name: model_trace.nodes[name]["value"] for name in names}

    with torch.no_grad(), buffers_kept(program.modules()), program.explained("model or guide"):
        return repeat(run, n, chunk=max(1, min(n, _ELEMENTS // _elements(program))))


def observations(program: Program) -> dict[str, Tensor]:
    """The observed value of every site of `predictive_sites`, all rows."""
    data = program.data
    with torch.no_grad(), buffers_kept(program.modules()), program.explained("model"):
        trace: Any = poutine.trace(program.model).get_trace(*data.args, **data.kwargs)
    return {site.name: trace.nodes[site.name]["value"] for site in predictive_sites(program)}


class _Unobserve(Messenger):
    """Draws observed sites anew."""

    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["value"], msg["is_observed"], msg["done"] = None, False, False


def _own_rows(program: Program, site: Site) -> bool:
    return any(plate.size < plate.full_size and plate.name not in program.batch_sizes for plate in site.plates)


def _elements(program: Program) -> int:
    """How many numbers one run holds at its sites, with all rows."""
    total = 1
    for site in program.model_sites:
        rows = math.prod(plate.full_size / plate.size for plate in site.plates)
        total += int(math.prod(site.value_shape) * rows)
    return total
