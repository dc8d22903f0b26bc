"""The encoder of the variational autoencoder: an amortised guide."""

import pyro
import pyro.distributions as dist
from torch import Tensor, nn
from torch.nn import functional

from ingle.models.vae import VAE, mlp

__all__ = ["VAEGuide"]


class VAEGuide(nn.Module):
    """q(z_i | x_i) = Normal(loc(x_i), scale(x_i)), both from one network, so that new data need no new fit.

    Args:
        model: the autoencoder that this is a guide for; its sizes and hidden widths are used, widths reversed.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    """

    def __init__(self, model: VAE) -> None:
        super().__init__()
        self.encoder = mlp(model.data_dim, model.hidden[::-1], 2 * model.latent_dim)

    def forward(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, D).
        """
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", self.encode(x[i]))

    def encode(self, x: Tensor) -> dist.TorchDistribution:
        """The guide's distribution of the codes: x of shape (…, D) gives event shape (latent_dim,)."""
        loc, raw = self.encoder(x).chunk(2, dim=-1)
        code: dist.TorchDistribution = dist.Normal(loc, functional.softplus(raw) + 1e-4).to_event(1)
        return code
