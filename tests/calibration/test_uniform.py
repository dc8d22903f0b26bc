"""Ranks of uniform draws: exact p-values and the band, against enumeration and simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.stats import kstest

from ingle.calibration.uniform import band, distance, ks_p_value, scores


def test_p_values_are_those_of_all_ranks_there_are() -> None:
    """Four ranks among 0, 1, 2: 81 outcomes, each as likely."""
    every = [np.array(ranks) for ranks in itertools.product(range(3), repeat=4)]
    distances = np.array([distance(ranks, 2) for ranks in every])
    for ranks, found in zip(every, distances, strict=True):
        exact = (distances >= found - 1e-9).mean()
        assert ks_p_value(ranks, 2) == pytest.approx(exact, abs=1e-12)


def test_p_values_are_uniform_where_ranks_are() -> None:
    """P(p <= a) is at most a, and not much below it: at 4 standard errors, one-sided, in 1 of 30,000 seeds it fails."""
    generator = np.random.default_rng(0)
    p = np.array([ks_p_value(generator.integers(0, 100, 50), 99) for _ in range(4_000)])
    for level in (0.01, 0.05, 0.2, 0.5):
        se = np.sqrt(level * (1 - level) / len(p))
        assert (p <= level).mean() < level + 4 * se
        assert (p <= level).mean() > 0.8 * level - 4 * se


def test_p_values_of_many_draws_are_those_of_the_continuous_test() -> None:
    ranks = np.random.default_rng(1).integers(0, 10_000, 40) // 2
    exact = kstest((ranks + 1) / 10_000, "uniform", method="exact").pvalue
    assert ks_p_value(ranks, 9_999) == pytest.approx(exact, rel=0.05)


@pytest.mark.parametrize(("n", "draws"), [(20, 9), (100, 99)])
def test_the_band_holds_all_of_an_ecdf_as_often_as_it_says(n: int, draws: int) -> None:
    low, high = band(n, draws, 0.9)
    ranks = np.random.default_rng(2).integers(0, draws + 1, (4_000, n))
    counts = np.stack([(ranks <= value).sum(1) for value in range(draws + 1)], 1)
    inside = ((counts >= low) & (counts <= high)).all(1).mean()
    se = np.sqrt(0.9 * 0.1 / len(ranks))
    assert inside > 0.9 - 4 * se
    assert inside < 0.95  # counts are whole numbers, so that the band cannot be had at every level
    narrow = ((counts >= low + 1) & (counts <= high - 1)).all(1).mean()
    assert narrow < 0.9 - 4 * se


def test_scores_have_mean_zero_and_variance_one() -> None:
    found = scores(np.arange(200), 199)
    assert found.mean() == pytest.approx(0, abs=1e-12)
    assert (found**2).mean() == pytest.approx(1)
    assert np.all(np.diff(found) > 0)
