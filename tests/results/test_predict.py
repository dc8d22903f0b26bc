"""Predictions against closed forms: other covariates, new rows, amortised or not, and the prior alone."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.vae import VAEGuide
from ingle.models.mixture import GaussianMixture
from ingle.models.vae import VAE
from ingle.results import draws as draws_module

X = torch.linspace(-1.0, 2.0, 12)
STILL = functools.partial(torch.optim.SGD, lr=0.0)


def line(x: Tensor, y: Tensor | None = None) -> None:
    w = pyro.sample("w", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x)):
        mean = pyro.deterministic("mean", w * x, event_dim=0)
        pyro.sample("y", dist.Normal(mean, 0.5), obs=y)


def grouped(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 0.3))
        pyro.sample("y", dist.Normal(z, 1.0), obs=y)


def assert_moments(values: Tensor, mean: float, variance: float) -> None:
    """Of normal draws, first axis: mean and variance within 5 standard errors, which fails once in a million."""
    values = values.double().cpu()
    n = len(values)
    assert float((values.mean(0) - mean).abs().max()) < 5 * (variance / n) ** 0.5
    assert float((values.var(0) - variance).abs().max()) < 5 * variance * (2 / n) ** 0.5


@pytest.fixture(scope="module")
def fit() -> ingle.Fit:
    return ingle.fit(line, "normal", {"x": X, "y": 0.7 * X}, steps=50)


def test_the_rows_of_the_fit_are_predicted_without_being_observed(fit: ingle.Fit) -> None:
    drawn = fit.predict(n=2_000)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "w": (2_000,), "mean": (2_000, 12), "y": (2_000, 12),
    }  # fmt: skip
    assert torch.equal(drawn["w"], fit.draws(2_000)["w"])
    assert torch.equal(drawn["mean"], drawn["w"][:, None] * X)
    assert_moments(drawn["y"] - drawn["mean"], 0.0, 0.25)


def test_other_covariates_of_the_same_rows(fit: ingle.Fit) -> None:
    drawn = fit.predict({"x": X + 10, "y": X}, n=100)
    assert torch.equal(drawn["mean"], drawn["w"][:, None] * (X + 10))


def test_what_is_observed_need_not_be_given_and_is_not_used(fit: ingle.Fit) -> None:
    without, other = fit.predict({"x": X}, n=50), fit.predict({"x": X, "y": X * 1e6}, n=50)
    assert all(torch.equal(without[name], other[name]) for name in without)


def test_new_rows_of_another_number(fit: ingle.Fit) -> None:
    drawn = fit.predict({"x": torch.tensor([100.0, -100.0])}, n=2_000, new="data")
    assert drawn["y"].shape == (2_000, 2)
    assert_moments(drawn["y"] - drawn["w"][:, None] * torch.tensor([100.0, -100.0]), 0.0, 0.25)


def test_predictions_are_repeatable_and_seeded(fit: ingle.Fit) -> None:
    first, again, other = fit.predict(n=5), fit.predict(n=5), fit.predict(n=5, seed=1)
    assert torch.equal(first["y"], again["y"])
    assert not torch.equal(first["y"], other["y"])


def test_chunks_change_nothing_but_the_noise(fit: ingle.Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws_module, "_ELEMENTS", 300)
    drawn = fit.predict(n=2_000)
    assert drawn["y"].shape == (2_000, 12)
    assert len(torch.unique(drawn["w"])) == 2_000
    assert_moments(drawn["y"] - drawn["mean"], 0.0, 0.25)


def test_dtype_and_device_are_those_of_the_fit(where: dict[str, Any]) -> None:
    fit = ingle.fit(line, "normal", {"x": X, "y": X}, steps=3, **where)
    drawn = fit.predict({"x": X.double().numpy()}, n=3)["y"]
    assert (drawn.dtype, drawn.device.type) == (where["dtype"], where["device"].type)


def per_datum(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(3.0)), 0.1))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(pyro.param("z_loc", torch.full((12,), 9.0)), 0.1))


class Encoder(nn.Module):
    """As wide as the data are long, so that the sizes of its parameters tell nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(1, 12), nn.Linear(12, 1)

    def forward(self, y: Tensor) -> None:
        pyro.module("encoder", self)
        mu = pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(3.0)), 0.1))
        with pyro.plate("data", len(y)):
            loc = self.outer(torch.tanh(self.inner(y[:, None])))[:, 0]
            pyro.sample("z", dist.Normal(loc + mu, 0.1))


