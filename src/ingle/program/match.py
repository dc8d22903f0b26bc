"""Whether a model, a guide and a batch size belong together, told from their sites."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches

import torch

from ingle.errors import IngleError, OptionError, ProgramError
from ingle.program.finding import Finding, Kind
from ingle.program.sites import Plate, Site

__all__ = ["batch_size_findings", "match_sites", "module_findings"]


def match_sites(
    model_sites: Sequence[Site], guide_sites: Sequence[Site], *, arguments: Collection[str] = ()
) -> tuple[Finding, ...]:
    """Where the sites of a model and of a guide do not belong together.

    Args:
        model_sites, guide_sites: as one run of each showed them.
        arguments: names of the model's arguments; a latent of such a name is likely an obs= that was forgotten.
    """
    in_guide = {site.name: site for site in guide_sites}
    in_model = {site.name: site for site in model_sites}
    findings = list(_names(in_model, in_guide, arguments))
    plates = _plates(in_model, in_guide)
    findings.extend(plates)
    bad_sites = {finding.site for finding in plates}
    bad_plates = {plate.name for name in bad_sites for plate in in_guide[str(name)].plates}
    for name, ours in in_guide.items():
        theirs = in_model.get(name)
        if theirs is None or any(plate.name in bad_plates for plate in (*ours.plates, *theirs.plates)):
            continue
        if theirs.kind == "observed" and ours.kind != "observed":
            fix = "take it out of the guide, or out of the data"
            findings.append(_error("observed site", name, f"the guide samples {name!r}, which the model observes", fix))
        elif theirs.kind == "latent" and ours.kind == "observed":
            fix = "take the obs= out of the guide"
            findings.append(_error("observed site", name, f"the guide observes {name!r}, which the model samples", fix))
        elif theirs.kind == "latent":
            finding = _scale(theirs, ours) or _shape(theirs, ours)
            findings.extend([finding] if finding else [])
    return tuple(findings)


def batch_size_findings(
    sites: Sequence[Site], plates: Collection[str], batch_size: Mapping[str, int]
) -> tuple[Finding, ...]:
    """Where a model does not take the rows of the plates that `batch_size` names.

    Args:
        sites: of the model, in a run with the first rows of each named plate.
        plates: names of all its plates.
        batch_size: rows for each named plate.
    """
    findings = {}
    for name in batch_size:
        if name not in plates:
            there = ", ".join(plates) or "none of a stated size"
            message = f"batch_size names plate {name!r}, which the model does not have; its plates: {there}"
            findings[name] = _error("batch size", None, message, error=OptionError)
    for site in sites:
        for plate in site.plates:
            if plate.name not in batch_size or plate.name in findings:
                continue
            if plate.dim is None:
                findings[plate.name] = _error(
                    "batch size",
                    site.name,
                    f"batch_size names plate {plate.name!r}, which the model loops over, so that each step would have "
                    "other sites",
                    f"write `with pyro.plate({plate.name!r}, …) as i:`",
                    error=OptionError,
                )
                continue
            place = plate.dim - len(site.event_shape)
            size = site.value_shape[place] if len(site.value_shape) >= -place else 1
            if size not in (1, plate.size) or (size == 1 and plate.size > 1 and site.kind == "latent"):
                findings[plate.name] = _error(
                    "batch size",
                    site.name,
                    f"batch_size gives plate {plate.name!r} {plate.size} rows, but site {site.name!r} has {size} of "
                    f"{plate.full_size} there: the model does not take the plate's rows",
                    f"write `with pyro.plate({plate.name!r}, {plate.full_size}) as i:` and index what is inside, "
                    "`x[i]`",
                )
    return tuple(findings.values())


def module_findings(model: object, guide: object) -> tuple[Finding, ...]:
    """Where both are modules that Pyro would give one parameter of the same name."""
    if not (isinstance(model, torch.nn.Module) and isinstance(guide, torch.nn.Module)):
        return ()
    ours = dict(model.named_parameters())
    clash = sorted(name for name, value in guide.named_parameters() if name in ours and ours[name] is not value)
    prefixes = {getattr(module, "_pyro_name", None) for module in (model, guide)}
    if not clash or prefixes != {""}:
        return ()
    message = (
        f"model and guide are modules that both have a parameter {clash[0]!r}, and Pyro would train one tensor for "
        "the two"
    )
    fix = 'give one a name: `super().__init__(name="guide")` in the PyroModule of the guide'
    return (_error("parameter", None, message, fix),)


def _names(in_model: Mapping[str, Site], in_guide: Mapping[str, Site], arguments: Collection[str]) -> Sequence[Finding]:
    """Latents of one side that the other does not have; a misspelling is told once, at the model's site."""
    extra = [name for name, site in in_guide.items() if site.kind == "latent" and name not in in_model]
    lost = [
        site
        for site in in_model.values()
        if site.kind == "latent" and site.name not in in_guide and not site.enumerable
    ]
    findings = []
    for site in list(lost):
        described = f"the guide lacks {site.name!r} ({site.distribution}), which the model samples"
        alike = get_close_matches(site.name, extra, n=1)
        if alike or (len(lost) == len(extra) == 1 and site.name not in arguments):
            other = alike[0] if alike else extra[0]
            extra.remove(other)
            lost.remove(site)
            guess = "a misspelling?" if alike else "another name for it?"
            message = f"{described}; it samples {other!r}, which the model does not: {guess}"
            findings.append(_error("missing site", site.name, message, f"call it {site.name!r} in both"))
        elif site.name in arguments:
            lost.remove(site)
            message = f"{described}, though the model has an argument of that name"
            fix = f"the obs= was forgotten, or its value is None: pyro.sample({site.name!r}, …, obs={site.name})"
            findings.append(_error("observed site", site.name, message, fix))
    if lost:
        message = (
            f"the guide lacks {', '.join(f'{site.name!r} ({site.distribution})' for site in lost)}, which the model "
            "samples"
        ) + (
            "; a discrete latent is summed out only where its support is finite"
            if any(site.discrete for site in lost)
            else ""
        )
        fix = "give the guide a pyro.sample statement of the same name and shape"
        findings.append(_error("missing site", lost[0].name, message, fix))
    if extra:
        message = f"the guide samples {', '.join(map(repr, extra))}, which the model does not"
        fix = (
            "take it out, correct its name, or mark it infer={'is_auxiliary': True} if it only serves other sites of "
            "the guide"
        )
        findings.append(_error("extra site", extra[0], message, fix))
    return findings


