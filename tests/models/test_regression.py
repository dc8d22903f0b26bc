"""The regressions against closed forms, quadrature, long NUTS, and what users hand over."""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pyro
import pyro.optim
import pytest
import torch
from pyro.distributions import constraints
from scipy import stats
from sklearn.datasets import load_diabetes
from support import LINEAR, LOGISTIC, assert_near_reference, breast_cancer, diabetes
from torch import Tensor

import ingle
from ingle.guides.regression import LinearRegressionGuide, LogisticRegressionGuide, _uncorrelated
from ingle.models.regression import LinearRegression, LogisticRegression

STL = ingle.objectives.STL_ELBO()  # without noise once the guide is the posterior
NOISE = 2.0


def line(rows: int = 60) -> tuple[Tensor, Tensor]:
    """Three columns, two of them close to one another, and a line through them with noise of sd 2."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(rows, 3, generator=generator, dtype=torch.float64)
    x[:, 2] = x[:, 1] + 0.1 * x[:, 2]
    x = x * torch.tensor([1.0, 3.0, 3.0]) + torch.tensor([5.0, -2.0, 0.0])
    noise = NOISE * torch.randn(rows, generator=generator, dtype=torch.float64)
    return x, 40.0 + x @ torch.tensor([2.0, -1.0, 0.5], dtype=torch.float64) + noise


def quick(steps: int = 300, lr: float = 0.1) -> dict[str, Any]:
    """Few steps, long at first and short at the end."""
    optim = pyro.optim.ClippedAdam({"lr": lr, "lrd": 0.02 ** (1 / steps)})
    return {"objective": STL, "optim": optim, "steps": steps, "compile": "off"}


X, Y = line()
KNOWN = LinearRegression.standardised(X, Y, noise=NOISE)


def marginal(model: LinearRegression, x: Tensor) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Mean and covariance of y with intercept and weights integrated out, written down once more, in NumPy."""
    z = (x.numpy() - np.asarray(model.centre)) / np.asarray(model.spread)
    covariance = model.intercept_scale**2 + model.weights_scale**2 * z @ z.T
    noise = float(model.noise or 0.0)
    return np.full(len(x), model.y_centre), model.y_spread**2 * covariance + noise**2 * np.eye(len(x))


def together(fit: ingle.Fit, n: int = 20_000) -> Tensor:
    draws = fit.draws(n)
    return torch.cat([draws["intercept"].unsqueeze(-1), draws["weights"]], dim=-1).double().cpu()


def test_closed_forms_are_those_of_the_joint_normal() -> None:
    mean, covariance = marginal(KNOWN, X)
    assert KNOWN.log_evidence(X, Y) == pytest.approx(stats.multivariate_normal.logpdf(Y, mean, covariance), abs=1e-8)

    # All rows but the last ten, then these given those, by the rule for normals.
    gain = covariance[-10:, :-10] @ np.linalg.inv(covariance[:-10, :-10])
    found = KNOWN.predictive(X[:-10], Y[:-10], X[-10:])
    np.testing.assert_allclose(found.mean, mean[-10:] + gain @ (Y[:-10].numpy() - mean[:-10]), rtol=1e-9)
    variance = (covariance[-10:, -10:] - gain @ covariance[:-10, -10:]).diagonal()
    np.testing.assert_allclose(found.stddev, np.sqrt(variance), rtol=1e-9)

    z = np.column_stack([np.ones(len(X)), (X - X.mean(0)) / X.std(0)])
    least_squares = np.linalg.lstsq(z, (Y - Y.mean()) / Y.std(), rcond=None)[0]
    flat = replace(KNOWN, intercept_scale=1e5, weights_scale=1e5).posterior(X, Y)
    np.testing.assert_allclose(flat.mean, least_squares, atol=1e-6)


