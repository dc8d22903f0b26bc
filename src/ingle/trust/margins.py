"""Mean and sd of everything that a guide draws, by the same noise each time, so that two guides can be compared."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle.program import Program, repeat
from ingle.runtime import RandomState, Runtime

__all__ = ["Margins", "countable", "margins", "placed"]

_DRAWS = 100
_SEED = 1_804_289_383
_MOST = 2**24  # numbers drawn at once
_STILL = 1e-9  # sd, relative to the mean, of what does not vary


@dataclass(frozen=True)
class Margins:
    """Of each number that the guide draws, in the order of the model's latents.

    Attributes:
        mean, sd: shape (numbers,), on the scale of the latents.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]

    @property
    def spread(self) -> bool:
        """Something varies, so that distances can be told in sds."""
        return bool((self.sd > _STILL * (1.0 + np.abs(self.mean))).any())

    def distances(self, other: Margins) -> NDArray[np.float64]:
        """How far each number's normal is from that of the same number in another guide, in sds, signs kept.

        Returns:
            Differences of the mean over the sd, and of the log sd times √2, stacked, shape (2, numbers): the sum of
            their squares is, for small ones, the symmetric Kullback-Leibler divergence. 0 where nothing varies.
        """
        floor = _STILL * (1.0 + np.abs(self.mean))
        varies = (self.sd > floor) & (other.sd > floor)
        one, two = np.where(varies, self.sd, 1.0), np.where(varies, other.sd, 1.0)
        shift = (self.mean - other.mean) / np.sqrt(one * two)
        return np.where(varies, np.stack([shift, math.sqrt(2.0) * np.log(one / two)]), 0.0)


def countable(program: Program) -> bool:
    """There are latents to draw, and not too many."""
    numbers = sum(math.prod(site.value_shape) for site in program.guide_sites if site.name in _names(program))
    return 0 < numbers * _DRAWS <= _MOST


def margins(program: Program, runtime: Runtime) -> Margins:
    """Margins of the guide as it is; in minibatches, on the rows of the first one. No noise of the fit is used."""
    names = _names(program)

    def run(_: Tensor) -> dict[str, Tensor]:
        trace = program.trace_guide()
        return {name: trace.nodes[name]["value"] for name in names}

    outside = RandomState.capture(runtime.device)
    try:
        runtime.reseed(_SEED)
        with torch.no_grad(), program.at_rest(), program.probe, program.explained("guide"):
            drawn = repeat(run, _DRAWS, chunk=_DRAWS)
    finally:
        outside.restore()
    flat = torch.cat([drawn[name].reshape(_DRAWS, -1).double() for name in names], -1)
    return Margins(flat.mean(0).cpu().numpy(), flat.std(0).cpu().numpy())


@contextmanager
def placed(program: Program, values: Mapping[str, Tensor]) -> Iterator[None]:
    """Inside, the parameters have these values, unconstrained; afterwards those that they had."""
    leaves = program.leaves()
    with torch.no_grad():
        before = {name: leaf.detach().clone() for name, leaf in leaves.items()}
        try:
            for name, value in values.items():
                leaves[name].copy_(value)
            with torch.enable_grad():
                yield
        finally:
            for name, leaf in leaves.items():
                leaf.copy_(before[name])


def _names(program: Program) -> list[str]:
    drawn = {site.name for site in program.guide_sites}
    return [
        site.name
        for site in program.latents
        if site.name in drawn and site.name not in program.enumerated and not program.partial(site)
    ]
