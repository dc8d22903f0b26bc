"""The autoencoder without Pyro, as one writes it by hand in torch: networks, loss, Adam."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from benchmarks.cases import LEARNING_RATE, Case

__all__ = ["HandWritten"]

_FLOOR = 1e-4  # of the code's scale, as in the pair that ships


class HandWritten(nn.Module):
    """Encoder and decoder, the negative ELBO of one draw, and a step of Adam.

    Args:
        case: the autoencoder's.
        device: where it runs.
        compiled: whether loss and gradient are one compiled function, and Adam another.
    """

    def __init__(self, case: Case, device: str, *, compiled: bool) -> None:
        super().__init__()
        self.encoder, self.decoder = (_perceptron(case, name) for name in ("encoder", "decoder"))
        self.to(device)
        # Adam in one kernel where nothing is compiled, which is its fastest; compiled it is fused anyway.
        self.adam = torch.optim.Adam(self.parameters(), lr=LEARNING_RATE, fused=not compiled)
        self._loss: Callable[[Tensor], Tensor] = self.loss
        self._move: Callable[[], None] = self.move
        if compiled:
            self._loss, self._move = torch.compile(self.loss), torch.compile(self.move)

    def step(self, x: Tensor) -> float:
        """One step; returns the loss in nats."""
        loss = self._loss(x)
        self.adam.zero_grad()
        loss.backward()
        self._move()
        return float(loss.detach())

    def loss(self, x: Tensor) -> Tensor:
        """Minus log p(x, z) + log q(z) of one draw, x of shape (N, D)."""
        loc, raw = self.encoder(x).chunk(2, dim=-1)
        scale = functional.softplus(raw) + _FLOOR
        noise = torch.randn_like(loc)
        z = loc + scale * noise
        log_ratio = 0.5 * (noise.square() - z.square()).sum() + scale.log().sum()
        return functional.binary_cross_entropy_with_logits(self.decoder(z), x, reduction="sum") - log_ratio

    def move(self) -> None:
        """The optimiser's part of a step."""
        self.adam.step()


def _perceptron(case: Case, name: str) -> nn.Sequential:
    layers: list[nn.Module] = []
    for place in itertools.takewhile(lambda place: f"{name}.weight{place}" in case.start, itertools.count()):
        weight, bias = (torch.tensor(case.start[f"{name}.{part}{place}"]) for part in ("weight", "bias"))
        layer = nn.Linear(weight.shape[1], weight.shape[0])
        layer.weight, layer.bias = nn.Parameter(weight), nn.Parameter(bias)
        layers += [layer, nn.Softplus()]
    return nn.Sequential(*layers[:-1])
