"""Names for the dimensions of a value: a plate's where a plate put it."""

from __future__ import annotations

import torch

from ingle.program import Site

__all__ = ["batch_dims_of", "dims_of"]


def dims_of(site: Site, ndim: int) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a value, `name_dim_0` and so on for the rest.

    `pyro.deterministic` without `event_dim` calls every dimension an event. A value with as many dimensions as there
    are plates is then taken to have theirs; with more, which are the plates' cannot be told.
    """
    names = [f"{site.name}_dim_{place}" for place in range(ndim)]
    event = len(site.event_shape)
    if site.kind == "deterministic" and event >= ndim:
        if ndim > max((-plate.dim for plate in site.plates if plate.dim is not None), default=0):
            return tuple(names)
        event = 0
    for plate in site.plates:
        if plate.dim is None:
            continue
        place = ndim + plate.dim - event
        if 0 <= place < len(site.value_shape) and site.value_shape[place] == plate.size:
            names[place] = plate.name
    return tuple(names)


def batch_dims_of(site: Site, name: str, shape: torch.Size) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a log probability."""
    names = [f"{name}_dim_{place}" for place in range(len(shape))]
    for plate in site.plates:
        if plate.dim is not None and len(shape) >= -plate.dim and shape[plate.dim] == plate.full_size:
            names[plate.dim] = plate.name
    return tuple(names)
