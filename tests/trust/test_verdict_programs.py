"""Verdicts on programs of every kind: minibatches, discrete latents, label switching, no data, broken densities."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import Tensor

import ingle

Y = torch.tensor([0.3, -0.4, 1.1, 0.8])
SD = (1.0 + len(Y)) ** -0.5  # of the posterior of a normal mean under a standard normal prior
MEAN = float(Y.sum()) * SD**2
STILL = functools.partial(torch.optim.SGD, lr=1e-9)
COLUMNS = ["guide_mean", "guide_sd", "mean", "sd", "shift", "shift_se", "ratio", "ratio_se", "by"]


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal(mean: float = MEAN, sd: float = SD, *, pathwise: bool = True) -> Callable[..., None]:
    """A guide that stays where it is put."""

    def guide(*_: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(mean))
        pyro.sample("mu", dist.Normal(loc, sd).has_rsample_(pathwise))

    return guide


def kept(of: Any, guide: Any, data: Any = Y, **options: Any) -> ingle.Fit:
    """A fit that does not move."""
    return ingle.fit(of, guide, data, **{"optim": STILL, "steps": 60, "compile": "off", **options})


def local(y: Tensor) -> None:
    with pyro.plate("row", len(y)) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def encoder(narrow: float) -> Callable[[Tensor], None]:
    """Exact but for its scale."""

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        with pyro.plate("row", len(y)) as i:
            pyro.sample("z", dist.Normal(slope * y[i], narrow * 0.5**0.5))

    return guide


@pytest.mark.parametrize(("narrow", "status"), [(1.0, "ok"), (1 / 3, "failed")])
def test_local_latents_in_minibatches_are_judged_in_all_rows(narrow: float, status: str) -> None:
    verdict = kept(local, encoder(narrow), torch.linspace(-2.0, 2.0, 60), batch_size={"row": 10}).verdict
    assert (verdict.status, verdict.per) == (status, "row")
    assert verdict.share == (1.0 if status == "ok" else 0.0)
    assert len(verdict.to_dataframe()) == 60
    assert "latents are of single rows" in "".join(verdict.not_looked)


@pytest.mark.parametrize(("narrow", "status"), [(1.0, "ok"), (1 / 3, "failed")])
def test_few_rows_are_judged_one_by_one(narrow: float, status: str) -> None:
    """Below forty rows no share of them may be off."""
    verdict = kept(local, encoder(narrow), torch.linspace(-2.0, 2.0, 10)).verdict
    assert (verdict.status, verdict.per) == (status, "row")
    assert not any("of the rows are off" in reason for reason in verdict.reasons)


def test_guides_without_a_pathwise_gradient() -> None:
    verdict = kept(model, normal(pathwise=False)).verdict
    assert (verdict.status, verdict.comparison) == ("ok", "weights")
    assert verdict.modes == ()


def coins(x: Tensor, y: Tensor) -> None:
    """Two parts that have nothing to do with each other, so that each is exact by itself."""
    k = pyro.sample("k", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(k, 1.0), obs=x)
    model(y)


def coins_guide(logit: float) -> Callable[..., None]:
    def guide(x: Tensor, y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(logit))))
        normal()()

    return guide


def test_discrete_latents_that_the_guide_draws_beside_others() -> None:
    """The log odds of k are x - 0.5; with those of 3 its mean is off by the share of 0.95 less that of 0.57."""
    data = (torch.tensor(0.8), Y)
    right, wrong = (kept(coins, coins_guide(logit), data).verdict for logit in (0.3, 3.0))
    assert (right.status, right.comparison) == ("ok", "weights")
    assert any("discrete" in what for what in right.not_looked)
    assert wrong.status != "ok"
    assert wrong.shift_mean is not None
    share, guided = 1 / (1 + math.exp(-0.3)), 1 / (1 + math.exp(-3.0))
    expected = (guided - share) / math.sqrt(share * (1 - share))
    assert wrong.shift_mean.name == "k"
    assert abs(wrong.shift_mean.value - expected) < 5 * wrong.shift_mean.se
    assert "the mean of 'k' is" in "".join(wrong.reasons)


def parted(y: Tensor) -> None:
    """Components ten sds apart, whose rows are known, so that their common mean has a normal posterior."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        upper = pyro.sample("upper", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mu + 10 * upper, 1.0), obs=y)


@pytest.mark.parametrize(("ratio", "status"), [(1.0, "ok"), (1 / 3, "failed")])
def test_latents_that_are_summed_out_are_not_compared(ratio: float, status: str) -> None:
    verdict = kept(parted, normal(sd=ratio * SD), Y + torch.tensor([0.0, 10.0, 0.0, 10.0])).verdict
    assert verdict.status == status
    assert verdict.to_dataframe().index.tolist() == ["mu"]


def switched(y: Tensor) -> None:
    locs = pyro.sample("locs", dist.Normal(0.0, 5.0).expand([2]).to_event(1))
    with pyro.plate("row", len(y)):
        k = pyro.sample("k", dist.Categorical(torch.ones(2)))
        pyro.sample("y", dist.Normal(locs[k], 0.5), obs=y)


