"""`gradient_report`: what it measures is known beforehand, and it leaves everything as it was."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from torch import Tensor

import ingle
from ingle import OptionError, ProgramError
from ingle.objectives import (
    IWAE_ELBO,
    RLOO_ELBO,
    STL_ELBO,
    Anneal,
    Trace_ELBO,
    TraceGraph_ELBO,
)

Y = torch.tensor(0.8)


def switch(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.3))
    pyro.sample("y", dist.Normal(k, 1.0), obs=y)


def switch_guide(y: Tensor) -> None:
    pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))


def mean(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def mean_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(0.1)), 0.5))


@pytest.mark.parametrize("compile", ["off", "full"])
def test_a_switch(compile: Any) -> None:
    """The gradient of one switch takes two values, so that its mean and variance are known."""
    report = ingle.gradient_report(
        switch, switch_guide, Y, TraceGraph_ELBO(), 400, compile=compile, dtype=torch.float64
    )
    p = 1 / (1 + math.exp(-0.4))
    cost = [math.log(1 - 0.3) - 0.5 * 0.8**2, math.log(0.3) - 0.5 * 0.2**2]
    cost = [
        cost[0] - math.log(1 - p) - 0.5 * math.log(2 * math.pi),
        cost[1] - math.log(p) - 0.5 * math.log(2 * math.pi),
    ]
    values = np.array([p * cost[0], -(1 - p) * cost[1]])  # of the loss: minus score times cost
    exact = float((1 - p) * values[0] + p * values[1])
    spread = float((1 - p) * values[0] ** 2 + p * values[1] ** 2 - exact**2)
    row, truth = report.rows
    assert truth.engine == "exact"
    assert truth.bound == pytest.approx((1 - p) * cost[0] + p * cost[1], rel=1e-7)
    assert truth.total.norm == pytest.approx(abs(exact), rel=1e-7)
    # The share of ones is within 4 standard errors but for one seed in 16,000, and all follows from it.
    share = (row.bound - cost[0]) / (cost[1] - cost[0])
    assert abs(share - p) < 4 * math.sqrt(p * (1 - p) / 400)
    found = (1 - share) * values[0] + share * values[1]
    assert row.total.norm == pytest.approx(abs(found), rel=1e-6)
    variance = share * (1 - share) * (values[1] - values[0]) ** 2 * 400 / 399
    assert row.total.variance == pytest.approx(variance, rel=1e-6)
    assert variance == pytest.approx(spread, rel=0.2)
    assert row.total.snr == pytest.approx(abs(found) / math.sqrt(variance), rel=1e-6)
    assert row.total.cost == pytest.approx(variance * row.seconds, rel=1e-6)
    assert row.total.z == pytest.approx(abs(found - exact) / math.sqrt(variance / 400), rel=1e-3)
    assert row.se == pytest.approx(abs(cost[1] - cost[0]) * math.sqrt(share * (1 - share) / 399), rel=1e-6)
    assert (row.engine, row.samples) == ("compiled" if compile == "full" else "eager", 400)


def test_several_objectives() -> None:
    chosen = [Trace_ELBO(4), RLOO_ELBO(4), pyro.infer.RenyiELBO(num_particles=4)]
    report = ingle.gradient_report(switch, switch_guide, Y, chosen, 60, compile="off")
    names = ["Trace_ELBO(4)", "RLOO_ELBO(4)", "RenyiELBO(4)", "exact"]
    assert [row.name for row in report.rows] == names
    assert report["RLOO_ELBO(4)"].total.variance < report["Trace_ELBO(4)"].total.variance
    assert math.isnan(report["RenyiELBO(4)"].total.z)  # of another bound
    assert report["RenyiELBO(4)"].bound > report["exact"].bound
    with pytest.raises(KeyError, match="'RLOO'; there are 'Trace_ELBO"):
        report["RLOO"]

    table = report.to_dataframe()
    assert list(table.index.names) == ["objective", "parameter"]
    assert table.loc[("RLOO_ELBO(4)", "logit"), "variance"] == report["RLOO_ELBO(4)"].parameters[0].variance
    assert set(table.index.get_level_values("parameter")) == {"logit", "all"}
    lines = repr(report).splitlines()
    assert lines[0] == "Gradients of switch and switch_guide: 60 samples each, float32 on cpu, seed 0"
    assert [line.split()[0] for line in lines[3:]] == names


def test_nothing_moves() -> None:
    net = torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.BatchNorm1d(2))
    before = {name: value.clone() for name, value in net.state_dict().items()}

    def guide(y: Tensor) -> None:
        pyro.module("net", net)
        loc = net(y.reshape(1, 1).expand(4, 1)).mean()
        pyro.sample("mu", dist.Normal(loc, 1.0))

    pyro.set_rng_seed(3)
    expected = torch.rand(1)
    pyro.set_rng_seed(3)
    ingle.gradient_report(mean, guide, Y, [Trace_ELBO(), Trace_ELBO(kl_scale=Anneal(3), num_particles=2)], 5)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert len(pyro.get_param_store()) == 0
    assert all(parameter.grad is None for parameter in net.parameters())


def test_at_the_parameters_of_a_fit() -> None:
    """Sticking the landing has no noise where the fit has arrived."""
    fit = ingle.fit(
        mean, "normal", Y, optim=lambda leaves: torch.optim.Adam(leaves, lr=0.05), steps=1_500, objective=STL_ELBO()
    )
    params, losses = fit.params, fit.losses.copy()
    report = fit.gradient_report([Trace_ELBO(), STL_ELBO()], 100)
    # Adam goes on with steps of its whole rate where all that is left of a gradient is rounding.
    assert report["STL_ELBO"].total.variance < 1e-3 * report["Trace_ELBO"].total.variance
    assert all(torch.equal(value, params[name]) for name, value in fit.params.items())
    assert repr(fit.gradient_report([STL_ELBO()], 20).rows[0].total.norm) == repr(
        fit.gradient_report([STL_ELBO()], 20).rows[0].total.norm
    )
    more = fit.resume(10)
    assert (more.losses[:1_500] == losses).all()


def test_minibatches_have_no_exact_row() -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)) as i:
            k = pyro.sample("k", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(k, 1.0), obs=y[i])

    def guide(y: Tensor) -> None:
        logits = pyro.param("logits", torch.zeros(len(y)))
        with pyro.plate("data", len(y)) as i:
            pyro.sample("k", dist.Bernoulli(logits=logits[i]))

    y = torch.linspace(-1.0, 2.0, 8)
    whole = ingle.gradient_report(model, guide, y, [RLOO_ELBO(2)], 10)
    assert [row.name for row in whole.rows] == ["RLOO_ELBO(2)", "exact"]
    drawn = ingle.gradient_report(model, guide, y, [RLOO_ELBO(2)], 10, batch_size={"data": 3})
    assert [row.name for row in drawn.rows] == ["RLOO_ELBO(2)"]


def test_a_table_that_is_too_large_names_its_size() -> None:
    """30 switches that one observation ties together have 2^30 states."""

    def model(y: Tensor) -> None:
        total: Any = 0.0
        for place in range(30):
            total = total + pyro.sample(f"k_{place}", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(total, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        for place in range(30):
            pyro.sample(f"k_{place}", dist.Bernoulli(logits=pyro.param(f"logit_{place}", torch.tensor(0.0))))

    with pytest.raises(ProgramError, match=r"summing out k_0, k_1, .* takes a table of at least [0-9,]+ combinations"):
        ingle.gradient_report(model, guide, Y, [RLOO_ELBO(2)], 10)
    with pytest.raises(ProgramError, match=r"table of at least 4,194,304 combinations \(22 latents\)"):
        ingle.fit(model, lambda y: None, Y, steps=5)
    assert ingle.fit(model, guide, Y, steps=2).objective == "RLOO_ELBO"


@pytest.mark.parametrize(
    ("objectives", "samples", "told"),
    [
        ([], 10, "objectives is empty"),
        ([Trace_ELBO(), Trace_ELBO()], 10, "two objectives would be called 'Trace_ELBO'"),
        ([Trace_ELBO()], 1, "num_samples must be 2 or more"),
        ([Trace_ELBO()], 0, "num_samples must be a positive integer"),
        ([Trace_ELBO], 10, "it is a class: did you mean an instance"),
        (["Trace_ELBO"], 10, "objective must be a pyro.infer.ELBO"),
    ],
)
def test_bad_input(objectives: Any, samples: int, told: str) -> None:
    with pytest.raises(OptionError, match=told):
        ingle.gradient_report(switch, switch_guide, Y, objectives, samples)


def test_an_objective_that_cannot_serve_says_so() -> None:
    with pytest.raises(ProgramError, match=r"IWAE_ELBO wants a pathwise gradient at every site .* site 'k'"):
        ingle.gradient_report(switch, switch_guide, Y, {"tight": IWAE_ELBO(5)}, 10)
