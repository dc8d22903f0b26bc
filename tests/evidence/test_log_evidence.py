"""`log_evidence` against closed forms: exact guides exactly, imperfect ones within their errors, element by element."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from evidence.known import (
    Known,
    beta_binomial,
    double,
    eight_schools,
    linear_gaussian,
    missing,
    mixture,
    regression,
)
from pyro import poutine
from pyro.infer import autoguide
from support import global_state
from torch import Tensor

import ingle
from ingle.evidence import sampler
from ingle.evidence.memory import cost_of
from ingle.program import to_support

F64 = torch.float64
ADAM = functools.partial(torch.optim.Adam, lr=0.02)
MASKS = ("poutine.mask", ".mask", "obs_mask")

# Estimates are held within 4 standard errors, which a right one leaves with probability 6e-5; fewer than 100 are looked
# at in a run of this file, seeds fixed.
SIGMAS = 4.0

KNOWN = {
    "regression": regression,
    "beta-binomial": beta_binomial,
    "linear-Gaussian": linear_gaussian,
    "mixture, summed out": functools.partial(mixture, drawn=False),
    "mixture, drawn": functools.partial(mixture, drawn=True),
    **{f"missing, {way}": functools.partial(missing, way) for way in MASKS},
}


def assert_near(found: ingle.Evidence, expected: float, *, sigmas: float = SIGMAS) -> None:
    assert 0 < found.se < 1
    assert abs(found.log_z - expected) < sigmas * found.se, (found.log_z, expected, found.se)


def assert_each_near(found: ingle.Evidence, expected: Any) -> None:
    """Each element within 4.5 of its errors, 7e-6 apiece, and the total, their sum."""
    each = found.pointwise
    assert each is not None
    assert each.log_z.shape == np.shape(expected)
    assert (each.se > 0).all()
    assert np.abs((each.log_z - expected) / each.se).max() < 4.5
    assert found.se == pytest.approx(float(np.sqrt((each.se**2).sum())))
    assert found.bias == pytest.approx(-0.5 * float((each.se**2).sum()))
    assert found.ess == each.ess.min()
    assert found.khat == each.khat.max() or np.isnan(each.khat).any()
    assert_near(found, float(np.sum(expected)))


@pytest.mark.parametrize("make", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("chunk", ["auto", 7])
def test_exact_guide_has_the_evidence_for_every_weight(make: Any, chunk: Any, device: torch.device) -> None:
    """The largest and the mean of the weights are the evidence, to 1e-9, and no draw differs from another."""
    known: Known = make()
    for per in {None, known.per}:
        options = {"per": per, "dtype": F64, "device": device, "chunk": chunk, "num_samples": 200}
        found = ingle.log_evidence(known.model, known.guide(0.0), known.data, **options)
        assert found.verdict == "exact"
        assert found.log_z == pytest.approx(known.total, abs=1e-9)
        assert found.elbo == pytest.approx(known.total, abs=1e-9)
        assert found.se < 1e-10
        assert found.elbo_se < 1e-10
        assert f"{known.total:,.6f} nats, exactly" in repr(found)
        if per is not None:
            assert found.pointwise is not None
            np.testing.assert_allclose(found.pointwise.log_z, known.log_z, atol=1e-9)
            np.testing.assert_allclose(found.pointwise.elbo, known.log_z, atol=1e-9)


INEXACT = {name: make for name, make in KNOWN.items() if name != "mixture, summed out"} | {"eight": eight_schools}


@pytest.mark.parametrize("make", INEXACT.values(), ids=INEXACT)
def test_imperfect_guide_is_within_its_error(make: Any, device: torch.device) -> None:
    known: Known = make()
    options = {"dtype": F64, "device": device, "num_samples": 100_000}
    found = ingle.log_evidence(known.model, known.guide(1.0), known.data, per=known.per, **options)
    assert_near(found, known.total)
    assert abs(found.log_z - known.total) < 0.01 * known.size
    assert found.verdict in ("reliable", "costly")
    if make is KNOWN["mixture, drawn"]:  # weights of a few values
        assert math.isnan(found.khat)
        assert "not given: the largest weights are all equal" in repr(found)
    else:
        assert found.khat < found.khat_threshold == 0.7
    assert found.elbo < found.log_z
    if known.per is not None:
        assert_each_near(found, known.log_z)


@pytest.mark.parametrize("make", INEXACT.values(), ids=INEXACT)
@pytest.mark.parametrize("options", [{"proposal": "prior"}, {"defensive": 0.1}], ids=["prior", "defensive"])
def test_other_proposals_agree(make: Any, options: Any, where: dict[str, Any]) -> None:
    """The prior of the linear-Gaussian rows is so wide that its own error is no longer normal: more draws there."""
    if options.get("proposal") == "prior" and make in (regression, linear_gaussian):
        options = {**options, "num_samples": 200_000}
    known: Known = make()
    found = ingle.log_evidence(known.model, known.guide(1.0), known.data, per=known.per, **where, **options)
    assert found.ess > 50
    assert_near(found, known.total)
    assert "the prior" in found.proposal
    assert found.num_samples == options.get("num_samples", 10_000)


def test_float32_is_float64_rounded(device: torch.device) -> None:
    known = regression()
    found = [
        ingle.log_evidence(known.model, known.guide(0.0), known.data, num_samples=200, dtype=dtype, device=device)
        for dtype in (torch.float32, F64)
    ]
    assert [each.verdict for each in found] == ["exact", "exact"]
    assert found[0].log_z == pytest.approx(found[1].log_z, abs=1e-4)
    assert found[0].dtype == torch.float32


Y = torch.tensor([[0.5, -1.0, 2.0, 0.1], [1.5, 0.3, -0.7, 0.0], [0.2, 2.2, 1.0, -1.4]], dtype=F64)


def marginal(y: Tensor, mean: float = 0.0, sd: float = math.sqrt(2.0)) -> np.ndarray:
    return np.asarray(dist.Normal(mean, sd).log_prob(y.double()))


def hierarchical(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    pyro.sample("mean", dist.Normal(mu, 0.1), obs=torch.tensor(0.2))
    with pyro.plate("row", len(y)) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


def local_guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(0.2, 1.0))
    with pyro.plate("row", len(y)) as i:
        pyro.sample("z", dist.Normal(0.4 * y[i], 1.0))


def test_what_elements_share_can_be_given(where: dict[str, Any]) -> None:
    """Neither prior nor guide of what is given counts; what is seen outside of the plate joins the total alone."""
    y = Y[0]
    found = ingle.log_evidence(hierarchical, local_guide, y, per="row", given={"mu": 0.3}, **where)
    assert found.pointwise is not None
    outside = float(dist.Normal(0.3, 0.1).log_prob(torch.tensor(0.2)))
    each = marginal(y, 0.3)
    assert np.abs((found.pointwise.log_z - each) / found.pointwise.se).max() < 4.5
    assert found.log_z == pytest.approx(float(found.pointwise.log_z.sum()) + outside, abs=1e-4)
    assert_near(found, float(each.sum()) + outside)
    together = ingle.log_evidence(hierarchical, local_guide, y, given={"mu": 0.3}, **where)
    assert_near(together, float(each.sum()) + outside)
    assert together.se > found.se
    prior = ingle.log_evidence(hierarchical, None, y, per="row", given={"mu": 0.3}, proposal="prior", **where)
    assert_near(prior, float(each.sum()) + outside)


@pytest.mark.parametrize("guide", ["normal", "multivariate_normal"])
def test_given_latents_of_a_guide_by_name(guide: Any) -> None:
    """AutoNormal draws each latent from a site of its own; a joint guide does not, and says so."""
    fit = ingle.fit(hierarchical, guide, Y[0], steps=100, dtype=F64)
    if guide == "normal":
        expected = float(marginal(Y[0], 0.3).sum() + dist.Normal(0.3, 0.1).log_prob(torch.tensor(0.2)))
        assert_near(fit.log_evidence(given={"mu": 0.3}, per="row"), expected)
        assert_near(fit.log_evidence(given={"mu": 0.3}, per="row", defensive=0.2), expected)
        return
    for per in (None, "row"):
        with pytest.raises(ingle.OptionError, match="computes 'mu' and 'z' from one draw"):
            fit.log_evidence(given={"mu": 0.3}, per=per)
        assert fit.log_evidence(given={"mu": 0.3}, per=per, proposal="prior", num_samples=100).khat < 0.7


def nested(y: Tensor) -> None:
    """The rows are the left one of two plates; noise of its own for each column would tie rows together."""
    rows, columns = y.shape
    with pyro.plate("row", rows, dim=-2):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("column", columns, dim=-1):
            u = pyro.sample("u", dist.Normal(z, 0.5))
            pyro.sample("y", dist.Normal(u, 1.0), obs=y)


def nested_guide(y: Tensor) -> None:
    rows, columns = y.shape
    with pyro.plate("row", rows, dim=-2):
        z = pyro.sample("z", dist.Normal(0.7 * y.mean(1, keepdim=True), 0.7))
        with pyro.plate("column", columns, dim=-1):
            pyro.sample("u", dist.Normal(0.8 * z + 0.2 * y, 0.5))


def nested_marginal() -> np.ndarray:
    covariance = 1.25 * torch.eye(4, dtype=F64) + 1.0
    return np.asarray(dist.MultivariateNormal(torch.zeros(4, dtype=F64), covariance).log_prob(Y))


@pytest.mark.parametrize("options", [{}, {"defensive": 0.1}], ids=["guide", "defensive"])
def test_plate_that_is_not_the_last(options: Any, where: dict[str, Any]) -> None:
    found = ingle.log_evidence(nested, nested_guide, Y, per="row", **where, **options)
    assert_each_near(found, nested_marginal())


def test_inner_plate_shares_what_lies_in_the_outer_alone(where: dict[str, Any]) -> None:
    with pytest.raises(ingle.OptionError, match="per='column': 'z' lies outside of plate 'column'"):
        ingle.log_evidence(nested, nested_guide, Y, per="column", **where)
    z = torch.tensor([[0.1], [0.5], [0.9]])
    found = ingle.log_evidence(nested, nested_guide, Y, per="column", given={"z": z}, **where)
    assert_each_near(found, np.asarray(dist.Normal(z.double(), math.sqrt(1.25)).log_prob(Y)).sum(0))


def test_guide_may_have_the_plate_at_another_dimension(where: dict[str, Any]) -> None:
    """Pyro gives a plate without `dim` the next free one: -1 in the model, -2 in the guide, where it stands inside."""
    y = Y[:, 0]

    def model(y: Tensor) -> None:
        with pyro.plate("row", 3):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)
            with pyro.plate("copy", 3):
                u = pyro.sample("u", dist.Normal(z, 1.0))
                pyro.sample("x", dist.Normal(u, 1.0), obs=torch.zeros(3, 3))

    def guide(y: Tensor) -> None:
        with pyro.plate("row", 3):
            z = pyro.sample("z", dist.Normal(0.2 * y, 0.7))
            with pyro.plate("copy", 3):
                pyro.sample("u", dist.Normal(0.5 * z, 0.7))

    expected = []
    for each in y:
        covariance = torch.ones(4, 4, dtype=F64) + torch.diag(torch.tensor([1.0, 2.0, 2.0, 2.0], dtype=F64))
        seen = torch.tensor([float(each), 0.0, 0.0, 0.0], dtype=F64)
        expected.append(float(dist.MultivariateNormal(torch.zeros(4, dtype=F64), covariance).log_prob(seen)))
    assert_each_near(ingle.log_evidence(model, guide, y, per="row", **where), np.array(expected))


def test_discrete_latents_are_summed_out_inside_the_plate(where: dict[str, Any]) -> None:
    """Each row is of one of two kinds, and has a latent of its own whose mean is that of its kind."""
    y = Y[0]

    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + 2.0 * k, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(0.3 * y, 1.1))

    each = np.logaddexp(math.log(0.7) + marginal(y), math.log(0.3) + marginal(y, 2.0))
    assert_each_near(ingle.log_evidence(model, guide, y, per="row", **where), each)
    assert_each_near(ingle.log_evidence(model, guide, y, per="row", defensive=0.2, **where), each)
    assert_near(ingle.log_evidence(model, guide, y, **where), float(each.sum()))


@pytest.mark.parametrize("options", [{"proposal": "prior"}, {"defensive": 0.3}], ids=["prior", "defensive"])
def test_prior_of_a_latent_that_depends_on_one_that_is_summed_out(options: Any, where: dict[str, Any]) -> None:
    y = Y[0]

    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            k = pyro.sample("k", dist.Bernoulli(0.3))
            z = pyro.sample("z", dist.Normal(2.0 * k, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(0.5 * y + 0.3, 1.0))

    each = np.logaddexp(math.log(0.7) + marginal(y), math.log(0.3) + marginal(y, 2.0))
    assert_each_near(ingle.log_evidence(model, guide, y, per="row", **options, **where), each)


@pytest.mark.parametrize("options", [{}, {"defensive": 0.2}, {"proposal": "prior"}], ids=str)
def test_rows_that_a_mask_hides_have_no_evidence(options: Any, where: dict[str, Any]) -> None:
    """As of padding: what the guide draws there does not count, and its element is zero without an error."""
    seen = torch.tensor([True, True, False, True])

    def model(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("row", len(y)), poutine.mask(mask=seen):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(0.4 * y, 0.9))

    found = ingle.log_evidence(model, guide, {"y": Y[0], "seen": seen}, per="row", **options, **where)
    each = found.pointwise
    assert each is not None
    assert each.log_z[2] == pytest.approx(0.0, abs=1e-12)
    assert each.se[2] < 1e-12
    shown = np.asarray(seen)
    assert np.abs((each.log_z - marginal(Y[0]))[shown] / each.se[shown]).max() < 4.5
    assert found.verdict == "reliable"


def test_rows_partly_observed_by_obs_mask_under_a_guide_by_name() -> None:
    """What is missing is a latent of the guide's, and the element has the evidence of nothing: zero."""
    seen = torch.tensor([True, True, False, True])

    def model(y: Tensor, seen: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z, 2.0), obs=y, obs_mask=seen)

    data = {"y": torch.where(seen, Y[0], 50.0), "seen": seen}
    found = ingle.fit(model, "normal", data, steps=800, optim=ADAM, dtype=F64).log_evidence(per="row")
    expected = np.where(seen, marginal(Y[0], sd=math.sqrt(5.0)), 0.0)
    assert_each_near(found, expected)


