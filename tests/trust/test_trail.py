"""Points along the steps of a fit: which are kept, and what their averages are."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ingle.trust.trail import Trail


def follow(trail: Trail, steps: int, sizes: tuple[int, ...], begin: int = 0) -> None:
    """After step s every parameter is s."""
    leaves = {str(place): torch.zeros(size) for place, size in enumerate(sizes)}
    for step in range(begin + 1, begin + steps + 1):
        for leaf in leaves.values():
            leaf.fill_(float(step))
        trail.note(step, leaves)


def test_points_are_every_ten_steps_then_fewer() -> None:
    trail = Trail()
    follow(trail, 500, (2, 1))
    assert trail.points().tolist() == [[float(step)] * 3 for step in range(10, 501, 10)]
    follow(trail, 4_500, (2, 1), begin=500)
    points = trail.points()[:, 0]
    assert trail.every == 40
    assert points.tolist() == [float(step) for step in range(40, 5_001, 40)]


def test_next_point() -> None:
    trail = Trail(5)
    assert [trail.until(step) for step in (5, 6, 14, 15)] == [10, 9, 1, 10]


def test_averages_are_those_of_the_points() -> None:
    trail = Trail()
    follow(trail, 400, (2, 1))
    leaves = {"0": torch.zeros(2), "1": torch.zeros(1)}
    (whole,) = trail.averages(20, 1, leaves)
    assert whole["0"].tolist() == [np.mean(range(210, 401, 10))] * 2
    halves = trail.averages(20, 2, leaves)
    assert [float(half["1"]) for half in halves] == [np.mean(range(210, 301, 10)), np.mean(range(310, 401, 10))]


@pytest.mark.parametrize("steps", [600, 5_000])
def test_averages_of_many_parameters_are_those_of_blocks(steps: int) -> None:
    """Above 2,000 parameters a window is rounded to whole blocks, of an eighth of the steps at most."""
    trail = Trail()
    follow(trail, steps, (1_500, 1_500))
    leaves = {"0": torch.zeros(1_500), "1": torch.zeros(1_500)}
    assert trail.points().shape[1] == 64
    last = len(trail.points()) // 2
    (whole,) = trail.averages(last, 1, leaves)
    assert float(whole["1"][7]) == pytest.approx(0.75 * steps, rel=0.08)
    assert float(whole["0"].max() - whole["0"].min()) == 0.0
    halves = trail.averages(last, 2, leaves)
    early, late = (float(half["0"][0]) for half in halves)
    assert 0.5 * steps - steps / 8 < early < late - steps / 16


def test_points_of_many_parameters_tell_a_moving_one() -> None:
    trail, leaf = Trail(), torch.zeros(3_000)
    for step in range(1, 201):
        leaf[1_234] = float(step)
        trail.note(step, {"leaf": leaf})
    moving = trail.points().std(0) > 0
    assert moving.sum() == 1


@pytest.mark.parametrize("call", [1, 7, 50, 499, 5_000])
def test_rows_of_many_steps_are_the_same_points(call: int) -> None:
    one, other, leaves = Trail(3), Trail(3), {"0": torch.zeros(2), "1": torch.zeros(1)}
    follow(one, 5_000, (2, 1))
    steps = torch.arange(1.0, 5_001.0)[:, None].expand(-1, 3)
    for begin in range(0, 5_000, call):
        other.extend(begin, steps[begin : begin + call], leaves)
    assert other.every == one.every
    np.testing.assert_array_equal(other.points(), one.points())


def test_state_is_whole() -> None:
    trail, other = Trail(3), Trail()
    follow(trail, 300, (3_000,))
    state = trail.capture()
    follow(trail, 300, (3_000,), begin=300)
    other.restore(state, torch.device("cpu"))
    follow(other, 300, (3_000,), begin=300)
    np.testing.assert_array_equal(trail.points(), other.points())
    leaves = {"0": torch.zeros(3_000)}
    torch.testing.assert_close(trail.averages(9, 1, leaves), other.averages(9, 1, leaves), rtol=0, atol=0)


def test_parameter_that_comes_late_begins_anew() -> None:
    trail = Trail()
    trail.note(10, {"a": torch.zeros(1)})
    trail.note(20, {"a": torch.zeros(1), "b": torch.ones(2)})
    assert trail.points().tolist() == [[0.0, 1.0, 1.0]]


def test_nothing_to_follow() -> None:
    trail = Trail()
    trail.note(10, {})
    assert trail.points().shape == (0, 0)
