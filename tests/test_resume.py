"""Fit.resume: in two runs to the same bits as in one, from wherever the first one ended."""

from __future__ import annotations

import functools
import itertools
import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ingle
from ingle.engine.optimiser import DEFAULT_LR
from ingle.trust import Stopping, stop

Y = torch.linspace(-1.0, 2.0, 10)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def model(y: Tensor) -> None:
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 10) as i:
        pyro.sample("y", dist.Normal(mu, noise), obs=y[i])


def guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)))


def mixture(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 2.0))
    with pyro.plate("data", 10) as i:
        k = pyro.sample("k", dist.Bernoulli(p))
        pyro.sample("y", dist.Normal(2.0 * k - 1.0, 1.0), obs=y[i])


def switch(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.3))
    with pyro.plate("data", 10):
        pyro.sample("y", dist.Normal(k, 2.0), obs=y)


def switch_guide(y: Tensor) -> None:
    """The objective keeps a decaying average of its own in Pyro's store."""
    p = pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)
    pyro.sample("k", dist.Bernoulli(p), infer={"baseline": {"use_decaying_avg_baseline": True}})


def assert_same(one: ingle.Fit, other: ingle.Fit) -> None:
    assert np.array_equal(one.losses, other.losses)
    assert one.params.keys() == other.params.keys()
    assert all(torch.equal(value, other.params[name]) for name, value in one.params.items())


def scheduled(cls: Any, **options: Any) -> Any:
    return cls({"optimizer": torch.optim.SGD, "optim_args": {"lr": 0.01, "momentum": 0.5}, **options})


OPTIMISERS: dict[str, Callable[[], Any]] = {
    "Adam": lambda: ADAM,
    "SGD with momentum": lambda: functools.partial(torch.optim.SGD, lr=1e-3, momentum=0.9),
    "Pyro's ClippedAdam": lambda: pyro.optim.ClippedAdam({"lr": 0.05, "lrd": 0.99, "clip_norm": 1.0}),
    "by name, clipped": lambda: pyro.optim.Adam(
        lambda name: {"lr": 0.1 if name == "loc" else 0.01}, {"clip_norm": 5.0}
    ),
    "ExponentialLR": lambda: scheduled(pyro.optim.ExponentialLR, gamma=0.99),
    "MultiStepLR": lambda: scheduled(pyro.optim.MultiStepLR, milestones=[60, 150]),
    "LambdaLR": lambda: scheduled(pyro.optim.LambdaLR, lr_lambda=lambda step: 0.99**step),
    "model and guide": lambda: {"model": torch.optim.SGD, "guide": pyro.optim.Adam({"lr": 0.01})},
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_two_runs_are_one(name: str, tmp_path: Any) -> None:
    """In memory, and through a file, at a step that is no multiple of a call or of the guide's steps."""
    make = OPTIMISERS[name]
    options: dict[str, Any] = {"batch_size": {"data": 3}, "guide_steps": 3 if name == "model and guide" else 1}
    whole = ingle.fit(model, guide, Y, optim=make(), steps=200, **options)
    half = ingle.fit(model, guide, Y, optim=make(), steps=110, **options)
    half.save(tmp_path / "fit")
    more = half.resume(90)
    assert (more.steps, more.stopped, half.steps) == (200, "steps", 110)
    assert_same(more, whole)
    assert_same(ingle.fit(model, guide, Y, optim=make(), steps=200, checkpoint=tmp_path / "fit", **options), whole)


PROGRAMS: dict[str, tuple[Any, Any]] = {
    "TraceEnum_ELBO": (mixture, "normal"),
    "RLOO_ELBO": (switch, switch_guide),
}


@pytest.mark.parametrize("objective", PROGRAMS)
def test_other_objectives(objective: str, tmp_path: Any) -> None:
    program = PROGRAMS[objective]
    whole = ingle.fit(*program, Y, optim=ADAM, steps=70)
    half = ingle.fit(*program, Y, optim=ADAM, steps=30)
    half.save(tmp_path / "fit")
    assert half.objective == objective
    assert_same(half.resume(40), whole)
    assert_same(ingle.fit(*program, Y, optim=ADAM, steps=70, checkpoint=tmp_path / "fit"), whole)


def test_module_with_buffers_and_dropout() -> None:
    def build() -> Any:
        torch.manual_seed(0)
        parts = [torch.nn.Linear(1, 4), torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5), torch.nn.Linear(4, 2)]
        net = torch.nn.Sequential(*parts)

        def amortised(y: Tensor) -> None:
            pyro.module("net", net)
            loc, scale = net(y[:, None]).mean(0)
            pyro.sample("mu", dist.Normal(loc, scale.exp()))

        return amortised

    assert_same(
        ingle.fit(model, build(), Y, optim=ADAM, steps=70).resume(70),
        ingle.fit(model, build(), Y, optim=ADAM, steps=140),
    )


