"""What a user gets wrong, or a model cannot give: an error or a card that says what is so and what to do."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import autoguide
from torch import Tensor

import ingle

Y = torch.tensor([0.3, -1.2, 0.8, 2.0])


def shared(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def shared_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.4, 0.6))


def local(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def local_guide(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(0.4 * y, 0.9))


def no_guide(y: Tensor) -> None:
    pass


def constant(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=y)


def two_kinds(y: Tensor) -> None:
    with pyro.plate("data", len(y)):
        k = pyro.sample("k", dist.Bernoulli(0.3))
        pyro.sample("y", dist.Normal(k, 1.0), obs=y)


@pytest.mark.parametrize("options", [{}, {"per": "data"}, {"num_samples": 1}, {"proposal": "prior"}], ids=str)
@pytest.mark.parametrize("model", [constant, two_kinds])
def test_nothing_to_draw_is_exact_and_says_so(model: Any, options: Any, where: dict[str, Any]) -> None:
    found = ingle.log_evidence(model, no_guide, Y, **options, **where)
    each = dist.Normal(0.0, 1.0).log_prob(Y.double())
    if model is two_kinds:
        each = torch.logaddexp(math.log(0.7) + each, math.log(0.3) + dist.Normal(1.0, 1.0).log_prob(Y.double()))
    assert found.log_z == pytest.approx(float(each.sum()), abs=1e-5)
    assert (found.verdict, found.se, found.elbo_se) == ("exact", 0.0, 0.0)
    assert found.reason == "nothing was drawn: the model has no latents, or all are given or summed out"
    assert f"{found.log_z:.6f} nats, exactly" in repr(found)
    if "per" in options:
        assert found.pointwise is not None
        torch.testing.assert_close(torch.from_numpy(found.pointwise.log_z), each, rtol=0, atol=1e-6)


def test_all_latents_given_is_exact(where: dict[str, Any]) -> None:
    found = ingle.log_evidence(shared, shared_guide, Y, given={"mu": 0.5}, per="data", **where)
    assert found.verdict == "exact"
    assert found.log_z == pytest.approx(float(dist.Normal(0.5, 1.0).log_prob(Y).sum()), abs=1e-5)


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "per is no plate": ({"per": "rows"}, r"per must name a plate of the model, got 'rows'; its plates: 'data'"),
    "per is a number": ({"per": 3}, "per must name a plate of the model, got 3"),
    "latent outside": (
        {"per": "data"},
        r"'mu' lies outside of plate 'data', so its elements share a latent and have no evidence each of its own. "
        r"Leave per out for the evidence of all data, or fix what they share: given=\{'mu': …\}",
    ),
    "proposal": ({"proposal": "mcmc"}, "proposal must be one of 'guide', 'prior', 'ais', got 'mcmc'"),
    "chunk of none": ({"chunk": 0}, "chunk must be a positive integer, got 0"),
    "chunk by name": ({"chunk": "big"}, "chunk must be a number of draws or 'auto', got 'big'"),
    "chunk of a half": ({"chunk": 1.5}, "chunk must be a positive integer, got 1.5"),
    "defensive above a half": ({"defensive": 0.7}, "defensive must be a share from 0 to 0.5, got 0.7"),
    "defensive below zero": ({"defensive": -0.1}, "defensive must be a share from 0 to 0.5, got -0.1"),
    "defensive is NaN": ({"defensive": math.nan}, "defensive must be a share from 0 to 0.5, got nan"),
    "defensive is true": ({"defensive": True}, "defensive must be a share from 0 to 0.5, got True"),
    "defensive of the prior": ({"defensive": 0.1, "proposal": "prior"}, "defensive mixes the prior into the guide"),
    "no draws": ({"num_samples": 0}, "num_samples must be a positive integer, got 0"),
    "half a draw": ({"num_samples": 0.5}, "num_samples must be a positive integer, got 0.5"),
    "seed": ({"seed": -1}, "seed must be an integer from 0"),
    "given list": ({"given": [0.3]}, r"given must be a mapping from latents to values, got \[0.3\]"),
    "given name": ({"given": {"m": 0.3}}, "given names 'm', which is no latent of the model; there are 'mu'"),
    "given data": ({"given": {"y": Y}}, "given names 'y', which is no latent of the model; there are 'mu'"),
    "given shape": ({"given": {"mu": [0.3]}}, r"given\['mu'\] has shape \(1,\), but latent 'mu' has \(\)"),
    "given a word": ({"given": {"mu": "a"}}, r"given\['mu'\] must be a number, an array or a tensor, got 'a'"),
    "given NaN": ({"given": {"mu": math.nan}}, r"given\['mu'\] holds NaN"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_option_is_refused(name: str) -> None:
    options, words = REFUSED[name]
    with pytest.raises(ingle.OptionError, match=words):
        ingle.log_evidence(shared, shared_guide, Y, **options)


def test_option_is_refused_by_a_fit_too() -> None:
    fit = ingle.fit(shared, "normal", Y, steps=2)
    for name in ("latent outside", "proposal", "defensive above a half", "given shape", "no draws"):
        options, words = REFUSED[name]
        with pytest.raises(ingle.OptionError, match=words):
            fit.log_evidence(**options)


@pytest.mark.parametrize("guide", ["normal", autoguide.AutoNormal, None])
def test_guide_without_parameters_is_refused(guide: Any) -> None:
    words = {
        "normal": r"guide 'normal' has no parameters yet: ingle.fit\(model, guide, data\).log_evidence\(\) fits it",
        autoguide.AutoNormal: "guide AutoNormal has no parameters yet",
        None: "there is no guide to draw from: give one, or proposal='prior'",
    }[guide]
    with pytest.raises(ingle.OptionError, match=words):
        ingle.log_evidence(local, guide, Y)


def neighbours(way: str) -> Any:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)) as i:
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            loc = z + z[(i + int(way)) % len(y)] if way.isdigit() else z - z.mean()
            pyro.sample("y", dist.Normal(loc if way != "outside" else z, 1.0), obs=y)
        if way == "outside":
            pyro.sample("s", dist.Normal(z.sum(), 1.0), obs=torch.tensor(1.0))

    return model


@pytest.mark.parametrize("way", ["1", "2", "3", "mean"])
@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_elements_that_share_latents_through_an_index_are_refused(way: str, proposal: Any) -> None:
    with pytest.raises(ingle.OptionError, match="elements of plate 'data' share latents: the joint of 4 of 4 changes"):
        ingle.log_evidence(neighbours(way), local_guide, Y, per="data", proposal=proposal)
    assert math.isfinite(ingle.log_evidence(neighbours(way), local_guide, Y, num_samples=100).log_z)


@pytest.mark.parametrize("far", [1, 2, 4, 64, 99])
def test_one_neighbour_of_a_hundred_is_seen(far: int) -> None:
    """However far away it lies."""

    def model(y: Tensor) -> None:
        with pyro.plate("data", 100):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + torch.eye(100)[far] * z[0], 1.0), obs=y)

    with pytest.raises(ingle.OptionError, match=r"the joint of 1 of 100 changes when a neighbour is drawn anew"):
        ingle.log_evidence(model, local_guide, torch.zeros(100), per="data")


def test_elements_that_are_summed_outside_of_the_plate_are_refused() -> None:
    words = "what the model says outside of plate 'data' depends on latents inside"
    with pytest.raises(ingle.OptionError, match=words):
        ingle.log_evidence(neighbours("outside"), local_guide, Y, per="data")


def test_summed_out_latent_outside_of_the_plate_cannot_be_given() -> None:
    def model(y: Tensor) -> None:
        k = pyro.sample("k", dist.Bernoulli(0.5))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + k, 1.0), obs=y)

    with pytest.raises(ingle.OptionError, match=r"'k' lies outside of plate 'data'.*evidence of all data$"):
        ingle.log_evidence(model, local_guide, Y, per="data")
    with pytest.raises(ingle.OptionError, match="given names 'k', which is summed out and so cannot be held"):
        ingle.log_evidence(model, local_guide, Y, given={"k": 1.0})


def test_plate_that_is_looped_over_is_refused() -> None:
    def model(y: Tensor) -> None:
        for i in pyro.plate("data", len(y)):
            z = pyro.sample(f"z{i}", dist.Normal(0.0, 1.0))
            pyro.sample(f"y{i}", dist.Normal(z, 1.0), obs=y[i])

    def guide(y: Tensor) -> None:
        for i in pyro.plate("data", len(y)):
            pyro.sample(f"z{i}", dist.Normal(0.5 * y[i], 0.7))

    with pytest.raises(ingle.OptionError, match=r"the model loops over that plate; write `with pyro\.plate"):
        ingle.log_evidence(model, guide, Y, per="data")
    found = ingle.log_evidence(model, guide, Y)
    assert abs(found.log_z - float(dist.Normal(0.0, math.sqrt(2.0)).log_prob(Y).sum())) < 4 * found.se


@pytest.mark.parametrize("proposal", ["guide", "prior"])
def test_plate_that_draws_rows_by_itself_is_refused(proposal: Any) -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=2) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    with pytest.raises(ingle.OptionError, match="plate data draws rows by itself, so each run sees other data"):
        ingle.log_evidence(model, shared_guide, Y, proposal=proposal)


@pytest.mark.parametrize("guide", ["multivariate_normal", "low_rank"])
def test_joint_guide_has_no_weights_for_each_element(guide: Any) -> None:
    fit = ingle.fit(local, guide, Y, steps=5)
    with pytest.raises(ingle.OptionError, match=r"the guide draws '_Auto.*_latent' outside of plate 'data', for all"):
        fit.log_evidence(per="data")
    assert fit.log_evidence(per="data", proposal="prior").verdict == "reliable"


SCALES = torch.linspace(1e-4, 30, 300_001, dtype=torch.float64)


def spread(y: Tensor) -> None:
    tau = pyro.sample("tau", dist.Gamma(3.0, 2.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(0.0, tau), obs=y)


def spread_evidence() -> float:
    joint = dist.Gamma(3.0, 2.0).log_prob(SCALES) + dist.Normal(0.0, SCALES[:, None]).log_prob(Y.double()).sum(1)
    return float(joint.logsumexp(0) + (SCALES[1] - SCALES[0]).log())


@pytest.mark.parametrize("defensive", [0.0, 0.2])
def test_draws_outside_of_the_support_weigh_nothing_and_are_counted(defensive: float, where: dict[str, Any]) -> None:
    """A fiftieth of the guide's draws is below zero, where the likelihood is NaN and the prior has no density."""

    def guide(y: Tensor) -> None:
        pyro.sample("tau", dist.Normal(1.4, 0.7))

    found = ingle.log_evidence(spread, guide, Y, defensive=defensive, **where)
    below = 10_000 * (1 - defensive) * float(dist.Normal(1.4, 0.7).cdf(torch.tensor(0.0)))
    assert abs(found.zero - below) < 5 * math.sqrt(below)
    assert (found.nan, found.infinite) == (0, 0)
    assert f"  weights     {found.zero:,} zero of 10,000" in repr(found)
    assert found.elbo == -math.inf
    assert abs(found.log_z - spread_evidence()) < 4.5 * found.se
    if defensive:
        assert found.verdict == "reliable"


