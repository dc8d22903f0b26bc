"""What `Fit.verdict` says of fits that are right, and of fits that are wrong in a known way."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from support import global_state
from torch import Tensor

import ingle

Y = torch.tensor([0.3, -0.4, 1.1, 0.8])
SD = (1.0 + len(Y)) ** -0.5  # of the posterior of a normal mean under a standard normal prior
MEAN = float(Y.sum()) * SD**2
STILL = functools.partial(torch.optim.SGD, lr=1e-9)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def normal(mean: float, sd: float) -> Callable[[Tensor], None]:
    """A guide that stays where it is put."""

    def guide(y: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(mean))
        pyro.sample("mu", dist.Normal(loc, sd))

    return guide


def kept(of: Any, guide: Any, data: Any = Y, **options: Any) -> ingle.Fit:
    """A fit that does not move."""
    return ingle.fit(of, guide, data, **{"optim": STILL, "steps": 100, "compile": "off", **options})


def test_exact_guide_is_ok() -> None:
    verdict = kept(model, normal(MEAN, SD)).verdict
    assert (verdict.status, verdict.advice) == ("ok", ())
    assert verdict.comparison == "weights"
    assert verdict.elbo == pytest.approx(float(_log_z()), abs=1e-4)
    assert verdict.shift_mean is not None
    assert verdict.shift_sd is not None
    assert abs(verdict.shift_mean.value) < 1e-3
    assert abs(verdict.shift_sd.value - 1.0) < 1e-3
    assert verdict.share == 1.0
    assert (verdict.paths, verdict.modes) == (10, ())
    assert verdict.snr < 0.5


@pytest.mark.parametrize(
    ("shift", "ratio", "status", "said"),
    [
        (0.0, 1 / 3, "failed", "the sd of 'mu' is 6[5-8] ± [0-9]+% too small"),
        (0.0, 0.6, "doubtful", "the sd of 'mu' is 4[0-9.]* ± [0-9]+% too small|3[5-9] ± [0-9]+% too small"),
        (0.0, 3.0, "failed", "the sd of 'mu' is [23]\\.[0-9] ± 0.[0-9] times the posterior's"),
        (0.5, 1.0, "doubtful", "the mean of 'mu' is 0.[45][0-9] ± 0.[0-9]+ sd too high"),
        (-1.5, 1.0, "failed", "the mean of 'mu' is 1.[3-7][0-9] ± 0.[0-9]+ sd too low"),
        (0.15, 1.0, "ok", ""),
        (0.0, 0.85, "ok", ""),
        (0.0, 1.2, "ok", ""),
    ],
)
def test_shifts_are_told_in_posterior_sds(shift: float, ratio: float, status: str, said: str) -> None:
    verdict = kept(model, normal(MEAN + shift * SD, ratio * SD)).verdict
    assert verdict.status == status
    told = "; ".join(verdict.reasons)
    assert re.search(said, told), told
    table = verdict.to_dataframe()
    assert table.index.tolist() == ["mu"]
    row = table.loc["mu"]
    assert abs(row["shift"] - shift) < 4 * row["shift_se"] + 0.1 * abs(shift) + 1e-3
    assert abs(row["ratio"] - ratio) < 4 * row["ratio_se"] + 0.05 * ratio
    assert bool(verdict.advice) is (status != "ok")


def test_a_fit_that_was_cut_short_is_told_to_go_on() -> None:
    fit = ingle.fit(model, normal(MEAN + 40.0, SD), Y, optim=functools.partial(torch.optim.SGD, lr=1e-3), steps=400)
    verdict = fit.verdict
    assert verdict.status == "failed"
    assert "the ELBO still rose by" in "".join(verdict.reasons)
    assert "fit.resume()" in verdict.advice[0]
    assert verdict.rhat > 1.5
    assert "too few to tell" in "".join(ingle.fit(model, "normal", Y, steps=3).verdict.reasons)


def test_mean_field_of_a_correlated_pair_asks_for_correlations() -> None:
    """With a correlation r of 0.95 the sds of the best mean field are sqrt(1 - r^2) = 0.31 of the pair's."""
    r = 0.95

    def pair() -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        pyro.sample("b", dist.Normal(r * a, (1 - r**2) ** 0.5))

    def product() -> None:
        loc = pyro.param("loc", torch.zeros(2))
        for place, name in enumerate("ab"):
            pyro.sample(name, dist.Normal(loc[place], (1 - r**2) ** 0.5))

    verdict = kept(pair, product, ()).verdict
    assert verdict.status == "failed"
    assert verdict.comparison == "chains"
    assert "multivariate_normal" in verdict.advice[-1]
    assert verdict.shift_sd is not None
    assert verdict.shift_sd.value == pytest.approx((1 - r**2) ** 0.5, abs=0.05)


