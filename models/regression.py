"""Linear and logistic regression, with priors on the scale of the columns where the user asks for it."""

import math
import warnings
from dataclasses import dataclass
from typing import Any, Self

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

__all__ = ["LinearRegression", "LogisticRegression"]


@dataclass(frozen=True)
class _Regression:
    """What both have: the columns, and the priors of intercept and weights."""

    centre: float | tuple[float, ...] = 0.0
    spread: float | tuple[float, ...] = 1.0
    intercept_scale: float = 2.5
    weights_scale: float = 2.5

    def __post_init__(self) -> None:
        lengths = {len(value) for value in (self.centre, self.spread) if isinstance(value, tuple)}
        if len(lengths) > 1:
            raise ValueError(f"centre and spread are of different numbers of columns: {sorted(lengths)}")
        if not all(math.isfinite(value) for value in _each(self.centre)):
            raise ValueError(f"centre must be finite, got {self.centre}")
        for name in ("spread", "intercept_scale", "weights_scale"):
            _positive(name, getattr(self, name))

    def standardise(self, x: Tensor) -> Tensor:
        """(x - centre) / spread, in the dtype of x, shape (N, D).

        Raises:
            ValueError: another shape, another number of columns than centre or spread has, NaN or infinite values.
        """
        x = _finite_columns(x)
        for name, value in (("centre", self.centre), ("spread", self.spread)):
            if isinstance(value, tuple) and len(value) != x.shape[1]:
                raise ValueError(
                    f"x has {x.shape[1]} columns, and {name} has {len(value)} numbers: give the columns that the model "
                    "was made for, in their order"
                )
        centre, spread = self._scales(x)
        return (x - centre) / spread

    def _scales(self, like: Tensor) -> tuple[Tensor, Tensor]:
        centre, spread = (
            torch.tensor(value, dtype=like.dtype, device=like.device) for value in (self.centre, self.spread)
        )
        return centre, spread

    def _coefficients(self, z: Tensor, unit: float = 1.0, origin: float = 0.0) -> tuple[Tensor, Tensor]:
        """Draws intercept and weights, and tells them per unit of the columns: `unit` and `origin` are those of y."""
        intercept = pyro.sample("intercept", dist.Normal(0.0, self.intercept_scale))
        prior = dist.Normal(0.0, self.weights_scale).expand([z.shape[-1]]).to_event(1)
        weights = pyro.sample("weights", prior)
        centre, spread = self._scales(weights)
        slopes = pyro.deterministic("slopes", unit * weights / spread, event_dim=1)
        at_zero = origin + unit * intercept - (slopes * centre).sum(-1)
        pyro.deterministic("intercept_at_zero", at_zero, event_dim=0)
        if weights.dim() > 1:  # particles in front leave a place for the plate, which the rows are about to fill
            return intercept.squeeze(-1), weights.squeeze(-2)
        return intercept, weights


