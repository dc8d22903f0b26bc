"""What the model says of draws: its log joint, its pointwise log likelihood, and how far these can be used."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ingle.program import Given, Program, buffers_kept, reached
from ingle.results.draws import chunked, drawn_latents, guided, log_prob_sum, observed_sites, summed

__all__ = ["evaluate", "local_latents", "why_no_weights"]


def evaluate(
    program: Program, drawn: Mapping[str, Tensor], n: int, *, pointwise: bool
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The log joint at draws of the latents, shape (n,), and pointwise log likelihoods, shape (n, *plates).

    Latents that are summed out of the guide are summed out of both. The N/B scale of a plate and `poutine.scale`
    are in the log joint, which is what the guide was fitted to, and not in the pointwise log likelihood.
    """
    args, kwargs = program.data.args, program.data.kwargs
    names = [site.name for site in observed_sites(program)] if pointwise else []

    def run(given: Any) -> dict[str, Any]:
        whole = summed(program, given) if program.enumerated else None
        with Given(given):
            trace: Any = poutine.trace(program.model).get_trace(*args, **kwargs)
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
    drawn, _ = guided(program, 2)
    return tuple(name for name in deltas if name in drawn and bool((drawn[name][0] == drawn[name][1]).all()))


def local_latents(program: Program) -> dict[str, tuple[str, ...]]:
    """For each observed site the latents that its log likelihood depends on and that have a value for each datum."""
    data = program.data
    latents = {site.name: {plate.name for plate in site.plates} for site in drawn_latents(program)}
    observed = {site.name: {plate.name for plate in site.plates} for site in observed_sites(program) if site.plates}
    if not any(plates <= others for plates in observed.values() for others in latents.values()):
        return {}
    values, _ = guided(program, 1)
    found = {}
    with torch.no_grad(), buffers_kept(program.modules()), program.explained("model"):
        with reached(latents) as origin, Given({name: value[0] for name, value in values.items()}):
            trace: Any = poutine.trace(program.model).get_trace(*data.args, **data.kwargs)
        for name, plates in observed.items():
            node = trace.nodes[name]
            behind = origin(node["fn"])
            mine = tuple(latent for latent, others in latents.items() if latent in behind and plates <= others)
            if mine:
                found[name] = mine
    return found
