"""Baselines of TraceGraph_ELBO: one average a site, outside the parameters, without the scale of minibatches."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from objectives.programs import Y, differentiated, double, leaves, real, score, share
from torch import Tensor

import ingle
from ingle import ProgramError, objectives


@pytest.fixture(autouse=True)
def _double() -> Any:
    with double():
        yield


def model(y: Tensor) -> None:
    with pyro.plate("data", 8) as i:
        b = pyro.sample("b", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(2.0 * b, 0.5), obs=y[i])


def guide(y: Tensor, baseline: Any = None) -> None:
    baseline = baseline or {"use_decaying_avg_baseline": True, "baseline_beta": 0.8}
    rates = share("rates", 8)
    with pyro.plate("data", 8) as i:
        pyro.sample("b", dist.Bernoulli(rates[i]), infer={"baseline": baseline})


def test_average_of_pyro_grows_with_the_store_and_ours_does_not() -> None:
    """After 20 steps Pyro's optimiser knows 21 tensors where there is one parameter."""
    known = []
    for home in (pyro.infer, objectives):
        pyro.clear_param_store()
        optim = pyro.optim.Adam({"lr": 0.01})
        svi = pyro.infer.SVI(model, guide, optim, home.TraceGraph_ELBO())
        for _ in range(20):
            svi.step(Y)
        known.append((len(optim.optim_objs), len(pyro.get_param_store())))
    assert known == [(21, 2), (1, 1)]


def test_average_of_pyro_fails_on_a_ragged_batch_and_ours_does_not() -> None:
    def rows(sizes: list[int]) -> Any:
        def plated(y: Tensor) -> None:
            with pyro.plate("data", 8, subsample=torch.arange(sizes[0])) as i:
                b = pyro.sample("b", dist.Bernoulli(0.3))
                pyro.sample("y", dist.Normal(2.0 * b, 0.5), obs=y[i])

        def drawn(y: Tensor) -> None:
            with pyro.plate("data", 8, subsample=torch.arange(sizes[0])) as i:
                infer = {"baseline": {"use_decaying_avg_baseline": True}}
                pyro.sample("b", dist.Bernoulli(share("rates", 8)[i]), infer=infer)

        return plated, drawn

    sizes = [3]
    elbo = pyro.infer.TraceGraph_ELBO()
    elbo.loss_and_grads(*rows(sizes), Y)
    sizes[0] = 2
    with pytest.raises((RuntimeError, ValueError)):
        elbo.loss_and_grads(*rows(sizes), Y)

    pyro.clear_param_store()
    fit = ingle.fit(model, guide, Y, objective=pyro.infer.TraceGraph_ELBO(), batch_size={"data": 3}, steps=9)
    assert fit.steps == 9


def test_average_is_one_number_free_of_rows_particles_and_scale() -> None:
    """With rates that stay, it goes to the mean cost of a datum, whatever share of the data a step sees."""
    found = []
    for batch in (8, 3):
        elbo = objectives.TraceGraph_ELBO(num_particles=5)

        def plated(y: Tensor, size: int = batch) -> None:
            with pyro.plate("data", 8, subsample_size=size) as i:
                b = pyro.sample("b", dist.Bernoulli(0.3))
                pyro.sample("y", dist.Normal(2.0 * b, 0.5), obs=y[i])

        def drawn(y: Tensor, size: int = batch) -> None:
            infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.985}}
            with pyro.plate("data", 8, subsample_size=size):
                pyro.sample("b", dist.Bernoulli(0.4), infer=infer)

        pyro.set_rng_seed(0)
        for _ in range(120):
            elbo.loss_and_grads(plated, drawn, Y)
        total, weight = elbo.memory.get_buffer("average cost of b").unbind()
        assert elbo.memory.get_buffer("average cost of b").shape == (2,)
        found.append(float(total / weight))

    rates = torch.stack([torch.tensor(0.6), torch.tensor(0.4)])
    prior = torch.tensor([0.7, 0.3])
    fits = torch.stack([dist.Normal(2.0 * k, 0.5).log_prob(Y) for k in (0.0, 1.0)], -1)
    costs = fits + prior.log() - rates.log()
    mean = float((rates * costs).sum(-1).mean())
    spread = float(((rates * costs.square()).sum(-1).mean() - mean**2) ** 0.5)
    # About 60 steps of 15 draws weigh in; five standard errors, rows counted as independent.
    assert found == pytest.approx([mean, mean], abs=5 * spread / (60 * 15) ** 0.5)


