"""A variational autoencoder: a code for each datum, decoded by a network into the parameters of a likelihood."""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ingle.models.likelihoods import Kind, Likelihood
from ingle.models.networks import Activation, Architecture, decoder

__all__ = ["VAE"]


class VAE(nn.Module):
    r"""Data from a low-dimensional code through a decoder network.

        z_i ~ p(z),   x_i ~ likelihood(decoder(z_i)),   independent over the numbers of a datum,

    with p(z) = Normal(0, I), or with `components` > 1 a mixture of that many Gaussians, sum_k w_k Normal(m_k, s_k^2),
    whose weights, means and scales are learned. With `num_labels` the decoder is told the label y_i beside the code.

    The networks are trained in place, so that after a fit the methods below work as they are; inside
    `with fit.active():` where they meet a parameter of Pyro's store, the scale of likelihood "normal" or the mixture.
    The decoder is drawn at random when the model is made: `torch.manual_seed` before. Another network of one's own may
    be put in its place, `model.decoder = network`, from (…, latent_dim + num_labels) to (…, outputs, *data_shape).

    Args:
        data_shape: shape of a datum: D for columns, (channels, height, width) for images.
        latent_dim: dimensions K of the code.
        hidden: widths of the decoder's hidden layers, none for a linear decoder; with convolutions channels, each of
            which doubles height and width.
        likelihood: "bernoulli" for 0 and 1; "normal" for real numbers with one learned scale; "heteroscedastic" with a
            mean and a scale for each number from the decoder; "categorical" for whole numbers below `levels`.
        architecture: "mlp" or "convolutional".
        activation: between layers, "softplus", "tanh", "relu" or "silu".
        levels: of likelihood "categorical", 256 for images of 8 bits.
        components: Gaussians in the prior of the code.
        num_labels: classes that a label tells apart; 0 for a model without labels.

    Raises:
        ValueError: a size below 1, or a choice that is not among those told.

    References:
        Kingma and Welling (2014), Auto-Encoding Variational Bayes.
        Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation.
        Sohn, Lee and Yan (2015), Learning Structured Output Representation using Deep Conditional Generative Models
        (labels).
        Dilokthanakul, Mediano, Garnelo, Lee, Salimbeni, Arulkumaran and Shanahan (2016), Deep Unsupervised Clustering
        with Gaussian Mixture Variational Autoencoders (a mixture as the prior).
    """

    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dim: int = 2,
        hidden: Sequence[int] = (64,),
        likelihood: Kind = "bernoulli",
        *,
        architecture: Architecture = "mlp",
        activation: Activation = "softplus",
        levels: int = 256,
        components: int = 1,
        num_labels: int = 0,
    ) -> None:
        super().__init__()
        self.data_shape = (data_shape,) if isinstance(data_shape, int) else tuple(data_shape)
        _at_least_one("data_shape", *self.data_shape)
        _at_least_one("latent_dim", latent_dim)
        _at_least_one("components", components)
        if num_labels < 0 or num_labels == 1:
            raise ValueError(f"num_labels must be 2 or more, or 0 for a model without labels, got {num_labels}")
        self.latent_dim, self.components = latent_dim, components
        self.architecture, self.activation, self.num_labels = architecture, activation, num_labels
        self.likelihood = Likelihood(likelihood, levels)
        self.decoder = decoder(
            latent_dim + num_labels,
            self.data_shape,
            hidden,
            architecture=architecture,
            activation=activation,
            each=self.likelihood.outputs,
        )
        self.hidden = tuple(hidden)

    def forward(self, x: Tensor, label: Tensor | None = None) -> None:
        """One run of the model.

        Args:
            x: data, shape (N, *data_shape).
            label: classes 0 to num_labels - 1, integers, shape (N,); None for a model without labels.

        Raises:
            ValueError: data of another shape or outside the likelihood's support, labels that are missing or too many.
        """
        pyro.module("decoder", self.decoder)
        self.likelihood.check(x, self.data_shape)
        self.check_labels(label, len(x))
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", self.prior())
            pyro.sample(
                "x", self.emission(z, None if label is None else label[i]), obs=self.likelihood.as_observed(x[i])
            )

    def prior(self) -> dist.TorchDistribution:
        """The distribution of a code, event shape (K,)."""
        code: dist.TorchDistribution
        if self.components == 1:
            code = dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1)
            return code
        count, size = self.components, self.latent_dim
        weights = pyro.param("prior_weights", torch.full((count,), 1.0 / count), constraint=constraints.simplex)
        loc = pyro.param("prior_loc", lambda: torch.randn(count, size))
        scale = pyro.param("prior_scale", torch.ones(count, size), constraint=constraints.softplus_positive)
        code = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, scale).to_event(1))
        return code

    def emission(self, z: Tensor, label: Tensor | None = None) -> dist.TorchDistribution:
        """The distribution of data given codes.

        Args:
            z: codes, shape (…, K).
            label: integers of a model with labels, with any batch dimensions of z before them.

        Returns:
            Batch shape (…), event shape `data_shape`.
        """
        scale: Tensor | float = 1.0
        if self.likelihood.kind == "normal":
            scale = pyro.param("scale", torch.ones(()), constraint=constraints.softplus_positive)
        return self.likelihood(self._out(z, label), len(self.data_shape), scale)

    def decode(self, z: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected data given codes: probabilities of a 1 for "bernoulli", expected levels for "categorical".

        Args:
            z: codes, shape (…, K).
            label: integers, shape (…), of a model with labels.

        Returns:
            Shape (…, *data_shape).
        """
        if z.dim() == 0 or z.shape[-1] != self.latent_dim:
            raise ValueError(f"codes must have shape (…, {self.latent_dim}), got {tuple(z.shape)}")
        self.check_labels(label, *z.shape[:-1])
        with torch.no_grad():
            return self.likelihood.mean(self._out(z, label), len(self.data_shape))

    def generate(self, num: int, label: Tensor | None = None) -> Tensor:
        """Expected data of codes from the prior, at torch's random state, on the decoder's device.

        Args:
            num: how many.
            label: integers, shape (num,), of a model with labels.

        Returns:
            Shape (num, *data_shape).

        Raises:
            ValueError: a mixture as the prior, outside of `with fit.active():`.
        """
        self.check_fitted("prior_weights")
        like = next(self.decoder.parameters())
        with torch.no_grad():
            return self.decode(self.prior().sample((num,)).to(like), label)

    def interpolate(self, start: Tensor, end: Tensor, num: int = 10, label: Tensor | None = None) -> Tensor:
        """Expected data along the straight line between two codes, both ends among them.

        Args:
            start, end: codes, shape (…, K).
            num: points on the line, 2 or more.
            label: integers, shape (…), of a model with labels.

        Returns:
            Shape (num, …, *data_shape).

        Raises:
            ValueError: codes of two shapes, or fewer than 2 points.
        """
        if start.shape != end.shape or num < 2:
            raise ValueError(
                f"start and end must have one shape, and num be 2 or more; got {tuple(start.shape)}, "
                f"{tuple(end.shape)} and {num}"
            )
        self.check_labels(label, *start.shape[:-1])
        share = torch.linspace(0.0, 1.0, num).to(start).reshape(num, *[1] * start.dim())
        codes = start + share * (end - start)
        return self.decode(codes, None if label is None else label.expand(codes.shape[:-1]))

    def traverse(self, z: Tensor, dim: int, values: Tensor, label: Tensor | None = None) -> Tensor:
        """Expected data where one number of a code takes several values, and the others stay.

        Args:
            z: codes, shape (…, K).
            dim: which number of the code.
            values: shape (V,), on the code's own scale: sds of the prior, where that is no mixture.
            label: integers, shape (…), of a model with labels.

        Returns:
            Shape (V, …, *data_shape).

        Raises:
            ValueError: no such dimension.
        """
        if not -self.latent_dim <= dim < self.latent_dim:
            raise ValueError(f"dim must be one of the code's {self.latent_dim} dimensions, from 0, got {dim}")
        self.check_labels(label, *z.shape[:-1])
        codes = z.expand(len(values), *z.shape).clone()
        codes[..., dim] = values.to(z).reshape(-1, *[1] * (z.dim() - 1))
        return self.decode(codes, None if label is None else label.expand(codes.shape[:-1]))

    def check_fitted(self, *names: str) -> None:
        """Raises ValueError where parameters of this model are not in Pyro's store, which would make them up.

        Args:
            names: some of "scale", which likelihood "normal" has, and "prior_weights", which a mixture has.
        """
        has = {"scale": self.likelihood.kind == "normal", "prior_weights": self.components > 1}
        missing = [name for name in names if has[name] and name not in pyro.get_param_store()]
        if missing:
            raise ValueError(
                f"there is no fitted {' and no '.join(missing)} in Pyro's store: call it inside `with fit.active():`"
            )

    def check_labels(self, label: Tensor | None, *batch: int) -> None:
        """Raises ValueError for labels that are missing, too many, of a shape that is not `batch`, or of no class."""
        if self.num_labels == 0:
            if label is not None:
                raise ValueError("labels were given to a model without: make it with num_labels= the number of classes")
            return
        if label is None:
            raise ValueError(
                f"this model is conditional on a label: give label, integers from 0 to {self.num_labels - 1} of shape "
                f"({', '.join(map(str, batch))}{',' * (len(batch) == 1)})"
            )
        if label.shape != torch.Size(batch) or label.is_floating_point():
            raise ValueError(
                f"label must be integers of shape {batch}, got {label.dtype} of shape {tuple(label.shape)}"
            )
        if is_validation_enabled() and ((label < 0) | (label >= self.num_labels)).any():
            strange = int(((label < 0) | (label >= self.num_labels)).sum())
            raise ValueError(
                f"labels must be from 0 to {self.num_labels - 1}, and {strange} of {label.numel()} are not: they go "
                f"from {int(label.min())} to {int(label.max())}"
            )

    def one_hot(self, label: Tensor) -> Tensor:
        """Labels as the networks take them: integers, shape (…), give (…, num_labels)."""
        kinds = torch.arange(self.num_labels, device=label.device)
        # Compared and not looked up, so that nothing has to be read where a step is compiled.
        return (label.unsqueeze(-1) == kinds).to(torch.get_default_dtype())

    def _out(self, z: Tensor, label: Tensor | None) -> Tensor:
        told = z if label is None else torch.cat([z, self.one_hot(label).expand(*z.shape[:-1], -1)], dim=-1)
        out: Tensor = self.decoder(told)
        return out


def _at_least_one(name: str, *sizes: int) -> None:
    if not sizes or any(isinstance(size, bool) or not isinstance(size, int) or size < 1 for size in sizes):
        raise ValueError(f"{name} must be 1 or more, got {', '.join(map(repr, sizes)) or 'nothing'}")
