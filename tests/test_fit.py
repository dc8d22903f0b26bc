"""fit and Fit: known answers, the same seed, isolation, Ctrl-C, the ways that data and guides are given."""

from __future__ import annotations

import functools
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from support import global_state
from torch import Tensor

import ingle

Y = torch.tensor([0.3, 1.9, 1.1, 2.4, 0.8, 1.6, 1.2, 2.2, 0.1, 1.5], dtype=torch.float64)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def normal_mean(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])


def normal_mean_guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    scale = pyro.param("scale", torch.tensor(0.1), constraint=constraints.positive)
    pyro.sample("mu", dist.Normal(loc, scale))


def assert_like(draws: Tensor, mean: float, sd: float) -> None:
    """The design's measure, a third of it: means within 0.1 sd, sds within 10%."""
    assert abs(float(draws.mean()) - mean) < 0.1 * sd
    assert abs(float(draws.std()) / sd - 1) < 0.1


def test_default_stops_by_itself_at_conjugate_normal(where: dict[str, Any]) -> None:
    fit = ingle.fit(normal_mean, "normal", Y, **where)
    precision = len(Y) + 1 / 100
    assert fit.stopped == "settled"
    assert_like(fit.draws(20_000)["mu"], float(Y.sum()) / precision, precision**-0.5)


@pytest.mark.parametrize(
    "guide",
    ["normal", "multivariate_normal", pytest.param("low_rank", marks=pytest.mark.long), "laplace", normal_mean_guide],
)
def test_conjugate_normal(guide: Any, where: dict[str, Any]) -> None:
    fit = ingle.fit(normal_mean, guide, Y, steps=1_500, **where)
    precision = len(Y) + 1 / 100
    assert_like(fit.draws(20_000)["mu"], float(Y.sum()) / precision, precision**-0.5)


def beta_binomial(heads: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(2.0, 3.0))
    with pyro.plate("toss", len(heads)):
        pyro.sample("heads", dist.Bernoulli(p), obs=heads)


HEADS = torch.tensor([1.0] * 14 + [0.0] * 6)


@pytest.mark.parametrize("steps", [2_000, pytest.param(None, marks=pytest.mark.long)])
def test_beta_binomial(steps: int | None, where: dict[str, Any]) -> None:
    def guide(heads: Tensor) -> None:
        a = pyro.param("a", torch.tensor(2.0), constraint=constraints.positive)
        b = pyro.param("b", torch.tensor(2.0), constraint=constraints.positive)
        pyro.sample("p", dist.Beta(a, b))

    exact = torch.distributions.Beta(16.0, 9.0)
    objective = pyro.infer.Trace_ELBO(num_particles=30, vectorize_particles=True)
    fit = ingle.fit(beta_binomial, guide, {"heads": HEADS}, objective=objective, steps=steps, **where)
    assert_like(fit.draws(20_000)["p"], float(exact.mean), float(exact.stddev))


def test_exact_guide_gives_the_evidence_at_every_draw(device: torch.device) -> None:
    def guide(heads: Tensor) -> None:
        pyro.sample("p", dist.Beta(2.0 + heads.sum(), 3.0 + (1 - heads).sum()))

    def log_beta(a: float, b: float) -> float:
        return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)

    fit = ingle.fit(beta_binomial, guide, HEADS, steps=20, device=device, dtype=torch.float64)
    np.testing.assert_allclose(-fit.losses, log_beta(16, 9) - log_beta(2, 3), rtol=1e-9)


