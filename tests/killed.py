"""Kills fits with a checkpoint at random moments, goes on each time, and compares with a fit that was left alone.

A script, so that every fit is a fork of one warm process that never ran a backward pass: torch's threads do not
survive a fork. Prints one line of JSON.
"""

from __future__ import annotations

import functools
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
import torch._dynamo  # optimisers import it when they are first built
from torch import Tensor

import ingle
import ingle.checkpoint
from ingle import saved
from ingle.engine import EagerEngine, choose
from ingle.engine.compiled import CompiledEngine
from ingle.trust import Stopping

KILLS = {"steps": 20, "budget": 20, "compiled": 4}  # recording a step takes a second or two
AHEAD = 15  # steps that a fit takes at most past the one at which it is to be killed
STEPS = {"steps": 500, "budget": None, "compiled": 500}
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 1.0, 2.0])


def model(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    loading = pyro.param("loading", torch.ones(3))
    with pyro.plate("data", len(x)) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None] * loading, scale).to_event(1), obs=x[i])


class Guide(torch.nn.Module):
    """Batch norm keeps running statistics, and dropout draws random numbers."""

    def __init__(self, step: Callable[[], None]) -> None:
        super().__init__()
        parts = [torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)]
        self.net = torch.nn.Sequential(*parts)
        self.step = step

    def forward(self, x: Tensor) -> None:
        self.step()
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)) as i:
            loc, scale = self.net(x[i]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(scale) + 1e-3))


def _nothing() -> None:
    pass


class ByGraph(CompiledEngine):
    """Tells of each call: compiled steps run no Python of the guide's. Without Inductor, which takes seconds."""

    told: Callable[[], None] = staticmethod(lambda: None)

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "using": "graph"})

    def _run(self, *args: Any) -> Tensor:
        losses = super()._run(*args)
        ByGraph.told()
        return losses


def run(case: str, weights: int, path: Path, step: Callable[[], None] = lambda: None) -> dict[str, Any]:
    torch.manual_seed(weights)
    compiled = case == "compiled"
    guide = Guide(_nothing if compiled else step)
    ByGraph.told = staticmethod(step)
    options: dict[str, Any] = {"batch_size": {"data": 20 if compiled else 16}, "compile": "full" if compiled else "off"}
    fit = ingle.fit(model, guide, X, steps=STEPS[case], checkpoint=path, progress=False, **options)
    assert fit.engine == ("compiled" if compiled else "eager")
    buffers = dict(guide.named_buffers())
    return {"losses": torch.from_numpy(fit.losses), "stopped": fit.stopped, "values": {**fit.params, **buffers}}


class Told:
    """Tells the parent through a pipe of each step and each write, and waits for its end where it is far ahead.

    A parent that is kept from running finds the fit where it is to be killed, on a machine of any speed.
    """

    def __init__(self, pipe: int, most: int) -> None:
        self.pipe, self.left, self.sync = pipe, most, os.fsync
        os.fsync = self.write

    def step(self) -> None:
        os.write(self.pipe, b"s")
        self.left -= 1
        if self.left == 0:
            os.write(self.pipe, b".")
            time.sleep(600.0)

    def write(self, file: int) -> None:
        os.write(self.pipe, b"w")
        time.sleep(0.002)  # as a slow disk
        self.sync(file)


def child(work: Callable[[Callable[[], None]], object]) -> None:
    """Work in a fork to the end."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work(lambda: None)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(pid, 0)[1] == 0


def killed(work: Callable[[Callable[[], None]], object], step: int, in_write: bool, after: float) -> bool:
    """Work in a fork that is killed `after` seconds past a step or the next write; whether it lived so long."""
    hear, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(hear)
            work(Told(tell, step + AHEAD).step)
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    steps, told = 0, b"s"
    while told and steps < step:
        told = os.read(hear, 1)
        steps += told == b"s"
    while told and in_write:
        told = os.read(hear, 1)
        in_write = told == b"s"
    time.sleep(after)
    os.kill(pid, signal.SIGKILL)
    lived = os.WIFSIGNALED(os.waitpid(pid, 0)[1])
    os.close(hear)
    return lived


def main(case: str, folder: Path) -> None:
    torch.set_num_threads(1)
    ingle.checkpoint.SECONDS = 0.0
    EagerEngine.call = CompiledEngine.call = 5  # a write every 5 steps
    choose.CompiledEngine = ByGraph  # type: ignore[misc]
    Stopping.EVERY, Stopping.MAX_STEPS = 100, 500
    alone, path = folder / "alone", folder / "killed"

    child(lambda step: torch.save(run(case, 0, alone, step), folder / "alone.pt"))
    moments = random.Random(7)
    kills = writing = 0
    steps = [0]
    while kills < KILLS[case]:
        # The weights that the fit starts from are part of it; once there is a file, they are overwritten.
        weights = kills if path.exists() else 0
        work = functools.partial(run, case, weights, path)
        in_write = bool(kills % 2)
        after = moments.uniform(0.0, 0.002 if in_write else 0.005)
        if not killed(work, moments.randint(1, 12 if case == "compiled" else 25), in_write, after):
            break  # it was over before
        kills += 1
        writing += any(name.suffix == ".tmp" for name in folder.iterdir())
        if path.exists():
            steps.append(len(saved.read(path)["losses"]))
    child(lambda step: torch.save(run(case, 99, path, step), folder / "killed.pt"))
    one, other = (torch.load(folder / name) for name in ("alone.pt", "killed.pt"))
    told = {
        "kills": kills,
        "while writing": writing,
        "steps": steps,
        "stopped": [one["stopped"], other["stopped"]],
        "losses": np.array_equal(one["losses"], other["losses"]),
        "values": [name for name in one["values"] if not torch.equal(one["values"][name], other["values"][name])],
        "left": sorted(name.name for name in folder.iterdir()),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
