"""The torch modules behind a program, wherever it keeps them."""

from __future__ import annotations

import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.program import find_modules

Y = torch.linspace(-1.0, 2.0, 10)
NETS: list[torch.nn.Module] = []
networks = types.ModuleType("networks")
networks.inner = types.ModuleType("networks.inner")  # type: ignore[attr-defined]


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def network() -> torch.nn.Sequential:
    torch.manual_seed(1)
    return torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))


def guided(net: torch.nn.Module, y: Tensor) -> None:
    pyro.module("net", net)
    loc, scale = net(y[:, None]).mean(0)
    pyro.sample("mu", dist.Normal(loc, scale.exp()))


class Held:
    """An instance, called, whose networks are in a container."""

    def __init__(self, nets: Any) -> None:
        self.nets = nets

    def __call__(self, y: Tensor) -> None:
        guided(next(iter(self.nets.values() if isinstance(self.nets, dict) else self.nets)), y)

    def guide(self, y: Tensor) -> None:
        self(y)


class Uncalled:
    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net

    def guide(self, y: Tensor) -> None:
        guided(self.net, y)


class Unregistered(torch.nn.Module):
    """Keeps a network out of its own children."""

    def __init__(self, net: torch.nn.Module) -> None:
        super().__init__()
        self.nets = [net]

    def forward(self, y: Tensor) -> None:
        guided(self.nets[0], y)


def in_closure(net: torch.nn.Module) -> Any:
    nets = {"deep": [(net,)]}
    return lambda y: guided(nets["deep"][0][0], y)


def in_global(net: torch.nn.Module) -> Any:
    NETS[:] = [net]
    return lambda y: guided(NETS[0], y)


def in_namespace(net: torch.nn.Module) -> Any:
    networks.enc = net  # type: ignore[attr-defined]
    return lambda y: guided(networks.enc, y)


def in_inner_namespace(net: torch.nn.Module) -> Any:
    networks.inner.dec = [net]

    def guide(y: Tensor) -> None:
        def inside() -> None:
            guided(networks.inner.dec[0], y)

        inside()

    return guide


PLACES: dict[str, Callable[[torch.nn.Module], Any]] = {
    "list": lambda net: Held([net]),
    "tuple": lambda net: Held((net,)),
    "dict": lambda net: Held({"a": net}),
    "set": lambda net: Held({net}),
    "method": lambda net: Held([net]).guide,
    "method of what is not called": lambda net: Uncalled(net).guide,
    "unregistered": Unregistered,
    "closure": in_closure,
    "global": in_global,
    "namespace": in_namespace,
    "inner namespace": in_inner_namespace,
}


@pytest.mark.parametrize("place", PLACES)
def test_found(place: str) -> None:
    net = network()
    assert any(found is net for found in find_modules(PLACES[place](net)))


def test_what_a_namespace_holds_beside_is_not_found() -> None:
    networks.other = other = network()  # type: ignore[attr-defined]
    assert all(found is not other for found in find_modules(in_namespace(network())))


def test_set_has_one_order() -> None:
    parts = [torch.nn.Linear(1, size) for size in range(1, 9)]
    orders = [[str(found) for found in find_modules(Held(set(nets)))] for nets in (parts, parts[::-1])]
    assert orders[0] == orders[1]
    copies = [torch.nn.Linear(1, size) for size in range(1, 9)]
    assert [str(found) for found in find_modules(Held(set(copies)))] == orders[0]


@pytest.mark.parametrize("place", ["list", "namespace"])
def test_buffers_are_kept_resumed_and_loaded(place: str, tmp_path: Path) -> None:
    make = PLACES[place]
    net = network()
    fresh = net[1].running_mean.clone()
    assert ingle.check(model, make(net), Y).ok
    assert torch.equal(net[1].running_mean, fresh)

    whole_net = network()
    whole = ingle.fit(model, make(whole_net), Y, steps=200, optim=torch.optim.SGD)
    trained = whole_net[1].running_mean.clone()
    whole.draws(5)
    assert torch.equal(whole_net[1].running_mean, trained)
    whole.save(tmp_path / "whole")

    path = tmp_path / "fit"
    ingle.fit(model, make(network()), Y, steps=100, optim=torch.optim.SGD, checkpoint=path)
    last = network()
    two = ingle.fit(model, make(last), Y, steps=200, optim=torch.optim.SGD, checkpoint=path)
    assert np.array_equal(two.losses, whole.losses)
    assert torch.equal(last[1].running_mean, trained)

    again = network()
    ingle.load(tmp_path / "whole", model, make(again), Y)
    assert torch.equal(again[1].running_mean, trained)
