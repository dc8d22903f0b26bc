"""A hierarchical variational autoencoder: layers of codes, each the prior of the one below, and a decoder to data."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.nn import functional

from ingle.models.likelihoods import Kind, Likelihood
from ingle.models.networks import Activation, decoder, mlp

__all__ = ["ConditionalNormal", "HierarchicalVAE"]

_OTHER = (
    "the guide was made for another HierarchicalVAE, whose networks between the layers it shares: make it from this "
    "model, or clear Pyro's store if that still holds the networks of an earlier one"
)
_FLOOR = 1e-4  # of a standard deviation: a code's density without a bound has no best fit


class HierarchicalVAE(nn.Module):
    r"""Data from layers of codes, the top one first, each given the one above by a network.

        z_L ~ Normal(0, I),
        z_l ~ Normal(loc_l(z_{l+1}), scale_l(z_{l+1})),   l = L - 1, …, 1,
        x   ~ likelihood(decoder(z_1)),   independent over the numbers of a datum.

    The sites are z1, the code nearest the data, to zL. With one layer it is the variational autoencoder of `VAE`. With
    `hidden=()` every map is linear and every scale of a code a learned constant; with likelihood "normal" z and x are
    then jointly Gaussian, and log p(x) is known.

    The networks are drawn at random when the model is made, `torch.manual_seed` before, and trained in place, so that
    after a fit the methods below work as they are.

    Args:
        data_shape: shape of a datum: D for columns, (height, width) or (channels, height, width) for images.
        latent_dims: dimensions (K_1, …, K_L) of the codes, nearest the data first.
        hidden: widths of the hidden layers of each network, none for a linear model.
        likelihood: "bernoulli" for 0 and 1; "normal" for real numbers with one learned scale; "heteroscedastic" with a
            mean and a scale for each number from the decoder; "categorical" for whole numbers below `levels`.
        activation: between hidden layers, "softplus", "tanh", "relu" or "silu".
        levels: of likelihood "categorical", 256 for images of 8 bits.

    Raises:
        ValueError: no layer, a size below 1, or a choice that is not among those told.

    References:
        Rezende, Mohamed and Wierstra (2014), Stochastic Backpropagation (layers of latents).
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
        Sonderby, Raiko, Maaloe, Sonderby and Winther (2016), Ladder Variational Autoencoders.
    """

    def __init__(
        self,
        data_shape: int | Sequence[int],
        latent_dims: Sequence[int] = (16, 8),
        hidden: Sequence[int] = (64,),
        likelihood: Kind = "bernoulli",
        *,
        activation: Activation = "softplus",
        levels: int = 256,
    ) -> None:
        super().__init__()
        self.data_shape = (data_shape,) if isinstance(data_shape, int) else tuple(data_shape)
        self.latent_dims = _layers(latent_dims)
        if not self.data_shape or any(not _positive(size) for size in self.data_shape):
            raise ValueError(f"data_shape must be whole numbers of 1 or more, got {self.data_shape}")
        self.hidden, self.activation = tuple(hidden), activation
        self.likelihood = Likelihood(likelihood, levels)
        self.decoder = decoder(
            self.latent_dims[0],
            self.data_shape,
            self.hidden,
            activation=activation,
            each=self.likelihood.outputs,
        )
        self.descent = nn.ModuleList(
            ConditionalNormal(above, below, self.hidden, activation, constant=not self.hidden)
            for below, above in itertools.pairwise(self.latent_dims)
        )

    @property
    def layers(self) -> int:
        """L, the number of codes of a datum."""
        return len(self.latent_dims)

    def forward(self, x: Tensor) -> None:
        """One run of the model.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: data of another shape or outside the likelihood's support.
        """
        pyro.module("decoder", self.decoder)
        self.register_descent()
        self.likelihood.check(x, self.data_shape)
        with pyro.plate("data", len(x)) as i:
            z: Tensor = pyro.sample(f"z{self.layers}", self.prior(self.layers))
            for layer in range(self.layers - 1, 0, -1):
                z = pyro.sample(f"z{layer}", self.prior(layer, z))
            pyro.sample("x", self.emission(z), obs=self.likelihood.as_observed(x[i]))

    def register_descent(self) -> None:
        """Hand the networks between the codes to Pyro, in a run of the model or of a guide that shares them.

        Raises:
            ValueError: a model and the guide of another one run together.
        """
        pyro.module("descent", self.descent)
        if is_validation_enabled():
            for name, own in self.descent.named_parameters():
                # Pyro keeps the first of two modules of one name, and would never train the other.
                if pyro.get_param_store()[f"descent$$${name}"].data_ptr() != own.data_ptr():
                    raise ValueError(_OTHER)

    def prior(self, layer: int, above: Tensor | None = None) -> dist.TorchDistribution:
        """The distribution of a layer's code given the one above.

        Args:
            layer: 1, nearest the data, to L.
            above: the code of layer + 1, shape (…, K_{layer+1}); None for the top layer.

        Returns:
            Batch shape (…), event shape (K_layer,).

        Raises:
            ValueError: no such layer, or no code above where there is one.
        """
        self._check_layer(layer)
        if (above is None) != (layer == self.layers):
            raise ValueError(f"layer {layer} of {self.layers}: give the code above for all layers but the top one")
        if above is not None:
            loc, scale = self.descent[layer - 1](above)
        else:
            loc = next(self.decoder.parameters()).new_zeros(self.latent_dims[-1])
            scale = torch.ones_like(loc)
        code: dist.TorchDistribution = dist.Normal(loc, scale).to_event(1)
        return code

    def emission(self, z: Tensor) -> dist.TorchDistribution:
        """The distribution of data given codes of the first layer.

        Args:
            z: codes z1, shape (…, K_1).

        Returns:
            Batch shape (…), event shape `data_shape`.
        """
        scale: Tensor | float = 1.0
        if self.likelihood.kind == "normal":
            scale = pyro.param("scale", torch.ones(()), constraint=constraints.softplus_positive)
        return self.likelihood(self.decoder(z), len(self.data_shape), scale)

    def decode(self, z: Tensor, layer: int = 1) -> Tensor:
        """Expected data given z1; from a higher layer, with the codes below at their means one after the other.

        Args:
            z: codes of the layer, shape (…, K_layer).
            layer: 1, nearest the data, to L.

        Returns:
            Shape (…, *data_shape): probabilities of a 1 for "bernoulli", expected levels for "categorical".

        Raises:
            ValueError: no such layer, or codes of another size.
        """
        return self._descend(z, layer, draw=False)

    def redraw(self, z: Tensor, layer: int) -> Tensor:
        """Expected data where the code of one layer is held and those below are drawn anew, at torch's random state.

        What lies above the layer that is held tells nothing more of the data. For several draws of one code give
        `z.expand(num, …)`.

        Args:
            z: codes of the layer, shape (…, K_layer).
            layer: 2 to L; at 1 nothing is left to draw, and this is `decode`.

        Returns:
            Shape (…, *data_shape).

        Raises:
            ValueError: no such layer, or codes of another size.
        """
        return self._descend(z, layer, draw=True)

    def generate(self, num: int) -> Tensor:
        """Expected data of codes from the prior, at torch's random state, on the decoder's device.

        Args:
            num: how many.

        Returns:
            Shape (num, *data_shape).
        """
        with torch.no_grad():
            return self.redraw(self.prior(self.layers).sample((num,)), self.layers)

    def _descend(self, z: Tensor, layer: int, *, draw: bool) -> Tensor:
        self._check_layer(layer)
        size = self.latent_dims[layer - 1]
        if z.dim() == 0 or z.shape[-1] != size:
            raise ValueError(f"codes of layer {layer} must have shape (…, {size}), got {tuple(z.shape)}")
        with torch.no_grad():
            for below in range(layer - 1, 0, -1):
                code = self.prior(below, z)
                z = code.sample() if draw else code.mean
            return self.likelihood.mean(self.decoder(z), len(self.data_shape))

    def _check_layer(self, layer: int) -> None:
        if not 1 <= layer <= self.layers:
            raise ValueError(f"layer must be from 1, nearest the data, to {self.layers}, the top; got {layer}")


class ConditionalNormal(nn.Module):
    """From numbers to the loc and scale of a code, by one perceptron.

    Args:
        inputs: numbers that come in.
        size: of the code, K.
        hidden: widths of the hidden layers.
        activation: between them.
        constant: whether the scale is a learned constant, and only loc follows what comes in.
    """

    def __init__(
        self, inputs: int, size: int, hidden: Sequence[int], activation: Activation, *, constant: bool
    ) -> None:
        super().__init__()
        self.network = mlp(inputs, hidden, size if constant else 2 * size, activation)
        self.raw_scale = nn.Parameter(torch.zeros(size)) if constant else None

    def forward(self, given: Tensor) -> tuple[Tensor, Tensor]:
        """Shape (…, inputs) gives loc and scale, each of shape (…, K)."""
        loc: Tensor = self.network(given)
        if self.raw_scale is None:
            loc, raw = loc.chunk(2, dim=-1)
        else:
            raw = self.raw_scale.expand(loc.shape)
        return loc, functional.softplus(raw) + _FLOOR


def _layers(sizes: Sequence[int]) -> tuple[int, ...]:
    if isinstance(sizes, int):
        raise ValueError(f"latent_dims must be the dimensions of each layer, as in ({sizes},), got {sizes}")
    found = tuple(sizes)
    if not found:
        raise ValueError("latent_dims is empty: give the dimensions of at least one layer, nearest the data first")
    if not all(_positive(size) for size in found):
        raise ValueError(f"latent_dims must be whole numbers of 1 or more, one for each layer, got {found}")
    return found


def _positive(size: object) -> bool:
    return isinstance(size, int) and not isinstance(size, bool) and size >= 1