def test_correlated_regression(where: dict[str, Any]) -> None:
    generator = torch.Generator().manual_seed(1)
    x = torch.stack([torch.ones(50), torch.linspace(0, 2, 50)], -1).double()
    y = x @ torch.tensor([1.0, -0.5]).double() + 0.5 * torch.randn(50, generator=generator).double()

    def model(x: Tensor, y: Tensor) -> None:
        w = pyro.sample("w", dist.Normal(torch.zeros(2), 3.0).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("y", dist.Normal(x @ w, 0.5), obs=y)

    covariance = torch.linalg.inv(x.T @ x / 0.25 + torch.eye(2).double() / 9)
    mean = covariance @ x.T @ y / 0.25
    fit = ingle.fit(model, "multivariate_normal", {"x": x, "y": y}, steps=2_500, **where)
    w = fit.draws(20_000)["w"].cpu()
    for column in range(2):
        assert_like(w[:, column], float(mean[column]), float(covariance[column, column]) ** 0.5)
    correlation = float(covariance[0, 1] / (covariance[0, 0] * covariance[1, 1]).sqrt())
    assert float(torch.corrcoef(w.T)[0, 1]) == pytest.approx(correlation, abs=0.05)


def test_laplace_is_the_curvature_at_the_mode(device: torch.device) -> None:
    """For a Gaussian posterior the approximation is exact, up to how near the optimiser came to the mode."""
    fit = ingle.fit(normal_mean, "laplace", Y, steps=200, device=device, dtype=torch.float64)
    precision = len(Y) + 1 / 100
    with fit.active():
        assert float(fit.guide.get_posterior().stddev) == pytest.approx(precision**-0.5, rel=1e-9)


def test_laplace_as_an_instance_is_finished_too() -> None:
    guide = autoguide.AutoLaplaceApproximation(normal_mean)
    fit = ingle.fit(normal_mean, guide, Y, steps=300, optim=functools.partial(torch.optim.Adam, lr=0.05))
    assert float(fit.draws(2_000)["mu"].std()) == pytest.approx((len(Y) + 0.01) ** -0.5, rel=0.1)


def test_laplace_without_curvature_says_so() -> None:
    """The mode of this density is at infinity: the second derivative has the wrong sign everywhere."""

    def bowl(y: Tensor) -> None:
        x = pyro.sample("x", dist.Normal(0.0, 1.0))
        pyro.factor("bowl", x**2)

    with pytest.warns(ingle.IngleWarning, match="not positive definite"):
        fit = ingle.fit(bowl, "laplace", Y, steps=3)
    assert "no Laplace approximation" in repr(fit)


def test_same_seed_same_losses(where: dict[str, Any]) -> None:
    runs = [ingle.fit(normal_mean, "normal", Y, steps=60, seed=seed, **where) for seed in (3, 3, 4)]
    assert np.array_equal(runs[0].losses, runs[1].losses)
    assert not np.array_equal(runs[0].losses, runs[2].losses)
    for name, value in runs[0].params.items():
        assert torch.equal(value, runs[1].params[name])


def test_same_seed_same_losses_with_minibatches(where: dict[str, Any]) -> None:
    runs = [ingle.fit(normal_mean, "normal", Y, steps=60, batch_size={"data": 3}, **where) for _ in range(2)]
    assert np.array_equal(runs[0].losses, runs[1].losses)


def test_seed_does_not_depend_on_the_random_state_outside() -> None:
    first = ingle.fit(normal_mean, "normal", Y, steps=20)
    pyro.set_rng_seed(99)
    assert np.array_equal(first.losses, ingle.fit(normal_mean, "normal", Y, steps=20).losses)


def test_losses_are_those_of_pyro() -> None:
    fit = ingle.fit(normal_mean, normal_mean_guide, Y, steps=50, optim=ADAM, dtype=torch.float64, seed=5)
    torch.set_default_dtype(torch.float64)
    try:
        pyro.clear_param_store()
        pyro.set_rng_seed(5)
        svi = pyro.infer.SVI(normal_mean, normal_mean_guide, pyro.optim.Adam({"lr": 0.01}), pyro.infer.Trace_ELBO())
        losses = [svi.step(Y) for _ in range(50)]
        parameters = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    finally:
        torch.set_default_dtype(torch.float32)
        pyro.clear_param_store()
    np.testing.assert_allclose(fit.losses, losses, rtol=1e-12)
    for name, value in parameters.items():
        torch.testing.assert_close(fit.params[name], value, rtol=1e-12, atol=1e-12)


def raise_at(step: int, error: BaseException) -> Callable[[Tensor], None]:
    calls = iter(range(10**6))

    def model(y: Tensor) -> None:
        if next(calls) == step:
            raise error
        normal_mean(y)

    return model


@pytest.mark.global_state
@pytest.mark.parametrize("ending", ["done", "error", "interrupt", "refused"])
def test_nothing_global_changes(ending: str) -> None:
    pyro.clear_param_store()
    pyro.param("loc", torch.tensor(7.0))
    pyro.settings.set(cholesky_relative_jitter=8.0)
    pyro.enable_validation(False)
    torch.set_default_dtype(torch.float64)
    random.seed(1)
    try:
        before = global_state()
        if ending == "done":
            fit = ingle.fit(normal_mean, normal_mean_guide, Y, steps=10, dtype=torch.float32)
            fit.draws(10), fit.params, fit.to_arviz(10), repr(fit)
        elif ending == "error":
            with pytest.raises(ingle.ProgramError):
                ingle.fit(raise_at(0, RuntimeError("no")), "normal", Y, steps=10, dtype=torch.float32)
        elif ending == "interrupt":
            model = raise_at(120, KeyboardInterrupt())
            assert ingle.fit(model, normal_mean_guide, Y, steps=500, dtype=torch.float32).stopped == "interrupted"
        else:
            with pytest.raises(ingle.OptionError):
                ingle.fit(normal_mean, "nomal", Y, dtype=torch.float32)  # type: ignore[arg-type]
        assert global_state() == before
        assert pyro.param("loc").item() == 7.0
    finally:
        torch.set_default_dtype(torch.float32)
        pyro.settings.set(cholesky_relative_jitter=4.0)
        pyro.enable_validation(True)
        pyro.clear_param_store()


def test_import_changes_nothing_global() -> None:
    code = (
        "import numpy, random, torch, pyro, sys; sys.path.insert(0, {tests!r}); from support import global_state;"
        "before = global_state(); import ingle, ingle.models.vae, ingle.guides.vae; assert global_state() == before"
    )
    import subprocess
    import sys
    from pathlib import Path

    tests = str(Path(__file__).parent)
    subprocess.run([sys.executable, "-c", code.format(tests=tests)], check=True)


def test_two_fits_do_not_see_each_other() -> None:
    first = ingle.fit(normal_mean, normal_mean_guide, Y, steps=50, optim=ADAM)
    alone = first.draws(50)["mu"]
    parameters = first.params
    second = ingle.fit(normal_mean, normal_mean_guide, Y + 100, steps=50, optim=ADAM)
    assert torch.equal(first.draws(50)["mu"], alone)
    assert all(torch.equal(parameters[name], first.params[name]) for name in parameters)
    assert not torch.equal(second.params["loc"], first.params["loc"])


def test_tensor_that_a_parameter_starts_from_is_not_trained() -> None:
    start = torch.zeros(())

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", start), 0.1))

    losses = [ingle.fit(normal_mean, guide, Y, steps=30, optim=ADAM).losses for _ in range(2)]
    assert float(start) == 0.0
    assert not start.requires_grad
    assert np.array_equal(*losses)


def test_ctrl_c_returns_the_fit_so_far() -> None:
    whole = ingle.fit(normal_mean, normal_mean_guide, Y, steps=200, optim=ADAM)
    fit = ingle.fit(raise_at(130, KeyboardInterrupt()), normal_mean_guide, Y, steps=200, optim=ADAM)
    assert fit.stopped == "interrupted"
    assert 50 <= fit.steps < 130
    assert np.array_equal(fit.losses, whole.losses[: fit.steps])
    same = ingle.fit(normal_mean, normal_mean_guide, Y, steps=fit.steps, optim=ADAM)
    assert all(torch.equal(same.params[name], value) for name, value in fit.params.items())
    assert "interrupted" in repr(fit)


def test_dtype_holds_for_the_whole_program(device: torch.device) -> None:
    seen = []

    def model(y: Tensor) -> None:
        seen.append((torch.zeros(()).dtype, torch.tensor(0.5).dtype, y.dtype))
        normal_mean(y)

    for dtype in (torch.float64, torch.float32):
        seen.clear()
        fit = ingle.fit(model, autoguide.AutoNormal, Y, steps=3, dtype=dtype, device=device)
        assert {kind for kinds in seen for kind in kinds} == {dtype}
        assert {value.dtype for value in (*fit.params.values(), *fit.draws(3).values())} == {dtype}
        assert {value.device.type for value in fit.params.values()} == {device.type}
        seen.clear()
        fit = ingle.fit(model, "normal", Y, steps=3, dtype=dtype, device=device)  # whose start is found in float64
        assert {kind for kinds in seen for kind in kinds} == {dtype, torch.float64}
        assert {kind for kinds in seen[-3:] for kind in kinds} == {dtype}
        assert {value.dtype for value in (*fit.params.values(), *fit.draws(3).values())} == {dtype}


def test_module_takes_the_dtype_of_the_fit() -> None:
    net = torch.nn.Linear(1, 1)

    def model(y: Tensor) -> None:
        pyro.module("net", net)
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(net(z), 1.0), obs=y)

    fit = ingle.fit(model, "normal", Y, steps=3, dtype=torch.float64)
    assert net.weight.dtype == torch.float64
    assert torch.equal(fit.params["net$$$weight"], net.weight)


