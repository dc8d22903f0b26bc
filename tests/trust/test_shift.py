"""Shifts from guide to posterior, with both normal: what they are is known, and their errors are seen by repetition.

Each of many rows, or of many coordinates, is a repetition of its own. Errors are held against the spread of what they
are errors of: of z scores that are standard normal, n times the mean square is chi-square with n degrees of freedom.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chi2, norm
from torch import Tensor

from ingle.evidence import Elements
from ingle.program import Site
from ingle.program.sites import Plate
from ingle.trust.shift import Shifts, by_chains, by_weights, near_limits, off_limits

TIMES = 400
RARE = 1e-6  # chance of each comparison to fail on either side, were all as it should be
LOC, SCALE = 3.0, 2.5  # of the guide beside a standard normal posterior, wider so that weights are bounded
ROWS = Elements("row", -1, TIMES)


def site(name: str, shape: tuple[int, ...] = (), *, plates: tuple[Plate, ...] = (), event: int = 0) -> Site:
    """A normal latent of a shape, whose last `event` dimensions are an event."""
    split = len(shape) - event
    batch = shape[:split]
    return Site(name, "latent", "Normal", batch, shape[split:], shape, plates, False, False, True, False)


def rows(name: str = "x") -> Site:
    return site(name, (TIMES,), plates=(Plate("row", TIMES, TIMES, -1),))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights_of(x: Tensor) -> Tensor:
    """Of a standard normal posterior to the guide, normalised, in logs."""
    log_weights = -0.5 * x.square() + 0.5 * ((x - LOC) / SCALE).square()
    return log_weights - log_weights.logsumexp(0)


def assert_standard(z: np.ndarray) -> None:
    """z scores have mean 0 and mean square 1."""
    assert abs(z.mean()) < norm.isf(RARE) / math.sqrt(len(z))
    low, high = chi2.ppf([RARE, 1 - RARE], len(z)) / len(z)
    assert low < np.square(z).mean() < high


def test_weights_tell_the_shift_and_its_error() -> None:
    """At (3 - 0) / 1 and 2.5 / 1, in each of 400 rows with weights of its own."""
    x = LOC + SCALE * noise(4_000, TIMES)
    shifts = by_weights([rows()], ROWS, {"x": x}, weights_of(x))
    assert shifts.by == "weights"
    np.testing.assert_array_equal(shifts.row, np.arange(TIMES))
    assert_standard((shifts.shift - LOC) / shifts.shift_se)
    assert_standard((shifts.ratio - SCALE) / shifts.ratio_se)
    np.testing.assert_allclose(shifts.guide_mean, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(shifts.guide_sd, x.std(0, correction=0), rtol=1e-12)
    np.testing.assert_allclose((shifts.guide_mean - shifts.mean) / shifts.sd, shifts.shift, rtol=1e-9)
    np.testing.assert_allclose(shifts.guide_sd / shifts.sd, shifts.ratio, rtol=1e-9)
    for still in (shifts.drift, shifts.drift_se, shifts.held):
        np.testing.assert_array_equal(still, 0.0)


def test_error_of_the_shift_is_that_of_the_difference() -> None:
    """Where guide and posterior are one, the noise of the draws is on both sides, and nothing is left of it."""
    x = noise(1_000, TIMES)
    shifts = by_weights([rows()], ROWS, {"x": x}, torch.full_like(x, -math.log(1_000)))
    for exact, value in ((shifts.shift, 0.0), (shifts.ratio, 1.0), (shifts.shift_se, 0.0), (shifts.ratio_se, 0.0)):
        np.testing.assert_allclose(exact, value, atol=1e-12)


def test_weights_of_all_are_those_of_one_row() -> None:
    """A weight for all coordinates gives each the numbers that a row of its own with the same weights has."""
    x = noise(500, TIMES)
    log_weights = weights_of(x[:, 0])
    shared = by_weights([site("x", (TIMES,), event=1)], Elements(), {"x": x}, log_weights)
    alone = by_weights([rows()], ROWS, {"x": x}, log_weights[:, None].expand(500, TIMES))
    np.testing.assert_array_equal(shared.row, 0)
    for name in ("shift", "shift_se", "ratio", "ratio_se", "mean", "sd"):
        np.testing.assert_allclose(getattr(shared, name), getattr(alone, name), rtol=1e-9, err_msg=name)


def test_weights_of_a_row_are_for_all_of_its_coordinates() -> None:
    """An event inside of a plate, and a second plate outside: the weights go along the right axis."""
    outer, inner = Plate("group", 2, 2, -2), Plate("row", 3, 3, -1)
    x, log_weights = noise(800, 2, 3, 4), torch.log_softmax(noise(800, 3, seed=1), 0)
    elements = Elements("row", -1, 3)
    shifts = by_weights([site("x", (2, 3, 4), plates=(outer, inner), event=1)], elements, {"x": x}, log_weights)
    mean = (log_weights.exp()[:, None, :, None] * x).sum(0)
    np.testing.assert_allclose(shifts.mean, mean.reshape(-1), rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(shifts.row.reshape(2, 3, 4), np.broadcast_to([[[0], [1], [2]]], (2, 3, 4)))


def test_a_site_seen_in_a_minibatch_has_all_its_rows() -> None:
    """What a run in minibatches shows of a site is the shape of the batch; its draws have every row."""
    part = site("x", (5,), plates=(Plate("row", 5, TIMES, -1),))
    x = LOC + SCALE * noise(300, TIMES)
    shifts = by_weights([part], ROWS, {"x": x}, weights_of(x))
    whole = by_weights([rows()], ROWS, {"x": x}, weights_of(x))
    for name in ("shift", "shift_se", "ratio", "ratio_se", "row", "sites"):
        np.testing.assert_equal(getattr(shifts, name), getattr(whole, name), err_msg=name)
    moved = noise(4, 100, TIMES)
    assert by_chains([part], ROWS, {"x": x}, {"x": moved}, {"x": x[:100]}).names()[-1] == f"x[{TIMES - 1}]"


def test_long_sites_are_looked_at_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    x = LOC + SCALE * noise(200, TIMES)
    sites, values = [rows("x"), rows("z")], {"x": x, "z": x.flip(1)}
    log_weights = weights_of(x)
    whole = by_weights(sites, ROWS, values, log_weights)
    monkeypatch.setattr("ingle.trust.shift._BLOCK", 200 * 7)
    parts = by_weights(sites, ROWS, values, log_weights)
    for name in ("shift", "shift_se", "ratio", "ratio_se", "row"):
        np.testing.assert_allclose(getattr(parts, name), getattr(whole, name), rtol=1e-9, atol=1e-12, err_msg=name)


def moving(correlation: float, positions: int, chains: int) -> tuple[Tensor, Tensor]:
    """Chains that begin and stay in a standard normal posterior, by repetition, and where they began."""
    steps = noise(positions + 1, chains, TIMES, seed=2)
    at = [steps[0]]
    for step in steps[1:]:
        at.append(correlation * at[-1] + math.sqrt(1 - correlation**2) * step)
    return torch.stack(at[1:]), at[0]


@pytest.fixture(scope="module")
def chains() -> Shifts:
    """The guide beside chains of the posterior that keep 0.7 of where they are, so that positions are no draws."""
    moved, began = moving(0.7, 10, 200)
    return by_chains([rows()], ROWS, {"x": LOC + SCALE * noise(2_000, TIMES)}, {"x": moved}, {"x": began})


def test_chains_tell_the_shift_and_its_error(chains: Shifts) -> None:
    assert chains.by == "chains"
    assert_standard((chains.shift - LOC) / chains.shift_se)
    assert_standard((chains.ratio - SCALE) / chains.ratio_se)
    np.testing.assert_array_equal(chains.row, np.arange(TIMES))


def test_chains_at_rest_do_not_drift_and_forget(chains: Shifts) -> None:
    assert_standard(chains.drift / chains.drift_se)
    assert_standard((np.arctanh(chains.held) - math.atanh(0.7**10)) * math.sqrt(200 - 3))  # Fisher's z


def test_chains_on_their_way_drift() -> None:
    """From 2 to 0, halving the distance each time: halves differ by what is known, and ends hold to beginnings."""
    began = 2 + 0.1 * noise(300, 1)
    moved = torch.stack([began * 0.5**place for place in range(1, 5)])
    shifts = by_chains([site("x", (1,), event=1)], Elements(), {"x": began}, {"x": moved}, {"x": began})
    apart = (2 * (0.5 + 0.25) - 2 * (0.125 + 0.0625)) / 2
    assert float(shifts.drift[0] * shifts.sd[0]) == pytest.approx(apart, rel=0.02)  # 0.1 / sqrt(300) is 0.6% of it
    assert shifts.drift[0] > 10 * shifts.drift_se[0]
    assert shifts.held[0] == pytest.approx(1.0)


@pytest.mark.parametrize("by", ["weights", "chains"])
@pytest.mark.parametrize("value", [0.0, 3.7, -1e6])
def test_what_does_not_vary_is_not_off(by: str, value: float) -> None:
    """Beside what does: zeros of a Cholesky factor, and numbers that rounding alone moves."""
    x = torch.stack([torch.full((300,), value, dtype=torch.float64), 0.5 + noise(300)], 1)
    where = site("x", (2,), event=1)
    if by == "weights":
        shifts = by_weights([where], Elements(), {"x": x}, weights_of(x[:, 1]))
    else:
        moved = torch.stack([torch.full((4, 100), value, dtype=torch.float64), noise(4, 100, seed=1)], -1)
        shifts = by_chains([where], Elements(), {"x": x}, {"x": moved}, {"x": x[:100]})
    for name, still in (("shift", 0.0), ("shift_se", 0.0), ("ratio", 1.0), ("ratio_se", 0.0), ("drift", 0.0)):
        assert getattr(shifts, name)[0] == still, name
        assert np.isfinite(getattr(shifts, name)).all(), name
    assert shifts.held[0] == 0.0
    assert shifts.shift[1] > 0.1


def test_coordinates_have_names() -> None:
    sites = [site("mu"), site("eta", (4,)), site("root", (2, 2), event=2)]
    values: dict[str, Any] = {"mu": noise(50), "eta": noise(50, 4), "root": noise(50, 2, 2)}
    shifts = by_weights(sites, Elements(), values, torch.full((50,), -math.log(50.0), dtype=torch.float64))
    named = ["mu", "eta[0]", "eta[1]", "eta[2]", "eta[3]", "root[0, 0]", "root[0, 1]", "root[1, 0]", "root[1, 1]"]
    assert shifts.names() == named
    assert len(shifts) == 9
    assert shifts.guide_mean[4] == pytest.approx(float(values["eta"][:, 3].mean()))
    with pytest.raises(IndexError):
        shifts.name(9)


def with_figures(shift: list[float], ratio: list[float], *, row: list[int] | None = None) -> Shifts:
    zero = np.zeros(len(shift))
    of = np.array(row or [0] * len(shift))
    shape = (("x", (len(shift),)),)
    parts = (zero, zero, zero, zero, np.array(shift), zero, np.array(ratio), zero, zero, zero, zero)
    return Shifts(shape, "weights", of, *parts)


def test_limits_are_three_tenths() -> None:
    """Of an sd for means, and of the posterior's sd for sds, either way."""
    shift, ratio = [0.0, 0.29, 0.31, -0.31, 0.0, 0.0, 0.0], [1.0, 1.29, 1.0, 1.0, 0.71, 0.69, 1.31]
    mean, sd = off_limits(with_figures(shift, ratio))
    np.testing.assert_array_equal(mean, [False, False, True, True, False, False, False])
    np.testing.assert_array_equal(sd, [False, False, False, False, False, True, True])


def test_near_limits_by_row() -> None:
    """On the good side of a limit by less than half of it, in any coordinate of the row."""
    shifts = with_figures([0.1, 0.2, 0.0, 0.4], [1.0, 1.0, 0.8, 1.2], row=[0, 0, 1, 2])
    np.testing.assert_array_equal(near_limits(shifts, elements_of=4), [True, True, False, False])
    assert not near_limits(with_figures([0.1], [1.1]), elements_of=1).any()
