"""Every kind of loss: Pyro's ELBOs, and losses of the user's own."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro import poutine
from pyro.contrib.gp.kernels import RBF
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from svi.parity import DATA, SVI, Program, assert_same, normal_guide, normal_model, normal_svi, train
from torch import Tensor


@pyro.infer.config_enumerate
def mixture_model(data: Tensor = DATA) -> None:
    locs = pyro.param("locs", torch.tensor([-1.0, 2.0]))
    weights = pyro.param("weights", torch.ones(2) / 2, constraint=constraints.simplex)
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(data)):
        k = pyro.sample("k", dist.Categorical(weights))
        pyro.sample("x", dist.Normal(locs[k], scale), obs=data)


def mixture_guide(data: Tensor = DATA) -> None:
    loc = pyro.param("scale_loc", torch.tensor(0.0))
    pyro.sample("scale", dist.LogNormal(loc, 0.3))


def score_model(data: Tensor = DATA) -> None:
    z = pyro.sample("z", NonreparameterizedNormal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        flag = pyro.sample("flag", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z + flag, 1.0), obs=data)


def score_guide(data: Tensor = DATA) -> None:
    loc = pyro.param("loc", torch.tensor(0.1))
    prob = pyro.param("prob", torch.full((len(data),), 0.5), constraint=constraints.unit_interval)
    pyro.sample("z", NonreparameterizedNormal(loc, 0.7))
    with pyro.plate("data", len(data)):
        pyro.sample("flag", dist.Bernoulli(prob), infer={"baseline": {"use_decaying_avg_baseline": True}})


def hand_elbo(model: Program, guide: Program, *args: Any) -> Tensor:
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


class HandELBO(pyro.infer.ELBO):
    def _get_trace(self, *args: Any) -> None:
        raise NotImplementedError

    def loss(self, model: Program, guide: Program, *args: Any) -> float:
        return hand_elbo(model, guide, *args).item()

    def loss_and_grads(self, model: Program, guide: Program, *args: Any) -> float:
        loss = hand_elbo(model, guide, *args)
        loss.backward()
        return loss.item()


VECTORISED = {"vectorize_particles": True, "max_plate_nesting": 1}
NORMAL = (normal_model, normal_guide)
SCORE = (score_model, score_guide)
MIXTURE = (mixture_model, mixture_guide)

LOSSES: dict[str, tuple[tuple[Program, Program], Callable[[], Any]]] = {
    "Trace": (NORMAL, pyro.infer.Trace_ELBO),
    "Trace guessed nesting": (NORMAL, lambda: pyro.infer.Trace_ELBO(num_particles=5, vectorize_particles=True)),
    "Trace jit": (NORMAL, lambda: pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True)),
    "Trace score": (SCORE, pyro.infer.Trace_ELBO),
    "TraceGraph": (NORMAL, lambda: pyro.infer.TraceGraph_ELBO(num_particles=2)),
    "TraceGraph score": (SCORE, lambda: pyro.infer.TraceGraph_ELBO(3, **VECTORISED)),
    "MeanField": (NORMAL, lambda: pyro.infer.TraceMeanField_ELBO(num_particles=3)),
    "Renyi": (NORMAL, lambda: pyro.infer.RenyiELBO(0, 4, **VECTORISED)),
    "MMD": (NORMAL, lambda: pyro.infer.Trace_MMD(RBF(input_dim=1), num_particles=4)),
    "EnergyDistance": (NORMAL, lambda: pyro.infer.EnergyDistance(prior_scale=0.1, num_particles=3)),
    "Enum guessed nesting": (MIXTURE, pyro.infer.TraceEnum_ELBO),
    "Enum vectorised": (MIXTURE, lambda: pyro.infer.TraceEnum_ELBO(3, **VECTORISED)),
    "Enum jit": (MIXTURE, lambda: pyro.infer.JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True)),
    "TMC": (MIXTURE, lambda: pyro.infer.TraceTMC_ELBO(max_plate_nesting=1)),
    "own ELBO": (NORMAL, HandELBO),
    "function": (NORMAL, lambda: hand_elbo),
    "differentiable_loss": (NORMAL, lambda: pyro.infer.Trace_ELBO().differentiable_loss),
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize(("pair", "loss"), LOSSES.values(), ids=LOSSES)
def test_loss(pair: tuple[Program, Program], loss: Callable[[], Any]) -> None:
    left = assert_same(lambda svi: train(svi, *pair, loss(), DATA))
    assert all(type(value) is float for value in left["returned"])


def test_tail_adaptive() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = normal_svi(svi, loss=pyro.infer.TraceTailAdaptive_ELBO(4, **VECTORISED))
        return [fit.step(DATA) for _ in range(3)]

    assert_same(script)


def test_wake_sleep() -> None:
    def model(observations: dict[str, Tensor] | None = None) -> None:
        scale = pyro.param("noise", torch.tensor(1.5), constraint=constraints.positive)
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(DATA)):
            pyro.sample("x", dist.Normal(z.unsqueeze(-1), scale), obs=(observations or {"x": DATA})["x"])

    def guide(observations: dict[str, Tensor] | None = None) -> None:
        normal_guide()

    def script(svi: SVI) -> list[Any]:
        return train(svi, model, guide, pyro.infer.ReweightedWakeSleep(insomnia=0.6), observations={"x": DATA})

    left = assert_same(script)
    assert all(type(pair) is tuple and [type(value) for value in pair] == [float, float] for pair in left["returned"])


def test_own_loss_and_grads() -> None:
    def script(svi: SVI) -> list[Any]:
        calls = []

        def loss(model: Program, guide: Program, *args: Any) -> Tensor:
            calls.append(("loss", torch.is_grad_enabled()))
            return hand_elbo(model, guide, *args)

        def loss_and_grads(model: Program, guide: Program, *args: Any) -> Tensor:
            calls.append(("loss_and_grads", torch.is_grad_enabled()))
            value = hand_elbo(model, guide, *args)
            (0.5 * value).backward()
            return value

        fit = normal_svi(svi, None, loss, loss_and_grads)
        return [fit.step(DATA), fit.evaluate_loss(DATA), fit.step(DATA), calls]

    calls = assert_same(script)["returned"][-1]
    assert calls == [("loss_and_grads", True), ("loss", False), ("loss_and_grads", True)]


def test_loss_without_parameters() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = normal_svi(svi, loss=lambda model, guide: 3.0)
        return [fit.step(), fit.evaluate_loss()]

    assert assert_same(script)["returned"] == [3.0, 3.0]


def test_nan_loss() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = normal_svi(svi, loss=lambda *_: pyro.param("p", torch.tensor(1.0)) * math.nan)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses = [fit.step(), fit.evaluate_loss()]
        left = pyro.get_param_store()["p"].detach().isnan()
        # NaN is not equal to itself, so the store would not be either.
        pyro.clear_param_store()
        return [[math.isnan(each) for each in losses], left, [str(warning.message) for warning in said]]

    assert assert_same(script)["returned"][0] == [True, True]
