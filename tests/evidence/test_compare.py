"""`compare`: ranks, errors and weights against arithmetic by hand, and what it will not compare."""

from __future__ import annotations

import math
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle import Evidence, OptionError

Y = torch.tensor([0.8, -0.3, 1.1])


def mean(y: Tensor, sd: float = 1.0) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, sd))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def rows(y: Tensor, sd: float = 1.0) -> None:
    with pyro.plate("data", len(y)):
        mu = pyro.sample("mu", dist.Normal(0.0, sd))
        pyro.sample("seen", dist.Normal(mu, 1.0), obs=y)


def log_z(sd: float) -> float:
    """Of `mean`, exactly."""
    covariance = torch.eye(3, dtype=torch.float64) + sd**2
    return float(dist.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance).log_prob(Y.double()))


def by_prior(model: Any = mean, y: Any = Y, *, num_samples: int = 2_000, **options: Any) -> Evidence:
    arguments = {"y": y, **{name: options.pop(name) for name in ("sd",) if name in options}}
    return ingle.log_evidence(model, None, arguments, proposal="prior", num_samples=num_samples, **options)


BASE = by_prior(num_samples=100)


def told(log_z: float, se: float = 0.1, **others: Any) -> Evidence:
    """An evidence with these numbers, its verdict "reliable"."""
    return replace(BASE, **{"log_z": log_z, "se": se, "verdict": "reliable", **others})


def test_against_arithmetic() -> None:
    found = ingle.compare({"c": told(-12.0, 0.3), "a": told(-10.0, 0.4), "b": told(-11.0, 0.0)})
    assert [(row.name, row.rank, row.log_z_diff) for row in found.rows] == [("a", 0, 0.0), ("b", 1, 1.0), ("c", 2, 2.0)]
    assert [row.dse for row in found.rows] == pytest.approx([0.0, 0.4, 0.5])
    assert [row.bayes_factor for row in found.rows] == pytest.approx([1.0, math.exp(-1), math.exp(-2)])
    weights = np.exp([-10.0, -11.0, -12.0]) / np.exp([-10.0, -11.0, -12.0]).sum()
    assert [row.weight for row in found.rows] == pytest.approx(list(weights), rel=1e-12)
    assert found["b"].evidence.log_z == -11.0
    with pytest.raises(KeyError, match="'d'; there are 'a', 'b', 'c'"):
        found["d"]


def test_prior_weights() -> None:
    prior = {"a": 1, "b": 5.0, "c": 0.0}
    found = ingle.compare({"c": told(-9.0), "a": told(-10.0), "b": told(-11.0)}, prior=prior)
    both = np.array([1.0, 5.0 * math.exp(-1)])
    assert [found[name].weight for name in "abc"] == pytest.approx([*(both / both.sum()), 0.0])
    assert [found[name].prior for name in "abc"] == pytest.approx([1 / 6, 5 / 6, 0.0])
    assert found.rows[0].name == "c"
    assert "With the prior as given 'b' is the most probable, with weight 0.648." in repr(found)
    assert " prior " in repr(found)
    huge = ingle.compare({"a": told(-10.0), "b": told(-10.0)}, prior={"a": 1e308, "b": 1e308})
    assert [row.weight for row in huge.rows] == [0.5, 0.5]


def test_thousands_of_nats() -> None:
    found = ingle.compare({"far": told(-11_000.0), "best": told(-10_000.0), "next": told(-10_040.0)})
    assert [row.weight for row in found.rows] == pytest.approx([1.0, math.exp(-40), 0.0])
    assert found["far"].bayes_factor == 0.0
    text = repr(found)
    assert "5.1e-435" in text  # exp(-1000)
    assert "2.4e17 times as probable under 'best' as under 'next'" in text
    assert found.to_dataframe().loc["far", "log_z_diff"] == 1_000.0


def test_two_priors_of_one_model() -> None:
    """Estimates, an error and a Bayes factor of a conjugate model; 4 standard errors fail once in 16,000."""
    found = ingle.compare({"wide": by_prior(sd=5.0, num_samples=20_000), "narrow": by_prior(num_samples=20_000)})
    assert [row.name for row in found.rows] == ["narrow", "wide"]
    exact = log_z(1.0) - log_z(5.0)
    assert abs(found["wide"].log_z_diff - exact) < 4 * found["wide"].dse
    assert found["wide"].dse < 0.1
    assert "more than 1.96 standard errors" in found.sentence