def mirrored(y: Tensor, *, tilt: float = 0.0) -> None:
    mu = pyro.sample("mu", dist.Normal(tilt, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(mu.abs(), 0.1), obs=y)


def tilted(y: Tensor) -> None:
    mirrored(y, tilt=0.4)


def test_a_missed_mode_is_told_and_a_mirror_image_is_not() -> None:
    """The data tell the square; other data tell the two signs apart, or the prior does, or nothing."""

    def told_apart(x: Tensor, y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(mu**2, 0.1), obs=y)
        pyro.sample("z", dist.Normal(mu * x, 2.0), obs=torch.tensor(0.3))

    missed = kept(told_apart, _at(1.0, 0.05), (torch.tensor(1.0), torch.tensor(1.0))).verdict
    assert missed.status == "failed"
    assert missed.modes
    assert 0.25 < missed.modes[0].share < 0.75
    assert float(missed.modes[0].where["mu"]) == pytest.approx(-1.0, abs=0.05)
    assert "a mode is missed" in "".join(missed.reasons)
    leaning = kept(tilted, _at(1.0, 0.05), torch.full((4,), 1.0)).verdict
    assert leaning.status == "failed"
    assert leaning.modes[0].share == pytest.approx(1 / (1 + math.exp(2 * 0.4)), abs=0.03)
    same = kept(mirrored, _at(1.0, 0.05), torch.full((4,), 1.0)).verdict
    assert (same.status, same.modes, same.paths) == ("ok", (), 10)


def _at(mean: float, sd: float) -> Callable[..., None]:
    def guide(*_: Tensor) -> None:
        loc = pyro.param("loc", torch.tensor(mean))
        pyro.sample("mu", dist.Normal(loc, sd))

    return guide


@pytest.mark.parametrize("off", [0.02, 0.3])
def test_rows_are_judged_by_their_share(off: float) -> None:
    """Of 200 rows with latents of their own a share has a mean 0.8 sd off; one in twenty may."""
    y = torch.linspace(-2.0, 2.0, 200)

    def local(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def encoder(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(0.5))
        away = 0.8 * 0.5**0.5 * (torch.arange(len(y)) < off * len(y))
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(slope * y + away, 0.5**0.5))

    verdict = kept(local, encoder, y).verdict
    assert verdict.per == "row"
    assert verdict.share == pytest.approx(1 - off, abs=0.03)
    assert (verdict.status == "ok") is (off < 0.05)
    if off > 0.05:
        assert "of the rows are off" in verdict.reasons[0]


def test_minibatches_are_judged_by_all_rows() -> None:
    y = torch.linspace(-1.0, 2.0, 40)

    def batched(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    sd = 41.0**-0.5
    exact = normal(float(y.sum()) * sd**2, sd)
    assert kept(batched, exact, y, batch_size={"row": 5}).verdict.status == "ok"


def test_enumerated_and_discrete_latents() -> None:
    """A latent that is summed out needs no guide; one that the guide draws is compared by weights."""

    def coin(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)

    def guess(y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.3))))

    y = torch.tensor(0.8)  # the log odds are y - 0.5 = 0.3
    verdict = kept(coin, guess, y).verdict
    assert (verdict.status, verdict.comparison) == ("ok", "weights")

    def wrong(y: Tensor) -> None:
        pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(3.0))))

    assert kept(coin, wrong, y).verdict.status != "ok"

    def mixed(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + 0.0 * k, 1.0), obs=y)

    assert kept(mixed, normal(MEAN, SD)).verdict.status == "ok"


def test_point_masses_claim_no_uncertainty() -> None:
    verdict = ingle.fit(model, "delta", Y, steps=200).verdict
    assert verdict.status == "doubtful"
    assert "a point mass claims no uncertainty of mu" in verdict.reasons[0]
    assert 'fit "normal"' in verdict.advice[0]


