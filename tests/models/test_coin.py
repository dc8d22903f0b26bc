"""The coin against its closed forms: posterior, prediction, evidence."""

from __future__ import annotations

import functools
import math
from typing import Any

import pyro
import pytest
import torch
from pyro.distributions import constraints
from scipy import stats
from scipy.special import betaln

import ingle
from ingle.guides.coin import CoinGuide
from ingle.models.coin import Coin

HEADS, TAILS = 37, 83
X = torch.cat([torch.ones(HEADS), torch.zeros(TAILS)])[torch.randperm(120, generator=torch.Generator().manual_seed(1))]
COIN = Coin(2.0, 3.0)
QUICK: dict[str, Any] = {
    "objective": ingle.objectives.STL_ELBO(),  # without noise once the guide is the posterior
    "optim": functools.partial(torch.optim.Adam, lr=0.05),
    "steps": 350,
    "compile": "off",
}


def test_closed_forms_are_those_of_scipy() -> None:
    exact, known = COIN.posterior(X), stats.beta(2 + HEADS, 3 + TAILS)
    assert float(exact.mean) == pytest.approx(known.mean(), rel=1e-12)
    assert float(exact.stddev) == pytest.approx(known.std(), rel=1e-12)
    assert COIN.predictive(X) == pytest.approx(known.mean(), rel=1e-12)
    assert COIN.log_evidence(X) == pytest.approx(betaln(2 + HEADS, 3 + TAILS) - betaln(2, 3), rel=1e-12)


def test_evidence_is_the_product_of_predictions() -> None:
    """P(x_1) P(x_2 | x_1) …, the chain rule: two methods that must agree on tosses in any order."""
    chance = [COIN.predictive(X[:i]) for i in range(len(X))]
    chain = sum(math.log(p if x else 1 - p) for p, x in zip(chance, X.tolist(), strict=True))
    assert COIN.log_evidence(X) == pytest.approx(chain, rel=1e-12)


@pytest.mark.parametrize(("coin", "x"), [(COIN, X), (Coin(), X[:3])])
def test_fit_finds_the_posterior(coin: Coin, x: torch.Tensor, where: dict[str, Any]) -> None:
    fit = ingle.fit(coin, CoinGuide(coin), x, **QUICK, **where)
    exact, found = coin.posterior(x), fit.draws(20_000)["p"].double().cpu()
    assert abs(float((found.mean() - exact.mean) / exact.stddev)) < 0.15
    assert float(found.std() / exact.stddev) == pytest.approx(1.0, abs=0.1)

    evidence = fit.log_evidence(10_000)
    assert evidence.verdict in ("reliable", "exact")
    assert abs(evidence.log_z - coin.log_evidence(x)) < 5 * evidence.se + 1e-4


def test_posterior_that_touches_one_asks_for_float64(where: dict[str, Any]) -> None:
    """Five heads under a prior of half a tail: in float32 some draws are 1 itself, where the density is infinite."""
    coin, x = Coin(0.5, 0.5), torch.ones(5)
    fit = ingle.fit(coin, CoinGuide(coin), x, **QUICK, **where | {"dtype": torch.float64})
    exact, found = coin.posterior(x), fit.draws(20_000)["p"].cpu()
    assert abs(float((found.mean() - exact.mean) / exact.stddev)) < 0.15
    assert abs(fit.log_evidence(10_000).log_z - coin.log_evidence(x)) < 0.01


def test_new_tosses_are_predicted(where: dict[str, Any]) -> None:
    """Mean within 0.15 sd of p and four Monte Carlo errors; tosses of one draw share its p, so they correlate."""
    fit = ingle.fit(COIN, CoinGuide(COIN), X, **QUICK, **where)
    drawn = fit.predict({"tosses": 50}, 4_000, new=("toss",))["x"].double()
    assert drawn.shape == (4_000, 50)
    exact, chance = COIN.posterior(X), COIN.predictive(X)
    share = drawn.mean(1)
    variance = float(exact.variance) + (chance * (1 - chance) - float(exact.variance)) / 50
    noise = math.sqrt(variance / 4_000)
    assert abs(float(share.mean()) - chance) < 4 * noise + 0.15 * float(exact.stddev)
    assert float(share.var()) == pytest.approx(variance, rel=0.2)


def test_evidence_is_exact_at_the_posterior(where: dict[str, Any]) -> None:
    where["dtype"] = torch.float64
    total = 5.0 + len(X)
    pyro.param("p_share", torch.tensor((2 + HEADS) / total, dtype=torch.float64), constraint=constraints.unit_interval)
    pyro.param("p_total", torch.tensor(total, dtype=torch.float64), constraint=constraints.positive)
    evidence = ingle.log_evidence(COIN, CoinGuide(COIN), X.double(), num_samples=500, **where)
    pyro.clear_param_store()
    assert evidence.verdict == "exact"
    assert evidence.log_z == pytest.approx(COIN.log_evidence(X), abs=1e-6)


@pytest.mark.parametrize("kind", [torch.bool, torch.int64, torch.float64])
def test_any_dtype_of_tosses_in_minibatches(kind: torch.dtype, where: dict[str, Any]) -> None:
    fit = ingle.fit(COIN, CoinGuide(COIN), X.to(kind), batch_size={"toss": 30}, steps=350, compile="off", **where)
    exact = COIN.posterior(X.to(kind))
    assert abs(float(fit.draws(5_000)["p"].double().mean().cpu() - exact.mean)) < 0.5 * float(exact.stddev)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"x": torch.tensor([0.0, 1.0, 2.0, -1.0])}, r"2 of 4 are neither: -1, 2"),
        ({"x": torch.tensor([0.0, float("nan")])}, "1 of 2 are neither: nan"),
        ({"x": torch.zeros(5, 1)}, r"shape \(tosses,\), got \(5, 1\)"),
        ({"x": torch.zeros(0)}, "no toss"),
        ({"x": X, "tosses": 7}, "tosses is 7, and x has 120"),
        ({"x": None}, "how many to draw, 1 or more: got None"),
        ({"tosses": -2}, "got -2"),
    ],
)
def test_what_is_no_toss_is_refused(arguments: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        COIN(**arguments)
    with pytest.raises(ValueError, match=words):
        ingle.fit(COIN, CoinGuide(COIN), arguments, steps=1)


@pytest.mark.parametrize(("arguments", "words"), [((0.0, 1.0), "alpha .* got 0.0"), ((1.0, math.inf), "beta .* inf")])
def test_prior_must_be_one(arguments: tuple[float, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Coin(*arguments)