@pytest.mark.parametrize(
    "data",
    [
        {"y": Y},
        {"y": Y.numpy()},
        {"y": pd.Series(Y.numpy())},
        (Y,),
        (Y.numpy(),),
        Y,
        Y.numpy(),
        pd.Series(Y.numpy()),
        Y.float(),
    ],
)
def test_every_way_to_hand_over_data_is_the_same(data: Any) -> None:
    fit = ingle.fit(normal_mean, "normal", data, steps=5, dtype=torch.float32)
    assert np.array_equal(fit.losses, ingle.fit(normal_mean, "normal", Y, steps=5).losses)


def test_indices_stay_indices() -> None:
    def model(group: Tensor, y: Tensor, scale: float, label: str) -> None:
        assert not group.is_floating_point()
        assert isinstance(scale, float)
        assert label == "kept"
        with pyro.plate("group", 2):
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu[group], scale), obs=y)

    for kind in (np.int64, np.int32, np.int8, np.uint8):
        group = np.array([0, 1] * 5, dtype=kind)
        data = {"group": group, "y": Y, "scale": 2.0, "label": "kept"}
        fit = ingle.fit(model, "normal", data, steps=2)
        assert fit.draws(4)["mu"].shape == (4, 2)


GUIDES: list[Any] = [
    "normal",
    "delta",
    "flow",
    autoguide.AutoNormal,
    functools.partial(autoguide.AutoNormal, init_scale=0.05),
    autoguide.AutoNormal(normal_mean),
    autoguide.AutoDiagonalNormal,
    normal_mean_guide,
    functools.partial(normal_mean_guide),
]


