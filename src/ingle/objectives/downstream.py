"""The terms of an ELBO that each draw has a say in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

from ingle.program import origins, sample_nodes

__all__ = ["Score", "Split", "split"]


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


def split(model_trace: Any, guide_trace: Any) -> Split:
    """Traces whose terms know the draws without a pathwise gradient behind them, in a pathwise part and scores.

    A site that nothing else was seen to follow from has all terms in its cost, as has one without a mark: a
    `pyro.factor` of the guide whose gradient is a score, or a distribution that is pathwise in part. Of all costs that
    leave the mean of the gradient alone, that is the largest.
    """
    model_sites, guide_sites = sample_nodes(model_trace), sample_nodes(guide_trace)
    surrogate: Any = sum(site["log_prob_sum"] for site in model_sites)
    elbo = surrogate - sum(site["log_prob_sum"] for site in guide_sites)

    whole = MultiFrameTensor()
    downstream: dict[str, MultiFrameTensor] = {}
    followed = set()
    for site, sign in [(site, 1.0) for site in model_sites] + [(site, -1.0) for site in guide_sites]:
        term = site["cond_indep_stack"], sign * site["log_prob"].detach()
        whole.add(term)
        for name in origins(site):
            downstream.setdefault(name, MultiFrameTensor()).add(term)
            if name != site["name"]:
                followed.add(name)

    scores = []
    for site in guide_sites:  # in the guide's order, so that a seed gives the same sums in every process
        _, score, entropy_term = site["score_parts"]
        if not is_identically_zero(entropy_term):
            surrogate = surrogate - entropy_term.sum()
        if not is_identically_zero(score):
            costs = downstream[site["name"]] if site["name"] in followed else whole
            cost = costs.sum_to(site["cond_indep_stack"]).expand(site["log_prob"].shape)
            scores.append(Score(site, score.expand(site["log_prob"].shape), cost))
    return Split(elbo.detach() if isinstance(elbo, Tensor) else elbo, surrogate, scores)
