"""Pairs that a compiled step is held against an eager one on: what `engine_of` takes, made anew at each call."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from objectives.programs import MASK
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from support import eight_schools_data, old_faithful, radon_data
from torch import Tensor

from ingle import objectives
from ingle.guides.hierarchical import eight_schools_guide, radon_varying_intercepts_guide
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.vae import VAEGuide
from ingle.models.hierarchical import eight_schools, radon_varying_intercepts
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE

Cell = Callable[[], dict[str, Any]]

Y = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)
COUNTS = torch.tensor([0, 3, 1, 4, 2, 2, 5, 1])
ADAM = functools.partial(torch.optim.Adam, lr=0.01)
SGD = functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9)


def positive(name: str, *shape: int, start: float = 0.5) -> Tensor:
    return pyro.param(name, torch.full(shape, start), constraint=constraints.positive)


def real(name: str, *shape: int, start: float = 0.1) -> Tensor:
    return pyro.param(name, torch.full(shape, start))


def line(y: Tensor) -> None:
    """A normal mean with a learned noise, in one plate that rows may be drawn for."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
    with pyro.plate("data", 8) as i:
        pyro.sample("y", dist.Normal(mu, sigma), obs=y[i])


def local(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y[i])


def own_rows(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8, subsample_size=3) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, positive("noise")), obs=y[i])


def own_rows_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))
    with pyro.plate("data", 8, subsample_size=3) as i:
        pyro.sample("z", dist.Normal(real("z_loc", 8)[i], positive("z_scale", 8)[i]))


def assigned(y: Tensor) -> None:
    """A mixture whose assignments the guide draws."""
    with pyro.plate("components", 2):
        locs = pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 1.0]), 1.0))
    with pyro.plate("data", 8):
        k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
        pyro.sample("y", dist.Normal(locs[..., k], 0.7), obs=y)


def assigned_guide(y: Tensor) -> None:
    with pyro.plate("components", 2):
        pyro.sample("locs", dist.Normal(real("loc", 2), positive("scale", 2)))
    with pyro.plate("data", 8):
        pyro.sample("k", dist.Categorical(logits=real("logits", 8, 2)))


def local_switch(y: Tensor) -> None:
    """A switch for each datum, its rows from outside."""
    mu = positive("mu")
    with pyro.plate("data", 8) as i:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(mu * k, 0.7), obs=y[i])


def local_switch_guide(y: Tensor) -> None:
    logits = real("logits", 8)
    with pyro.plate("data", 8) as i:
        pyro.sample("k", dist.Bernoulli(logits=logits[i]))


def averaged_guide(y: Tensor) -> None:
    logits = real("logits", 8)
    baseline = {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}
    with pyro.plate("data", 8) as i:
        pyro.sample("k", dist.Bernoulli(logits=logits[i]), infer={"baseline": baseline})


def missing(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(mu, positive("noise")), obs=y, obs_mask=MASK)


def missing_guide(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))
    with pyro.plate("data", 8), poutine.mask(mask=~MASK):
        pyro.sample("y_unobserved", dist.Normal(mu, positive("spread")))


def several(counts: Tensor) -> None:
    """Sites that are not normal: shares, rates and counts."""
    weights = pyro.sample("weights", dist.Dirichlet(torch.ones(3)))
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", 8):
        pyro.sample("count", dist.Poisson(rate * (0.5 + p + weights[..., 0])), obs=counts)


def several_guide(counts: Tensor) -> None:
    pyro.sample("weights", dist.Dirichlet(positive("concentration", 3, start=2.0)))
    pyro.sample("p", dist.Beta(positive("a", start=2.0), positive("b", start=3.0)))
    pyro.sample("rate", dist.Gamma(positive("shape", start=3.0), positive("speed", start=1.5)))


def drawn_counts(counts: Tensor) -> None:
    with pyro.plate("data", 8):
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.sample("count", dist.Normal(n, 1.0), obs=counts.to(torch.get_default_dtype()))


def drawn_counts_guide(counts: Tensor) -> None:
    with pyro.plate("data", 8):
        pyro.sample("n", dist.Poisson(positive("rates", 8, start=2.0)))