@pytest.mark.parametrize("guide", [per_datum, "normal", "multivariate_normal"], ids=["function", "normal", "joint"])
def test_new_rows_come_from_the_model_where_the_guide_has_a_row_for_each(guide: Any) -> None:
    """z given mu is its prior, Normal(mu, 0.3): whether there are other rows, or as many."""
    fit = ingle.fit(grouped, guide, X, steps=1, optim=STILL)
    for rows in (5, 12):
        drawn = fit.predict(torch.zeros(rows), n=4_000, new=("data",))
        assert drawn["z"].shape == (4_000, rows)
        assert_moments(drawn["z"] - drawn["mu"][:, None], 0.0, 0.09)
        assert_moments(drawn["y"] - drawn["z"], 0.0, 1.0)
    kept = fit.predict(n=100)
    assert torch.equal(kept["z"], fit.draws(100)["z"])


def test_new_rows_come_from_an_amortised_guide_given_the_other_latents() -> None:
    encoder = Encoder()
    fit = ingle.fit(grouped, encoder, X, steps=1, optim=STILL)
    new = torch.tensor([4.0, -4.0])
    drawn = fit.predict(new, n=4_000, new=("data",))
    with torch.no_grad():
        loc = encoder.outer(torch.tanh(encoder.inner(new[:, None])))[:, 0]
    assert_moments(drawn["z"] - drawn["mu"][:, None] - loc, 0.0, 0.01)
    assert_moments(drawn["mu"], 3.0, 0.01)


def by_place(kind: str) -> Any:
    """Guides with something for each place of the data, in shapes that do not show it."""

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("mu_loc", torch.tensor(3.0)), 0.1))
        start = torch.linspace(-5.0, 5.0, 12) ** 3 / 25
        if kind == "flat":
            loc = pyro.param("p", start.repeat_interleave(2)).reshape(12, 2).mean(-1)
        elif kind == "padded":
            loc = pyro.param("p", torch.cat([start, torch.zeros(3)]))[: len(y)]
        elif kind == "scalars":
            loc = torch.stack([pyro.param(f"p{place}", value) for place, value in enumerate(start)])
        elif kind == "centred":
            loc = pyro.param("p", start + 1)
            loc = loc - loc.mean()
        else:
            loc = pyro.param("p", start).cumsum(0)
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(loc, 0.1))

    return guide


@pytest.mark.parametrize("kind", ["flat", "padded", "scalars", "centred", "cumulated"])
def test_guides_that_go_by_the_place_of_a_row_do_not_serve_new_ones(kind: str) -> None:
    fit = ingle.fit(grouped, by_place(kind), X, steps=1, optim=STILL)
    drawn = fit.predict(torch.zeros(12), n=2_000, new=("data",))
    assert_moments(drawn["z"] - drawn["mu"][:, None], 0.0, 0.09)


