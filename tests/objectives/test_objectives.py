"""Ingle's objectives are Pyro's estimators: equal losses and gradients for the same noise."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from objectives.programs import (
    CASES,
    NESTING,
    PAIRS,
    Program,
    Y,
    coin,
    differentiated,
    double,
    gradients,
    leaves,
    mixture,
    mixture_guide,
    pathwise,
    pathwise_guide,
    real,
    score,
    score_guide,
    share,
    without_formula,
)
from pyro import poutine
from torch import Tensor

import ingle
from ingle import ProgramError, objectives
from ingle.runtime import validation


@pytest.fixture(autouse=True)
def _double() -> Any:
    with double():
        yield


OPTIONS = [{}, {"num_particles": 3}, {"num_particles": 3, "vectorize_particles": True}]


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert set(ours) == set(theirs) != set()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], rtol=1e-12, atol=1e-12)
    assert any(bool(gradient.any()) for gradient in ours.values())


@pytest.mark.parametrize(("name", "case"), PAIRS, ids=[f"{name} {case}" for name, case in PAIRS])
@pytest.mark.parametrize("options", OPTIONS, ids=["1", "3", "3 vectorised"])
def test_equal_to_pyro(name: str, case: str, options: dict[str, Any]) -> None:
    if case == "baselines" and options.get("vectorize_particles"):
        options = {"num_particles": 1}  # Pyro wants a baseline with the particles in front
    model, guide = CASES[name][case]
    options = {**options, "max_plate_nesting": NESTING.get(case, 1)}
    loss, found = differentiated(getattr(objectives, name)(**options), model, guide)
    expected, expected_found = differentiated(getattr(pyro.infer, name)(**options), model, guide)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected, rel=1e-12)
    assert math.isfinite(loss)
    assert_same_gradients(found, expected_found)


@pytest.mark.parametrize("name", CASES)
def test_loss_and_its_gradient_in_every_way(name: str) -> None:
    """`loss`, `differentiable_loss` and `particles` tell what `loss_and_grads` tells."""
    model, guide = next(reversed(CASES[name].values()))
    elbo = getattr(objectives, name)(2, 1)
    expected, expected_gradients = differentiated(elbo, model, guide)

    pyro.set_rng_seed(1)
    with torch.no_grad():
        loss = elbo.loss(model, guide, Y)
    assert isinstance(loss, float)
    assert loss == pytest.approx(expected, rel=1e-12)

    for leaf in leaves().values():
        leaf.grad = None
    pyro.set_rng_seed(1)
    differentiable = elbo.differentiable_loss(model, guide, Y)
    differentiable.backward()
    assert float(differentiable.detach()) == pytest.approx(expected, rel=1e-12)
    assert_same_gradients(gradients(), expected_gradients)

    pyro.set_rng_seed(1)
    shares = list(elbo.particles(model, guide, Y))
    assert all(loss.dim() == surrogate.dim() == 0 and not loss.requires_grad for loss, surrogate in shares)
    assert float(sum(loss for loss, _ in shares)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_retain_graph(name: str) -> None:
    model, guide = next(iter(CASES[name].values()))
    kept: list[Tensor] = []

    def keeping(y: Tensor) -> None:
        kept.append(real("shared").exp())  # a tensor that two steps share
        with poutine.scale(scale=kept[0]):
            guide(y)

    elbo = getattr(objectives, name)(retain_graph=True, max_plate_nesting=1)
    for _ in range(2):
        elbo.loss_and_grads(model, keeping, Y)
    assert leaves()["shared"].grad is not None
    elbo.retain_graph = None
    elbo.loss_and_grads(model, keeping, Y)
    with pytest.raises(RuntimeError, match="second time"):
        elbo.loss_and_grads(model, keeping, Y)


@pytest.mark.parametrize("name", CASES)
def test_works_in_svi(name: str) -> None:
    model, guide = list(CASES[name].values())[-2]
    losses = []
    for home in (objectives, pyro.infer):
        pyro.clear_param_store()
        pyro.set_rng_seed(2)
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.05}), getattr(home, name)())
        losses.append([svi.evaluate_loss(Y), *(svi.step(Y) for _ in range(4)), svi.evaluate_loss(Y)])
    assert losses[0] == pytest.approx(losses[1], rel=1e-11)


def test_a_site_is_weighted_by_what_follows_from_it_alone() -> None:
    """Two halves that know nothing of each other: the noise of one is not in the gradient of the other."""

    def model(y: Tensor) -> None:
        for name, data in (("one", y), ("other", 3.0 * y)):
            k = pyro.sample(name, dist.Bernoulli(0.5))
            pyro.sample(f"y_{name}", dist.Normal(k, 1.0).expand([8]).to_event(1), obs=data)

    def guide(y: Tensor) -> None:
        for name in ("one", "other"):
            pyro.sample(name, dist.Bernoulli(share(f"p_{name}", start=0.5)))

    def spread(elbo: Any) -> float:
        found = [differentiated(elbo, model, guide, seed)[1]["p_one"] for seed in range(30)]
        return float(torch.stack(found).std())

    assert spread(objectives.TraceGraph_ELBO()) < 0.5 * spread(objectives.Trace_ELBO())


def test_mean_field_takes_the_formula_where_there_is_one() -> None:
    """The divergence of two normals has no noise, whatever the draw."""

    def model(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.0, 2.0))

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(real("loc"), 0.5))

    exact = math.log(2.0 / 0.5) + (0.5**2 + 0.1**2) / (2 * 2.0**2) - 0.5
    for seed in range(2):
        assert differentiated(objectives.TraceMeanField_ELBO(), model, guide, seed)[0] == pytest.approx(exact, 1e-12)


def test_mean_field_is_checked_under_validation_alone() -> None:
    elbo = objectives.TraceMeanField_ELBO()

    def crossed(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(real("z_loc", 8), 0.6))
        pyro.sample("w", dist.Normal(real("w_loc", 3), 1.0).to_event(1))
        pyro.sample("mu", dist.Normal(real("loc"), 1.0))

    def sampled(y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(share("p")))

    def switch(y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.warns(UserWarning, match="Failed to verify mean field"):
        elbo.loss_and_grads(without_formula, crossed, Y)
    with validation(False):
        elbo.loss_and_grads(without_formula, crossed, Y)
    for checked in (True, False):
        with validation(checked), pytest.raises(ProgramError, match=r"site 'k', a Bernoulli, has none: use RLOO_ELBO"):
            elbo.loss_and_grads(switch, sampled, Y)


def test_mean_field_counts_the_whole_divergence_of_a_transformed_draw() -> None:
    """AutoNormal puts the logarithm of a scale into an auxiliary site; Pyro forgets the density of the rest."""

    def model(y: Tensor) -> None:
        scale = pyro.sample("scale", dist.LogNormal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, scale), obs=y)

    found = []
    for home, name in (
        (objectives, "TraceMeanField_ELBO"),
        (objectives, "Trace_ELBO"),
        (pyro.infer, "TraceMeanField_ELBO"),
    ):
        pyro.clear_param_store()
        guide = pyro.infer.autoguide.AutoNormal(model)
        pyro.set_rng_seed(0)
        getattr(home, name)().loss_and_grads(model, guide, Y)
        found.append(next(value for name, value in gradients().items() if ".locs." in name))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-12)
    assert float((found[2] - found[1]).abs()) == pytest.approx(1.0, rel=1e-6)


def test_a_score_that_the_guide_adds_is_weighed_by_all() -> None:
    """A draw of the guide's own making, and its score as a factor: Pyro's TraceGraph leaves it out."""

    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 0.5), obs=y[0])

    def guide(y: Tensor) -> None:
        logit = real("logit")
        k = torch.bernoulli(torch.sigmoid(logit.detach()))
        pyro.sample("k", dist.Delta(k))
        pyro.factor("score", dist.Bernoulli(logits=logit).log_prob(k), has_rsample=False)

    for kind in (objectives.Trace_ELBO, objectives.TraceGraph_ELBO):
        loss, found = differentiated(kind(), model, guide)
        p = 1 / (1 + math.exp(-0.1))
        by_draw = []
        for k, q in ((0.0, 1 - p), (1.0, p)):
            cost = math.log(0.5) + float(dist.Normal(k, 0.5).log_prob(Y[0])) - math.log(q)
            by_draw.append((-cost, -(k - p) * cost))
        assert (loss, float(found["logit"])) in [pytest.approx(pair, rel=1e-6) for pair in by_draw]
    assert differentiated(pyro.infer.TraceGraph_ELBO(), model, guide)[1] == {}
    # Pyro's Trace_ELBO has the score, and leaves the entropy of sites that the guide alone has out of its cost.
    theirs = float(differentiated(pyro.infer.Trace_ELBO(), model, guide)[1]["logit"])
    assert abs(theirs - float(found["logit"])) > 0.1
    stands_in = objectives.exactly_ours(pyro.infer.Trace_ELBO())
    assert float(differentiated(stands_in, model, guide)[1]["logit"]) == pytest.approx(theirs, rel=1e-12)


def test_particles_that_mix_are_refused() -> None:
    """Pyro takes the average of such a log_prob for that of the particles."""

    def model(y: Tensor) -> None:
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Categorical(torch.tensor([0.4, 0.6])))
            pyro.sample("y", dist.Normal(locs[..., k], 0.7), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("components", 2):
            pyro.sample("locs", dist.Normal(real("loc", 2), 0.5))
        with pyro.plate("data", len(y)):
            pyro.sample("k", dist.Categorical(logits=real("logits", 8, 2)))

    for kind in (objectives.Trace_ELBO, objectives.TraceGraph_ELBO, objectives.RLOO_ELBO, objectives.VIMCO_ELBO):
        with pytest.raises(ProgramError, match=r"site 'y' of the model has a log_prob of shape \(3, 3, 8\)"):
            kind(num_particles=3, vectorize_particles=True, max_plate_nesting=1).loss(model, guide, Y)


def test_mean_field_names_a_site_at_fault() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    def wider(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(real("loc", 3, 2), 1.0).to_event(1))

    def narrower(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(real("loc", 2), 1.0).to_event(1))
        pyro.sample("aside", dist.Normal(0.0, 1.0))

    def widest(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(torch.zeros(3, 2), 1.0).to_event(1))

    elbo = objectives.TraceMeanField_ELBO()
    with validation(False):
        assert elbo.loss(model, wider, Y) > 0  # the guide's batch shape counts
        pyro.clear_param_store()
        with pytest.raises(ProgramError, match=r"site 'mu'.* shape \(3,\), .* batch shape \(\)"):
            elbo.loss(widest, lambda y: pyro.sample("mu", dist.Normal(real("loc", 2), 1.0).to_event(1)), Y)
        with pytest.raises(ProgramError, match="guide site 'aside' is not in the model"):
            elbo.loss(model, narrower, Y)


def test_sequential_enumeration_shares_what_came_before() -> None:
    """Pyro keeps each graph for the next run; the engines differentiate once a particle, and keep none."""

    def guide(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(real("loc"), 0.5))  # its graph belongs to both runs
        pyro.sample("k", dist.Bernoulli(logits=mu), infer={"enumerate": "sequential"})
        with pyro.plate("data", len(y)):
            pyro.sample("b", dist.Bernoulli(share("rates", 8)))

    pyro.set_rng_seed(1)
    shares = list(objectives.TraceEnum_ELBO(max_plate_nesting=1).particles(coin, guide, Y))
    assert len(shares) == 1
    fit = ingle.fit(coin, guide, Y, objective=pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), steps=3)
    assert fit.steps == 3


def scaled(scale: Callable[[], Any], other: Callable[[], Any]) -> Program:
    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with poutine.scale(scale=scale()):
            j = pyro.sample("j", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with poutine.scale(scale=other()):
            pyro.sample("y", dist.Normal(k * j + real("loc"), 1.0), obs=y[0])

    return poutine.scale(model, scale=torch.tensor(0.5))


@pytest.mark.parametrize("checked", [True, False])
def test_sites_summed_together_share_a_scale(checked: bool) -> None:
    """A scale of another number is refused; tensors are held against each other where that is asked for."""

    def guide(y: Tensor) -> None:
        pass

    def number(y: Tensor) -> None:
        k = pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})
        with poutine.scale(scale=torch.tensor(0.5)):
            pyro.sample("y", dist.Normal(k + real("loc"), 1.0), obs=y[0])

    elbo = objectives.TraceEnum_ELBO(max_plate_nesting=0)
    with validation(checked):
        with pytest.raises(ValueError, match=r"must share one poutine\.scale, and have 0.5, 1"):
            elbo.loss(number, guide, Y)
        same = scaled(lambda: torch.tensor(1.0), lambda: torch.tensor(1.0))
        assert elbo.loss(same, guide, Y) == pytest.approx(pyro.infer.TraceEnum_ELBO(1, 0).loss(same, guide, Y))
        other = scaled(lambda: torch.tensor(1.0), lambda: torch.tensor(2.0))
        if checked:
            with pytest.raises(ValueError, match=r"must share one poutine\.scale"):
                elbo.loss(other, guide, Y)


def test_enumeration_without_a_parameter_cannot_be_differentiated() -> None:
    def model(y: Tensor) -> None:
        pyro.sample("k", dist.Categorical(torch.ones(2)), infer={"enumerate": "parallel"})

    elbo = objectives.TraceEnum_ELBO(max_plate_nesting=0)
    with pytest.raises(ValueError, match="no parameter reaches"):
        elbo.differentiable_loss(model, lambda y: None, Y)


def test_enumeration_can_be_differentiated_twice() -> None:
    def curvature(home: Any) -> Tensor:
        pyro.clear_param_store()
        pyro.set_rng_seed(1)
        loss = home.TraceEnum_ELBO(max_plate_nesting=1).differentiable_loss(mixture, mixture_guide, Y)
        loc = leaves()["loc"]
        (slope,) = torch.autograd.grad(loss, loc, create_graph=True)
        return torch.autograd.grad(slope.sum(), loc)[0]

    torch.testing.assert_close(curvature(objectives), curvature(pyro.infer), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_nan_is_told_under_validation(name: str) -> None:
    def model(y: Tensor) -> None:
        pyro.factor("nothing", real("loc") * math.nan)

    elbo = getattr(objectives, name)(max_plate_nesting=0, strict_enumeration_warning=False)
    with validation(False):
        assert math.isnan(elbo.loss_and_grads(model, lambda y: None, Y))
        with pyro.settings.context(validate_infer=True):
            for way in (elbo.loss, elbo.loss_and_grads, elbo.differentiable_loss):
                with pytest.warns(UserWarning, match="Encountered NaN: loss"):
                    assert torch.as_tensor(way(model, lambda y: None, Y)).detach().isnan()


@pytest.mark.parametrize(
    ("objective", "pair"),
    [
        (pyro.infer.Trace_ELBO(num_particles=2), (pathwise, pathwise_guide)),
        (pyro.infer.TraceMeanField_ELBO(), (pathwise, pathwise_guide)),
        (pyro.infer.RenyiELBO(alpha=0.5, num_particles=2), (score, score_guide)),
        (pyro.infer.TraceGraph_ELBO(), (score, score_guide)),
        (pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), (mixture, mixture_guide)),
        (pyro.infer.ReweightedWakeSleep(num_particles=2), (score, score_guide)),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_pyro_objective_fits(objective: Any, pair: tuple[Program, Program]) -> None:
    fit = ingle.fit(*pair, Y, objective=objective, steps=5)
    assert fit.steps == 5
    assert fit.objective == type(objective).__name__


def test_pyro_s_objectives_become_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fit by Pyro's class runs the class of the same name here."""
    seen: list[type] = []
    for name in CASES:
        ours = getattr(objectives, name)
        particles = ours.particles
        spy = functools.partialmethod(_noting, seen, particles)
        monkeypatch.setattr(ours, "particles", spy)
        model, guide = next(iter(CASES[name].values()))
        nesting = {"max_plate_nesting": 1} if name == "TraceEnum_ELBO" else {}
        ingle.fit(model, guide, Y, objective=getattr(pyro.infer, name)(**nesting), steps=1)
        assert seen
        assert set(seen) == {ours}
        seen.clear()
        monkeypatch.undo()


def _noting(self: Any, seen: list[type], particles: Any, *args: Any, **kwargs: Any) -> Any:
    seen.append(type(self))
    return particles(self, *args, **kwargs)
