"""`ingle.SVI` does what `pyro.infer.SVI` does, to the last bit, on Pyro's own store and random state."""

from __future__ import annotations

import inspect
import math
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.contrib.gp.kernels import RBF
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor, nn

import ingle

SVI = type[pyro.infer.SVI]
Script = Callable[[SVI], Sequence[Any]]

DATA = torch.tensor([0.3, -0.7, 1.9, 2.4, 1.1, 0.6])


@pytest.fixture(autouse=True)
def clean_store() -> Iterator[None]:
    pyro.clear_param_store()
    yield
    pyro.clear_param_store()


def play(script: Script, svi: SVI, seed: int = 0) -> dict[str, Any]:
    """Run the script from a clean store and a set seed; what it returned, and what it left behind."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    store = pyro.get_param_store()
    returned = script(svi)
    assert len(returned) > 0
    return {
        "returned": returned,
        "values": {name: value.detach().clone() for name, value in store.items()},
        "unconstrained": {name: value.detach().clone() for name, value in store.named_parameters()},
        "gradients": {name: deepcopy(value.grad) for name, value in store.named_parameters()},
        "constraints": {name: str(constraint) for name, constraint in store.get_state()["constraints"].items()},
        "random state": pyro.util.get_rng_state(),
    }


def assert_identical(ours: Any, theirs: Any, where: str = "") -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_identical(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_identical(our, their, f"{where}/{i}")
    else:
        assert ours == theirs, where


def assert_same(script: Script) -> dict[str, Any]:
    """The script leaves the same behind with either class; what that is."""
    theirs = play(script, pyro.infer.SVI)
    ours = play(script, ingle.SVI)
    assert list(ours["values"]) == list(theirs["values"])
    assert_identical(ours, theirs)
    return ours


def adam(lr: float = 0.05) -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": lr})


def state_of(optim: pyro.optim.PyroOptim) -> dict[str, Any]:
    return deepcopy(optim.get_state())


def normal_model(data: Tensor = DATA) -> Tensor:
    scale = pyro.param("noise", torch.tensor(1.5), constraint=constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        return pyro.sample("x", dist.Normal(z, scale), obs=data)


def normal_guide(data: Tensor = DATA) -> Tensor:
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    return pyro.sample("z", dist.Normal(loc, scale))


def observed_model(observations: dict[str, Tensor] | None = None) -> None:
    observations = observations or {"x": DATA}
    scale = pyro.param("noise", torch.tensor(1.5), constraint=constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(DATA)):
        pyro.sample("x", dist.Normal(z.unsqueeze(-1), scale), obs=observations["x"])


def observed_guide(observations: dict[str, Tensor] | None = None) -> None:
    normal_guide()


def unreparameterised_model(data: Tensor = DATA) -> None:
    z = pyro.sample("z", NonreparameterizedNormal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        flag = pyro.sample("flag", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z + flag, 1.0), obs=data)


def unreparameterised_guide(data: Tensor = DATA) -> None:
    loc = pyro.param("loc", torch.tensor(0.1))
    prob = pyro.param("prob", torch.full((len(data),), 0.5), constraint=constraints.unit_interval)
    pyro.sample("z", NonreparameterizedNormal(loc, 0.7))
    with pyro.plate("data", len(data)):
        pyro.sample("flag", dist.Bernoulli(prob), infer={"baseline": {"use_decaying_avg_baseline": True}})


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
    scale = pyro.param("scale_scale", torch.tensor(0.3), constraint=constraints.positive)
    pyro.sample("scale", dist.LogNormal(loc, scale))


@pyro.infer.config_enumerate
def mixture_full_guide(data: Tensor = DATA) -> None:
    mixture_guide(data)
    probs = pyro.param("probs", torch.ones(len(data), 2) / 2, constraint=constraints.simplex)
    with pyro.plate("data", len(data)):
        pyro.sample("k", dist.Categorical(probs))


def train(
    svi: SVI,
    model: Callable[..., Any],
    guide: Callable[..., Any],
    loss: Any,
    *args: Any,
    optim: pyro.optim.PyroOptim | None = None,
    steps: int = 3,
    **kwargs: Any,
) -> list[Any]:
    """The usual script: some steps, with a look at the loss before and after."""
    fit = svi(model, guide, optim or adam(), loss=loss)
    losses = [fit.evaluate_loss(*args, **kwargs)]
    losses += [fit.step(*args, **kwargs) for _ in range(steps)]
    losses.append(fit.evaluate_loss(*args, **kwargs))
    # A pair that does not learn would make the comparison empty.
    assert losses[0] != losses[-1]
    return losses


def squared_error(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
    z = guide(*args)
    scale = pyro.param("noise", torch.tensor(1.5), constraint=constraints.positive)
    return ((DATA - z) ** 2).sum() / scale + scale


def hand_elbo(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
    guide_trace = poutine.trace(guide).get_trace(*args)
    model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
    return guide_trace.log_prob_sum() - model_trace.log_prob_sum()


class HandELBO(pyro.infer.ELBO):
    def _get_trace(self, *args: Any) -> None:
        raise NotImplementedError

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        return hand_elbo(model, guide, *args).item()

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> float:
        loss = hand_elbo(model, guide, *args)
        loss.backward()
        return loss.item()


CONTINUOUS: dict[str, Callable[[], Any]] = {
    "Trace": pyro.infer.Trace_ELBO,
    "Trace particles": lambda: pyro.infer.Trace_ELBO(num_particles=3),
    "Trace vectorised": lambda: pyro.infer.Trace_ELBO(5, vectorize_particles=True, max_plate_nesting=1),
    "Trace guessed nesting": lambda: pyro.infer.Trace_ELBO(num_particles=5, vectorize_particles=True),
    "Trace retained": lambda: pyro.infer.Trace_ELBO(retain_graph=True),
    "Trace jit": lambda: pyro.infer.JitTrace_ELBO(ignore_jit_warnings=True),
    "TraceGraph": pyro.infer.TraceGraph_ELBO,
    "TraceGraph particles": lambda: pyro.infer.TraceGraph_ELBO(num_particles=2),
    "MeanField": pyro.infer.TraceMeanField_ELBO,
    "MeanField particles": lambda: pyro.infer.TraceMeanField_ELBO(num_particles=3),
    "MeanField vectorised": lambda: pyro.infer.TraceMeanField_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "Renyi": lambda: pyro.infer.RenyiELBO(alpha=0.3, num_particles=3),
    "Renyi vectorised": lambda: pyro.infer.RenyiELBO(0, 4, vectorize_particles=True, max_plate_nesting=1),
    "MMD": lambda: pyro.infer.Trace_MMD(RBF(input_dim=1), num_particles=4),
    "EnergyDistance": lambda: pyro.infer.EnergyDistance(prior_scale=0.1, num_particles=3),
    "own ELBO": HandELBO,
    "function": lambda: squared_error,
    "function of traces": lambda: hand_elbo,
    "differentiable_loss": lambda: pyro.infer.Trace_ELBO().differentiable_loss,
}

DISCRETE: dict[str, Callable[[], Any]] = {
    "Trace": pyro.infer.Trace_ELBO,
    "Trace vectorised": lambda: pyro.infer.Trace_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "TraceGraph": pyro.infer.TraceGraph_ELBO,
    "TraceGraph vectorised": lambda: pyro.infer.TraceGraph_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "Renyi": lambda: pyro.infer.RenyiELBO(alpha=0.5, num_particles=2),
}

ENUMERATED: dict[str, Callable[[], Any]] = {
    "Enum": lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1),
    "Enum guessed nesting": pyro.infer.TraceEnum_ELBO,
    "Enum particles": lambda: pyro.infer.TraceEnum_ELBO(num_particles=2, max_plate_nesting=1),
    "Enum vectorised": lambda: pyro.infer.TraceEnum_ELBO(3, vectorize_particles=True, max_plate_nesting=1),
    "Enum jit": lambda: pyro.infer.JitTraceEnum_ELBO(max_plate_nesting=1, ignore_jit_warnings=True),
    "TMC": lambda: pyro.infer.TraceTMC_ELBO(max_plate_nesting=1),
}

WAKE_SLEEP: dict[str, dict[str, Any]] = {
    "wake": {"num_particles": 3, "vectorize_particles": False},
    "wake vectorised": {"num_particles": 3},
    "sleep": {"insomnia": 0.0, "model_has_params": False, "num_sleep_particles": 4},
    "both": {"insomnia": 0.6, "vectorize_particles": False},
}


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("loss", CONTINUOUS.values(), ids=CONTINUOUS)
def test_continuous(loss: Callable[[], Any]) -> None:
    def script(svi: SVI) -> list[Any]:
        return train(svi, normal_model, normal_guide, loss(), DATA)

    left = assert_same(script)
    assert all(type(value) is float for value in left["returned"])
    assert {"loc", "noise"} <= set(left["values"])


def test_tail_adaptive() -> None:
    def script(svi: SVI) -> list[Any]:
        loss = pyro.infer.TraceTailAdaptive_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
        fit = svi(normal_model, normal_guide, adam(), loss=loss)
        return [fit.step(DATA) for _ in range(3)]

    assert_same(script)


@pytest.mark.parametrize("loss", DISCRETE.values(), ids=DISCRETE)
def test_score_function(loss: Callable[[], Any]) -> None:
    assert_same(lambda svi: train(svi, unreparameterised_model, unreparameterised_guide, loss(), DATA))


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
@pytest.mark.parametrize("loss", ENUMERATED.values(), ids=ENUMERATED)
def test_enumerated(loss: Callable[[], Any]) -> None:
    assert_same(lambda svi: train(svi, mixture_model, mixture_guide, loss(), DATA))


def test_enumerated_in_the_guide() -> None:
    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
    assert_same(lambda svi: train(svi, mixture_model, mixture_full_guide, loss, DATA))


@pytest.mark.parametrize("options", WAKE_SLEEP.values(), ids=WAKE_SLEEP)
def test_wake_sleep(options: dict[str, Any]) -> None:
    def script(svi: SVI) -> list[Any]:
        loss = pyro.infer.ReweightedWakeSleep(**options)
        return train(svi, observed_model, observed_guide, loss, observations={"x": DATA})

    left = assert_same(script)
    assert all(type(pair) is tuple and [type(value) for value in pair] == [float, float] for pair in left["returned"])


def test_own_loss_and_grads() -> None:
    def script(svi: SVI) -> list[Any]:
        calls = []

        def loss(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
            calls.append(("loss", torch.is_grad_enabled()))
            return hand_elbo(model, guide, *args)

        def loss_and_grads(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> Tensor:
            calls.append(("loss_and_grads", torch.is_grad_enabled()))
            value = hand_elbo(model, guide, *args)
            (0.5 * value).backward()
            return value

        fit = svi(normal_model, normal_guide, adam(), loss, loss_and_grads)
        return [fit.step(DATA), fit.evaluate_loss(DATA), fit.step(DATA), calls]

    calls = assert_same(script)["returned"][-1]
    assert calls == [("loss_and_grads", True), ("loss", False), ("loss_and_grads", True)]


def test_methods_of_an_elbo_as_functions() -> None:
    def script(svi: SVI) -> list[Any]:
        elbo = pyro.infer.Trace_ELBO()
        fit = svi(normal_model, normal_guide, adam(), loss=elbo.loss, loss_and_grads=elbo.loss_and_grads)
        return [fit.step(DATA), fit.evaluate_loss(DATA), fit.step(DATA)]

    assert_same(script)


def test_loss_in_tuple() -> None:
    def loss(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> tuple[Tensor, Tensor]:
        value = hand_elbo(model, guide, *args)
        return value, 2 * value

    def loss_and_grads(model: Callable[..., Any], guide: Callable[..., Any], *args: Any) -> tuple[Tensor, Tensor]:
        pair = loss(model, guide, *args)
        pair[1].backward()
        return pair

    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), loss, loss_and_grads)
        return [fit.step(DATA), fit.evaluate_loss(DATA)]

    assert_same(script)


def test_loss_without_parameters() -> None:
    def loss(model: Callable[..., Any], guide: Callable[..., Any]) -> float:
        return 3.0

    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), loss)
        return [fit.step(), fit.evaluate_loss()]

    assert assert_same(script)["returned"] == [3.0, 3.0]


def test_run() -> None:
    def script(svi: SVI) -> list[Any]:
        with pytest.warns(FutureWarning) as made:
            fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(), num_samples=6, num_steps=3)
        with pytest.warns(FutureWarning) as ran:
            posterior = fit.run(DATA)
        assert posterior is fit
        with pytest.warns(FutureWarning, match="TracePredictive"):
            predictive = pyro.infer.TracePredictive(normal_model, posterior, num_samples=4)
        return [
            [str(warning.message) for warning in [*made, *ran]],
            [trace.nodes["z"]["value"].detach() for trace in posterior.exec_traces],
            posterior.log_weights,
            pyro.infer.EmpiricalMarginal(posterior, sites="z").mean.detach(),
            posterior.marginal(["z"]).empirical["z"].variance.detach(),
            dict(posterior.information_criterion()),
            predictive.run(DATA).marginal().empirical["_RETURN"].mean.detach(),
        ]

    said = assert_same(script)["returned"][0]
    assert len(said) == 3
    assert "num_steps" in said[0]
    assert "num_samples" in said[1]
    assert "SVI.run" in said[2]


def test_run_without_samples() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        with pytest.warns(FutureWarning, match=r"SVI\.run"), pytest.raises(RuntimeError) as refused:
            fit.run(DATA)
        return [str(refused.value)]

    assert_same(script)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Dropout(0.2), nn.Linear(4, 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = self.layers(x).chunk(2, dim=-1)
        return loc, log_scale.exp()


class AutoEncoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Linear(1, 3)

    def model(self, x: Tensor, weight: float = 1.0) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            with poutine.scale(scale=weight):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor, weight: float = 1.0) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(x)), poutine.scale(scale=weight):
            loc, scale = self.encoder(x)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


def train_autoencoder(svi: SVI, optim: pyro.optim.PyroOptim) -> list[Any]:
    rows = torch.randn(12, 3)
    vae = AutoEncoder()
    fit = svi(vae.model, vae.guide, optim, loss=pyro.infer.Trace_ELBO())
    losses = [fit.step(batch, weight=0.1 * (i + 1)) for i, batch in enumerate(rows.split(4))]
    vae.eval()
    return [*losses, fit.evaluate_loss(rows), dict(vae.state_dict())]


def test_modules() -> None:
    left = assert_same(lambda svi: train_autoencoder(svi, adam()))
    layers = ["0.weight", "0.bias", "1.weight", "1.bias", "4.weight", "4.bias"]
    assert list(left["values"]) == [
        *(f"encoder$$$layers.{layer}" for layer in layers),
        "decoder$$$weight",
        "decoder$$$bias",
    ]
    assert torch.equal(left["values"]["decoder$$$weight"], left["returned"][-1]["decoder.weight"])


def test_arguments_by_name() -> None:
    def script(svi: SVI) -> list[Any]:
        asked = []

        def arguments(name: str) -> dict[str, float]:
            asked.append(name)
            return {"lr": 0.1 if name.startswith("encoder.") else 0.01}

        optim = pyro.optim.Adam(arguments)
        losses = train_autoencoder(svi, optim)
        return [*losses, sorted(asked), state_of(optim)]

    *_, asked, _ = assert_same(script)["returned"]
    assert len(asked) == 8
    assert "encoder.layers.0.weight" in asked


def test_arguments_by_module_and_name() -> None:
    def script(svi: SVI) -> list[Any]:
        asked = []

        def arguments(module: str, name: str) -> dict[str, float]:
            asked.append((module, name))
            return {"lr": 0.1 if module == "encoder" else 0.01, "momentum": 0.5}

        optim = pyro.optim.SGD(arguments)
        losses = train_autoencoder(svi, optim)
        return [*losses, sorted(asked), state_of(optim)]

    *_, asked, _ = assert_same(script)["returned"]
    assert len(asked) == 8
    assert ("decoder", "bias") in asked


@pytest.mark.parametrize(
    "clip",
    [
        {"clip_norm": 0.1},
        {"clip_value": 0.05},
        {"clip_norm": 5.0, "clip_value": 0.5},
        lambda module, name: {"clip_norm": 0.1} if name == "loc" else {},
    ],
    ids=["norm", "value", "both", "by parameter"],
)
def test_clip_args(clip: Any) -> None:
    def script(svi: SVI) -> list[Any]:
        # SGD, since Adam would hide the size of the gradient.
        optim = pyro.optim.SGD({"lr": 0.01}, clip)
        return train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA, optim=optim)

    free = play(
        lambda svi: train(
            svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA, optim=pyro.optim.SGD({"lr": 0.01})
        ),
        ingle.SVI,
    )
    assert free["values"]["loc"] != assert_same(script)["values"]["loc"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.ClippedAdam({"lr": 0.05, "betas": (0.95, 0.999), "clip_norm": 1.0, "lrd": 0.99}),
        lambda: pyro.optim.AdagradRMSProp({"eta": 0.5, "t": 0.1}),
        lambda: pyro.optim.DCTAdam({"lr": 0.05}),
        lambda: pyro.optim.RMSprop({"lr": 0.02}),
        lambda: pyro.optim.PyroOptim(torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    ],
    ids=["ClippedAdam", "AdagradRMSProp", "DCTAdam", "RMSprop", "PyroOptim"],
)
def test_optimisers(make: Callable[[], pyro.optim.PyroOptim]) -> None:
    def script(svi: SVI) -> list[Any]:
        optim = make()
        return [
            *train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA, optim=optim),
            state_of(optim),
        ]

    assert_same(script)


def sgd(**schedule: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02}, **schedule}


@pytest.mark.parametrize(
    "make",
    [
        lambda: pyro.optim.ExponentialLR(sgd(gamma=0.5)),
        lambda: pyro.optim.StepLR(sgd(step_size=2, gamma=0.1)),
        lambda: pyro.optim.LambdaLR(sgd(lr_lambda=lambda epoch: 1 / (1 + epoch)), {"clip_norm": 1.0}),
        lambda: pyro.optim.OneCycleLR(sgd(max_lr=0.1, total_steps=8)),
        lambda: pyro.optim.ReduceLROnPlateau(sgd(patience=0, factor=0.1)),
    ],
    ids=["ExponentialLR", "StepLR", "LambdaLR clipped", "OneCycleLR", "ReduceLROnPlateau"],
)
def test_schedulers(make: Callable[[], pyro.optim.PyroOptim]) -> None:
    def script(svi: SVI) -> list[Any]:
        scheduler = make()
        fit = svi(normal_model, normal_guide, scheduler, loss=pyro.infer.TraceGraph_ELBO())
        losses, rates = [], []
        for _ in range(4):
            losses += [fit.step(batch) for batch in DATA.split(3)]
            if isinstance(next(iter(scheduler.optim_objs.values())), torch.optim.lr_scheduler.ReduceLROnPlateau):
                scheduler.step(losses[-1])
            else:
                scheduler.step()
            state = state_of(scheduler)
            rates.append({name: each["optimizer"]["param_groups"][0]["lr"] for name, each in state.items()})
        return [*losses, rates]

    rates = assert_same(script)["returned"][-1]
    assert set(rates[0]) == {"loc", "scale", "noise"}
    assert rates[0] != rates[-1]


def test_state_goes_back() -> None:
    def script(svi: SVI) -> list[Any]:
        store = pyro.get_param_store()
        optim = adam()
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA) for _ in range(3)]
        params, moments, state = deepcopy(store.get_state()), state_of(optim), pyro.util.get_rng_state()
        onwards = [fit.step(DATA) for _ in range(3)]

        pyro.clear_param_store()
        store.set_state(params)
        optim = adam()
        optim.set_state(moments)
        pyro.util.set_rng_state(state)
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        again = [fit.step(DATA) for _ in range(3)]
        assert again == onwards
        return [*losses, *again, moments, state_of(optim)]

    moments = assert_same(script)["returned"][-1]
    assert set(moments) == {"loc", "scale", "noise"}
    assert all(each["state"][0]["step"] == 6 for each in moments.values())


def test_checkpoint_on_disk(tmp_path: Path) -> None:
    def script(svi: SVI) -> list[Any]:
        rows = torch.randn(6, 3)
        losses = []
        for resumed in (False, True):
            optim = adam()
            net = nn.Linear(3, 1)
            if resumed:
                pyro.clear_param_store()
                pyro.get_param_store().load(tmp_path / "params")
                optim.load(tmp_path / "optim")
                pyro.module("net", net, update_module_params=True)

            def model(x: Tensor, net: nn.Module = net) -> None:
                pyro.module("net", net)
                slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
                with pyro.plate("rows", len(x)):
                    pyro.sample("y", dist.Normal(slope * net(x).squeeze(-1), 1.0), obs=DATA)

            def guide(x: Tensor) -> None:
                pyro.sample("slope", dist.Normal(pyro.param("slope_loc", torch.tensor(0.5)), 0.1))

            fit = svi(model, guide, optim, pyro.infer.Trace_ELBO())
            losses += [fit.step(rows) for _ in range(3)]
            pyro.get_param_store().save(tmp_path / "params")
            optim.save(tmp_path / "optim")
        return [*losses, state_of(optim)]

    moments = assert_same(script)["returned"][-1]
    assert all(each["state"][0]["step"] == 6 for each in moments.values())


@pytest.mark.parametrize("first", [ingle.SVI, pyro.infer.SVI], ids=["from Ingle", "from Pyro"])
@pytest.mark.parametrize("second", [ingle.SVI, pyro.infer.SVI], ids=["to Ingle", "to Pyro"])
def test_one_goes_on_from_the_other(first: SVI, second: SVI) -> None:
    def relay(*classes: SVI) -> Script:
        def script(_: SVI) -> list[Any]:
            optim = adam()
            losses = []
            for svi in classes:
                fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
                losses += [fit.step(DATA) for _ in range(3)]
            return [*losses, state_of(optim)]

        return script

    changed = play(relay(first, second), ingle.SVI)
    assert_identical(changed, play(relay(pyro.infer.SVI, pyro.infer.SVI), pyro.infer.SVI))


class Regression(PyroModule):
    """Parameters, constrained parameters, a submodule of either kind and a sampled attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = PyroModule[nn.Linear](3, 1)
        self.linear.bias = PyroSample(dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        self.warp = nn.Linear(1, 1)
        self.noise = PyroParam(torch.tensor(0.7), constraint=constraints.positive)
        self.shift = nn.Parameter(torch.tensor(0.2))

    def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
        mean = self.warp(self.linear(x)).squeeze(-1) + self.shift
        with pyro.plate("rows", len(x)):
            pyro.sample("y", dist.Normal(mean, self.noise), obs=y)
        return mean


class RegressionGuide(PyroModule):
    def __init__(self) -> None:
        super().__init__()
        self.loc = PyroParam(torch.zeros(1))

    @PyroParam(constraint=constraints.positive)
    def scale(self) -> Tensor:
        return torch.full((1,), 0.3)

    def forward(self, x: Tensor, y: Tensor | None = None) -> None:
        pyro.sample("linear.bias", dist.Normal(self.loc, self.scale).to_event(1))


def train_regression(svi: SVI, make_guide: Callable[[PyroModule], Callable[..., Any]]) -> list[Any]:
    x = torch.randn(6, 3)
    model = Regression()
    guide = make_guide(model)
    losses = train(svi, model, guide, pyro.infer.Trace_ELBO(), x, DATA)
    predictive = pyro.infer.Predictive(model, guide=guide, num_samples=3)
    drawn = {name: value.detach() for name, value in predictive(x).items()}
    return [*losses, drawn, {name: value.detach().clone() for name, value in model.named_parameters()}]


def test_pyro_module() -> None:
    left = assert_same(lambda svi: train_regression(svi, lambda _: RegressionGuide()))
    assert set(left["values"]) == {"loc", "scale", "noise", "shift", "linear.weight", "warp$$$weight", "warp$$$bias"}
    assert left["constraints"]["noise"] == str(constraints.positive)


def test_pyro_module_with_autoguide() -> None:
    left = assert_same(lambda svi: train_regression(svi, autoguide.AutoNormal))
    assert {"AutoNormal.locs.linear.bias", "AutoNormal.scales.linear.bias"} < set(left["values"])


def test_local_parameters() -> None:
    def script(svi: SVI) -> list[Any]:
        guide = autoguide.AutoNormal(hierarchy)
        return [*train(svi, hierarchy, guide, pyro.infer.Trace_ELBO(), DATA), dict(guide.state_dict())]

    with pyro.settings.context(module_local_params=True):
        left = assert_same(script)
    assert not left["values"]
    assert "locs.mean_unconstrained" in left["returned"][-1]


def hierarchy(x: Tensor = DATA) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 2, dim=-1):
        mean = pyro.sample("mean", dist.Normal(loc, 1.0))
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean[torch.arange(len(x)) % 2], scale), obs=x)


