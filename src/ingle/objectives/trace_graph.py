"""TraceGraph_ELBO: score functions weighted by what each draw can change, and by no more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pyro.infer

from ingle.objectives.baseline import Baselines, subsampling
from ingle.objectives.downstream import split
from ingle.objectives.runs import marked_traces
from ingle.objectives.single_sample import SingleSample
from ingle.program import sample_nodes, score_sampled

__all__ = ["TraceGraph_ELBO"]


class TraceGraph_ELBO(SingleSample, pyro.infer.TraceGraph_ELBO):
    """The evidence lower bound, its score-function terms weighted by what the site can change, and no more.

    For a guide site z_j without a pathwise gradient the surrogate has log q(z_j) times (its downstream cost - a
    baseline), where the downstream cost is the sum of those terms of log p - log q that were computed from z_j,
    in the plates of z_j. Which those are is followed through the arithmetic, and through Python's decisions on the
    draws. Unbiased; costs one run of the pair a particle. With one particle and no baseline its variance is the
    highest of the estimators here: `RLOO_ELBO` has the baseline for nothing.

    The constructor and the baselines, `infer={"baseline": …}`, are those of `pyro.infer.TraceGraph_ELBO`, with
    `kl_scale` and `free_bits` as in `Trace_ELBO`. Other than in Pyro
    - what is sampled after an `if` on a draw belongs to the cost of that draw, where Pyro's gradient is biased;
    - baselines are asked for costs without the N/B of the plates around their site;
    - the decaying average is one number for each site, `baseline_beta` times itself and the rest the step's mean cost,
      divided by the sum of its weights; it is kept in the objective (`memory`), outside Pyro's parameter store.

    References:
        Schulman, Heess, Weber and Abbeel (2015), Gradient Estimation Using Stochastic Computation Graphs.
        Mnih and Gregor (2014), Neural Variational Inference and Learning in Belief Networks.
    """

    def untraceable(self, guide_trace: Any) -> str | None:
        """In the place of Pyro's own class, whose baselines are others, steps with such baselines stay Pyro's."""
        for site in sample_nodes(guide_trace) if self.as_pyro else ():
            baseline = site["infer"].get("baseline", {})
            if baseline.get("use_decaying_avg_baseline") or (baseline and subsampling(site) != 1.0):
                return (
                    f"the baseline of {site['name']!r} is kept by Pyro, elementwise and with the scale of its plates; "
                    "ingle.objectives.TraceGraph_ELBO keeps one that compiles"
                )
        return None

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return marked_traces(score_sampled, self.max_plate_nesting, model, guide, args, kwargs)

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        baselines = Baselines(self.memory)
        for model_trace, guide_trace in self._traces(model, guide, args, kwargs):
            missing = self._weigh(model_trace, guide_trace)
            parts = split(model_trace, guide_trace)
            surrogate = parts.pathwise
            for score in parts.scores:
                baseline, error = baselines.of(score)
                surrogate = surrogate + (score.score * (score.cost - baseline)).sum() - error
            yield (missing - parts.elbo) / self.num_particles, -surrogate / self.num_particles
        if moving:
            baselines.move()
            self._kl.advance(self.memory)