@pytest.mark.parametrize("size", [2, 3])
def test_prior_that_torch_draws_wrongly_is_noted(size: int) -> None:
    """In three dimensions at 1.5 each correlation is a Beta(2, 2) on (-1, 1), with variance 1/5; 6 standard errors."""

    def model() -> None:
        pyro.sample("factor", dist.LKJCholesky(size, 1.5))

    def guide() -> None:
        pyro.sample("factor", dist.LKJCholesky(size, 2.0))

    for defensive in (0.0, 0.1):
        notes = ingle.log_evidence(model, guide, (), num_samples=100, defensive=defensive).notes
        told = any("do not follow its density from three dimensions on" in note for note in notes)
        assert told == (size == 3 and defensive > 0)
    if size == 3:
        factor = dist.LKJCholesky(3, torch.tensor(1.5)).sample((50_000,))
        square = (factor @ factor.mT)[:, 2, 0] ** 2
        assert abs(float(square.mean()) - 0.2) > 6 * float(square.std()) / 50_000**0.5  # else torch is mended


def rows_alone(y: Tensor) -> None:
    with pyro.plate("row", len(y)) as i:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y[i])


@pytest.mark.parametrize("options", [{}, {"batch_size": {"row": 3}}], ids=["all rows", "minibatches"])
def test_fitted_autonormal(options: Any, where: dict[str, Any]) -> None:
    fit = ingle.fit(rows_alone, "normal", Y.flatten(), steps=800, optim=ADAM, **options, **where)
    for defensive in (0.1, 0.0):
        found = fit.log_evidence(per="row", defensive=defensive)
        assert_each_near(found, marginal(Y.flatten()))
        assert found.verdict == "reliable"
    assert found.per == "row"
    assert found.guide == "'normal' (AutoNormal)"
    assert (found.dtype, found.device.type) == (where["dtype"], where["device"].type)


