"""The encoder of image completion, which is told what was seen, and completions by importance resampling."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ingle.models.image_completion import ImageCompletion
from ingle.models.networks import encoder, normal_code

__all__ = ["Completions", "ImageCompletionGuide"]

_AT_ONCE = 2**23  # numbers that the decoder puts out together
_RATE, _PARTICLES = 0.05, 4  # of the ascent of `refine`
_KEPT = 5  # one in so many codes still comes from the encoder, since a normal of one's own finds one mode of several


@dataclass(frozen=True)
class Completions:
    """Images with their missing pixels drawn, and how far the draws are to be trusted.

    Attributes:
        x: seen pixels as they are, the others drawn from p(missing | seen); shape (num_completions, N, *data_shape).
        expected: expected values of the missing pixels, weighted over all draws of the code, and the seen pixels as
            they are; floating, shape (N, *data_shape).
        z: the codes of the completions, shape (num_completions, N, K).
        ess: effective sample size of each image's weights, shape (N,), at most `num_samples`. Below some tens the
            completions hang on a few codes: they repeat each other and look surer than they are, which more
            `num_samples`, some steps of `refine` or a longer fit mend. A mode that no draw came near it cannot show.
        log_seen: estimate of log p(seen pixels) in nats, shape (N,), and `log_seen_se`, its standard error.
    """

    x: Tensor
    expected: Tensor
    z: Tensor
    ess: Tensor
    log_seen: Tensor
    log_seen_se: Tensor


class ImageCompletionGuide(nn.Module):
    """q(z_i | seen_i) = Normal(loc, scale), both from one network that is given the seen pixels and the mask.

    Missing pixels are 0 at the network's entrance, with the mask beside them as further channels, so that a 0 that was
    seen is told from one that was not. New images, and new masks of a kind that training had, need no new fit; a mask
    of another kind shows in a poor `ess`, and wants `refine`. Networks are trained in place; call the methods
    inside `with fit.active():`, where the fit's dtype and parameters are.

    `complete` weighs its draws of the code, and is what to use; `fit.predict((x, seen), new=("data",))` draws from the
    encoder as it is. log p(missing | seen) is `log_missing`, or by the library, each term with its k-hat and verdict:

        everything = torch.ones_like(seen)
        with fit.active():
            whole = ingle.log_evidence(model, guide, (x, everything), per="data")
            part = ingle.log_evidence(model, guide, (x, seen), per="data")
        log_p = whole.pointwise.log_z - part.pointwise.log_z
        se = np.hypot(whole.pointwise.se, part.pointwise.se)

    Args:
        model: the model that this is a guide for.
        hidden: widths of the encoder's layers, or channels of its convolutions; None takes the decoder's, reversed.

    References:
        Ivanov, Figurnov and Vetrov (2019), Variational Autoencoder with Arbitrary Conditioning (mask beside the data).
        Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets (completions
        by importance sampling).
        Kim, Wiseman, Miller, Sontag and Rush (2018), Semi-Amortized Variational Autoencoders (`refine`).
    """

    def __init__(self, model: ImageCompletion, hidden: Sequence[int] | None = None) -> None:
        super().__init__()
        self._model = (model,)  # in a tuple, so that the decoder is no part of the guide
        vae = model.vae
        self.encoder = encoder(
            (2 * vae.data_shape[0], *vae.data_shape[1:]),
            2 * vae.latent_dim,
            vae.hidden[::-1] if hidden is None else hidden,
            architecture=vae.architecture,
            activation=vae.activation,
        )

    @property
    def model(self) -> ImageCompletion:
        """The model that this is a guide for."""
        return self._model[0]

    def forward(self, x: Tensor, seen: Tensor) -> None:
        """One run of the guide.

        Args:
            x: data, shape (N, *data_shape), anything in the missing places.
            seen: bool, of the shape of x, or (*data_shape), one mask for all.

        Raises:
            ValueError: as from the model.
        """
        seen = self.model.mask_of(x, seen)
        pyro.module("encoder", self.encoder)
        with pyro.plate("data", len(x)) as i:
            pyro.sample("z", self._code(x[i], seen[i]))

    def encode(self, x: Tensor, seen: Tensor) -> dist.TorchDistribution:
        """The guide's distribution of the codes, as the network gives it, without weights.

        Args:
            x: data, shape (N, *data_shape).
            seen: bool, of the shape of x, or (*data_shape).

        Returns:
            Batch shape (N,), event shape (K,).
        """
        with torch.no_grad():
            return self._code(x, self.model.mask_of(x, seen))

    def complete(
        self, x: Tensor, seen: Tensor, num_completions: int = 5, num_samples: int = 1_000, refine: int = 0
    ) -> Completions:
        """Draws of the missing pixels given the seen ones, at torch's random state.

        Codes are drawn from the guide, weighed by p(seen, z) / q(z), resampled by those weights and decoded: as
        `num_samples` grows, exact draws from the model's p(missing | seen), whatever the encoder lacks.

        Args:
            x: data, shape (N, *data_shape), in the dtype and on the device of the fit, anything in the missing places.
            seen: bool, of the shape of x, or (*data_shape), one mask for all.
            num_completions: draws for each image.
            num_samples: codes for each image that are weighed; the completions are drawn from among them.
            refine: steps of gradient ascent on each image's own ELBO before, from the encoder's answer, after which q
                is normal with a full covariance; a fifth of the codes still comes from the encoder, and finds a mode
                that this normal left. Costs `refine` passes forward and back: worth it where `ess` is poor.

        Raises:
            ValueError: as from the model, or numbers below 1.
        """
        for name, value, least in (
            ("num_completions", num_completions, 1),
            ("num_samples", num_samples, 1),
            ("refine", refine, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be a whole number of {least} or more, got {value!r}")
        seen = self.model.mask_of(x, seen)
        z, log_weight = self._weighed(x, seen, num_samples, refine)
        share = log_weight.softmax(0)
        with torch.no_grad():
            chosen = torch.multinomial(share.T, num_completions, replacement=True).T
            codes = z.gather(0, chosen.unsqueeze(-1).expand(-1, -1, z.shape[-1]))
            drawn = torch.cat([self.model.vae.emission(part).sample() for part in self._parts(codes)])
            expected = torch.zeros_like(x, dtype=z.dtype)
            for part, weight in zip(self._parts(z), self._parts(share), strict=True):
                expected += torch.einsum("sn,sn...->n...", weight.to(z.dtype), self.model.vae.decode(part))
        log_seen, se, ess = _summed_up(log_weight)
        return Completions(
            x=torch.where(seen, x, drawn.to(x.dtype)),
            expected=torch.where(seen, x.to(z.dtype), expected),
            z=codes,
            ess=ess,
            log_seen=log_seen,
            log_seen_se=se,
        )

    def log_missing(
        self, x: Tensor, seen: Tensor, num_samples: int = 1_000, refine: int = 0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log p(missing | seen) = log p(x) - log p(seen) of whole images, with its standard error and sample size.

        Each term is an estimate by importance sampling and lies too low on average, by half its squared error. So the
        difference is no bound: where log p(seen) is too low, it lies too high, by nats where few codes hold the weight.
        The standard error holds where the effective sample size is above a hundred or so; `refine` raises it.

        Args:
            x: whole data, shape (N, *data_shape).
            seen: bool, of the shape of x, or (*data_shape).
            num_samples, refine: as for `complete`, for each term.

        Returns:
            Estimate and standard error in nats, 0 where nothing is missing, and the effective sample size of the term
            where it is smaller; each of shape (N,), float64.

        Raises:
            ValueError: as from the model, for the pixels outside of the mask too.
        """
        seen = self.model.mask_of(x, seen)
        everything = self.model.mask_of(x, torch.ones_like(seen))
        whole, whole_se, whole_ess = _summed_up(self._weighed(x, everything, num_samples, refine)[1])
        part, part_se, part_ess = _summed_up(self._weighed(x, seen, num_samples, refine)[1])
        none = seen.flatten(1).all(1)
        se = torch.hypot(whole_se, part_se)
        return (whole - part).masked_fill(none, 0.0), se.masked_fill(none, 0.0), torch.minimum(whole_ess, part_ess)

    def score(
        self, x: Tensor, seen: Tensor, num_samples: int = 1_000, refine: int = 0, *, weighted: bool = True
    ) -> Tensor:
        """The log score of completions: the density that the codes they are drawn from give the true missing pixels.

        log sum_s w_s p(missing | z_s), w the weights of `complete`; too low on average, the less the more draws. With
        `weighted=False` every weight is one: what completions from the encoder alone would score.

        Args:
            x: whole data, shape (N, *data_shape).
            seen: bool, of the shape of x, or (*data_shape).
            num_samples, refine: as for `complete`.
            weighted: by p(seen, z) / q(z).

        Returns:
            In nats, shape (N,), float64.

        Raises:
            ValueError: as from the model, for the pixels outside of the mask too.
        """
        seen = self.model.mask_of(x, seen)
        self.model.mask_of(x, torch.ones_like(seen))
        z, log_weight = self._weighed(x, seen, num_samples, refine)
        share = (log_weight if weighted else torch.zeros_like(log_weight)).log_softmax(0)
        with torch.no_grad():
            log_p = torch.cat([self._log_p(part, x, ~seen) for part in self._parts(z)])
        return (share + log_p).logsumexp(0)

    def _code(self, x: Tensor, seen: Tensor) -> dist.TorchDistribution:
        channel = -len(self.model.vae.data_shape)
        values = self.model.vae.likelihood.as_input(torch.where(seen, x, 0))
        return normal_code(self.encoder(torch.cat([values, seen.to(values.dtype)], dim=channel)))

    def _weighed(self, x: Tensor, seen: Tensor, num_samples: int, refine: int) -> tuple[Tensor, Tensor]:
        """Codes from the guide, shape (num_samples, N, K), and log p(seen, z) - log q(z), (num_samples, N), float64."""
        self.model.vae.check_fitted("scale", "prior_weights")
        with torch.no_grad():
            amortised: Any = self._code(x, seen)
        sources = [(amortised, num_samples)]
        if refine:
            kept = num_samples // _KEPT
            sources = [(self._refined(amortised, x, seen, refine), num_samples - kept), (amortised, kept)]
        with torch.no_grad():
            z = torch.cat([code.sample((num,)) for code, num in sources])
            # All against the mixture of both, so that a code counts the same whichever drew it.
            log_q = [code.log_prob(z).double() + math.log(num / num_samples) for code, num in sources if num]
            log_p = torch.cat([self._log_p(part, x, seen) for part in self._parts(z)])
            log_weight: Tensor = log_p + self.model.vae.prior().log_prob(z) - torch.stack(log_q).logsumexp(0)
            return z, log_weight

    def _log_p(self, z: Tensor, x: Tensor, which: Tensor) -> Tensor:
        """Log p of some pixels given codes, shape (S, N), float64."""
        log_p: Tensor = self.model.emission(z, which).log_prob(torch.where(which, x, 0)).double()
        return log_p

    def _refined(self, code: Any, x: Tensor, seen: Tensor, steps: int) -> dist.MultivariateNormal:
        """The ELBO of each image climbed by a normal of its own, from where the encoder put it."""
        loc, scale = code.mean.clone().requires_grad_(), code.variance.sqrt()
        log_scale = scale.log().requires_grad_()
        below = torch.zeros(*loc.shape, loc.shape[-1]).to(loc).requires_grad_()
        own = [loc, log_scale, below]
        optimiser = torch.optim.Adam(own, lr=_RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)

        def normal(*at: Tensor) -> dist.MultivariateNormal:
            mean, log_sd, lower = at
            tril = log_sd.exp().unsqueeze(-1) * (torch.eye(mean.shape[-1]).to(mean) + lower.tril(-1))
            return dist.MultivariateNormal(mean, scale_tril=tril)

        with torch.enable_grad():
            prior: Any = self.model.vae.prior()
            for _ in range(steps):
                z = normal(*own).rsample((_PARTICLES,))
                # Without the path through q's own parameters the noise goes to none as q becomes the posterior.
                log_q = normal(*(each.detach() for each in own)).log_prob(z)
                bound = self._log_p(z, x, seen) + prior.log_prob(z) - log_q
                gradients = torch.autograd.grad(-bound.mean(0).sum(), own)
                for each, gradient in zip(own, gradients, strict=True):
                    each.grad = gradient
                optimiser.step()
                schedule.step()
        return normal(*(each.detach() for each in own))

    def _parts(self, values: Tensor) -> Iterator[Tensor]:
        """Draws, shape (S, N, …), in pieces that the decoder takes together."""
        vae = self.model.vae
        size = values.shape[1] * torch.Size(vae.data_shape).numel() * vae.likelihood.outputs
        return iter(values.split(max(1, _AT_ONCE // size)))


def _summed_up(log_weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The log of the mean over draws, the first dimension, its standard error by the delta method, and the ESS."""
    n = len(log_weight)
    even = log_weight.softmax(0).square().sum(0)
    return log_weight.logsumexp(0) - math.log(n), (even - 1 / n).clamp(min=0.0).sqrt(), 1 / even
