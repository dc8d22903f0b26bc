"""Labels that a model does not tell apart: the evidence is that of all orders, from a guide that holds one."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.models.mixture import GaussianMixture

X = torch.tensor([-2.1, -1.9, 0.1, -0.1, 2.0, 2.2, 1.8], dtype=torch.float64)
K, SD, SPREAD = 3, 0.3, 1.5


def means(x: Tensor, marked: bool = True) -> None:
    """Means of three clusters of equal weight and known sd; the assignments are summed out."""
    infer: Any = {"exchangeable": -1} if marked else {}
    loc = pyro.sample("loc", dist.Normal(0.0, SPREAD).expand([K]).to_event(1), infer=infer)
    with pyro.plate("point", len(x)):
        labels: Any = {"exchangeable": "value"} if marked else {}
        k = pyro.sample("k", dist.Categorical(logits=torch.zeros(K)), infer=labels)
        pyro.sample("x", dist.Normal(loc[..., k], SD), obs=x)


def one_order(x: Tensor, marked: bool = True) -> None:
    pyro.sample("loc", dist.Normal(torch.tensor([-1.9, 0.0, 1.9]), 0.3).to_event(1))


def exact() -> float:
    """By enumeration of all 3^7 assignments, the means integrated out of each cluster."""
    places = torch.cartesian_prod(*[torch.arange(K)] * len(X))
    total = torch.full((len(places),), -len(X) * math.log(K), dtype=torch.float64)
    for k in range(K):
        inside = (places == k).double()
        n, s, q = inside.sum(1), inside @ X, inside @ X**2
        precision = 1 / SPREAD**2 + n / SD**2
        total += -0.5 * n * math.log(2 * math.pi * SD**2) - 0.5 * torch.log(SPREAD**2 * precision)
        total += -0.5 * (q / SD**2 - (s / SD**2) ** 2 / precision)
    return float(total.logsumexp(0))


def drawn_too(x: Tensor, marked: bool = True) -> None:
    """The guide of one order that draws the assignments, nearly surely right."""
    one_order(x)
    nearest = (X[:, None] - torch.tensor([-1.9, 0.0, 1.9])).abs().argmin(-1)
    with pyro.plate("point", len(x)):
        pyro.sample("k", dist.Categorical(0.97 * torch.eye(K)[nearest] + 0.01))


def test_counts_every_order_of_drawn_assignments() -> None:
    """Each point's label is renamed with the means: within five standard errors of enumeration."""
    evidence = ingle.log_evidence(means, drawn_too, {"x": X}, num_samples=20_000, dtype=torch.float64)
    assert evidence.verdict == "reliable"
    assert evidence.log_z == pytest.approx(exact(), abs=5 * evidence.se)


def test_counts_every_order() -> None:
    """Within five standard errors, and log 3! below without the mark, which nothing else shows."""
    options: Any = {"num_samples": 20_000, "dtype": torch.float64}
    evidence = ingle.log_evidence(means, one_order, {"x": X}, **options)
    assert evidence.verdict == "reliable"
    assert evidence.log_z == pytest.approx(exact(), abs=5 * evidence.se)
    assert "all 6 orders" in repr(evidence)
    bare = ingle.log_evidence(means, one_order, {"x": X, "marked": False}, **options)
    assert bare.verdict == "reliable"
    assert bare.log_z == pytest.approx(exact() - math.log(6), abs=5 * bare.se)


def test_with_a_share_of_the_prior() -> None:
    evidence = ingle.log_evidence(means, one_order, {"x": X}, num_samples=20_000, defensive=0.2, dtype=torch.float64)
    assert evidence.log_z == pytest.approx(exact(), abs=5 * evidence.se)


def test_automatic_guides_too() -> None:
    fit = ingle.fit(means, "multivariate_normal", {"x": X}, steps=300, dtype=torch.float64, compile="off")
    evidence = fit.log_evidence(20_000)
    assert evidence.log_z == pytest.approx(exact(), abs=5 * evidence.se)


def test_the_shipped_mixture_has_the_evidence_of_all_orders() -> None:
    """Against the prior, which knows of no order: within five standard errors of the difference."""
    x = X.float()[:, None]
    model = GaussianMixture(2, spread=1.5)
    fit = ingle.fit(model, GaussianMixtureGuide(model), x, steps=300, compile="off")
    ours = fit.log_evidence(20_000, defensive=0.3)
    naive = fit.log_evidence(400_000, proposal="prior")
    assert ours.log_z == pytest.approx(naive.log_z, abs=5 * math.hypot(ours.se, naive.se))


def test_refuses_marks_that_are_not_so() -> None:
    def told_apart(x: Tensor) -> None:
        infer: Any = {"exchangeable": -1}
        loc = pyro.sample("loc", dist.Normal(torch.tensor([0.0, 1.0]), 1.0).to_event(1), infer=infer)
        pyro.sample("x", dist.Normal(loc.sum(), 1.0), obs=x)

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(torch.zeros(2), 1.0).to_event(1))

    with pytest.raises(ingle.ProgramError, match="'loc' is marked exchangeable, but the log joint"):
        ingle.log_evidence(told_apart, guide, torch.tensor(0.3))


@pytest.mark.parametrize(
    ("dim", "size", "match"),
    [
        (1, 3, "must be a negative dimension of its value, which has shape"),
        (-2, 3, "must be a negative dimension"),
        (-1, 9, "'loc' have 9 exchangeable labels, and 362,880 orders"),
    ],
)
def test_refuses_dimensions_that_are_none(dim: int, size: int, match: str) -> None:
    def model(x: Tensor) -> None:
        infer: Any = {"exchangeable": dim}
        pyro.sample("loc", dist.Normal(torch.zeros(size), 1.0).to_event(1), infer=infer)

    def guide(x: Tensor) -> None:
        pyro.sample("loc", dist.Normal(torch.zeros(size), 1.0).to_event(1))

    with pytest.raises(ingle.IngleError, match=match):
        ingle.log_evidence(model, guide, torch.tensor(0.3))
