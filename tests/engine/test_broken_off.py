"""Compiled calls that break: what is named, what is kept, and that a fit goes on to the same bits."""

from __future__ import annotations

import functools
import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from engine.cells import ADAM, Y, positive, real
from torch import Tensor

import ingle
import ingle.checkpoint
from ingle.engine import choose
from ingle.engine.blocks import NoiseBlocks
from ingle.engine.compiled import CompiledEngine
from ingle.engine.graph import StepGraph

CALL = 40


@pytest.fixture(autouse=True)
def _no_inductor(monkeypatch: pytest.MonkeyPatch) -> None:
    class Engine(CompiledEngine):
        call = CALL

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **{**kwargs, "using": "graph"})

    monkeypatch.setattr(choose, "CompiledEngine", Engine)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))


def wears_out(y: Tensor) -> None:
    """The scale of `y` falls by 0.01 a step with an optimiser of plain gradients, and is negative from step 101 on."""
    drift = pyro.param("drift", torch.tensor(0.005))
    pyro.factor("down", drift)
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(mu, (1.0 - drift).detach()), obs=y)


def sometimes(y: Tensor) -> None:
    """Not a number wherever the draw of `mu` lies far out."""
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8):
        pyro.sample("y", dist.Normal(torch.sqrt(2.7 - (mu - 0.1) / 0.5), 1.0), obs=y)


PLAIN = functools.partial(torch.optim.SGD, lr=0.01)
NOTHING = functools.partial(torch.optim.SGD, lr=0.0)


def still_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(real("loc"), 0.5 + 0.0 * real("idle")))


def failure(model: Any, guide: Any, compile: Any, **options: Any) -> ingle.NonFiniteError:
    with pytest.raises(ingle.NonFiniteError) as caught:
        ingle.fit(model, guide, Y, compile=compile, dtype=torch.float64, **options)
    assert caught.value.fit is not None
    return caught.value


def test_a_loss_that_is_not_finite_is_named_as_by_the_eager_engine() -> None:
    errors = [
        failure(wears_out, still_guide, compile, optim=lambda p: torch.optim.SGD(p, lr=0.01), steps=300)
        for compile in ("full", "off")
    ]
    assert str(errors[0]) == str(errors[1])
    assert "model site 'y' has NaN in 8 of 8 elements in its log_prob" in str(errors[0])
    for error in errors:
        assert error.step == 100
        assert error.fit.steps == len(error.fit.losses) == 100
        assert error.fit.stopped == "failed"
        assert np.isfinite(error.fit.losses).all()
        assert all(value.isfinite().all() for value in error.fit.params.values())
        assert float(error.fit.params["drift"]) == pytest.approx(1.005, abs=1e-9)


def test_a_draw_that_breaks_a_compiled_call_is_drawn_again_in_the_replay() -> None:
    error = failure(sometimes, still_guide, "full", optim=NOTHING, steps=400, seed=3)
    assert error.step % CALL > 0
    assert error.step > CALL, "too early to be inside of a compiled call: take another seed"
    assert f"step {error.step}: the loss is nan: model site 'y' has NaN in 8 of 8 elements in loc" in str(error)
    whole = ingle.fit(model, still_guide, Y, compile="full", optim=NOTHING, steps=400, seed=3, dtype=torch.float64)
    assert whole.engine == "compiled"
    assert error.fit.steps == error.step
    again = failure(sometimes, still_guide, "full", optim=NOTHING, steps=400, seed=3)
    assert str(again) == str(error)
    np.testing.assert_array_equal(again.fit.losses, error.fit.losses)


def fitted(steps: int, **options: Any) -> ingle.Fit:
    options = {"compile": "full", "optim": ADAM, "batch_size": {"data": 3}, **options}
    return ingle.fit(model, guide, Y, steps=steps, **options)


def assert_same(one: ingle.Fit, other: ingle.Fit) -> None:
    np.testing.assert_array_equal(one.losses, other.losses)
    assert one.params.keys() == other.params.keys()
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())
    assert one.engine == other.engine == "compiled"


