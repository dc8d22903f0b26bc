"""A compiled step is the eager one: losses, parameters and buffers, for the same noise."""

from __future__ import annotations

from collections.abc import Container, Iterable
from typing import Any

import numpy as np
import pytest
import torch
from engine.cells import CELLS, GUIDES, PROGRAMS, ROWS
from engine.engines import FIRST, Still, engine_of, gradients, numbers
from torch import Tensor

STEPS = 100
# In the default suite: a loop in C++, masks, calls of torch's between kernels, minibatches, an optimiser outside.
# Where the shipped models are fitted, Inductor compiles them as well.
INDUCTOR = ("eight schools, Trace", "obs_mask", "drawn Poisson", "batch_size", "RMSprop")


def among(names: Iterable[str], chosen: Container[str]) -> list[Any]:
    """The names as parameters, those that are not chosen in the long suite alone."""
    return [pytest.param(name, marks=() if name in chosen else pytest.mark.long) for name in names]


# The formulas of the other optimisers are held against torch's own in test_updates.py.
DRAWN = {"RLOO", "decaying averages, batch_size, ragged", "VIMCO, batch_size, ragged", "DReG, VAE, vectorised"}
TRACED = {
    *PROGRAMS,
    *GUIDES,
    *ROWS,
    *DRAWN,
    "annealed by plate, free bits",
    "two, guide_steps",
    "RMSprop",
    "StepLR",
    "clip norm",
}
IN_FLOAT32 = {name for place, name in enumerate(PROGRAMS) if place % 2 == 0}


def courses(engine: Any, steps: int) -> list[tuple[Tensor, dict[str, Tensor], dict[str, Tensor]]]:
    """Losses, numbers and gradients of as many steps, compiled and then eagerly from the same state."""
    engine.advance(max(FIRST, engine._first))
    state = engine.capture()
    found = []
    for each in (engine, engine.reference()):
        each.restore(state)
        calls = [part for part in (1, 30, steps - 31) if steps > 31] or [steps]
        losses = torch.cat([each.advance(part) for part in calls])
        found.append((losses, numbers(each), gradients(each)))
    assert engine.name == "compiled"
    assert engine._taken == steps, "some steps were not taken by a graph"
    return found


def assert_equal(engine: Any, steps: int = STEPS) -> None:
    """To 1e-9 relative: of a loss, and of the largest element of each parameter."""
    (losses, ours, _), (expected, theirs, _) = courses(engine, steps)
    np.testing.assert_allclose(losses.cpu(), expected.cpu(), rtol=1e-9, atol=0.0)
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        size = float(theirs[name].abs().max()) if value.is_floating_point() else 0.0
        torch.testing.assert_close(value, theirs[name], rtol=0.0, atol=1e-9 * size, msg=lambda m, n=name: f"{n}: {m}")
    assert len(set(losses.tolist())) > 1


@pytest.mark.parametrize("name", among(CELLS, TRACED))
def test_steps_in_float64(name: str, device: torch.device) -> None:
    """A hundred for each objective, model and distribution; a third of that for guides, rows and optimisers."""
    with engine_of(**CELLS[name](), device=device) as engine:
        assert_equal(engine, STEPS if name in PROGRAMS else 36)


@pytest.mark.parametrize("name", among(CELLS, INDUCTOR))
def test_steps_by_inductor(name: str, device: torch.device) -> None:
    with engine_of(**CELLS[name](), using="inductor", device=device) as engine:
        assert_equal(engine)


@pytest.mark.parametrize("name", among(PROGRAMS, IN_FLOAT32))
def test_one_gradient_in_float32(name: str, device: torch.device) -> None:
    """The optimiser moves nothing and is not one that a graph knows: gradients are handed to it."""
    cell = {**CELLS[name](), "optim": Still}
    with engine_of(**cell, dtype=torch.float32, device=device) as engine:
        (losses, _, ours), (expected, _, theirs) = courses(engine, 1)
    torch.testing.assert_close(losses, expected, rtol=1e-3, atol=0.0)
    assert ours.keys() == theirs.keys() != set()
    norm = sum(float(value.double().square().sum()) for value in theirs.values()) ** 0.5
    apart = sum(float((ours[name] - theirs[name]).double().square().sum()) for name in ours) ** 0.5
    assert apart < 1e-4 * norm
