"""What one run of a pair shows: kinds of sites, plates, what is summed out, what belongs together."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from torch import Tensor

import ingle
from ingle.data import read
from ingle.program import Program, build_program
from ingle.runtime import Runtime

Y = torch.linspace(-1.0, 1.0, 6)


def build(model: Any, guide: Any, data: Any = (Y,), batch_size: dict[str, int] | None = None) -> Program:
    runtime = Runtime(torch.float32, torch.device("cpu"), 0)
    with runtime.scope():
        return build_program(model, guide, read(data), batch_size=batch_size or {}, runtime=runtime)


def mixture(y: Tensor) -> None:
    p = pyro.sample("p", dist.Beta(1.0, 1.0))
    with pyro.plate("data", 6) as i:
        k = pyro.sample("k", dist.Bernoulli(p))
        pyro.deterministic("sign", 2 * k - 1, event_dim=0)
        pyro.deterministic("double", 2 * p)
        pyro.sample("y", dist.Normal(k, 1.0), obs=y[i])
        pyro.factor("penalty", -(p**2))


def test_kinds_of_sites() -> None:
    program = build(mixture, "normal")
    kinds = {site.name: site.kind for site in program.model_sites}
    assert kinds == {
        "p": "latent",
        "k": "latent",
        "sign": "deterministic",
        "double": "deterministic",
        "y": "observed",
        "penalty": "observed",
    }
    assert {site.name: site.kind for site in program.guide_sites} == {"p_unconstrained": "auxiliary", "p": "latent"}
    assert program.enumerated == ("k",)
    assert program.max_plate_nesting == 1


def test_deterministic_sites_downstream_of_what_is_summed_out() -> None:
    program = build(mixture, "normal")
    assert program.hidden == {"sign"}
    assert set(ingle.fit(mixture, "normal", Y, steps=2).draws(2)) == {"p", "double"}


def _written(k: Tensor) -> Tensor:
    into = torch.zeros(2)
    into[0] = k
    return into


def _scripted(k: Tensor) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return torch.jit.script(_doubled)(k)  # type: ignore[no-any-return]


def _doubled(k: Tensor) -> Tensor:
    return 2.0 * k


WAYS = {
    "arithmetic": _doubled,
    "a slice": lambda k: k.expand(3)[1:],
    "written into another tensor": _written,
    "out=": lambda k: torch.add(k, 1.0, out=torch.zeros(())),
    "a scripted function": _scripted,
    "a number": lambda k: torch.tensor(2.0 * float(k)),
    "an array": lambda k: torch.from_numpy(2.0 * np.asarray(k.reshape(1))),
    "if": lambda k: torch.tensor(1.0 if (k >= 0).all() else 2.0),
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_whatever_the_way_to_a_deterministic_site(way: Any) -> None:
    """The median of `z` is tried on the way, which reads numbers computed from `k` and decides nothing."""

    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(p))
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.deterministic("double", 2 * p)
        pyro.deterministic("level", way(k))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[0])

    assert build(model, "normal").hidden == {"level"}


def test_what_comes_after_a_decision_is_downstream_of_it() -> None:
    def model(y: Tensor) -> None:
        p = pyro.sample("p", dist.Beta(1.0, 1.0))
        k = pyro.sample("k", dist.Bernoulli(p))
        pyro.deterministic("before", 2 * p)
        if (k >= 0).all():
            pyro.deterministic("after", 2 * p)
        pyro.sample("y", dist.Normal(k, 1.0), obs=y[0])

    assert build(model, "normal").hidden == {"after"}


def test_sites_carry_plates_and_shapes_of_the_minibatch() -> None:
    program = build(mixture, "normal", batch_size={"data": 4})
    site = next(site for site in program.model_sites if site.name == "y")
    (plate,) = site.plates
    assert (plate.name, plate.size, plate.full_size, plate.dim) == ("data", 4, 6, -1)
    assert site.value_shape == (4,)
    assert program.batch_sizes == {"data": (6, 4)}


def test_wide_priors_are_not_drawn_from_before_the_fit() -> None:
    """A draw of rate = exp(Normal(0, 100)) overflows; the median does not."""

    def wide(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 100.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Poisson(a.exp()), obs=y)

    for seed in range(5):
        assert ingle.fit(wide, "normal", torch.arange(6.0), steps=3, seed=seed).steps == 3


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "delta"])
def test_improper_prior(guide: Any) -> None:

    def flat(y: Tensor) -> None:
        a = pyro.sample("a", dist.ImproperUniform(constraints.real, (), ()))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y)

    fit = ingle.fit(flat, guide, Y + 1, steps=600)
    assert float(fit.draws(2_000)["a"].mean()) == pytest.approx(1.0, abs=0.15)


def test_masked_observation_has_a_latent_for_the_rest() -> None:
    mask = torch.tensor([True, True, False, True, False, True])

    def masked(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(a, 1.0), obs=y, obs_mask=mask)

    fit = ingle.fit(masked, "normal", Y, steps=5)
    assert set(fit.draws(2)) == {"a", "y_unobserved", "y"}


def test_guide_written_as_a_messenger() -> None:
    def plain(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    for guide in (autoguide.AutoNormalMessenger, autoguide.AutoNormalMessenger(plain)):
        fit = ingle.fit(plain, guide, Y + 2, steps=400, optim=lambda leaves: torch.optim.Adam(leaves, lr=0.05))
        mu = fit.draws(2_000)["mu"]
        assert float(mu.mean()) == pytest.approx(2.0, abs=0.15)
        assert float(mu.std()) == pytest.approx(6**-0.5, rel=0.2)


@pytest.mark.parametrize("guide", ["normal", "delta", autoguide.AutoGuideList])
def test_automatic_guides_follow_minibatches_of_local_latents(guide: Any) -> None:
    """Each datum has its own latent; only its own rows' gradients move it, and all rows are drawn in the end."""

    def local(y: Tensor) -> None:
        with pyro.plate("data", 6) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 0.1), obs=y[i])

    if guide is autoguide.AutoGuideList:
        guide = autoguide.AutoGuideList(local)
        guide.append(autoguide.AutoNormal(local))
    fit = ingle.fit(local, guide, Y, batch_size={"data": 2}, steps=1_500)
    z = fit.draws(500)["z"]
    assert z.shape == (500, 6)
    torch.testing.assert_close(z.mean(0), Y / 1.01, atol=0.06, rtol=0)


def test_local_parameters_of_pyro_modules() -> None:
    """Pyro's setting that keeps parameters in their modules works as its default does."""

    def plain(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    default = ingle.fit(plain, "normal", Y, steps=20)
    with pyro.settings.context(module_local_params=True):
        local = ingle.fit(plain, "normal", Y, steps=20)
        draws = local.draws(5)["mu"]
        parameters = local.params
    assert default.losses.tolist() == local.losses.tolist()
    assert torch.equal(draws, default.draws(5)["mu"])
    assert all(torch.equal(parameters[name], value) for name, value in default.params.items())
