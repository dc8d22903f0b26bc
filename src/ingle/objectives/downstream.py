"""The terms of an ELBO that each draw has a say in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions.util import is_identically_zero
from pyro.infer.enum import get_importance_trace
from pyro.infer.util import MultiFrameTensor, is_validation_enabled
from pyro.ops.provenance import detach_provenance
from pyro.util import check_if_enumerated
from torch import Tensor

from ingle.objectives.origins import Origins, origins, samples, score_sampled

__all__ = ["Score", "Split", "marked_traces", "split"]


@dataclass(frozen=True)
class Score:
    """A site of the guide whose draws have no pathwise gradient.

    Attributes:
        site: of the guide's trace.
        score: log q of its draws, without the scale of its plates, of its batch shape.
        cost: the sum of the terms of log p - log q that were computed from its draws, in the plates of the site and
            of its batch shape; with their scales, without a gradient.
    """

    site: Any
    score: Tensor
    cost: Tensor


@dataclass(frozen=True)
class Split:
    """One pair of traces.

    Attributes:
        elbo: log p - log q, a scalar without a gradient.
        pathwise: a scalar whose gradient is that of everything but the scores.
        scores: in the order of the guide.
    """

    elbo: Any
    pathwise: Any
    scores: list[Score]


def marked_traces(max_plate_nesting: float, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
    """Traces of the model and the guide in which every term knows the draws without a pathwise gradient behind it."""
    with Origins(score_sampled):
        model_trace, guide_trace = get_importance_trace("flat", max_plate_nesting, model, guide, args, kwargs)
    if is_validation_enabled():
        check_if_enumerated(guide_trace)
    return model_trace, guide_trace


def split(model_trace: Any, guide_trace: Any) -> Split:
    """What `marked_traces` gave, in its pathwise part and its scores."""
    model_sites, guide_sites = samples(model_trace), samples(guide_trace)
    surrogate: Any = sum(site["log_prob_sum"] for site in model_sites)
    elbo = surrogate - sum(site["log_prob_sum"] for site in guide_sites)

    downstream: dict[str, MultiFrameTensor] = {}
    for site, sign in [(site, 1.0) for site in model_sites] + [(site, -1.0) for site in guide_sites]:
        cost = sign * detach_provenance(site["log_prob"]).detach()
        for name in origins(site):
            downstream.setdefault(name, MultiFrameTensor()).add((site["cond_indep_stack"], cost))

    scores = []
    for site in guide_sites:  # in the guide's order, so that a seed gives the same sums in every process
        _, score, entropy_term = site["score_parts"]
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - entropy_term.sum()
        if site["name"] in downstream and not is_identically_zero(score):
            cost = downstream[site["name"]].sum_to(site["cond_indep_stack"])
            scores.append(Score(site, detach_provenance(score), cost))
    elbo, surrogate = detach_provenance(elbo), detach_provenance(surrogate)
    return Split(elbo.detach() if isinstance(elbo, Tensor) else elbo, surrogate, scores)
