"""What a family of models is, and one case of it: a model, its data, and its posterior where that is known exactly."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Array", "Case", "Data", "Family", "Moments"]

Array = NDArray[Any]
Data = Mapping[str, Array]
Moments = dict[str, tuple[Array, Array]]  # of each latent, constrained: mean and sd, of its shape


@dataclass(frozen=True)
class Family:
    """Models of one form; each seed gives new data, scales and correlations, and one of a few sizes.

    Attributes:
        model: in Pyro.
        draw: data of a size from random numbers.
        sizes: few, so that what is compiled for a shape serves many seeds.
        latents: names of the sites, in the order of the model.
        exact: posterior means and sds from data; None where they take long NUTS.
    """

    model: Callable[..., Any]
    draw: Callable[[np.random.Generator, int], Data]
    sizes: tuple[int, ...]
    latents: tuple[str, ...]
    exact: Callable[[Data], Moments] | None = None

    def case(self, name: str, seed: int) -> Case:
        """The case of a seed, the same in every process."""
        rng = np.random.default_rng([zlib.crc32(name.encode()), seed])
        size = self.sizes[int(rng.integers(len(self.sizes)))]
        data = {key: np.asarray(value) for key, value in self.draw(rng, size).items()}
        return Case(name, seed, size, self.model, data, self)


@dataclass(frozen=True)
class Case:
    """One problem of the suite."""

    family: str
    seed: int
    size: int
    model: Callable[..., Any]
    data: dict[str, Array]
    of: Family = field(repr=False)

    @property
    def latents(self) -> tuple[str, ...]:
        return self.of.latents

    def exact(self) -> Moments | None:
        """Means and sds of the posterior; None where the family has no exact ones."""
        return None if self.of.exact is None else self.of.exact(self.data)