def guide_list(model: Callable[..., Any]) -> autoguide.AutoGuideList:
    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoDelta(poutine.block(model, expose=["scale"])))
    guides.append(autoguide.AutoDiagonalNormal(poutine.block(model, hide=["scale"])))
    return guides


def mixed_guide_list(model: Callable[..., Any]) -> autoguide.AutoGuideList:
    def rest(x: Tensor = DATA) -> None:
        pyro.sample("scale", dist.LogNormal(pyro.param("scale_loc", torch.tensor(0.1)), 0.2))

    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoNormal(poutine.block(model, hide=["scale"])))
    guides.append(rest)
    return guides


class Easy(EasyGuide):
    def guide(self, x: Tensor = DATA) -> None:
        self.map_estimate("scale")
        group = self.group(match="loc|mean")
        loc = pyro.param("guide_loc", torch.zeros(group.event_shape))
        scale = pyro.param("guide_scale", torch.full(group.event_shape, 0.2), constraint=constraints.positive)
        group.sample("joint", dist.Normal(loc, scale).to_event(1))


AUTOGUIDES: dict[str, Callable[[Callable[..., Any]], Any]] = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": lambda model: autoguide.AutoNormal(model, init_scale=0.3, init_loc_fn=autoguide.init_to_sample),
    "AutoDiagonalNormal": autoguide.AutoDiagonalNormal,
    "AutoMultivariateNormal": autoguide.AutoMultivariateNormal,
    "AutoLowRankMultivariateNormal": lambda model: autoguide.AutoLowRankMultivariateNormal(model, rank=1),
    # Near the mode, where the Hessian is positive definite.
    "AutoLaplaceApproximation": lambda model: autoguide.AutoLaplaceApproximation(
        model,
        init_loc_fn=autoguide.init_to_value(
            values={"loc": torch.tensor(0.8), "scale": torch.tensor(1.0), "mean": torch.tensor([1.0, 0.8])}
        ),
    ),
    "AutoIAFNormal": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[5], num_transforms=1),
    "AutoNormalizingFlow": lambda model: autoguide.AutoNormalizingFlow(model, dist.transforms.planar),
    "AutoStructured": lambda model: autoguide.AutoStructured(
        model,
        conditionals={"loc": "normal", "scale": "delta", "mean": "mvn"},
        dependencies={"mean": {"loc": "linear"}},
    ),
    "AutoGaussian": autoguide.AutoGaussian,
    "AutoNormalMessenger": autoguide.AutoNormalMessenger,
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoRegressiveMessenger": autoguide.AutoRegressiveMessenger,
    "AutoGuideList": guide_list,
    "AutoGuideList with a function": mixed_guide_list,
    "EasyGuide": Easy,
}


