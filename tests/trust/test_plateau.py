"""The plateau rule on losses whose course is known."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from ingle.trust import Decision, Plateau, trend


def noise(n: int, sd: float = 1.0, seed: int = 0) -> NDArray[np.float64]:
    return np.random.default_rng(seed).normal(0.0, sd, n)


def run(rule: Plateau, losses: NDArray[np.float64]) -> list[tuple[int, Decision]]:
    """Look every 50 steps, as a fit does; the looks that decided something."""
    found = []
    for end in range(50, len(losses) + 1, 50):
        decision = rule.look(losses[:end])
        if decision is not Decision.GO_ON:
            found.append((end, decision))
        if decision is Decision.STOP:
            break
    return found


def test_trend_measures_the_fall() -> None:
    losses = noise(4_000) - np.linspace(0.0, 1.0, 4_000)
    found = trend(losses)
    assert found.fall == pytest.approx(0.5, abs=5 * found.se)
    assert found.falling


def test_trend_of_level_noise_has_its_standard_error() -> None:
    """Chi-square with 18 degrees of freedom: outside half and double in less than 1 of 10,000."""
    assert trend(noise(4_000)).se == pytest.approx((2 / 2_000) ** 0.5, rel=0.5)


def test_level_noise_is_called_falling_in_a_few_of_a_hundred() -> None:
    """One-sided two standard errors from 20 batch means: nominal 3%; above 10 of 100 has a chance below 0.1%."""
    assert sum(trend(noise(2_000, seed=seed)).falling for seed in range(100)) <= 10


def test_few_losses_have_no_trend() -> None:
    found = trend(noise(30))
    assert np.isnan(found.fall)
    assert not found.falling


def test_flat_losses_stop_after_every_learning_rate() -> None:
    decisions = run(Plateau(decays=True), noise(60_000, sd=0.1))
    assert [decision for _, decision in decisions] == [Decision.DECAY] * (Plateau.LEVELS - 1) + [Decision.STOP]
    assert decisions[-1][0] <= 2_000 * Plateau.LEVELS


def test_noise_asks_for_more_steps_at_the_first_rate() -> None:
    quiet = run(Plateau(decays=True), noise(60_000, sd=0.1))[0][0]
    loud = run(Plateau(decays=True), noise(60_000, sd=10.0))[0][0]
    assert quiet <= 2_000
    assert loud >= 3_200


def test_users_learning_rate_stops_at_the_first_plateau() -> None:
    decisions = run(Plateau(decays=False), noise(60_000, sd=0.1))
    assert [decision for _, decision in decisions] == [Decision.STOP]


def test_falling_losses_go_on() -> None:
    assert run(Plateau(decays=True), noise(60_000) - np.arange(60_000) / 500) == []


def test_slow_fall_is_not_a_plateau() -> None:
    """0.12 nats in 1,000 steps under noise of 0.9: a fit that looks level to the eye and is 0.3 nats off."""
    losses = noise(20_000, sd=0.9) - 0.12 * np.arange(20_000) / 1_000
    first = run(Plateau(decays=True), losses)
    assert not first or first[0][0] > 4_000