@pytest.mark.filterwarnings("ignore:ConditionalAutoRegressiveNN input_dim = 1:UserWarning")
@pytest.mark.parametrize("guide", GUIDES, ids=lambda guide: getattr(guide, "__name__", type(guide).__name__))
def test_every_kind_of_guide(guide: Any, where: dict[str, Any]) -> None:
    fit = ingle.fit(normal_mean, guide, Y, steps=200, optim=functools.partial(torch.optim.Adam, lr=0.05), **where)
    assert fit.losses[-20:].mean() < fit.losses[:20].mean()
    assert fit.draws(7)["mu"].shape == (7,)


def test_module_as_guide_and_model(where: dict[str, Any]) -> None:
    class Model(pyro.nn.PyroModule):
        def forward(self, y: Tensor) -> None:
            normal_mean(y)

    class Guide(pyro.nn.PyroModule):
        def __init__(self) -> None:
            super().__init__(name="guide")
            self.loc = torch.nn.Parameter(torch.tensor(0.0))
            self.scale = pyro.nn.PyroParam(torch.tensor(0.1), constraint=constraints.positive)

        def forward(self, y: Tensor) -> None:
            pyro.sample("mu", dist.Normal(self.loc, self.scale))

    guide = Guide()
    fit = ingle.fit(Model(), guide, Y, steps=200, optim=functools.partial(torch.optim.Adam, lr=0.05), **where)
    assert set(fit.params) == {"guide.loc", "guide.scale"}
    assert torch.equal(fit.params["guide.loc"], guide.loc)
    function = ingle.fit(
        normal_mean, normal_mean_guide, Y, steps=200, optim=functools.partial(torch.optim.Adam, lr=0.05), **where
    )
    np.testing.assert_allclose(fit.losses, function.losses, rtol=1e-6)  # the module's 0.1 began in float32


def test_module_trained_twice_warns() -> None:
    guide = autoguide.AutoNormal(normal_mean)
    ingle.fit(normal_mean, guide, Y, steps=2)
    with pytest.warns(ingle.TrainedModuleWarning, match="trained by another fit") as caught:
        ingle.fit(normal_mean, guide, Y, steps=2)
    assert caught[0].filename == __file__


def test_discrete_latent_left_out_is_summed_out(where: dict[str, Any]) -> None:
    """Two known components: the weight's posterior is a ratio of polynomials, integrated on a grid."""
    y = torch.tensor([-2.1, -1.7, 2.2, -2.4, 1.9, -1.8, 2.0, -2.2])

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(2.0, 2.0))
        with pyro.plate("data", len(y)):
            k = pyro.sample("k", dist.Bernoulli(p))
            pyro.sample("y", dist.Normal(4.0 * k - 2.0, 1.0), obs=y)

    grid = torch.linspace(1e-4, 1 - 1e-4, 20_001).double()
    low, high = (torch.distributions.Normal(m, 1.0).log_prob(y.double()).exp() for m in (-2.0, 2.0))
    density = (
        grid * (1 - grid) * torch.stack([grid * b + (1 - grid) * a for a, b in zip(low, high, strict=True)]).prod(0)
    )
    density = density / density.sum()
    mean = float((grid * density).sum())
    sd = float(((grid - mean) ** 2 * density).sum().sqrt())

    fit = ingle.fit(model, "normal", y, steps=1_500, **where)
    assert fit.objective == "TraceEnum_ELBO"
    assert "k" not in fit.draws(3)
    draws = fit.draws(20_000)["p"]
    assert abs(float(draws.mean()) - mean) < 0.1 * sd
    assert abs(float(draws.std()) / sd - 1) < 0.1


