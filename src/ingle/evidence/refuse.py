"""Pairs whose draws have no importance weights."""

from __future__ import annotations

import torch

from ingle.errors import OptionError
from ingle.evidence.proposal import Proposal
from ingle.evidence.sampler import Sampler
from ingle.program import Program, Site, reached, read_sites

__all__ = ["point_masses", "refuse_shared", "why_no_evidence", "why_no_weights"]


def why_no_weights(program: Program) -> str | None:
    """Why draws of the guide have no importance weights, in words; None where they have."""
    masses = point_masses(program)
    if masses:
        return f"the guide is a point mass at {', '.join(masses)}, without a density; fit 'normal', say"
    loose = _untied_auxiliaries(program)
    if loose:
        return (
            f"the guide draws {', '.join(loose)} beside the model's latents, so the density of these alone is not known"
        )
    return why_no_evidence(program)


def why_no_evidence(program: Program) -> str | None:
    """Why no draws at all give the evidence of all data, in words; None where they do."""
    own = sorted(
        {
            plate.name
            for site in program.model_sites
            for plate in site.plates
            if plate.size < plate.full_size and plate.name not in program.batch_sizes
        }
    )
    if not own:
        return None
    return (
        f"plate {', '.join(own)} draws rows by itself, so each run sees other data; give the plate all its rows and "
        "the fit batch_size"
    )


def refuse_shared(sampler: Sampler, proposal: Proposal) -> float:
    """The log density of the terms that are no element's own, once elements are seen to share no latent.

    Some elements are given another draw: what the rest weigh must not change. Which ones is told by the binary digits
    of their places, one after the other, so that of any two elements one alone is drawn anew at some time.

    Raises:
        OptionError: they do, or a term outside of the plate depends on what is drawn inside.
    """
    elements = sampler.elements
    values, _ = sampler.first(proposal)
    plate = elements.plate
    if plate is None:
        return 0.0
    found = sampler.both(values, 2)
    rest = found["rest"]
    if not torch.isclose(rest[0], rest[1], rtol=1e-6, atol=1e-6, equal_nan=True):
        raise OptionError(
            f"per={plate!r}: what the model says outside of plate {plate!r} depends on latents inside, so that its "
            "elements are tied together; leave per out for the evidence of all data"
        )
    dims = {site.name: dim for site in sampler.program.latents if (dim := _dim(site, plate)) is not None}
    ranks = {site.name: len(site.event_shape) for site in sampler.program.latents}
    place = torch.arange(elements.size, device=sampler.runtime.device)
    other = torch.stack([(place >> digit) % 2 == 1 for digit in range(max(1, (elements.size - 1).bit_length()))])
    mixed = {}
    for name, value in values.items():
        right = ranks[name] - dims[name] - 1
        left = value.dim() - 2 - right
        mixed[name] = torch.where(other.reshape([len(other), *[1] * left, -1, *[1] * right]), value[1], value[0])
    expected = torch.where(other, found["log_p"][1], found["log_p"][0])
    told = sampler.log_p(mixed, len(other))
    apart = torch.isclose(told, expected, rtol=1e-4, atol=1e-4, equal_nan=True).all(0)
    if not bool(apart.all()):
        raise OptionError(
            f"per={plate!r}: elements of plate {plate!r} share latents: the joint of {int((~apart).sum()):,} of "
            f"{elements.size:,} changes when a neighbour is drawn anew, as where a latent is indexed by another row or "
            "summed over rows; leave per out for the evidence of all data"
        )
    return float(rest[0])


def point_masses(program: Program) -> tuple[str, ...]:
    """The continuous latents for which the guide has one value and no density: two runs of it give the same."""
    deltas = [site.name for site in program.guide_sites if site.kind == "latent" and site.distribution == "Delta"]
    if not deltas:
        return ()
    with torch.no_grad(), program.at_rest(), program.explained("guide"):
        first, second = (program.trace_guide() for _ in range(2))
    return tuple(name for name in deltas if bool((first.nodes[name]["value"] == second.nodes[name]["value"]).all()))


def _untied_auxiliaries(program: Program) -> tuple[str, ...]:
    """Auxiliary sites of the guide that are not carried, one to one, into latents by a change of variables.

    What Python reads of a draw may decide what comes after it, but carries it nowhere.
    """
    with torch.no_grad(), program.at_rest(), program.explained("guide"):
        sites = read_sites(program.trace_guide())  # as it is now: Laplace's is another one than was trained
        names = [site.name for site in sites if site.kind == "auxiliary"]
        if not names:
            return ()
        with reached(names) as draws:
            trace = program.trace_guide()
    latents = [(site, trace.nodes[site.name]) for site in sites if site.kind == "latent"]
    tied = frozenset().union(*(draws.computed(node) for site, node in latents if site.distribution == "Delta"))
    loose = frozenset().union(*(draws.behind(node) for site, node in latents if site.distribution != "Delta"))
    return tuple(name for name in names if name not in tied or name in loose)


def _dim(site: Site, plate: str) -> int | None:
    """The batch dimension of a plate around a site."""
    return next((around.dim for around in site.plates if around.name == plate), None)
