"""RLOO_ELBO: score functions with the other particles' mean cost as the baseline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ingle.errors import OptionError, ProgramError
from ingle.objectives.downstream import Score, split
from ingle.objectives.runs import marked_traces
from ingle.objectives.single_sample import SingleSample
from ingle.program import score_sampled

__all__ = ["RLOO_ELBO"]


class RLOO_ELBO(SingleSample):
    r"""The evidence lower bound; score functions with a leave-one-out baseline.

    For a guide site z_j without a pathwise gradient and particles k = 1, …, K the surrogate has

        (1/K) sum_k log q(z_jk) (c_jk - b_jk),

    where the cost c_j is that of `TraceGraph_ELBO`: the terms of log p - log q that were computed from z_j, in the
    plates of z_j. The baseline b_jk is the mean cost of the other particles, one for each element of the plates,
    drawn towards the mean over elements as far as these differ by noise alone (for K of 3 or more). All other sites
    have pathwise gradients.

    The default of `fit` for guides with discrete sites that are not summed out. Unbiased, since the baseline of a
    particle knows nothing of its draw; no parameter, nothing to learn. What it gains over `TraceGraph_ELBO` is the
    part of the cost that all draws share: much where a draw decides over many data, less where its cost is a few nats.
    Costs K runs of the pair, all in memory; few particles are enough. Where every site is pathwise it is `Trace_ELBO`
    with K particles. Baselines that the guide asks for are not used.

    Args:
        num_particles: K, 2 or more.
        vectorize_particles: run them in one plate outside of all others, as `pyro.infer.Trace_ELBO` does.
        **options: of `pyro.infer.ELBO`, and `kl_scale` and `free_bits` of `Trace_ELBO`.

    Raises:
        OptionError: there are fewer than two particles.

    References:
        Kool, van Hoof and Welling (2019), Buy 4 REINFORCE Samples, Get a Baseline for Free!
        James and Stein (1961), Estimation with Quadratic Loss (means drawn together).
        Salimans and Knowles (2014), On Using Control Variates with Stochastic Approximation for Variational Bayes.
    """

    def __init__(self, num_particles: int = 4, *, vectorize_particles: bool = False, **options: Any) -> None:
        super().__init__(num_particles, vectorize_particles=vectorize_particles, **options)
        if num_particles < 2:
            raise OptionError(
                "RLOO_ELBO takes the other particles for the baseline of one, and wants num_particles of 2 or more; "
                "with one particle use TraceGraph_ELBO"
            )

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return marked_traces(score_sampled, self.max_plate_nesting, model, guide, args, kwargs)

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        loss: Any = 0.0
        surrogate: Any = 0.0
        found: dict[str, list[Score]] = {}
        for model_trace, guide_trace in self._traces(model, guide, args, kwargs):
            missing = self._weigh(model_trace, guide_trace)
            parts = split(model_trace, guide_trace)
            loss, surrogate = loss + missing - parts.elbo, surrogate + parts.pathwise
            for score in parts.scores:
                found.setdefault(score.site["name"], []).append(score)
        for name, scores in found.items():
            costs, logs = (scores[0].cost, scores[0].score) if self.vectorize_particles else _stacked(name, scores)
            if len(costs) > 1:  # a site that one particle alone has reached has no baseline
                costs = costs - of_the_others(costs)
            surrogate = surrogate + (logs * costs).sum()
        yield loss / self.num_particles, -surrogate / self.num_particles
        if moving:
            self._kl.advance(self.memory)


def of_the_others(costs: Tensor) -> Tensor:
    """What the costs of all other particles say of the cost of each, shape (K, *batch) as that of the costs.

    The mean over the other particles, drawn towards its mean over the elements of the batch as far as what tells
    elements apart is noise: by lambda = (v - s/(K-1)) / v, v the variance of means between elements and s that of
    costs within them, both among the others. With K = 2 there is no s, and the mean is taken as it is.
    """
    count, size = len(costs), costs[0].numel()
    centre = costs.mean()  # for the digits alone: all that follows moves with it
    costs = costs - centre
    means = (costs.sum(0) - costs) / (count - 1)
    if count == 2 or size == 1:
        return means + centre
    squares = (costs.square().sum(0) - costs.square()) / (count - 1)
    batch = tuple(range(1, costs.dim()))
    noise = (squares - means.square()).mean(batch, keepdim=True) / (count - 2)
    mean = means.mean(batch, keepdim=True)
    spread = (means - mean).square().sum(batch, keepdim=True) / (size - 1)
    share = (1 - noise / spread.clamp(min=torch.finfo(spread.dtype).tiny)).clamp(0.0, 1.0)
    return mean + share * (means - mean) + centre


def _stacked(name: str, scores: list[Score]) -> tuple[Tensor, Tensor]:
    """Costs and scores of one site, particles first."""
    shapes = {(score.cost.shape, score.score.shape) for score in scores}
    if len(shapes) > 1:
        told = " and ".join(sorted({str(tuple(cost)) for cost, _ in shapes}))
        raise ProgramError(
            f"site {name!r} has another shape from particle to particle, {told}, so that one is no baseline for "
            "another; use TraceGraph_ELBO"
        )
    return torch.stack([score.cost for score in scores]), torch.stack([score.score for score in scores])
