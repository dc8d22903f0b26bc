"""The route to ArviZ: groups, dims, coords, attributes, and what ArviZ then does with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support import az
from torch import Tensor

import ingle

Y = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)


def crossed(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    row, column = pyro.plate("row", 4, dim=-2), pyro.plate("column", 3, dim=-1)
    with row:
        a = pyro.sample("a", dist.Normal(mu, 1.0))
    with column:
        b = pyro.sample("b", dist.Normal(w.sum(), 1.0))
        pyro.deterministic("shifted", b + 1)
    with row, column:
        pyro.sample("y", dist.Normal(a + b, 1.0), obs=y)


@pytest.fixture(scope="module")
def fit() -> ingle.Fit:
    return ingle.fit(crossed, "normal", Y, steps=30)


def test_groups_dims_and_attributes(fit: ingle.Fit) -> None:
    data = fit.to_arviz(20, coords={"column": ["x", "y", "z"]})
    assert data.posterior["mu"].dims == ("chain", "draw")
    assert data.posterior["w"].dims == ("chain", "draw", "w_dim_0")
    assert data.posterior["a"].dims == ("chain", "draw", "row", "a_dim_1")
    assert data.posterior["b"].dims == ("chain", "draw", "column")
    assert data.posterior["shifted"].dims == ("chain", "draw", "column")
    assert data.posterior_predictive["y"].dims == ("chain", "draw", "row", "column")
    assert data.observed_data["y"].dims == ("row", "column")
    assert data.posterior["b"].sizes == {"chain": 1, "draw": 20, "column": 3}
    assert data.posterior["column"].to_numpy().tolist() == ["x", "y", "z"]
    np.testing.assert_allclose(data.observed_data["y"].to_numpy(), Y.numpy())
    assert data.posterior.attrs["inference_library"] == "ingle"
    assert (data.posterior.attrs["objective"], data.posterior.attrs["steps"]) == ("Trace_ELBO", 30)


def test_names_of_dimensions_can_be_given(fit: ingle.Fit) -> None:
    data = fit.to_arviz(5, dims={"w": ["weight"]}, coords={"weight": ["first", "second"]})
    assert data.posterior["w"].dims == ("chain", "draw", "weight")


def test_posterior_is_that_of_draws(fit: ingle.Fit) -> None:
    data = fit.to_arviz(10)
    assert set(data.posterior.data_vars) == {"mu", "w", "a", "b", "shifted"} == set(fit.draws(10))


def test_summary_has_a_row_for_each_element(fit: ingle.Fit) -> None:
    table = fit.summary(200)
    assert "mu" in table.index
    assert "b[2]" in table.index
    assert {"mean", "sd"} <= set(table.columns)
    assert table.loc["mu", "mean"] == pytest.approx(float(fit.draws(200)["mu"].mean()), abs=0.01)


def test_netcdf_and_back(fit: ingle.Fit, tmp_path: Path) -> None:
    data = fit.to_arviz(10)
    data.to_netcdf(str(tmp_path / "fit.nc"))
    back: Any = az.from_netcdf(str(tmp_path / "fit.nc"))
    np.testing.assert_array_equal(back.posterior["b"].to_numpy(), data.posterior["b"].to_numpy())


def test_minibatched_fit_exports_every_row() -> None:
    def local(y: Tensor) -> None:
        with pyro.plate("data", 12) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    fit = ingle.fit(local, "normal", Y.reshape(-1), batch_size={"data": 5}, steps=5)
    with pytest.warns(ingle.IngleWarning, match="a value for each datum"):
        data = fit.to_arviz(4)
    assert data.posterior["z"].sizes["data"] == 12
    assert data.observed_data["y"].sizes["data"] == 12
    assert data.posterior_predictive["y"].sizes["data"] == 12


def test_nothing_to_summarise_is_said() -> None:
    def fixed(y: Tensor) -> None:
        with pyro.plate("data", 12):
            pyro.sample("y", dist.Normal(pyro.param("loc", torch.tensor(0.0)), 1.0), obs=y)

    fit = ingle.fit(fixed, lambda y: None, Y.reshape(-1), steps=3)
    with pytest.raises(ingle.OptionError, match="no latent that can be drawn"):
        fit.summary()


def test_names_that_arviz_keeps_are_refused() -> None:
    def reserved(y: Tensor) -> None:
        draw = pyro.sample("draw", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 12):
            pyro.sample("y", dist.Normal(draw, 1.0), obs=y)

    fit = ingle.fit(reserved, "normal", Y.reshape(-1), steps=3)
    with pytest.raises(ingle.OptionError, match="rename draw"):
        fit.to_arviz()
