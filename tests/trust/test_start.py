"""A guide by name starts where it needs no tuning: from a path, or from the best of several prior draws."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor
from trust.climbs import ill_conditioned, local, not_centred, posterior, prepared, regression, two_modes, with_parameter

import ingle
from ingle.objectives import Trace_ELBO
from ingle.program import set_guide
from ingle.trust import best_start
from ingle.trust.start import _loss

Y = torch.full((20,), 14.0)
NAMES = ["normal", "multivariate_normal", "low_rank", "delta", "laplace", "flow"]


def test_start_is_better_than_the_median(where: dict[str, Any]) -> None:
    for seed in range(3):
        with prepared(two_modes, "normal", Y, where, seed=seed) as (program, runtime):
            median = _loss(program, Trace_ELBO(), runtime, None)
            start = best_start(program, Trace_ELBO(), runtime)
            guide: Any = program.guide
            loc = guide.locs.mu.detach().cpu()
            assert _loss(program, Trace_ELBO(), runtime, {"mu": loc}) < median - 100
        assert (start.kind, start.whitened) == ("path", "dense")
        assert abs(abs(float(loc)) - 14.0) < 0.01


def test_only_the_guide_that_is_trained_leaves_parameters(where: dict[str, Any]) -> None:
    with prepared(two_modes, "normal", Y, where) as (program, runtime):
        assert len(pyro.get_param_store()) == 0
        best_start(program, Trace_ELBO(), runtime)
        assert set(pyro.get_param_store()) == set(program.leaves()) == {"AutoNormal.shift", "AutoNormal.stretch"}
        assert float(pyro.get_param_store()["AutoNormal.shift"].detach()) == 0.0
        assert float(pyro.get_param_store()["AutoNormal.stretch"].detach()) == pytest.approx(1.0)


def test_draws_that_the_program_refuses_are_passed_over() -> None:
    def picky(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        if mu.detach() > 3.0:
            raise ValueError("too large for me")
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = ingle.fit(picky, "normal", Y - 17, steps=5)
    assert fit.steps == 5
    assert fit.start.startswith("L-BFGS path")  # point by point, since no `if` goes for many at once
    assert float(fit.draws(200)["mu"].mean()) == pytest.approx(-3.0, abs=0.2)


def test_objective_without_a_plain_loss_takes_guides_by_name() -> None:
    """Reweighted wake-sleep gives a pair of losses; the starts are compared by the ELBO."""
    objective = pyro.infer.ReweightedWakeSleep(num_particles=2)
    assert ingle.fit(two_modes, "normal", Y, objective=objective, steps=3).steps == 3


def test_plain_start_is_used_by_the_guide(where: dict[str, Any]) -> None:
    with prepared(two_modes, "multivariate_normal", Y, where) as (program, _):
        set_guide(program, {"mu": torch.tensor(3.5)})
        assert float(program.leaves()["AutoMultivariateNormal.loc"].detach()) == 3.5


@pytest.mark.parametrize("guide", NAMES)
def test_every_guide_by_name_starts_at_a_gaussian_posterior(guide: str, where: dict[str, Any]) -> None:
    """Its loss before any step is minus the log evidence, or that of a point at the mode."""
    x, y = ill_conditioned(columns=3)
    with prepared(regression, guide, {"x": x, "y": y}, where) as (program, runtime):
        start = best_start(program, Trace_ELBO(), runtime)
        mean, root = posterior(*(part.to(where["dtype"]).double() for part in (x, y)))
        drawn = torch.stack([program.guide(*program.data.args, **program.data.kwargs)["weights"] for _ in range(400)])
    assert (start.kind, start.whitened, start.path is None) == ("path", "dense", False)
    assert "curvature of 3 numbers" in start.description
    away = (drawn.detach().cpu().double() - mean) @ root.mT
    assert float(away.mean(0).abs().max()) < (0.02 if guide in ("delta", "laplace") else 0.3)
    if guide in ("multivariate_normal", "flow"):
        assert torch.allclose(away.mT.cov(), torch.eye(3).double(), atol=0.3)


@pytest.mark.parametrize("data", [not_centred, ill_conditioned])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_untuned_fits_of_hard_regressions(guide: str, data: Any, where: dict[str, Any]) -> None:
    """Means within a tenth of an sd, with nothing said but the guide's name."""
    _near(guide, data, where, steps=300, within=0.25)


