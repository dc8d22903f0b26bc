"""Predictions: for the rows of the fit, for other covariates, for new rows, and from the prior alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ingle.data import Data
from ingle.errors import OptionError
from ingle.program import Program, Site, amortised
from ingle.results.draws import discrete, guided, modelled, refuse_too_large
from ingle.results.probe import probed

__all__ = ["predict", "resolve_new"]


def resolve_new(new: object) -> frozenset[str]:
    """Names of plates: one, or several in a tuple. Raises `OptionError` for anything else."""
    names = (new,) if isinstance(new, str) else new
    if not isinstance(names, (tuple, list, set, frozenset)) or not all(isinstance(name, str) for name in names):
        raise OptionError(f'new must be names of plates, as in new=("data",), got {new!r}')
    return frozenset(names)


def predict(program: Program, data: Data | None, n: int, *, new: frozenset[str]) -> dict[str, Tensor]:
    """Every site of the model at `n` draws of the fitted program, observed sites drawn anew.

    Latents outside the plates of `new` keep the posterior of the fit. Latents inside come from the guide where it is
    amortised, and from the model given the rest otherwise, each for itself. Runs inside a scope of the fit.

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
    target = program if data is None else _with_data(program, data, new)
    sites = [site for site in target.model_sites if not target.partial(site) and site.distribution != "Unit"]
    kept = [site for site in program.latents if not _inside(site, new)]
    refuse_too_large((*sites, *kept), n, program.dtype, program.device, "the predictions")

    drawn: dict[str, Tensor] = {}
    if kept:
        summed_out = [site.name for site in kept if site.name in program.enumerated]
        # What is summed out depends on all other latents, so these are needed for it even where their rows are old.
        drawn = guided(program, n, keep=None if summed_out else [site.name for site in kept])
        if summed_out:
            drawn |= discrete(program, drawn, n)
        drawn = {site.name: drawn[site.name] for site in kept if site.name in drawn}
    followed = amortised(program, new) if new else frozenset()
    if followed:
        drawn |= _encoded(target, drawn, n, followed)
    return modelled(target, drawn, n, keep=[site.name for site in sites], anew=True)


def _with_data(program: Program, data: Data, new: frozenset[str]) -> Program:
    """The program with other arguments, its sites as one run on them shows them."""
    target = replace(program, data=data)
    with torch.no_grad(), program.at_rest(), target.explained("model"):
        target.model_sites = probed(program.model, data.args, data.kwargs)
    before, after = _sizes(program.model_sites), _sizes(target.model_sites)
    for name, size in after.items():
        if name in before and size != before[name] and name not in new:
            raise OptionError(
                f"plate {name!r} has {size} rows in the data and had {before[name]} in the fit: if they are new rows, "
                f"say new=({name!r},), so that nothing of the old rows is taken for theirs"
            )
    shapes = {site.name: site.value_shape for site in target.model_sites}
    for site in program.latents:
        minibatched = any(plate.name in program.batch_sizes for plate in site.plates)
        if _inside(site, new) or minibatched or shapes.get(site.name, site.value_shape) == site.value_shape:
            continue
        raise OptionError(
            f"latent {site.name!r} has shape {shapes[site.name]} with these data and had {site.value_shape} in the "
            "fit, in no plate that new names: its posterior is of the old rows. Put it inside a pyro.plate to predict "
            "for new ones"
        )
    return target


def _encoded(target: Program, drawn: dict[str, Tensor], n: int, latents: Collection[str]) -> dict[str, Tensor]:
    """Latents of new rows from an amortised guide, given the latents of the fit."""
    shapes = {site.name: site.value_shape for site in target.model_sites}
    encoded = guided(target, n, given=drawn, keep=latents)
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