def test_a_fit_is_asked_for_its_evidence() -> None:
    fit = ingle.fit(mean, "normal", {"y": Y}, steps=5)
    found = ingle.compare({"fit": fit, "prior": by_prior()})
    assert found["fit"].evidence.log_z == fit.log_evidence().log_z
    text = repr(found)
    assert "proposal" in text
    assert "the prior" in text
    assert "all are of mean; where that is one and the same model they should agree within their errors, and" in text
    delta = ingle.fit(mean, "delta", {"y": Y}, steps=2)
    with pytest.raises(OptionError, match=r"the evidence of 'point': .*point mass at mu"):
        ingle.compare({"point": delta})


def test_proposals_that_disagree() -> None:
    one, other = told(-10.0, 0.1), told(-12.0, 0.2, proposal="the guide")
    assert "'other' does not agree with 'one'" in repr(ingle.compare({"one": one, "other": other}))
    assert "errors, and they do" in repr(ingle.compare({"one": one, "other": replace(other, log_z=-10.3)}))


def test_element_by_element() -> None:
    ours, theirs = by_prior(rows, per="data"), by_prior(rows, sd=3.0, per="data")
    found = ingle.compare({"three": theirs, "one": ours})
    row = found["three"]
    assert ours.pointwise is not None
    assert theirs.pointwise is not None
    assert row.pointwise_diff is not None
    assert row.pointwise_diff.shape == (3,)
    assert row.pointwise_diff.sum() == pytest.approx(row.log_z_diff, abs=1e-9)
    errors = ours.pointwise.se**2 + theirs.pointwise.se**2
    assert row.dse == pytest.approx(math.sqrt(errors.sum()), rel=1e-9)
    assert ingle.compare({"rows": ours, "mean": by_prior()})["mean"].pointwise_diff is None


def test_unreliable_ones_are_marked() -> None:
    entries = {
        "yes": told(-10.0),
        "no": told(-11.0, verdict="unreliable"),
        "few": told(-12.0, verdict="unknown"),
        "dear": told(-13.0, verdict="costly"),
        "flat": told(-14.0, notes=("the prior of mu is improper, so log Z is known up to a constant only",)),
    }
    found = ingle.compare(entries)
    assert [row.warning for row in found.rows] == [False, True, True, False, True]
    assert "Do not rely on 'no', 'few', 'flat'" in found.sentence
    assert "note: 'flat': the prior of mu is improper" in repr(found)


def test_evidences_that_are_no_numbers() -> None:
    entries = {
        "nan": told(math.nan, verdict="unreliable"),
        "zero": told(-math.inf, math.nan),
        "endless": told(math.inf),
        "finite": told(-10.0),
    }
    found = ingle.compare(entries)
    assert [row.name for row in found.rows][:2] == ["finite", "zero"]
    assert [row.weight for row in found.rows] == [1.0, 0.0, 0.0, 0.0]
    assert [row.warning for row in found.rows] == [False, True, True, True]
    assert found["zero"].log_z_diff == math.inf
    text = repr(found)
    assert "'finite' alone has a finite evidence" in text
    assert "the evidence of 'zero' is zero: every weight was" in text
    assert "the evidence of 'nan' is nan, so it has no weight" in text
    none = ingle.compare({"nan": entries["nan"], "zero": entries["zero"]})
    assert all(math.isnan(row.weight) for row in none.rows)
    assert "No model has a finite evidence" in repr(none)


def test_what_it_says() -> None:
    apart = ingle.compare({"a": told(-10.0, 0.1), "b": told(-12.5, 0.1)})
    assert apart.sentence == (
        "The data are 12.2 times as probable under 'a' as under 'b', the next: 2.50 ± 0.14 nats, more than 1.96 "
        "standard errors."
    )
    assert "less than 1.96 standard errors" in ingle.compare({"a": told(-10.0, 1.0), "b": told(-12.5, 1.0)}).sentence
    assert "have the same evidence" in ingle.compare({"a": told(-10.0), "b": told(-10.0)}).sentence
    assert "is not known" in ingle.compare({"a": told(-10.0), "b": told(-11.0, math.nan)}).sentence
    assert "is alone" in ingle.compare({"a": told(-10.0)}).sentence
    lines = repr(apart).splitlines()
    assert lines[0] == "2 evidences of the same data, in nats, all equally probable beforehand"
    assert lines[2].split() == [
        *("rank", "log", "Z", "se", "below", "best", "dse", "Bayes", "factor", "weight", "k-hat", "draws", "verdict")
    ]
    assert lines[4].split()[:7] == ["b", "1", "-12.50", "0.1", "2.50", "0.14", "0.0821"]