@pytest.mark.parametrize("make", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_autoguides(make: Callable[[Callable[..., Any]], Any]) -> None:
    def script(svi: SVI) -> list[Any]:
        guide = make(hierarchy)
        losses = train(svi, hierarchy, guide, pyro.infer.Trace_ELBO(), DATA, optim=adam(0.02))
        if isinstance(guide, autoguide.AutoLaplaceApproximation):
            guide = guide.laplace_approximation(DATA)
        drawn = pyro.infer.Predictive(hierarchy, guide=guide, num_samples=3)(DATA)
        return [*losses, {name: value.detach() for name, value in drawn.items()}]

    assert_same(script)


def test_discrete_autoguide() -> None:
    def script(svi: SVI) -> list[Any]:
        guide = autoguide.AutoGuideList(mixture_model)
        guide.append(autoguide.AutoNormal(poutine.block(mixture_model, expose=["scale"])))
        guide.append(autoguide.AutoDiscreteParallel(poutine.block(mixture_model, expose=["k"])))
        return train(svi, mixture_model, guide, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), DATA)

    assert_same(script)


def subsampled_model(data: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data), subsample_size=2) as rows:
        local = pyro.sample("local", dist.Normal(z, 1.0))
        pyro.sample("x", dist.Normal(local, 0.5), obs=data[rows])


