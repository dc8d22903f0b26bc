"""Whether a model, a guide and a batch size belong together, before any step is spent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from ingle.errors import OptionError, ProgramError
from ingle.program.sites import Site

__all__ = ["check_modules", "check_rows", "match_sites"]


def match_sites(model_sites: Sequence[Site], guide_sites: Sequence[Site]) -> tuple[str, ...]:
    """The latents to sum over. Raises `ProgramError` where model and guide do not belong together."""
    in_guide = {site.name: site for site in guide_sites}
    known = {site.name: site for site in model_sites}
    extra = [name for name, site in in_guide.items() if site.kind == "latent" and name not in known]
    left_out = [site for site in model_sites if site.kind == "latent" and site.name not in in_guide]
    lost = [site for site in left_out if not site.enumerable]
    if lost:
        raise ProgramError(
            f"the guide lacks {', '.join(f'{site.name!r} ({site.distribution})' for site in lost)}, which the model "
            "samples. Give the guide a pyro.sample statement of the same name"
            + (f"; it samples {', '.join(map(repr, extra))}, which the model does not: a misspelling?" if extra else "")
            + ("; a discrete latent is summed out only where its support is finite"
               if any(site.discrete for site in lost) else "")
        )  # fmt: skip
    if extra:
        raise ProgramError(
            f"the guide samples {', '.join(map(repr, extra))}, which the model does not. Take it out, correct its "
            'name, or mark it infer={"is_auxiliary": True} if it only serves other sites of the guide'
        )
    for name, ours in in_guide.items():
        theirs = known.get(name)
        if theirs is None or theirs.kind == "deterministic":
            continue
        if theirs.kind == "observed" and ours.kind != "observed":
            raise ProgramError(
                f"the guide samples {name!r}, which the model observes: take it out of the guide, or out of the data"
            )
        if theirs.kind == "latent" and ours.kind == "observed":
            raise ProgramError(f"the guide observes {name!r}, which the model samples: take the obs= out of the guide")
        if theirs.kind == "latent" and theirs.value_shape != ours.value_shape:
            raise ProgramError(
                f"site {name!r} has shape {theirs.value_shape} in the model (batch {theirs.batch_shape}, event "
                f"{theirs.event_shape}) and {ours.value_shape} in the guide (batch {ours.batch_shape}, event "
                f"{ours.event_shape}): give the guide's distribution the model's shape, .to_event(n) included"
            )
    return tuple(site.name for site in left_out)


def check_rows(sites: Sequence[Site], batch_size: Mapping[str, int]) -> None:
    """Raise where a site does not take the rows of the plates that `batch_size` names.

    Raises:
        OptionError: a plate is looped over.
        ProgramError: a site has all rows, or none.
    """
    for site in sites:
        for plate in site.plates:
            if plate.name not in batch_size:
                continue
            if plate.dim is None:
                raise OptionError(
                    f"batch_size names plate {plate.name!r}, which the model loops over, so that each step would have "
                    f"other sites: write `with pyro.plate({plate.name!r}, …) as i:`"
                )
            place = plate.dim - len(site.event_shape)
            size = site.value_shape[place] if len(site.value_shape) >= -place else 1
            if size not in (1, plate.size) or (size == 1 and plate.size > 1 and site.kind == "latent"):
                raise ProgramError(
                    f"batch_size gives plate {plate.name!r} {plate.size} rows, but site {site.name!r} has {size} of "
                    f"{plate.full_size} there: the model does not take the plate's rows. Write "
                    f"`with pyro.plate({plate.name!r}, {plate.full_size}) as i:` and index what is inside, `x[i]`"
                )


def check_modules(model: object, guide: object) -> None:
    """Raise `ProgramError` where both are modules that Pyro would give one parameter of the same name."""
    if not (isinstance(model, torch.nn.Module) and isinstance(guide, torch.nn.Module)):
        return
    ours = dict(model.named_parameters())
    clash = sorted(name for name, value in guide.named_parameters() if name in ours and ours[name] is not value)
    prefixes = {getattr(module, "_pyro_name", None) for module in (model, guide)}
    if clash and prefixes == {""}:
        raise ProgramError(
            f"model and guide are modules that both have a parameter {clash[0]!r}, and Pyro would train one tensor "
            'for the two. Give one a name: `super().__init__(name="guide")` in the PyroModule of the guide'
        )
