"""TraceEnum_ELBO whose value stays on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
from pyro.distributions.util import is_identically_zero
from pyro.infer.traceenum_elbo import _compute_dice_elbo
from torch import Tensor

__all__ = ["TraceEnum_ELBO"]


class TraceEnum_ELBO(pyro.infer.TraceEnum_ELBO):
    """The evidence lower bound with discrete latents summed out exactly.

    ELBO = E_q[log sum_k p(x, z, k) - log q(z)]. Sites marked `infer={"enumerate": "parallel"}` and absent from
    the guide are summed in the model; those marked in the guide are summed in the guide.

    The constructor and the estimator are those of `pyro.infer.TraceEnum_ELBO`.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs.
    """

    def particles(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each particle its share of the loss, in nats, and the surrogate to differentiate, both scalars.

        Args:
            model, guide: callables with Pyro statements.
            *args, **kwargs: of both.
        """
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbo = _compute_dice_elbo(model_trace, guide_trace)
            if is_identically_zero(elbo):
                continue
            loss = -elbo / self.num_particles
            yield loss.detach(), loss