def subsampled_guide(data: Tensor) -> None:
    normal_guide()
    locs = pyro.param("locs", lambda: torch.zeros(len(data)))
    with pyro.plate("data", len(data), subsample_size=2) as rows:
        pyro.sample("local", dist.Normal(locs[rows], 0.3))


def sequential_model(data: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    for i in pyro.plate("data", len(data), subsample_size=3):
        pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=data[i])


def test_subsample() -> None:
    assert_same(lambda svi: train(svi, subsampled_model, subsampled_guide, pyro.infer.Trace_ELBO(), DATA))


def test_subsample_under_autoguide() -> None:
    def script(svi: SVI) -> list[Any]:
        guide = autoguide.AutoNormal(
            subsampled_model, create_plates=lambda data: pyro.plate("data", len(data), subsample_size=2)
        )
        return train(svi, subsampled_model, guide, pyro.infer.Trace_ELBO(), DATA)

    left = assert_same(script)
    assert left["values"]["AutoNormal.locs.local"].shape == DATA.shape


def test_sequential_subsample() -> None:
    assert_same(lambda svi: train(svi, sequential_model, normal_guide, pyro.infer.TraceGraph_ELBO(), DATA))


def test_given_subsample() -> None:
    def model(data: Tensor, rows: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 2.0))
        with pyro.plate("data", len(data), subsample=rows):
            pyro.sample("x", dist.Normal(z, 1.0), obs=pyro.subsample(data, event_dim=0))

    def script(svi: SVI) -> list[Any]:
        guide = autoguide.AutoDelta(model)
        fit = svi(model, guide, adam(), pyro.infer.Trace_ELBO())
        return [fit.step(DATA, rows) for _ in range(2) for rows in torch.randperm(len(DATA)).split(2)]

    assert_same(script)


