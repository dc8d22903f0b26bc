"""The families in NumPyro, which samples their posteriors in seconds, and their densities in unconstrained space."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import biject_to
from numpyro.distributions.transforms import OrderedTransform
from numpyro.infer.util import initialize_model

__all__ = ["TWINS", "Density"]

Array = jax.Array


def _regression(x: Array, y: Array, intercept_sd: float, slope_sd: float, spread: float, name: str) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, intercept_sd))
    slopes = dist.Normal(0.0, slope_sd)
    slopes = numpyro.sample(name, slopes if x.ndim == 1 else slopes.expand([x.shape[-1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, spread))
    mean = intercept + (slopes * x if x.ndim == 1 else x @ slopes)
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def normal(y: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 100.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu, sigma), obs=y)


def linear(x: Array, y: Array) -> None:
    _regression(x, y, 20.0, 10.0, 1.0, "slopes")


def scaled(x: Array, y: Array) -> None:
    _regression(x, y, 100.0, 10.0, 2.0, "slope")


def _known_noise(name: str, prior_sd: float) -> Callable[..., None]:
    def model(x: Array, y: Array, sigma: Array) -> None:
        weights = numpyro.sample(name, dist.Normal(0.0, prior_sd).expand([x.shape[-1]]).to_event(1))
        with numpyro.plate("row", len(y)):
            numpyro.sample("y", dist.Normal(x @ weights, sigma), obs=y)

    return model


def autoregression(y: Array) -> None:
    level = numpyro.sample("level", dist.Normal(0.0, 10.0))
    lags = numpyro.sample("lags", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("time", len(y) - 2):
        numpyro.sample("next", dist.Normal(level + lags[0] * y[1:-1] + lags[1] * y[:-2], sigma), obs=y[2:])


def ridge(x: Array, y: Array) -> None:
    tau = numpyro.sample("tau", dist.HalfNormal(2.0))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    weights = numpyro.sample("weights", dist.Normal(0.0, tau).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(x @ weights, sigma), obs=y)


def centred(y: Array, error: Array, unit: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    tau = numpyro.sample("tau", dist.HalfNormal(3.0 * unit))
    with numpyro.plate("group", len(y)):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
        numpyro.sample("y", dist.Normal(theta, error), obs=y)


def non_centred(y: Array, error: Array, unit: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 10.0 * unit))
    tau = numpyro.sample("tau", dist.HalfNormal(3.0 * unit))
    with numpyro.plate("group", len(y)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(mu + tau * eta, error), obs=y)


def funnel(y: Array, error: Array) -> None:
    v = numpyro.sample("v", dist.Normal(0.0, 3.0))
    with numpyro.plate("coordinate", len(y)):
        x = numpyro.sample("x", dist.Normal(0.0, jnp.exp(v / 2)))
        numpyro.sample("y", dist.Normal(x, error), obs=y)


def logistic(x: Array, y: Array) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Bernoulli(logits=intercept + x @ slopes), obs=y)


def poisson(x: Array, exposure: Array, y: Array) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.0).expand([x.shape[-1]]).to_event(1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Poisson(exposure * jnp.exp(intercept + x @ slopes)), obs=y)


def ordered(x: Array, y: Array) -> None:
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 2.5).expand([x.shape[-1]]).to_event(1))
    base = dist.Normal(0.0, 3.0).expand([3]).to_event(1)
    cuts = numpyro.sample("cuts", dist.TransformedDistribution(base, OrderedTransform()))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.OrderedLogistic(x @ slopes, cuts), obs=y)


def shares(hits: Array, trials: Array, prior: Array, kind: Array) -> None:
    with numpyro.plate("group", len(hits)):
        rate = numpyro.sample("rate", dist.Beta(prior[0], prior[1]))
        numpyro.sample("hits", dist.BinomialProbs(rate, trials), obs=hits)
    part = numpyro.sample("part", dist.Dirichlet(jnp.ones(4)))
    with numpyro.plate("row", len(kind)):
        numpyro.sample("kind", dist.CategoricalProbs(part), obs=kind)


def mixture(y: Array) -> None:
    low = numpyro.sample("low", dist.Normal(0.0, 20.0))
    gap = numpyro.sample("gap", dist.LogNormal(1.0, 1.0))
    scales = numpyro.sample("scales", dist.LogNormal(0.0, 1.0).expand([2]).to_event(1))
    weight = numpyro.sample("weight", dist.Beta(2.0, 2.0))
    components = dist.Normal(jnp.stack([low, low + gap]), scales)
    with numpyro.plate("row", len(y)):
        upper = dist.CategoricalProbs(jnp.stack([1 - weight, weight]))
        numpyro.sample("y", dist.MixtureSameFamily(upper, components), obs=y)


def robust(x: Array, y: Array) -> None:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 20.0))
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 10.0).expand([x.shape[-1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.LogNormal(0.0, 1.0))
    nu = numpyro.sample("nu", dist.Gamma(2.0, 0.1))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.StudentT(nu, intercept + x @ slopes, sigma), obs=y)


def process(x: Array, y: Array) -> None:
    amplitude = numpyro.sample("amplitude", dist.LogNormal(0.0, 1.0))
    length = numpyro.sample("length", dist.LogNormal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.LogNormal(-1.0, 1.0))
    kernel = amplitude**2 * jnp.exp(-0.5 * ((x[:, None] - x) / length) ** 2)
    covariance = kernel + (noise**2 + 1e-4) * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def two_modes(y: Array, sigma: Array, tilt: Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(tilt, 2.0))
    with numpyro.plate("row", len(y)):
        numpyro.sample("y", dist.Normal(mu**2, sigma), obs=y)


TWINS: dict[str, Callable[..., None]] = {
    "normal": normal,
    "linear": linear,
    "scaled": scaled,
    "ill conditioned": _known_noise("slopes", 100.0),
    "fifty": _known_noise("weights", 1.0),
    "autoregression": autoregression,
    "ridge": ridge,
    "hierarchical centred": centred,
    "hierarchical non-centred": non_centred,
    "funnel": funnel,
    "logistic": logistic,
    "poisson": poisson,
    "ordered": ordered,
    "shares": shares,
    "mixture": mixture,
    "robust": robust,
    "process": process,
    "two modes": two_modes,
}


@dataclass(frozen=True)
class Density:
    """The density of a family over one unconstrained vector, latents in the order of the model.

    The maps onto supports are those of Pyro, so that a guide's vector there means the same here.

    Args:
        name: of the family.
        latents: their names in order.
        data: any of the shape; each call takes its own.
    """

    name: str
    latents: tuple[str, ...]
    data: Mapping[str, Any]

    def __post_init__(self) -> None:
        model = TWINS[self.name]
        found = initialize_model(jax.random.PRNGKey(0), model, model_kwargs=dict(self.data), dynamic_args=True)
        shapes = {name: found.param_info.z[name].shape for name in self.latents}
        object.__setattr__(self, "_potential", found.potential_fn)
        object.__setattr__(self, "_shapes", shapes)
        supports = {name: found.model_trace[name]["fn"].support for name in self.latents}
        object.__setattr__(self, "_maps", {name: biject_to(support) for name, support in supports.items()})

    @property
    def size(self) -> int:
        return sum(int(jnp.prod(jnp.array(shape))) if shape else 1 for shape in self._shapes.values())

    def log(self, vector: Array, data: Mapping[str, Any]) -> Array:
        """Log joint density with the Jacobian, in nats."""
        return -self._potential(**data)(self.parts(vector))

    def constrain(self, vector: Array) -> dict[str, Array]:
        return {name: self._maps[name](part) for name, part in self.parts(vector).items()}

    def unconstrain(self, values: Mapping[str, Array]) -> Array:
        parts = [jnp.ravel(self._maps[name]._inverse(jnp.asarray(values[name]))) for name in self.latents]
        return jnp.concatenate(parts)

    def parts(self, vector: Array) -> dict[str, Array]:
        """A vector cut into the latents, unconstrained."""
        parts, start = {}, 0
        for name, shape in self._shapes.items():
            count = 1
            for length in shape:
                count *= length
            parts[name] = vector[start : start + count].reshape(shape)
            start += count
        return parts
