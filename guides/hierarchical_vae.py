"""Guides of the hierarchical variational autoencoder: from the data up, and a ladder that comes down again."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions import kl_divergence

from ingle.models.hierarchical_vae import ConditionalNormal, HierarchicalVAE
from ingle.models.networks import features

__all__ = ["HierarchicalVAEBottomUpGuide", "HierarchicalVAELadderGuide"]

Take = Callable[[str, Any], Tensor]


class _Guide(nn.Module):
    """What both guides do with their codes; `walk` is their own."""

    downward: bool  # whether each code is drawn given the one above, as the model draws it

    def __init__(self, model: HierarchicalVAE) -> None:
        super().__init__()
        if not isinstance(model, HierarchicalVAE):
            raise ValueError(f"{type(self).__name__} is a guide of HierarchicalVAE, got {type(model).__name__}")
        self._model = (model,)  # in a tuple, so that the decoder is no part of the guide

    @property
    def model(self) -> HierarchicalVAE:
        """The autoencoder that this is a guide for."""
        return self._model[0]

    def walk(self, x: Tensor, take: Take) -> dict[str, Any]:
        """Go through the codes in the guide's order.

        Args:
            x: data, shape (…, *data_shape).
            take: from a site's name and distribution to its value: `pyro.sample`, or a mean.

        Returns:
            By site the distribution that its value was taken from, batch shape (…), event shape (K_l,).
        """
        raise NotImplementedError

    def encode(self, x: Tensor, *, draw: bool = False) -> dict[str, Tensor]:
        """Codes of data, layer by layer: each at its mean given those taken before it, or drawn.

        Args:
            x: data, shape (…, *data_shape).
            draw: draw the codes, at torch's random state.

        Returns:
            `z1` to `zL`, each of shape (…, K_l).
        """
        return self._taken(x, draw=draw)[1]

    def reconstruct(self, x: Tensor, layer: int = 1) -> Tensor:
        """Data through their codes and back, as expected values, all at means.

        Args:
            x: data, shape (…, *data_shape).
            layer: go back from the code of this layer, and have those below from the model: what upper layers know.

        Returns:
            Shape (…, *data_shape).

        Raises:
            ValueError: no such layer.
        """
        codes = self.encode(x)
        return self.model.decode(codes.get(f"z{layer}", x.new_zeros(())), layer)

    def kl(self, x: Tensor, num_samples: int = 10) -> tuple[Tensor, Tensor]:
        r"""What each layer costs in the ELBO: E_q[log q(z_l | …) - log p(z_l | z_{l+1})].

        Summed over layers it is what the ELBO lacks of E_q[log p(x | z_1)]. Where the guide draws the code above first,
        as the ladder does, each term is the divergence between both distributions of z_l, by formula at the draws of
        z_{l+1}. Going up it is so for the top layer alone, and the others are averages of draws, which can be negative.

        Args:
            x: data, shape (N, *data_shape).
            num_samples: draws of the codes for each datum, 2 or more.

        Returns:
            In nats a datum, nearest the data first, and the standard error over draws for these data; shapes (L,).

        Raises:
            ValueError: fewer than 2 draws, or data of another shape or outside the likelihood's support.
        """
        if num_samples < 2:
            raise ValueError(f"num_samples must be 2 or more for a standard error, got {num_samples}")
        self.model.likelihood.check(x, self.model.data_shape)
        with torch.no_grad():
            drawn = self._divergences(x.expand(num_samples, *x.shape))
            error = (drawn.var(0).sum(0) / num_samples).sqrt() / len(x)
            return drawn.mean((0, 1)), error

    def activity(self, x: Tensor, num_samples: int = 10) -> list[Tensor]:
        """How much each number of each code moves with the data: the variance over data of its mean given the datum.

        From two sets of draws, whose covariance over data is not raised by their noise. A number is active above 0.01,
        so that `[int((layer > 0.01).sum()) for layer in guide.activity(x)]` counts them.

        Args:
            x: data, shape (N, *data_shape), N of 2 or more.
            num_samples: draws in each of the two sets.

        Returns:
            For each layer, nearest the data first, shape (K_l,).

        Raises:
            ValueError: fewer than 2 data, no draw, or data of another shape or outside the likelihood's support.

        References:
            Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders, section 5.2.
        """
        self.model.likelihood.check(x, self.model.data_shape)
        if len(x) < 2 or num_samples < 1:
            raise ValueError(f"a variance over data wants 2 or more of them and a draw, got {len(x)} and {num_samples}")
        found = []
        codes = self.encode(x.expand(2, num_samples, *x.shape), draw=True)
        for layer in range(1, self.model.layers + 1):
            one, other = codes[f"z{layer}"].mean(1)
            found.append(((one - one.mean(0)) * (other - other.mean(0))).sum(0) / (len(x) - 1))
        return found

    def _taken(self, x: Tensor, *, draw: bool) -> tuple[dict[str, Any], dict[str, Tensor]]:
        values: dict[str, Tensor] = {}

        def take(name: str, code: Any) -> Tensor:
            values[name] = code.sample() if draw else code.mean
            return values[name]

        with torch.no_grad():
            return self.walk(x, take), values

    def _divergences(self, x: Tensor) -> Tensor:
        """Of one draw of each code, shape (…, L); by formula where the code above was drawn first."""
        codes, values = self._taken(x, draw=True)
        found = []
        for layer in range(1, self.model.layers + 1):
            q, z = codes[f"z{layer}"], values[f"z{layer}"]
            p = self.model.prior(layer, values.get(f"z{layer + 1}"))
            by_formula = self.downward or layer == self.model.layers
            found.append(kl_divergence(q, p.expand(q.batch_shape)) if by_formula else q.log_prob(z) - p.log_prob(z))
        return torch.stack(found, dim=-1)

    def _run(self, x: Tensor) -> None:
        self.model.likelihood.check(x, self.model.data_shape)
        with pyro.plate("data", len(x)) as i:
            self.walk(x[i], pyro.sample)

    def _flat(self, x: Tensor) -> Tensor:
        self.model.likelihood.check_each(x, self.model.data_shape)
        return self.model.likelihood.as_input(x).flatten(-len(self.model.data_shape))


class HierarchicalVAEBottomUpGuide(_Guide):
    """q(z_1 | x) q(z_2 | z_1) … q(z_L | z_{L-1}), each normal, by one network for each layer.

    A layer above the first sees the data only through the draw below it. Sites are drawn in another order than the
    model's, so that `TraceMeanField_ELBO` is not for this guide.

    Args:
        model: the autoencoder that this is a guide for.

    Raises:
        ValueError: another model.

    References:
        Burda, Grosse and Salakhutdinov (2016), Importance Weighted Autoencoders.
    """

    downward = False

    def __init__(self, model: HierarchicalVAE) -> None:
        super().__init__(model)
        sizes = (_size(model), *model.latent_dims)
        self.ascent = nn.ModuleList(
            ConditionalNormal(below, above, model.hidden[::-1], model.activation, constant=not model.hidden)
            for below, above in itertools.pairwise(sizes)
        )

    def forward(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        pyro.module("ascent", self.ascent)
        self._run(x)

    def walk(self, x: Tensor, take: Take) -> dict[str, Any]:
        """As told there: from the first layer up."""
        found: dict[str, Any] = {}
        below = self._flat(x)
        for layer, network in enumerate(self.ascent, 1):
            found[f"z{layer}"] = code = dist.Normal(*network(below)).to_event(1)
            below = take(f"z{layer}", code)
        return found


class HierarchicalVAELadderGuide(_Guide):
    r"""Up without draws, then down, where what the data say of a layer meets what the layer above says.

        d_l = network_l(d_{l-1}),   d_0 = x,
        q(z_L | x) = Normal(loc_L(d_L), scale_L(d_L)),
        q(z_l | z_{l+1}, x) proportional to Normal(loc_l(d_l), scale_l(d_l)) p(z_l | z_{l+1}),

    the last normal with the sum of both precisions. The model's own p(z_l | z_{l+1}) is part of the guide, so that a
    layer on which the data say nothing follows the one above. It draws in the model's order, and `TraceMeanField_ELBO`
    takes its divergences by formula. A layer is easily shut before it has learned to tell the data
    apart, q at p and no way back, unless the divergence comes in slowly: `Trace_ELBO(kl_scale=Anneal(steps=…))` over
    half of the steps.

    Args:
        model: the autoencoder that this is a guide for.

    Raises:
        ValueError: another model.

    References:
        Sonderby, Raiko, Maaloe, Sonderby and Winther (2016), Ladder Variational Autoencoders.
    """

    downward = True

    def __init__(self, model: HierarchicalVAE) -> None:
        super().__init__(model)
        blocks: list[nn.Module] = []
        heads: list[nn.Module] = []
        size = _size(model)
        for latent in model.latent_dims:
            blocks.append(features(size, model.hidden[::-1], model.activation))
            size = model.hidden[0] if model.hidden else size
            heads.append(ConditionalNormal(size, latent, (), model.activation, constant=not model.hidden))
        self.ascent, self.heads = nn.ModuleList(blocks), nn.ModuleList(heads)

    def forward(self, x: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape).

        Raises:
            ValueError: as from the model.
        """
        pyro.module("ascent", self.ascent)
        pyro.module("heads", self.heads)
        self.model.register_descent()
        self._run(x)

    def walk(self, x: Tensor, take: Take) -> dict[str, Any]:
        """As told there: from the top layer down."""
        told = []
        seen = self._flat(x)
        for block, head in zip(self.ascent, self.heads, strict=True):
            seen = block(seen)
            told.append(head(seen))
        found: dict[str, Any] = {}
        above: Tensor | None = None
        for layer in range(self.model.layers, 0, -1):
            loc, scale = told[layer - 1]
            if above is not None:
                prior = self.model.prior(layer, above)
                precision, least = scale**-2, prior.variance**-1
                scale = (precision + least).rsqrt()
                loc = (loc * precision + prior.mean * least) * scale.square()
            found[f"z{layer}"] = code = dist.Normal(loc, scale).to_event(1)
            above = take(f"z{layer}", code)
        return found


def _size(model: HierarchicalVAE) -> int:
    return torch.Size(model.data_shape).numel()
