"""Values of latents to run a model with before anything is known of the posterior."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from pyro.infer.autoguide.initialization import init_to_median, init_to_sample
from torch import Tensor

from ingle.program.distributions import to_support

__all__ = ["drawn_value", "prior_value", "typical_value"]


def typical_value(site: Any) -> Tensor:
    """The prior median of a site; for a discrete one a draw; zero, unconstrained, where the prior cannot be drawn.

    A draw from a wide prior may overflow where the posterior never goes.
    """
    return _value(site, init_to_median)


def drawn_value(site: Any) -> Tensor:
    """A draw from the prior of a site; zero, unconstrained, where the prior cannot be drawn."""
    return _value(site, init_to_sample)


def prior_value(how: Literal["draw", "median"]) -> Callable[[Any], Tensor]:
    """The one or the other of the two, by name."""
    return drawn_value if how == "draw" else typical_value


def _value(site: Any, choose: Any) -> Tensor:
    fn = site["fn"]
    try:
        discrete = bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        discrete = True  # nothing is known of it, so it is left to draw itself
    try:
        return fn.sample() if discrete else choose(site)  # type: ignore[no-any-return]
    except NotImplementedError:  # dist.ImproperUniform
        transform = to_support(fn)
        shape = transform.inverse_shape(fn.shape())
        return transform(torch.zeros(shape))  # type: ignore[no-any-return]
