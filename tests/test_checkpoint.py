"""fit with checkpoint=: killed at any moment it goes on to the same bits; what is not the same fit is refused."""

from __future__ import annotations

import functools
import itertools
import json
import math
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from torch import Tensor

import ingle
import ingle.checkpoint
from ingle import saved
from ingle.trust import Stopping

Y = torch.linspace(-1.0, 2.0, 10)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 10) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 0.3))


def raises_at(step: int, error: BaseException) -> Any:
    calls = itertools.count()

    def broken(y: Tensor) -> None:
        call = next(calls)
        if call == step or (call > step and isinstance(error, Exception)):
            raise error
        model(y)

    return broken


def assert_same(one: ingle.Fit, other: ingle.Fit) -> None:
    assert np.array_equal(one.losses, other.losses)
    assert one.params.keys() == other.params.keys()
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "fit.ingle"


@pytest.mark.parametrize(
    "case", ["budget", *(pytest.param(case, marks=pytest.mark.long) for case in ("steps", "compiled"))]
)
def test_killed_at_random_moments(case: str, tmp_path: Path) -> None:
    """Minibatches, batch norm, dropout; with a number of steps, with the rule's state in the file, with a graph."""
    kills = 4 if case == "compiled" else 20
    script = Path(__file__).with_name("killed.py")
    command = [sys.executable, str(script), case, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    print(f"{told['kills']} kills survived, {told['while writing']} of them in the middle of a write")
    assert told["kills"] == kills, "the fits were over too soon"
    assert told["while writing"] > 0
    assert len(set(told["steps"])) > kills // 4, "no fit went on"
    assert told["steps"] == sorted(told["steps"]), "a file went back"
    assert told["stopped"] == ["budget" if case == "budget" else "steps"] * 2
    assert told["losses"]
    assert told["values"] == []
    assert told["left"] == ["alone", "alone.pt", "killed", "killed.pt"], "a half written file was left"


def test_checkpoint_changes_nothing_of_the_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingle.checkpoint, "SECONDS", 0.0)
    assert_same(ingle.fit(model, "normal", Y, steps=120, checkpoint=path), ingle.fit(model, "normal", Y, steps=120))


def test_finished_fit_returns_at_once(path: Path) -> None:
    fit = ingle.fit(model, guide, Y, steps=100, optim=ADAM, checkpoint=path)
    before = path.stat().st_mtime_ns
    for steps in (100, 60):
        again = ingle.fit(model, guide, Y, steps=steps, optim=ADAM, checkpoint=str(path))
        assert_same(again, fit)
        assert (again.steps, again.stopped, again.reason, again.seconds) == (100, "steps", fit.reason, fit.seconds)
    assert path.stat().st_mtime_ns == before


def test_finished_by_the_rule_returns_at_once(path: Path) -> None:
    fit = ingle.fit(model, guide, Y, optim=ADAM, checkpoint=path)
    before = path.stat().st_mtime_ns
    again = ingle.fit(model, guide, Y, optim=ADAM, checkpoint=path)
    assert_same(again, fit)
    assert (again.stopped, path.stat().st_mtime_ns) == ("settled", before)
    assert ingle.fit(model, guide, Y, steps=fit.steps + 10, optim=ADAM, checkpoint=path).steps == fit.steps + 10


def test_more_steps_go_on(path: Path) -> None:
    ingle.fit(model, guide, Y, steps=70, optim=ADAM, batch_size={"data": 3}, checkpoint=path)
    more = ingle.fit(model, guide, Y, steps=160, optim=ADAM, batch_size={"data": 3}, checkpoint=path)
    assert_same(more, ingle.fit(model, guide, Y, steps=160, optim=ADAM, batch_size={"data": 3}))


def test_steps_then_the_rule_is_the_rule_alone(path: Path) -> None:
    ingle.fit(model, guide, Y, steps=70, optim=ADAM, checkpoint=path)
    assert_same(ingle.fit(model, guide, Y, optim=ADAM, checkpoint=path), ingle.fit(model, guide, Y, optim=ADAM))


def test_goes_on_after_ctrl_c(path: Path) -> None:
    broken = raises_at(80, KeyboardInterrupt())
    fit = ingle.fit(broken, guide, Y, steps=150, checkpoint=path)
    assert (fit.stopped, fit.steps) == ("interrupted", 50)
    assert_same(ingle.fit(model, guide, Y, steps=150, checkpoint=path), ingle.fit(model, guide, Y, steps=150))