def test_markov_model() -> None:
    def model(data: Tensor) -> None:
        moves = pyro.param("moves", torch.tensor([[0.7, 0.3], [0.4, 0.6]]), constraint=constraints.simplex)
        locs = pyro.param("locs", torch.tensor([0.0, 1.5]))
        state = torch.tensor(0)
        for t in pyro.markov(range(len(data))):
            state = pyro.sample(f"state_{t}", dist.Categorical(Vindex(moves)[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"x_{t}", dist.Normal(Vindex(locs)[state], 1.0), obs=data[t])

    def guide(data: Tensor) -> None:
        pass

    loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=0)
    assert_same(lambda svi: train(svi, model, guide, loss, DATA[:4]))


class Baseline(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(len(DATA), 1)

    def forward(self, data: Tensor) -> Tensor:
        return self.linear(data).squeeze()


def test_baselines() -> None:
    def guide(data: Tensor, net: nn.Module) -> None:
        pyro.module("baseline", net)
        pyro.sample(
            "z",
            NonreparameterizedNormal(pyro.param("loc", torch.tensor(0.1)), 0.7),
            infer={"baseline": {"nn_baseline": net, "nn_baseline_input": data, "use_decaying_avg_baseline": True}},
        )

    def model(data: Tensor, net: nn.Module) -> None:
        normal_model(data)

    def script(svi: SVI) -> list[Any]:
        return train(svi, model, guide, pyro.infer.TraceGraph_ELBO(), DATA, Baseline())

    left = assert_same(script)
    assert {"baseline$$$linear.weight", "__baseline_avg_downstream_cost_z"} < set(left["values"])


def test_changing_structure() -> None:
    """Parameters that appear after the first step, and some that sit a step out."""

    def model() -> None:
        count = 0
        while pyro.sample(f"more_{count}", dist.Bernoulli(0.5)):
            count += 1
        pyro.sample("x", dist.Normal(float(count), 1.0), obs=torch.tensor(2.0))

    def guide() -> None:
        count = 0
        while pyro.sample(f"more_{count}", dist.Bernoulli(pyro.param(f"p_{count}", torch.tensor(0.6)).clamp(0.1, 0.9))):
            count += 1

    def script(svi: SVI) -> list[Any]:
        optim = adam()
        fit = svi(model, guide, optim, pyro.infer.Trace_ELBO())
        seen, losses = [], []
        for _ in range(12):
            losses.append(fit.step())
            seen.append(len(pyro.get_param_store()))
        return [*losses, seen, state_of(optim)]

    seen = assert_same(script)["returned"][-2]
    assert seen[0] < seen[-1]


def test_structure_missing_in_the_guide() -> None:
    def model(data: Tensor) -> None:
        normal_model(data)
        pyro.sample("w", dist.Normal(0.0, 1.0))

    def script(svi: SVI) -> list[Any]:
        fit = svi(model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        with pytest.warns(UserWarning, match="Found vars in model but not guide") as said:
            losses = [fit.step(DATA), fit.evaluate_loss(DATA)]
        return [*losses, [str(warning.message) for warning in said]]

    assert assert_same(script)["returned"][-1]


def test_nan_loss() -> None:
    def script(svi: SVI) -> list[Any]:
        def loss(model: Callable[..., Any], guide: Callable[..., Any]) -> Tensor:
            return pyro.param("p", torch.tensor(1.0)) * math.nan

        fit = svi(normal_model, normal_guide, adam(), loss)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            losses = [fit.step(), fit.evaluate_loss()]
        left = pyro.get_param_store()["p"].detach().isnan()
        pyro.clear_param_store()
        return [[math.isnan(each) for each in losses], left, [str(warning.message) for warning in said]]

    assert assert_same(script)["returned"][0] == [True, True]


def test_handlers_around_the_step() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = []
        with poutine.trace(param_only=True) as params:
            losses.append(fit.step(DATA))
        with poutine.scale(scale=0.1):
            losses += [fit.step(DATA), fit.evaluate_loss(DATA)]
        with poutine.seed(rng_seed=7):
            losses.append(fit.step(DATA))
        with poutine.block():
            losses.append(fit.step(DATA))
        with pyro.validation_enabled(False):
            losses.append(fit.step(DATA))
        return [*losses, list(params.trace.nodes)]

    params = assert_same(script)["returned"][-1]
    assert set(params) == {"loc", "scale", "noise"}


def test_handlers_around_the_programs() -> None:
    def script(svi: SVI) -> list[Any]:
        model = poutine.scale(pyro.condition(unreparameterised_model, data={"flag": torch.ones(len(DATA))}), 0.5)
        guide = poutine.block(unreparameterised_guide, hide=["flag"])
        return train(svi, model, guide, pyro.infer.Trace_ELBO(), DATA)

    assert_same(script)


def test_gradients_seen_by_hooks() -> None:
    def script(svi: SVI) -> list[Any]:
        norms: dict[str, list[float]] = {}
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA)]
        for name, value in pyro.get_param_store().named_parameters():
            value.register_hook(lambda grad, name=name: norms.setdefault(name, []).append(grad.norm().item()))
        losses += [fit.step(DATA) for _ in range(2)]
        return [*losses, norms]

    norms = assert_same(script)["returned"][-1]
    assert {name: len(each) for name, each in norms.items()} == {"loc": 2, "scale": 2, "noise": 2}


def test_gradients_zeroed() -> None:
    left = assert_same(lambda svi: [svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO()).step(DATA)])
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in left["gradients"].values())


