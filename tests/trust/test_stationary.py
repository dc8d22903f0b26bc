"""R-hat and effective sample sizes of sequences whose course is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ingle.trust.stationary import best_window, effective_size


def wandering(n: int, rho: float, columns: int = 1, seed: int = 0) -> NDArray[np.float64]:
    """A first-order autoregression of variance 1, shape (n, columns)."""
    generator = np.random.default_rng(seed)
    noise = generator.normal(size=(n, columns)) * np.sqrt(1 - rho**2)
    found = np.empty((n, columns))
    found[0] = generator.normal(size=columns)
    for place in range(1, n):
        found[place] = rho * found[place - 1] + noise[place]
    return found


def test_independent_points_are_stationary() -> None:
    """R² is below 1 + χ²₁ (2 / 200): above 1.1 with a chance of 5e-6."""
    assert best_window(wandering(200, 0.0))[1] < 1.1


@pytest.mark.parametrize("n", [10, 50, 200])
def test_drift_has_the_same_rhat_in_every_window(n: int) -> None:
    """Halves of a straight line of unit slope: R² = (h - 1) / h + (h²) / (2 h (h + 1) / 12) tends to 7."""
    window, rhat = best_window(np.arange(float(n))[:, None] + 1e6)
    h = window // 2
    assert rhat == pytest.approx(((h - 1) / h + 6 * h / (h + 1)) ** 0.5, rel=1e-6)
    assert rhat > 2.4


def test_best_window_leaves_the_way_there_out() -> None:
    points = wandering(200, 0.0, columns=3)
    points[:100] += np.linspace(50.0, 0.0, 100)[:, None]
    window, rhat = best_window(points)
    assert window <= 100
    assert rhat < 1.1


def test_one_moving_coordinate_counts() -> None:
    """Its R-hat is 2.6, of which a quarter of the excess over 1 counts."""
    points = np.concatenate([wandering(200, 0.0, columns=30), np.arange(200.0)[:, None]], 1)
    assert best_window(points)[1] == pytest.approx(1.0 + 1.6 / 4, abs=0.06)


def test_still_coordinates_are_stationary_and_a_jump_is_not() -> None:
    assert best_window(np.full((50, 2), 3.7))[1] < 1.0
    assert best_window(np.repeat([1.0, 2.0], 5)[:, None]) == (0, np.inf)


def test_few_points_have_no_window() -> None:
    assert best_window(np.zeros((9, 2))) == (0, np.inf)
    assert best_window(np.zeros((0, 0))) == (0, np.inf)


@pytest.mark.parametrize("rho", [0.0, 0.5, 0.9])
def test_effective_size_of_autoregressions(rho: float) -> None:
    """n (1 - rho) / (1 + rho); the median of 40 columns is within 15% where one has an error of about 25%."""
    n = 4_000
    assert effective_size(wandering(n, rho, columns=40)) == pytest.approx(n * (1 - rho) / (1 + rho), rel=0.15)


def test_effective_size_does_not_exceed_the_points() -> None:
    alternating = np.tile([1.0, -1.0], 50)[:, None]
    assert effective_size(np.concatenate([alternating, np.ones((100, 1))], 1)) == 100
    assert effective_size(np.ones((100, 2))) == 100


def test_a_tenth_of_the_coordinates_may_lag_behind() -> None:
    """Three of 40 by 1.2 sd from half to half, in every window alike; of five, one alone counts."""
    points = wandering(400, 0.0, columns=40)
    points[:, :3] -= 0.6 * np.log2(400.0 - np.arange(400))[:, None]
    assert best_window(points)[1] < 1.1
    assert best_window(points[:, :5])[1] > 1.1