def test_goes_on_after_an_error(path: Path) -> None:
    with pytest.raises(ingle.ProgramError, match="raised RuntimeError"):
        ingle.fit(raises_at(90, RuntimeError("out of luck")), guide, Y, steps=150, optim=ADAM, checkpoint=path)
    assert len(saved.read(path)["losses"]) >= 50
    whole = ingle.fit(model, guide, Y, steps=150, optim=ADAM)
    assert_same(ingle.fit(model, guide, Y, steps=150, optim=ADAM, checkpoint=path), whole)


def test_fit_that_breaks_at_once_leaves_no_file(path: Path) -> None:
    def bad(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(float("inf"))), 0.3))

    for broken in (bad, raises_at(4, RuntimeError("no"))):
        with pytest.raises(ingle.IngleError):
            ingle.fit(model if broken is bad else broken, bad if broken is bad else guide, Y, steps=9, checkpoint=path)
        assert not path.exists()


def test_saved_fit_is_a_checkpoint(path: Path) -> None:
    ingle.fit(model, guide, Y, steps=70, optim=ADAM).save(path)
    more = ingle.fit(model, guide, Y, steps=160, optim=ADAM, checkpoint=path)
    assert_same(more, ingle.fit(model, guide, Y, steps=160, optim=ADAM))
    assert len(saved.read(path)["losses"]) == 160


def test_modules_with_other_weights_are_overwritten(path: Path) -> None:
    def build(seed: int) -> tuple[Any, torch.nn.Module]:
        torch.manual_seed(seed)
        net = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2))

        def amortised(y: Tensor) -> None:
            pyro.module("net", net)
            loc, scale = net(y[:, None]).mean(0)
            pyro.sample("mu", dist.Normal(loc, scale.exp()))

        return amortised, net

    whole = ingle.fit(model, build(1)[0], Y, steps=120, optim=ADAM)
    ingle.fit(model, build(1)[0], Y, steps=50, optim=ADAM, checkpoint=path)
    amortised, net = build(2)
    assert_same(ingle.fit(model, amortised, Y, steps=120, optim=ADAM, checkpoint=path), whole)
    assert torch.equal(net[0].weight, whole.params["net$$$0.weight"])

    other, _ = build(3)
    ingle.fit(model, other, Y, steps=2, optim=ADAM)
    with pytest.warns(ingle.TrainedModuleWarning, match=r"overwritten from .*fit\.ingle") as caught:
        ingle.fit(model, other, Y, steps=130, optim=ADAM, checkpoint=path)
    assert caught[0].filename == __file__


def exponential(gamma: float) -> Any:
    return pyro.optim.ExponentialLR({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01}, "gamma": gamma})


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "seed": ({}, {"seed": 1}, "it has seed 0, and this fit has 1"),
    "dtype": ({}, {"dtype": torch.float64}, "it has dtype float32, and this fit has float64"),
    "batch": ({}, {"batch_size": {"data": 3}}, r"it has batch_size \{\}, and this fit has \{'data': 3\}"),
    "batch size": ({"batch_size": {"data": 4}}, {"batch_size": {"data": 3}}, r"batch_size \{'data': 4\}"),
    "optimiser": ({}, {"optim": torch.optim.SGD}, "it has optimiser Adam, and this fit has SGD"),
    "rate": ({}, {"optim": functools.partial(torch.optim.Adam, lr=0.02)}, "optim has lr 0.02, in the file 0.01"),
    "betas": ({}, {"optim": functools.partial(ADAM, betas=(0.8, 0.999))}, "optim has betas 0.8, in the file 0.9"),
    "schedule": ({"optim": exponential(0.9)}, {"optim": exponential(0.8)}, "optim has gamma 0.8, in the file 0.9"),
    "clipping": (
        {"optim": pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 1.0})},
        {"optim": pyro.optim.Adam({"lr": 0.1}, {"clip_norm": 2.0})},
        "optim has clip_norm 2.0, in the file 1.0",
    ),
    "guide_steps": ({}, {"guide_steps": 2}, "2 guide steps for each of the model"),
    "objective": ({}, {"objective": pyro.infer.TraceMeanField_ELBO()}, "this fit has TraceMeanField_ELBO"),
    "particles": ({}, {"objective": pyro.infer.Trace_ELBO(num_particles=2)}, "it has particles 1, and this fit has 2"),
    "data": ({}, {"data": Y + 1}, "the data differ in y"),
    "guide by name": ({}, {"guide": "normal"}, r"the guide is 'normal' \(AutoNormal\), in the file guide"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_fit_is_refused(name: str, path: Path) -> None:
    first, changed, said = REFUSED[name]
    options: dict[str, Any] = {"data": Y, "guide": guide, "steps": 5, "optim": ADAM, "checkpoint": path, **first}
    ingle.fit(model, **options)
    before = path.read_bytes()
    with pytest.raises(ingle.FileError, match=rf"fit\.ingle is of another fit: .*{said}.* or delete the file"):
        ingle.fit(model, **{**options, **changed, "steps": 9})
    assert path.read_bytes() == before


def other_prior(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.StudentT(3.0, 0.0, 10.0))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_another_model_or_guide_is_refused(path: Path) -> None:
    def bounded(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(0.5), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, 0.3))

    def renamed(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("mean", torch.tensor(0.0)), 0.3))

    bounded.__name__ = renamed.__name__ = "guide"
    ingle.fit(model, guide, Y, steps=5, checkpoint=path)
    with pytest.raises(ingle.FileError, match=r"model site 'mu' is latent, StudentT of shape .* latent, Normal"):
        ingle.fit(other_prior, guide, Y, steps=5, checkpoint=path)
    with pytest.raises(ingle.FileError, match=r"parameter 'loc' is .* GreaterThan lower_bound 0, in the file .* Real"):
        ingle.fit(model, bounded, Y, steps=5, checkpoint=path)
    with pytest.raises(ingle.FileError, match="the program has parameters 'mean', the file parameters 'loc'"):
        ingle.fit(model, renamed, Y, steps=5, checkpoint=path)