def _plates(in_model: Mapping[str, Site], in_guide: Mapping[str, Site]) -> Sequence[Finding]:
    """Plates around a latent of both sides that differ in size, rows or dimension; each plate once."""
    told: set[str] = set()
    findings = []
    for name, ours in in_guide.items():
        theirs = in_model.get(name)
        if theirs is None or theirs.kind != "latent":
            continue
        of_model = {plate.name: plate for plate in theirs.plates}
        pairs = [(of_model[plate.name], plate) for plate in ours.plates if plate.name in of_model]
        pairs = [(other, plate) for other, plate in pairs if other != plate and plate.name not in told]
        if not pairs:
            continue
        told |= {plate.name for _, plate in pairs}
        message = f"around site {name!r}, " + " and ".join(
            f"plate {plate.name!r} has {_describe(other)} in the model and {_describe(plate)} in the guide"
            for other, plate in pairs
        )
        plate = pairs[0][0]
        fix = (
            f"write the same pyro.plate({plate.name!r}, {plate.full_size}, …) in both, with one dim and subsample_size"
        )
        findings.append(_error("plate", name, message, fix))
    return findings


def _describe(plate: Plate) -> str:
    rows = f"{plate.size} rows" if plate.size == plate.full_size else f"{plate.size} of {plate.full_size} rows"
    return f"{rows} ({'looped over' if plate.dim is None else f'dim {plate.dim}'})"


def _scale(theirs: Site, ours: Site) -> Finding | None:
    """A latent whose minibatched plate is on one side only, so that the other side misses the scale N/B."""
    sides = (("model", "guide", theirs, ours), ("guide", "model", ours, theirs))
    for has, lacks, site, other in sides:
        names = {plate.name for plate in other.plates}
        for plate in site.plates:
            if plate.name in names or plate.size == plate.full_size:
                continue
            return _error(
                "scale",
                site.name,
                f"site {site.name!r} is inside plate {plate.name!r}, {plate.size} of {plate.full_size} rows, in the "
                f"{has} alone: its log_prob is scaled by {plate.full_size}/{plate.size} there and not in the {lacks} "
                f"({_shapes(theirs, ours)})",
                f"put the site inside the same pyro.plate({plate.name!r}, {plate.full_size}, …) in the {lacks}, "
                "without .to_event over the rows",
            )
    return None


def _shape(theirs: Site, ours: Site) -> Finding | None:
    same_event = len(theirs.event_shape) == len(ours.event_shape)
    if theirs.value_shape == ours.value_shape and same_event:
        return None
    if theirs.value_shape == ours.value_shape:
        missing = [plate.name for plate in theirs.plates if plate.name not in {plate.name for plate in ours.plates}]
        fix = f"put it inside the same pyro.plate({missing[0]!r}, …) in both" if missing else "use .to_event(n) in both"
        message = f"site {theirs.name!r} has other event dimensions in model and guide"
        return _error("shape", theirs.name, f"{message} ({_shapes(theirs, ours)})", fix)
    return _error(
        "shape",
        theirs.name,
        f"site {theirs.name!r} has shape {theirs.value_shape} in the model and {ours.value_shape} in the guide "
        f"({_shapes(theirs, ours)})",
        "give the guide's distribution the model's shape, .to_event(n) included",
    )


def _shapes(theirs: Site, ours: Site) -> str:
    return (
        f"model: batch {theirs.batch_shape}, event {theirs.event_shape}; guide: batch {ours.batch_shape}, event "
        f"{ours.event_shape}"
    )


def _error(
    kind: Kind, site: str | None, message: str, fix: str = "", *, error: type[IngleError] = ProgramError
) -> Finding:
    return Finding(kind, "error", site, message, fix, error)