def test_dataframe() -> None:
    table = ingle.compare({"b": told(-12.0), "a": told(-10.0)}).to_dataframe()
    assert list(table.index) == ["a", "b"]
    assert {"rank", "weight", "se", "dse", "warning", "log_z", "log_z_diff", "khat", "verdict"} <= set(table.columns)
    assert table["rank"].tolist() == [0, 1]
    assert table["warning"].dtype == bool
    assert table.loc["b", "log_z_diff"] == 2.0


def test_other_data_are_refused() -> None:
    ours = by_prior(num_samples=100)
    for other in (Y + 0.01, Y[:2], torch.cat([Y, Y]), -Y):
        with pytest.raises(OptionError, match=r"evidences of different data .*'a' observes y \(3 numbers, mean 0\.53"):
            ingle.compare({"a": ours, "b": by_prior(y=other, num_samples=100)})


def test_the_same_data_in_another_form() -> None:
    """Another name of the site, another precision, or cut into two sites."""

    def cut(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("first", dist.Normal(mu, 1.0), obs=y[0])
        pyro.sample("rest", dist.Normal(mu, 1.0).expand([2]).to_event(1), obs=y[1:])

    def factored(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("likelihood", dist.Normal(mu, 1.0).log_prob(y).sum())

    def masked(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 5):
            hidden = torch.tensor([True, False, True, True, False])
            full = torch.zeros(5).masked_scatter(hidden, y)
            pyro.sample("y", dist.Normal(mu, 1.0).mask(hidden), obs=full)

    several = {
        "float32": by_prior(num_samples=100, dtype=torch.float32),
        "float64": by_prior(num_samples=100, dtype=torch.float64),
        "name": by_prior(rows, num_samples=100),
        "cut": by_prior(cut, num_samples=100),
        "masked": by_prior(masked, num_samples=100),
    }
    assert len(ingle.compare(several).rows) == 5
    unknown = ingle.compare({"mean": several["cut"], "factor": by_prior(factored, num_samples=100)})
    assert "what 'factor' observed is not known, as where pyro.factor holds the likelihood" in repr(unknown)


@pytest.mark.parametrize(
    ("entries", "prior", "message"),
    [
        ({}, None, "there is nothing to compare"),
        ([BASE], None, "compare takes a mapping from names to evidences or fits, got list"),
        ({1: BASE}, None, "names of models must be strings, got 1"),
        ({"a": -10.0}, None, "'a' must be an Evidence, as ingle.log_evidence gives it, or a Fit, got float"),
        ({"a": BASE}, {"b": 1.0}, "prior names 'b'; the models are 'a'"),
        ({"a": BASE, "b": BASE}, {"b": 1.0}, "prior lacks 'a'; the models are 'a', 'b'"),
        ({"a": BASE}, {"a": -1.0}, r"prior\['a'\] must be a number of 0 or more, got -1.0"),
        ({"a": BASE}, {"a": math.nan}, r"prior\['a'\] must be a number of 0 or more, got nan"),
        ({"a": BASE}, {"a": True}, r"prior\['a'\] must be a number"),
        ({"a": BASE, "b": BASE}, {"a": 0, "b": 0.0}, "prior is zero for every model"),
        ({"a": BASE}, [1.0], "prior must be a mapping from names of models to weights"),
    ],
)
def test_bad_input(entries: Any, prior: Any, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        ingle.compare(entries, prior=prior)


def test_picture(tmp_path: Path) -> None:
    figure = pytest.importorskip("matplotlib.figure")
    found = ingle.compare({"a": told(-10.0), "b": told(-12.0, verdict="unreliable"), "c": told(-math.inf, math.nan)})
    ax = found.plot(path=tmp_path / "evidence.png")
    assert (tmp_path / "evidence.png").stat().st_size > 1_000
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    points = [line for line in ax.lines if line.get_marker() == "o"]
    assert [line.get_xdata()[0] for line in points] == [0.0, -2.0]
    assert [line.get_markerfacecolor() for line in points] == ["C0", "white"]
    own = figure.Figure().add_subplot()
    assert found.plot(own) is own


def test_picture_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="the picture needs matplotlib, which is not here: pip install matplotlib"):
        ingle.compare({"a": told(-10.0)}).plot()
