"""TraceEnum_ELBO whose value stays on the device."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
from torch import Tensor

from ingle.objectives.dice import dice_elbo
from ingle.objectives.estimator import Estimator
from ingle.objectives.table import TableWatch

__all__ = ["TraceEnum_ELBO"]


class TraceEnum_ELBO(Estimator, pyro.infer.TraceEnum_ELBO):
    """The evidence lower bound with discrete latents summed out exactly.

    ELBO = E_q[log sum_k p(x, z, k) - log q(z)]. Sites marked `infer={"enumerate": "parallel"}` and absent from
    the guide are summed in the model; those marked in the guide are summed in the guide.

    The constructor and the estimator are those of `pyro.infer.TraceEnum_ELBO`.

    References:
        Obermeyer et al. (2019), Tensor Variable Elimination for Plated Factor Graphs.
    """

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        """Runs that enumerate a site one value after the other share what came before it, and so come as one."""
        together: Any = 0.0
        for model_trace, guide_trace in self._get_traces(model, guide, args, kwargs):
            elbo = dice_elbo(model_trace, guide_trace)
            if not isinstance(elbo, Tensor):
                continue
            loss = -elbo / self.num_particles
            if any("_enum_total" in site["infer"] for site in guide_trace.nodes.values() if site["type"] == "sample"):
                together = together + loss
            else:
                yield loss.detach(), loss
        if isinstance(together, Tensor):
            yield together.detach(), together

    def told(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Run once, and stop where the table of combinations becomes too large."""
        if math.isinf(self.max_plate_nesting):
            self._guess_max_plate_nesting(model, guide, args, kwargs)
        with TableWatch(int(self.max_plate_nesting)):
            return super().told(model, guide, *args, **kwargs)

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss as a scalar that can be differentiated any number of times.

        Raises:
            ValueError: where no parameter reaches it.
        """
        loss = super().differentiable_loss(model, guide, *args, **kwargs)
        if not getattr(loss, "requires_grad", False):
            raise ValueError(f"no parameter reaches the ELBO, which cannot be differentiated: {loss}")
        return loss
