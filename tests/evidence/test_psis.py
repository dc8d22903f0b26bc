"""Pareto smoothing against ArviZ, whose sign is a trap, and k-hat where the tail is known."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest
import torch
from support import arviz_line, az
from torch import Tensor

from ingle.evidence.psis import draws_for, khat_of, khat_threshold, psis, tail_length


def arviz_psis(log_weights: np.ndarray) -> tuple[np.ndarray, float]:
    """Of ArviZ, 1.x of which takes the negative."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if arviz_line() == 0:
            return az.psislw(log_weights.copy())
        from arviz_stats.base import array_stats

        smooth, khat = array_stats.psislw(-log_weights)
        return smooth, float(khat)


def cases(generator: np.random.Generator, size: int) -> np.ndarray:
    """A row of log weights of each kind: light, heavy, hopeless, bounded, rounded to ties, far from zero."""
    scale = generator.uniform(0.1, 8)
    kind = generator.integers(6)
    if kind == 0:
        return scale * generator.standard_normal(size)
    if kind == 1:
        return generator.standard_t(2, size) ** 2 / 4
    if kind == 2:
        return -scale * np.log(generator.uniform(size=size))  # Pareto of shape `scale`
    if kind == 3:
        return np.log(generator.uniform(0.5, 1, size))
    if kind == 4:
        return np.round(scale * generator.standard_normal(size), 1)
    return 3_000 - scale * generator.standard_exponential(size)


@pytest.mark.skipif(arviz_line() == 1, reason="ArviZ 1.x begins the tail elsewhere; 0.23 does as the paper")
def test_equals_arviz_on_a_thousand_cases() -> None:
    generator = np.random.default_rng(0)
    for size in (40, 100, 1_000, 4_000):
        rows = np.stack([cases(generator, size) for _ in range(250)])
        smooth, khat = psis(torch.from_numpy(rows.T))
        for place, row in enumerate(rows):
            expected, k = arviz_psis(row)
            assert khat[place].item() == pytest.approx(k, abs=1e-6), (size, place)
            ours = smooth[:, place].numpy()
            if len(set(row)) < size:  # equal weights share the places that they take, in either order
                ours, expected = np.sort(ours), np.sort(expected)
            np.testing.assert_allclose(ours, expected, rtol=1e-6, atol=1e-6)


def test_near_arviz_in_every_version() -> None:
    row = 2 * np.random.default_rng(0).standard_normal(4_000)
    assert float(psis(torch.from_numpy(row))[1]) == pytest.approx(arviz_psis(row)[1], abs=0.05)


def test_sign_and_size_of_khat() -> None:
    """Student t with two degrees of freedom and a normal proposal: near 0.7, and far below zero with the wrong sign."""
    torch.manual_seed(0)
    z = torch.randn(100_000, dtype=torch.float64)
    log_weights = torch.distributions.StudentT(2.0).log_prob(z) - torch.distributions.Normal(0.0, 1.0).log_prob(z)
    assert 0.6 < float(psis(log_weights)[1]) < 1.0
    assert float(psis(-log_weights)[1]) < 0


@pytest.mark.parametrize("k", [0.2, 0.5, 0.9])
def test_recovers_the_shape_of_a_pareto_tail(k: float) -> None:
    """Within four standard errors of 200 repetitions, the weak prior of ten draws at one half counted."""
    torch.manual_seed(1)
    size, times = 4_000, 200
    log_weights = -k * torch.rand(size, times, dtype=torch.float64).log()
    found = psis(log_weights)[1]
    tail = tail_length(size)
    expected = (tail * k + 5) / (tail + 10)
    # The tail of a Pareto distribution above any cutoff is one again; the estimator's own bias is of order 1 / M.
    assert abs(float(found.mean()) - expected) < 4 * float(found.std()) / math.sqrt(times) + 2 / tail


def test_of_the_largest_alone() -> None:
    torch.manual_seed(2)
    log_weights: Tensor = 2 * torch.randn(3_000, 7, dtype=torch.float64)
    largest = log_weights.topk(tail_length(3_000) + 1, dim=0).values
    shuffled = largest[torch.randperm(len(largest))]
    torch.testing.assert_close(khat_of(shuffled), psis(log_weights)[1], rtol=0, atol=1e-12)


def test_smoothed_weights_are_normalised_and_none_above_the_largest() -> None:
    log_weights = torch.tensor(np.random.default_rng(3).standard_t(1, (500, 2, 3)))
    smooth, khat = psis(log_weights)
    assert smooth.shape == (500, 2, 3)
    assert khat.shape == (2, 3)
    torch.testing.assert_close(smooth.logsumexp(0), torch.zeros(2, 3, dtype=torch.float64))
    torch.testing.assert_close(smooth.argsort(0)[:300], log_weights.argsort(0)[:300])


def test_thresholds() -> None:
    assert khat_threshold(1_000) == pytest.approx(2 / 3)
    assert khat_threshold(10**6) == 0.7
    assert draws_for(0.5) == pytest.approx(100)
    assert draws_for(0.7) == pytest.approx(10 ** (1 / 0.3))
    assert draws_for(-1) == pytest.approx(10)
    assert draws_for(1.2) == math.inf
    assert math.isnan(draws_for(math.nan))