def test_permuted_labels_are_no_missed_mode() -> None:
    y = torch.cat([torch.linspace(-3.0, -2.0, 8), torch.linspace(2.0, 3.0, 8)])
    precision = 8 / 0.25 + 1 / 25

    def guide(y: Tensor) -> None:
        at = pyro.param("at", torch.tensor([-2.5, 2.5]) * 8 / 0.25 / precision)
        pyro.sample("locs", dist.Normal(at, precision**-0.5).to_event(1))

    verdict = kept(switched, guide, y).verdict
    assert (verdict.status, verdict.modes, verdict.paths) == ("ok", (), 10)


def test_a_model_without_data() -> None:
    """Its prior is its posterior."""

    def prior() -> None:
        pyro.sample("mu", dist.Normal(2.0, 3.0))

    right, wrong = (kept(prior, normal(2.0, sd), ()).verdict for sd in (3.0, 1.0))
    assert right.status == "ok"
    assert right.elbo == pytest.approx(0.0, abs=1e-5)
    assert wrong.status == "failed"
    assert wrong.shift_sd is not None
    assert wrong.shift_sd.value == pytest.approx(1 / 3, abs=0.05)


def test_mean_field_by_name_is_told_which_guide_to_take() -> None:
    def pair(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        pyro.sample("y", dist.Normal(z.sum(), 0.1), obs=y)

    narrow, full = (
        ingle.fit(pair, guide, torch.tensor(1.0), steps=150, compile="off").verdict
        for guide in ("normal", "multivariate_normal")
    )
    assert narrow.status == "failed"
    assert narrow.advice[0].startswith('fit "multivariate_normal"')
    assert "too small (2 of 2 are off)" in "".join(narrow.reasons)
    assert full.status == "ok"


@pytest.mark.parametrize(("share", "status"), [(0.1, "doubtful"), (1.0, "failed")])
@pytest.mark.parametrize("value", [-math.inf, math.nan])
def test_densities_that_break_after_the_fit(value: float, share: float, status: str) -> None:
    """At the guide's highest draws, 1.28 sds above its mean, or at all of them."""
    broken = False
    limit = MEAN + 1.2816 * SD if share < 1 else -math.inf

    def breaks(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        if broken:
            pyro.factor("cut", torch.where(mu > limit, value, 0.0))

    fit = kept(breaks, normal())
    broken = True
    verdict = fit.verdict
    if math.isnan(value):  # which Pyro's own validation does not let through
        assert verdict.status == "doubtful"
        assert "not looked at: means and sds: ProgramError" in verdict.reasons[0]
    else:
        assert verdict.status == status
        assert "no density at" in "".join(verdict.reasons)


def test_a_fit_that_broke_says_so() -> None:
    """The scale goes below zero."""

    def falls(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(10.05))
        pyro.factor("push", -1e6 * scale)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu, scale).expand([4]).to_event(1), obs=y)

    with pytest.raises(ingle.NonFiniteError) as caught:
        ingle.fit(falls, normal(), Y, optim=functools.partial(torch.optim.Adam, lr=0.1), steps=200, compile="off")
    fit = caught.value.fit
    assert fit is not None
    assert fit.verdict.status != "ok"
    assert "the fit broke before its end" in fit.verdict.reasons
    assert "verdict     " in repr(fit)


def test_tables_have_the_same_columns_with_and_without_a_comparison() -> None:
    compared, point = kept(model, normal()).verdict, ingle.fit(model, "delta", Y, steps=5, compile="off").verdict
    for verdict, index in ((compared, ["mu"]), (point, [])):
        table = verdict.to_dataframe()
        assert table.columns.tolist() == COLUMNS
        assert (table.index.tolist(), table.index.name) == (index, "latent")
    row = compared.to_dataframe().loc["mu"]
    assert (row["by"], row["shift"], row["ratio"]) == (
        "weights",
        pytest.approx(0, abs=1e-3),
        pytest.approx(1, rel=1e-3),
    )


def test_a_verdict_that_was_asked_for_stays_with_its_fit() -> None:
    """What goes on has one of its own."""
    first = kept(model, normal(sd=SD / 3))
    before = first.verdict
    more = first.resume(10)
    assert first.verdict is before
    assert "verdict     failed" in repr(first)
    assert more.verdict is not before
    assert more.verdict.status == "failed"


def test_a_file_without_a_verdict_gives_the_same_one(tmp_path: Path) -> None:
    guide = normal(sd=0.6 * SD)
    fit = kept(model, guide)
    fit.save(tmp_path / "fit")
    loaded = ingle.load(tmp_path / "fit", model, guide, Y)
    assert loaded.verdict.status == fit.verdict.status
    assert loaded.verdict.reasons == fit.verdict.reasons
    assert loaded.verdict.to_dataframe().equals(fit.verdict.to_dataframe())


def test_summaries_do_not_ask_for_it() -> None:
    fit = kept(model, normal())
    assert fit.summary(50).index.tolist() == ["mu"]
    assert "verdict" not in fit._kept
    attributes = fit.to_arviz(10).posterior.attrs
    assert attributes["verdict"] == "ok"
    assert attributes["verdict_worst_mean"] == "mu"
    assert all(isinstance(value, (str, int, float)) for value in attributes.values())


