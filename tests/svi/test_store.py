"""One parameter store for everyone: Pyro's own, which scripts fill, change, save and hand on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pytest
import torch
from pyro.distributions import constraints
from svi.parity import DATA, SVI, adam, assert_identical, assert_same, normal_svi, play, state_of, train_normal

import ingle


def test_filled_before() -> None:
    def script(svi: SVI) -> list[Any]:
        pyro.param("loc", torch.tensor(4.0))
        pyro.param("untouched", torch.tensor([0.2, 0.8]), constraint=constraints.simplex)
        optim = adam()
        return [*train_normal(svi, optim), state_of(optim)]

    left = assert_same(script)
    assert list(left["values"]) == ["loc", "untouched", "scale", "noise"]
    assert 3.0 < left["values"]["loc"] < 4.0
    assert left["gradients"]["untouched"] is None
    assert set(left["returned"][-1]) == {"loc", "scale", "noise"}


def test_changed_between_steps() -> None:
    def script(svi: SVI) -> list[Any]:
        optim = adam()
        fit = normal_svi(svi, optim)
        losses = [fit.step(DATA)]
        pyro.get_param_store()["loc"] = torch.tensor(-3.0)
        losses.append(fit.step(DATA))
        del pyro.get_param_store()["scale"]
        losses.append(fit.step(DATA))
        pyro.clear_param_store()
        return [*losses, fit.step(DATA), len(optim.optim_objs)]

    assert_same(script)


def test_scopes() -> None:
    def script(svi: SVI) -> list[Any]:
        losses = train_normal(svi)
        kept = pyro.get_param_store()["loc"].item()
        with pyro.get_param_store().scope() as scope:
            losses += train_normal(svi)
        return [*losses, kept, sorted(scope["params"])]

    left = assert_same(script)
    assert left["values"]["loc"] == left["returned"][-2]
    assert left["returned"][-1] == ["loc", "noise", "scale"]


@pytest.mark.parametrize("classes", [(ingle.SVI, pyro.infer.SVI), (pyro.infer.SVI, ingle.SVI)], ids=["to", "from"])
def test_one_goes_on_from_the_other(classes: tuple[SVI, SVI]) -> None:
    def relay(*classes: SVI) -> list[Any]:
        optim = adam()
        return [*(normal_svi(svi, optim).step(DATA) for svi in classes for _ in range(3)), state_of(optim)]

    changed = play(lambda _: relay(*classes), ingle.SVI)
    assert_identical(changed, play(lambda svi: relay(svi, svi), pyro.infer.SVI))


def test_resumed_from_disk(tmp_path: Path) -> None:
    def script(svi: SVI) -> list[Any]:
        store = pyro.get_param_store()
        optim = adam()
        fit = normal_svi(svi, optim)
        losses = [fit.step(DATA) for _ in range(3)]
        store.save(tmp_path / "params")
        optim.save(tmp_path / "optim")
        state = pyro.util.get_rng_state()
        onwards = [fit.step(DATA) for _ in range(3)]

        store.clear()
        store.load(tmp_path / "params")
        optim = adam()
        optim.load(tmp_path / "optim")
        pyro.util.set_rng_state(state)
        fit = normal_svi(svi, optim)
        assert [fit.step(DATA) for _ in range(3)] == onwards
        return [*losses, *onwards, state_of(optim)]

    moments = assert_same(script)["returned"][-1]
    assert set(moments) == {"loc", "scale", "noise"}
    assert all(each["state"][0]["step"] == 6 for each in moments.values())


def test_draws_between_steps() -> None:
    """The random state is everyone's too."""

    def script(svi: SVI) -> list[Any]:
        fit = normal_svi(svi)
        return [each for _ in range(3) for each in (fit.step(DATA), torch.rand(2), float(np.random.rand()))]

    assert_same(script)
    assert play(script, ingle.SVI, seed=1)["returned"][0] != play(script, ingle.SVI, seed=2)["returned"][0]
