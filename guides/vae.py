"""The encoder of the variational autoencoder: an amortised guide."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ingle.models.networks import encoder, normal_code
from ingle.models.vae import VAE

__all__ = ["VAEGuide"]


class VAEGuide(nn.Module):
    """q(z_i | x_i, y_i) = Normal(loc(x_i, y_i), scale(x_i, y_i)), both from one network: new data need no new fit.

    The encoder has the architecture and the hidden widths of the decoder, reversed. It is trained in place, as the
    decoder is, so that the methods work as they are after a fit. Another network may be put in its place,
    `guide.encoder = network`, called with x, and with one-hot labels where the model has labels, for 2 K numbers.

    Args:
        model: the autoencoder that this is a guide for.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.
    """

    def __init__(self, model: VAE) -> None:
        super().__init__()
        if not isinstance(model, VAE):
            raise ValueError(f"VAEGuide is a guide of VAE, got {type(model).__name__}")
        self._model = (model,)  # in a tuple, so that the decoder is no part of the guide
        self.encoder = encoder(
            model.data_shape,
            2 * model.latent_dim,
            model.hidden[::-1],
            architecture=model.architecture,
            activation=model.activation,
            extra=model.num_labels,
        )

    @property
    def model(self) -> VAE:
        """The autoencoder that this is a guide for."""
        return self._model[0]

    def forward(self, x: Tensor, label: Tensor | None = None) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape).
            label: classes, integers, shape (N,); None for a model without labels.

        Raises:
            ValueError: as from the model.
        """
        pyro.module("encoder", self.encoder)
        self.model.likelihood.check(x, self.model.data_shape)
        self.model.check_labels(label, len(x))
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", self.encode(x[i], None if label is None else label[i]))

    def encode(self, x: Tensor, label: Tensor | None = None) -> dist.TorchDistribution:
        """The guide's distribution of the codes.

        Args:
            x: data, shape (…, *data_shape).
            label: integers, shape (…), of a model with labels.

        Returns:
            Batch shape (…), event shape (K,).

        Raises:
            ValueError: as from the model.
        """
        self.model.likelihood.check_each(x, self.model.data_shape)
        self.model.check_labels(label, *x.shape[: -len(self.model.data_shape)])
        seen = self.model.likelihood.as_input(x)
        return normal_code(self.encoder(seen) if label is None else self.encoder(seen, self.model.one_hot(label)))

    def reconstruct(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """Data through the mean of their codes and back, as expected values.

        Args:
            x: data, shape (…, *data_shape).
            label: integers, shape (…), of a model with labels.

        Returns:
            Shape (…, *data_shape).
        """
        with torch.no_grad():
            return self.model.decode(self.encode(x, label).mean, label)

    def activity(self, x: Tensor, label: Tensor | None = None) -> Tensor:
        """How much each number of the code moves with the data: the variance over data of its mean, over the prior's.

        A number whose activity is below 0.01 is inactive: the guide leaves it at the prior, and the decoder learned to
        do without. `int((guide.activity(x) > 0.01).sum())` counts the active ones.

        Args:
            x: data, shape (N, *data_shape), N of 2 or more.
            label: integers, shape (N,), of a model with labels.

        Returns:
            Shape (K,), in the units of the prior's variance.

        Raises:
            ValueError: a single datum, as from the model, or a mixture as the prior outside of `with fit.active():`.

        References:
            Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.2.
        """
        self.model.likelihood.check(x, self.model.data_shape)
        if len(x) < 2:
            raise ValueError(f"a variance over data wants 2 or more of them, got {len(x)}")
        self.model.check_fitted("prior_weights")
        with torch.no_grad():
            mean = self.encode(x, label).mean
            return mean.var(0) / self.model.prior().variance.to(mean)
