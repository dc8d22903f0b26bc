"""The route to ArviZ: the only file that knows it, in 0.23 and in 1.x."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from types import ModuleType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ingle.errors import OptionError

__all__ = ["summary", "to_arviz"]

_RESERVED = {"chain", "draw"}
_NOT_DRAWN = {"observed_data", "constant_data"}


def to_arviz(
    groups: Mapping[str, Mapping[str, Any]],
    *,
    coords: Mapping[str, Sequence[Any]] | None,
    dims: Mapping[str, Sequence[str]] | None,
    attributes: Mapping[str, Any],
) -> Any:
    """Draws and data as ArviZ holds them: `InferenceData` in 0.23, `xarray.DataTree` in 1.x.

    Args:
        groups: ArviZ group to name to `Variable`.
        coords: labels of a dimension, such as the schools' names for plate "school".
        dims: names for the dimensions of a variable, in place of those found; a log likelihood, which has only
            the first of them, takes the first names.
        attributes: written into every group.

    Raises:
        OptionError: coords of another length than their dimension, or dims for a variable that is not there.
    """
    for what, mapping in {"coords": coords, "dims": dims}.items():
        if mapping is not None and not isinstance(mapping, Mapping):
            raise OptionError(f"{what} must be a mapping, got {mapping!r}")
    named = _named(groups, dims or {})
    sizes: dict[str, int] = {}
    for group, members in groups.items():
        for name, variable in members.items():
            for dim, size in zip(named[group, name], _shape(group, variable), strict=True):
                if sizes.setdefault(dim, size) != size and dim in {
                    dim for given in (dims or {}).values() for dim in given
                }:
                    raise OptionError(
                        f"dims gives {dim!r} to {name!r} with {size} rows, and elsewhere with {sizes[dim]}"
                    )
    names = {name for members in groups.values() for name in members}
    taken = sorted({*names, *sizes} & _RESERVED)
    if taken:
        raise OptionError(f"ArviZ keeps the names {sorted(_RESERVED)} for itself: rename {', '.join(taken)}")
    labels = {
        dim: list(given)
        for members in groups.values()
        for variable in members.values()
        for dim, given in variable.labels.items()
    }
    for dim, given in (coords or {}).items():
        listed = _listed(f"coords[{dim!r}]", given)
        if dim not in sizes:
            raise OptionError(f"coords names {dim!r}, which is no dimension: {', '.join(sizes) or 'there is none'}")
        if any(np.ndim(label) for label in listed):
            raise OptionError(f"coords[{dim!r}] must be single labels, got {listed[0]!r} among them")
        if len(listed) != sizes[dim]:
            raise OptionError(f"coords[{dim!r}] has {len(listed)} labels, but the dimension has {sizes[dim]} rows")
        labels[dim] = listed
    try:
        return _built(groups, named, labels, attributes)
    except ValueError as error:  # of xarray, for which labels may have to be of one kind, and dims of one size
        if isinstance(error, OptionError):
            raise
        raise OptionError(f"coords or dims cannot be used: {error}") from error


def _built(
    groups: Mapping[str, Mapping[str, Any]],
    named: Mapping[tuple[str, str], tuple[str, ...]],
    labels: Mapping[str, Any],
    attributes: Mapping[str, Any],
) -> Any:
    import xarray

    stamp = {"created_at": datetime.now(UTC).isoformat(), **attributes}
    datasets = {}
    for group, members in groups.items():
        drawn = () if group in _NOT_DRAWN else ("chain", "draw")
        variables = {}
        coordinates: dict[str, Any] = {}
        for name, variable in members.items():
            array = _numpy(variable.value)
            dims = (*drawn, *named[group, name])
            variables[name] = (dims, array[np.newaxis] if drawn else array)
            shape = (1, *array.shape) if drawn else array.shape
            coordinates |= {dim: labels.get(dim, np.arange(size)) for dim, size in zip(dims, shape, strict=True)}
        clash = sorted(set(variables) & set(coordinates))
        if clash:
            raise OptionError(
                f"{', '.join(map(repr, clash))} would be a variable and a dimension of group {group}: give the "
                f"dimension another name, dims={{{clash[0]!r}: […]}}"
            )
        datasets[group] = xarray.Dataset(variables, coordinates, stamp)
    arviz = _arviz()
    if int(arviz.__version__.split(".")[0]) == 0:
        return arviz.InferenceData(**datasets)
    return xarray.DataTree.from_dict({f"/{group}": dataset for group, dataset in datasets.items()})


def summary(data: Any) -> Any:
    """Mean, sd and interval of every posterior site, as a DataFrame. No R-hat: the draws are independent."""
    if not hasattr(data, "posterior"):
        raise OptionError("the fit has no latent that can be drawn, so there is nothing to summarise; see fit.params")
    return _arviz().summary(data, kind="stats")


def _named(
    groups: Mapping[str, Mapping[str, Any]], dims: Mapping[str, Sequence[str]]
) -> dict[tuple[str, str], tuple[str, ...]]:
    """The names of the dimensions of each variable, the user's in place of those found."""
    everywhere = [(group, name) for group, members in groups.items() for name in members]
    named = {(group, name): tuple(groups[group][name].dims) for group, name in everywhere}
    for name, given in dims.items():
        places = [place for place in everywhere if place[1] == name]
        if not places:
            there = ", ".join(dict.fromkeys(name for _, name in everywhere))
            raise OptionError(f"dims names {name!r}, which is not among the exported variables: {there}")
        listed = tuple(_listed(f"dims[{name!r}]", given))
        wrong = [dim for dim in listed if not isinstance(dim, str) or not dim]
        if wrong or len(set(listed)) < len(listed):
            raise OptionError(f"dims[{name!r}] must be names, each once, got {list(listed)!r}")
        ranks = {place: len(_shape(place[0], groups[place[0]][name])) for place in places}
        if len(listed) != max(ranks.values()):
            fullest = max(ranks, key=lambda place: ranks[place])
            shape = _shape(fullest[0], groups[fullest[0]][name])
            raise OptionError(f"dims[{name!r}] has {len(listed)} names, but the variable has shape {shape}")
        named |= {place: listed[:rank] for place, rank in ranks.items()}
    return named


def _shape(group: str, variable: Any) -> tuple[int, ...]:
    """Of one draw, or of the data."""
    return tuple(variable.value.shape if group in _NOT_DRAWN else variable.value.shape[1:])


def _listed(name: str, given: Any) -> list[Any]:
    if isinstance(given, (str, set, frozenset, Mapping)) or not isinstance(given, Iterable):
        raise OptionError(f"{name} must be a sequence, got {given!r}")
    return list(given)


def _numpy(value: Tensor) -> NDArray[Any]:
    array: NDArray[Any] = value.detach().cpu().numpy()
    return array


def _arviz() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # 0.23 announces 1.0 at every import
        import arviz

    return arviz
