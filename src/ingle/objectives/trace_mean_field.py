"""TraceMeanField_ELBO whose value stays on the device."""

from __future__ import annotations

from typing import Any

import pyro.infer
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import check_fully_reparametrized, is_validation_enabled
from torch import Size, Tensor
from torch.distributions import kl_divergence

from ingle.errors import ProgramError
from ingle.objectives.estimator import detached
from ingle.objectives.refuse import refuse_score_sampled
from ingle.objectives.single_sample import SingleSample
from ingle.program import sample_nodes

__all__ = ["TraceMeanField_ELBO"]


class TraceMeanField_ELBO(SingleSample, pyro.infer.TraceMeanField_ELBO):
    """The evidence lower bound with the analytic divergence of each latent, where there is one.

    ELBO = E_q[sum_i log p(x_i | z)] - sum_j KL(q(z_j) || p(z_j | z)), for a guide whose sites are independent of
    each other and reparameterised. A pair of distributions without a formula takes log p - log q of the draw.
    Unbiased for such a guide; costs one run of the pair a particle. Its variance is not always the lower one: where
    the guide is near the posterior, `STL_ELBO` goes to none and this does not.

    The constructor, the estimator and the checks are those of `pyro.infer.TraceMeanField_ELBO`, with `kl_scale` and
    `free_bits` beside (see `SingleSample`); that the guide is a mean field, and reparameterised, is looked at under
    validation only, as there.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 7.
    """

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        if not self.as_pyro:
            refuse_score_sampled(self, guide_trace, "RLOO_ELBO, TraceGraph_ELBO or Trace_ELBO")
        elbo: Any = sum(site["log_prob_sum"] for site in sample_nodes(model_trace) if site["is_observed"])
        elbo = elbo - sum(_entropy_term(site) for site in sample_nodes(guide_trace) if site["is_observed"])
        for name, terms in self._kl.latents(model_trace, guide_trace).items():
            drawn = terms if name not in model_trace.nodes else terms[1:]
            for site in drawn:
                _check(site, model_trace)
            divergence = None
            if len(drawn) < len(terms) and (self.as_pyro or (len(drawn) == 1 and _has_density(drawn[0]))):
                divergence = _divergence(drawn[0], terms[0])
            if divergence is None:
                divergence = sum(_entropy_term(site) for site in drawn)
                divergence = divergence - sum(site["log_prob_sum"] for site in terms[: len(terms) - len(drawn)])
            else:
                divergence = divergence + sum(_entropy_term(site) for site in drawn[1:])
            elbo = elbo - self._kl.clamped(name, terms, divergence, self.memory)
        return detached(-elbo), -elbo

    def _weigh(self, model_trace: Any, guide_trace: Any) -> float:
        """The weights go on the divergences, when they are known."""
        self._kl.check(model_trace, guide_trace)
        return 0.0


def _check(guide_site: Any, model_trace: Any) -> None:
    if guide_site["name"] not in model_trace.nodes and not guide_site["infer"].get("is_auxiliary"):
        raise ProgramError(
            f"guide site {guide_site['name']!r} is not in the model; sample it there, or mark it in the guide with "
            'infer={"is_auxiliary": True}'
        )
    if is_validation_enabled():
        check_fully_reparametrized(guide_site)


def _has_density(guide_site: Any) -> bool:
    """No point mass: where an autoguide puts a transformed draw, its density stands beside the value."""
    return type(guide_site["fn"]).__name__ != "Delta"


def _entropy_term(guide_site: Any) -> Any:
    term = guide_site["score_parts"].entropy_term
    return term.sum() if isinstance(term, Tensor) else term


def _divergence(guide_site: Any, model_site: Any) -> Any:
    """KL(q || p) of a site, scaled and masked as in the guide and summed over its batch; None without a formula."""
    try:
        divergence = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    divergence = scale_and_mask(divergence, scale=guide_site["scale"], mask=guide_site["mask"])
    batch_shape = Size(guide_site["fn"].batch_shape)
    if not isinstance(divergence, Tensor):
        return divergence * batch_shape.numel()
    if divergence.shape != batch_shape:
        raise ProgramError(
            f"site {guide_site['name']!r}: the divergence of its guide from its model has shape "
            f"{tuple(divergence.shape)}, the guide's distribution has batch shape {tuple(batch_shape)}; give both the "
            "same batch and event shape"
        )
    return divergence.sum()
