"""What the bounds of several samples share: log-mean weights, and what each particle adds to them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.errors import OptionError
from ingle.objectives.blocks import Block, Weights, weigh
from ingle.objectives.estimator import Estimator, detached
from ingle.objectives.refuse import refuse_score_sampled
from ingle.objectives.runs import marked_traces

__all__ = ["MultiSample", "log_mean_exp", "shares", "without_weights"]

_SERVING = "VIMCO_ELBO or RLOO_ELBO"


class MultiSample(Estimator):
    r"""A bound from the importance weights of K particles, told for each element of the plates that allow it.

        L = sum_b s_b sum_i 1/(1 - alpha) log (1/K) sum_k w_bik^(1 - alpha),   w = p(x, z_k) / q(z_k),

    over blocks b of draws that share terms of the model or the guide, and over the elements i of the plates that are
    around all terms of a block. s is the scale of the block, N/B under subsampling; it stays outside of the logarithm.
    What draws share is followed through the arithmetic. Where a latent is outside of a plate of the data, the weight
    is one of all data, and refused if the plate draws rows.

    Args:
        num_particles: K.
        vectorize_particles: run them in one plate outside of all others, as `pyro.infer.Trace_ELBO` does.
        **options: of `pyro.infer.ELBO`.

    Raises:
        OptionError: for `kl_scale` and `free_bits`.
    """

    alpha: float = 0.0
    _pathwise = False  # whether every site has to have a pathwise gradient

    def __init__(self, num_particles: int, *args: Any, **options: Any) -> None:
        super().__init__(num_particles, *args, **without_weights(self, options))

    @property
    def is_elbo(self) -> bool:
        """With one particle."""
        return bool(self.num_particles == 1)

    def told(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Which draws share a weight, and for the elements of which plates there is a bound each."""
        with torch.no_grad():
            return self._weights(model, guide, args, kwargs).told()

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        weights = self._weights(model, guide, args, kwargs)
        loss, surrogate = -detached(weights.constant), -weights.constant
        for block in weights.blocks:
            bound = log_mean_exp(block.log_weight.detach(), self.alpha)
            loss = loss - block.scale * bound.sum()
            surrogate = surrogate - block.scale * self._surrogate(block, bound)
        yield loss, surrogate

    def _surrogate(self, block: Block, bound: Tensor) -> Any:
        """A scalar with the gradient of the sum of a block's bounds.

        Args:
            block: without the scale.
            bound: of each element, shape (*batch).
        """
        weights = shares(block.log_weight, self.alpha)
        surrogate = (weights * block.log_weight).sum()
        if isinstance(block.score, Tensor):
            gain = bound - without_each(block.log_weight.detach(), self.alpha)
            surrogate = surrogate + (gain * block.score).sum()
        return surrogate

    def _weights(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Weights:
        with _SameRows():
            traces = list(self._traces(model, guide, args, kwargs))
        if self._pathwise:
            refuse_score_sampled(self, traces[0][1], _SERVING)
        vectorized = self.vectorize_particles and self.num_particles > 1
        return weigh(traces, self.num_particles, vectorized=vectorized)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        return marked_traces(_all, self.max_plate_nesting, model, guide, args, kwargs)


def _all(site: Any) -> bool:
    return True


class _SameRows(Messenger):
    """The rows that a plate draws for one particle are those of the particles after it: weights of the same data."""

    def __init__(self) -> None:
        super().__init__()
        self._rows: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if site_is_subsample(msg) and not msg["done"] and msg["name"] in self._rows:
            msg["value"], msg["done"] = self._rows[msg["name"]], True

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            self._rows[msg["name"]] = msg["value"]


def without_weights(objective: object, options: dict[str, Any]) -> dict[str, Any]:
    """The options, if no weight of the divergence is among them. Raises `OptionError` otherwise."""
    given = [name for name in ("kl_scale", "free_bits") if name in options]
    if given:
        raise OptionError(
            f"{type(objective).__name__} takes no {' or '.join(given)}: log p - log q is inside the logarithm of a "
            "mean, where it is no divergence to be weighed; use Trace_ELBO, TraceMeanField_ELBO, STL_ELBO, "
            "TraceGraph_ELBO or RLOO_ELBO"
        )
    return options


def log_mean_exp(log_weight: Tensor, alpha: float) -> Tensor:
    """1/(1 - alpha) log (1/K) sum_k w_k^(1 - alpha), particles first; the shape of one particle."""
    power = 1.0 - alpha
    return (torch.logsumexp(power * log_weight, 0) - math.log(len(log_weight))) / power


def shares(log_weight: Tensor, alpha: float) -> Tensor:
    """w_k^(1 - alpha) over its sum, particles first, without a gradient."""
    return torch.softmax((1.0 - alpha) * log_weight.detach(), 0)


def without_each(log_weight: Tensor, alpha: float) -> Tensor | Literal[0]:
    """The bound with the weight of each particle replaced by the geometric mean of the others', particles first.

    What it is for particle k knows nothing of its draw. 0 where there is one particle.
    """
    count = len(log_weight)
    if count == 1:
        return 0
    others = (log_weight.sum(0) - log_weight) / (count - 1)
    own = torch.eye(count, dtype=torch.bool, device=log_weight.device)
    own = own.reshape(count, count, *[1] * (log_weight.dim() - 1))
    replaced = torch.where(own, others, log_weight.unsqueeze(1))  # which is summed over first, whose it is second
    return log_mean_exp(replaced, alpha)