def test_evaluate_loss_moves_nothing() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(num_particles=2))
        return [fit.evaluate_loss(DATA), fit.evaluate_loss(DATA)]

    left = assert_same(script)
    assert left["values"]["noise"] == 1.5
    assert set(left["gradients"].values()) == {None}


def test_store_filled_before() -> None:
    def script(svi: SVI) -> list[Any]:
        pyro.param("loc", torch.tensor(4.0))
        pyro.param("untouched", torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
        return train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA)

    left = assert_same(script)
    assert list(left["values"]) == ["loc", "untouched", "scale", "noise"]
    assert 3.0 < left["values"]["loc"] < 4.0
    assert left["gradients"]["untouched"] is None


def test_store_changed_between_steps() -> None:
    def script(svi: SVI) -> list[Any]:
        optim = adam()
        fit = svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO())
        losses = [fit.step(DATA)]
        pyro.get_param_store()["loc"] = torch.tensor(-3.0)
        losses.append(fit.step(DATA))
        del pyro.get_param_store()["scale"]
        losses.append(fit.step(DATA))
        pyro.clear_param_store()
        return [*losses, fit.step(DATA), len(optim.optim_objs)]

    assert_same(script)


def test_store_scopes() -> None:
    def script(svi: SVI) -> list[Any]:
        store = pyro.get_param_store()
        losses = train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA)
        with store.scope() as scope:
            losses += train(svi, mixture_model, mixture_guide, pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), DATA)
        return [*losses, sorted(scope["params"])]

    left = assert_same(script)
    assert set(left["values"]) == {"loc", "scale", "noise"}
    assert left["returned"][-1] == ["locs", "scale_loc", "scale_scale", "weights"]


