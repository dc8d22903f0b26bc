"""DReG_ELBO: the importance-weighted bound, its draws reparameterised twice."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ingle.objectives.blocks import Block
from ingle.objectives.multi_sample import MultiSample, shares
from ingle.objectives.refuse import refuse_rerun, refuse_score_sampled
from ingle.objectives.runs import run_guide, run_model, weighed, with_values
from ingle.objectives.sticking import stick
from ingle.program import Origins, sample_nodes

__all__ = ["DReG_ELBO"]


class DReG_ELBO(MultiSample):
    r"""The bound of `IWAE_ELBO`; for the guide its doubly reparameterised gradient.

        grad_phi = sum_k v_k^2 (d log w_k / d z_k) (d z_k / d phi),   grad_theta = sum_k v_k grad_theta log p(x, z_k),

    v_k = w_k / sum_l w_l. The score of the guide, which `IWAE_ELBO` has beside the path through the draws, is
    reparameterised once more, and its noise goes with it: as K grows the signal to noise of the guide's gradient rises,
    where that of `IWAE_ELBO` falls. With K = 1 it is `STL_ELBO`.

    Unbiased for the parameters of the guide, and for those of the model; not for one that both share. Told for each
    datum where the latents are local (see `MultiSample`). Costs K runs of the pair, all in memory, and K more of the
    guide, whose running statistics move twice. Every site of the guide must be reparameterised, and a flow needs an
    inverse.

    Args:
        num_particles: K.
        vectorize_particles: run them in one plate outside of all others, as `pyro.infer.Trace_ELBO` does.
        **options: of `pyro.infer.ELBO`.

    Raises:
        ProgramError: at a guide site without a pathwise gradient, a flow without an inverse, a guide whose densities
            are others when it runs again, or for a plate that draws rows beside a latent outside of it.
        OptionError: for `kl_scale` and `free_bits`.

    References:
        Tucker, Lawson, Gu and Maddison (2019), Doubly Reparameterized Gradient Estimators for Monte Carlo Objectives.
    """

    _pathwise = True

    def __init__(self, num_particles: int, *args: Any, **options: Any) -> None:
        super().__init__(num_particles, *args, **options)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        refuse_rerun(self, guide)
        with Origins(lambda site: True) as run:
            given = run_guide(guide, args, kwargs)
            refuse_score_sampled(self, given, "VIMCO_ELBO or RLOO_ELBO")
            taps = {
                site["name"]: Tap(site)
                for site in sample_nodes(given)
                if isinstance(site["value"], Tensor) and site["value"].requires_grad
            }
            handed = with_values(given, {name: tap.value for name, tap in taps.items()})
            model_trace, guide_trace = weighed(run_model(model, handed, args, kwargs), given, self.max_plate_nesting)
            run.note(model_trace, guide_trace)
        stick(guide, given, guide_trace, args, kwargs)
        for name, tap in taps.items():
            guide_trace.nodes[name]["tap"] = tap
        return model_trace, guide_trace

    def _surrogate(self, block: Block, bound: Tensor) -> Any:
        share = shares(block.log_weight, self.alpha)
        for sites in block.sites.values():
            for particle, site in enumerate(sites):
                if "tap" in site:
                    site["tap"].open(share[particle] if len(sites) > 1 else share)
        return (share * block.log_p).sum() - (share.square() * block.log_q).sum()


class Tap:
    """A draw as the model is handed it; gradients from there to the guide are multiplied by a weight known later.

    Args:
        site: of the guide's trace, its draw with a gradient.

    Attributes:
        value: the draw, of the shape of its distribution.
    """

    def __init__(self, site: Any) -> None:
        value = site["value"]
        self._event_dim = site["fn"].event_dim
        passed = value.expand(torch.broadcast_shapes(value.shape, site["fn"].shape()))
        passed = passed.view_as(passed)
        passed.register_hook(self._weighed)
        self._rank = passed.dim() - self._event_dim
        self._weight: Tensor | None = None
        self.value = passed

    def open(self, weight: Tensor) -> None:
        """Have the weight, its last dimensions those of the batch of the site."""
        shape = tuple(weight.shape)[weight.dim() - self._rank :]
        self._weight = weight.reshape(shape + (1,) * self._event_dim)

    def _weighed(self, gradient: Tensor) -> Tensor:
        if self._weight is None:
            raise RuntimeError("the gradient of a draw is taken before its weight is known")
        return gradient * self._weight
