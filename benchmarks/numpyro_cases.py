"""The cases in NumPyro, as one would write them there. The only file that needs NumPyro, with `ways.py`."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import log_density

from benchmarks.cases import Array, Case

__all__ = ["log_joint", "pair"]


def eight_schools(sigma: jax.Array, y: jax.Array) -> None:
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("school", len(sigma)):
        eta = numpyro.sample("eta", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * eta)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def radon(county: jax.Array, floor: jax.Array, log_radon: jax.Array) -> None:
    mu_alpha = numpyro.sample("mu_alpha", dist.Normal(0.0, 10.0))
    sigma_alpha = numpyro.sample("sigma_alpha", dist.HalfNormal(1.0))
    with numpyro.plate("county", 85):
        alpha = numpyro.sample("alpha", dist.Normal(mu_alpha, sigma_alpha))
    beta = numpyro.sample("beta", dist.Normal(0.0, 10.0))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1.0))
    with numpyro.plate("house", len(county)):
        numpyro.sample("log_radon", dist.Normal(alpha[county] + beta * floor, sigma), obs=log_radon)


def mixture(x: jax.Array) -> None:
    """MixtureSameFamily sums the assignments out: faster than enumeration there, which needs another package too."""
    k, (n, d) = 3, x.shape
    weights = numpyro.sample("weights", dist.Dirichlet(jnp.ones(k)))
    with numpyro.plate("component_k", k):
        loc = numpyro.sample("loc", dist.Normal(0.0, 2.0).expand([d]).to_event(1))
        scale = numpyro.sample("scale", dist.LogNormal(math.log(2.0 / k), 1.0).expand([d]).to_event(1))
    with numpyro.plate("point", n):
        components = dist.Normal(loc, scale).to_event(1)
        numpyro.sample("x", dist.MixtureSameFamily(dist.Categorical(weights), components), obs=x)


def logistic_regression(x: jax.Array, y: jax.Array) -> None:
    weights = numpyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1.0))
    with numpyro.plate("row", len(x)):
        numpyro.sample("y", dist.Bernoulli(logits=x @ weights + intercept), obs=y)


def pair(name: str, case: Case) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide of a case, starting where the case says."""
    if name == "vae":
        return _vae(case)
    models = {"eight-schools": eight_schools, "radon": radon, "mixture": mixture, "logistic": logistic_regression}
    start = {latent: jnp.asarray(value) for latent, value in case.start.items()}
    model = models[name]
    return model, AutoNormal(model, init_loc_fn=init_to_value(values=start), init_scale=0.1)


def log_joint(name: str, case: Case, latents: Mapping[str, Array]) -> float:
    """The log density of a case's data and latents, in nats; one compilation for all of it."""
    model, _ = pair(name, case)
    density = jax.jit(lambda data, point: log_density(handlers.seed(model, 0), (), data, point)[0])
    return float(density(dict(case.data), dict(latents)))


def _vae(case: Case) -> tuple[Callable[..., Any], Callable[..., Any]]:
    def network(name: str, inputs: jax.Array) -> jax.Array:
        """Linear, softplus, linear; parameters of the names and shapes that the case has."""
        for layer in range(2):
            weight, bias = (
                numpyro.param(f"{name}.{kind}{layer}", jnp.asarray(case.start[f"{name}.{kind}{layer}"]))
                for kind in ("weight", "bias")
            )
            inputs = inputs @ weight.T + bias
            inputs = jax.nn.softplus(inputs) if layer == 0 else inputs
        return inputs

    def model(x: jax.Array) -> None:
        with numpyro.plate("data", len(x)):
            z = numpyro.sample("z", dist.Normal(jnp.zeros(20), 1.0).to_event(1))
            numpyro.sample("x", dist.Bernoulli(logits=network("decoder", z)).to_event(1), obs=x)

    def guide(x: jax.Array) -> None:
        with numpyro.plate("data", len(x)):
            loc, raw = jnp.split(network("encoder", x), 2, axis=-1)
            numpyro.sample("z", dist.Normal(loc, jax.nn.softplus(raw) + 1e-4).to_event(1))

    return model, guide