def test_path_that_cannot_be_written_is_found_before_the_first_step(tmp_path: Path) -> None:
    calls: list[int] = []

    def counted(y: Tensor) -> None:
        calls.append(1)
        guide(y)

    with pytest.raises(ingle.FileError, match=r"there is no folder .*missing; make it first") as caught:
        ingle.fit(model, counted, Y, steps=50, checkpoint=tmp_path / "missing" / "fit")
    assert len(calls) < 5
    assert caught.value.fit is None
    with pytest.raises(ingle.FileError, match="is a folder: give the name of a file in it"):
        ingle.fit(model, guide, Y, steps=5, checkpoint=tmp_path)
    for bad in (3, "", b"bytes", "nul\0"):
        with pytest.raises(ingle.OptionError, match="checkpoint must be the path of a file"):
            ingle.fit(model, guide, Y, steps=5, checkpoint=bad)  # type: ignore[arg-type]


def test_write_that_fails_on_the_way_warns_once_and_the_last_one_raises(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ingle.checkpoint, "SECONDS", 0.0)
    monkeypatch.setattr(os, "replace", full := Full(after=1))
    with (
        pytest.warns(ingle.IngleWarning, match="the disk is full, or a limit.*The fit goes on") as caught,
        pytest.raises(ingle.FileError, match="the disk is full") as raised,
    ):
        ingle.fit(model, guide, Y, steps=200, optim=ADAM, checkpoint=path)
    assert full.calls == 5  # four on the way, one at the end
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert raised.value.fit is not None
    assert_same(raised.value.fit, ingle.fit(model, guide, Y, steps=200, optim=ADAM))
    assert len(saved.read(path)["losses"]) == 50  # the last that could be written
    assert [name.name for name in path.parent.iterdir()] == ["fit.ingle"]

    monkeypatch.undo()
    raised.value.fit.resume(10)
    assert len(saved.read(path)["losses"]) == 210


class Full:
    """os.replace on a disk that fills up."""

    def __init__(self, after: int) -> None:
        self.calls, self.after, self.replace = 0, after, os.replace

    def __call__(self, source: Any, target: Any) -> None:
        self.calls += 1
        if self.calls > self.after:
            raise OSError(28, "No space left on device")
        self.replace(source, target)


