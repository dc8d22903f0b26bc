"""Trace_ELBO whose value stays on the device."""

from __future__ import annotations

from typing import Any

import pyro.infer
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor

from ingle.objectives.estimator import detached
from ingle.objectives.single_sample import SingleSample

__all__ = ["Trace_ELBO"]


class Trace_ELBO(SingleSample, pyro.infer.Trace_ELBO):
    """The evidence lower bound by sampling from the guide, with pathwise and score-function gradients.

    ELBO = E_q[log p(x, z) - log q(z)], estimated from `num_particles` draws. A guide site without a pathwise
    gradient contributes the score-function term, with the log weights of its own plates only. Unbiased; costs one run
    of the pair a particle. One particle is enough where every site is pathwise; where one is not, its variance is
    above that of `TraceGraph_ELBO`, and far above that of `RLOO_ELBO`.

    The constructor and the estimator are those of `pyro.infer.Trace_ELBO`, with `kl_scale` and `free_bits` beside
    (see `SingleSample`). Other than in Pyro the cost of a draw has the terms of sites that the guide alone has, and
    nothing is read back to the host until the whole loss is asked for.

    References:
        Wingate and Weber (2013), Automated Variational Inference in Probabilistic Programming.
        Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        model_sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
        guide_sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        log_joint: Any = sum(site["log_prob_sum"] for site in model_sites)
        elbo = log_joint - sum(site["log_prob_sum"] for site in guide_sites)

        parts = [(site, site["score_parts"]) for site in guide_sites]
        if all(is_identically_zero(part.score_function) and part.entropy_term is part.log_prob for _, part in parts):
            return detached(-elbo), -elbo  # every site pathwise: the loss is its own surrogate

        weighed = guide_sites
        if self.as_pyro:
            latents = {site["name"] for site in model_sites if not site["is_observed"]}
            weighed = [site for site in guide_sites if site["name"] in latents]
        surrogate = log_joint
        log_r: MultiFrameTensor | None = None
        for site, (_, score_function, entropy_term) in parts:
            if not is_identically_zero(entropy_term):
                surrogate = surrogate - entropy_term.sum()
            if not is_identically_zero(score_function):
                if log_r is None:
                    log_r = MultiFrameTensor(
                        *((node["cond_indep_stack"], node["log_prob"].detach()) for node in model_sites),
                        *((node["cond_indep_stack"], -node["log_prob"].detach()) for node in weighed),
                    )
                surrogate = surrogate + (log_r.sum_to(site["cond_indep_stack"]) * score_function).sum()
        return detached(-elbo), -surrogate
