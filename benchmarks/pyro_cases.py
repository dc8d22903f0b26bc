"""The cases in Pyro: the pairs that ship with Ingle where there is one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal, init_to_value
from torch import Tensor, nn

from benchmarks.cases import Case
from ingle.guides.vae import VAEGuide
from ingle.models.hierarchical import eight_schools, radon_varying_intercepts
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE

__all__ = ["pair", "tensors"]


def logistic_regression(x: Tensor, y: Tensor) -> None:
    weights = pyro.sample("weights", dist.Normal(0.0, 1.0).expand([x.shape[-1]]).to_event(1))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Bernoulli(logits=x @ weights + intercept), obs=y)


def pair(name: str, case: Case, device: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Model and guide of a case, new at every call, starting where the case says."""
    if name == "vae":
        return _vae(case, device)
    models: dict[str, Callable[..., Any]] = {
        "eight-schools": eight_schools,
        # The number of counties is a size, as it has to be in NumPyro, and not read from the data at every step.
        "radon": functools.partial(radon_varying_intercepts, num_counties=85),
        "mixture": GaussianMixture(3),
        "logistic": logistic_regression,
    }
    model = models[name]
    start = tensors(case.start, device)
    # What is summed out is no latent of the guide, and plain AutoNormal refuses it.
    continuous = poutine.block(model, hide=["component"]) if case.summed else model
    return model, AutoNormal(continuous, init_loc_fn=init_to_value(values=start), init_scale=0.1)


def tensors(arrays: Any, device: str) -> dict[str, Tensor]:
    """Copies of NumPy arrays on a device, by name."""
    return {name: torch.tensor(array, device=device) for name, array in arrays.items()}


def _vae(case: Case, device: str) -> tuple[VAE, VAEGuide]:
    model = VAE(784, latent_dim=20, hidden=(400,))
    guide = VAEGuide(model)
    for name, network in (("decoder", model.decoder), ("encoder", guide.encoder)):
        layers = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
        for place, layer in enumerate(layers):
            with torch.no_grad():
                layer.weight.copy_(torch.tensor(case.start[f"{name}.weight{place}"]))
                layer.bias.copy_(torch.tensor(case.start[f"{name}.bias{place}"]))
    return model.to(device), guide.to(device)
