"""Predictions: for the rows of the fit, for other covariates, for new rows, and from the prior alone."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.util import check_site_shape
from torch import Tensor

from ingle.data import Data
from ingle.errors import OptionError
from ingle.program import Program, Site, Unobserve, amortised, buffers_kept, read_sites, typical_value
from ingle.results.draws import discrete, drawn_anew, guided, modelled, refuse_too_large
from ingle.runtime import validation

__all__ = ["predict", "resolve_new"]


def resolve_new(new: object) -> frozenset[str]:
    """Names of plates: one, or several in a tuple. Raises `OptionError` for anything else."""
    names = (new,) if isinstance(new, str) else new
    if not isinstance(names, Collection) or not all(isinstance(name, str) for name in names):
        raise OptionError(f'new must be names of plates, as in new=("data",), got {new!r}')
    return frozenset(names)


def predict(program: Program, data: Data | None, n: int, *, new: frozenset[str]) -> dict[str, Tensor]:
    """Every site of the model at `n` draws of the fitted program, observed sites drawn anew.

    Latents outside the plates of `new` keep the posterior of the fit. Latents inside come from the guide where it is
    amortised, that is where none of its parameters has a row for each of the plate's, and from the model given the
    rest otherwise. Runs inside a scope of the fit.

    Args:
        program: the fitted one.
        data: arguments of the model, in its dtype and on its device; those of the fit where None.
        n: number of draws.
        new: names of the plates whose rows are not those of the fit.

    Raises:
        OptionError: a plate of another size that `new` does not name, names that are no plates, a guide that
            gives latents for other rows than the data have, or more draws than memory can hold.
        ProgramError: model or guide raised on the data.
    """
    plates = _sizes(program.model_sites)
    unknown = sorted(new - set(plates))
    if unknown:
        there = ", ".join(map(repr, plates)) or "none"
        raise OptionError(f"new names {', '.join(map(repr, unknown))}, and the model's plates are: {there}")
    anew = [site.name for site in drawn_anew(program.model_sites)]
    target = program if data is None else _with_data(program, data, anew, new)
    sites = [site for site in target.model_sites if not target.partial(site) and site.distribution != "Unit"]
    refuse_too_large(sites, n, program.dtype, program.device, "the predictions")

    drawn: dict[str, Tensor] = {}
    if any(not _inside(site, new) for site in program.latents):
        drawn, _ = guided(program, n)
        drawn |= discrete(program, drawn, n)
        drawn = {site.name: drawn[site.name] for site in program.latents if not _inside(site, new)}
    local = [site for site in program.latents if _inside(site, new) and site.name not in program.enumerated]
    if local and amortised(program, [site.name for site in local], new):
        drawn |= _encoded(target, drawn, n, local)
    return modelled(target, drawn, n, keep=[site.name for site in sites], anew=anew)


def _with_data(program: Program, data: Data, anew: Sequence[str], new: frozenset[str]) -> Program:
    """The program with other arguments, its sites as one run on them shows them."""
    target = replace(program, data=data)
    model = Unobserve(anew)(program.model)
    told = target.explained("model")
    with validation(True), torch.no_grad(), buffers_kept(program.modules()), InitMessenger(typical_value), told:
        trace: Any = poutine.trace(model).get_trace(*data.args, **data.kwargs)
        trace.compute_log_prob()
        for node in trace.nodes.values():
            if node["type"] == "sample":
                check_site_shape(node, math.inf)  # type: ignore[arg-type]
    target.model_sites = read_sites(trace)
    before, after = _sizes(program.model_sites), _sizes(target.model_sites)
    for name, size in after.items():
        if name in before and size != before[name] and name not in new:
            raise OptionError(
                f"plate {name!r} has {size} rows in the data and had {before[name]} in the fit: if they are new rows, "
                f"say new=({name!r},), so that nothing of the old rows is taken for theirs"
            )
    return target


def _encoded(target: Program, drawn: dict[str, Tensor], n: int, local: Sequence[Site]) -> dict[str, Tensor]:
    """Latents of new rows from an amortised guide, given the latents of the fit."""
    shapes = {site.name: site.value_shape for site in target.model_sites}
    encoded, _ = guided(target, n, given=drawn, keep=[site.name for site in local])
    for name, value in encoded.items():
        if name in shapes and tuple(value.shape[1:]) != shapes[name]:
            raise OptionError(
                f"the guide cannot serve these rows: it gives {name!r} the shape {tuple(value.shape[1:])}, where the "
                f"model has {shapes[name]}; make it depend on the data alone, with no parameter for each row"
            )
    return encoded


def _inside(site: Site, plates: Collection[str]) -> bool:
    return any(plate.name in plates for plate in site.plates)


def _sizes(sites: Sequence[Site]) -> dict[str, int]:
    return {plate.name: plate.full_size for site in sites for plate in site.plates}