def test_targets_do_not_carry_the_scale() -> None:
    """A learnt value is asked for the cost of a datum; Pyro asks for N/B times that."""

    def targets(home: Any, batch: int) -> float:
        def drawn(y: Tensor) -> None:
            value = real("value", start=0.0).expand(batch)
            with pyro.plate("data", 8, subsample=torch.arange(batch)) as i:
                infer = {"baseline": {"baseline_value": value}}
                pyro.sample("b", dist.Bernoulli(torch.full((8,), 0.4)[i]), infer=infer)

        def plated(y: Tensor) -> None:
            with pyro.plate("data", 8, subsample=torch.arange(batch)) as i:
                b = pyro.sample("b", dist.Bernoulli(0.3))
                pyro.sample("y", dist.Normal(2.0 * b, 0.5), obs=y[i])

        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        home.TraceGraph_ELBO().loss_and_grads(plated, drawn, Y)
        gradient = leaves()["value"].grad
        assert gradient is not None
        return float(-gradient) / 2 / batch  # of the squared distance from 0: the mean target

    assert targets(objectives, 2) == pytest.approx(targets(pyro.infer, 2) / 4, rel=1e-12)
    assert targets(objectives, 8) == pytest.approx(targets(pyro.infer, 8), rel=1e-12)


def test_baseline_changes_the_noise_and_not_the_mean() -> None:
    def mean(baseline: Any) -> tuple[Tensor, Tensor]:
        elbo = objectives.TraceGraph_ELBO()
        found = torch.stack(
            [differentiated(elbo, model, lambda y: guide(y, baseline), seed)[1]["rates"] for seed in range(400)]
        )
        return found.mean(0), found.var(0)

    with_average, noise = mean({"use_decaying_avg_baseline": True})
    without, more_noise = mean({"baseline_value": torch.zeros(8)})
    # 16 numbers; 4.5 standard errors are exceeded by chance once in 9,000 runs.
    assert bool(((with_average - without).abs() < 4.5 * ((noise + more_noise) / 400).sqrt()).all())
    assert float(noise.sum()) < 0.7 * float(more_noise.sum())


def test_evaluating_moves_no_average() -> None:
    elbo = objectives.TraceGraph_ELBO()
    elbo.loss_and_grads(model, guide, Y)
    before = elbo.memory.get_buffer("average cost of b").clone()
    elbo.loss(model, guide, Y)
    assert torch.equal(elbo.memory.get_buffer("average cost of b"), before)
    elbo.loss_and_grads(model, guide, Y)
    assert not torch.equal(elbo.memory.get_buffer("average cost of b"), before)


def test_average_goes_on_with_the_fit(tmp_path: Any) -> None:
    def fit(steps: int, **options: Any) -> ingle.Fit:
        adam = pyro.optim.Adam({"lr": 0.05})
        options = {"batch_size": {"data": 3}, "optim": adam, "objective": pyro.infer.TraceGraph_ELBO(), **options}
        return ingle.fit(model, guide, Y, steps=steps, **options)

    whole = fit(30)
    assert (fit(12).resume(18).losses == whole.losses).all()
    fit(12, checkpoint=tmp_path / "fit")
    assert (fit(30, checkpoint=tmp_path / "fit").losses == whole.losses).all()
    assert ingle.load(tmp_path / "fit", model, guide, Y).steps == 30


def test_in_the_place_of_pyro_s_a_baseline_of_its_own_is_not_traced() -> None:
    """`ingle.SVI` follows Pyro's class step by step; ours is taken as it is."""
    adam = pyro.optim.Adam({"lr": 0.01})
    svi = ingle.SVI(model, guide, adam, pyro.infer.TraceGraph_ELBO(), compile="full")
    svi.step(Y), svi.step(Y)
    with pytest.raises(ProgramError, match="the baseline of 'b' is kept by Pyro"):
        svi.step(Y)
    pyro.clear_param_store()
    svi = ingle.SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), objectives.TraceGraph_ELBO())
    assert isinstance(svi.step(Y), float)


@pytest.mark.parametrize(
    ("baseline", "told"),
    [
        ({"use_decaying_average": True}, "site 'b': unknown baseline option 'use_decaying_average'; there are nn_base"),
        ({"baseline_value": torch.zeros(3)}, r"the baseline of site 'b' has shape \(3,\), and the site \(8,\)"),
        ({"baseline_value": 0.5}, r"the baseline of site 'b' has shape \(\)"),
        ({"baseline_value": torch.zeros(8), "nn_baseline": torch.nn.Identity()}, "has a baseline_value and an nn_base"),
    ],
)
def test_baselines_that_cannot_be(baseline: Any, told: str) -> None:
    with pytest.raises(ProgramError, match=told):
        objectives.TraceGraph_ELBO().loss_and_grads(model, lambda y: guide(y, baseline), Y)


def test_fit_refuses_before_a_step() -> None:
    with pytest.raises(ProgramError, match="unknown baseline option 'beta'") as caught:
        ingle.fit(model, lambda y: guide(y, {"beta": 0.5}), Y, objective=pyro.infer.TraceGraph_ELBO(), steps=5)
    assert caught.value.fit is None
    assert ingle.fit(score, lambda y: _switches(y), Y, steps=2).objective == "RLOO_ELBO"


def _switches(y: Tensor) -> None:
    pyro.sample("k", dist.Bernoulli(share("p")))
    pyro.sample("mu", dist.Normal(real("loc"), 0.7))
    with pyro.plate("data", len(y)):
        pyro.sample("b", dist.Bernoulli(share("rates", 8)))
