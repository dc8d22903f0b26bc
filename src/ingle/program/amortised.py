"""Which latents a guide can serve for rows that it has not seen."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from ingle.data import Data
from ingle.program.distributions import family, innermost
from ingle.program.handlers import Given
from ingle.program.program import Program
from ingle.program.sites import Plate, Site
from ingle.runtime import RandomState

__all__ = ["amortised"]

_TOLERANCE = 1e-2  # nats, or of the value, by which two runs of a guide may differ through rounding


def amortised(program: Program, plates: frozenset[str]) -> frozenset[str]:
    """The latents inside named plates whose guide follows the rows of the data, and not their places.

    The guide is run again with the rows of the data in another order. Where it is a function of each row its
    distributions come out in that order; where it keeps a parameter for each row, in whatever shape, they do not. An
    automatic guide keeps a value for each latent, and a plate that is looped over has sites for each row, so neither
    is amortised; nor is what cannot be told, as with a single row.

    Args:
        program: the fitted one, inside a scope of its runtime.
        plates: names of the plates.
    """
    if plates not in program.followed:  # the structure of a guide stays, whatever is trained
        before = RandomState.capture(program.device)
        program.followed[plates] = _amortised(program, plates)
        before.restore()
    return program.followed[plates]


def _amortised(program: Program, plates: frozenset[str]) -> frozenset[str]:
    inside = [site for site in program.latents if any(plate.name in plates for plate in site.plates)]
    inside = [site for site in inside if site.name not in program.enumerated and not _looped(site, plates)]
    if not inside or isinstance(poutine.unwrap(program.guide), GuideMessenger):
        return frozenset()
    automatic: set[str] = set()
    for module in program.modules():
        for part in module.modules():
            if isinstance(part, AutoGuide):
                automatic |= set(getattr(part.prototype_trace, "nodes", ()))
    found = {site.name for site in inside} - automatic
    for name in sorted({plate.name for site in inside for plate in site.plates} & set(plates)):
        touched = {site.name: plate for site in inside for plate in site.plates if plate.name == name}
        found -= set(touched) - _followed(program, touched)
    return frozenset(found)


def _looped(site: Site, plates: Collection[str]) -> bool:
    return any(plate.name in plates and plate.dim is None for plate in site.plates)


def _followed(program: Program, sites: dict[str, Plate]) -> set[str]:
    """The sites whose distributions follow the rows of one plate into another order."""
    size = next(iter(sites.values())).full_size
    if size == 1:
        return set()
    fixed = _with_rows_of_their_own(program, sites)
    sites = {name: plate for name, plate in sites.items() if name not in fixed}
    if not sites:
        return set()
    order = torch.randperm(size)
    while bool((order == torch.arange(size)).all()):
        order = torch.randperm(size)
    with torch.no_grad(), program.at_rest(), program.explained("guide"):
        first: Any = program.trace_guide()
        given = {}
        for name, node in first.nodes.items():
            if node["type"] == "sample" and isinstance(node["value"], Tensor):
                axis = _axis(node, next(iter(sites.values())))
                given[name] = node["value"] if axis is None else node["value"].index_select(axis, order)
        followed: set[str] = set()
        for moved in _reordered(program.data, order):
            with Given(given):
                second: Any = replace(program, data=moved).trace_guide()
            followed |= {
                name
                for name, plate in sites.items()
                if name in first.nodes and name in second.nodes
                and _same_but_for_order(first.nodes[name], second.nodes[name], plate, order)
            }  # fmt: skip
    return followed


def _reordered(data: Data, order: Tensor) -> Iterator[Data]:
    """The data with their rows in another order: along the first axis of the plate's length, and along the last."""

    def axes(value: Any) -> list[int]:
        return [axis for axis, length in enumerate(getattr(value, "shape", ())) if length == len(order)]

    def moved(value: Any, pick: int) -> Any:
        found = axes(value)
        return value.index_select(found[pick], order) if found else value

    either = any(len(axes(value)) > 1 for _, value in data.items())  # as for a square matrix of data
    for pick in (0, -1) if either else (0,):
        yield replace(
            data,
            args=tuple(moved(value, pick) for value in data.args),
            kwargs={name: moved(value, pick) for name, value in data.kwargs.items()},
        )


def _same_but_for_order(first: Any, second: Any, plate: Plate, order: Tensor) -> bool:
    """Whether a site says of the rows in the new order what it said of them in the old one."""
    if family(first["fn"]) == "Delta":
        ours, theirs = first["value"], innermost(second["fn"]).v
        axis = _axis(first, plate)
    else:
        ours, theirs = (node["fn"].log_prob(node["value"]) for node in (first, second))
        axis = (plate.dim or 0) if ours.dim() >= -(plate.dim or 0) else None
    if axis is not None and ours.shape[axis] == plate.full_size:
        ours = ours.index_select(axis, order)
    return ours.shape == theirs.shape and bool(torch.isclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE).all())


def _axis(node: Any, plate: Plate) -> int | None:
    axis = (plate.dim or 0) - node["fn"].event_dim if hasattr(node["fn"], "event_dim") else None
    value = node["value"]
    return axis if axis is not None and value.dim() >= -axis and value.shape[axis] == plate.full_size else None


def _with_rows_of_their_own(program: Program, sites: dict[str, Plate]) -> set[str]:
    """The sites for which a parameter holds a row for each of the plate's.

    The first row's site moves with its first row alone. This also tells parameters that are the same for every row, as
    before any training.
    """
    leaves: Sequence[Tensor] = list(program.sides()[1].values())
    if not any(plate.full_size in leaf.shape for plate in sites.values() for leaf in leaves):
        return set()
    with torch.enable_grad(), program.at_rest(), program.explained("guide"):
        trace: Any = program.trace_guide()
        return {
            name
            for name, plate in sites.items()
            if name in trace.nodes
            and any(
                _row_for_each(_rows(trace.nodes[name], plate), leaf, plate.full_size)
                for leaf in leaves
                if plate.full_size in leaf.shape
            )
        }


def _rows(node: Any, plate: Plate) -> Tensor:
    """For each row of a plate a number that moves with all that the guide's site has for it, shape (N,)."""
    value, log_prob = node["value"], node["fn"].log_prob(node["value"].detach())
    dim = plate.dim or 0
    total = torch.zeros(plate.full_size, dtype=torch.get_default_dtype())
    for part, place in ((log_prob, dim), (value, dim - node["fn"].event_dim)):
        if part.dim() >= -place and part.shape[place] == plate.full_size and part.requires_grad:
            total = total + part.movedim(place, 0).reshape(plate.full_size, -1).sum(-1)
    return total


def _row_for_each(rows: Tensor, leaf: Tensor, size: int) -> bool:
    if not rows.requires_grad:
        return True  # how the site comes by its rows cannot be told
    moved = [torch.autograd.grad(rows[place], leaf, retain_graph=True, allow_unused=True)[0] for place in (0, size - 1)]
    if any(gradient is None for gradient in moved):
        return False
    return any(
        all(
            gradient.movedim(dim, 0).reshape(size, -1).ne(0).any(-1).nonzero().reshape(-1).tolist() == [place]
            for gradient, place in zip(moved, (0, size - 1), strict=True)
        )
        for dim, length in enumerate(leaf.shape)
        if length == size
    )
