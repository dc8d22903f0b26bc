"""A program on a few of its rows, drawn at random, for what would take too long on all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ingle.data import Data
from ingle.program import Given, Plate, Program, Rows, amortised, read_sites, typical_value

__all__ = ["SomeRows", "some_rows"]

_TOLERANCE = 1e-3  # nats and relative, by which a row by itself may differ from the same among all through rounding


@dataclass(frozen=True)
class SomeRows:
    """A program whose data are a few rows of a plate.

    Attributes:
        program: on these rows alone; parameters and guide are those of the whole.
        rows: their numbers among all rows, shape (R,), int64, ascending.
    """

    program: Program
    rows: Tensor


def some_rows(program: Program, plate: str, count: int, *, seed: int) -> SomeRows | None:
    """The program on rows drawn at random; None where rows of the plate cannot be taken out of it.

    They can where the guide is a function of each row's data, where every argument has at most one axis as long as the
    plate and none holds numbers of rows, and where model and guide say of a row by itself what they say of it among
    all: the last is tried.

    Args:
        program: fitted, inside a scope of its runtime; left as it was.
        plate: that every latent lies in.
        count: R, how many rows; fewer than there are.
        seed: of the choice.
    """
    drawn = {site.name for site in program.latents if site.name not in program.enumerated}
    if drawn - amortised(program, frozenset({plate})):
        return None
    size = next(each.full_size for site in program.latents for each in site.plates if each.name == plate)
    generator = torch.Generator("cpu").manual_seed(seed)
    rows = torch.randperm(size, generator=generator, device="cpu")[:count].sort().values
    data = _taken(program.data, rows, size)
    if data is None:
        return None
    fewer = replace(program, data=data, batch_sizes={}, rows=Rows(), probe=Rows())
    try:
        with torch.no_grad(), program.at_rest():
            with InitMessenger(typical_value):
                fewer.model_sites = read_sites(fewer.trace_model({}))
            fewer.guide_sites = read_sites(fewer.trace_guide())
            alike = _alike(program, fewer, plate, rows)
    except Exception:  # a program written for so many rows and no others
        return None
    return SomeRows(fewer, rows) if alike else None


def _taken(data: Data, rows: Tensor, size: int) -> Data | None:
    """The data of some rows; None where an argument has several axes of the rows, or may hold numbers of rows."""
    values = [value for _, value in data.items() if isinstance(value, Tensor)]
    if any(list(value.shape).count(size) > 1 for value in values):
        return None
    if any(value.dtype == torch.int64 and value.numel() and int(value.max()) >= len(rows) for value in values):
        return None  # an index past the end of what was cut, which ends a process on CUDA

    def take(value: Any) -> Any:
        if not isinstance(value, Tensor) or size not in value.shape:
            return value
        return value.index_select(list(value.shape).index(size), rows.to(value.device))

    return replace(
        data,
        args=tuple(take(value) for value in data.args),
        kwargs={name: take(value) for name, value in data.kwargs.items()},
    )


def _alike(whole: Program, fewer: Program, plate: str, rows: Tensor) -> bool:
    """Whether the terms of these rows are the same with and without the others, at one draw of the guide."""
    where, of_guide = (
        {site.name: at for site in sites for at in site.plates if at.name == plate}
        for sites in (whole.model_sites, whole.guide_sites)
    )
    events = {site.name: len(site.event_shape) for site in whole.model_sites}
    guide: Any = whole.trace_guide()
    latents = {site.name: guide.nodes[site.name]["value"] for site in whole.latents if site.name in guide.nodes}
    few = {
        name: value.index_select((where[name].dim or 0) - events[name], rows.to(value.device))
        for name, value in latents.items()
    }
    with Given(few):
        guides = guide, fewer.trace_guide()
    models = whole.trace_model(latents), fewer.trace_model(few)
    for trace in (*guides, *models):
        trace.compute_log_prob()
    return all(
        _same(one.nodes[name], other.nodes[name], at, rows)
        for (one, other), places in ((models, where), (guides, of_guide))
        for name, at in places.items()
    )


def _same(ours: Any, theirs: Any, at: Plate, rows: Tensor) -> bool:
    """Whether a site has the same density, and no scale of the user's, which may know how many rows there are."""
    dim, density = at.dim or 0, ours["unscaled_log_prob"]
    if any(not isinstance(node["scale"], (int, float)) or node["scale"] != 1 for node in (ours, theirs)):
        return False
    if density.dim() < -dim or density.shape[dim] != at.full_size:
        return False
    density = density.index_select(dim, rows.to(density.device))
    other = theirs["unscaled_log_prob"]
    return density.shape == other.shape and torch.allclose(density, other, rtol=_TOLERANCE, atol=_TOLERANCE)
