"""Shifts of means and sds against normal posteriors whose shifts are known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ingle.evidence import Elements
from ingle.program import Site
from ingle.trust.shift import Shifts, by_chains, by_weights, near_limits, off_limits

F64 = torch.float64


def site(name: str, shape: tuple[int, ...] = ()) -> Site:
    return Site(
        name=name,
        kind="latent",
        distribution="Normal",
        batch_shape=shape,
        event_shape=(),
        value_shape=shape,
        plates=(),
        discrete=False,
        enumerable=False,
        reparameterised=True,
        marked=False,
    )


def weighed(mean: float, sd: float, *, n: int = 4_000, seed: int = 0) -> Shifts:
    """A normal guide with this mean and sd beside a standard normal posterior, by exact weights."""
    generator = torch.Generator().manual_seed(seed)
    x = mean + sd * torch.randn(n, generator=generator, dtype=F64)
    log_weights = -0.5 * x.square() + 0.5 * ((x - mean) / sd).square()
    return by_weights([site("x")], Elements(), {"x": x}, log_weights - log_weights.logsumexp(0))


def chained(mean: float, sd: float, *, n: int = 4_000, chains: int = 64, positions: int = 10, seed: int = 0) -> Shifts:
    """The same by chains that draw from the posterior, each position half of the one before."""
    generator = torch.Generator().manual_seed(seed)
    x = mean + sd * torch.randn(n, generator=generator, dtype=F64)
    noise = torch.randn(positions, chains, generator=generator, dtype=F64)
    y = [noise[0]]
    for each in noise[1:]:
        y.append(0.5 * y[-1] + math.sqrt(0.75) * each)
    return by_chains([site("x")], Elements(), {"x": x}, {"x": torch.stack(y)}, {"x": x[:chains]})


@pytest.mark.parametrize("of", [weighed, chained])
@pytest.mark.parametrize(("mean", "sd"), [(0.0, 1.0), (0.3, 1.2), (-0.4, 0.95)])
def test_shifts_and_errors_are_those_of_normals(of: Any, mean: float, sd: float) -> None:
    """Over 200 replications z scores have mean 0 and variance 1: within 5 standard errors, some more for a bias.

    Weights of a guide that is too narrow have a heavy tail, so that their errors are told too small by a tenth.
    """
    found = [of(mean, sd, seed=seed) for seed in range(200)]
    for name, truth in (("shift", mean), ("ratio", sd)):
        values, errors = (np.array([float(getattr(each, part)[0]) for each in found]) for part in (name, f"{name}_se"))
        if errors.max() < 1e-9:  # the exact guide: all weights alike
            np.testing.assert_allclose(values, truth, atol=1e-9)
            continue
        z = (values - truth) / errors
        assert abs(z.mean()) < 5 / math.sqrt(200) + 0.25
        assert z.var() < (1 + 5 * math.sqrt(2 / 200)) * (1.25 if of is weighed else 1.0)
        assert z.var() > 1 - 5 * math.sqrt(2 / 200)


def test_weights_give_the_posterior_itself() -> None:
    found = weighed(0.4, 1.1, n=100_000)
    assert found.mean[0] == pytest.approx(0.0, abs=0.02)
    assert found.sd[0] == pytest.approx(1.0, rel=0.02)
    assert (found.guide_mean[0], found.guide_sd[0]) == pytest.approx((0.4, 1.1), abs=0.02)
    assert found.by == "weights"


def test_chains_that_drift_or_stay_show_it() -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(500, generator=generator, dtype=F64)
    began = x[:100]
    still = began + 0.1 * torch.randn(12, 100, generator=generator, dtype=F64)
    found = by_chains([site("x")], Elements(), {"x": x}, {"x": still}, {"x": began})
    assert found.held[0] > 0.95
    drifting = torch.randn(12, 100, generator=generator, dtype=F64) + torch.linspace(0.0, 2.0, 12, dtype=F64)[:, None]
    found = by_chains([site("x")], Elements(), {"x": x}, {"x": drifting}, {"x": began})
    assert abs(found.held[0]) < 0.4
    assert abs(found.drift[0]) > 5 * found.drift_se[0]


def test_coordinates_have_names_and_those_that_stand_still_no_shift() -> None:
    x = torch.randn(300, 2, 2, generator=torch.Generator().manual_seed(2), dtype=F64)
    x[:, 0, 1] = 1.0
    values: dict[str, Tensor] = {"a": x[:, 0, 0], "L": x}
    flat = torch.full((300,), -math.log(300), dtype=F64)
    found = by_weights([site("a"), site("L", (2, 2))], Elements(), values, flat)
    assert found.names() == ["a", "L[0, 0]", "L[0, 1]", "L[1, 0]", "L[1, 1]"]
    assert (found.shift[2], found.shift_se[2], found.ratio[2], found.ratio_se[2]) == (0.0, 0.0, 1.0, 0.0)
    with pytest.raises(IndexError):
        found.name(5)


def test_limits() -> None:
    """Off beyond 0.3; near from half of that on."""
    for mean, off, near in ((0.0, False, False), (0.2, False, True), (0.27, False, True), (0.4, True, False)):
        found = weighed(mean, 1.0, n=50_000)
        assert bool(off_limits(found)[0][0]) is off
        assert bool(near_limits(found, elements_of=1)[0]) is near
    assert bool(off_limits(weighed(0.0, 1.4, n=50_000))[1][0])
    assert bool(off_limits(weighed(0.0, 0.6, n=50_000))[1][0])
