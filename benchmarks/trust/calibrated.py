"""Faults of the program that only a simulator of one's own can show, and a guide that cuts the support.

Each program is calibrated as it should be and with each fault, over data of several seeds. A right program is called
calibrated in 19 of 20 runs by the level of the test; a fault should never be.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor

import ingle
from benchmarks.trust.results import Record, Results, run_all

__all__ = ["PART", "run", "table"]

PART = "calibrate"
ROWS, BATCH = 64, 16
FAULTS = ("none", "plate without its scale", "sign error in the mean")

Model = Callable[..., None]


def _rows(fault: str) -> Tensor:
    """All rows; or a few at random in each step, whose likelihood nobody scales up."""
    whole = torch.arange(ROWS)
    return (torch.rand(BATCH) * ROWS).long() if fault == FAULTS[1] else whole


def _sign(fault: str) -> float:
    return -1.0 if fault == FAULTS[2] else 1.0


def normal(fault: str) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        sigma = pyro.sample("sigma", dist.LogNormal(0.0, 0.5))
        rows = _rows(fault)
        with pyro.plate("row", len(rows)):
            pyro.sample("y", dist.Normal(intercept + _sign(fault) * slope * x[rows], sigma), obs=y[rows])

    return model


def logistic(fault: str) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        rows = _rows(fault)
        with pyro.plate("row", len(rows)):
            pyro.sample("y", dist.Bernoulli(logits=intercept + _sign(fault) * slope * x[rows]), obs=y[rows])

    return model


def poisson(fault: str) -> Model:
    def model(x: Tensor, y: Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 0.5))
        slope = pyro.sample("slope", dist.Normal(0.0, 0.5))
        rows = _rows(fault)
        with pyro.plate("row", len(rows)):
            pyro.sample("y", dist.Poisson(torch.exp(intercept + _sign(fault) * slope * x[rows])), obs=y[rows])

    return model


def _simulator(prior: tuple[float, float], outcome: Callable[..., Any], noise: bool) -> Callable[[int], Any]:
    """Written in numpy, from the words of the model and not from its program."""

    def simulate(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
        rng = np.random.default_rng(seed)
        latents = {"intercept": prior[0] * rng.standard_normal(), "slope": prior[1] * rng.standard_normal()}
        if noise:
            latents["sigma"] = np.exp(0.5 * rng.standard_normal())
        x = rng.standard_normal(ROWS)
        y = outcome(rng, latents["intercept"] + latents["slope"] * x, latents.get("sigma"))
        return {name: np.float64(value) for name, value in latents.items()}, {"x": x, "y": np.asarray(y, dtype=float)}

    return simulate


PROGRAMS: dict[str, tuple[Callable[[str], Model], Callable[[int], Any]]] = {
    "linear": (normal, _simulator((1.0, 1.0), lambda rng, mean, sd: mean + sd * rng.standard_normal(ROWS), True)),
    "logistic": (
        logistic,
        _simulator((1.0, 1.0), lambda rng, mean, sd: rng.random(ROWS) < 1 / (1 + np.exp(-mean)), False),
    ),
    "poisson": (poisson, _simulator((0.5, 0.5), lambda rng, mean, sd: rng.poisson(np.exp(mean)), False)),
}


def run(results: Results, processes: int, seeds: Sequence[int] = range(10)) -> None:
    """Each program with each fault, for data of each seed; and guides that cut the support."""
    tasks: list[tuple[Any, ...]] = [
        (f"{PART}/{program}/{fault}/{seed}", program, fault, seed)
        for seed in seeds
        for program in PROGRAMS
        for fault in FAULTS
    ]
    tasks += [(f"{PART}/support/{name}", "support", name, 0) for name in CUTS]
    run_all(one, tasks, results, processes)


def one(task: tuple[Any, ...]) -> Record:
    key, program, fault, seed = task
    about: Record = {"key": key, "part": PART, "program": program, "fault": fault, "seed": seed}
    about |= {"mean_error": None, "sd_error": None}
    if program == "support":
        found = str(ingle.check(*CUTS[fault]))
        return {**about, "status": "found" if "support" in found else "missed", "told": found}
    make, simulate = PROGRAMS[program]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        calibration = ingle.calibrate(
            make(fault),
            "multivariate_normal",
            simulate=lambda number: simulate(1_000_003 * seed + number % 1_000_003),
            fits=100,
            seed=seed,
            progress=False,
        )
    told = {quantity.name: quantity.verdict for quantity in calibration.quantities}
    status = "calibrated" if calibration.calibrated else "found"
    return {**about, "status": status, "told": told, "seconds": calibration.seconds, "how": calibration.how}


def _positive(y: Tensor) -> None:
    scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(0.0, scale), obs=y)


def _real(y: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(loc, 1.0), obs=y)


def _only_positive(y: Tensor) -> None:
    loc = pyro.param("m", torch.tensor(0.0))
    pyro.sample("loc", dist.LogNormal(loc, 1.0))


def _only_below_one(y: Tensor) -> None:
    a = pyro.param("a", torch.tensor(2.0), constraint=dist.constraints.positive)
    pyro.sample("scale", dist.Beta(a, 1.0))


CUTS: dict[str, tuple[Any, Any, Any]] = {
    "positive where the latent is real": (_real, _only_positive, np.array([0.1, -0.5, 0.3])),
    "below one where the latent is positive": (_positive, _only_below_one, np.array([0.1, -0.5, 0.3])),
}


def table(records: list[Record]) -> str:
    """How often each fault was found, by program."""
    if not records:
        return ""
    head = "| program | fault | runs | found | told |\n| --- | --- | --- | --- | --- |"
    rows = []
    for program in (*PROGRAMS, "support"):
        for fault in (*FAULTS, *CUTS):
            part = [record for record in records if record["program"] == program and record["fault"] == fault]
            if not part:
                continue
            found = [record for record in part if record["status"] == "found"]
            words: dict[str, int] = {}
            for record in found if program != "support" else []:
                for name, verdict in record["told"].items():
                    if verdict != "calibrated":
                        words[f"{name} {verdict}"] = words.get(f"{name} {verdict}", 0) + 1
            most = sorted(words, key=lambda word: -words[word])[:4]
            told = ", ".join(f"{word} ({words[word]})" for word in most)
            rows.append(f"| {program} | {fault} | {len(part)} | {len(found)} | {told} |")
    return "\n".join([head, *rows])
