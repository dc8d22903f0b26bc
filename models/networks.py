"""Networks that the deep models and their guides are built from: perceptrons, and convolutions over images."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Activation", "Architecture", "decoder", "encoder", "features", "mlp", "normal_code"]

Activation = Literal["softplus", "tanh", "relu", "silu"]
Architecture = Literal["mlp", "convolutional"]

_ACTIVATIONS: dict[str, type[nn.Module]] = {
    "softplus": nn.Softplus,
    "tanh": nn.Tanh,
    "relu": nn.ReLU,
    "silu": nn.SiLU,
}


def mlp(inputs: int, hidden: Sequence[int], outputs: int, activation: Activation = "softplus") -> nn.Sequential:
    """A perceptron, from shape (…, inputs) to (…, outputs); linear where `hidden` is empty.

    Args:
        inputs, outputs: numbers that come in and go out.
        hidden: widths of the layers between, each followed by the activation.
        activation: "softplus", "tanh", "relu" or "silu".

    Raises:
        ValueError: another activation, or a width below 1.
    """
    return features(inputs, hidden, activation).append(nn.Linear([inputs, *hidden][-1], outputs))


def features(inputs: int, hidden: Sequence[int], activation: Activation = "softplus") -> nn.Sequential:
    """The hidden layers of a perceptron without its last map; what comes in goes out where `hidden` is empty.

    Args:
        inputs: numbers that come in.
        hidden: widths of the layers, each followed by the activation.
        activation: "softplus", "tanh", "relu" or "silu".

    Raises:
        ValueError: another activation, or a width below 1.
    """
    _check("hidden", hidden, activation)
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), _ACTIVATIONS[activation]()]
        inputs = width
    return nn.Sequential(*layers)


def encoder(
    shape: Sequence[int],
    outputs: int,
    hidden: Sequence[int],
    architecture: Architecture = "mlp",
    activation: Activation = "softplus",
    extra: int = 0,
) -> nn.Module:
    """From data to numbers: `network(x)` of x, shape (…, *shape), is of shape (…, outputs).

    Args:
        shape: of one datum; (channels, height, width) for convolutions.
        outputs: numbers that go out.
        hidden: widths of a perceptron's layers, or channels of convolutions, each of which halves height and width.
        architecture: "mlp" or "convolutional".
        activation: between layers.
        extra: further numbers at the entrance of the last perceptron, `network(x, more)` with more of shape (…, extra).

    Raises:
        ValueError: an architecture or activation that is not among those told, or no image for convolutions.
    """
    if _convolutional(architecture, shape, hidden, activation):
        return _ConvolutionalEncoder(shape, outputs, hidden, activation, extra)
    return _Flat(len(shape), mlp(math.prod(shape) + extra, hidden, outputs, activation))


def decoder(
    inputs: int,
    shape: Sequence[int],
    hidden: Sequence[int],
    architecture: Architecture = "mlp",
    activation: Activation = "softplus",
    each: int = 1,
) -> nn.Module:
    """From numbers to data: shape (…, inputs) to (…, each, *shape), `each` numbers for every number of a datum.

    Args:
        inputs: numbers that come in.
        shape: of one datum; (channels, height, width) for convolutions.
        hidden: widths of a perceptron's layers, or channels of transposed convolutions, each of which doubles height
            and width.
        architecture: "mlp" or "convolutional".
        activation: between layers.
        each: numbers that a likelihood asks for.

    Raises:
        ValueError: an architecture or activation that is not among those told, or no image for convolutions.
    """
    if _convolutional(architecture, shape, hidden, activation):
        return _ConvolutionalDecoder(inputs, shape, hidden, activation, each)
    network = mlp(inputs, hidden, each * math.prod(shape), activation)
    return network.append(nn.Unflatten(-1, (each, *shape)))


def normal_code(out: Tensor) -> dist.TorchDistribution:
    """The code that an encoder's output stands for: shape (…, 2 K) gives batch shape (…), event shape (K,)."""
    loc, raw = out.chunk(2, dim=-1)
    # A density without a bound has no best fit.
    code: dist.TorchDistribution = dist.Normal(loc, functional.softplus(raw) + 1e-4).to_event(1)
    return code


