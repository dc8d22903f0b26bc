"""The noise of a compiled fit: a function of the seed and the number of the step, and of nothing else."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

__all__ = ["NoiseBlocks"]

_NUMBERS = 2**21  # in a block, at most
_CAPACITIES = (1000, 500, 250, 100, 50, 20, 10, 5, 2, 1)


class NoiseBlocks:
    """Fills matrices with the noise of a block of steps, each block from a stream of its own.

    Whoever begins anew at any step, to replay it or to go on from a checkpoint, finds the same noise.

    Args:
        seed: of the fit.
        normals, uniforms: how many numbers of each a step takes.
        dtype, device: of the noise.

    Attributes:
        capacity: steps in a block.
    """

    def __init__(self, seed: int, normals: int, uniforms: int, *, dtype: torch.dtype, device: torch.device) -> None:
        self._seed = seed
        self._sizes = normals, uniforms
        self._dtype = dtype
        self._generator = torch.Generator(device)
        self._last: tuple[int, Tensor, Tensor] | None = None
        most = _NUMBERS // max(1, normals + uniforms)
        self.capacity = next((capacity for capacity in _CAPACITIES if capacity <= most), 1)

    def fill(self, block: int, normals: Tensor, uniforms: Tensor) -> None:
        """Put the noise of a block into matrices of shapes (capacity, normals) and (capacity, uniforms)."""
        entropy = [self._seed, 0x1A61E, *self._sizes, block]
        self._generator.manual_seed(int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1))
        normals.normal_(generator=self._generator)
        uniforms.uniform_(generator=self._generator)

    def row(self, step: int) -> tuple[Tensor, Tensor]:
        """The noise of one step, shapes (normals,) and (uniforms,)."""
        block, place = divmod(step, self.capacity)
        if self._last is None or self._last[0] != block:
            normals, uniforms = (
                torch.empty(self.capacity, size, dtype=self._dtype, device=self._generator.device)
                for size in self._sizes
            )
            self.fill(block, normals, uniforms)
            self._last = block, normals, uniforms  # steps are asked for one after the other
        _, normals, uniforms = self._last
        return normals[place], uniforms[place]
