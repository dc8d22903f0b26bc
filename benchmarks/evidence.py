"""Seconds for one estimate of the evidence: Ingle, a loop in torch written by hand, Pyro's importance weights, and a
Python loop over data and draws, side by side on the machine that it runs on, as a Markdown table.

Run: python -m benchmarks.evidence [--workloads vae schools] [--threads 1] [--rounds 5] [--device cuda] [--draws 5000]

The ways take turns, so that whatever else the machine does meets them all; figures are medians over rounds with the
lowest and highest, and the ratio to the loop by hand is the median of the ratios within a round. The first call of
Ingle, which may compile, is timed apart, with an empty folder for what Inductor keeps on disk. The Python loop runs a
few of its pairs of datum and draw and is extrapolated. All ways must agree within their standard errors.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from torch import Tensor
from torch.nn import functional

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.hierarchical import eight_schools
from ingle.models.vae import VAE

PAIRS = 300  # of the Python loop that are run
TITLES = {
    "ingle": "ingle.log_evidence",
    "bare": "torch by hand",
    "pyro": "vectorized_importance_weights, datum by datum",
    "loop": "Python loop, extrapolated",
}


@dataclass(frozen=True)
class Workload:
    """What is estimated, by each way.

    Attributes:
        title: in the table.
        draws: for each element.
        elements: data with weights of their own, 1 where all share one.
        ingle, bare, pyro: from nothing to log Z and its standard error.
        pair: one datum and one draw of the Python loop.
    """

    title: str
    draws: int
    elements: int
    ingle: Callable[[], tuple[float, float]]
    bare: Callable[[], tuple[float, float]]
    pyro: Callable[[], tuple[float, float]]
    pair: Callable[[int], Any]


def vae(device: torch.device, draws: int | None) -> Workload:
    n, latent = (10_000 if device.type == "cuda" else 100), 20
    s = draws or 5_000
    torch.manual_seed(0)
    x = (torch.rand(n, 784, device=device) < 0.2).float()
    model = VAE(784, latent, (400,)).to(device)
    guide = VAEGuide(model).to(device)
    with torch.no_grad():  # as after training: the likelihood moves little over a posterior as narrow as the guide
        model.decoder[-1].weight.mul_(0.1)
    rows = 20 if device.type == "cpu" else 40

    def bare() -> tuple[float, float]:
        with torch.inference_mode():
            loc, raw = guide.encoder(x).chunk(2, -1)
            scale = functional.softplus(raw) + 1e-4
            parts = []
            for start in range(0, s, rows):
                noise = torch.randn(min(rows, s - start), n, latent, device=device)
                z = loc + scale * noise
                logits = model.decoder(z)
                found = -functional.binary_cross_entropy_with_logits(logits, x.expand_as(logits), reduction="none")
                log_ratio = (-0.5 * z**2 + 0.5 * noise**2 + scale.log()).sum(-1)
                parts.append(found.sum(-1) + log_ratio)
            return _estimated(torch.cat(parts))

    def by_pyro() -> tuple[float, float]:
        with torch.inference_mode():
            most = 1_000
            columns = []
            for i in range(n):
                parts = [
                    vectorized_importance_weights(
                        model, guide, x[i : i + 1], num_samples=min(most, s - start), max_plate_nesting=1
                    )[0]
                    for start in range(0, s, most)
                ]
                columns.append(torch.cat(parts))
            return _estimated(torch.stack(columns, 1))

    return Workload(
        f"VAE 784-400-20, {n:,} images by {s:,} draws",
        s,
        n,
        lambda: _of(ingle.log_evidence(model, guide, x, num_samples=s, per="data")),
        bare,
        by_pyro,
        lambda i: _log_weight(model, guide, x[i % n : i % n + 1]),
    )


def schools(device: torch.device, draws: int | None) -> Workload:
    s, most = draws or 1_000_000, 50_000
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0], device=device)
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0], device=device)
    guide = AutoNormal(eight_schools, init_scale=0.8)
    with device:
        guide(sigma, y)
    found = {site: guide._get_loc_and_scale(site) for site in ("mu", "tau", "eta")}
    locs, scales = ({site: pair[place].detach() for site, pair in found.items()} for place in (0, 1))
    half = 0.5 * math.log(2 * math.pi)

    def bare() -> tuple[float, float]:
        parts = []
        with torch.inference_mode():
            for start in range(0, s, most):
                n = min(most, s - start)
                noise = {
                    "mu": torch.randn(n, device=device),
                    "tau": torch.randn(n, device=device),
                    "eta": torch.randn(n, 8, device=device),
                }
                u = {site: locs[site] + scales[site] * noise[site] for site in locs}
                tau = u["tau"].exp()
                log_q = sum(_normal(noise[site]) - scales[site].log() for site in ("mu", "tau"))
                log_q = log_q - u["tau"] + (_normal(noise["eta"]) - scales["eta"].log()).sum(-1)
                log_p = _normal(u["mu"] / 5) - math.log(5) + math.log(2 / math.pi / 5) - torch.log1p((tau / 5) ** 2)
                log_p = log_p + _normal(u["eta"]).sum(-1)
                theta = u["mu"][:, None] + tau[:, None] * u["eta"]
                log_p = log_p + (_normal((y - theta) / sigma) - sigma.log()).sum(-1)
                parts.append(log_p - log_q)
        return _estimated(torch.cat(parts)[:, None])

    def _normal(z: Tensor) -> Tensor:
        return -0.5 * z**2 - half

    def by_pyro() -> tuple[float, float]:
        with torch.inference_mode(), device:
            parts = [
                vectorized_importance_weights(
                    eight_schools, guide, sigma, y, num_samples=min(most, s - start), max_plate_nesting=1
                )[0]
                for start in range(0, s, most)
            ]
        return _estimated(torch.cat(parts)[:, None])

    return Workload(
        f"eight schools, {s:,} draws",
        s,
        1,
        lambda: _of(ingle.log_evidence(eight_schools, guide, (sigma, y), num_samples=s)),
        bare,
        by_pyro,
        lambda i: _log_weight(eight_schools, guide, sigma, y),
    )


def linear(device: torch.device, draws: int | None) -> Workload:
    n, d, k, s, most = 50, 10, 3, draws or 100_000, 2_000
    torch.manual_seed(1)
    weight, noise = torch.randn(d, k, device=device), 0.5
    x = torch.randn(n, k, device=device) @ weight.T + noise * torch.randn(n, d, device=device)
    covariance = torch.linalg.inv(torch.eye(k, device=device) + weight.T @ weight / noise**2)
    scale = covariance.diagonal().sqrt()

    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(k), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight.T, noise).to_event(1), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ weight @ covariance / noise**2, scale).to_event(1))

    def bare() -> tuple[float, float]:
        loc, parts = x @ weight @ covariance / noise**2, []
        const = -d * (math.log(noise) + 0.5 * math.log(2 * math.pi)) + scale.log().sum()
        with torch.inference_mode():
            for start in range(0, s, most):
                drawn = torch.randn(min(most, s - start), n, k, device=device)
                z = loc + scale * drawn
                fit = -0.5 * (((x - z @ weight.T) / noise) ** 2).sum(-1)
                parts.append(fit + 0.5 * (drawn**2 - z**2).sum(-1) + const)
        return _estimated(torch.cat(parts))

    def by_pyro() -> tuple[float, float]:
        columns = []
        with torch.inference_mode(), device:
            for i in range(n):
                row = x[i : i + 1]
                columns.append(vectorized_importance_weights(model, guide, row, num_samples=s, max_plate_nesting=1)[0])
        return _estimated(torch.stack(columns, 1))

    return Workload(
        f"linear-Gaussian, {n} data by {s:,} draws",
        s,
        n,
        lambda: _of(ingle.log_evidence(model, guide, x, num_samples=s, per="data")),
        bare,
        by_pyro,
        lambda i: _log_weight(model, guide, x[i % n : i % n + 1]),
    )


WORKLOADS = {"vae": vae, "schools": schools, "linear": linear}


def _of(evidence: ingle.Evidence) -> tuple[float, float]:
    return evidence.log_z, evidence.se


def _estimated(log_weights: Tensor) -> tuple[float, float]:
    """Log Z and its standard error from weights of shape (draws, elements)."""
    weights = log_weights.double()
    log_z = weights.logsumexp(0) - math.log(len(weights))
    variance = (2 * (weights - log_z)).exp().mean(0) - 1
    return float(log_z.sum()), float((variance / len(weights)).sum().sqrt())


def _log_weight(model: Any, guide: Any, *args: Tensor) -> float:
    with torch.no_grad():
        guide_trace = poutine.trace(guide).get_trace(*args)
        model_trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args)
        return float(model_trace.log_prob_sum() - guide_trace.log_prob_sum())


def _timed(run: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    if device.type == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    found = run()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began, found


@contextmanager
def _empty_cache() -> Iterator[None]:
    before = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        try:
            yield
        finally:
            if before is None:
                del os.environ["TORCHINDUCTOR_CACHE_DIR"]
            else:
                os.environ["TORCHINDUCTOR_CACHE_DIR"] = before


def measured(workload: Workload, device: torch.device, rounds: int) -> tuple[list[str], list[str]]:
    """Lines of the table, and where ways disagree."""
    with device:
        with _empty_cache():
            first, _ = _timed(workload.ingle, device)
        _timed(workload.bare, device)
        seconds: dict[str, list[float]] = {"ingle": [], "bare": [], "pyro": []}
        found: dict[str, tuple[float, float]] = {}
        for _ in range(rounds):
            for way in seconds:
                took, found[way] = _timed(getattr(workload, way), device)
                seconds[way].append(took)
        took, _ = _timed(lambda: [workload.pair(i) for i in range(PAIRS)], device)
    seconds["loop"] = [took / PAIRS * workload.draws * workload.elements]
    wrong = []
    for way in ("ingle", "pyro"):
        (one, one_se), (two, two_se) = found[way], found["bare"]
        if not abs(one - two) < 5 * math.hypot(one_se, two_se):
            wrong.append(
                f"{workload.title}: {TITLES[way]} says {one:.3f} ± {one_se:.2g}, by hand {two:.3f} ± {two_se:.2g}"
            )
    lines = []
    for way, took_ in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(took_, seconds["bare"], strict=False))
        spread = f" ({min(took_):.3g} to {max(took_):.3g})" if len(took_) > 1 else ""
        value = f"{found[way][0]:,.3f} ± {found[way][1]:.2g}" if way in found else ""
        call = f"{first:.3g}" if way == "ingle" else ""
        cells = (workload.title, TITLES[way], f"{statistics.median(took_):.3g}{spread}", f"{ratio:.3g}", call, value)
        lines.append(f"| {' | '.join(cells)} |")
    return lines, wrong


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--draws", type=int, default=None, help="in place of each workload's own number")
    parser.add_argument("--device", default="cpu")
    chosen = parser.parse_args()
    torch.set_num_threads(chosen.threads)
    device = torch.device(chosen.device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    load = ""
    with suppress(OSError):
        load = f", load {os.getloadavg()[0]:.1f}"
    print(
        f"{name}, {chosen.threads} thread(s), Python {platform.python_version()}, torch {torch.__version__}, "
        f"pyro-ppl {pyro.__version__}{load}\n"
    )
    print("| workload | way | seconds: median (range) | times the loop by hand | first call, cold | log Z |")
    print("| --- | --- | --- | --- | --- | --- |")
    faults = []
    for workload in chosen.workloads:
        pyro.clear_param_store()
        lines, wrong = measured(WORKLOADS[workload](device, chosen.draws), device, chosen.rounds)
        print("\n".join(lines), flush=True)
        faults += wrong
    for fault in faults:
        print(f"DISAGREEMENT: {fault}", file=sys.stderr)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    main()
