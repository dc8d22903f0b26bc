"""A training step of Ingle beside one of `pyro.infer.SVI`, on the same pairs, in one run.

Run: python -m benchmarks.svi [--rounds 5] [--steps 300] [--threads 1] [--device cpu]

Rounds of the two alternate, so that what else the machine does meets both; the figures are medians over rounds
of microseconds a step, with the lowest and highest, and the ratio of the medians. Pyro runs as a user would run
it: AutoNormal or the shipped guide, Pyro's optimiser, `svi.step` in a loop, validation on as by default, and once
more with validation off.
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.infer
import pyro.infer.autoguide
import pyro.optim
import torch

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.vae import VAEGuide
from ingle.models.hierarchical import eight_schools, radon_varying_intercepts
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE

DATA = Path(__file__).parents[1] / "examples" / "data"


@dataclass(frozen=True)
class Case:
    """One pair, its data, and the objective that both libraries use."""

    name: str
    model: Callable[..., Any]
    guide: Callable[[], Any]
    data: tuple[torch.Tensor, ...]
    objective: Callable[[], Any]


def cases(device: str) -> list[Case]:
    schools = pd.read_csv(DATA / "eight_schools.csv")
    radon = pd.read_csv(DATA / "radon.csv")
    faithful = pd.read_csv(DATA / "old_faithful.csv").to_numpy()
    points = torch.tensor((faithful - faithful.mean(0)) / faithful.std(0), dtype=torch.float32, device=device)
    mixture = GaussianMixture(2)
    torch.manual_seed(0)
    vae = VAE(784, latent_dim=20, hidden=(400,)).to(device)
    images = (torch.rand(256, 784) < 0.3).float().to(device)

    def column(table: pd.DataFrame, name: str) -> torch.Tensor:
        return torch.tensor(table[name].to_numpy(), dtype=torch.float32, device=device)

    def automatic(model: Callable[..., Any]) -> Callable[[], Any]:
        return lambda: pyro.infer.autoguide.AutoNormal(model)

    trace, enumerated = pyro.infer.Trace_ELBO, functools.partial(pyro.infer.TraceEnum_ELBO, max_plate_nesting=1)
    summed: Any = pyro.infer.config_enumerate(mixture)
    return [
        Case(
            "eight schools",
            eight_schools,
            automatic(eight_schools),
            (column(schools, "sigma"), column(schools, "y")),
            trace,
        ),
        Case(
            "radon, 919 rows",
            radon_varying_intercepts,
            automatic(radon_varying_intercepts),
            (
                torch.tensor(radon["county_idx"].to_numpy(), device=device),
                column(radon, "floor"),
                column(radon, "log_radon"),
            ),
            trace,
        ),
        Case("mixture, 272 points", summed, lambda: GaussianMixtureGuide(mixture), (points,), enumerated),
        Case("VAE 784-400-20, 256 images", vae, lambda: VAEGuide(vae).to(device), (images,), trace),
    ]


def pyro_step(case: Case, steps: int, *, validate: bool) -> float:
    """Seconds a step of `pyro.infer.SVI`, the first 20 steps not counted."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    device = case.data[0].device
    # A default device is a function mode, which would slow Pyro on the CPU for nothing.
    with pyro.validation_enabled(validate), device if device.type != "cpu" else nullcontext():
        svi = pyro.infer.SVI(case.model, case.guide(), pyro.optim.Adam({"lr": 1e-3}), case.objective())
        for _ in range(20):
            svi.step(*case.data)
        start = time.perf_counter()
        for _ in range(steps):
            svi.step(*case.data)
        seconds = time.perf_counter() - start
    pyro.clear_param_store()
    return seconds / steps


def ingle_step(case: Case, steps: int) -> float:
    """Seconds a step of `ingle.fit`, copies of the state and losses to the host included, start-up not."""
    fit = ingle.fit(
        case.model,
        case.guide(),
        case.data,
        objective=case.objective(),
        optim=functools.partial(torch.optim.Adam, lr=1e-3),
        steps=steps,
        progress=False,
    )
    return fit.seconds / steps


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)

    print(
        f"torch {torch.__version__}, pyro {pyro.__version__}, ingle {ingle.__version__}, Python "
        f"{platform.python_version()}, {options.device}, {options.threads} thread(s), {options.rounds} rounds of "
        f"{options.steps}"
    )
    print("| µs a step: median (range) | pyro.infer.SVI | validation off | ingle.fit, eager | ratio to each |")
    print("| --- | --- | --- | --- | --- |")
    for case in cases(options.device):
        ways: dict[str, Callable[[], float]] = {
            "pyro": functools.partial(pyro_step, case, options.steps, validate=True),
            "pyro, off": functools.partial(pyro_step, case, options.steps, validate=False),
            "ingle": functools.partial(ingle_step, case, options.steps),
        }
        seconds: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, run in ways.items():
                seconds[way].append(run())
        cells = [
            f"{statistics.median(times) * 1e6:,.0f} ({min(times) * 1e6:,.0f} to {max(times) * 1e6:,.0f})"
            for times in seconds.values()
        ]
        ratios = [np.median(seconds["ingle"]) / np.median(seconds[way]) for way in ("pyro", "pyro, off")]
        print(f"| {case.name} | {' | '.join(cells)} | {ratios[0]:.2f}, {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
