"""Optimisers, clipping and schedulers of `pyro.optim`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro.infer
import pyro.optim
import pytest
import torch
from svi.parity import DATA, SVI, assert_same, normal_svi, play, state_of, train_normal

import ingle

OPTIMISERS: dict[str, Callable[[], pyro.optim.PyroOptim]] = {
    "ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "clip_norm": 1.0, "lrd": 0.99}),
    "AdagradRMSProp": lambda: pyro.optim.AdagradRMSProp({"eta": 0.5, "t": 0.1}),
    "DCTAdam": lambda: pyro.optim.DCTAdam({"lr": 0.05}),
    "PyroOptim": lambda: pyro.optim.PyroOptim(torch.optim.AdamW, {"lr": 0.05, "weight_decay": 0.1}),
    "arguments by name": lambda: pyro.optim.Adam(lambda name: {"lr": 0.1 if name == "loc" else 0.01}),
}


@pytest.mark.parametrize("make", OPTIMISERS.values(), ids=OPTIMISERS)
def test_optimiser(make: Callable[[], pyro.optim.PyroOptim]) -> None:
    def script(svi: SVI) -> list[Any]:
        optim = make()
        return [*train_normal(svi, optim), state_of(optim)]

    state = assert_same(script)["returned"][-1]
    assert set(state) == {"loc", "scale", "noise"}


@pytest.mark.parametrize(
    "clip",
    [{"clip_norm": 5.0, "clip_value": 0.5}, lambda module, name: {"clip_norm": 0.1} if name == "loc" else {}],
    ids=["norm and value", "by parameter"],
)
def test_clip_args(clip: Any) -> None:
    # SGD, since Adam would hide the size of the gradient.
    free = play(lambda svi: train_normal(svi, pyro.optim.SGD({"lr": 0.01})), ingle.SVI)
    left = assert_same(lambda svi: train_normal(svi, pyro.optim.SGD({"lr": 0.01}, clip)))
    assert free["values"]["loc"] != left["values"]["loc"]


def sgd(**schedule: Any) -> dict[str, Any]:
    return {"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.02}, **schedule}


SCHEDULERS: dict[str, Callable[[], Any]] = {
    "ExponentialLR": lambda: pyro.optim.ExponentialLR(sgd(gamma=0.5)),
    "LambdaLR clipped": lambda: pyro.optim.LambdaLR(sgd(lr_lambda=lambda epoch: 1 / (1 + epoch)), {"clip_norm": 1.0}),
    "ReduceLROnPlateau": lambda: pyro.optim.ReduceLROnPlateau(sgd(patience=0, factor=0.1)),
}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler(name: str) -> None:
    def script(svi: SVI) -> list[Any]:
        scheduler = SCHEDULERS[name]()
        fit = normal_svi(svi, scheduler)
        losses, rates = [], []
        for _ in range(4):
            losses += [fit.step(batch) for batch in DATA.split(3)]
            scheduler.step(*losses[-1:] if name == "ReduceLROnPlateau" else ())
            state = state_of(scheduler)
            rates.append({name: each["optimizer"]["param_groups"][0]["lr"] for name, each in state.items()})
        return [*losses, rates]

    rates = assert_same(script)["returned"][-1]
    assert set(rates[0]) == {"loc", "scale", "noise"}
    assert rates[0] != rates[-1]
