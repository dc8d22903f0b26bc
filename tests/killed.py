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
import ingle.training
from ingle import saved
from ingle.trust import Plateau

KILLS = 20
STEPS = {"steps": 500, "budget": None}
X = torch.randn(60, 3, generator=torch.Generator().manual_seed(1)) + torch.tensor([0.0, 1.0, 2.0])


def model(x: Tensor) -> None:
    scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
    loading = pyro.param("loading", torch.ones(3))
    with pyro.plate("data", len(x)) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z[:, None] * loading, scale).to_event(1), obs=x[i])


class Guide(torch.nn.Module):
    """Batch norm keeps running statistics, and dropout draws random numbers."""

    def __init__(self, started: Callable[[], None]) -> None:
        super().__init__()
        parts = [torch.nn.Linear(3, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 2)]
        self.net = torch.nn.Sequential(*parts)
        self.started = started

    def forward(self, x: Tensor) -> None:
        self.started()
        pyro.module("net", self.net)
        with pyro.plate("data", len(x)) as i:
            loc, scale = self.net(x[i]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, torch.nn.functional.softplus(scale) + 1e-3))


def run(case: str, weights: int, path: Path, started: Callable[[], None] = lambda: None) -> dict[str, Any]:
    torch.manual_seed(weights)
    guide = Guide(started)
    fit = ingle.fit(model, guide, X, steps=STEPS[case], batch_size={"data": 16}, checkpoint=path, progress=False)
    buffers = dict(guide.named_buffers())
    return {"losses": torch.from_numpy(fit.losses), "stopped": fit.stopped, "values": {**fit.params, **buffers}}


def child(work: Callable[[Callable[[], None]], object]) -> int:
    """Fork; returns once the child has called its model, or ended."""
    ready, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(ready)
            work(functools.cache(lambda: print("started", file=os.fdopen(tell, "w"), flush=True)))
            code = 0
        finally:
            os._exit(code)
    os.close(tell)
    os.read(ready, 1)
    os.close(ready)
    return pid


def main(case: str, folder: Path) -> None:
    torch.set_num_threads(1)
    ingle.checkpoint.SECONDS = 0.0
    ingle.training._CALL = 5  # a write every 5 steps
    Plateau.EVERY, Plateau.MAX_STEPS = 100, 500
    alone, path = folder / "alone", folder / "killed"

    pid = child(lambda started: torch.save(run(case, 0, alone, started), folder / "alone.pt"))
    assert os.waitpid(pid, 0)[1] == 0
    moments = random.Random(7)
    kills = writing = 0
    steps = [0]
    while kills < KILLS:
        # The weights that the fit starts from are part of it; once there is a file, they are overwritten.
        weights = kills if path.exists() else 0
        pid = child(lambda started, weights=weights: run(case, weights, path, started))  # type: ignore[misc]
        time.sleep(moments.uniform(0.0, 0.2))
        os.kill(pid, signal.SIGKILL)
        if not os.WIFSIGNALED(os.waitpid(pid, 0)[1]):
            break  # it was over before
        kills += 1
        writing += any(name.suffix == ".tmp" for name in folder.iterdir())
        if path.exists():
            steps.append(len(saved.read(path)["losses"]))
    pid = child(lambda started: torch.save(run(case, 99, path, started), folder / "killed.pt"))
    assert os.waitpid(pid, 0)[1] == 0
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
