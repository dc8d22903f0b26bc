"""How much of one step's gradient is signal: what a fit has at hand to move on by."""

from __future__ import annotations

import math

from pyro.infer import ELBO

from ingle.engine import Moments, choose_engine
from ingle.program import Program, Values
from ingle.runtime import Runtime

__all__ = ["signal_to_noise"]


def signal_to_noise(program: Program, runtime: Runtime, objective: ELBO, samples: int) -> float:
    r"""Norm of the mean gradient over the standard deviation of one, all parameters together.

        sqrt(max(0, |mean|^2 - V / S) / V),  V = sum of the variances of the numbers of one gradient,

    which is 0 at rest, whatever S is: what noise adds to the norm of a mean is taken off. Above 1 most steps go the
    same way.

    Args:
        program: at the parameters to look at; it is left as it was.
        runtime: of the fit, inside a scope of it.
        objective: prepared for the program.
        samples: S, gradients to draw; 2 or more.

    Returns:
        NaN where nothing is trained, infinity where a gradient has no noise.

    References:
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better.
    """
    values, remembered = Values(program), program.memory
    before = values.capture()
    try:
        moments = Moments(program)
        choose_engine("off", program, objective, moments, runtime, steps=samples).advance(samples)
        found = moments.found().values()
    finally:
        program.memory = remembered
        values.restore(before)
    if not found:
        return math.nan
    squared = sum(float(mean.square().sum()) for mean, _ in found)
    variance = sum(float(spread.sum()) for _, spread in found)
    if variance <= 0:
        return math.inf if squared > 0 else 0.0
    return math.sqrt(max(0.0, squared - variance / samples) / variance)
