"""The route to ArviZ: the only file that knows it, in 0.23 and in 1.x."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ingle.errors import OptionError
from ingle.program import Site

__all__ = ["summary", "to_arviz"]

_RESERVED = {"chain", "draw"}


def _arviz() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 at every import
        import arviz

    return arviz


def to_arviz(
    sites: Sequence[Site],
    groups: Mapping[str, Mapping[str, Tensor]],
    *,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
    attributes: Mapping[str, Any],
) -> Any:
    """Draws and data as ArviZ holds them: `InferenceData` in 0.23, `xarray.DataTree` in 1.x.

    Args:
        sites: of the program; the plates of each become dimensions.
        groups: ArviZ group to site to tensor; shape (n, *site shape), `observed_data` without the first axis.
        coords: labels of a dimension, such as the schools' names for plate "school".
        dims: names for the dimensions of a site, in place of those found.
        attributes: written into every group.

    Raises:
        OptionError: coords of another length than their dimension, or dims for a site that is not there.
    """
    by_name = {site.name: site for site in sites}
    for what, mapping in {"coords": coords, "dims": dims}.items():
        if mapping is not None and not isinstance(mapping, Mapping):
            raise OptionError(f"{what} must be a mapping, got {mapping!r}")
    shapes = {
        name: tuple(value.shape) if group == "observed_data" else tuple(value.shape[1:])
        for group, members in groups.items()
        for name, value in members.items()
    }
    named = {name: _dims(by_name[name], len(shape)) for name, shape in shapes.items()}
    for name, given in (dims or {}).items():
        if name not in named:
            raise OptionError(f"dims names {name!r}, which is not among the exported sites: {', '.join(named)}")
        names = _listed(f"dims[{name!r}]", given)
        if len(names) != len(shapes[name]):
            raise OptionError(f"dims[{name!r}] has {len(names)} names, but the site has shape {shapes[name]}")
        named[name] = names
    sizes = {dim: size for name, shape in shapes.items() for dim, size in zip(named[name], shape, strict=True)}
    taken = sorted({*named, *sizes} & _RESERVED)
    if taken:
        raise OptionError(f"ArviZ keeps the names {sorted(_RESERVED)} for itself: rename {', '.join(taken)}")
    labelled: dict[str, Any] = {dim: np.arange(size) for dim, size in sizes.items()}
    for dim, given in (coords or {}).items():
        labels = _listed(f"coords[{dim!r}]", given)
        if dim not in sizes:
            raise OptionError(f"coords names {dim!r}, which is no dimension: {', '.join(sizes) or 'there is none'}")
        if len(labels) != sizes[dim]:
            raise OptionError(f"coords[{dim!r}] has {len(labels)} labels, but the dimension has {sizes[dim]} rows")
        labelled[dim] = labels

    arrays = {
        group: {name: _numpy(value, chain=group != "observed_data") for name, value in members.items()}
        for group, members in groups.items()
        if members
    }
    arviz = _arviz()
    if int(arviz.__version__.split(".")[0]) == 0:
        data = arviz.from_dict(**arrays, coords=labelled, dims=named)
        members = [data[group] for group in data.groups()]
    else:
        data = arviz.from_dict(arrays, coords=labelled, dims=named)
        members = list(data.children.values())
    for member in members:
        member.attrs.update(attributes)
    return data


def summary(data: Any) -> Any:
    """Mean, sd and interval of every posterior site, as a DataFrame. No R-hat: the draws are independent."""
    if not hasattr(data, "posterior"):
        raise OptionError("the fit has no latent that can be drawn, so there is nothing to summarise; see fit.params")
    return _arviz().summary(data, kind="stats")


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, str) or not isinstance(given, Iterable):
        raise OptionError(f"{name} must be a sequence, got {given!r}")
    return list(given)


def _numpy(value: Tensor, *, chain: bool) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array[np.newaxis] if chain else array


def _dims(site: Site, ndim: int) -> list[str]:
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
    return names