def test_cards_of_many_latents_and_notes_are_short() -> None:
    """Minibatches add a line, and latents off in number and name."""

    def many(y: Tensor) -> None:
        total = sum(pyro.sample(f"a_latent_with_a_long_name_{k}", dist.Normal(0.0, 1.0)) for k in range(12))
        with pyro.plate("row", len(y)) as i:
            pyro.sample("y", dist.Normal(total, 1.0), obs=y[i])

    def guide(y: Tensor) -> None:
        scale = pyro.param("scale", torch.tensor(0.2), constraint=constraints.positive)
        for k in range(12):
            pyro.sample(f"a_latent_with_a_long_name_{k}", dist.Normal(0.0, scale))

    fit = kept(many, guide, batch_size={"row": 2})
    assert fit.verdict.status == "failed"
    for card in (repr(fit), repr(fit.verdict)):
        lines = card.splitlines()
        assert len(lines) <= 15
        assert sum("Verdict: failed" in line or line.startswith("  verdict     failed") for line in lines) == 1
        assert sum(line.startswith("  sds ") for line in lines) == 1


@pytest.mark.parametrize(("tilt", "told"), [(0.0, False), (0.2, True), (-0.2, True)])
def test_a_sign_that_the_prior_knows_is_a_missed_mode(tilt: float, told: bool) -> None:
    """The data tell the square alone, and predict it alike at both signs; without a tilt these are mirror images."""

    def square(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(tilt, 2.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu**2, 1.0), obs=y)

    verdict = kept(square, normal(2.0, 0.1), torch.full((6,), 4.0)).verdict
    assert bool(verdict.modes) is told
    assert (verdict.status, verdict.paths) == ("failed" if told else "ok", 10)
    if told:
        assert verdict.modes[0].share == pytest.approx(1 / (1 + math.exp(tilt)), abs=0.03)
        assert float(verdict.modes[0].where["mu"]) == pytest.approx(-2.0, abs=0.1)
        assert re.search("a mode is missed, with about [0-9]+% of the posterior \\('mu' near -", verdict.reasons[0])


def test_rows_that_the_plate_draws_by_itself_are_not_called_ok() -> None:
    """No latent is seen whole, which is not the same as a guide that draws nothing."""

    def own(y: Tensor) -> None:
        with pyro.plate("row", len(y), subsample_size=2) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])

    def wrong(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(-3.0))
        with pyro.plate("row", len(y), subsample_size=2):
            pyro.sample("z", dist.Normal(loc, 0.02))

    verdict = kept(own, wrong).verdict
    assert verdict.status == "doubtful"
    assert "plate row draws rows by itself" in verdict.reasons[0]


@pytest.mark.parametrize("side", ["model", "guide", "both"])
def test_latents_under_a_scale_are_not_compared(side: str) -> None:
    scaled = pyro.poutine.scale(scale=0.1)
    of, guide = (
        scaled(each) if side in (name, "both") else each for name, each in (("model", model), ("guide", normal()))
    )
    verdict = kept(of, guide).verdict
    assert verdict.status == "doubtful"
    assert "poutine.scale around 'mu'" in verdict.reasons[0]
    assert "leave poutine.scale out" in verdict.advice[0]


def test_data_that_the_user_has_scaled_stand_for_more_rows() -> None:
    """Half of the rows with twice the weight: the posterior is that of all, and the guide is right."""

    def half(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)), pyro.poutine.scale(scale=2.0):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    sd = (1 + 2 * len(Y)) ** -0.5
    assert kept(half, normal(2 * float(Y.sum()) * sd**2, sd)).verdict.status == "ok"


def test_after_a_few_steps_the_reason_is_that() -> None:
    verdict = kept(model, normal(), steps=3).verdict
    assert verdict.status == "doubtful"
    assert verdict.reasons == ("3 steps are too few to tell whether the fit has settled",)
    assert verdict.comparison == "none"


def test_chains_that_cannot_run_are_told_with_why() -> None:
    def counted(y: Tensor) -> None:
        k = pyro.sample("k", dist.Poisson(3.0))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(k, 0.05), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("k", dist.Poisson(pyro.param("rate", torch.tensor(9.0))))

    verdict = kept(counted, guide, torch.full((4,), 3.0)).verdict
    assert verdict.status == "doubtful"
    assert "chains could not be run: k cannot be moved, being discrete" in "".join(verdict.reasons)


def test_rows_are_counted_by_row() -> None:
    """One number of three is off in every row of eight, so that no row is as it should be."""

    def several(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("y", dist.Normal(z[:, 0], 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        loc = torch.stack([slope * y, torch.zeros_like(y), torch.zeros_like(y) + 0.8], -1)
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(loc, torch.tensor([0.5**0.5, 1.0, 1.0])).to_event(1))

    verdict = kept(several, guide, torch.linspace(-1.0, 1.0, 8)).verdict
    assert verdict.status != "ok"
    assert verdict.share == 0.0
    assert "larger encoder" in "".join(verdict.advice)
