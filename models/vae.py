"""A variational autoencoder: a standard normal code for each datum, decoded by a multilayer perceptron."""

from collections.abc import Sequence
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor, nn

__all__ = ["VAE"]


class VAE(nn.Module):
    """Data from a low-dimensional code through a decoder network.

    z_i ~ Normal(0, I) in `latent_dim` dimensions, x_i ~ Bernoulli(logits=decoder(z_i)) or
    x_i ~ Normal(decoder(z_i), scale), independent over the columns; `scale` is one learned number.

    Args:
        data_dim: columns D of the data.
        latent_dim: dimensions of the code.
        hidden: widths of the decoder's hidden layers; none makes the decoder linear.
        likelihood: "bernoulli" for columns of 0 and 1, "normal" for real ones.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.
        Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation.
    """

    def __init__(
        self,
        data_dim: int,
        latent_dim: int = 2,
        hidden: Sequence[int] = (64,),
        likelihood: Literal["bernoulli", "normal"] = "bernoulli",
    ) -> None:
        super().__init__()
        if likelihood not in ("bernoulli", "normal"):
            raise ValueError(f"likelihood must be 'bernoulli' or 'normal', got {likelihood!r}")
        self.data_dim, self.latent_dim, self.hidden = data_dim, latent_dim, tuple(hidden)
        self.likelihood = likelihood
        self.decoder = mlp(latent_dim, self.hidden, data_dim)

    def forward(self, x: Tensor) -> None:
        """One run of the model.

        Args:
            x: data, shape (N, D).
        """
        pyro.module("decoder", self.decoder)
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", self.emission(z).to_event(1), obs=x[i])

    def emission(self, z: Tensor) -> dist.TorchDistribution:
        """The distribution of the columns given codes: z of shape (…, latent_dim) gives batch shape (…, D)."""
        out = self.decoder(z)
        if self.likelihood == "bernoulli":
            bits: dist.TorchDistribution = dist.Bernoulli(logits=out)
            return bits
        scale = pyro.param("scale", torch.ones(()), constraint=constraints.softplus_positive)
        reals: dist.TorchDistribution = dist.Normal(out, scale)
        return reals


def mlp(inputs: int, hidden: Sequence[int], outputs: int) -> nn.Sequential:
    """A perceptron with softplus between its layers, from shape (…, inputs) to (…, outputs)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(inputs, width), nn.Softplus()]
        inputs = width
    return nn.Sequential(*layers, nn.Linear(inputs, outputs))