def test_a_model_that_has_no_density_at_the_draws() -> None:
    """A factor that rules out what lies 1.3 sds below the mean: 9.7% of the draws, 400 of them, within 5 errors."""

    def ruled_out(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        pyro.factor("cut", torch.where(mu > MEAN - 1.3 * SD, 0.0, -float("inf")))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    verdict = kept(ruled_out, normal(MEAN, SD), steps=1).verdict
    assert verdict.status != "ok"
    told = re.search(r"no density at (\d+)% of the guide's draws", "".join(verdict.reasons))
    assert told is not None
    assert abs(int(told[1]) - 9.7) < 5 * 1.5
    assert "ingle.check" in "".join(verdict.advice)


def test_draws_that_rounding_clamps_are_told() -> None:
    """A share of 1 - exp(-20) is the largest number below 1 that float32 has, for most draws."""
    sigmoid = [torch.distributions.transforms.SigmoidTransform()]

    def high() -> None:
        pyro.sample("x", dist.TransformedDistribution(dist.Normal(20.0, 3.0), sigmoid))

    def guide() -> None:
        loc = pyro.param("loc", torch.tensor(20.0))
        pyro.sample("x", dist.TransformedDistribution(dist.Normal(loc, 3.0), sigmoid))

    verdict = kept(high, guide, ()).verdict
    assert verdict.status == "doubtful"
    assert "clamped or rounded to 1" in "".join(verdict.reasons)
    assert "float64" in "".join(verdict.advice)


def test_a_program_that_raises_in_the_look_is_doubtful() -> None:
    tired = False

    def tires(y: Tensor) -> None:
        model(y)
        if tired:
            raise KeyError("tired")

    fit = kept(tires, normal(MEAN, SD))
    tired = True
    verdict = fit.verdict
    assert verdict.status == "doubtful"
    assert "not looked at: means and sds" in "".join(verdict.reasons)


def test_it_moves_nothing_and_is_the_same_twice() -> None:
    one, two = (ingle.fit(model, "normal", Y, steps=300, seed=3) for _ in range(2))
    before = one.params, one.draws(5)["mu"], one.losses.copy()
    outside = global_state()
    first = one.verdict
    assert global_state() == outside
    assert one.params == before[0]
    assert one.draws(5)["mu"].equal(before[1])
    np.testing.assert_array_equal(one.losses, before[2])
    assert first == two.verdict
    assert first is one.verdict
    more, other = one.resume(20), two.resume(20)
    np.testing.assert_array_equal(more.losses, other.losses)


def test_cards_are_short_and_say_it_first() -> None:
    fit = kept(model, normal(MEAN, SD / 3))
    card, verdict = repr(fit).splitlines(), repr(fit.verdict).splitlines()
    assert len(card) <= 15
    assert len(verdict) <= 15
    assert verdict[0] == "Verdict: failed"
    assert any(line.startswith("  verdict     failed: the sd of 'mu'") for line in card)
    for name in ("means", "sds", "ELBO", "k-hat", "modes", "settled"):
        assert sum(line.startswith(f"  {name} ") for line in verdict) == 1


def test_files_and_arviz_carry_it(tmp_path: Path) -> None:
    fit = kept(model, normal(MEAN, SD / 3))
    verdict = fit.verdict
    fit.save(tmp_path / "fit")
    again = ingle.load(tmp_path / "fit", model, normal(MEAN, SD / 3), Y)
    assert again.verdict == verdict
    assert again.verdict.to_dataframe().equals(verdict.to_dataframe())
    told = fit.to_arviz(10, groups=["posterior"]).posterior.attrs
    assert told["verdict"] == "failed"
    assert told["verdict_reasons"] == "; ".join(verdict.reasons)
    assert told["verdict_shift_sd"] == verdict.shift_sd.value  # type: ignore[union-attr]


def test_a_fit_that_was_gone_on_with_has_none_of_its_own(tmp_path: Path) -> None:
    first = kept(model, normal(MEAN, SD))
    first.resume(10)
    assert "not of this fit any more" in repr(first)
    with pytest.warns(ingle.IngleWarning, match="gone on with"):
        assert "verdict" not in first.to_arviz(3, groups=["posterior"]).posterior.attrs


def test_a_broken_fit_says_so() -> None:
    steps = iter(range(10**6))

    def broken(y: Tensor) -> None:
        if next(steps) == 60:
            raise KeyboardInterrupt
        normal(MEAN, SD)(y)

    verdict = kept(model, broken).verdict
    assert verdict.status == "doubtful"
    assert "the fit was interrupted before its end" in verdict.reasons


def _log_z() -> Tensor:
    """Of the four data together: normal with covariance 1 + I."""
    covariance = torch.eye(len(Y)) + 1.0
    return dist.MultivariateNormal(torch.zeros(len(Y)), covariance).log_prob(Y)
