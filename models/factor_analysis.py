"""Factor analysis and probabilistic PCA: a Gaussian code for each row, decoded by a matrix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from torch import Tensor

__all__ = ["FactorAnalysis", "encoder"]

_NOISES = ("isotropic", "diagonal")
_SMALLEST, _LARGEST = 1e-3, 1e3  # standard deviations of columns that the start and the usual learning rates suit
_ROUNDING = 1e-6  # of a column's size, below which it is constant


@dataclass(frozen=True)
class FactorAnalysis:
    """Rows with D correlated columns from K < D independent factors; what is not shared is noise.

    z_i ~ Normal(0, I_K), x_i ~ Normal(mean + loading z_i, diag(noise_scale^2)).

    With isotropic noise this is probabilistic PCA: where the likelihood is highest, the columns of `loading` span the
    leading principal axes. With diagonal noise it is factor analysis, which follows the columns into other units.
    `loading`, `mean` and `noise_scale` are parameters, fitted by maximum likelihood; `loading` is known up to a
    rotation of the factors. `mean` starts at the column means, `loading` at normal numbers of `seed`, `noise_scale`
    at one, so that standardised columns, (x - x.mean(0)) / x.std(0), go well.

    The methods that take the fitted parameters are called inside `with fit.active():`.

    Args:
        data_dim: D.
        latent_dim: K, below D.
        noise: "isotropic", one scale for all columns, or "diagonal", one for each.
        floor: the least noise scale, in the units of the data. The likelihood of factor analysis has no upper bound: it
            grows without end as the noise of a constant column, or of one that a factor copies, goes to zero. There
            the noise scale stops at the floor, and says so by being near it.
        seed: of the loading at the start, which is drawn on the CPU whatever the random state.

    Raises:
        ValueError: sizes that leave nothing to explain, a noise that is neither, a floor that is not positive.

    References:
        Tipping and Bishop (1999), Probabilistic Principal Component Analysis.
        Rubin and Thayer (1982), EM Algorithms for ML Factor Analysis.
    """

    data_dim: int
    latent_dim: int
    noise: Literal["isotropic", "diagonal"] = "diagonal"
    floor: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        if self.noise not in _NOISES:
            raise ValueError(f"noise must be 'isotropic' or 'diagonal', got {self.noise!r}")
        if not 1 <= self.latent_dim < self.data_dim:
            raise ValueError(
                f"latent_dim must be at least 1 and below data_dim, got {self.latent_dim} factors for {self.data_dim} "
                "columns: as many factors as columns would explain anything"
            )
        if not 0 < self.floor < 1:
            raise ValueError(f"floor must be above 0 and below 1, where noise_scale starts, got {self.floor}")

    def __call__(self, x: Tensor) -> None:
        """One run of the model.

        Args:
            x: data, shape (N, D).

        Raises:
            ValueError: x has other columns than `data_dim`, or one whose scale asks to be standardised.
        """
        loading, mean, noise_scale = self.parameters(x)
        with pyro.plate("row", len(x)) as i:
            z = pyro.sample("z", dist.Normal(torch.zeros(self.latent_dim), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(mean + z @ loading.T, noise_scale).to_event(1), obs=x[i])

    def parameters(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """`loading`, `mean` and `noise_scale` as a program sees them, made at the first call.

        Args:
            x: data, shape (N, D), for the start.

        Returns:
            Shapes (D, K), (D,) and (D,).

        Raises:
            ValueError: as from a run.
        """
        self._check_columns(x)
        loading = pyro.param("loading", lambda: self._start(x))
        mean = pyro.param("mean", lambda: x.mean(0))
        one = torch.ones(()) if self.noise == "isotropic" else torch.ones(self.data_dim)
        noise_scale = pyro.param("noise_scale", one, constraint=constraints.greater_than(self.floor))
        return loading, mean, noise_scale.expand(self.data_dim)

    def marginal(self) -> dist.LowRankMultivariateNormal:
        """The fitted distribution of a row: Normal(mean, loading loading' + diag(noise_scale^2)), event shape (D,)."""
        loading, mean, noise_scale = self._fitted()
        return dist.LowRankMultivariateNormal(mean, loading, noise_scale.square())

    def log_evidence(self, x: Tensor) -> Tensor:
        """Exact log p(x_i) at the fitted parameters, in nats.

        Args:
            x: data, shape (N, D), in the dtype and on the device of the fit.

        Returns:
            Shape (N,).
        """
        self._check_columns(x)
        log_p: Tensor = self.marginal().log_prob(x)
        return log_p

    def posterior(self, x: Tensor) -> dist.MultivariateNormal:
        """Exact p(z_i | x_i) at the fitted parameters.

        Its precision, I + loading' diag(noise_scale^-2) loading, is the same for every row.

        Args:
            x: data, shape (N, D), in the dtype and on the device of the fit.

        Returns:
            Batch shape (N,), event shape (K,).
        """
        self._check_columns(x)
        loading, mean, noise_scale = self._fitted()
        weights, scale_tril = encoder(loading, noise_scale)
        return dist.MultivariateNormal((x - mean) @ weights.T, scale_tril=scale_tril)

    def axes(self) -> Tensor:
        """An orthonormal basis of what the fitted loading spans, by falling variance: the leading principal axes.

        Returns:
            Shape (D, K). With diagonal noise they are those of loading loading', the shared part.
        """
        loading, _, _ = self._fitted()
        left: Tensor = torch.linalg.svd(loading, full_matrices=False)[0]
        return left

    def closed_form(self, x: Tensor) -> dict[str, Tensor]:
        """Where the likelihood of probabilistic PCA is highest: what a fit should find.

        Args:
            x: data, shape (N, D).

        Returns:
            `loading` of shape (D, K), its columns along the principal axes; `mean`, (D,); `noise_scale`, ().

        Raises:
            ValueError: diagonal noise, for which there is no closed form.
        """
        if self.noise != "isotropic":
            raise ValueError("factor analysis has no closed form: closed_form is for noise='isotropic'")
        self._check_columns(x)
        mean = x.mean(0)
        values, vectors = torch.linalg.eigh((x - mean).T @ (x - mean) / len(x))
        left_over = values[: -self.latent_dim].mean().clamp(min=self.floor**2)
        lengths = (values[-self.latent_dim :] - left_over).clamp(min=0.0).sqrt()
        return {
            "loading": (vectors[:, -self.latent_dim :] * lengths).flip(-1),
            "mean": mean,
            "noise_scale": left_over.sqrt(),
        }

    def _start(self, x: Tensor) -> Tensor:
        # Only where a fit begins: a few new rows that are alike are no reason to refuse a prediction.
        spread = x.std(0, correction=0)
        varies = spread > _ROUNDING * x.abs().amax(0)
        beyond = varies & ((spread > _LARGEST) | (spread < _SMALLEST))
        if bool(beyond.any()):
            column = int(beyond.nonzero()[0])
            raise ValueError(
                f"column {column} of x has a standard deviation of {float(spread[column]):.2g}, and the columns go "
                f"from {float(spread[varies].min()):.2g} to {float(spread[varies].max()):.2g}: standardise them first, "
                "(x - x.mean(0)) / x.std(0); standard deviations from 0.001 to 1,000 are taken"
            )
        generator = torch.Generator("cpu").manual_seed(self.seed)
        start = torch.randn(self.data_dim, self.latent_dim, generator=generator, dtype=torch.float64, device="cpu")
        return (0.5 * start).to(x)

    def _fitted(self) -> tuple[Tensor, Tensor, Tensor]:
        names = ("loading", "mean", "noise_scale")
        if any(name not in pyro.get_param_store() for name in names):
            raise ValueError("there are no fitted parameters here: call it inside `with fit.active():`")
        loading, mean, noise_scale = (pyro.param(name).detach() for name in names)
        return loading, mean, noise_scale.expand(self.data_dim)

    def _check_columns(self, x: Tensor) -> None:
        if x.dim() != 2 or x.shape[-1] != self.data_dim:
            raise ValueError(f"x must have shape (rows, {self.data_dim}), since data_dim is that; got {tuple(x.shape)}")


def encoder(loading: Tensor, noise_scale: Tensor) -> tuple[Tensor, Tensor]:
    """The posterior of the factors: the matrix from x - mean to its mean, (K, D), and its Cholesky factor, (K, K).

    Args:
        loading: shape (D, K).
        noise_scale: shape (D,), positive.
    """
    scaled = loading / noise_scale.square().unsqueeze(-1)
    precision = torch.eye(loading.shape[1]).to(loading) + loading.T @ scaled
    covariance = torch.cholesky_inverse(torch.linalg.cholesky(precision))
    return covariance @ scaled.T, torch.linalg.cholesky(covariance)
