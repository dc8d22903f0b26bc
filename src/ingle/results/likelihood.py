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
    """For each observed site that a mask hides data of, how many of how many; a datum is hidden where all of it is."""
    trace, found = first_run(program, drawn), {}
    for site in observed_sites(program):
        node = trace.nodes[site.name]
        seen = _seen(node)
        if seen is None:
            continue
        batch = torch.broadcast_shapes(node["fn"].batch_shape, _batch_shape(node))
        event_dim = len(node["fn"].event_shape)
        rows = seen.flatten(-event_dim).any(-1) if event_dim else seen
        rows = rows.expand(torch.broadcast_shapes(rows.shape, batch))
        if not bool(rows.all()):
            found[site.name] = (int((~rows).sum()), rows.numel())
    return found


def with_gaps(node: Any) -> Tensor:
    """The observed value, NaN where a mask hides a real number."""
    value: Tensor = node["value"]
    seen = _seen(node)
    if seen is None or not value.is_floating_point():
        return value
    if torch.broadcast_shapes(seen.shape, value.shape) != value.shape:  # a value that is repeated along a plate
        return value
    return torch.where(seen, value, torch.nan)


def _batch_shape(node: Any) -> torch.Size:
    """Of the observed value."""
    value: Tensor = node["value"]
    return value.shape[: value.dim() - len(node["fn"].event_shape)]


def _seen(node: Any) -> Tensor | None:
    """Which numbers no mask hides, as they broadcast against the value; None where there is no mask.

    A mask has the batch shape of the layer that it is on, behind which are the dimensions of that layer's event: of
    `dist.Normal(loc, 1.0).mask(seen).to_event(1)` it hides single numbers, of `.to_event(1).mask(seen)` whole rows.
    """
    masks = [(node["mask"], len(node["fn"].event_shape))]
    masks += [(getattr(layer, "_mask", None), len(layer.event_shape)) for layer in layers(node["fn"])]
    seen: Tensor | None = None
    for mask, event_dim in masks:
        if mask is not None:
            each = torch.as_tensor(mask, device=node["value"].device)
            each = each.reshape(each.shape + (1,) * event_dim)
            seen = each if seen is None else seen & each
    return None if seen is None else seen.expand(torch.broadcast_shapes(seen.shape, (1,) * node["value"].dim()))


def first_run(program: Program, drawn: Mapping[str, Tensor]) -> Any:
    """One run of the model on its data, at the first draw."""
    with torch.no_grad(), program.at_rest(), program.explained("model"):
        return program.trace_model({name: value[0] for name, value in drawn.items()})
