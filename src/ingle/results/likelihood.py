"""What the model says of draws: its log joint, its pointwise log likelihood, and how far these can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ingle.program import Program, layers, reached, read_sites
from ingle.results.draws import chunked, drawn_latents, guided, log_prob_sum, observed_sites, summed

__all__ = ["evaluate", "first_run", "local_latents", "masked_rows", "why_no_weights", "with_gaps"]


def evaluate(
    program: Program, drawn: Mapping[str, Tensor], n: int, *, pointwise: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The log joint at draws of the latents, shape (n,), and pointwise log likelihoods, shape (n, *plates).

    Latents that are summed out of the guide are summed out of both. The N/B scale of a plate and `poutine.scale`
    are in the log joint, which is what the guide was fitted to, and not in the pointwise log likelihood.
    """
    names = [site.name for site in observed_sites(program)] if pointwise else []

    def run(given: Any) -> dict[str, Any]:
        whole = summed(program, given) if program.enumerated else None
        trace = program.trace_model(given)
        trace.compute_log_prob()
        found = {
            name: scale_and_mask(trace.nodes[name]["unscaled_log_prob"], 1.0, trace.nodes[name]["mask"])
            for name in names
            if whole is None or name not in whole.names
        }
        if whole is None:
            return {"log_p": log_prob_sum(trace), "log_likelihood": found}
        if pointwise:
            found |= whole.log_likelihood()
        for name in whole.names:
            trace.remove_node(name)
        return {"log_p": log_prob_sum(trace) + whole.log_joint(), "log_likelihood": found}

    with program.explained("model"):
        evaluated = chunked(program, run, n, given=drawn)
    return {"log_p": evaluated["log_p"]}, evaluated.get("log_likelihood", {})


def why_no_weights(program: Program) -> str | None:
    """Why draws of the guide have no importance weights, in words; None where they have."""
    masses = _point_masses(program)
    if masses:
        return f"the guide is a point mass at {', '.join(masses)}, without a density; fit 'normal', say"
    loose = _untied_auxiliaries(program)
    if loose:
        return (
            f"the guide draws {', '.join(loose)} beside the model's latents, so the density of these alone is not known"
        )
    own = sorted({plate.name for site in program.model_sites for plate in site.plates if program.partial(site)})
    if own:
        return (
            f"plate {', '.join(own)} draws rows by itself, so each run sees other data; give the plate all its rows "
            "and the fit batch_size"
        )
    return None


def _point_masses(program: Program) -> tuple[str, ...]:
    """The continuous latents for which the guide has one value and no density: two runs of it give the same."""
    deltas = [site.name for site in program.guide_sites if site.kind == "latent" and site.distribution == "Delta"]
    if not deltas:
        return ()
    drawn = guided(program, 2)
    return tuple(name for name in deltas if name in drawn and bool((drawn[name][0] == drawn[name][1]).all()))


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


def local_latents(program: Program, drawn: Mapping[str, Tensor]) -> dict[str, tuple[str, ...]]:
    """For each observed site the latents that its log likelihood depends on and that have a value for each datum."""
    latents = {site.name: {plate.name for plate in site.plates} for site in drawn_latents(program)}
    observed = {site.name: {plate.name for plate in site.plates} for site in observed_sites(program) if site.plates}
    if not any(plates <= others for plates in observed.values() for others in latents.values()):
        return {}
    found = {}
    with reached(latents) as draws:
        trace = first_run(program, drawn)
    for name, plates in observed.items():
        behind = draws.behind(trace.nodes[name])
        mine = tuple(latent for latent, others in latents.items() if latent in behind and plates <= others)
        if mine:
            found[name] = mine
    return found


def masked_rows(program: Program, drawn: Mapping[str, Tensor]) -> dict[str, tuple[int, int]]:
    """For each observed site that a mask hides data of, how many of how many."""
    trace, found = first_run(program, drawn), {}
    for site in observed_sites(program):
        node = trace.nodes[site.name]
        seen = _seen(node, torch.broadcast_shapes(node["fn"].batch_shape, _batch_shape(node)))
        if seen is not None and not bool(seen.all()):
            found[site.name] = (int((~seen).sum()), seen.numel())
    return found


def with_gaps(node: Any) -> Tensor:
    """The observed value, NaN where a mask hides a real number."""
    value: Tensor = node["value"]
    batch = _batch_shape(node)
    seen = _seen(node, batch)
    if seen is None or not value.is_floating_point() or seen.shape != batch:
        return value
    return torch.where(seen.reshape(seen.shape + (1,) * (value.dim() - len(batch))), value, torch.nan)


def _batch_shape(node: Any) -> torch.Size:
    """Of the observed value."""
    value: Tensor = node["value"]
    return value.shape[: value.dim() - len(node["fn"].event_shape)]


def _seen(node: Any, shape: torch.Size) -> Tensor | None:
    """Which data no mask hides, in the batch shape; None where there is no mask."""
    masks = [node["mask"], *(getattr(layer, "_mask", None) for layer in layers(node["fn"]))]
    given = [torch.as_tensor(mask) for mask in masks if mask is not None]
    if not given:
        return None
    seen = torch.ones(shape, dtype=torch.bool)
    for mask in given:
        seen = seen & mask
    return seen


def first_run(program: Program, drawn: Mapping[str, Tensor]) -> Any:
    """One run of the model on its data, at the first draw."""
    with torch.no_grad(), program.at_rest(), program.explained("model"):
        return program.trace_model({name: value[0] for name, value in drawn.items()})
