"""Trace_ELBO whose value stays on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
from pyro.distributions.util import is_identically_zero
from pyro.infer.util import MultiFrameTensor
from torch import Tensor

__all__ = ["Trace_ELBO"]


class Trace_ELBO(pyro.infer.Trace_ELBO):
    """The evidence lower bound by sampling from the guide, with pathwise and score-function gradients.

    ELBO = E_q[log p(x, z) - log q(z)], estimated from `num_particles` draws. A guide site without a pathwise
    gradient contributes the score-function term, with the log weights of its own plates only.

    The constructor and the estimator are those of `pyro.infer.Trace_ELBO`. Pyro reads every site's term back to
    the host; here nothing is read until the whole loss is asked for.

    References:
        Wingate and Weber (2013), Automated Variational Inference in Probabilistic Programming.
        Ranganath, Gerrish and Blei (2014), Black Box Variational Inference.
    """

    def particles(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each particle its share of the loss, in nats, and the surrogate to differentiate, both scalars.

        Args:
            model, guide: callables with Pyro statements.
            *args, **kwargs: of both.

        The shares add up to the loss. Differentiating one surrogate before asking for the next keeps one
        particle's graph in memory at a time.
        """
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            yield loss / self.num_particles, surrogate / self.num_particles

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        model_sites = [site for site in model_trace.nodes.values() if site["type"] == "sample"]
        guide_sites = [site for site in guide_trace.nodes.values() if site["type"] == "sample"]
        log_joint: Any = sum(site["log_prob_sum"] for site in model_sites)
        elbo = log_joint - sum(site["log_prob_sum"] for site in guide_sites)

        parts = [(site, site["score_parts"]) for site in guide_sites]
        if all(is_identically_zero(part.score_function) and part.entropy_term is part.log_prob for _, part in parts):
            return _detached(-elbo), -elbo  # every site pathwise: the loss is its own surrogate

        surrogate = log_joint
        log_r: MultiFrameTensor | None = None
        for site, (_, score_function, entropy_term) in parts:
            if not is_identically_zero(entropy_term):
                surrogate = surrogate - entropy_term.sum()
            if not is_identically_zero(score_function):
                if log_r is None:
                    log_r = MultiFrameTensor(
                        *((node["cond_indep_stack"], node["log_prob"].detach()) for node in model_sites),
                        *((node["cond_indep_stack"], -node["log_prob"].detach()) for node in guide_sites),
                    )
                surrogate = surrogate + (log_r.sum_to(site["cond_indep_stack"]) * score_function).sum()
        return _detached(-elbo), -surrogate

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss as a number; gradients are added to the parameters' `grad`."""
        total: Any = 0.0
        for loss, surrogate in self.particles(model, guide, *args, **kwargs):
            if getattr(surrogate, "requires_grad", False):
                surrogate.backward(retain_graph=self.retain_graph)
            total = total + loss
        return float(total)


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, Tensor) else value
