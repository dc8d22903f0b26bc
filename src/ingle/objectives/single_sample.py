"""What the ELBOs of one sample share: weights on the divergence from the prior."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ingle.objectives.estimator import Estimator
from ingle.objectives.kl import KL, Anneal

__all__ = ["SingleSample"]


class SingleSample(Estimator):
    """An average over particles of log p(x, z) - log q(z), the divergence of each latent from its prior weighed.

    With factors beta_j it estimates E_q[sum log p(x | z) - sum_j beta_j (log q(z_j) - log p(z_j))], and no bound on the
    evidence where a factor is below 1. With free bits a latent whose divergence, averaged over the elements of its
    plates, is below lambda_j counts lambda_j, and has no gradient of it.

    Args:
        *args, **options: of the class of Pyro's.
        kl_scale: a factor for every latent, or one for each name of a site or plate; a number, 0 or more, or an
            `Anneal`. Latents that are not named count once.
        free_bits: in nats for each element, for every latent or by name of a site or plate. Draws estimate the
            divergence, one particle at a time unless `vectorize_particles`, so that on few elements the choice is
            noisy; `TraceMeanField_ELBO` takes the formula instead.

    Raises:
        OptionError: a number is negative or not finite.

    References:
        Higgins et al. (2017), beta-VAE. Bowman et al. (2016), Generating Sentences from a Continuous Space.
        Kingma et al. (2016), Improved Variational Inference with Inverse Autoregressive Flow.
    """

    _kl = KL()

    def __init__(
        self,
        *args: Any,
        kl_scale: float | Anneal | Mapping[str, float | Anneal] = 1.0,
        free_bits: float | Mapping[str, float] = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(*args, **options)
        self._kl = KL(kl_scale, free_bits)

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        for model_trace, guide_trace in self._traces(model, guide, args, kwargs):
            missing = self._weigh(model_trace, guide_trace)
            loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            yield (loss + missing) / self.num_particles, surrogate / self.num_particles
        if moving:
            self._kl.advance(self.memory)

    @property
    def options(self) -> dict[str, Any]:
        """With the weights on the divergence."""
        options = super().options
        if self._kl.scale != 1.0:
            options["kl_scale"] = self._kl.scale
        if self._kl.free_bits != 0.0:
            options["free_bits"] = self._kl.free_bits
        return options

    @property
    def is_elbo(self) -> bool:
        """Where no weight is on a divergence."""
        return self._kl.plain

    def _weigh(self, model_trace: Any, guide_trace: Any) -> Any:
        """Put the weights on the terms, in place; returns what the loss lacks then."""
        if self._kl.plain:
            return 0.0
        self._kl.check(model_trace, guide_trace)
        return self._kl.weigh(model_trace, guide_trace, self.memory)