@pytest.mark.parametrize("moment", ["before", "after", "noise"])
def test_ctrl_c_loses_the_call_at_most(moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(200)
    run, fill = StepGraph.run, NoiseBlocks.fill
    calls = itertools.count()

    def interrupted_run(self: StepGraph, steps: int) -> None:
        number = next(calls)
        if number == 60 and moment == "before":
            raise KeyboardInterrupt
        run(self, steps)
        if number == 60 and moment == "after":
            raise KeyboardInterrupt

    def interrupted_fill(self: NoiseBlocks, block: int, normals: Tensor, uniforms: Tensor) -> None:
        if next(calls) == 3:
            fill(self, block, normals, uniforms)
            normals[: len(normals) // 2] = 0.0
            raise KeyboardInterrupt
        fill(self, block, normals, uniforms)

    if moment == "noise":
        monkeypatch.setattr("ingle.engine.blocks._CAPACITIES", (50,))
        whole = fitted(200)
        monkeypatch.setattr(NoiseBlocks, "fill", interrupted_fill)
    else:
        monkeypatch.setattr(StepGraph, "run", interrupted_run)
    fit = fitted(200)
    assert fit.stopped == "interrupted"
    assert 0 < fit.steps < 200
    assert fit.steps % CALL == 0
    np.testing.assert_array_equal(fit.losses, whole.losses[: fit.steps])
    assert_same(fit.resume(200 - fit.steps), whole)


def test_resumed_is_the_unbroken_fit_bit_for_bit() -> None:
    assert_same(fitted(130).resume(70), fitted(200))


def test_a_checkpoint_of_compiled_steps_goes_on_compiled(tmp_path: Path) -> None:
    """Even where so few steps would not be worth compiling, so that the bits are those of one fit."""
    path = tmp_path / "fit.ingle"
    fitted(130, checkpoint=path)
    assert_same(fitted(200, checkpoint=path, compile="auto"), fitted(200))


def test_a_checkpoint_of_eager_steps_goes_on_eagerly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "fit.ingle"
    fitted(30, checkpoint=path, compile="off")
    monkeypatch.setattr(choose, "_WORTH", 0)
    fit = fitted(60, checkpoint=path, compile="auto")
    assert fit.engine == "eager"
    np.testing.assert_array_equal(fit.losses, fitted(60, compile="off").losses)


def test_ragged_batches_of_many_plates_go_on_to_the_same_bits(tmp_path: Path) -> None:
    """Eight shapes: some have graphs and some never do, whichever comes first after a checkpoint."""

    def crossed(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        for name, size in (("one", 5), ("two", 7), ("three", 8)):
            with pyro.plate(name, size) as i:
                pyro.sample(f"y_{name}", dist.Normal(mu, 1.0), obs=y[:size][i])

    def run(steps: int, **options: Any) -> ingle.Fit:
        sizes = {"one": 2, "two": 3, "three": 3}
        return ingle.fit(crossed, "normal", Y, steps=steps, batch_size=sizes, optim=ADAM, compile="full", **options)

    path = tmp_path / "fit.ingle"
    whole = run(60)
    run(23, checkpoint=path)
    assert_same(run(60, checkpoint=path), whole)


def test_a_compiler_that_fails_is_told_and_the_steps_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise RuntimeError("C++ compile error\nlong output")

    monkeypatch.setattr("ingle.engine.graph._compiled", fails)
    with pytest.raises(ingle.ProgramError, match=r"RuntimeError \(C\+\+ compile error\) was raised while"):
        fitted(10)
    monkeypatch.setattr(choose, "_WORTH", 0)
    with pytest.warns(ingle.IngleWarning, match="C\\+\\+ compile error") as caught:
        fit = fitted(10, compile="auto")
    assert len(caught) == 1
    np.testing.assert_array_equal(fit.losses, fitted(10, compile="off").losses)
