"""Baselines of score-function terms, as guides ask for them: `infer={"baseline": {…}}`."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions.util import detach
from torch import Tensor

from ingle.errors import ProgramError
from ingle.objectives.downstream import Score
from ingle.program import Memory

__all__ = ["Baselines", "subsampling"]

_OPTIONS = ("nn_baseline", "nn_baseline_input", "use_decaying_avg_baseline", "baseline_beta", "baseline_value")


class Baselines:
    """The baselines of one step, and what is learnt from its costs.

    Every baseline is asked for the cost of a draw divided by N/B, the scale of the subsampled plates around the site,
    so that it does not depend on the size of minibatches. The decaying average of a site is one number for all
    elements of its plates.

    Args:
        memory: where the averages are.
    """

    def __init__(self, memory: Memory) -> None:
        self._memory = memory
        self._costs: dict[str, tuple[float, list[Tensor]]] = {}

    def of(self, score: Score) -> tuple[Any, Any]:
        """What to take from the cost of a site, and the squared error of what can learn from it, a scalar.

        Raises:
            ProgramError: an option is unknown, or a baseline has another shape than its site.
        """
        name, options = score.site["name"], _options(score.site)
        scale = subsampling(score.site)
        target = score.cost / scale
        baseline: Any = 0.0
        loss: Any = 0.0
        if options.get("use_decaying_avg_baseline"):
            beta = float(options.get("baseline_beta", 0.90))
            self._costs.setdefault(name, (beta, []))[1].append(target.mean())
            total, weight = self._average(name, target).unbind()
            baseline = baseline + total / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        learnt = options.get("baseline_value")
        if options.get("nn_baseline") is not None:
            learnt = options["nn_baseline"](detach(options.get("nn_baseline_input")))
        if learnt is not None:
            baseline = baseline + _shaped(name, learnt, target)
            loss = (target - baseline).square().sum()
        return detach(baseline) * scale if isinstance(baseline, Tensor) else baseline, loss

    def move(self) -> None:
        """Take the costs of the step into the averages."""
        with torch.no_grad():
            for name, (beta, costs) in self._costs.items():
                cost = torch.stack(costs).mean()
                average = self._average(name, cost)
                average.mul_(beta).add_((1 - beta) * torch.stack([cost, torch.ones_like(cost)]))

    def _average(self, name: str, like: Tensor) -> Tensor:
        """The sum and the weight of the decaying average, shape (2,)."""
        return self._memory.recall(f"average cost of {name}", lambda: like.new_zeros(2))


def subsampling(site: Any) -> float:
    """N/B of the subsampled plates around a site."""
    return math.prod(
        float((frame.full_size or frame.size) / frame.size) for frame in site["cond_indep_stack"] if frame.size
    )


def _options(site: Any) -> dict[str, Any]:
    options = dict(site["infer"].get("baseline", {}))
    unknown = [name for name in options if name not in _OPTIONS]
    if unknown:
        raise ProgramError(
            f"site {site['name']!r}: unknown baseline option {', '.join(map(repr, unknown))}; there are "
            f"{', '.join(_OPTIONS)}"
        )
    if options.get("nn_baseline") is not None and options.get("baseline_value") is not None:
        raise ProgramError(f"site {site['name']!r} has a baseline_value and an nn_baseline; give it one of them")
    return options


def _shaped(name: str, baseline: Any, target: Tensor) -> Tensor:
    """A baseline of the shape of its site, the same for all particles that are drawn together."""
    shape = tuple(getattr(baseline, "shape", ()))
    if not isinstance(baseline, Tensor) or shape != tuple(target.shape[target.dim() - len(shape) :]):
        raise ProgramError(
            f"the baseline of site {name!r} has shape {shape}, and the site {tuple(target.shape)}: give it one number "
            "for each element of the site's plates"
        )
    return baseline.expand(target.shape)
