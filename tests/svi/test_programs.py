"""Kinds of programs: subsampled, enumerated, of changing structure, with networks, with guides that Pyro makes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro import poutine
from pyro.contrib.easyguide import EasyGuide
from pyro.distributions import constraints
from pyro.distributions.testing.fakes import NonreparameterizedNormal
from pyro.infer import autoguide
from pyro.nn import PyroModule, PyroParam, PyroSample
from pyro.ops.indexing import Vindex
from svi.parity import DATA, SVI, Program, adam, assert_same, normal_guide, normal_model, normal_svi, state_of, train
from torch import Tensor, nn


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


def test_subsample() -> None:
    assert_same(lambda svi: train(svi, subsampled_model, subsampled_guide, pyro.infer.Trace_ELBO(), DATA))


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

    def model(names: str) -> None:
        for name in names:
            pyro.sample(name, dist.Normal(1.0, 1.0))

    def guide(names: str) -> None:
        for name in names:
            pyro.sample(name, dist.Normal(pyro.param(f"loc_{name}", torch.tensor(0.1)), 0.5))

    def script(svi: SVI) -> list[Any]:
        optim = adam()
        fit = svi(model, guide, optim, pyro.infer.Trace_ELBO())
        return [*(fit.step(names) for names in ("a", "ab", "b", "bac", "c")), state_of(optim)]

    state = assert_same(script)["returned"][-1]
    assert {name[-1]: each["state"][0]["step"].item() for name, each in state.items()} == {"a": 3, "b": 3, "c": 2}


def test_handlers_around_the_step() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = normal_svi(svi)
        losses = []
        with poutine.trace(param_only=True) as params:
            losses.append(fit.step(DATA))
        with poutine.scale(scale=0.1):
            losses += [fit.step(DATA), fit.evaluate_loss(DATA)]
        with poutine.seed(rng_seed=7):
            losses.append(fit.step(DATA))
        return [*losses, list(params.trace.nodes)]

    params = assert_same(script)["returned"][-1]
    assert set(params) == {"loc", "scale", "noise"}


def test_double_precision() -> None:
    def guide(data: Tensor) -> None:
        pyro.sample("z", dist.Normal(pyro.param("loc", torch.tensor(0.0, dtype=torch.float64)), 0.5))

    left = assert_same(lambda svi: train(svi, normal_model, guide, pyro.infer.Trace_ELBO(), DATA.double()))
    assert left["values"]["loc"].dtype == torch.float64


class AutoEncoder(nn.Module):
    """With layers that have buffers and random numbers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.2), nn.Linear(4, 2))
        self.decoder = nn.Linear(1, 3)

    def model(self, x: Tensor) -> None:
        pyro.module("decoder", self.decoder)
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.decoder(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("rows", len(x)):
            loc, log_scale = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()).to_event(1))


def test_modules() -> None:
    def script(svi: SVI) -> list[Any]:
        asked = []

        def arguments(module: str, name: str) -> dict[str, float]:
            asked.append((module, name))
            return {"lr": 0.1 if module == "encoder" else 0.01, "momentum": 0.5}

        rows = torch.randn(12, 3)
        vae = AutoEncoder()
        optim = pyro.optim.SGD(arguments)
        fit = svi(vae.model, vae.guide, optim, loss=pyro.infer.Trace_ELBO())
        losses = [fit.step(x=batch) for batch in rows.split(4)]
        vae.eval()
        return [*losses, fit.evaluate_loss(rows), state_of(optim), sorted(asked), dict(vae.state_dict())]

    left = assert_same(script)
    *_, asked, state = left["returned"]
    layers = ["0.weight", "0.bias", "1.weight", "1.bias", "3.weight", "3.bias"]
    assert asked == sorted([("decoder", "bias"), ("decoder", "weight"), *(("encoder", layer) for layer in layers)])
    assert list(left["values"])[:6] == [f"encoder$$${layer}" for layer in layers]
    assert torch.equal(left["values"]["decoder$$$weight"], state["decoder.weight"])


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


def test_pyro_module() -> None:
    def script(svi: SVI) -> list[Any]:
        x = torch.randn(6, 3)
        model = Regression()
        losses = train(svi, model, autoguide.AutoNormal(model), pyro.infer.Trace_ELBO(), x, DATA)
        return [*losses, {name: value.detach().clone() for name, value in model.named_parameters()}]

    left = assert_same(script)
    assert {"noise", "shift", "linear.weight", "warp$$$weight", "AutoNormal.locs.linear.bias"} < set(left["values"])
    assert left["constraints"]["noise"] == str(constraints.positive)


def hierarchy(x: Tensor = DATA) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", 2, dim=-1):
        mean = pyro.sample("mean", dist.Normal(loc, 1.0))
    with pyro.plate("rows", len(x), dim=-1):
        pyro.sample("x", dist.Normal(mean[torch.arange(len(x)) % 2], scale), obs=x)


def guide_list(model: Program) -> autoguide.AutoGuideList:
    def rest(x: Tensor = DATA) -> None:
        pyro.sample("scale", dist.LogNormal(pyro.param("scale_loc", torch.tensor(0.1)), 0.2))

    guides = autoguide.AutoGuideList(model)
    guides.append(autoguide.AutoDiagonalNormal(poutine.block(model, hide=["scale"])))
    guides.append(rest)
    return guides


class Easy(EasyGuide):
    def guide(self, x: Tensor = DATA) -> None:
        self.map_estimate("scale")
        group = self.group(match="loc|mean")
        loc = pyro.param("guide_loc", torch.zeros(group.event_shape))
        scale = pyro.param("guide_scale", torch.full(group.event_shape, 0.2), constraint=constraints.positive)
        group.sample("joint", dist.Normal(loc, scale).to_event(1))


AUTOGUIDES: dict[str, Callable[[Program], Any]] = {
    "AutoDelta": autoguide.AutoDelta,
    "AutoNormal": lambda model: autoguide.AutoNormal(model, init_scale=0.3, init_loc_fn=autoguide.init_to_sample),
    "AutoIAFNormal": lambda model: autoguide.AutoIAFNormal(model, hidden_dim=[5], num_transforms=1),
    "AutoHierarchicalNormalMessenger": autoguide.AutoHierarchicalNormalMessenger,
    "AutoGuideList": guide_list,
    "EasyGuide": Easy,
}


@pytest.mark.parametrize("make", AUTOGUIDES.values(), ids=AUTOGUIDES)
def test_autoguide(make: Callable[[Program], Any]) -> None:
    def script(svi: SVI) -> list[Any]:
        guide = make(hierarchy)
        losses = train(svi, hierarchy, guide, pyro.infer.Trace_ELBO(), DATA, optim=adam(0.02))
        drawn = pyro.infer.Predictive(hierarchy, guide=guide, num_samples=3)(DATA)
        return [*losses, {name: value.detach() for name, value in drawn.items()}]

    assert_same(script)


def test_local_parameters() -> None:
    def script(svi: SVI) -> list[Any]:
        guide = autoguide.AutoNormal(hierarchy)
        return [*train(svi, hierarchy, guide, pyro.infer.Trace_ELBO(), DATA), dict(guide.state_dict())]

    with pyro.settings.context(module_local_params=True):
        left = assert_same(script)
    assert not left["values"]
    assert "locs.mean_unconstrained" in left["returned"][-1]