@pytest.mark.parametrize("name", ["multivariate_normal", "low_rank", "flow", "laplace"])
def test_joint_guides_by_name(name: Any) -> None:
    def model(y: Tensor) -> None:
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
        with pyro.plate("row", len(y)):
            pyro.sample("y", dist.Normal(loc, scale), obs=y)

    y = Y.flatten()
    fit = ingle.fit(model, name, y, steps=300, dtype=F64)
    loc, scale = torch.linspace(-6, 6, 1_201, dtype=F64), torch.linspace(-4, 4, 1_601, dtype=F64)
    joint = dist.Normal(0.0, 1.0).log_prob(loc)[:, None] + dist.Normal(0.0, 0.5).log_prob(scale)
    square = ((y - loc[:, None]) ** 2).sum(1)[:, None]
    joint = joint - 0.5 * square * (-2 * scale).exp() - len(y) * (scale + 0.5 * math.log(2 * math.pi))
    expected = float(joint.logsumexp((0, 1))) + math.log(0.01 * 0.005)
    for defensive in (0.0, 0.2):
        found = fit.log_evidence(defensive=defensive)
        assert_near(found, expected)
        assert found.ess > 1_000


class Amortised(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = torch.nn.Sequential(torch.nn.Linear(1, 8), torch.nn.Tanh(), torch.nn.Linear(8, 2))

    def forward(self, y: Tensor) -> None:
        pyro.module("encoder", self.encoder)
        with pyro.plate("row", len(y)) as i:
            loc, log_scale = self.encoder(y[i, None]).unbind(-1)
            pyro.sample("z", dist.Normal(loc, log_scale.exp()))


@pytest.mark.parametrize("options", [{}, {"batch_size": {"row": 5}}], ids=["all rows", "minibatches"])
def test_amortised_guide(options: Any, where: dict[str, Any]) -> None:
    torch.manual_seed(1)
    fit = ingle.fit(rows_alone, Amortised(), Y.flatten(), steps=400, **options, **where)
    found = fit.log_evidence(per="row")
    assert_each_near(found, marginal(Y.flatten()))
    assert found.verdict == "reliable"
    assert fit.log_evidence(per="row").log_z == found.log_z
    assert fit.log_evidence(per="row", seed=5).log_z != found.log_z


def test_plate_of_one_row(where: dict[str, Any]) -> None:
    def guide(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            pyro.sample("z", dist.Normal(0.3 * y, 1.0))

    assert_each_near(ingle.log_evidence(rows_alone, guide, Y[0, :1], per="row", **where), marginal(Y[0, :1]))


def test_scale_of_minibatches_does_not_count_and_that_of_the_user_is_of_its_data(where: dict[str, Any]) -> None:
    y = Y[0]

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("row", len(y)), poutine.scale(scale=0.5):
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(0.0, 1.0))

    grid = torch.linspace(-12, 12, 20_001, dtype=F64)
    joint = dist.Normal(0.0, 1.0).log_prob(grid) + 0.5 * dist.Normal(grid[:, None], 1.0).log_prob(y).sum(1)
    found = ingle.log_evidence(model, guide, y, **where)
    assert_near(found, float(joint.logsumexp(0)) + math.log(24 / 20_000))


@pytest.mark.parametrize("per", [None, "row"])
@pytest.mark.parametrize("defensive", [0.0, 0.1])
def test_result_does_not_depend_on_the_chunk(per: str | None, defensive: float, where: dict[str, Any]) -> None:
    """Sums run in another order, so rounding alone is left; a seed gives the same bits."""

    def run(chunk: Any, seed: int = 0) -> ingle.Evidence:
        options = {"per": per, "defensive": defensive, "chunk": chunk, "seed": seed, "num_samples": 400}
        return ingle.log_evidence(nested, nested_guide, Y, **options, **where)

    first = run(1)
    tolerance = 100 * torch.finfo(where["dtype"]).eps * abs(first.log_z)
    for chunk in (7, 150, "auto"):
        found, again = run(chunk), run(chunk)
        for name in ("log_z", "se", "ess", "elbo"):
            near = tolerance if name != "ess" else tolerance * first.ess
            assert getattr(found, name) == pytest.approx(getattr(first, name), abs=near), name
        assert found.khat == pytest.approx(first.khat, abs=1e-3)
        assert (found.log_z, found.se, found.khat) == (again.log_z, again.se, again.khat)
    other = run("auto", seed=1)
    assert abs(other.log_z - first.log_z) > 100 * tolerance
    assert abs(other.log_z - first.log_z) < 5 * math.hypot(other.se, first.se)


@pytest.mark.parametrize("what", ["draws", "joint"])
def test_chunk_is_halved_where_memory_runs_out(what: str, where: dict[str, Any], monkeypatch: Any) -> None:
    """And stays so: no chunk is tried that was too large before. Joints at the same draws are the same."""
    whole, tried = sampler.repeat, []

    def scarce(run: Any, n: int, *, chunk: int, given: Any = None, **options: Any) -> Any:
        if n > 2 and (given is None) == (what == "draws"):
            tried.append(chunk)
            if chunk > 100:
                raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(run, n, chunk=chunk, given=given, **options)

    expected = ingle.log_evidence(nested, nested_guide, Y, num_samples=1_000, **where)
    monkeypatch.setattr(sampler, "_AT_ONCE", 250 * 15)  # blocks of 250 draws
    blocks = ingle.log_evidence(nested, nested_guide, Y, num_samples=1_000, **where)
    monkeypatch.setattr(sampler, "repeat", scarce)
    found = ingle.log_evidence(nested, nested_guide, Y, num_samples=1_000, **where)
    assert tried == [250, 125, 62, 62, 62, 62]
    if what == "joint":
        assert found.log_z == pytest.approx(blocks.log_z, abs=1e-4)
    assert abs(found.log_z - expected.log_z) < 5 * math.hypot(found.se, expected.se)


def test_one_draw_that_is_too_large_is_said(where: dict[str, Any], monkeypatch: Any) -> None:
    def never(run: Any, n: int, **options: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")

    monkeypatch.setattr(sampler, "repeat", never)
    with pytest.raises(ingle.OptionError, match="one draw of all rows does not fit in the memory"):
        ingle.log_evidence(nested, nested_guide, Y, **where)


def rows_guide(y: Tensor) -> None:
    with pyro.plate("row", len(y)) as i:
        pyro.sample("z", dist.Normal(0.4 * y[i], 0.8))


def live_bytes(rows: int, draws: int, wide: int = 16) -> int:
    """The most bytes that one estimate for each row holds, its data and the program's own run apart."""

    def model(y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            hidden = torch.tanh(z[..., None] * torch.linspace(0.5, 1.5, wide))  # as a decoder would make it
            pyro.sample("y", dist.Normal(z + 0.0 * hidden.sum(-1), 1.0), obs=y)

    y = double(rows).float()
    return cost_of(lambda: ingle.log_evidence(model, rows_guide, y, per="row", num_samples=draws, chunk="auto")).most


BUDGET = 2**27  # bytes: 64 MiB of one chunk, and as much for draws, weights, and the largest of them


@pytest.mark.parametrize(
    ("rows", "draws"), [(10_000, 500), pytest.param(10_000, 5_000, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_memory_stays_within_the_budget(rows: int, draws: int) -> None:
    """All weights alone would take 400 MB for 5,000 draws, and a decoder's layer 3.2 GB in float32."""
    assert live_bytes(rows, draws) < BUDGET


def test_memory_does_not_grow_with_the_draws() -> None:
    few, many = live_bytes(1_000, 2_500), live_bytes(1_000, 7_500)
    assert many < 1.3 * few


def test_model_that_reads_numbers_from_tensors_runs_one_by_one(where: dict[str, Any]) -> None:
    def model(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        loc = mu.item() if careless else mu
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(loc, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(0.3, 0.6))

    found = []
    for careless in (False, True):  # noqa: B007
        found.append(ingle.log_evidence(model, guide, Y[0], num_samples=400, **where))
    assert found[0].log_z == pytest.approx(found[1].log_z, abs=1e-4)
    assert found[0].se == pytest.approx(found[1].se, rel=1e-4)
    assert not found[0].notes
    (note,) = found[1].notes
    assert note.startswith("draws went through the program one by one, which is slow: RuntimeError: vmap:")
    assert len(note) < 200


def test_guide_as_an_autoguide_instance_and_parameters_of_the_store(where: dict[str, Any]) -> None:
    """The function takes what Pyro's store holds, and leaves it as it was."""
    y = Y[0].to(**where)
    with torch.device(where["device"]):
        torch.set_default_dtype(where["dtype"])
        try:
            guide = autoguide.AutoNormal(rows_alone)
            svi = pyro.infer.SVI(rows_alone, guide, pyro.optim.Adam({"lr": 0.05}), pyro.infer.Trace_ELBO())
            for _ in range(150):
                svi.step(y)
        finally:
            torch.set_default_dtype(torch.float32)
    held = {name: value.tolist() for name, value in pyro.get_param_store().items()}
    found = ingle.log_evidence(rows_alone, guide, y, per="row")
    assert_each_near(found, marginal(y.cpu()))
    assert found.dtype == where["dtype"]
    assert found.ess > 5_000  # not of the scales of 0.1 that it began with
    assert held == {name: value.tolist() for name, value in pyro.get_param_store().items()}
    pyro.clear_param_store()


class Network(torch.nn.Module):
    """A decoder and an encoder with everything that a run could change."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(1)
        self.drop = torch.nn.Dropout(0.5)
        self.layer = torch.nn.Linear(1, 1)

    def model(self, y: Tensor) -> None:
        with pyro.plate("row", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            shift = self.drop(self.layer(self.norm(y[:, None])))[:, 0]
            pyro.sample("y", dist.Normal(z + 0.0 * shift, 1.0), obs=y)

    def guide(self, y: Tensor) -> None:
        pyro.module("network", self)
        with pyro.plate("row", len(y)):
            self.drop(self.norm(y[:, None]))
            pyro.sample("z", dist.Normal(0.5 * y, 0.7))


@pytest.mark.parametrize("dtype", [None, F64])
def test_modules_and_the_users_tensors_are_left_alone(dtype: torch.dtype | None, device: torch.device) -> None:
    network = Network().to(device)
    network.drop.eval()
    modes = [part.training for part in network.modules()]
    before = {name: value.clone() for name, value in network.state_dict().items()}
    y = Y.flatten().float().to(device)
    kept, state = y.clone(), global_state()
    found = ingle.log_evidence(network.model, network.guide, y, per="row", num_samples=200, dtype=dtype)
    assert found.dtype == (dtype or torch.float32)
    assert [part.training for part in network.modules()] == modes
    for name, value in network.state_dict().items():
        assert value.dtype == before[name].dtype
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(parameter.requires_grad and parameter.grad is None for parameter in network.parameters())
    assert torch.equal(y, kept)
    assert global_state() == state


def test_estimate_is_one_trip_through_all_draws(where: dict[str, Any]) -> None:
    """Each draw goes through guide and model once, beside a few runs that look at the program."""
    runs = {"model": 0, "guide": 0}

    def model(y: Tensor) -> None:
        runs["model"] += 1
        rows_alone(y)

    def guide(y: Tensor) -> None:
        runs["guide"] += 1
        rows_guide(y)

    ingle.log_evidence(model, guide, Y[0], num_samples=100, chunk=10, **where)
    few = dict(runs)
    ingle.log_evidence(model, guide, Y[0], num_samples=1_000, chunk=10, **where)
    assert runs["model"] - 2 * few["model"] == 90
    assert runs["guide"] == 2 * few["guide"]


def test_a_mixture_as_the_prior_has_the_support_of_its_components() -> None:
    """Two modes, of which the guide sits in one; real latents and positive ones. One seed in a million is off."""
    weights, loc = torch.tensor([0.3, 0.7]), torch.tensor([-1.0, 2.0])

    def model(y: Tensor) -> None:
        z = pyro.sample("z", dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 0.5)))
        r = pyro.sample("r", dist.MixtureSameFamily(dist.Categorical(weights), dist.LogNormal(loc, 0.5)))
        pyro.sample("y", dist.Normal(torch.stack([z, r.log()]), 1.0).to_event(1), obs=y)

    def guide(y: Tensor) -> None:
        pyro.sample("z", dist.Normal(2.0, 0.5))
        pyro.sample("r", dist.LogNormal(2.0, 0.5))

    y = torch.tensor([0.5, 1.0], dtype=torch.float64)
    exact = dist.MixtureSameFamily(dist.Categorical(weights), dist.Normal(loc, 1.25**0.5)).log_prob(y).sum()
    for how in ({"proposal": "prior"}, {"defensive": 0.2}):
        evidence = ingle.log_evidence(model, guide, y, num_samples=20_000, seed=0, dtype=torch.float64, **how)
        assert evidence.log_z == pytest.approx(float(exact), abs=5 * evidence.se)
    log_r = torch.tensor([[-3.0], [0.4]])
    positive = dist.MixtureSameFamily(dist.Categorical(weights), dist.LogNormal(loc, 0.5))
    torch.testing.assert_close(to_support(positive)(log_r), log_r.exp())
    drawn = ingle.prior_predictive(model, y, 4_000, seed=0)["z"]  # an error of 0.022, so off by 5 once in a million
    assert float(drawn.mean()) == pytest.approx(0.3 * -1.0 + 0.7 * 2.0, abs=0.11)
