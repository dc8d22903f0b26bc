"""TraceGraph_ELBO whose value stays on the device."""

from __future__ import annotations

from typing import Any

import pyro.infer
from pyro.distributions.util import is_identically_zero
from pyro.infer.tracegraph_elbo import _construct_baseline
from pyro.infer.util import MultiFrameTensor
from pyro.ops.provenance import detach_provenance, get_provenance

from ingle.objectives.estimator import Estimator, detached

__all__ = ["TraceGraph_ELBO"]


class TraceGraph_ELBO(Estimator, pyro.infer.TraceGraph_ELBO):
    """The evidence lower bound, its score-function terms weighted by what the site can change, and no more.

    For a guide site z_j without a pathwise gradient the surrogate has log q(z_j) times (its downstream cost - a
    baseline), where the downstream cost is the sum of those terms of log p - log q that were computed from z_j,
    in the plates of z_j. Which those are is followed through the arithmetic (provenance).

    The constructor, the estimator and the baselines, `infer={"baseline": …}`, are those of
    `pyro.infer.TraceGraph_ELBO`.

    References:
        Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation Graphs.
        Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    # Pyro's own: looking at the loss moves no baseline.
    loss = pyro.infer.TraceGraph_ELBO.loss

    def untraceable(self, guide_trace: Any) -> str | None:
        """A decaying average lives in Pyro's parameter store as a new tensor at each step: no input of a graph."""
        names = [
            repr(name)
            for name, site in guide_trace.nodes.items()
            if site["type"] == "sample" and site["infer"].get("baseline", {}).get("use_decaying_avg_baseline")
        ]
        return f"the decaying average baseline of {', '.join(names)} changes from step to step" if names else None

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        model_sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
        guide_sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        surrogate: Any = sum(site["log_prob_sum"] for site in model_sites)
        elbo = surrogate - sum(site["log_prob_sum"] for site in guide_sites)

        # A term carries the names of all sites without a pathwise gradient that it was computed from.
        downstream: dict[str, MultiFrameTensor] = {}
        for site, is_model in [(site, True) for site in model_sites] + [(site, False) for site in guide_sites]:
            cost = detach_provenance(site["log_prob"]).detach()
            for name in get_provenance(site["log_prob_sum"]):
                costs = downstream.setdefault(name, MultiFrameTensor())
                costs.add((site["cond_indep_stack"], cost if is_model else -cost))

        for site in guide_sites:  # in the guide's order, so that a seed gives the same sums in every process
            _, score_function, entropy_term = site["score_parts"]
            if not is_identically_zero(entropy_term):
                surrogate = surrogate - entropy_term.sum()
            if site["name"] in downstream:
                cost = downstream[site["name"]].sum_to(site["cond_indep_stack"])
                baselined, baseline_loss, baseline = _construct_baseline(site["name"], site, cost)
                if baselined:
                    surrogate, cost = surrogate - baseline_loss, cost - baseline
                surrogate = surrogate + (score_function * detached(cost)).sum()
        return detached(detach_provenance(-elbo)), detach_provenance(-surrogate)