@dataclass(frozen=True)
class LinearRegression(_Regression):
    """A line through columns with normal noise.

    z_ij = (x_ij - centre_j) / spread_j, intercept ~ Normal(0, intercept_scale), weights_j ~ Normal(0, weights_scale),
    noise ~ Exponential with mean noise_scale y_spread, or given,
    y_i ~ Normal(y_centre + y_spread (intercept + z_i . weights), noise).

    The sites `intercept` and `weights` are on the scale of the priors: standard deviations of y, the weights for each
    standard deviation of a column, if centre and spread are means and standard deviations. What one reports stands
    beside them as deterministic sites: `slopes`, in units of y per unit of the column, and `intercept_at_zero`, the
    mean of y where every column is 0. `noise` is in units of y, the site as well as the number given.

    Priors do not look at the data. With the defaults, columns and y are taken as they are, so a slope beyond 5 or a
    mean of y beyond 5 is held unlikely: right for columns that were standardised before, wrong for kilometres or
    dollars. `standardised` takes centre and spread from the data that are handed to it; its priors are then those that
    rstanarm calls autoscaled, and the same whatever the units.

    With the noise given the posterior is normal, and the methods beside the model give it, and evidence and
    predictions, exactly, in float64. A column whose spread is less than 1e-4 of its centre loses digits in float32:
    take the centre off before, or fit with dtype=torch.float64.

    Args:
        centre: of the columns, one number or D; in their units.
        spread: of the columns, one number or D, positive; in their units.
        intercept_scale: prior sd of the intercept, in units of y_spread.
        weights_scale: prior sd of the weights, in units of y_spread.
        y_centre: where the prior of the intercept lies, in units of y.
        y_spread: the unit of the priors, in units of y, positive.
        noise_scale: prior mean of the noise, in units of y_spread.
        noise: standard deviation of y about the line, in units of y; None learns it.

    Raises:
        ValueError: a scale that is not positive, or centre and spread of different lengths.

    References:
        Gelman et al. (2013), Bayesian Data Analysis, chapter 14.
        Goodrich, Gabry, Ali and Brilleman (2020), rstanarm (the priors of `standardised`).
    """

    y_centre: float = 0.0
    y_spread: float = 1.0
    noise_scale: float = 1.0
    noise: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("y_spread", "noise_scale", "noise"):
            if getattr(self, name) is not None:
                _positive(name, getattr(self, name))

    @classmethod
    def standardised(cls, x: Any, y: Any = None, **hyperparameters: Any) -> Self:
        """The model with centre and spread of these data: means and standard deviations, those of y where it is given.

        Args:
            x: columns, tensor or array, shape (N, D), finite. A binary column is treated as any other.
            y: outcomes, shape (N,), finite; None leaves y_centre and y_spread as they are.
            hyperparameters: the other fields.

        Raises:
            ValueError: other shapes, or NaN or infinite values.

        Warns:
            UserWarning: a column is constant, so the data say nothing about its weight, whose posterior is its prior;
                its spread is taken as 1. The same for a constant y.
        """
        columns = _finite_columns(_float64(x))
        if y is not None:
            outcome = _outcomes(_float64(y), columns)
            (y_centre,), (y_spread,) = _moments(outcome.unsqueeze(-1), "y", "what moves it")
            hyperparameters = {"y_centre": y_centre, "y_spread": y_spread} | hyperparameters
        centre, spread = _moments(columns, "column {} of x", "its weight, whose posterior is its prior")
        return cls(centre=centre, spread=spread, **hyperparameters)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the model.

        Args:
            x: columns, shape (N, D), in their own units.
            y: outcomes, shape (N,), in their own units; None draws them.

        Raises:
            ValueError: other shapes, another number of columns than centre has, NaN or infinite values.
        """
        z, y = self.standardise(x), None if y is None else _outcomes(y, x)
        intercept, weights = self._coefficients(z, self.y_spread, self.y_centre)
        noise: Tensor | float | None = self.noise
        if noise is None:
            noise = pyro.sample("noise", dist.Exponential(1 / (self.noise_scale * self.y_spread)))
        with pyro.plate("row", len(x)) as i:
            mean = self.y_centre + self.y_spread * _line(z[i], intercept, weights)
            pyro.sample("y", dist.Normal(mean, noise), obs=None if y is None else y[i].to(weights.dtype))

    def mean(self, x: Tensor, intercept: Tensor, weights: Tensor) -> Tensor:
        """Expected y at rows x, shape (N, D), for draws of shape (…,) and (…, D): shape (…, N), in units of y."""
        return self.y_centre + self.y_spread * _line(self.standardise(x), intercept, weights)

    def posterior(self, x: Any, y: Any) -> dist.MultivariateNormal:
        """Intercept and weights given the data, in this order, event shape (D + 1,); exact where the noise is given."""
        design, residual, _ = self._standardised(x, y)
        prior = self._prior_sd(design)
        precision = design.T @ design + torch.diag(prior**-2)
        mean = torch.linalg.solve(precision, design.T @ residual)
        return dist.MultivariateNormal(mean, precision_matrix=precision)

    def predictive(self, x: Any, y: Any, new: Any) -> dist.Normal:
        """What is predicted at each of the rows `new`, shape (M, D), given the data; exact where the noise is given."""
        posterior = self.posterior(x, y)
        rows = self._design(_float64(new))
        variance = (
            self.y_spread**2 * ((rows @ posterior.covariance_matrix) * rows).sum(-1) + float(self.noise or 0) ** 2
        )
        return dist.Normal(self.y_centre + self.y_spread * rows @ posterior.mean, variance.sqrt())

    def log_evidence(self, x: Any, y: Any) -> float:
        """Log p(y | x) with intercept and weights integrated out, in nats; exact where the noise is given."""
        design, residual, noise = self._standardised(x, y)
        posterior, prior = self.posterior(x, y), self._prior_sd(design)
        left = residual - design @ posterior.mean
        squares = left @ left + ((posterior.mean / prior) ** 2).sum()
        volume = posterior.scale_tril.diagonal().log().sum() - prior.log().sum()
        return float(volume - squares / 2 - len(left) * math.log(math.sqrt(2 * math.pi) * noise))

    def _standardised(self, x: Any, y: Any) -> tuple[Tensor, Tensor, float]:
        """Design and outcomes in units of the noise, float64, and the noise in units of y."""
        if self.noise is None:
            raise ValueError("the posterior has a closed form where the noise is known: give noise=, in units of y")
        design = self._design(_float64(x))
        residual = _outcomes(_float64(y), design) - self.y_centre
        return design * (self.y_spread / self.noise), residual / self.noise, self.noise

    def _design(self, x: Tensor) -> Tensor:
        """A column of ones, and the standardised columns."""
        return torch.cat([torch.ones_like(x[:, :1]), self.standardise(x)], dim=1)

    def _prior_sd(self, design: Tensor) -> Tensor:
        scales = [self.intercept_scale] + [self.weights_scale] * (design.shape[1] - 1)
        return torch.tensor(scales, dtype=design.dtype)


@dataclass(frozen=True)
class LogisticRegression(_Regression):
    """The log odds of one of two classes as a line through columns.

    z_ij = (x_ij - centre_j) / spread_j, intercept ~ Normal(0, intercept_scale), weights_j ~ Normal(0, weights_scale),
    y_i ~ Bernoulli with log odds intercept + z_i . weights.

    The weights are changes of the log odds per spread of a column. Beside them stand, as deterministic sites, `slopes`,
    per unit of the column, and `intercept_at_zero`, the log odds where every column is 0.

    Priors do not look at the data: with the defaults the columns are taken as they are, and `standardised` takes centre
    and spread from the data handed to it.

    Where a line separates the two classes, the likelihood rises for ever as the weights grow, and maximum likelihood
    has no answer. The posterior stays proper, because the prior is; but the data then only bound the weights from
    below, and how large they are is what the prior says. Look at it under several weights_scale before reporting it.

    Args:
        centre: of the columns, one number or D; in their units.
        spread: of the columns, one number or D, positive; in their units.
        intercept_scale: prior sd of the intercept, in log odds.
        weights_scale: prior sd of the weights, in log odds per spread of a column.

    Raises:
        ValueError: a scale that is not positive, or centre and spread of different lengths.

    References:
        Gelman, Jakulin, Pittau and Su (2008), A weakly informative default prior distribution for logistic and other
        regression models.
        Albert and Anderson (1984), On the existence of maximum likelihood estimates in logistic regression models.
    """

    @classmethod
    def standardised(cls, x: Any, **hyperparameters: Any) -> Self:
        """The model with centre and spread of these columns: means and standard deviations.

        Args:
            x: columns, tensor or array, shape (N, D), finite. A binary column is treated as any other.
            hyperparameters: the other fields.

        Raises:
            ValueError: another shape, or NaN or infinite values.

        Warns:
            UserWarning: a column is constant, so the data say nothing about its weight, whose posterior is its prior;
                its spread is taken as 1.
        """
        centre, spread = _moments(
            _finite_columns(_float64(x)), "column {} of x", "its weight, whose posterior is its prior"
        )
        return cls(centre=centre, spread=spread, **hyperparameters)

    def __call__(self, x: Tensor, y: Tensor | None = None) -> None:
        """One run of the model.

        Args:
            x: columns, shape (N, D), in their own units.
            y: classes, 0 or 1, any dtype, shape (N,); None draws them.

        Raises:
            ValueError: other shapes, another number of columns than centre has, NaN or infinite values, other labels.
        """
        z, y = self.standardise(x), None if y is None else _labels(y, x)
        intercept, weights = self._coefficients(z)
        with pyro.plate("row", len(x)) as i:
            logits = _line(z[i], intercept, weights)
            pyro.sample("y", dist.Bernoulli(logits=logits), obs=None if y is None else y[i].to(weights.dtype))

    def logits(self, x: Tensor, intercept: Tensor, weights: Tensor) -> Tensor:
        """Log odds at rows x, shape (N, D), for draws of shape (…,) and (…, D): shape (…, N)."""
        return _line(self.standardise(x), intercept, weights)


def _line(z: Tensor, intercept: Tensor, weights: Tensor) -> Tensor:
    """Of one draw or many: shapes (…,) and (…, D) give (…, N), in the dtype of the draws."""
    return intercept.unsqueeze(-1) + weights @ z.to(weights.dtype).T


def _finite_columns(x: Tensor) -> Tensor:
    if x.dim() != 2:
        told = ": for one column, give x[:, None]" if x.dim() == 1 else ""
        raise ValueError(f"x must have shape (rows, columns), got {tuple(x.shape)}{told}")
    if not x.is_floating_point():
        x = x.to(torch.get_default_dtype())
    strange = ~torch.isfinite(x)
    if strange.any():
        row, column = strange.nonzero()[0].tolist()
        raise ValueError(
            f"{int(strange.sum())} of the {x.numel()} values in x are NaN or infinite, the first in row {row}, column "
            f"{column}: drop those rows, or fill them in"
        )
    return x


def _outcomes(y: Tensor, x: Tensor) -> Tensor:
    y = _one_each(y, x)
    strange = ~torch.isfinite(y)
    if strange.any():
        first = int(strange.nonzero()[0])
        raise ValueError(
            f"{int(strange.sum())} of the {len(y)} values in y are NaN or infinite, the first in row {first}"
        )
    return y


def _labels(y: Tensor, x: Tensor) -> Tensor:
    y = _one_each(y, x)
    strange = y[(y != 0) & (y != 1)]
    if len(strange):
        found = [f"{value:g}" for value in y.unique().tolist()]
        shown = ", ".join(found[:5] + ["…"] * (len(found) > 5))
        raise ValueError(f"y must be 0 or 1, and {len(strange)} of its {len(y)} values are not: it has {shown}")
    return y


def _one_each(y: Tensor, x: Tensor) -> Tensor:
    if y.shape != (len(x),):
        told = ": give y.squeeze(-1)" if y.shape == (len(x), 1) else ""
        raise ValueError(f"y must have shape ({len(x)},), a value for each row of x, got {tuple(y.shape)}{told}")
    return y


def _moments(x: Tensor, of: str, unknown: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each column; of a constant one the constant and 1, with a warning."""
    constant = (x == x[:1]).all(0)
    for j in constant.nonzero().flatten().tolist():
        told = f"{of.format(j)} is constant ({x[0, j]:g}), so the data say nothing about {unknown}"
        warnings.warn(told, UserWarning, stacklevel=3)
    # The constant itself and no mean, which rounding may set beside it.
    centre = torch.where(constant, x[0], x.mean(0))
    spread = torch.where(constant, torch.ones_like(centre), ((x - centre) ** 2).sum(0).div(max(len(x) - 1, 1)).sqrt())
    return tuple(centre.tolist()), tuple(spread.tolist())


def _float64(values: Any) -> Tensor:
    """A tensor, array or data frame on the CPU."""
    values = values.to_numpy() if hasattr(values, "to_numpy") else values
    return torch.as_tensor(values, dtype=torch.float64, device="cpu")


def _positive(name: str, value: float | tuple[float, ...]) -> None:
    if not all(0.0 < each < math.inf for each in _each(value)):
        raise ValueError(f"{name} must be positive and finite, got {value}")


def _each(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