class _Flat(nn.Module):
    """A perceptron over data of some dimensions, with further numbers beside them."""

    def __init__(self, dims: int, network: nn.Sequential) -> None:
        super().__init__()
        self.dims, self.network = dims, network

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        flat = x.flatten(-self.dims)
        out: Tensor = self.network(flat if more is None else _beside(flat, more))
        return out


class _ConvolutionalEncoder(nn.Module):
    def __init__(
        self, shape: Sequence[int], outputs: int, channels: Sequence[int], activation: Activation, extra: int
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise((shape[0], *channels)):
            layers += [nn.Conv2d(before, after, 3, stride=2, padding=1), _ACTIVATIONS[activation]()]
        self.convolutions = nn.Sequential(*layers)
        self.head = nn.Linear(channels[-1] * math.prod(_sizes(shape, channels)[-1]) + extra, outputs)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        # Convolutions know one batch dimension, and particles or draws bring more.
        features = self.convolutions(x.reshape(-1, *x.shape[-3:])).reshape(*x.shape[:-3], -1)
        out: Tensor = self.head(features if more is None else _beside(features, more))
        return out


class _ConvolutionalDecoder(nn.Module):
    def __init__(
        self, inputs: int, shape: Sequence[int], channels: Sequence[int], activation: Activation, each: int
    ) -> None:
        super().__init__()
        sizes = _sizes(shape, channels)[::-1]
        self.first = (channels[0], *sizes[0])
        self.last = (each, *shape)
        self.head = nn.Linear(inputs, math.prod(self.first))
        layers: list[nn.Module] = []
        steps = itertools.pairwise((*channels, each * shape[0]))
        for (before, after), (small, large) in zip(steps, itertools.pairwise(sizes), strict=True):
            # Halving rounds up, so that an odd size is found again by leaving out the padding of the last row.
            odd = (1 - (2 * small[0] - large[0]), 1 - (2 * small[1] - large[1]))
            layers += [
                _ACTIVATIONS[activation](),
                nn.ConvTranspose2d(before, after, 3, stride=2, padding=1, output_padding=odd),
            ]
        self.convolutions = nn.Sequential(*layers)

    def forward(self, z: Tensor) -> Tensor:
        out: Tensor = self.convolutions(self.head(z).reshape(-1, *self.first))
        return out.reshape(*z.shape[:-1], *self.last)


def _sizes(shape: Sequence[int], channels: Sequence[int]) -> list[tuple[int, int]]:
    """Height and width before and after each convolution of stride 2."""
    sizes = [(shape[1], shape[2])]
    for _ in channels:
        height, width = sizes[-1]
        sizes.append(((height + 1) // 2, (width + 1) // 2))
    return sizes


def _beside(x: Tensor, more: Tensor) -> Tensor:
    """Two tensors joined along their last dimension, the others expanded to each other."""
    batch = torch.broadcast_shapes(x.shape[:-1], more.shape[:-1])
    return torch.cat([x.expand(*batch, -1), more.expand(*batch, -1)], dim=-1)


def _convolutional(architecture: str, shape: Sequence[int], hidden: Sequence[int], activation: str) -> bool:
    if architecture not in ("mlp", "convolutional"):
        raise ValueError(f"architecture must be 'mlp' or 'convolutional', got {architecture!r}")
    _check("hidden", hidden, activation)
    if architecture == "mlp":
        return False
    if len(shape) != 3:
        raise ValueError(
            f"convolutions are over images of shape (channels, height, width), got data_shape {tuple(shape)}: for "
            "grey images of 28 by 28 pixels give (1, 28, 28)"
        )
    if not hidden:
        raise ValueError("convolutions want at least one number of channels in hidden, such as hidden=(16, 32)")
    return True


def _check(name: str, widths: Sequence[int], activation: str) -> None:
    if activation not in _ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(map(repr, _ACTIVATIONS))}, got {activation!r}")
    if isinstance(widths, int):
        raise ValueError(f"{name} must be a sequence, as in ({widths},), got {widths}")
    if any(isinstance(width, bool) or not isinstance(width, int) or width < 1 for width in widths):
        raise ValueError(f"{name} must be whole numbers of 1 or more, got {tuple(widths)}")
