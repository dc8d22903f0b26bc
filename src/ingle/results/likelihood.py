"""What the model says of draws: its log joint, its pointwise log likelihood, and how far these can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ingle.program import Program, layers, reached
from ingle.results.draws import chunked, drawn_latents, log_prob_sum, observed_sites

__all__ = ["evaluate", "first_run", "local_latents", "masked_rows", "with_gaps"]


def evaluate(
    program: Program, drawn: Mapping[str, Tensor], n: int, *, pointwise: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The log joint at draws of the latents, shape (n,), and pointwise log likelihoods, shape (n, *plates).

    Latents that are summed out of the guide are summed out of both. The N/B scale of a plate and `poutine.scale`
    are in the log joint, which is what the guide was fitted to, and not in the pointwise log likelihood.
    """
    names = [site.name for site in observed_sites(program)] if pointwise else []

    def run(given: Any) -> dict[str, Any]:
        whole = program.summed(given) if program.enumerated else None
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
