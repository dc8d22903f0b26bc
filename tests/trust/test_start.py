"""A guide by name starts at the best of several prior draws."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import ingle
from ingle.data import read
from ingle.objectives import Trace_ELBO
from ingle.program import build_program, set_guide
from ingle.runtime import Runtime
from ingle.trust import best_start
from ingle.trust.start import _loss

Y = torch.full((20,), 14.0)


def two_modes(y: Tensor) -> None:
    """The median of the prior is far from the data; some of 20 draws are near."""
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu.abs(), 1.0), obs=y)


def test_start_is_better_than_the_median() -> None:
    for seed in range(5):
        runtime = Runtime(torch.float32, torch.device("cpu"), seed)
        with runtime.scope():
            program = build_program(two_modes, "normal", read(Y), batch_size={}, runtime=runtime)
            median = _loss(program, Trace_ELBO(), runtime, None)
            best_start(program, Trace_ELBO(), runtime)
            loc = program.leaves()["AutoNormal.locs.mu"].detach()
            assert _loss(program, Trace_ELBO(), runtime, {"mu": loc}) < median - 100
            assert abs(abs(float(loc)) - 14.0) < 7.0


def test_only_the_guide_that_is_trained_leaves_parameters() -> None:
    runtime = Runtime(torch.float32, torch.device("cpu"), 0)
    with runtime.scope():
        program = build_program(two_modes, "normal", read(Y), batch_size={}, runtime=runtime)
        assert len(pyro.get_param_store()) == 0
        best_start(program, Trace_ELBO(), runtime)
        assert set(pyro.get_param_store()) == {"AutoNormal.locs.mu", "AutoNormal.scales.mu"}
        assert float(pyro.get_param_store()["AutoNormal.scales.mu"].detach()) == pytest.approx(0.1)


def test_draws_that_the_program_refuses_are_passed_over() -> None:
    def picky(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        if mu.detach() > 3.0:
            raise ValueError("too large for me")
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = ingle.fit(picky, "normal", Y - 17, steps=5)
    assert fit.steps == 5


def test_objective_without_a_plain_loss_takes_guides_by_name() -> None:
    """Reweighted wake-sleep gives a pair of losses; the starts are compared by the ELBO."""
    objective = pyro.infer.ReweightedWakeSleep(num_particles=2)
    assert ingle.fit(two_modes, "normal", Y, objective=objective, steps=3).steps == 3


def test_start_is_used_by_the_guide() -> None:
    runtime = Runtime(torch.float32, torch.device("cpu"), 0)
    with runtime.scope():
        program = build_program(two_modes, "multivariate_normal", read(Y), batch_size={}, runtime=runtime)
        set_guide(program, {"mu": torch.tensor(3.5)})
        assert float(program.leaves()["AutoMultivariateNormal.loc"].detach()) == 3.5
