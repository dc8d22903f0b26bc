"""Verdicts on programs so large that a few rows, or none, are looked at."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.trust import look

N = 500
Y = torch.linspace(-2.0, 2.0, N)
STILL = functools.partial(torch.optim.SGD, lr=1e-9)


def model(y: Tensor) -> None:
    with pyro.plate("row", len(y)) as i:
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y[i])


def encoder(shift: Callable[[Tensor], Tensor]) -> Callable[[Tensor], None]:
    """The exact posterior of each row, but for a shift of its means."""
    factor = torch.linalg.cholesky(torch.eye(2) - torch.ones(2, 2) / 3)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(1 / 3))
        with pyro.plate("row", len(y)) as i:
            loc = (slope * y[i] + shift(y[i])).unsqueeze(-1) * torch.ones(2)
            pyro.sample("z", dist.MultivariateNormal(loc, scale_tril=factor))

    return guide


def kept(of: Any, guide: Any, data: Any = Y, **options: Any) -> ingle.Fit:
    """A fit that does not move."""
    return ingle.fit(of, guide, data, **{"optim": STILL, "steps": 60, "compile": "off", **options})


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """What chains may write is little, so that a few hundred rows are many."""
    monkeypatch.setattr(look, "_MOVED", 2**20)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("options", [{}, {"batch_size": {"row": 50}}])
def test_a_few_rows_stand_for_all(options: dict[str, Any], tmp_path: Path) -> None:
    """Rows are told by their own numbers: those of positive data are off, and no others."""
    fit = kept(model, encoder(lambda y: 2.0 * (y > 0)), **options)
    verdict = fit.verdict
    assert (verdict.status, verdict.per, verdict.rows) == ("doubtful", "row", (100, N))
    assert "of 100 rows, drawn from all, are off" in verdict.reasons[0]
    assert f"of 100 of {N} rows of plate 'row'" in repr(verdict)
    assert fit.elbo[0] == pytest.approx(-float(fit.losses[-20:].mean()), rel=0.1)  # of the fit: all rows
    table = verdict.to_dataframe()
    assert len(table) == 200
    numbers = table.index.str.extract(r"z\[(\d+), [01]\]")[0].astype(int).to_numpy()
    assert len(set(numbers)) == 100
    assert ((Y[torch.tensor(numbers)].numpy() > 0) == (table["shift"].abs() > 1.0)).all()
    fit.save(tmp_path / "fit.ingle")
    again = ingle.load(tmp_path / "fit.ingle", model, encoder(lambda y: 2.0 * (y > 0)), Y).verdict
    assert repr(again) == repr(verdict)
    assert again.to_dataframe().index.equals(table.index)


@pytest.mark.usefixtures("small")
def test_a_few_good_rows_are_ok() -> None:
    verdict = kept(model, encoder(torch.zeros_like)).verdict
    assert (verdict.status, verdict.rows) == ("ok", (100, N))
    assert "a few rows were looked at for all" in "".join(verdict.not_looked)


def by_row(y: Tensor) -> None:
    loc = pyro.param("loc", lambda: (Y / 3).unsqueeze(-1) * torch.ones(2))
    with pyro.plate("row", len(y)):
        pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


def of_so_many_rows(y: Tensor) -> None:
    with pyro.plate("row", N):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


def of_all_data(y: Tensor) -> None:
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(-1), y.std()), obs=y)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("of", "guide"), [
    (model, by_row),
    (of_so_many_rows, encoder(torch.zeros_like)),
    (of_all_data, encoder(torch.zeros_like)),
])  # fmt: skip
def test_rows_that_cannot_be_taken_out_are_all_looked_at(of: Any, guide: Any) -> None:
    verdict = kept(of, guide).verdict
    assert verdict.rows is None
    assert len(verdict.to_dataframe()) == 2 * N


def test_chains_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_MOST_WRITTEN", 2**26)
    verdict = kept(model, encoder(lambda y: 2.0 * (y > 0))).verdict
    assert (verdict.status, verdict.comparison) == ("doubtful", "weights")
    assert "chains: that would write" in "".join(verdict.not_looked)


def test_draws_that_would_take_too_long_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "_MOST_WRITTEN", 1)
    verdict = kept(model, by_row, steps=50).verdict
    assert (verdict.status, verdict.comparison) == ("doubtful", "none")
    assert "means and sds were not looked at: that would write" in verdict.reasons[0]


def standardising(y: Tensor) -> None:
    slope = pyro.param("slope", torch.tensor(1 / 3))
    y = (y - y.mean()) / y.std() * Y.std()
    with pyro.plate("row", len(y)):
        pyro.sample("z", dist.Normal((slope * y).unsqueeze(-1), torch.ones(2)).to_event(1))


def weighed_by_size(y: Tensor) -> None:
    with pyro.plate("row", len(y)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.poutine.scale(scale=100 / len(y)):
            pyro.sample("y", dist.Normal(z.sum(-1), 1.0), obs=y)


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize(("of", "guide"), [(model, standardising), (weighed_by_size, encoder(torch.zeros_like))])
def test_rows_that_depend_on_the_others_are_all_looked_at(of: Any, guide: Any) -> None:
    assert kept(of, guide).verdict.rows is None


@pytest.mark.usefixtures("small")
@pytest.mark.parametrize("most", [50, N - 1])
def test_an_index_past_the_rows_that_are_left_keeps_them_all(most: int) -> None:
    """It may point into an argument that was cut, which ends a process on CUDA."""

    def grouped(y: Tensor, group: Tensor) -> None:
        model(y)

    guide = encoder(torch.zeros_like)
    data = {"y": Y, "group": torch.arange(N).clamp(max=most)}
    verdict = kept(grouped, lambda y, group: guide(y), data).verdict
    assert verdict.rows == ((100, N) if most == 50 else None)