def test_guide_of_another_support_is_still_refused_by_fit() -> None:
    def guide(y: Tensor) -> None:
        pyro.sample("tau", dist.Normal(pyro.param("loc", torch.tensor(1.4)), 0.7))

    with pytest.raises(ingle.ProgramError, match="tau"):
        ingle.fit(spread, guide, Y, steps=1)


def root(y: Tensor) -> None:
    z = pyro.sample("z", dist.Normal(2.0, 1.0))
    pyro.factor("root", z.sqrt())


def root_guide(y: Tensor) -> None:
    pyro.sample("z", dist.Normal(2.0, 1.0))


def test_weights_that_are_nan_are_counted_and_said(where: dict[str, Any]) -> None:
    found = ingle.log_evidence(root, root_guide, Y, **where)
    below = 10_000 * float(dist.Normal(2.0, 1.0).cdf(torch.tensor(0.0)))
    assert abs(found.nan - below) < 5 * math.sqrt(below)
    assert found.verdict == "unreliable"
    assert math.isfinite(found.log_z)
    assert f"{found.nan:,} NaN of 10,000" in repr(found)
    assert "weights that are NaN were counted as zero" in found.reason


def test_infinite_log_joint_is_said(where: dict[str, Any]) -> None:
    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(2.0, 1.0))
        pyro.factor("wild", torch.where(z > 4, torch.inf, 0.0))

    found = ingle.log_evidence(model, root_guide, Y, **where)
    assert found.log_z == math.inf
    assert math.isnan(found.se)
    assert found.verdict == "unreliable"
    assert found.infinite > 100
    card = repr(found)
    assert "log Z       inf nats\n" in card
    assert f"{found.infinite:,} infinite of 10,000" in card
    assert "the model's density is infinite at some draws" in found.reason