def test_discrete_latent_in_the_guide_takes_the_score_function() -> None:
    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.3))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(k, 2.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(pyro.param("p", torch.tensor(0.5), constraint=constraints.unit_interval)))

    assert ingle.fit(model, guide, Y, steps=2).objective == "RLOO_ELBO"
    objective = pyro.infer.TraceGraph_ELBO(num_particles=50, vectorize_particles=True)
    fit = ingle.fit(model, guide, Y, objective=objective, optim=functools.partial(torch.optim.Adam, lr=0.02), steps=300)
    log_odds = math.log(0.3 / 0.7) + float((-0.5 * (Y - 1) ** 2 + 0.5 * Y**2).sum() / 4)
    exact = 1 / (1 + math.exp(-log_odds))
    assert float(fit.params["p"]) == pytest.approx(exact, abs=0.05)


def test_model_without_arguments_and_maximum_likelihood() -> None:
    def model() -> None:
        loc = pyro.param("loc", torch.tensor(0.0))
        with pyro.plate("data", len(Y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=Y.float())

    fit = ingle.fit(model, lambda: None, (), steps=400, optim=functools.partial(torch.optim.Adam, lr=0.05))
    assert float(fit.params["loc"]) == pytest.approx(float(Y.mean()), abs=1e-3)
    assert fit.draws(3) == {}


def test_active_shows_the_fitted_parameters() -> None:
    fit = ingle.fit(normal_mean, normal_mean_guide, Y, steps=20, optim=ADAM)
    with fit.active():
        assert torch.equal(pyro.param("loc"), fit.params["loc"])
        assert torch.equal(torch.rand(3), torch.rand(3)) is False
    assert "loc" not in pyro.get_param_store()


def test_what_is_done_inside_active_is_forgotten() -> None:
    fit = ingle.fit(normal_mean, normal_mean_guide, Y, steps=20, optim=ADAM)
    loc = fit.params["loc"]
    with fit.active():
        pyro.get_param_store()["loc"] = torch.tensor(100.0)
        pyro.param("stray", torch.tensor(1.0))
        assert torch.equal(fit.params["loc"], loc)
    assert torch.equal(fit.params["loc"], loc)
    assert set(fit.params) == {"loc", "scale"}


def test_tensors_are_copied() -> None:
    y = Y.float().requires_grad_()
    fit = ingle.fit(normal_mean, "normal", y, steps=2)
    observed = fit.to_arviz(2).observed_data["y"].to_numpy()
    with torch.no_grad():
        y.zero_()
    assert np.array_equal(fit.to_arviz(2).observed_data["y"].to_numpy(), observed)
    assert y.grad is None


@pytest.mark.parametrize("outside", [torch.no_grad, torch.inference_mode])
def test_fit_trains_where_gradients_are_off_outside(outside: Any) -> None:
    with outside():
        fit = ingle.fit(normal_mean, normal_mean_guide, Y.clone(), steps=20, optim=ADAM)
    assert np.array_equal(fit.losses, ingle.fit(normal_mean, normal_mean_guide, Y, steps=20, optim=ADAM).losses)


def test_mixed_validation_flags_are_put_back() -> None:
    with pyro.settings.context(validate_distributions_torch=False):
        before = pyro.settings.get()
        ingle.fit(normal_mean, "normal", Y, steps=2).draws(2)
        assert pyro.settings.get() == before


def test_compile_off_is_eager() -> None:
    assert ingle.fit(normal_mean, "normal", Y, steps=2, compile="off").engine == "eager"


def test_card_is_short_and_says_why_it_stopped() -> None:
    fit = ingle.fit(normal_mean, "normal", Y, steps=200, batch_size={"data": 4})
    card = repr(fit)
    assert len(card.splitlines()) <= 15
    for said in ("normal_mean", "'normal' (AutoNormal)", "Trace_ELBO", "4 of 10 rows", "200 steps", "seed 0"):
        assert said in card


def test_fit_that_has_not_converged_says_so() -> None:
    fit = ingle.fit(normal_mean, normal_mean_guide, Y + 100, steps=300, optim=ADAM)
    assert "the ELBO still rose" in repr(fit)
    assert fit.verdict.status == "failed"