def test_noise_of_numpy_and_python(tmp_path: Any) -> None:
    def noisy(y: Tensor) -> None:
        model(y)
        pyro.factor("jitter", torch.tensor(random.gauss(0.0, 1.0) + np.random.standard_normal()))

    whole = ingle.fit(noisy, guide, Y, optim=ADAM, steps=80)
    half = ingle.fit(noisy, guide, Y, optim=ADAM, steps=33)  # one of a pair of normal numbers waits in each stream
    half.save(tmp_path / "fit")
    assert_same(half.resume(47), whole)
    assert_same(ingle.fit(noisy, guide, Y, optim=ADAM, steps=80, checkpoint=tmp_path / "fit"), whole)


def test_on_the_device_of_the_suite(where: dict[str, Any], tmp_path: Any) -> None:
    """Bits are promised on the CPU alone."""
    options: dict[str, Any] = {"optim": ADAM, "batch_size": {"data": 3}, **where}
    whole = ingle.fit(model, guide, Y, steps=120, **options)
    half = ingle.fit(model, guide, Y, steps=70, **options)
    half.save(tmp_path / "fit")
    through_a_file = ingle.fit(model, guide, Y, steps=120, checkpoint=tmp_path / "fit", **options)
    for fit in (half.resume(50), through_a_file):
        np.testing.assert_allclose(fit.losses, whole.losses, rtol=1e-4)
        assert {value.device for value in fit.params.values()} == {fit.device}


def test_many_small_runs_are_one() -> None:
    fit = ingle.fit(model, guide, Y, optim=ADAM, steps=1)
    for _ in range(7):
        fit = fit.resume(19)
    assert_same(fit, ingle.fit(model, guide, Y, optim=ADAM, steps=134))


def test_draws_in_between_change_nothing() -> None:
    half = ingle.fit(model, guide, Y, optim=ADAM, steps=60)
    half.draws(100), half.to_arviz(10), torch.rand(3)
    assert_same(half.resume(60), ingle.fit(model, guide, Y, optim=ADAM, steps=120))


def test_after_ctrl_c() -> None:
    calls = itertools.count()

    def broken(y: Tensor) -> None:
        if next(calls) == 130:
            raise KeyboardInterrupt
        model(y)

    fit = ingle.fit(broken, guide, Y, steps=200)
    assert fit.stopped == "interrupted"
    assert_same(fit.resume(200 - fit.steps), ingle.fit(model, guide, Y, steps=200))


def test_fit_of_an_error_goes_on() -> None:
    calls, working = itertools.count(), [False]

    def broken(y: Tensor) -> None:
        if next(calls) > 120 and not working[0]:
            raise RuntimeError("no luck")
        model(y)

    with pytest.raises(ingle.ProgramError, match="no luck") as caught:
        ingle.fit(broken, guide, Y, optim=ADAM, steps=200)
    fit = caught.value.fit
    assert fit is not None
    with pytest.raises(ingle.ProgramError, match="no luck") as caught:
        fit.resume(10)
    working[0] = True
    assert caught.value.fit is not None
    fit = caught.value.fit.resume(200 - caught.value.fit.steps)
    assert_same(fit, ingle.fit(model, guide, Y, optim=ADAM, steps=200))