def test_two_on_one_store() -> None:
    def script(svi: SVI) -> list[Any]:
        fits = [
            svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO()),
            svi(normal_model, normal_guide, pyro.optim.SGD({"lr": 0.01}), pyro.infer.TraceMeanField_ELBO()),
        ]
        return [fit.step(DATA) for _ in range(3) for fit in fits]

    assert_same(script)


def test_draws_between_steps() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO())
        return [each for _ in range(3) for each in (fit.step(DATA), torch.rand(2), float(np.random.rand()))]

    assert_same(script)
    assert play(script, ingle.SVI, seed=1)["returned"][0] != play(script, ingle.SVI, seed=2)["returned"][0]


def test_double_precision() -> None:
    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0, dtype=torch.float64)), 0.5))

    left = assert_same(lambda svi: train(svi, normal_model, guide, pyro.infer.Trace_ELBO(), DATA.double()))
    assert left["values"]["loc"].dtype == torch.float64


def test_attributes() -> None:
    def script(svi: SVI) -> list[Any]:
        optim, elbo = adam(), pyro.infer.Trace_ELBO()
        fit = svi(normal_model, normal_guide, optim, elbo, num_chains=2)
        assert fit.model is normal_model
        assert fit.guide is normal_guide
        assert fit.optim is optim
        assert fit.loss == elbo.loss
        assert fit.loss_and_grads == elbo.loss_and_grads
        # The deprecated EmpiricalMarginal and TracePredictive ask for it.
        assert isinstance(fit, pyro.infer.TracePosterior)
        return [fit.num_samples, fit.num_steps, fit.num_chains]

    assert assert_same(script)["returned"] == [0, 0, 2]


