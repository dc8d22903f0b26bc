"""Images with missing pixels: an autoencoder that is trained on, and asked about, the pixels that were seen."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn

from ingle.models.vae import VAE

__all__ = ["ImageCompletion"]


class ImageCompletion(nn.Module):
    r"""Data of which any numbers may be missing, from a code through the decoder of an autoencoder.

        z_i ~ p(z),   x_ij ~ likelihood(decoder(z_i))_j   for every pixel j that was seen in image i.

    Given z the pixels are independent, so that those not seen are integrated out by leaving them out:
    p(seen_i) = ∫ p(z) prod_{j seen} p(x_ij | z) dz. A fit to images with missing pixels is therefore maximum likelihood
    of what was seen, as long as what is missing does not depend on the values that are missing. Whatever stands in the
    missing places, NaN included, is never used.

    To train a guide that completes images, give it masks like those that it will meet: an image may stand in the data
    several times, whole and with different parts hidden. To learn from images that are incomplete themselves, give each
    with its own mask.

    Args:
        vae: the autoencoder whose prior, decoder and likelihood this takes, trained or not; without labels.

    Raises:
        ValueError: an autoencoder that is conditional on labels.

    References:
        Rubin (1976), Inference and Missing Data (when missing pixels may be left out).
        Nazabal, Olmos, Ghahramani and Valera (2020), Handling Incomplete Heterogeneous Data using VAEs.
        Mattei and Frellsen (2019), MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets.
    """

    def __init__(self, vae: VAE) -> None:
        super().__init__()
        if vae.num_labels:
            raise ValueError(
                f"images are completed without labels, and this autoencoder is conditional on {vae.num_labels} of "
                "them: make it with num_labels=0"
            )
        self.vae = vae

    def forward(self, x: Tensor, seen: Tensor) -> None:
        """One run of the model.

        Args:
            x: data, shape (N, *data_shape), anything in the missing places.
            seen: bool, True where a pixel was seen, of the shape of x; or (*data_shape), one mask for all.

        Raises:
            ValueError: shapes or kinds that do not fit, an image with nothing seen, seen pixels that are NaN or outside
                the likelihood's support.
        """
        seen = self.mask_of(x, seen)
        pyro.module("decoder", self.vae.decoder)
        with pyro.plate("data", len(x)) as i:
            z = pyro.sample("z", self.vae.prior())
            known = self.vae.likelihood.as_observed(torch.where(seen[i], x[i], 0))
            pyro.sample("x", self.emission(z, seen[i]), obs=known)

    def emission(self, z: Tensor, which: Tensor) -> dist.TorchDistribution:
        """The distribution of data given codes, whose density is that of some of the pixels alone.

        Args:
            z: codes, shape (…, K).
            which: bool, the pixels that count, shape (*data_shape) with any batch dimensions of z before.

        Returns:
            Batch shape (…), event shape `data_shape`; draws are of all pixels.
        """
        whole: Any = self.vae.emission(z)
        some: dist.TorchDistribution = whole.base_dist.mask(which).to_event(len(self.vae.data_shape))
        return some

    def mask_of(self, x: Tensor, seen: Tensor) -> Tensor:
        """The mask of each image, once mask and data were checked; values are looked at where Pyro's validation is on.

        Args:
            x: data, shape (N, *data_shape).
            seen: bool, of the shape of x, or (*data_shape).

        Returns:
            bool, of the shape of x.

        Raises:
            ValueError: as from a run.
        """
        shape = torch.Size(self.vae.data_shape)
        if x.shape[1:] != shape or x.dim() != len(shape) + 1:
            self.vae.likelihood.check(x, shape)  # which says what is wrong with the shape
        if seen.dtype != torch.bool:
            raise ValueError(
                f"seen must be bool, True where a pixel was seen, got {seen.dtype}: give seen == 1, or ~x.isnan() "
                "where missing pixels are NaN"
            )
        if seen.shape not in (x.shape, shape):
            raise ValueError(
                f"seen must have the shape of x, {tuple(x.shape)}, or {tuple(shape)} for one mask for all images; got "
                f"{tuple(seen.shape)}"
            )
        seen = seen.expand(x.shape)
        if is_validation_enabled():
            self._check_values(torch.where(seen, x, 0), seen)
        return seen

    def _check_values(self, known: Tensor, seen: Tensor) -> None:
        hidden = ~seen.flatten(1).any(1)
        if hidden.any():
            raise ValueError(
                f"the mask hides every pixel of {int(hidden.sum()):,} of the {len(seen):,} images, the first image "
                f"{int(hidden.nonzero()[0])}: nothing is left to complete them from. seen is True where a pixel was "
                "seen; leave such images out, or draw new ones by vae.generate"
            )
        strange = ~torch.isfinite(known)
        if strange.any():
            raise ValueError(
                f"{int(strange.sum()):,} of the {int(seen.sum()):,} pixels that seen calls seen are NaN or infinite, "
                f"the first at {strange.nonzero()[0].tolist()}: mark them as missing, seen & x.isfinite()"
            )
        self.vae.likelihood.check(known, self.vae.data_shape)
