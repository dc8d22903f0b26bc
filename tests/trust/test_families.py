"""The families' own references: exact ones against importance sampling, NUTS's against the density that made them."""

from __future__ import annotations

import functools
import json
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal
from trust.climbs import prepared
from trust.families import FAMILIES, HELD_OUT, TUNED, Case, make
from trust.families.errors import errors, is_right

import ingle
from ingle.trust import ascend
from ingle.trust.log_joint import LogJoint

TESTS = Path(__file__).parents[1]
NUTS: dict[str, Any] = json.loads((Path(__file__).parent / "references.json").read_text())
DRAWS = 20_000
WIDE = {"dtype": torch.float64, "device": torch.device("cpu")}


def test_every_second_family_is_held_out() -> None:
    assert len(FAMILIES) >= 12
    assert sorted([*TUNED, *HELD_OUT]) == sorted(FAMILIES)
    assert 0 <= len(TUNED) - len(HELD_OUT) <= 1


def digests() -> dict[str, int]:
    """Of the data of every family at two seeds."""
    found = {}
    for name in FAMILIES:
        for seed in (0, 7):
            data = make(name, seed).data
            found[f"{name}-{seed}"] = zlib.crc32(b"".join(data[key].tobytes() for key in sorted(data)))
    return found


def test_a_seed_gives_the_same_data_in_every_process() -> None:
    """Hashes of strings differ from process to process; these may not."""
    code = "import json; from trust.test_families import digests; print(json.dumps(digests()))"
    told = subprocess.run([sys.executable, "-c", code], cwd=TESTS, capture_output=True, text=True, check=True)
    ours = digests()
    assert json.loads(told.stdout.splitlines()[-1]) == ours
    assert len(set(ours.values())) == len(ours)


@functools.cache
def weighed(name: str, seed: int) -> tuple[dict[str, tuple[Any, Any, Any, Any]], float]:
    """Means and sds with errors, and the share of draws that count.

    Draws come from a Student t of 6 degrees of freedom at the best Gaussian along a path of L-BFGS, 1.2 times as wide.
    """
    case = make(name, seed)
    with prepared(case.model, "normal", case.data, WIDE) as (program, runtime):
        path = ascend(program, runtime, 4)[0]
        density = LogJoint(program, runtime)
        generator = torch.Generator().manual_seed(seed)
        size, nu = density.size, 6.0
        noise = torch.randn(DRAWS, size, generator=generator, dtype=torch.float64)
        chi = torch.randn(DRAWS, int(nu), generator=generator, dtype=torch.float64).square().sum(-1) / nu
        away = noise / chi.sqrt()[:, None]
        points = path.loc + 1.2 * away @ path.factor.mT
        log_q = -0.5 * (nu + size) * torch.log1p(away.square().sum(-1) / nu)
        with torch.no_grad():
            log_p = torch.cat([density.value(part) for part in points.split(5_000)])
            values = density.values(points)
    weights = (log_p - log_q).nan_to_num(nan=-torch.inf).softmax(0).numpy()
    return {site: moments(weights, values[site].numpy()) for site in case.latents}, float(
        1 / (weights**2).sum() / DRAWS
    )


def moments(weights: Any, x: Any) -> tuple[Any, Any, Any, Any]:
    """Mean, its error, sd, its error."""
    w = weights.reshape(-1, *[1] * (x.ndim - 1))
    mean = (w * x).sum(0)
    variance = (w * (x - mean) ** 2).sum(0)
    mean_se = np.sqrt((w**2 * (x - mean) ** 2).sum(0))
    sd_se = np.sqrt((w**2 * ((x - mean) ** 2 - variance) ** 2).sum(0)) / (2 * np.sqrt(variance))
    return mean, mean_se, np.sqrt(variance), sd_se


EXACT = [
    *("normal", "linear", "scaled", "ill conditioned", "autoregression", "shares", "ridge"),
    pytest.param("process", marks=pytest.mark.long),
]


@pytest.mark.parametrize("name", EXACT)
def test_exact_references_are_those_of_the_density(name: str) -> None:
    """z scores of up to 22 numbers, mean and sd of each: beyond 5 once in 40,000 runs, were the draws plenty."""
    exact = make(name, 0).exact()
    assert exact is not None
    found, share = weighed(name, 0)
    assert share > 0.02
    for site, (mean, sd) in exact.items():
        got_mean, mean_se, got_sd, sd_se = found[site]
        assert got_mean.shape == np.shape(mean)
        assert np.max(np.abs(got_mean - mean) / mean_se) < 5, site
        assert np.max(np.abs(got_sd - sd) / sd_se) < 5, site
        assert np.max(mean_se / sd) < 0.1, "so that 5 errors are half an sd at the most"


