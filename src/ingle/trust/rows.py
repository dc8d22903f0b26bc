"""A program on a few of its rows, drawn at random, for what would take too long on all of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ingle.data import Data
from ingle.program import Program, Rows, amortised, read_sites, typical_value

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
    plate, and where a row by itself has the density that it has among all: the last is tried.

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
    """The data of some rows; None where an argument has several axes that may be those of the rows."""
    values = [value for _, value in data.items() if isinstance(value, Tensor)]
    if any(list(value.shape).count(size) > 1 for value in values):
        return None

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
    """Whether the model's terms of these rows are the same with and without the others, at one draw of the guide."""
    where = {site.name: at for site in whole.model_sites for at in site.plates if at.name == plate}
    events = {site.name: len(site.event_shape) for site in whole.model_sites}
    trace: Any = whole.trace_guide()
    latents = {site.name: trace.nodes[site.name]["value"] for site in whole.latents if site.name in trace.nodes}
    few = {
        name: value.index_select((where[name].dim or 0) - events[name], rows.to(value.device))
        for name, value in latents.items()
    }
    traces: tuple[Any, Any] = whole.trace_model(latents), fewer.trace_model(few)
    for trace in traces:
        trace.compute_log_prob()
    for name, at in where.items():
        ours, theirs = (trace.nodes[name]["unscaled_log_prob"] for trace in traces)
        dim = at.dim or 0
        if ours.dim() < -dim or ours.shape[dim] != at.full_size:
            return False
        ours = ours.index_select(dim, rows.to(ours.device))
        if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE):
            return False
    return True