class Cubed(torch.autograd.Function):
    """A function with a derivative of the user's own, which is not the right one."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return gradient * (2.0 * x**2 + 1.0)


def cubed(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.5, 0.5))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(Cubed.apply(mu), 1.0), obs=y)


class Encoder(torch.nn.Module):
    """Batch norm, which keeps running statistics, and dropout; a `pyro.module` of its guide."""

    def __init__(self) -> None:
        super().__init__()
        parts = [
            torch.nn.Linear(1, 4, bias=False),
            torch.nn.BatchNorm1d(4),
            torch.nn.Dropout(0.3),
            torch.nn.Linear(4, 2),
        ]
        self.net = torch.nn.Sequential(*parts)

    def forward(self, y: Tensor) -> None:
        pyro.module("encoder", self)
        with pyro.plate("data", 8) as i:
            loc, scale = self.net(y[i].unsqueeze(-1)).unbind(-1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(scale) + 0.1))


def coded(y: Tensor) -> None:
    with pyro.plate("data", 8) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(real("slope", start=1.0) * z, positive("noise")), obs=y[i])


class Regression(PyroModule):
    """Parameters and samples as attributes of a module."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = PyroModule[torch.nn.Linear](1, 1)
        self.layer.weight = PyroSample(lambda self: dist.Normal(0.0, 1.0).expand([1, 1]).to_event(2))
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)

    def forward(self, y: Tensor) -> None:
        mean = self.layer(torch.linspace(0.0, 1.0, 8).unsqueeze(-1)).squeeze(-1)
        with pyro.plate("data", 8):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)


def correlated(y: Tensor) -> None:
    """The Cholesky factor of a correlation goes through masks and a triangle of indices."""
    factor = pyro.sample("factor", dist.LKJCholesky(3, 1.0))
    scale = pyro.sample("scale", dist.HalfNormal(1.0).expand([3]).to_event(1))
    with pyro.plate("data", 2):
        pyro.sample("y", dist.MultivariateNormal(torch.zeros(3), scale_tril=scale[..., None] * factor), obs=y)