@pytest.mark.parametrize("name", sorted(NUTS))
def test_long_chains_are_those_of_the_density(name: str) -> None:
    """Errors of both sides count; an sd of chains is known to 1 / sqrt(2 ESS), for tails like a normal's, and more."""
    content = NUTS[name]["0"]
    assert content["kind"] == "NUTS"
    assert content["size"] == make(name, 0).size
    found, share = weighed(name, 0)
    assert share > 0.02
    for site, told in content["moments"].items():
        mean, sd, ess = (np.asarray(told[key]) for key in ("mean", "sd", "ess"))
        assert np.min(ess) > 1_000
        assert np.max(told["r_hat"]) < 1.01
        got_mean, mean_se, got_sd, sd_se = found[site]
        assert np.max(np.abs(got_mean - mean) / np.hypot(mean_se, sd / np.sqrt(ess))) < 5, site
        assert np.max(np.abs(got_sd - sd) / np.hypot(sd_se, 1.5 * sd / np.sqrt(2 * ess))) < 5, site


def test_every_family_without_exact_moments_has_long_chains() -> None:
    assert {name for name, family in FAMILIES.items() if family.exact is None} == set(NUTS)


def assert_moments(logs: Tensor, values: Tensor, exact: tuple[Any, Any]) -> None:
    """Of values at the nodes of a grid, whose weights are in logs."""
    mean, sd = (torch.as_tensor(each, dtype=torch.float64) for each in exact)
    weights = logs.softmax(0).reshape(-1, *[1] * (values.dim() - 1))
    found = (weights * values).sum(0)
    spread = (weights * (values - found).square()).sum(0).sqrt()
    assert float(((found - mean) / sd).abs().max()) < 1e-3
    assert float((spread / sd - 1).abs().max()) < 1e-3


def known(case: Case) -> tuple[dict[str, Tensor], dict[str, tuple[Any, Any]]]:
    exact = case.exact()
    assert exact is not None
    return {name: torch.as_tensor(value, dtype=torch.float64) for name, value in case.data.items()}, exact


@pytest.mark.parametrize("seed", range(3))
def test_two_modes_by_a_grid_of_their_own(seed: int) -> None:
    data, exact = known(make("two modes", seed))
    mu = torch.linspace(-10.0, 10.0, 20_001, dtype=torch.float64)
    logs = Normal(data["tilt"], 2.0).log_prob(mu) + Normal(mu[:, None] ** 2, data["sigma"]).log_prob(data["y"]).sum(-1)
    assert_moments(logs, mu, exact["mu"])


@pytest.mark.parametrize("seed", range(3))
def test_funnel_by_a_grid_of_its_own(seed: int) -> None:
    data, exact = known(make("funnel", seed))
    v = torch.linspace(-20.0, 20.0, 8_001, dtype=torch.float64)
    total = (v.exp()[:, None] + data["error"] ** 2).sqrt()
    assert_moments(Normal(0.0, 3.0).log_prob(v) + Normal(0.0, total).log_prob(data["y"]).sum(-1), v, exact["v"])


@pytest.mark.parametrize("name", ["hierarchical centred", "hierarchical non-centred"])
def test_hierarchies_by_a_grid_of_their_own(name: str) -> None:
    """Over mu and log tau, the groups integrated out: y ~ Normal(mu, sqrt(tau^2 + error^2)), each by itself."""
    data, exact = known(make(name, 0))
    y, error, unit = data["y"], data["error"], data["unit"]
    axis = torch.linspace(-14.0, 2.5, 800, dtype=torch.float64) + unit.log()
    centre, sd = (float(each) for each in exact["mu"])
    mu = torch.linspace(centre - 9 * sd, centre + 9 * sd, 300, dtype=torch.float64)
    tau, at = (each.reshape(-1) for each in torch.meshgrid(axis.exp(), mu, indexing="ij"))
    logs = Normal(at[:, None], (tau[:, None] ** 2 + error**2).sqrt()).log_prob(y).sum(-1)
    logs = logs + Normal(0.0, 10 * unit).log_prob(at) - 0.5 * (tau / (3 * unit)) ** 2 + tau.log()
    assert_moments(logs, at, exact["mu"])
    assert_moments(logs, tau, exact["tau"])


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_every_family_passes_the_check(name: str) -> None:
    case = make(name, 0)
    found = ingle.check(case.model, "normal", case.data)
    assert found.ok, found


def test_errors_are_the_largest_and_without_numbers_infinite() -> None:
    reference = {"a": {"mean": 1.0, "sd": 2.0}, "b": {"mean": [0.0, 0.0], "sd": [1.0, 10.0]}}
    found = {"a": {"mean": 1.2, "sd": 2.2}, "b": {"mean": [0.0, 2.0], "sd": [1.0, 8.0]}}
    mean, sd = errors(found, reference)
    assert (mean, sd) == (pytest.approx(0.2), pytest.approx(0.2))
    assert is_right(mean, sd)
    assert not is_right(0.31, 0.0)
    assert not is_right(0.0, 0.31)
    found["a"]["sd"] = float("nan")
    assert errors(found, reference) == (float("inf"), float("inf"))
