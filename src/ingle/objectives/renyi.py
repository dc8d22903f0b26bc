"""RenyiELBO: the variational Renyi bound of order alpha."""

from __future__ import annotations

import math
from typing import Any

import pyro.infer

from ingle.errors import OptionError
from ingle.objectives.multi_sample import MultiSample, without_weights
from ingle.options import positive_integer

__all__ = ["RenyiELBO"]


class RenyiELBO(MultiSample, pyro.infer.RenyiELBO):
    r"""The variational Renyi bound, E 1/(1 - alpha) log (1/K) sum_k w_k^(1 - alpha).

    With alpha = 0 it is that of `IWAE_ELBO`; as alpha goes to 1 it goes to the ELBO; below 0 it need be no bound on
    the evidence. Sites without a pathwise gradient take score functions with the baselines of `VIMCO_ELBO`.

    Unbiased as the gradient of the bound with K particles, where Pyro's gradient for a site without a pathwise one is
    that of infinitely many, and at alpha = 0 none. The bound is told for each element of the plates that allow it, and
    rows of a minibatch are scaled outside of the logarithm (see `MultiSample`); Pyro's raises weights to the power
    N/B. Costs K runs of the pair, all in memory.

    Args:
        alpha: the order, finite, not 1.
        num_particles: K.
        **options: of `pyro.infer.RenyiELBO`.

    Raises:
        OptionError: alpha is 1 or not finite, and for `kl_scale` and `free_bits`.
        ProgramError: for a plate that draws rows beside a latent outside of it.

    References:
        Li and Turner (2016), Renyi Divergence Variational Inference.
    """

    def __init__(self, alpha: float = 0, num_particles: int = 2, *args: Any, **options: Any) -> None:
        if not isinstance(alpha, (int, float)) or not math.isfinite(alpha) or alpha == 1:
            raise OptionError(f"alpha must be a finite number other than 1, where Trace_ELBO is; got {alpha!r}")
        options = without_weights(self, options)
        pyro.infer.RenyiELBO.__init__(self, alpha, positive_integer("num_particles", num_particles), *args, **options)

    @property
    def options(self) -> dict[str, Any]:
        """With the order."""
        return {**super().options, "alpha": self.alpha}
