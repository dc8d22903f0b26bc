"""IWAE_ELBO: the importance-weighted bound, by pathwise gradients."""

from __future__ import annotations

from typing import Any

from ingle.objectives.multi_sample import MultiSample

__all__ = ["IWAE_ELBO"]


class IWAE_ELBO(MultiSample):
    r"""The importance-weighted bound, E log (1/K) sum_k p(x, z_k) / q(z_k), with pathwise gradients.

    It rises with K to log p(x), and is told for each datum where the latents are local (see `MultiSample`).

    Unbiased as the gradient of its bound. For the model's parameters more particles are better. For the guide's the
    signal falls against the noise as K grows, as 1/sqrt(K): use `DReG_ELBO` there. With K = 1 it is `Trace_ELBO`.
    Costs K runs of the pair, all in memory. Every site of the guide must be reparameterised; `VIMCO_ELBO` takes others.

    Args:
        num_particles: K.
        vectorize_particles: run them in one plate outside of all others, as `pyro.infer.Trace_ELBO` does.
        **options: of `pyro.infer.ELBO`.

    Raises:
        ProgramError: at a guide site without a pathwise gradient, or for a plate that draws rows beside a latent
            outside of it.
        OptionError: for `kl_scale` and `free_bits`.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better.
    """

    _pathwise = True

    def __init__(self, num_particles: int, *args: Any, **options: Any) -> None:
        super().__init__(num_particles, *args, **options)