def test_looped_plate_goes_on_with_the_model() -> None:
    def series(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        for t in pyro.plate("t", len(y)):
            z = pyro.sample(f"z{t}", dist.Normal(mu, 0.3))
            pyro.sample(f"y{t}", dist.Normal(z, 1.0), obs=y[t])

    def guide(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", torch.tensor(1.0)), 0.1))
        for t in pyro.plate("t", len(y)):
            pyro.sample(f"z{t}", dist.Normal(pyro.param(f"l{t}", torch.tensor(8.0)), 0.1))

    fit = ingle.fit(series, guide, torch.tensor([8.0, -8.0]), steps=1, optim=STILL)
    drawn = fit.predict(torch.full((4,), 77.0), n=2_000, new="t")
    for t in range(4):
        assert_moments(drawn[f"z{t}"] - drawn["mu"], 0.0, 0.09)
        assert_moments(drawn[f"y{t}"] - drawn[f"z{t}"], 0.0, 1.0)


def test_each_latent_is_amortised_or_not_for_itself() -> None:
    def two(y: Tensor) -> None:
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            w = pyro.sample("w", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(z + w, 1.0), obs=y)

    def guide(y: Tensor) -> None:
        slope = pyro.param("slope", torch.tensor(3.0))
        with pyro.plate("data", len(y)):
            z = pyro.sample("z", dist.Normal(slope * y, 0.1))
            pyro.sample("w", dist.Normal(pyro.param("table", torch.linspace(5.0, 9.0, 12)) + 0 * z.mean(), 0.1))

    fit = ingle.fit(two, guide, X, steps=1, optim=STILL)
    new = torch.linspace(3.0, -3.0, 12)
    drawn = fit.predict(new, n=2_000, new="data")
    assert_moments(drawn["z"] - 3 * new, 0.0, 0.01)
    assert_moments(drawn["w"], 0.0, 1.0)


class Deep(nn.Module):
    """Two layers of latents, batch normalisation, dropout, and a full covariance."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.net, self.drop = nn.BatchNorm1d(2), nn.Linear(2, 4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> None:
        pyro.module("deep", self)
        with pyro.plate("data", len(x)):
            out = self.drop(self.net(self.norm(x)))
            low = pyro.sample("low", dist.MultivariateNormal(out[:, :2], torch.eye(2) * 0.01))
            pyro.sample("high", dist.Normal(low.sum(-1) + out[:, 2], 0.1))


def deep_model(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        high = pyro.sample("high", dist.Normal(0.0, 1.0))
        low = pyro.sample("low", dist.MultivariateNormal(high[..., None] * torch.ones(2), torch.eye(2)))
        pyro.sample("x", dist.Normal(low, 1.0).to_event(1), obs=x)


def test_networks_are_amortised_and_run_in_evaluation_mode() -> None:
    guide = Deep()
    fit = ingle.fit(deep_model, guide, torch.randn(12, 2), steps=5)
    new = torch.tensor([[2.0, -1.0]])
    drawn = fit.predict(new, n=2_000, new="data")
    with torch.no_grad():
        guide.eval()
        out = guide.net(guide.norm(new))
        guide.train()
    assert_moments(drawn["low"] - out[:, :2], 0.0, 0.01)
    assert_moments(drawn["high"] - drawn["low"].sum(-1) - out[:, 2], 0.0, 0.01)
    assert guide.training


def test_plates_made_where_they_are_entered() -> None:
    def nested(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("row", y.shape[0], dim=-2), pyro.plate("column", y.shape[1], dim=-1):
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    fit = ingle.fit(nested, "normal", torch.zeros(3, 2), steps=2)
    assert fit.predict(torch.zeros(3, 2), n=4)["y"].shape == (4, 3, 2)
    assert fit.predict(torch.zeros(5, 2), n=4, new="row")["y"].shape == (4, 5, 2)


def test_latent_that_has_the_length_of_the_data_outside_a_plate_is_refused_by_name() -> None:
    def process(y: Tensor) -> None:
        f = pyro.sample("f", dist.Normal(torch.zeros(len(y)), 1.0).to_event(1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(f, 1.0), obs=y)

    fit = ingle.fit(process, "normal", X, steps=2)
    with pytest.raises(ingle.OptionError, match=r"latent 'f' has shape \(4,\) with these data and had \(12,\)"):
        fit.predict(X[:4], new="data")


def test_autoencoder_encodes_new_data() -> None:
    model = VAE(4, 2)
    guide = VAEGuide(model)
    fit = ingle.fit(model, guide, torch.ones(30, 4), steps=3, batch_size={"data": 10})
    new = torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 3)
    drawn, again = (fit.predict(new, n=2_000, new=("data",)) for _ in range(2))
    assert torch.equal(drawn["x"], again["x"])
    assert drawn["x"].shape == (2_000, 3, 4)
    with torch.no_grad():
        code = guide.encode(new).base_dist
    assert_moments((drawn["z"] - code.loc) / code.scale, 0.0, 1.0)


def test_new_points_of_a_mixture_take_their_component_from_the_weights() -> None:
    """A frequency of 20,000 draws and the mean weight, within 5 standard errors."""
    model = GaussianMixture(2)
    points = torch.cat([torch.full((30, 1), -2.0), torch.full((10, 1), 2.0)]) + 0.3 * torch.sin(X.repeat(4)[:40, None])
    fit = ingle.fit(model, GaussianMixtureGuide(model), points, steps=300)
    drawn = fit.predict(torch.zeros(5, 1), n=4_000, new="point")
    assert drawn["component"].shape == (4_000, 5)
    share = drawn["weights"][:, 1].mean()
    assert abs(float(drawn["component"].float().mean() - share)) < 5 * 0.5 / 4_000**0.5
    same = fit.predict(n=200)["component"]
    assert torch.equal(same[0], same.mode(0).values)  # the rows of the fit keep theirs, which are told apart by far
    assert int((same[:, 0] != same[:, -1]).sum()) == 200


def test_discrete_latent_outside_the_new_rows_keeps_its_posterior() -> None:
    """A switch for all rows; 30 data at 5 leave no doubt about it."""

    def switched(y: Tensor) -> None:
        on = pyro.sample("on", dist.Bernoulli(0.5))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 0.1))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(5.0 * on, scale), obs=y)

    fit = ingle.fit(switched, "normal", torch.full((30,), 5.0), steps=100)
    drawn = fit.predict(torch.zeros(2), n=500, new="data")
    assert bool((drawn["on"] == 1).all())
    assert float(drawn["y"].mean()) == pytest.approx(5.0, abs=0.3)


def test_plate_that_draws_rows_by_itself_is_left_out() -> None:
    def own(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", len(y), subsample_size=3) as i:
            pyro.sample("y", dist.Normal(mu, 1.0), obs=y[i])

    fit = ingle.fit(own, "normal", X, steps=3)
    assert set(fit.predict(n=4)) == {"mu"}
    data = fit.to_arviz(4)
    assert "plate data draws rows by itself" in data.posterior.attrs["no_log_weight"]
    assert not hasattr(data, "log_likelihood")


def rigid(y: Tensor) -> None:
    """Follows the data nowhere, and has no parameter that would tell."""
    pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 12):
        pyro.sample("z", dist.Normal(torch.zeros(12), 1.0))


REFUSED: dict[str, tuple[Callable[[ingle.Fit], Any], type[Exception], str]] = {
    "n of zero": (lambda fit: fit.predict(n=0), ingle.OptionError, "n must be a positive integer"),
    "another size": (lambda fit: fit.predict(torch.zeros(5)), ingle.OptionError, "5 rows in the data and had 12"),
    "no such plate": (lambda fit: fit.predict(new="rows"), ingle.OptionError, "plates are: 'data'"),
    "new is a number": (lambda fit: fit.predict(new=3), ingle.OptionError, "names of plates"),  # type: ignore[arg-type]
    "other arguments": (lambda fit: fit.predict({"x": X}), ingle.DataError, "do not fit the call"),
    "fixed guide": (lambda fit: fit.predict(torch.zeros(5), new="data"), ingle.OptionError, "cannot serve these rows"),
    "too many": (lambda fit: fit.predict(n=10**12), ingle.OptionError, "take fewer draws"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused(case: str) -> None:
    call, kind, message = REFUSED[case]
    fit = ingle.fit(grouped, rigid, X, steps=1)
    with pytest.raises(kind, match=message):
        call(fit)


def test_covariates_of_a_wrong_shape_are_refused(fit: ingle.Fit) -> None:
    with pytest.raises(ingle.ProgramError, match=r"mean|'y'"):
        fit.predict({"x": X[:, None]}, n=2)


def test_prior_predictive_has_the_moments_of_the_prior() -> None:
    drawn = ingle.prior_predictive(line, {"x": torch.full((2,), 3.0), "y": torch.full((2,), 50.0)}, 4_000)
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "w": (4_000,), "mean": (4_000, 2), "y": (4_000, 2),
    }  # fmt: skip
    assert_moments(drawn["w"], 0.0, 1.0)
    assert_moments(drawn["y"], 0.0, 9.25)


def test_prior_predictive_is_repeatable_and_needs_no_observation(where: dict[str, Any]) -> None:
    first, again = (ingle.prior_predictive(line, {"x": X}, 3, seed=7, **where)["y"] for _ in range(2))
    assert torch.equal(first, again)
    assert (first.dtype, first.device.type) == (where["dtype"], where["device"].type)


def test_prior_predictive_leaves_modules_as_they_are() -> None:
    model = VAE(3, 2).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert ingle.prior_predictive(model, torch.zeros(5, 3), 10)["x"].dtype == torch.float32
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prior_that_leaves_the_range_of_an_argument_is_refused() -> None:
    def careless(y: Tensor) -> None:
        s = pyro.sample("s", dist.Normal(1.0, 1.0))
        with pyro.plate("data", len(y)):
            pyro.sample("y", dist.Normal(0.0, s), obs=y)

    with pytest.raises(
        ingle.ProgramError, match=r"scale of its Normal at site 'y' is out of its range in \d+ of 1,000"
    ):
        ingle.prior_predictive(careless, torch.zeros(4), 1_000)


def test_prior_predictive_finds_shapes_that_would_give_n_by_n() -> None:
    with pytest.raises(ingle.ProgramError, match="log_prob shape"):
        ingle.prior_predictive(line, {"x": X[:, None]}, 5)


def test_improper_prior_cannot_be_drawn() -> None:
    def improper(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.ImproperUniform(dist.constraints.real, (), ()))
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    with pytest.raises(ingle.ProgramError, match="'mu'"):
        ingle.prior_predictive(improper, torch.tensor(1.0), 5)


@pytest.mark.parametrize(
    ("model", "n", "kind", "message"),
    [
        (line, 0, ingle.OptionError, "positive integer"),
        (None, 5, ingle.OptionError, "model must be a callable"),
        (grouped, 5, ingle.DataError, "do not fit the call"),
    ],
)
def test_prior_predictive_refuses(model: Any, n: int, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=message):
        ingle.prior_predictive(model, {"x": X}, n)