def seeded(module: Callable[[], Any]) -> Any:
    """A module with the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return module()


def vae() -> dict[str, Any]:
    model = seeded(lambda: VAE(12, 2, (6,)))
    x = (torch.rand(10, 12, generator=torch.Generator().manual_seed(2)) < 0.4).double()
    return {"model": model, "guide": seeded(lambda: VAEGuide(model)), "data": x, "optim": ADAM}


def mixture(points: int = 30) -> dict[str, Any]:
    model = GaussianMixture(2)
    x = torch.as_tensor(old_faithful()[:points])
    return {"model": model, "guide": GaussianMixtureGuide(model), "data": x}


def schools(guide: Any = eight_schools_guide, **options: Any) -> dict[str, Any]:
    return {"model": eight_schools, "guide": guide, "data": eight_schools_data(), **options}


def radon(**options: Any) -> dict[str, Any]:
    data = {name: column[:60] for name, column in radon_data().items()}
    return {"model": radon_varying_intercepts, "guide": radon_varying_intercepts_guide, "data": data, **options}


def pair(model: Any, guide: Any, data: Any = Y, **options: Any) -> dict[str, Any]:
    return {"model": model, "guide": guide, "data": data, **options}


def clipped(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=1e-2)


def mean_field() -> Any:
    return pyro.infer.TraceMeanField_ELBO()


def graph() -> Any:
    return pyro.infer.TraceGraph_ELBO()


def trace(particles: int = 1, vectorised: bool = False) -> Any:
    return pyro.infer.Trace_ELBO(particles, vectorize_particles=vectorised)


def step_lr() -> Any:
    return pyro.optim.StepLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.02}, "step_size": 7, "gamma": 0.5})


# What the issue names: objectives, models, sites, a function of the user's own. Each with Ingle's own optimiser.
PROGRAMS: dict[str, Cell] = {
    "eight schools, Trace": lambda: schools(objective=trace()),
    "eight schools, TraceMeanField": lambda: schools(objective=mean_field()),
    "eight schools, TraceGraph": lambda: schools(objective=graph()),
    "radon, Trace": lambda: radon(objective=trace()),
    "radon, TraceMeanField": lambda: radon(objective=mean_field()),
    "mixture enumerated": mixture,
    "mixture drawn, TraceGraph": lambda: pair(assigned, assigned_guide),
    "mixture drawn, Trace": lambda: pair(assigned, assigned_guide, objective=trace()),
    "VAE": vae,
    "VAE, TraceMeanField": lambda: {**vae(), "objective": mean_field()},
    "obs_mask": lambda: pair(missing, missing_guide),
    "Dirichlet, Beta, Gamma, observed Poisson": lambda: pair(several, several_guide, COUNTS),
    "drawn Poisson": lambda: pair(drawn_counts, drawn_counts_guide, COUNTS),
    "autograd function": lambda: pair(cubed, "normal"),
    "BatchNorm and Dropout": lambda: pair(coded, seeded(Encoder)),
    "PyroModule": lambda: pair(seeded(Regression), "normal"),
    "LKJCholesky": lambda: pair(correlated, "normal", torch.tensor([[0.3, -1.0, 0.5], [1.0, 0.2, -0.4]])),
}

GUIDES: dict[str, Cell] = {
    "normal": lambda: schools("normal"),
    "multivariate_normal": lambda: schools("multivariate_normal"),
    "low_rank": lambda: schools("low_rank"),
    "delta": lambda: schools("delta"),
    "laplace": lambda: pair(line, "laplace"),
    "flow": lambda: pair(line, "flow"),
    "AutoNormal on PyroModule": lambda: pair(seeded(Regression), autoguide.AutoNormal),
    "AutoDiagonalNormal": lambda: schools(autoguide.AutoDiagonalNormal),
    "AutoNormal with local latents": lambda: pair(local, autoguide.AutoNormal),
}

ROWS: dict[str, Cell] = {
    "subsample_size": lambda: pair(own_rows, own_rows_guide),
    "batch_size": lambda: pair(line, "normal", batch_size={"data": 4}),
    "batch_size, ragged": lambda: pair(line, "normal", batch_size={"data": 3}),
    "batch_size, local latents, ragged": lambda: pair(local, "normal", batch_size={"data": 3}),
    "batch_size, VAE, ragged": lambda: {**vae(), "batch_size": {"data": 4}},
    "BatchNorm, batch_size": lambda: pair(coded, seeded(Encoder), batch_size={"data": 4}),
    "particles": lambda: pair(line, "normal", objective=trace(3)),
    "vectorised particles": lambda: pair(line, "normal", objective=trace(3, True)),
    "vectorised particles, TraceGraph": lambda: pair(
        local_switch, local_switch_guide, objective=pyro.infer.TraceGraph_ELBO(2, 1, vectorize_particles=True)
    ),
}

OPTIMISERS: dict[str, Cell] = {
    "Adam": lambda: pair(coded, seeded(Encoder), optim=ADAM),
    "AdamW": lambda: pair(line, "normal", optim=functools.partial(torch.optim.AdamW, lr=0.01)),
    "SGD with momentum": lambda: pair(line, "normal", optim=SGD),
    "ClippedAdam": lambda: pair(
        line, "normal", optim=pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99, "clip_norm": 1.0})
    ),
    "clip norm": lambda: pair(line, "normal", optim=pyro.optim.SGD({"lr": 1e-2}, {"clip_norm": 0.5})),
    "StepLR": lambda: pair(line, "normal", optim=step_lr()),
    "RMSprop": lambda: pair(line, "normal", optim=functools.partial(torch.optim.RMSprop, lr=0.01)),
    "two, guide_steps": lambda: pair(coded, seeded(Encoder), optim={"model": ADAM, "guide": SGD}, guide_steps=3),
}

OBJECTIVES: dict[str, Cell] = {
    "RLOO": lambda: pair(assigned, assigned_guide, objective=objectives.RLOO_ELBO(3)),
    "RLOO, batch_size, ragged": lambda: pair(local_switch, local_switch_guide, batch_size={"data": 3}),
    "RLOO, vectorised": lambda: pair(
        local_switch, local_switch_guide, objective=objectives.RLOO_ELBO(3, vectorize_particles=True)
    ),
    "decaying averages": lambda: pair(local_switch, averaged_guide, objective=objectives.TraceGraph_ELBO(2)),
    "decaying averages, batch_size, ragged": lambda: pair(
        local_switch, averaged_guide, objective=graph(), batch_size={"data": 3}
    ),
    "VIMCO": lambda: pair(assigned, assigned_guide, objective=objectives.VIMCO_ELBO(3)),
    "VIMCO, batch_size, ragged": lambda: pair(
        local_switch, local_switch_guide, objective=objectives.VIMCO_ELBO(3), batch_size={"data": 3}
    ),
    "Renyi": lambda: schools(objective=pyro.infer.RenyiELBO(alpha=0.5, num_particles=3)),
    "IWAE, VAE": lambda: {**vae(), "objective": objectives.IWAE_ELBO(3)},
    "IWAE, VAE, vectorised, ragged": lambda: {
        **vae(),
        "objective": objectives.IWAE_ELBO(3, vectorize_particles=True),
        "batch_size": {"data": 4},
    },
    "DReG, VAE": lambda: {**vae(), "objective": objectives.DReG_ELBO(3)},
    "DReG, VAE, vectorised": lambda: {**vae(), "objective": objectives.DReG_ELBO(3, vectorize_particles=True)},
    "DReG, multivariate_normal": lambda: schools("multivariate_normal", objective=objectives.DReG_ELBO(2)),
    "STL": lambda: schools(objective=objectives.STL_ELBO(2)),
    "STL, VAE": lambda: {**vae(), "objective": objectives.STL_ELBO()},
    "annealed": lambda: schools(objective=objectives.Trace_ELBO(kl_scale=objectives.Anneal(25, 0.1))),
    "annealed by plate, free bits": lambda: {
        **vae(),
        "objective": objectives.TraceMeanField_ELBO(kl_scale={"data": objectives.Anneal(20)}, free_bits=0.3),
    },
    "free bits of draws": lambda: schools(
        "normal", objective=objectives.STL_ELBO(free_bits={"mu": 1.0, "school": 0.2})
    ),
}

CELLS: dict[str, Cell] = {**PROGRAMS, **GUIDES, **ROWS, **OPTIMISERS, **OBJECTIVES}