def test_ctrl_c_in_a_write_leaves_the_old_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingle.fit(model, guide, Y, steps=50, optim=ADAM, checkpoint=path)
    monkeypatch.setattr(ingle.checkpoint, "SECONDS", 0.0)
    sync, calls = os.fsync, itertools.count()

    def interrupted(file: int) -> None:
        if next(calls) == 2:  # the trial of the path and its folder come first
            raise KeyboardInterrupt
        sync(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    fit = ingle.fit(model, guide, Y, steps=200, optim=ADAM, checkpoint=path)
    assert (fit.stopped, fit.steps) == ("interrupted", 100)
    monkeypatch.undo()
    assert len(saved.read(path)["losses"]) == 100  # the write at the end of the interrupted fit
    assert [name.name for name in path.parent.iterdir()] == ["fit.ingle"]
    assert_same(fit.resume(100), ingle.fit(model, guide, Y, steps=200, optim=ADAM))


def test_ctrl_c_in_the_last_write_keeps_the_fit(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingle.fit(model, guide, Y, steps=20, optim=ADAM, checkpoint=path)
    before = path.read_bytes()
    replace = os.replace

    def interrupted(source: Any, target: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ingle.checkpoint.Checkpoint, "keep", lambda self, content: None)
    monkeypatch.setattr(os, "replace", interrupted)
    fit = ingle.fit(model, guide, Y, steps=40, optim=ADAM, checkpoint=path)
    monkeypatch.setattr(os, "replace", replace)
    assert fit.steps == 40
    assert "interrupted while" in repr(fit)
    assert path.read_bytes() == before


class Odd(torch.optim.SGD):
    """Keeps a function among its options."""

    def __init__(self, leaves: Any, lr: float) -> None:
        super().__init__(leaves, lr=lr)
        self.param_groups[0]["rule"] = len


class LateOdd(torch.optim.SGD):
    """Keeps a function in its state from the first step on."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        super().step()
        for group in self.param_groups:
            for leaf in group["params"]:
                self.state[leaf]["rule"] = len


def test_optimiser_that_a_file_cannot_hold_is_refused_before_the_first_step(path: Path) -> None:
    odd = functools.partial(Odd, lr=0.01)
    with pytest.raises(ingle.OptionError, match=r"optim: options.*'rule'\] is of builtins\.builtin_function") as caught:
        ingle.fit(model, guide, Y, steps=20, optim=odd, checkpoint=path)
    assert caught.value.fit is None
    fit = ingle.fit(model, guide, Y, steps=20, optim=odd)
    with pytest.raises(ingle.OptionError, match="which a file cannot hold"):
        fit.save(path)
    with pytest.raises(ingle.OptionError, match=r"optim: optimiser\['state'\]\[0\]\['rule'\]") as caught:
        ingle.fit(model, guide, Y, steps=500, optim=functools.partial(LateOdd, lr=0.01), checkpoint=path)
    assert caught.value.fit is not None
    assert caught.value.fit.steps == 50
    assert not path.exists()


def test_parameter_that_comes_late_is_refused(path: Path) -> None:
    calls = itertools.count()

    def late(y: Tensor) -> None:
        shift = pyro.param("shift", torch.tensor(0.1)) if next(calls) > 80 else 0.0
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.0)) + shift, 0.3))

    with pytest.raises(ingle.FileError, match="parameter 'shift' did not appear in the first run") as caught:
        ingle.fit(model, late, Y, steps=200, optim=ADAM, checkpoint=path)
    assert caught.value.fit is not None
    assert caught.value.fit.steps == 200
    assert len(saved.read(path)["losses"]) == 50


def test_older_fit_leaves_a_newer_file_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = ingle.fit(model, guide, Y, steps=50, optim=ADAM, checkpoint=path)
    ingle.fit(model, guide, Y, steps=300, optim=ADAM, checkpoint=path)
    before = path.read_bytes()
    with pytest.raises(ingle.FileError, match=r"fit\.ingle was written by another fit since .* stays") as raised:
        old.resume(10)
    assert path.read_bytes() == before
    assert raised.value.fit is not None
    assert_same(raised.value.fit, ingle.fit(model, guide, Y, steps=60, optim=ADAM))

    monkeypatch.setattr(ingle.checkpoint, "SECONDS", 0.0)
    with (
        pytest.warns(ingle.IngleWarning, match="written by another fit .*The fit goes on") as caught,
        pytest.raises(ingle.FileError, match="written by another fit"),
    ):
        raised.value.fit.resume(200)
    assert len(caught) == 1
    assert path.read_bytes() == before
    assert [name.name for name in path.parent.iterdir()] == ["fit.ingle"]


def test_file_that_comes_after_the_start_is_left_alone(path: Path) -> None:
    calls = itertools.count()

    def other(y: Tensor) -> None:
        if next(calls) == 30:
            path.write_bytes(b"another's")
        model(y)

    with (
        pytest.warns(ingle.IngleWarning, match="written by another fit"),
        pytest.raises(ingle.FileError, match="written by another fit"),
    ):
        ingle.fit(other, guide, Y, steps=60, optim=ADAM, checkpoint=path)
    assert path.read_bytes() == b"another's"


def test_own_file_goes_on_being_written(path: Path) -> None:
    """Also after Fit.save to it, and after it was deleted."""
    fit = ingle.fit(model, guide, Y, steps=50, optim=ADAM, checkpoint=path).resume(10)
    fit.save(path)
    fit = fit.resume(10)
    path.unlink()
    fit.resume(10)
    assert len(saved.read(path)["losses"]) == 80


def test_ctrl_c_just_after_a_write_knows_the_file(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ingle.fit(model, guide, Y, steps=50, optim=ADAM, checkpoint=path)
    sync, calls = os.fsync, itertools.count()

    def interrupted(file: int) -> None:
        if next(calls) == 3:  # the trial and its folder, the file, then its folder: the new file is in place
            raise KeyboardInterrupt
        sync(file)

    monkeypatch.setattr(os, "fsync", interrupted)
    fit = ingle.fit(model, guide, Y, steps=200, optim=ADAM, checkpoint=path)
    assert (fit.stopped, fit.steps) == ("interrupted", 100)
    assert len(saved.read(path)["losses"]) == 100


def snapshot(module: torch.nn.Module) -> dict[str, Any]:
    state = {name: value.clone() for name, value in module.state_dict().items()}
    return {"state": state, "attributes": {name: set(vars(part)) for name, part in module.named_modules()}}


@pytest.mark.parametrize("way", ["load", "fit"])
def test_refused_file_leaves_modules_alone(way: str, path: Path) -> None:
    """The fit in the file has another guide and another dtype, which the module is not left with."""

    class Amortised(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 2))

        def forward(self, y: Tensor) -> None:
            self.seen = y
            pyro.module("net", self.net)
            loc, scale = self.net(y[:, None]).mean(0)
            pyro.sample("mu", dist.Normal(loc, scale.exp()))

    ingle.fit(model, guide, Y, steps=5, dtype=torch.float64).save(path)
    module = Amortised()
    before = snapshot(module)
    float64 = {"steps": 5, "dtype": torch.float64}
    read = ingle.load if way == "load" else functools.partial(ingle.fit, checkpoint=path, **float64)  # type: ignore[arg-type]
    where = (path,) if way == "load" else ()
    with pytest.raises(ingle.FileError, match="is of another fit"):
        read(*where, model, module, Y)  # type: ignore[arg-type]
    after = snapshot(module)
    assert after["attributes"] == before["attributes"]
    for name, value in before["state"].items():
        assert after["state"][name].dtype == value.dtype, name
        assert torch.equal(after["state"][name], value), name

    ingle.fit(model, module, Y, steps=5, dtype=torch.float64).save(path)
    other = Amortised()
    read(*where, model, other, Y)  # type: ignore[arg-type]
    for name, value in module.state_dict().items():  # a file that is taken stays in
        assert torch.equal(other.state_dict()[name], value), name


class Clock:
    """Stands for the module `time`; it goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = perf_counter


@pytest.mark.parametrize(("seconds", "apart"), [(0.01, 6_000), (0.3, 216), (2.0, 32), (90.0, 1)])
def test_slow_steps_are_written_every_minute(
    seconds: float, apart: int, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A step takes `seconds`, of a clock of the test's; the fit is the same, and the rule looks at the same steps."""
    clock, written = Clock(), []

    def slow(y: Tensor) -> None:
        clock.now += seconds
        guide(y)

    def write(path: Path, content: Any, **options: Any) -> None:
        written.append(len(content["losses"]))

    whole = ingle.fit(model, guide, Y + 100, optim=ADAM, steps=330)
    monkeypatch.setattr(ingle.checkpoint, "time", clock)
    monkeypatch.setattr(ingle.training, "time", clock)
    monkeypatch.setattr(saved, "write", write)
    assert_same(ingle.fit(model, slow, Y + 100, optim=ADAM, steps=330, checkpoint=path), whole)
    assert max(np.diff(written)) <= apart

    monkeypatch.setattr(Stopping, "EVERY", 150)
    monkeypatch.setattr(Stopping, "MAX_STEPS", 300)
    monkeypatch.setattr(Stopping, "SECONDS", math.inf)
    fit = ingle.fit(model, slow, Y + 100, optim=ADAM)
    assert (fit.stopped, fit.steps) == ("budget", 300)


def test_seconds_add_up(path: Path) -> None:
    first = ingle.fit(model, guide, Y, steps=50, optim=ADAM, checkpoint=path)
    more = ingle.fit(model, guide, Y, steps=100, optim=ADAM, checkpoint=path)
    assert more.seconds > first.seconds > 0


def test_what_a_killed_fit_left_half_written_is_removed(path: Path) -> None:
    over = subprocess.Popen([sys.executable, "-c", ""])
    over.wait()
    stray = path.with_name(f".fit.ingle.{over.pid}-00ff00ff.tmp")
    stray.write_bytes(b"half")
    other = path.with_name(".fit.tmp")
    other.write_bytes(b"not ours")
    with warnings.catch_warnings():
        ingle.fit(model, guide, Y, steps=5, checkpoint=path)
    assert not stray.exists()
    assert other.exists()
