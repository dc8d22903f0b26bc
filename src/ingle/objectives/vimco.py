"""VIMCO_ELBO: the importance-weighted bound, by score functions with a baseline for each particle."""

from __future__ import annotations

from typing import Any

from ingle.errors import OptionError
from ingle.objectives.multi_sample import MultiSample

__all__ = ["VIMCO_ELBO"]


class VIMCO_ELBO(MultiSample):
    r"""The importance-weighted bound of `IWAE_ELBO` for guides with sites that have no pathwise gradient.

    The gradient of log (1/K) sum_k w_k = L is

        sum_k (L - L_k) grad log q(z_k) + sum_k w_k / (sum_l w_l) grad log w_k,

    where L_k is L with w_k replaced by the geometric mean of the other weights. Sites that have a pathwise gradient
    take that. Unbiased, for each datum where the latents are local (see `MultiSample`).

    For discrete latents when a tighter bound than the ELBO's is wanted; where they are few, `TraceEnum_ELBO` sums them
    out. Costs K runs of the pair, all in memory, and K x K numbers for each datum.

    Args:
        num_particles: K, 2 or more.
        vectorize_particles: run them in one plate outside of all others, as `pyro.infer.Trace_ELBO` does.
        **options: of `pyro.infer.ELBO`.

    Raises:
        OptionError: there are fewer than two particles, and for `kl_scale` and `free_bits`.
        ProgramError: for a plate that draws rows beside a latent outside of it.

    References:
        Mnih and Rezende (2016), Variational Inference for Monte Carlo Objectives.
    """

    def __init__(self, num_particles: int, *args: Any, **options: Any) -> None:
        super().__init__(num_particles, *args, **options)
        if num_particles < 2:
            raise OptionError(
                "VIMCO_ELBO takes the other particles for the baseline of one, and wants num_particles of 2 or more; "
                "with one particle use TraceGraph_ELBO"
            )
