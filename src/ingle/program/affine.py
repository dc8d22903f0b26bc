"""The maps that send standard normals to draws of an automatic guide: triangular ones, and autoregressive layers."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.distributions.transforms import Permute, affine_autoregressive
from torch import Tensor
from torch.distributions.transforms import Transform

__all__ = ["Triangular", "autoregressive_flow", "times"]


def autoregressive_flow(size: int) -> Any:
    """Two affine autoregressive layers, the order of the latents turned around in between; at first the identity."""
    layers: list[Any] = [affine_autoregressive(size), affine_autoregressive(size)]
    for layer in layers:
        last = layer.arn.layers[-1]
        with torch.no_grad():
            for parameter in last.parameters():
                parameter.zero_()
            for skip in [layer.arn.skip_layer] if layer.arn.skip_layer is not None else []:
                skip.weight.zero_()
    turn = Permute(torch.arange(size - 1, -1, -1))
    return dist.transforms.ComposeTransformModule([layers[0], turn, layers[1]])


class Triangular(Transform):
    """y = centre + factor @ m @ x, with m lower triangular of diagonal `stretch` and `shear` below it, if any."""

    domain = constraints.real_vector
    codomain = constraints.real_vector
    bijective = True

    def __init__(self, centre: Tensor, factor: Tensor, stretch: Tensor, shear: Tensor | None) -> None:
        super().__init__(cache_size=1)
        self._centre, self._factor, self._stretch = centre, factor, stretch
        self._shear = None if shear is None else shear.tril(-1)

    def _call(self, x: Tensor) -> Tensor:
        inner = self._stretch * x
        if self._shear is not None:
            inner = inner + times(self._shear, x)
        return self._centre + times(self._factor, inner)

    def _inverse(self, y: Tensor) -> Tensor:
        away = (y - self._centre).unsqueeze(-1)
        inner = away / self._factor.unsqueeze(-1) if self._factor.dim() == 1 else _solved(self._factor, away)
        if self._shear is not None:
            inner = _solved(self._shear + torch.diag_embed(self._stretch), inner)
            return inner.squeeze(-1)
        return inner.squeeze(-1) / self._stretch

    def log_abs_det_jacobian(self, x: Tensor, y: Tensor) -> Tensor:
        """The log of the volume, shape of the batch."""
        diagonal = self._factor if self._factor.dim() == 1 else self._factor.diagonal()
        volume = (diagonal.log() + self._stretch.log()).sum()
        return volume.expand(x.shape[:-1])


def _solved(lower: Tensor, right: Tensor) -> Tensor:
    solved: Tensor = torch.linalg.solve_triangular(lower, right, upper=False)
    return solved


def times(factor: Tensor, x: Tensor) -> Tensor:
    """A product with a matrix, or with a diagonal, as a sum that a compiler can fuse with what is around it."""
    product: Tensor = factor * x if factor.dim() == 1 else (factor * x.unsqueeze(-2)).sum(-1)
    return product