def test_known_noise_has_its_exact_posterior(where: dict[str, Any]) -> None:
    fit = ingle.fit(KNOWN, LinearRegressionGuide(KNOWN), {"x": X, "y": Y}, **quick(), **where)
    exact, found = KNOWN.posterior(X, Y), together(fit)
    assert float(((found.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.1
    assert float((found.std(0) / exact.stddev - 1).abs().max()) < 0.05
    correlation = exact.covariance_matrix / exact.stddev.outer(exact.stddev)
    assert float((torch.corrcoef(found.T) - correlation).abs().max()) < 0.03
    assert float(correlation[2, 3]) < -0.9  # which independent factors could not hold

    evidence = fit.log_evidence(5_000)
    assert evidence.log_z == pytest.approx(KNOWN.log_evidence(X, Y), abs=5 * evidence.se + 2e-3)


@pytest.mark.parametrize("model", [KNOWN, LinearRegression(noise=NOISE, y_centre=40.0)])
def test_evidence_is_exact_at_the_posterior(model: LinearRegression, where: dict[str, Any]) -> None:
    """Also where columns are not centred, so that intercept and weights move together."""
    where["dtype"] = torch.float64
    exact = model.posterior(X, Y)
    noise = NOISE / model.y_spread
    basis = _uncorrelated(model, X, noise)
    factor = torch.linalg.solve(basis, exact.scale_tril) / noise
    scale = factor.diagonal()
    pyro.param("coefficients_loc", torch.linalg.solve(basis, exact.mean))
    pyro.param("coefficients_scale", scale, constraint=constraints.softplus_positive)
    pyro.param("coefficients_tril", factor / scale.unsqueeze(-1), constraint=constraints.unit_lower_cholesky)
    data = {"x": X, "y": Y}
    evidence = ingle.log_evidence(model, LinearRegressionGuide(model), data, num_samples=500, **where)
    pyro.clear_param_store()
    assert evidence.verdict == "exact"
    assert evidence.log_z == pytest.approx(model.log_evidence(X, Y), abs=1e-6)


def test_new_rows_are_predicted(where: dict[str, Any]) -> None:
    fit = ingle.fit(KNOWN, LinearRegressionGuide(KNOWN), {"x": X[:-7], "y": Y[:-7]}, **quick(), **where)
    n = 10_000
    drawn = fit.predict({"x": X[-7:]}, n, new=("row",))
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "intercept": (n,), "weights": (n, 3), "slopes": (n, 3), "intercept_at_zero": (n,), "y": (n, 7),
    }  # fmt: skip
    exact, y = KNOWN.predictive(X[:-7], Y[:-7], X[-7:]), drawn["y"].double().cpu()
    assert float(((y.mean(0) - exact.mean) / exact.stddev).abs().max()) < 4.5 / math.sqrt(n) + 0.02
    assert float((y.std(0) / exact.stddev - 1).abs().max()) < 4.5 / math.sqrt(2 * n) + 0.02


def test_slopes_are_those_of_the_columns(where: dict[str, Any]) -> None:
    fit = ingle.fit(KNOWN, LinearRegressionGuide(KNOWN), {"x": X, "y": Y}, **quick(30), **where)
    draws = {name: value.double().cpu() for name, value in fit.draws(50).items()}
    by_weights = KNOWN.mean(X, draws["intercept"], draws["weights"])
    by_slopes = draws["intercept_at_zero"].unsqueeze(-1) + draws["slopes"] @ X.T
    assert by_weights.shape == (50, len(X))
    torch.testing.assert_close(by_slopes, by_weights, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("steps", [400, pytest.param(None, marks=pytest.mark.long)])
def test_learned_noise_against_nuts(steps: int | None, where: dict[str, Any]) -> None:
    x, y = diabetes()
    model = LinearRegression.standardised(x, y)
    options = {"objective": STL} if steps is None else quick(steps)
    fit = ingle.fit(model, LinearRegressionGuide(model), {"x": x, "y": y}, **options, **where)
    assert_near_reference(fit, LINEAR, within=0.15)


def over_noise(model: LinearRegression, x: Tensor, y: Tensor, grid: Tensor) -> tuple[float, Tensor, Tensor]:
    """Log evidence, mean and sd of (noise, intercept, weights): the closed form, integrated over the noise."""
    given = [replace(model, noise=float(noise)) for noise in grid]
    evidence = torch.tensor([each.log_evidence(x, y) for each in given], dtype=torch.float64)
    log_p = evidence + torch.distributions.Exponential(1 / (model.noise_scale * model.y_spread)).log_prob(grid)
    p = log_p.softmax(0).unsqueeze(-1)
    posteriors = [each.posterior(x, y) for each in given]
    means = torch.column_stack([grid, torch.stack([each.mean for each in posteriors])])
    variances = torch.column_stack([torch.zeros_like(grid), torch.stack([each.variance for each in posteriors])])
    mean = (p * means).sum(0)
    variance = (p * (variances + (means - mean) ** 2)).sum(0)
    return float(log_p.logsumexp(0) + (grid[1] - grid[0]).log()), mean, variance.sqrt()


@pytest.mark.long
def test_learned_noise_against_quadrature(where: dict[str, Any]) -> None:
    """Posterior and evidence; the ten columns of the diabetes data, some nearly copies of others."""
    x, y = (torch.tensor(part) for part in load_diabetes(return_X_y=True, scaled=False))
    model = LinearRegression.standardised(x, y)
    fit = ingle.fit(model, LinearRegressionGuide(model), {"x": x, "y": y}, **quick(500), **where)
    exact, mean, sd = over_noise(model, x, y, torch.linspace(45.0, 65.0, 201, dtype=torch.float64))
    found = torch.column_stack([fit.draws(20_000)["noise"].double().cpu(), together(fit)])
    assert float(((found.mean(0) - mean) / sd).abs().max()) < 0.15
    assert float((found.std(0) / sd - 1).abs().max()) < 0.15
    evidence = fit.log_evidence(10_000)
    assert evidence.verdict == "reliable"
    assert evidence.log_z == pytest.approx(exact, abs=5 * evidence.se + 5e-3)  # float32 of 2,400 nats


@pytest.mark.parametrize("steps", [500, pytest.param(None, marks=pytest.mark.long)])
def test_logistic_against_nuts(steps: int | None, where: dict[str, Any]) -> None:
    x, y = breast_cancer()
    model = LogisticRegression.standardised(x)
    options = {} if steps is None else quick(steps, 0.2)
    fit = ingle.fit(model, LogisticRegressionGuide(model), {"x": x, "y": y}, **options, **where)
    assert_near_reference(fit, LOGISTIC, within=0.15)


def test_minibatches(where: dict[str, Any]) -> None:
    x, y = line(300)
    linear = LinearRegression.standardised(x, y, noise=NOISE)
    logistic = LogisticRegression.standardised(x)
    options: dict[str, Any] = {"batch_size": {"row": 100}, "steps": 400, "compile": "off", **where}
    fit = ingle.fit(linear, LinearRegressionGuide(linear), {"x": x, "y": y}, **options)
    exact, found = linear.posterior(x, y), together(fit, 5_000)
    assert float(((found.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.5
    assert float((found.std(0) / exact.stddev - 1).abs().max()) < 0.3
    fit = ingle.fit(logistic, LogisticRegressionGuide(logistic), {"x": x, "y": y > y.mean()}, **options | {"steps": 5})
    assert "100 of 300 rows" in repr(fit)


def test_particles_may_be_vectorised(where: dict[str, Any]) -> None:
    """Each of them is one run: the bound of many is that of one, with less noise."""
    objective = ingle.objectives.Trace_ELBO(num_particles=40, vectorize_particles=True, max_plate_nesting=1)
    for noise in (None, NOISE):
        model = replace(KNOWN, noise=noise)
        losses = [
            ingle.fit(model, LinearRegressionGuide(model), {"x": X, "y": Y}, steps=1, **options, **where).losses[0]
            for options in ({"objective": objective}, {"objective": ingle.objectives.Trace_ELBO(num_particles=40)})
        ]
        assert losses[0] == pytest.approx(losses[1], rel=0.1)


def test_columns_on_scales_far_apart(where: dict[str, Any]) -> None:
    """Columns of 1e6 and 1e-3, a condition number of 1e9 before standardising: posterior and slopes stay exact."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(80, 2, generator=generator, dtype=torch.float64) * torch.tensor([1e6, 1e-3]).double()
    x = x + torch.tensor([3e6, 2e-3]).double()
    y = 7.0 + x @ torch.tensor([2e-6, 3e3]).double() + torch.randn(80, generator=generator, dtype=torch.float64)
    assert float(torch.linalg.cond(x)) > 1e8
    model = LinearRegression.standardised(x, y, noise=1.0)
    design = torch.cat([torch.ones(80, 1), model.standardise(x)], 1)
    assert float(torch.linalg.cond(design)) < 2

    fit = ingle.fit(model, LinearRegressionGuide(model), {"x": x, "y": y}, **quick(), **where)
    exact, found = model.posterior(x, y), together(fit)
    assert float(((found.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.1
    assert float((found.std(0) / exact.stddev - 1).abs().max()) < 0.05
    slopes = fit.draws(20_000)["slopes"].double().cpu()
    unit = model.y_spread / torch.tensor(model.spread, dtype=torch.float64)
    torch.testing.assert_close(slopes.mean(0), unit * exact.mean[1:], rtol=0.01, atol=0.0)


def test_weight_of_a_constant_column_keeps_its_prior(where: dict[str, Any]) -> None:
    """Also where the constant has no short binary form, and beside a column that it would otherwise be a copy of."""
    x = torch.cat([X, torch.full((len(X), 1), 0.1, dtype=torch.float64)], 1)
    with pytest.warns(UserWarning, match=r"column 3 of x is constant \(0.1\).*posterior is its prior"):
        model = LinearRegression.standardised(x, Y, noise=NOISE)
    assert (model.centre[3], model.spread[3]) == (0.1, 1.0)  # type: ignore[index]
    exact = model.posterior(x, Y)
    assert (float(exact.mean[4]), float(exact.stddev[4])) == pytest.approx((0.0, model.weights_scale))
    fit = ingle.fit(model, LinearRegressionGuide(model), {"x": x, "y": Y}, **quick(), **where)
    found = together(fit)
    assert float(((found.mean(0) - exact.mean) / exact.stddev).abs().max()) < 0.1
    assert float((found.std(0) / exact.stddev - 1).abs().max()) < 0.05
    with pytest.warns(UserWarning, match="column 3 of x is constant"):
        LogisticRegression.standardised(x)
    with pytest.warns(UserWarning, match=r"y is constant \(2\)"):
        assert LinearRegression.standardised(X, torch.full((len(X),), 2)).y_spread == 1.0


def separated_by_grid(scale: float, x: Tensor, y: Tensor) -> tuple[float, float]:
    """Posterior mean and sd of the one weight, on a grid over intercept and weight."""
    model = LogisticRegression.standardised(x, weights_scale=scale)
    intercept = torch.linspace(-12, 12, 241, dtype=torch.float64)
    weight = torch.linspace(-1 * scale, 6 * scale, 561, dtype=torch.float64)
    a, b = (each.flatten() for each in torch.meshgrid(intercept, weight, indexing="ij"))
    logits = model.logits(x, a, b.unsqueeze(-1))
    log_p = -torch.nn.functional.softplus(torch.where(y.bool(), -logits, logits)).sum(-1)
    p = (log_p - (a / model.intercept_scale) ** 2 / 2 - (b / scale) ** 2 / 2).softmax(0)
    mean = float((p * b).sum())
    return mean, math.sqrt(float((p * (b - mean) ** 2).sum()))


def test_separated_classes_have_a_posterior_of_the_prior_s_making(where: dict[str, Any]) -> None:
    x = torch.arange(10, dtype=torch.float64).unsqueeze(-1)
    y = (x[:, 0] > 4.5).double()
    means = []
    for scale in (1.0, 2.5, 10.0):
        model = LogisticRegression.standardised(x, weights_scale=scale)
        fit = ingle.fit(model, LogisticRegressionGuide(model), {"x": x, "y": y}, **quick(400, 0.2), **where)
        found, (mean, sd) = fit.draws(10_000)["weights"].double().cpu(), separated_by_grid(scale, x, y)
        means.append(float(found.mean()))
        if scale < 10:  # beyond, the posterior is skewed, and so far from the start that it takes 1,000 steps
            assert abs(means[-1] - mean) < 0.15 * sd
            assert float(found.std()) == pytest.approx(sd, rel=0.15)
    assert means[0] < means[1] / 1.5 < means[2] / 2.5


BAD_X = {
    "one column": (X[:, 0], r"\(rows, columns\), got \(60,\): for one column, give x\[:, None\]"),
    "three dimensions": (X[None], r"got \(1, 60, 3\)"),
    "nan": (torch.where(X[7, 1] == X, math.nan, X), "1 of the 180 values in x .* first in row 7, column 1"),
    "infinite": (torch.where(X[0, 2] == X, math.inf, X), "NaN or infinite, the first in row 0, column 2"),
    "columns": (X[:, :2], "x has 2 columns, and centre has 3 numbers"),
}
BAD_Y = {
    "matrix": (Y[:, None], r"shape \(60,\), .* got \(60, 1\): give y.squeeze\(-1\)"),
    "short": (Y[1:], r"shape \(60,\), .* got \(59,\)"),
}


@pytest.mark.parametrize("name", BAD_X)
@pytest.mark.parametrize("pair", ["linear", "logistic"])
def test_columns_that_cannot_be_used(name: str, pair: str) -> None:
    x, words = BAD_X[name]
    linear, logistic = KNOWN, LogisticRegression.standardised(X)
    model, guide, y = {
        "linear": (linear, LinearRegressionGuide(linear), Y),
        "logistic": (logistic, LogisticRegressionGuide(logistic), (Y.mean() < Y).double()),
    }[pair]
    with pytest.raises(ValueError, match=words):
        model(x, y)
    with pytest.raises(ValueError, match=words):
        ingle.fit(model, guide, {"x": x, "y": y}, steps=1)
    if name != "columns":
        with pytest.raises(ValueError, match=words):
            type(model).standardised(x)


@pytest.mark.parametrize("name", BAD_Y)
def test_outcomes_of_another_shape(name: str) -> None:
    y, words = BAD_Y[name]
    for model in (KNOWN, LogisticRegression()):
        with pytest.raises(ValueError, match=words):
            model(X, y)
    with pytest.raises(ValueError, match=words):
        ingle.fit(KNOWN, LinearRegressionGuide(KNOWN), {"x": X, "y": y}, steps=1)
    with pytest.raises(ValueError, match=words):
        LinearRegression.standardised(X, y)
    with pytest.raises(ValueError, match=words):
        KNOWN.posterior(X, y)


def test_outcomes_that_are_not_finite() -> None:
    y = Y.clone()
    y[3] = math.nan
    with pytest.raises(ValueError, match="1 of the 60 values in y are NaN or infinite, the first in row 3"):
        KNOWN(X, y)


@pytest.mark.parametrize(
    ("y", "words"),
    [
        (torch.arange(60) % 3, "20 of its 60 values are not: it has 0, 1, 2"),
        (torch.where(Y.mean() < Y, 1.0, -1.0), "it has -1, 1"),
        (torch.full((60,), math.nan), "60 of its 60 values are not: it has nan"),
        (torch.linspace(0, 1, 60), "58 of its 60 values .* …"),
    ],
)
def test_labels_out_of_range(y: Tensor, words: str) -> None:
    model = LogisticRegression.standardised(X)
    with pytest.raises(ValueError, match=words):
        model(X, y)
    with pytest.raises(ValueError, match=words):
        ingle.fit(model, LogisticRegressionGuide(model), {"x": X, "y": y}, steps=1)


def test_labels_of_any_dtype_are_the_same_fit(where: dict[str, Any]) -> None:
    model, y = LogisticRegression.standardised(X), Y.mean() < Y
    losses = [
        ingle.fit(
            model, LogisticRegressionGuide(model), {"x": X, "y": y.to(kind)}, steps=5, compile="off", **where
        ).losses
        for kind in (torch.bool, torch.int64, torch.float64)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    np.testing.assert_array_equal(losses[0], losses[2])


@pytest.mark.parametrize("model", [KNOWN, LinearRegression(noise=1.0)])
def test_other_columns_cannot_be_predicted(model: LinearRegression, where: dict[str, Any]) -> None:
    """Of the standardised model in its own words; of the other by Ingle, which sees another shape of the weights."""
    fit = ingle.fit(model, LinearRegressionGuide(model), {"x": X, "y": Y}, **quick(2), **where)
    with pytest.raises(ValueError, match=r"x has 2 columns|'weights' has shape \(2,\) .* had \(3,\)"):
        fit.predict({"x": X[:, :2]}, 10, new=("row",))


def test_standardised_takes_arrays_and_leaves_the_rest(where: dict[str, Any]) -> None:
    model = LinearRegression.standardised(X.numpy(), Y.numpy(), weights_scale=1.0)
    assert model == replace(KNOWN, noise=None, weights_scale=1.0)
    only_x = LinearRegression.standardised(X.tolist(), y_centre=3.0)
    assert (only_x.y_centre, only_x.y_spread, only_x.centre) == (3.0, 1.0, KNOWN.centre)
    np.testing.assert_allclose(KNOWN.spread, X.std(0), rtol=1e-12)
    whole = (X.mean(0) < X).long()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        binary = LogisticRegression.standardised(whole)
    fit = ingle.fit(binary, LogisticRegressionGuide(binary), {"x": whole, "y": Y.mean() < Y}, **quick(2), **where)
    assert np.isfinite(fit.losses).all()


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            functools.partial(LinearRegression, spread=(1.0, 0.0)),
            r"spread must be positive and finite, got \(1.0, 0.0\)",
        ),
        (functools.partial(LinearRegression, noise=-1.0), "noise must be positive"),
        (functools.partial(LinearRegression, y_spread=math.inf), "y_spread must be positive and finite"),
        (functools.partial(LogisticRegression, weights_scale=0.0), "weights_scale must be positive"),
        (functools.partial(LogisticRegression, centre=(0.0,), spread=(1.0, 2.0)), r"numbers of columns: \[1, 2\]"),
        (functools.partial(LogisticRegression, centre=math.nan), "centre must be finite"),
        (functools.partial(LinearRegression().posterior, X, Y), "give noise="),
    ],
)
def test_models_that_cannot_be(make: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        make()