def test_subclass() -> None:
    def script(svi: SVI) -> list[Any]:
        class Halved(svi):  # type: ignore[misc, valid-type]
            def step(self, *args: Any, **kwargs: Any) -> float:
                return super().step(*args, **kwargs) / 2

        return train(Halved, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA)

    assert_same(script)


@pytest.mark.parametrize("method", ["__init__", "step", "evaluate_loss", "run"])
def test_signatures(method: str) -> None:
    assert inspect.signature(getattr(ingle.SVI, method)) == inspect.signature(getattr(pyro.infer.SVI, method))


@pytest.mark.parametrize(
    "optim",
    [
        lambda: torch.optim.Adam([torch.zeros(1, requires_grad=True)]),
        lambda: torch.optim.Adam,
        lambda: pyro.optim.multi.PyroMultiOptimizer(adam()),
        lambda: {"lr": 0.1},
        lambda: None,
    ],
    ids=["of torch", "class", "multi", "arguments", "none"],
)
def test_optimiser_refused(optim: Callable[[], Any]) -> None:
    said = []
    for svi in (pyro.infer.SVI, ingle.SVI):
        with pytest.raises(ValueError, match=r"pyro\.optim\.PyroOptim") as refused:
            svi(normal_model, normal_guide, optim(), pyro.infer.Trace_ELBO())
        assert refused.type is ValueError
        said.append(str(refused.value))
    assert said[0] == said[1]


def missing_loss(svi: SVI) -> None:
    svi(normal_model, normal_guide, adam())  # type: ignore[call-arg]


def unknown_argument(svi: SVI) -> None:
    svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(), stride=2)


def wrong_data(svi: SVI) -> None:
    svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO()).step(DATA, DATA)


def arguments_not_a_dict(svi: SVI) -> None:
    optim = pyro.optim.Adam(lambda name: 0.1)
    svi(normal_model, normal_guide, optim, pyro.infer.Trace_ELBO()).step(DATA)


def unknown_optimiser_argument(svi: SVI) -> None:
    svi(normal_model, normal_guide, pyro.optim.Adam({"rate": 0.1}), pyro.infer.Trace_ELBO()).step(DATA)


def local_module_parameters(svi: SVI) -> None:
    with pyro.settings.context(module_local_params=True):
        svi(Regression(), RegressionGuide(), adam(), pyro.infer.Trace_ELBO()).step(torch.ones(6, 3), DATA)


def loss_of_tail_adaptive(svi: SVI) -> None:
    loss = pyro.infer.TraceTailAdaptive_ELBO(4, vectorize_particles=True, max_plate_nesting=1)
    svi(normal_model, normal_guide, adam(), loss).evaluate_loss(DATA)


def unreparameterised_energy_distance(svi: SVI) -> None:
    svi(unreparameterised_model, unreparameterised_guide, adam(), pyro.infer.EnergyDistance()).step(DATA)


def repeated_site(svi: SVI) -> None:
    def model(data: Tensor) -> None:
        normal_model(data)
        normal_model(data)

    svi(model, normal_guide, adam(), pyro.infer.Trace_ELBO()).step(DATA)


@pytest.mark.parametrize(
    "fault",
    [
        missing_loss,
        unknown_argument,
        wrong_data,
        arguments_not_a_dict,
        unknown_optimiser_argument,
        local_module_parameters,
        loss_of_tail_adaptive,
        unreparameterised_energy_distance,
        repeated_site,
    ],
)
def test_same_error(fault: Callable[[SVI], None]) -> None:
    def script(svi: SVI) -> list[Any]:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            fault(svi)
        return [raised.type, str(raised.value)]

    assert_same(script)


def surroundings() -> dict[str, Any]:
    return {
        "settings": pyro.settings.get(),
        "handlers": list(_PYRO_STACK),
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision": torch.get_float32_matmul_precision(),
        "numpy": np.geterr(),
        "warnings": list(warnings.filters),
    }


@pytest.mark.parametrize("validate", [True, False])
def test_leaves_the_surroundings(validate: bool) -> None:
    with pyro.validation_enabled(validate):
        before = surroundings()
        play(lambda svi: train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA), ingle.SVI)
        with pytest.raises(TypeError):
            wrong_data(ingle.SVI)
        assert surroundings() == before


def test_import_leaves_pyro() -> None:
    code = """
import pyro, pyro.infer, torch
def look():
    inference = {name: vars(pyro.infer)[name] for name in pyro.infer.__all__}
    return pyro.settings.get(), dict(vars(pyro.infer.SVI)), inference, torch.get_default_dtype()
before, state = look(), torch.get_rng_state()
import ingle
ingle.SVI
assert look() == before
assert torch.equal(torch.get_rng_state(), state)
assert not pyro.get_param_store()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