@pytest.mark.parametrize("per", [None, "data"])
def test_impossible_data_have_no_evidence(per: str | None, where: dict[str, Any]) -> None:
    def model(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("possible", torch.where(y > 0, -0.5 * z**2, -torch.inf))

    found = ingle.log_evidence(model, local_guide, Y, per=per, **where)
    assert found.log_z == -math.inf
    assert found.verdict == "unreliable"
    assert found.zero == 10_000
    assert "log Z       -inf nats" in repr(found)
    some = " for 1 of 4 elements" if per else ""
    assert found.reason.startswith(f"no: every weight is zero{some}. The model holds no draw possible with these data")


def test_impossible_data_beside_the_plate(where: dict[str, Any]) -> None:
    def model(y: Tensor) -> None:
        pyro.factor("never", torch.tensor(-math.inf))
        local(y)

    found = ingle.log_evidence(model, local_guide, Y, per="data", **where)
    assert (found.log_z, found.verdict) == (-math.inf, "unreliable")
    assert "what the model says outside of plate 'data' has log density -inf" in found.reason
    assert "log Z       -inf nats, summed" in repr(found)


def test_few_draws_have_no_khat_and_say_why(where: dict[str, Any]) -> None:
    found = ingle.log_evidence(shared, shared_guide, Y, num_samples=99, **where)
    assert math.isnan(found.khat)
    assert math.isnan(found.needed)
    assert found.verdict == "unknown"
    assert "k-hat is fitted to the tail of at least 100 draws, and there are 99" in found.reason
    assert "  k-hat       not given\n" in repr(found)
    assert ingle.log_evidence(shared, shared_guide, Y, num_samples=100, **where).verdict == "unreliable"  # an ESS < 100


@pytest.mark.parametrize("options", [{}, {"defensive": 0.5}], ids=["guide", "defensive"])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_one_draw_has_no_error(n: int, options: Any, where: dict[str, Any]) -> None:
    """Nor has a share of one draw: it must not pass for weights that are all the same."""
    for per in (None, "data"):
        found = ingle.log_evidence(local, local_guide, Y, num_samples=n, per=per, **options, **where)
        assert math.isfinite(found.log_z)
        assert found.verdict == "unknown"
        assert math.isnan(found.se) == (n == 1 or (n == 3 and bool(options)))
        assert ("±" in repr(found)) != math.isnan(found.se)


def test_point_masses_are_refused() -> None:
    words = "the guide's draws have no importance weights: the guide is a point mass at z, without a density"
    fit = ingle.fit(local, "delta", Y, steps=2)
    with pytest.raises(ingle.OptionError, match=words):
        fit.log_evidence()
    with pytest.raises(ingle.OptionError, match=words):
        ingle.log_evidence(local, autoguide.AutoDelta(local), Y)
    assert fit.log_evidence(proposal="prior", per="data").verdict == "reliable"


def flat(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


def test_improper_prior_is_noted_and_cannot_be_drawn(where: dict[str, Any]) -> None:
    found = ingle.log_evidence(flat, shared_guide, Y, **where)
    assert any("the prior of mu is improper, so log Z is known up to a constant only" in note for note in found.notes)
    assert "  note        the prior of mu is improper" in repr(found)
    mean, n = float(Y.mean()), len(Y)
    expected = float(dist.Normal(mean, 1.0).log_prob(Y.double()).sum()) + 0.5 * math.log(2 * math.pi / n)
    assert abs(found.log_z - expected) < 4.5 * found.se
    for guide, options in ((shared_guide, {"proposal": "prior"}), (None, {"proposal": "prior"})):
        with pytest.raises(
            ingle.OptionError, match="the prior of 'mu' is improper: it has no density that sums to one"
        ):
            ingle.log_evidence(flat, guide, Y, **options)
    with pytest.raises(ingle.OptionError, match="the prior of 'mu' is improper"):
        ingle.log_evidence(flat, shared_guide, Y, defensive=0.1)


def test_draws_beside_the_latents_are_refused_unless_carried_over(where: dict[str, Any]) -> None:
    """A density that is known at the guide's own draws alone cannot be mixed with another."""

    def loose(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Normal(0.3 * a, 1.0))

    def carried(y: Tensor) -> None:
        a = pyro.sample("a", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})
        pyro.sample("mu", dist.Delta(0.4 + 0.6 * a, log_density=-math.log(0.6)))

    with pytest.raises(ingle.OptionError, match="the guide draws a beside the model's latents, so the density of"):
        ingle.log_evidence(shared, loose, Y)
    with pytest.raises(ingle.OptionError, match=r"is not known at draws of the prior.*from 'a'. Leave defensive out"):
        ingle.log_evidence(shared, carried, Y, defensive=0.1)
    exact = float(dist.MultivariateNormal(torch.zeros(4).double(), torch.eye(4).double() + 1.0).log_prob(Y.double()))
    found = ingle.log_evidence(shared, carried, Y, **where)
    assert abs(found.log_z - exact) < 4.5 * found.se
    given = ingle.log_evidence(shared, carried, Y, given={"mu": 0.5}, **where)
    assert given.log_z == pytest.approx(float(dist.Normal(0.5, 1.0).log_prob(Y).sum()), abs=1e-5)


def test_draws_that_khat_asks_for_are_told_only_beyond_those_taken(where: dict[str, Any]) -> None:
    """A guide of half the posterior's scale has a k-hat near 3/4, which asks for some thousand draws."""

    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 0.5))

    def model(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    seen = set()
    for n in (500, 10_000, 40_000):
        for seed in range(10):
            found = ingle.log_evidence(model, guide, Y, num_samples=n, seed=seed, **where)
            beyond = found.needed > n
            assert ("from the guide (k-hat asks for" in repr(found)) == beyond
            if found.verdict == "unreliable" and found.khat > found.khat_threshold:
                assert ("take num_samples=" in found.reason) == (n < found.needed <= 100 * n)
                assert "fit a guide of a wider family" in found.reason
                seen.add(beyond)
    assert seen == {False, True}
