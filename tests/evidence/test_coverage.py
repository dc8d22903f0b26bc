"""Whether the error bar is one, over many seeds, and whether proposals that are wrong are told."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from scipy.stats import binom
from torch import Tensor

import ingle

F64 = torch.float64
Y = torch.tensor([0.8, -0.3, 1.4], dtype=F64)
FAILURES = 1e-4  # how often a count over seeds may be told off that is as it should be


def normal(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def near(y: Tensor) -> None:
    """A quarter of an sd beside the posterior, and a fifth too wide."""
    pyro.sample("mu", dist.Normal(y.sum() / 4 + 0.125, 0.6))


NORMAL = float(dist.MultivariateNormal(torch.zeros(3, dtype=F64), torch.eye(3, dtype=F64) + 1.0).log_prob(Y))


def rows(y: Tensor) -> None:
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def rows_near(y: Tensor) -> None:
    with pyro.plate("row", len(y)):
        pyro.sample("z", dist.Normal(0.5 * y + 0.2, 0.85))


ROWS = float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(Y).sum())
CASES = {
    "the guide": (normal, near, {}, NORMAL),
    "defensive": (normal, near, {"defensive": 0.1}, NORMAL),
    "element by element": (rows, rows_near, {"per": "row"}, ROWS),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(
    ("seeds", "least", "most"), [(300, 0.91, 0.98), pytest.param(2_000, 0.93, 0.97, marks=pytest.mark.long)]
)
def test_error_bar_covers(name: str, seeds: int, least: float, most: float, device: torch.device) -> None:
    """95% of intervals hold the evidence: between the bounds with probability above 0.997; the seeds are fixed."""
    model, guide, options, expected = CASES[name]
    found = []
    for seed in range(seeds):
        each = ingle.log_evidence(
            model, guide, Y, num_samples=400, chunk=400, seed=seed, dtype=F64, device=device, **options
        )
        found.append((each.log_z - expected, each.se))
    errors, sds = np.array(found).T
    covered = float((np.abs(errors) < 1.96 * sds).mean())
    print(f"{name}: {covered:.2%} of {seeds:,}; spread of estimates over mean error {errors.std() / sds.mean():.3f}")
    assert least <= covered <= most
    assert errors.std() / sds.mean() == pytest.approx(1.0, abs=5 / math.sqrt(2 * seeds))
    assert abs(errors.mean() + (sds**2).mean() / 2) < 4 * errors.std() / math.sqrt(seeds)


def test_defensive_error_is_that_of_strata(device: torch.device) -> None:
    """The number of draws of each is fixed, so what differs between guide and prior on average is no noise.

    A prior far from the data has weights near zero: draws that mixed the two at random would have an error above
    sqrt(0.1 * 0.9 / 400) = 0.015, which strata do not have.
    """

    def guide() -> None:
        pyro.sample("z", dist.Normal(6.0, 1.0))

    def model() -> None:
        z = pyro.sample("z", dist.Normal(0.0, 100.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=torch.tensor(6.0))

    found = [
        ingle.log_evidence(model, guide, (), num_samples=400, defensive=0.1, seed=seed, dtype=F64, device=device)
        for seed in range(100)
    ]
    sd = math.hypot(100.0, 1.0)
    errors = np.array([each.log_z for each in found]) - float(dist.Normal(0.0, sd).log_prob(torch.tensor(6.0)))
    assert max(each.se for each in found) < 0.01
    assert abs(errors).max() < 0.05
    assert errors.std() == pytest.approx(np.mean([each.se for each in found]), rel=0.5)


def five() -> None:
    """Its posterior is a standard normal distribution in five dimensions, and its evidence one."""
    pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))


def guide_at(shift: float, scale: float) -> Any:
    def guide() -> None:
        loc = torch.tensor([shift, 0.0, 0.0, 0.0, 0.0])
        pyro.sample("z", dist.Normal(loc, scale).to_event(1))

    return guide


def hundred(shift: float, scale: float, where: dict[str, Any]) -> list[ingle.Evidence]:
    guide = guide_at(shift, scale)
    return [ingle.log_evidence(five, guide, (), seed=seed, chunk=10_000, **where) for seed in range(100)]


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1 / 3), (3.0, 1.0)], ids=["a third of the scale", "3 sd beside"])
def test_wrong_guide_is_called_unreliable(shift: float, scale: float, where: dict[str, Any]) -> None:
    found = hundred(shift, scale, where)
    told = [each for each in found if each.verdict == "unreliable"]
    print(f"{len(told)} of 100 unreliable")
    assert len(told) >= 95
    off = np.array([abs(each.log_z) / each.se for each in found])
    assert (off > 1.96).sum() > binom.ppf(1 - FAILURES, 100, 0.05)  # and rightly so
    assert all("unreliable  no: " in repr(each) and "with heavier tails" in repr(each) for each in told)


def test_guide_that_is_too_wide_is_costly_and_right(where: dict[str, Any]) -> None:
    found = hundred(0.0, 3.0, where)
    assert {each.verdict for each in found} == {"costly"}
    assert max(abs(each.log_z) / each.se for each in found) < 4
    assert all("reliable, but dear: the weights of 10,000 draws are worth" in each.reason for each in found)


WIDTH = torch.tensor([3.0, 1.0, 1.0, 1.0, 1.0])
CENTRE = torch.tensor([6.0, 0.0, 0.0, 0.0, 0.0])


def two_modes() -> None:
    """What is seen is the same from either side, so that the posterior has equal modes at -5.4 and 5.4."""
    z = pyro.sample("z", dist.Normal(0.0, WIDTH).to_event(1))
    side = pyro.sample("side", dist.Bernoulli(0.5))
    pyro.sample("y", dist.Normal(z - CENTRE * (2 * side - 1)[..., None], 1.0).to_event(1), obs=torch.zeros(5))


def one_mode() -> None:
    """That on the right, a twentieth too wide."""
    variance = WIDTH**2 / (WIDTH**2 + 1)
    pyro.sample("z", dist.Normal(CENTRE * variance, 1.05 * variance.sqrt()).to_event(1))


def test_missing_mode_is_not_seen_by_khat_and_defensive_shows_it(where: dict[str, Any]) -> None:
    """The guide's estimate lacks one of two equal halves."""
    expected = float(dist.Normal(0.0, (WIDTH.double() ** 2 + 1).sqrt()).log_prob(CENTRE.double()).sum())
    for seed in range(10):
        blind = ingle.log_evidence(two_modes, one_mode, (), seed=seed, **where)
        assert blind.verdict == "reliable"
        assert abs(blind.log_z - (expected - math.log(2))) < 0.05
        assert "miss a region altogether" in blind.reason
        seen = ingle.log_evidence(two_modes, one_mode, (), seed=seed, defensive=0.1, **where)
        assert seen.se > 5 * blind.se
        assert seen.verdict != "reliable"
        assert "try defensive" not in seen.reason
        assert seen.verdict == "unreliable" or abs(seen.log_z - expected) < 4 * seen.se
