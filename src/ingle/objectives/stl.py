"""STL_ELBO: pathwise gradients whose variance goes to none as the guide becomes the posterior."""

from __future__ import annotations

from typing import Any

from ingle.objectives.refuse import refuse_rerun, refuse_score_sampled
from ingle.objectives.runs import run_guide, run_model, weighed
from ingle.objectives.sticking import stick
from ingle.objectives.trace import Trace_ELBO

__all__ = ["STL_ELBO"]


class STL_ELBO(Trace_ELBO):
    r"""The evidence lower bound, sticking the landing: no gradient of log q but the one through the draws.

    With z = z(eps; phi) the gradient is that of log p(x, z(phi)) - log q(z(phi); phi'), phi' = phi held fixed, instead
    of that of both phi. What is left out, the score of q, has expectation zero, so the gradient of the guide's
    parameters is unbiased; the model's are as in `Trace_ELBO`.

    Where the guide is the posterior, log p - log q is constant and the gradient is zero for each draw. So it pays late
    in a fit, and for guides rich enough to come near the posterior; far from it its variance may be the higher one.
    Costs one run of the pair and one more of the guide a particle, whose running statistics move twice. Every site of
    the guide must be reparameterised, and a flow needs an inverse. A parameter that model and guide share loses the
    score, and stays unbiased.

    Args:
        num_particles: averaged over.
        **options: of `Trace_ELBO`.

    Raises:
        ProgramError: at a guide site without a pathwise gradient, a flow without an inverse, or a guide whose
            densities are others when it runs again.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the Landing: Simple, Lower-Variance Gradient Estimators for
        Variational Inference.
    """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        refuse_rerun(self, guide)
        given = run_guide(guide, args, kwargs)
        refuse_score_sampled(self, given, "RLOO_ELBO, TraceGraph_ELBO or Trace_ELBO")
        model_trace, guide_trace = weighed(run_model(model, given, args, kwargs), given, self.max_plate_nesting)
        stick(guide, given, guide_trace, args, kwargs)
        return model_trace, guide_trace
