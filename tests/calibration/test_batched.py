"""Fits in one run are those that each data set would have alone, with the same start and noise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor

import ingle
from ingle.calibration.batched import Apart, Batch
from ingle.calibration.replicates import from_model
from ingle.data import read
from ingle.engine import EagerEngine, GivenDraws, Noise, resolve_optimisers
from ingle.objectives import choose
from ingle.program import build_program
from ingle.runtime import Runtime

FITS, STEPS = 4, 3


def schools(sigma: Tensor, y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = pyro.sample("tau", dist.HalfNormal(5.0))
    with pyro.plate("school", len(sigma)):
        eta = pyro.sample("eta", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu + tau * eta, sigma), obs=y)


def mixture(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(torch.tensor([-3.0, 3.0]), 1.0).to_event(1))
    with pyro.plate("data", len(x)):
        k = pyro.sample("k", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(loc[k.long()], 1.0), obs=x)


def mean(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mean_guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.2))
    scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


class Encoder(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.layer = torch.nn.Linear(4, 2)
        with torch.no_grad():
            for leaf in self.parameters():
                leaf.copy_(0.3 * torch.randn(leaf.shape, generator=generator))

    def forward(self, y: Tensor) -> None:
        pyro.module("encoder", self)
        loc, log_scale = self.layer(y)
        pyro.sample("mu", dist.Normal(loc, log_scale.exp()))


def switch(y: Tensor) -> None:
    p = pyro.sample("p", dist.Normal(0.0, 1.0))
    k = pyro.sample("k", dist.Bernoulli(p.sigmoid()))
    pyro.sample("y", dist.Normal(2 * k, 1.0), obs=y)


def switch_guide(y: Tensor) -> None:
    pyro.sample("p", dist.Normal(pyro.param("loc", torch.tensor(0.3)), 1.0))
    pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.1))))


SCHOOLS = {"sigma": torch.linspace(8.0, 18.0, 8), "y": torch.zeros(8)}
PAIRS: dict[str, tuple[Any, Any, Any, Any]] = {
    "normal": (schools, "normal", SCHOOLS, None),
    "multivariate normal": (schools, "multivariate_normal", SCHOOLS, TraceMeanField_ELBO()),
    "low rank": (schools, "low_rank", SCHOOLS, None),
    "flow": (schools, "flow", SCHOOLS, None),
    "summed out": (mixture, "normal", torch.zeros(6), None),
    "parameters": (mean, mean_guide, torch.zeros(4), None),
    "network": (mean, Encoder(), torch.zeros(4), None),
    "score function": (switch, switch_guide, torch.tensor(0.0), Trace_ELBO()),
}


@pytest.mark.parametrize("name", PAIRS)
def test_each_fit_is_what_it_is_alone(name: str, device: torch.device) -> None:
    """Parameters and losses after steps of ClippedAdam, in float64, where only the order of sums differs."""
    model, guide, data, objective = PAIRS[name]
    runtime = Runtime(torch.float64, device, seed=3)

    with runtime.scope():
        given = read(data).to(torch.float64, device)
        program = build_program(model, guide, given, batch_size={}, runtime=runtime)
        replicates = from_model(program, FITS)
        batch = Batch(program, choose(objective, program), replicates, runtime)
        starts = batch.flat.clone()
        with ingle.progress.Progress(STEPS, False) as bar:
            batch.fit(STEPS, None, "off", bar)
        runtime.reseed()
        noise = [batch.noise() for _ in range(STEPS)]
        for place in range(FITS):
            single = replace(program, data=replicates.data[place])
            leaves = single.leaves()
            parts = starts[place].split([leaf.numel() for leaf in leaves.values()])
            with torch.no_grad():
                for leaf, part in zip(leaves.values(), parts, strict=True):
                    leaf.copy_(part.reshape(leaf.shape))

            def drawn(step: int, _: Any, place: int = place) -> Noise:
                return Noise(GivenDraws(noise[step]["normals"][place], noise[step]["uniforms"][place]))

            optimisers = resolve_optimisers(None, guide_steps=1, steps=STEPS)
            losses = EagerEngine(single, batch.objective, optimisers, runtime, noise=drawn).advance(STEPS)
            trained = torch.cat([leaf.detach().reshape(-1) for leaf in leaves.values()])
            torch.testing.assert_close(batch.losses[:, place], losses, rtol=1e-9, atol=1e-9)
            torch.testing.assert_close(batch.flat[place], trained, rtol=1e-8, atol=1e-9)
    assert not torch.equal(batch.flat[0], batch.flat[1])


@pytest.mark.long
def test_a_compiled_run_is_the_eager_one(where: dict[str, Any]) -> None:
    options: dict[str, Any] = {"fits": 20, "steps": 30, **where}
    eager = ingle.calibrate(schools, "normal", SCHOOLS, compile="off", **options)
    compiled = ingle.calibrate(schools, "normal", SCHOOLS, compile="full", **options)
    assert eager.how == "in one run"
    assert compiled.how == "in one compiled run"
    assert abs(eager.losses - compiled.losses).max() < 1e-3 * abs(eager.losses).max()


def test_what_cannot_run_together_runs_alone() -> None:
    def reads(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0 + float(y.sum() > 1e9)))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    found = ingle.calibrate(reads, "normal", torch.zeros(3), fits=20, steps=2, compile="off")
    assert found.how.startswith("one by one: ")
    assert found.ranks["mu"].shape == (20,)


def test_replicates_of_other_shapes_are_apart() -> None:
    def simulate(seed: int) -> tuple[dict[str, float], Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mu = float(torch.randn((), generator=generator))
        return {"mu": mu}, mu + torch.randn(3 + seed % 3, generator=generator)

    found = ingle.calibrate(mean, "normal", simulate=simulate, fits=20, steps=2, compile="off")
    assert found.how == "one by one: y has other shapes from data set to data set"
    assert issubclass(Apart, ingle.IngleError)
