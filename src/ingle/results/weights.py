"""Draws of a guide resampled by smoothed importance weights."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ingle.errors import IngleWarning, OptionError, warn
from ingle.evidence import khat_threshold, psis, systematic, why_no_weights
from ingle.program import Program
from ingle.results.draws import guided_with_density
from ingle.results.likelihood import evaluate

__all__ = ["resampled", "weighted_draws"]

_FEWEST = 25


def weighted_draws(program: Program, n: int) -> dict[str, Tensor]:
    """The latents at `n` draws of the guide, resampled by smoothed importance weights, shape (n, *site shape).

    Raises:
        OptionError: the guide's draws have no weights, or are fewer than 25.
    """
    without = why_no_weights(program)
    if without is not None:
        raise OptionError(f"the draws have no importance weights: {without}")
    drawn, log_q = guided_with_density(program, n)
    chosen, _ = resampled(evaluate(program, drawn, n, pointwise=False)[0]["log_p"] - log_q)
    return {name: value[chosen] for name, value in drawn.items()}


def resampled(log_weights: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Which draws to take, each as often as its weight says, and what the weights look like.

    The weights are smoothed by a generalised Pareto distribution in their tail; draws are taken by systematic
    resampling, so that each comes within one of its expected number of times.

    Args:
        log_weights: log p - log q of each draw, shape (n,), in nats.

    Returns:
        Places of draws, int64, shape (n,), and `khat`, `khat_threshold` and `ess` by name.

    Raises:
        OptionError: fewer than 25 draws.

    References:
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling.
        Yao, Vehtari, Simpson and Gelman (2018), Yes, but Did It Work?: Evaluating Variational Inference.
    """
    n = len(log_weights)
    if n < _FEWEST:
        raise OptionError(f"weighted draws come by smoothing the tail of at least {_FEWEST} weights, got draws={n}")
    log_smoothed, tail = psis(log_weights)
    khat, ess = float(tail), 1 / float(log_smoothed.exp().square().sum())
    threshold = khat_threshold(n)
    if not khat < threshold:
        warn(
            f"the importance weights have k-hat {khat:.2f}, above {threshold:.2f}, the most at which {n:,} draws can "
            f"be trusted, and an effective sample size of {ess:.0f}: the resampled draws are not those of the "
            "posterior. Fit a guide of a wider family, or take more draws",
            IngleWarning,
        )
    return systematic(log_smoothed), {"khat": khat, "khat_threshold": threshold, "ess": ess}
