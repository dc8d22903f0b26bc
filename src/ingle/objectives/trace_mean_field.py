"""TraceMeanField_ELBO whose value stays on the device."""

from __future__ import annotations

from typing import Any

import pyro.infer
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import check_fully_reparametrized, is_validation_enabled
from torch import Size, Tensor
from torch.distributions import kl_divergence

from ingle.errors import ProgramError
from ingle.objectives.estimator import Estimator, detached

__all__ = ["TraceMeanField_ELBO"]


class TraceMeanField_ELBO(Estimator, pyro.infer.TraceMeanField_ELBO):
    """The evidence lower bound with the analytic divergence of each latent, where there is one.

    ELBO = E_q[sum_i log p(x_i | z)] - sum_j KL(q(z_j) || p(z_j | z)), for a guide whose sites are independent of
    each other and reparameterised. A pair of distributions without a formula takes log p - log q of the draw.

    The constructor, the estimator and the checks are those of `pyro.infer.TraceMeanField_ELBO`; that the guide is
    a mean field, and reparameterised, is looked at under validation only, as there.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes, equation 7.
    """

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        elbo: Any = 0.0
        for name, site in model_trace.nodes.items():
            if site["type"] != "sample":
                continue
            if site["is_observed"]:
                elbo = elbo + site["log_prob_sum"]
                continue
            guide_site = guide_trace.nodes[name]
            _check(guide_site)
            divergence = _divergence(guide_site, site)
            if divergence is None:
                elbo = elbo + site["log_prob_sum"] - guide_site["score_parts"].entropy_term.sum()
            else:
                elbo = elbo - divergence
        for name, guide_site in guide_trace.nodes.items():
            if guide_site["type"] == "sample" and name not in model_trace.nodes:
                if not guide_site["infer"].get("is_auxiliary"):
                    raise ProgramError(
                        f"guide site {name!r} is not in the model; sample it there, or mark it in the guide with "
                        'infer={"is_auxiliary": True}'
                    )
                _check(guide_site)
                elbo = elbo - guide_site["score_parts"].entropy_term.sum()
        return detached(-elbo), -elbo


def _check(guide_site: Any) -> None:
    if is_validation_enabled():
        check_fully_reparametrized(guide_site)


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