@pytest.fixture
def easily_settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rule as it is, with less to ask for, so that few steps will do."""
    monkeypatch.setattr(Stopping, "EVERY", 50)
    for name, lax in (("_RHAT", 9.0), ("_ESS", 2.0), ("_MCSE", 1.0), ("_FINEST", 0.2)):
        monkeypatch.setattr(stop, name, lax)


@pytest.mark.usefixtures("easily_settled")
def test_to_the_rule_as_if_it_had_been_asked_for_at_first() -> None:
    """Where the learning rate is the user's, the rule looks at the same steps, wherever the first run ended."""
    whole = ingle.fit(model, guide, Y, optim=ADAM)
    assert whole.stopped == "settled"
    for first in (whole.steps // 2 + 5, 50):
        assert_same(ingle.fit(model, guide, Y, optim=ADAM, steps=first).resume(), whole)


@pytest.mark.usefixtures("easily_settled")
def test_state_of_the_rule_is_kept() -> None:
    """The default lowers its learning rate as it settles; Ctrl-C in the middle of that changes nothing."""
    whole = ingle.fit(model, guide, Y)
    calls = itertools.count()

    def broken(y: Tensor) -> None:
        if next(calls) == 210:
            raise KeyboardInterrupt
        model(y)

    fit = ingle.fit(broken, guide, Y)
    assert fit.stopped == "interrupted"
    assert rate(fit) < DEFAULT_LR
    assert fit.steps < whole.steps
    assert_same(fit.resume(), whole)


@pytest.mark.usefixtures("easily_settled")
def test_after_it_settled_the_rule_looks_again() -> None:
    fit = ingle.fit(model, guide, Y, optim=ADAM)
    more = fit.resume()
    assert more.stopped == "settled"
    assert more.steps >= fit.steps + Stopping.EVERY


def test_after_the_budget_there_is_another(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Stopping, "EVERY", 50)
    monkeypatch.setattr(Stopping, "MAX_STEPS", 150)
    fit = ingle.fit(model, guide, Y + 100)
    assert (fit.stopped, fit.steps) == ("budget", 150)
    more = fit.resume()
    assert (more.stopped, more.steps) == ("budget", 300)


def rate(fit: ingle.Fit) -> float:
    assert fit._training is not None
    (side,) = fit._training.state.optimisers["sides"].values()
    (rate,) = {group["lr"] for group in side["optimiser"]["param_groups"]}
    return float(rate)


def test_learning_rate_of_ingles_stays_at_its_end() -> None:
    """After the steps that were asked for it is a twentieth, and decays no more."""
    fit = ingle.fit(model, guide, Y, steps=60)
    for _ in range(2):
        assert rate(fit) == pytest.approx(DEFAULT_LR / 20, rel=1e-9)
        fit = fit.resume(40)


def test_learning_rate_of_ingles_that_was_broken_off_goes_down_to_its_end() -> None:
    calls = itertools.count()

    def broken(y: Tensor) -> None:
        if next(calls) == 70:
            raise KeyboardInterrupt
        model(y)

    fit = ingle.fit(broken, guide, Y, steps=100)
    assert (fit.stopped, fit.steps) == ("interrupted", 50)
    assert rate(fit) == pytest.approx(DEFAULT_LR * 20**-0.5, rel=1e-9)
    assert rate(fit.resume(120)) == pytest.approx(DEFAULT_LR / 20, rel=1e-9)


@pytest.mark.usefixtures("easily_settled")
def test_number_of_steps_then_the_rule_with_ingles_learning_rate() -> None:
    """After its steps the learning rate is a twentieth; the rule begins with the whole of it."""
    fit = ingle.fit(model, guide, Y, steps=100).resume()
    assert fit.stopped == "settled"
    assert DEFAULT_LR / 20 < rate(fit) < DEFAULT_LR


def test_laplace_is_taken_again() -> None:
    def normal(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([10]).to_event(1), obs=y)

    fit = ingle.fit(normal, "laplace", Y, steps=40, optim=ADAM)
    curvature = fit.guide
    more = fit.resume(400)
    whole = ingle.fit(normal, "laplace", Y, steps=440, optim=ADAM)
    assert_same(more, whole)
    assert type(more.guide).__name__ == "AutoMultivariateNormal"
    assert more.guide is not curvature
    assert torch.equal(more.draws(2_000)["mu"], whole.draws(2_000)["mu"])
    assert float(more.draws(2_000)["mu"].std()) == pytest.approx((len(Y) + 0.01) ** -0.5, rel=0.1)


def test_earlier_fit_sees_the_parameters_and_goes_on_from_the_newest() -> None:
    first = ingle.fit(model, guide, Y, optim=ADAM, steps=50)
    before = first.params["loc"]
    second = first.resume(50)
    with pytest.warns(ingle.IngleWarning, match="gone on with to 100 steps, and its parameters are those now"):
        now = first.params["loc"]
    assert not torch.equal(now, before)
    assert torch.equal(now, second.params["loc"])
    assert (first.steps, len(first.losses)) == (50, 50)
    assert first.resume(20).steps == 120


USES: dict[str, Callable[[ingle.Fit], Any]] = {
    "params": lambda fit: fit.params,
    "draws": lambda fit: fit.draws(3),
    "predict": lambda fit: fit.predict(n=3),
    "to_arviz": lambda fit: fit.to_arviz(3, groups=["posterior"]),
    "summary": lambda fit: fit.summary(4),
}


@pytest.mark.parametrize("use", USES)
def test_fit_that_was_gone_on_with_says_so(use: str, tmp_path: Any) -> None:
    """Once a call, at the user's line; the newest fit says nothing, and so do resume and save."""
    first = ingle.fit(model, guide, Y, optim=ADAM, steps=5)
    second = first.resume(5)
    with pytest.warns(ingle.IngleWarning, match="gone on with to 10 steps.*use the Fit that resume returned") as caught:
        USES[use](first)
    assert len([one for one in caught if issubclass(one.category, ingle.IngleWarning)]) == 1
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error", ingle.IngleWarning)
        USES[use](second)
        first.save(tmp_path / "fit")
        first.resume(2)


def test_module_that_another_fit_trained_goes_back() -> None:
    automatic = pyro.infer.autoguide.AutoNormal(model)
    first = ingle.fit(model, automatic, Y, optim=ADAM, steps=60)
    with pytest.warns(ingle.TrainedModuleWarning, match="trained on from there"):
        ingle.fit(model, automatic, Y + 5, optim=ADAM, steps=60)
    with pytest.warns(ingle.TrainedModuleWarning, match="put back to where this fit ended"):
        more = first.resume(60)
    assert_same(more, ingle.fit(model, pyro.infer.autoguide.AutoNormal(model), Y, optim=ADAM, steps=120))


@pytest.mark.parametrize("steps", [0, -1, 2.5, True, "10"])
def test_steps_must_be_a_positive_integer(steps: Any) -> None:
    fit = ingle.fit(model, guide, Y, steps=3)
    with pytest.raises(ingle.OptionError, match="steps must be a positive integer"):
        fit.resume(steps)


def test_loaded_fit_says_how_to_go_on(tmp_path: Any) -> None:
    ingle.fit(model, guide, Y, steps=3).save(tmp_path / "fit")
    with pytest.raises(ingle.OptionError, match=r"call ingle\.fit with them and with checkpoint="):
        ingle.load(tmp_path / "fit", model, guide, Y).resume(10)
