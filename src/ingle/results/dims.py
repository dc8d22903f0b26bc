"""Names for the dimensions of a value: a plate's where a plate put it."""

from __future__ import annotations

import torch

from ingle.program import Site

__all__ = ["batch_dims_of", "dims_of"]


def dims_of(site: Site, ndim: int) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a value, `name_dim_0` and so on for the rest."""
    names = [f"{site.name}_dim_{place}" for place in range(ndim)]
    event = len(site.event_shape)
    if site.kind == "deterministic" and event >= ndim:
        event = 0  # pyro.deterministic calls every dimension an event; the plates' are still where plates put them
    for plate in site.plates:
        if plate.dim is None:
            continue
        place = ndim + plate.dim - event
        if place >= 0 and site.value_shape[place] == plate.size:
            names[place] = plate.name
    return tuple(names)


def batch_dims_of(site: Site, name: str, shape: torch.Size) -> tuple[str, ...]:
    """Plate names for the batch dimensions of a log probability."""
    names = [f"{name}_dim_{place}" for place in range(len(shape))]
    for plate in site.plates:
        if plate.dim is not None and len(shape) >= -plate.dim and shape[plate.dim] == plate.full_size:
            names[plate.dim] = plate.name
    return tuple(names)
