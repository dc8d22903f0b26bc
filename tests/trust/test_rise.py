"""Losses that rise above what they were."""

from __future__ import annotations

import numpy as np
from trust.families import make

import ingle
from ingle.trust.rise import Rise


def looks(losses: np.ndarray) -> list[int]:
    """The steps at which a rise is seen."""
    rule = Rise()
    return [step for step in range(200, len(losses) + 1, 200) if rule.risen(losses[:step])]


def test_falling_and_level_losses_have_not_risen() -> None:
    """Of 200 fits of 100 looks at noise, about one has a look six standard errors above the lowest; four are rare."""
    rng = np.random.default_rng(0)
    assert looks(np.linspace(100.0, 0.0, 4_000) + rng.standard_normal(4_000)) == []
    noise = 3.0 * rng.standard_t(3, size=(200, 20_000))
    assert sum(bool(looks(each)) for each in noise) < 4


def test_a_rise_is_seen_beside_losses_that_run_away() -> None:
    """The second thousand lies 2 nats higher, and one in twenty of its losses is of any size."""
    rng = np.random.default_rng(1)
    losses = rng.standard_normal(2_000)
    losses[1_000:] += 2.0
    losses[1_000::20] = 10.0 ** rng.uniform(1, 20, 50)
    assert looks(losses)[0] == 1_200


def test_a_rise_counts_once_until_losses_had_time_to_fall() -> None:
    losses = np.random.default_rng(2).standard_normal(3_000)
    losses[1_000:1_600] += 5.0
    losses[1_600:] += np.linspace(5.0, 0.0, 1_400)
    assert looks(losses) == [1_200, 1_600]
    assert looks(np.concatenate([losses[:1_000], losses[:1_000] + 1e6]))[0] == 1_200


def test_the_state_goes_on() -> None:
    losses = np.random.default_rng(3).standard_normal(2_000) + np.repeat([0.0, 4.0], 1_000)
    whole, first, second = Rise(), Rise(), Rise()
    told = [whole.risen(losses[:step]) for step in range(200, 2_001, 200)]
    parts = [first.risen(losses[:step]) for step in range(200, 1_001, 200)]
    second.restore(first.capture())
    assert parts + [second.risen(losses[:step]) for step in range(1_200, 2_001, 200)] == told
    assert any(told)


def test_correlated_hierarchy_does_not_run_away() -> None:
    """At the first learning rate a dense guide of 22 numbers diverges: its ELBO went beyond float32."""
    case = make("hierarchical non-centred", 0)
    fit = ingle.fit(case.model, "multivariate_normal", case.data, compile="full", progress=False)
    assert fit.stopped in ("settled", "budget")
    assert fit.log_evidence(4_000).elbo > -75.5
