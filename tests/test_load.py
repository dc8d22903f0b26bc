"""Fit.save and ingle.load: the same parameters and the same draws, for every kind of guide; another program refused."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import autoguide
from support import old_faithful
from torch import Tensor

import ingle
from ingle import saved
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.vae import VAEGuide
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE

Y = torch.linspace(-1.0, 2.0, 10)
ADAM = functools.partial(torch.optim.Adam, lr=0.01)


def model(y: Tensor) -> None:
    noise = pyro.param("noise", torch.tensor(1.0), constraint=constraints.positive)
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)) as i:
        pyro.sample("y", dist.Normal(mu, noise + tau), obs=y[i])


def guide(y: Tensor) -> None:
    loc = pyro.param("loc", torch.tensor(0.0))
    pyro.sample("mu", dist.Normal(loc, pyro.param("scale", torch.tensor(0.3), constraint=constraints.positive)))
    pyro.sample("tau", dist.LogNormal(pyro.param("log_tau", torch.tensor(-1.0)), 0.2))


class Guide(pyro.nn.PyroModule):
    def __init__(self) -> None:
        super().__init__(name="guide")
        self.loc = torch.nn.Parameter(torch.randn(()))
        self.scale = pyro.nn.PyroParam(torch.rand(()) + 0.1, constraint=constraints.positive)

    def forward(self, y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(self.loc, self.scale))
        pyro.sample("tau", dist.LogNormal(self.loc, 0.2))


def mixture() -> tuple[Any, Any]:
    model = GaussianMixture(num_components=2)
    return model, GaussianMixtureGuide(model)


def vae() -> tuple[Any, Any]:
    model = VAE(2, latent_dim=1, hidden=(4,), likelihood="normal")
    return model, VAEGuide(model)


PROGRAMS: dict[str, tuple[Callable[[], tuple[Any, Any]], Any]] = {
    **{
        name: (lambda name=name: (model, name), Y)  # type: ignore[misc]
        for name in ("normal", "multivariate_normal", "low_rank", "delta", "laplace", "flow")
    },
    "function": (lambda: (model, guide), Y),
    "class": (lambda: (model, autoguide.AutoDiagonalNormal), Y),
    "instance": (lambda: (model, autoguide.AutoNormal(model)), Y),
    "module": (lambda: (model, Guide()), Y),
    "modules": (vae, old_faithful()),
    "enumerated": (mixture, old_faithful()),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_loaded_fit_is_the_fit(name: str, tmp_path: Path, where: dict[str, Any]) -> None:
    """Model and guide are built anew, their weights drawn from another seed."""
    build, data = PROGRAMS[name]
    torch.manual_seed(1)
    fit = ingle.fit(*build(), data, steps=12, seed=5, optim=ADAM, **where)
    assert fit.save(tmp_path / "fit") is None  # type: ignore[func-returns-value]
    torch.manual_seed(2)
    loaded = ingle.load(tmp_path / "fit", *build(), data)
    assert_same(loaded, fit)
    assert type(loaded.guide) is type(fit.guide)


def assert_same(one: ingle.Fit, other: ingle.Fit) -> None:
    assert repr(one) == repr(other)
    assert np.array_equal(one.losses, other.losses)
    assert (one.dtype, one.device, one.seed) == (other.dtype, other.device, other.seed)
    for seed in (None, 3):
        pairs = [(one.params, other.params), (one.draws(20, seed=seed), other.draws(20, seed=seed))]
        for ours, theirs in pairs:
            assert list(ours) == list(theirs)
            assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def test_constraints_hold_of_what_is_loaded(tmp_path: Path) -> None:
    fit = ingle.fit(model, guide, Y, steps=30, optim=functools.partial(torch.optim.Adam, lr=0.3))
    fit.save(tmp_path / "fit")
    loaded = ingle.load(tmp_path / "fit", model, guide, Y)
    assert torch.equal(loaded.params["scale"], fit.params["scale"])
    assert float(loaded.params["scale"]) > 0
    with loaded.active():
        assert torch.equal(pyro.param("scale"), fit.params["scale"])


def test_minibatches_and_module_without_training(tmp_path: Path) -> None:
    """A network that nothing trains is a part of the model, and so of the file."""

    def build() -> tuple[Any, Any]:
        net = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3), torch.nn.Linear(3, 1))

        def fixed(y: Tensor) -> None:
            mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
            with pyro.plate("data", 10) as i:
                pyro.deterministic("seen", net(y[i, None])[:, 0].detach() + mu)
                pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

        return fixed, "normal"

    fit = ingle.fit(*build(), Y, steps=20, optim=ADAM, batch_size={"data": 4})
    fit.save(tmp_path / "fit")
    assert_same(ingle.load(tmp_path / "fit", *build(), Y), fit)


def test_float64_whatever_the_default_is(tmp_path: Path) -> None:
    fit = ingle.fit(model, "normal", Y.double(), steps=5, dtype=torch.float64)
    fit.save(tmp_path / "fit")
    loaded = ingle.load(tmp_path / "fit", model, "normal", Y.double())
    assert_same(loaded, fit)
    assert {value.dtype for value in loaded.params.values()} == {torch.float64}


def test_loaded_fit_is_saved_again(tmp_path: Path) -> None:
    ingle.fit(model, guide, Y, steps=5, optim=ADAM).save(tmp_path / "fit")
    ingle.load(tmp_path / "fit", model, guide, Y).save(str(tmp_path / "again"))
    assert (tmp_path / "again").read_bytes() == (tmp_path / "fit").read_bytes()
    more = ingle.fit(model, guide, Y, steps=9, optim=ADAM, checkpoint=tmp_path / "again")
    assert np.array_equal(more.losses, ingle.fit(model, guide, Y, steps=9, optim=ADAM).losses)


def test_file_of_a_fit_on_a_gpu_loads_without_one(tmp_path: Path) -> None:
    """The file is written as from a machine that has a device which this one has not."""
    fit = ingle.fit(model, guide, Y, steps=5, device="cpu")
    fit.save(tmp_path / "fit")
    content = saved.read(tmp_path / "fit")
    content["about"]["device"] = "cuda:97"
    saved.write(tmp_path / "fit", content)
    loaded = ingle.load(tmp_path / "fit", model, guide, Y)
    assert loaded.device == torch.device("cpu")
    assert torch.equal(loaded.draws(5)["mu"], fit.draws(5)["mu"])
    with pytest.raises(ingle.OptionError, match="'cuda:97' cannot be used on this machine"):
        ingle.load(tmp_path / "fit", model, guide, Y, device="cuda:97")
    with pytest.raises(ingle.FileError, match="it ran on device 'cuda:97', and this fit runs on 'cpu'"):
        ingle.fit(model, guide, Y, steps=9, checkpoint=tmp_path / "fit")


def test_file_written_on_the_way_loads(tmp_path: Path) -> None:
    fit = ingle.fit(model, guide, Y, steps=50)
    fit.save(tmp_path / "fit")
    content = saved.read(tmp_path / "fit")
    saved.write(tmp_path / "fit", {**content, "stopped": "running", "reason": ""})
    loaded = ingle.load(tmp_path / "fit", model, guide, Y)
    assert (loaded.stopped, loaded.steps) == ("interrupted", 50)
    assert "broken off" in repr(loaded)


def test_other_data_of_the_same_shapes_warn(tmp_path: Path) -> None:
    fit = ingle.fit(model, guide, {"y": Y}, steps=5)
    fit.save(tmp_path / "fit")
    with warnings.catch_warnings():
        ingle.load(tmp_path / "fit", model, guide, Y.numpy().astype(np.float64))  # the same in the fit's dtype
    with pytest.warns(ingle.IngleWarning, match="y in data is not what .*fit was fitted to") as caught:
        loaded = ingle.load(tmp_path / "fit", model, guide, Y + 1)
    assert caught[0].filename == __file__
    assert torch.equal(loaded.draws(5)["mu"], fit.draws(5)["mu"])


def test_module_of_another_fit_warns_where_it_is_overwritten(tmp_path: Path) -> None:
    torch.manual_seed(0)
    mine = Guide()
    ingle.fit(model, mine, Y, steps=5).save(tmp_path / "fit")
    with warnings.catch_warnings():
        ingle.load(tmp_path / "fit", model, mine, Y)  # nothing changes
    other = Guide()
    ingle.fit(model, other, Y, steps=3)
    with pytest.warns(ingle.TrainedModuleWarning, match=r"overwritten from .*fit; that fit's results change") as caught:
        ingle.load(tmp_path / "fit", model, other, Y)
    assert caught[0].filename == __file__
    with pytest.warns(ingle.TrainedModuleWarning, match="trained on from there"):
        ingle.fit(model, other, Y, steps=3)


def with_another_site(y: Tensor) -> None:
    model(y)
    pyro.sample("nu", dist.Normal(0.0, 1.0))


def shaped(y: Tensor) -> None:
    pyro.param("noise", torch.ones(3), constraint=constraints.positive)
    noise = pyro.param("noise").sum()
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    tau = pyro.sample("tau", dist.HalfNormal(1.0))
    pyro.deterministic("twice", 2 * mu)
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, noise + tau), obs=y)


OTHERS: dict[str, tuple[Any, Any, Any, str]] = {
    "site": (with_another_site, "normal", Y, "model has sites 'mu', 'tau', 'twice', 'y', 'nu', the file sites 'mu'"),
    "guide": (model, "delta", Y, r"the guide is 'delta' \(AutoDelta\), in the file 'normal' \(AutoNormal\)"),
    "function": (model, guide, Y, "the guide is guide, in the file 'normal'"),
    "shape": (shaped, "normal", Y, r"parameter 'noise' is of shape \(3,\).* in the file of shape \(\)"),
    "rows": (model, "normal", Y[:4], r"model site 'y' is observed, Normal of shape \(4,\), in the file .* \(10,\)"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_program_is_refused(name: str, tmp_path: Path) -> None:
    other, other_guide, data, said = OTHERS[name]
    ingle.fit(model, "normal", Y, steps=3).save(tmp_path / "fit")
    with pytest.raises(ingle.FileError, match=rf"fit is of another fit: .*{said}"):
        ingle.load(tmp_path / "fit", other, other_guide, data)


def test_minibatches_of_a_plate_that_is_not_there(tmp_path: Path) -> None:
    def flat(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([10]).to_event(1), obs=y)

    ingle.fit(model, "normal", Y, steps=3, batch_size={"data": 4}).save(tmp_path / "fit")
    with pytest.raises(
        ingle.FileError, match=r"fitted in minibatches, which do not go with this model: .*plate 'data'"
    ):
        ingle.load(tmp_path / "fit", flat, "normal", Y)