@pytest.mark.long
@pytest.mark.parametrize("data", [not_centred, ill_conditioned])
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_untuned_fits_of_hard_regressions_in_full(guide: str, data: Any, where: dict[str, Any]) -> None:
    _near(guide, data, where, steps=2_000, within=0.1)


def _near(guide: str, data: Any, where: dict[str, Any], *, steps: int, within: float) -> None:
    x, y = data()
    fit = ingle.fit(regression, guide, {"x": x, "y": y}, steps=steps, compile="off", **where)
    mean, root = posterior(*(part.to(where["dtype"]).double() for part in (x, y)))
    trained: Any = fit.guide
    with fit.active():
        loc = trained.median()["weights"].detach().cpu().double()
    inverse = torch.linalg.solve_triangular(root, torch.eye(len(mean)).double(), upper=True)
    sd = inverse.square().sum(-1).sqrt()
    assert float(((loc - mean) / sd).abs().max()) < within
    assert float((root @ (loc - mean)).abs().max()) < 3 * within  # in every direction


@pytest.mark.parametrize(
    ("model", "options", "told"),
    [
        (with_parameter, {}, "best of 20 prior draws, as the model has parameters of its own, such as 'sd'"),
        (
            local,
            {"batch_size": {"data": 2}},
            "best of 20 prior draws, as there are latents inside plate 'data', which is drawn in minibatches",
        ),
    ],
)
def test_plain_start_and_why(model: Any, options: Any, told: str) -> None:
    fit = ingle.fit(model, "normal", torch.tensor([0.3, 0.5, -1.0]), steps=2, **options)
    assert fit.start == told
    assert type(fit.guide) is autoguide.AutoNormal
    assert f"  start       {told}" in repr(fit).splitlines()


@pytest.mark.parametrize("guide", [autoguide.AutoNormal, functools.partial(autoguide.AutoDelta)])
def test_guides_of_the_user_are_left_alone(guide: Any) -> None:
    fit = ingle.fit(two_modes, guide, Y, steps=2)
    assert fit.start == "the guide's own"
    assert type(fit.guide) in (autoguide.AutoNormal, autoguide.AutoDelta)


@pytest.mark.parametrize("guide", NAMES)
def test_file_gives_the_same_draws_and_goes_on(guide: str, tmp_path: Path, where: dict[str, Any]) -> None:
    x, y = not_centred(30)
    data, options = {"x": x, "y": y}, {"compile": "off", **where}
    optim = functools.partial(torch.optim.Adam, lr=1e-2)
    whole = ingle.fit(regression, guide, data, steps=8, optim=optim, **options)
    half = ingle.fit(regression, guide, data, steps=4, optim=optim, **options)
    half.save(tmp_path / "fit")
    loaded = ingle.load(tmp_path / "fit", regression, guide, data)
    assert loaded.start == half.start
    assert torch.equal(loaded.draws(20)["weights"], half.draws(20)["weights"])
    gone_on = ingle.fit(regression, guide, data, steps=8, optim=optim, checkpoint=tmp_path / "fit", **options)
    assert np.array_equal(gone_on.losses, whole.losses)
    assert gone_on.start == whole.start
    assert torch.equal(gone_on.draws(20)["weights"], whole.draws(20)["weights"])
    assert np.array_equal(half.resume(4).losses, whole.losses)


def test_noise_of_the_fit_is_its_own(where: dict[str, Any]) -> None:
    """A fit draws the same numbers whatever its start took."""
    noise: list[Tensor] = []

    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    guides: list[Any] = ["normal", autoguide.AutoNormal]
    for name in guides:
        fit = ingle.fit(model, name, Y, steps=1, compile="off", **where)
        trained: Any = fit.guide
        with fit.active():
            loc, scale = trained._get_loc_and_scale("mu")
        noise.append((fit.draws(3)["mu"] - loc) / scale)
    assert torch.allclose(noise[0], noise[1], atol=1e-3)
    first, again = (ingle.fit(model, "normal", Y, steps=5, compile="off", **where) for _ in range(2))
    assert np.array_equal(first.losses, again.losses)
