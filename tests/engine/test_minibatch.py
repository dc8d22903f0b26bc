"""Minibatches from outside: the same rows for both, unbiased, the N/B scale right."""

from __future__ import annotations

import itertools
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.data import read
from ingle.engine import EagerEngine, resolve_optimisers
from ingle.objectives import Trace_ELBO
from ingle.program import build_program, set_guide
from ingle.runtime import Runtime

Y = torch.linspace(-1.0, 2.0, 10, dtype=torch.float64)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 10) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.StudentT(4.0, z, 0.5), obs=y[i])


def guide(y: Tensor) -> None:
    """A point, so that the only noise is in the rows."""
    mu = pyro.sample("mu", dist.Delta(pyro.param("mu_loc", torch.tensor(0.3))))
    with pyro.plate("data", 10) as i:
        loc = pyro.param("z_loc", torch.linspace(0.0, 1.0, 10))
        pyro.sample("z", dist.Delta(loc[i] + 0.1 * mu))


def gradients(batch_size: dict[str, int], steps: int, seed: int = 0) -> list[tuple[int, float, Tensor]]:
    """Rows, loss and gradient of each of `steps` steps, all at the start's parameters."""
    runtime = Runtime(torch.float64, torch.device("cpu"), seed)
    with runtime.scope():
        data = read(Y)
        program = build_program(model, guide, data, batch_size=batch_size, runtime=runtime)
        set_guide(program)
        engine = EagerEngine(program, Trace_ELBO(), resolve_optimisers(None, guide_steps=1, steps=1), runtime)
        found = []
        for _ in range(steps):
            loss = float(engine.differentiate())
            leaves = program.leaves()
            gradient = torch.cat([leaves[name].grad.reshape(-1) for name in ("mu_loc", "z_loc")])  # type: ignore[union-attr]
            for leaf in leaves.values():
                leaf.grad = None
            rows = len(program.rows.rows["data"]) if batch_size else 10
            found.append((rows, loss, gradient))
        return found


@pytest.mark.parametrize("batch", [1, 3, 5, 10])
def test_epoch_adds_up_to_the_full_data(batch: int) -> None:
    """Weighted by its rows, an epoch's mean loss and gradient are the full ones exactly, ragged end included."""
    ((_, full_loss, full_gradient),) = gradients({}, 1)
    epoch = gradients({"data": batch}, math.ceil(10 / batch))
    assert sum(rows for rows, _, _ in epoch) == 10
    assert sum(rows / 10 * loss for rows, loss, _ in epoch) == pytest.approx(full_loss, rel=1e-12)
    mean = sum(rows / 10 * gradient for rows, _, gradient in epoch)
    torch.testing.assert_close(mean, full_gradient, rtol=1e-11, atol=1e-12)


def test_first_batch_of_many_seeds_is_unbiased() -> None:
    """The mean over 400 seeds, within 5 of its own standard errors: fails less than once in a million."""
    ((_, full_loss, _),) = gradients({}, 1)
    losses = torch.tensor([gradients({"data": 2}, 1, seed)[0][1] for seed in range(400)])
    assert abs(float(losses.mean()) - full_loss) < 5 * float(losses.std()) / 20


def test_model_and_guide_see_the_same_rows() -> None:
    seen: dict[str, list[list[int]]] = {"model": [], "guide": []}

    def watched_model(y: Tensor) -> None:
        with pyro.plate("data", 10) as i:
            seen["model"].append(i.tolist())
            pyro.sample("y", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 0.5), obs=y[i])

    def watched_guide(y: Tensor) -> None:
        with pyro.plate("data", 10) as i:
            seen["guide"].append(i.tolist())
            pyro.sample("z", dist.Normal(pyro.param("loc", torch.zeros(10))[i], 1.0))

    ingle.fit(watched_model, watched_guide, Y, batch_size={"data": 4}, steps=6)
    steps = seen["model"][-6:]
    assert steps == seen["guide"][-6:]
    assert [len(rows) for rows in steps] == [4, 4, 2, 4, 4, 2]
    assert sorted(itertools.chain(*steps[:3])) == sorted(itertools.chain(*steps[3:])) == list(range(10))


def test_models_that_subsample_by_themselves_still_work() -> None:
    def own(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 10, subsample_size=3) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    fit = ingle.fit(own, "normal", Y, steps=1_500)
    assert abs(float(fit.draws(2_000)["mu"].mean() - Y.mean())) < 0.3 * 10**-0.5


def test_two_plates_have_rows_of_their_own() -> None:
    def crossed(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", 6, dim=-2) as i, pyro.plate("column", 4, dim=-1) as j:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i][:, j])

    fit = ingle.fit(crossed, "normal", torch.zeros(6, 4), batch_size={"row": 2, "column": 3}, steps=10)
    assert fit.to_arviz(5).posterior_predictive["y"].sizes["row"] == 6
