"""The Bayesian neural network: exact without hidden layers, calibrated with them, the same in any units."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from numpy.typing import NDArray
from pyro import poutine
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression
from torch import Tensor

import ingle
from ingle.guides.bayesian_neural_network import BayesianNeuralNetworkGuide
from ingle.models.bayesian_neural_network import BayesianNeuralNetwork
from ingle.objectives import STL_ELBO, Trace_ELBO

NOISE = 0.3


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def waves(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """sin(2x) + 0.3x and noise of known size, x on both sides of a gap between -0.7 and 0.7."""
    source = generator(seed)
    u = 3.6 * torch.rand(n, generator=source).double() - 1.8
    x = u + 0.7 * u.sign()
    return x[:, None], torch.sin(2 * x) + 0.3 * x + NOISE * torch.randn(n, generator=source).double()


def diabetes(seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A random split into 331 rows to fit and 111 held out."""
    x, y = (torch.tensor(each) for each in load_diabetes(return_X_y=True, scaled=False))
    order = torch.randperm(len(y), generator=generator(seed))
    held, kept = order[:111], order[111:]
    return x[kept], y[kept], x[held], y[held]


@dataclass
class Score:
    """Of held-out rows: which the 90% band covers, the log density of each, the error of the mean."""

    covered: NDArray[np.bool_]
    log_density: NDArray[np.float64]
    error: NDArray[np.float64]


def score(fit: ingle.Fit, x: Tensor, y: Tensor, n: int = 1_000) -> Score:
    drawn = {name: value.double().cpu() for name, value in fit.predict({"x": x}, n, new=("row",)).items()}
    low, high = torch.quantile(drawn["y"], torch.tensor([0.05, 0.95]).double(), dim=0)
    density = torch.distributions.Normal(drawn["mean"], drawn["sigma"][:, None]).log_prob(y)
    return Score(
        ((y > low) & (y < high)).numpy(),
        (density.logsumexp(0) - math.log(n)).numpy(),
        (drawn["mean"].mean(0) - y).numpy(),
    )


def fitted(
    model: BayesianNeuralNetwork, x: Tensor, y: Tensor, where: dict[str, Any], seed: int = 0, **options: Any
) -> ingle.Fit:
    return ingle.fit(model, BayesianNeuralNetworkGuide(model, seed), {"x": x, "y": y}, seed=seed, **where, **options)


@dataclass
class Exact:
    """A linear model's posterior, the noise integrated out on a grid: moments of (weights, bias), and log p(y)."""

    mean: Tensor
    covariance: Tensor
    variance: float
    log_z: float


def exact(model: BayesianNeuralNetwork, x: Tensor, y: Tensor) -> Exact:
    columns = torch.cat([standardised(model, x), torch.ones(len(x), 1).double()], -1)
    target = (y - model.y_centre) / model.y_spread
    scales = [model.weight_scale / math.sqrt(model.num_columns)] * model.num_columns + [model.bias_scale]
    prior = torch.tensor(scales).double().square()
    step = 0.01
    log_sigma = torch.arange(-4, 2, step).double()
    weights, means, covariances = [], [], []
    for sigma in log_sigma.exp():
        covariance = torch.linalg.inv(torch.diag(1 / prior) + columns.T @ columns / sigma**2)
        means.append(covariance @ columns.T @ target / sigma**2)
        covariances.append(covariance)
        spread = columns @ torch.diag(prior) @ columns.T + sigma**2 * torch.eye(len(x)).double()
        likelihood = torch.distributions.MultivariateNormal(torch.zeros(len(x)).double(), spread).log_prob(target)
        density = torch.distributions.HalfNormal(torch.tensor(model.noise_scale).double()).log_prob(sigma)
        weights.append(likelihood + density + sigma.log() + math.log(step))
    logs, centres = torch.stack(weights), torch.stack(means)
    share = logs.softmax(0)
    mean = share @ centres
    between = (centres - mean).T @ torch.diag(share) @ (centres - mean)
    within = (share[:, None, None] * torch.stack(covariances)).sum(0)
    variance = float(share @ (2 * log_sigma).exp())
    log_z = float(logs.logsumexp(0)) - len(y) * math.log(model.y_spread)
    return Exact(mean, within + between, variance, log_z)


def standardised(model: BayesianNeuralNetwork, x: Tensor) -> Tensor:
    return (x - torch.tensor(model.centre).double()) / torch.tensor(model.spread).double()


def linear(*, orthogonal: bool) -> tuple[Tensor, Tensor]:
    """Three columns in other units, and y in yet others; orthogonal columns leave the posterior's factors apart."""
    source = generator(5)
    x = torch.randn(60, 3, generator=source).double()
    x = x - x.mean(0)
    x = torch.linalg.qr(x).Q if orthogonal else x @ torch.tensor([[1.0, 0.7, 0], [0, 1, 0], [0, 0.3, 1]]).double()
    x = x / x.std(0)
    y = x @ torch.tensor([0.8, 0.0, -0.5]).double() + 0.6 * torch.randn(60, generator=source).double()
    return 20 + 4 * x, 500 + 30 * y


@pytest.mark.parametrize("guide", ["ours", pytest.param("multivariate_normal", marks=pytest.mark.long)])
def test_without_hidden_layers_it_has_the_exact_posterior(guide: str, where: dict[str, Any]) -> None:
    """Weights, bias, predictions and evidence of a linear regression, on columns that the guide can follow."""
    x, y = linear(orthogonal=guide == "ours")
    model = BayesianNeuralNetwork.standardised(x, y, hidden=())
    known = exact(model, x, y)
    fit = ingle.fit(
        model,
        BayesianNeuralNetworkGuide(model) if guide == "ours" else "multivariate_normal",
        {"x": x, "y": y},
        objective=STL_ELBO(num_particles=8, vectorize_particles=True),
        steps=1_500,
        compile="off",
        **where,
    )
    drawn = fit.draws(20_000)
    found = torch.cat([drawn["weight_out"], drawn["bias_out"][:, None]], -1).double().cpu()
    sd = known.covariance.diagonal().sqrt()
    # 5 standard errors of 20,000 draws are 0.035 sd and 2.5%; the rest is for the family and the last steps.
    assert float(((found.mean(0) - known.mean) / sd).abs().max()) < 0.1
    assert float((found.std(0) / sd - 1).abs().max()) < 0.06

    new = 20 + 4 * torch.tensor([[0.0, 0.0, 0.0], [2.0, -1.0, 1.0], [6.0, 6.0, -6.0]]).double()
    columns = torch.cat([standardised(model, new), torch.ones(3, 1).double()], -1)
    function = ((columns @ known.covariance) * columns).sum(-1)
    predicted = fit.predict({"x": new}, 20_000, new=("row",))
    mean, y_new = (predicted[name].double().cpu() for name in ("mean", "y"))
    expected = model.y_centre + model.y_spread * columns @ known.mean
    assert float(((mean.mean(0) - expected) / (model.y_spread * function.sqrt())).abs().max()) < 0.1
    assert float((mean.std(0) / (model.y_spread * function.sqrt()) - 1).abs().max()) < 0.06
    assert float((y_new.std(0) / (model.y_spread * (function + known.variance).sqrt()) - 1).abs().max()) < 0.06

    evidence = fit.log_evidence(10_000)
    assert abs(evidence.log_z - known.log_z) < 5 * evidence.se + 0.02


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_the_network_by_hand_for_one_run_and_for_particles(activation: Any, dtype: torch.dtype) -> None:
    model = BayesianNeuralNetwork(
        2, (4, 3), activation, centre=(1.0, -2.0), spread=(3.0, 0.5), y_centre=10.0, y_spread=7.0
    )
    x = torch.randn(6, 2, generator=generator(0))
    act = torch.tanh if activation == "tanh" else torch.relu
    for particles in (1, 5):
        with pyro.plate("particles", particles, dim=-2):
            nodes: Any = poutine.trace(model).get_trace(x).nodes
        site = {name: node["value"] for name, node in nodes.items() if node["type"] == "sample"}
        for p in range(particles):
            weight = {
                name: value.reshape(particles, *value.shape[2:])[p] for name, value in site.items() if "_" in name
            }
            h = (x - torch.tensor([1.0, -2.0])) / torch.tensor([3.0, 0.5])
            h = act(h @ weight["weight_1"] + weight["bias_1"])
            h = act(h @ weight["weight_2"] + weight["bias_2"])
            expected = 10 + 7 * (h @ weight["weight_out"] + weight["bias_out"])
            torch.testing.assert_close(site["mean"][p], expected)


def test_priors_shrink_with_the_fan_in_and_are_in_units_of_y() -> None:
    model = BayesianNeuralNetwork(9, (4,), weight_scale=3.0, bias_scale=0.5, noise_scale=0.2, y_spread=10.0)
    nodes: Any = poutine.trace(model).get_trace(torch.zeros(5, 9)).nodes
    found = {
        name: (tuple(nodes[name]["value"].shape), float(nodes[name]["fn"].base_dist.scale.flatten()[0]))
        for name in ("weight_1", "bias_1", "weight_out")
    }
    assert found == {"weight_1": ((9, 4), 1.0), "bias_1": ((4,), 0.5), "weight_out": ((4,), 1.5)}
    assert float(nodes["bias_out"]["fn"].scale) == 0.5
    assert float(nodes["sigma"]["fn"].scale) == 2.0


def test_units_do_not_matter_once_standardised(device: torch.device) -> None:
    """Columns of 1e6 beside 1e-3, y in thousands: the same fit, told in other units."""
    source = generator(1)
    x = torch.randn(40, 2, generator=source).double()
    y = x[:, 0].sin() - x[:, 1] + 0.1 * torch.randn(40, generator=source).double()
    column, shift = torch.tensor([1e6, 1e-3]).double(), torch.tensor([3e6, -0.2]).double()
    where = {"device": device, "dtype": torch.float64, "steps": 60, "compile": "off"}
    plain = fitted(BayesianNeuralNetwork.standardised(x, y, hidden=(5,)), x, y, where)
    moved = x * column + shift
    other = fitted(BayesianNeuralNetwork.standardised(moved, 4e3 * y - 7e4, hidden=(5,)), moved, 4e3 * y - 7e4, where)
    before, after = plain.predict(n=20), other.predict(n=20)
    for name in ("mean", "y"):
        torch.testing.assert_close(after[name], 4e3 * before[name] - 7e4, rtol=1e-7, atol=1e-3)
    torch.testing.assert_close(after["sigma"], 4e3 * before["sigma"])
    torch.testing.assert_close(after["weight_1"], before["weight_1"])
    single = fitted(
        BayesianNeuralNetwork.standardised(moved, y, hidden=(5,)), moved, y, where | {"dtype": torch.float32}
    )
    assert bool(torch.isfinite(single.predict(n=20)["y"]).all())


def test_new_rows_are_covered_as_often_as_is_said(where: dict[str, Any]) -> None:
    """4,000 new points; a Gaussian process with its scales fitted, which has no family to lose by, is the peer."""
    x, y = waves(200, seed=10)
    held_x, held_y = waves(4_000, seed=1)
    several = Trace_ELBO(num_particles=4, vectorize_particles=True)
    model = BayesianNeuralNetwork.standardised(x, y)
    found = score(
        fitted(model, x, y, where, steps=1_500, objective=several, compile="off"),
        held_x,
        held_y,
    )
    assert_calibrated(found)
    density, error = peer(x, y, held_x, held_y)
    assert found.log_density.mean() > density - 0.05
    assert np.sqrt((found.error**2).mean()) < 1.03 * error


def assert_calibrated(found: Score) -> None:
    """85 to 95%, by more than three binomial standard errors of noise at either end."""
    rate = float(found.covered.mean())
    se = math.sqrt(0.9 * 0.1 / len(found.covered))
    assert 0.85 - 3 * se < rate < 0.95 + 3 * se, f"the 90% band covers {rate:.1%} ± {se:.1%}"


def peer(x: Tensor, y: Tensor, held_x: Tensor, held_y: Tensor) -> tuple[float, float]:
    kernel = ConstantKernel() * RBF() + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True).fit(x.numpy(), y.numpy())
    mean, sd = (torch.tensor(each) for each in process.predict(held_x.numpy(), return_std=True))
    density = torch.distributions.Normal(mean, sd).log_prob(held_y).mean()
    return float(density), float((mean - held_y).square().mean().sqrt())


@pytest.mark.long
def test_waves_over_seeds(where: dict[str, Any]) -> None:
    """Each seed has its own data, start and noise."""
    held_x, held_y = waves(4_000, seed=1)
    rates, densities, errors = [], [], []
    for seed in range(5):
        x, y = waves(200, seed=10 + seed)
        found = score(fitted(BayesianNeuralNetwork.standardised(x, y), x, y, where, seed), held_x, held_y)
        assert_calibrated(found)
        density, error = peer(x, y, held_x, held_y)
        rates.append(found.covered.mean())
        densities.append(found.log_density.mean() - density)
        errors.append(np.sqrt((found.error**2).mean()) / error)
    print(
        "\nwaves: coverage", np.round(rates, 3), "less log density", np.round(densities, 3), "rmse", np.round(errors, 3)
    )
    assert 0.85 < np.mean(rates) < 0.95
    assert np.mean(densities) > -0.03
    assert np.mean(errors) < 1.03


@pytest.mark.long
def test_diabetes_over_splits(where: dict[str, Any]) -> None:
    """Splits pooled; a linear regression is as good as anything on these data, and is the peer."""
    scores, densities, errors = [], [], []
    for seed in range(8):
        x, y, held_x, held_y = diabetes(seed)
        scores.append(score(fitted(BayesianNeuralNetwork.standardised(x, y), x, y, where, seed), held_x, held_y))
        line = LinearRegression().fit(x.numpy(), y.numpy())
        sd = float(np.sqrt(((line.predict(x.numpy()) - y.numpy()) ** 2).sum() / (len(x) - x.shape[1] - 1)))
        error = torch.tensor(line.predict(held_x.numpy())) - held_y
        densities.append(float(torch.distributions.Normal(0.0, sd).log_prob(error).mean()))
        errors.append(float(error.square().mean()))
    pooled = Score(*(np.concatenate([getattr(each, name) for each in scores]) for name in Score.__dataclass_fields__))
    rmse, theirs = math.sqrt((pooled.error**2).mean()), math.sqrt(np.mean(errors))
    print("\ndiabetes: coverage", [round(float(each.covered.mean()), 3) for each in scores], pooled.covered.mean())
    print("log density", pooled.log_density.mean(), np.mean(densities), "rmse", rmse, theirs)
    assert_calibrated(pooled)
    assert pooled.log_density.mean() > np.mean(densities) - 0.03
    assert rmse < 1.03 * theirs


def test_minibatches_stand_for_all_rows(where: dict[str, Any]) -> None:
    """Weights of a linear model from a quarter of the rows at a time: as wide as from all rows, not twice so."""
    x, y = linear(orthogonal=True)
    model = BayesianNeuralNetwork.standardised(x, y, hidden=())
    known = exact(model, x, y)
    fit = fitted(model, x, y, where, steps=1_200, batch_size={"row": 15}, compile="off")
    drawn = fit.draws(5_000)["weight_out"].double().cpu()
    sd = known.covariance.diagonal().sqrt()[:3]
    assert float(((drawn.mean(0) - known.mean[:3]) / sd).abs().max()) < 0.5
    assert float((drawn.std(0) / sd - 1).abs().max()) < 0.25
    assert "15 of 60 rows" in repr(fit)
    network = BayesianNeuralNetwork.standardised(x, y, hidden=(4,))
    assert fitted(network, x, y, where, steps=5, batch_size={"row": 15}).predict(n=3)["y"].shape == (3, 60)


def test_new_rows_without_y_and_one_column(where: dict[str, Any]) -> None:
    x, y = waves(30, seed=0)
    fit = fitted(BayesianNeuralNetwork.standardised(x, y, hidden=(4, 3)), x, y, where, steps=5)
    drawn = fit.predict({"x": torch.linspace(-9, 9, 7)[:, None]}, 11, new=("row",))
    assert {name: tuple(value.shape) for name, value in drawn.items()} == {
        "weight_1": (11, 1, 4), "bias_1": (11, 4), "weight_2": (11, 4, 3), "bias_2": (11, 3), "weight_out": (11, 3),
        "bias_out": (11,), "sigma": (11,), "mean": (11, 7), "y": (11, 7),
    }  # fmt: skip
    with pytest.raises(ValueError, match="x has 2 columns, and the model was made for num_columns=1"):
        fit.predict({"x": torch.zeros(7, 2)}, 11, new=("row",))
    assert fit.log_evidence(500).verdict == "unreliable"


def test_check_finds_nothing(where: dict[str, Any]) -> None:
    x, y = waves(30, seed=0)
    model = BayesianNeuralNetwork.standardised(x, y, hidden=(4,))
    assert "nothing found" in str(ingle.check(model, BayesianNeuralNetworkGuide(model), {"x": x, "y": y}))


def test_the_start_breaks_symmetry_by_its_own_seed() -> None:
    def start(seed: int) -> Tensor:
        with pyro.get_param_store().scope():
            trace = poutine.trace(BayesianNeuralNetworkGuide(BayesianNeuralNetwork(1, (16, 16)), seed), param_only=True)
            trace(torch.zeros(3, 1))
            return torch.cat([pyro.param(name).detach().flatten() for name in ("weight_1_loc", "weight_2_loc")])

    torch.manual_seed(1)
    first = start(0)
    torch.manual_seed(2)
    assert torch.equal(start(0), first)
    assert len(start(0).unique()) == 16 + 256
    assert not torch.isin(start(1), first).any()


X, Y = torch.arange(12.0).reshape(6, 2).square(), torch.arange(6.0)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (X[:, 0], Y, r"x must have shape \(N, D\), got \(6,\); one column is x\[:, None\]"),
        (X, Y[:, None], r"y must have shape \(6,\), a number for each row of x, got \(6, 1\)"),
        (X, Y[:5], r"y must have shape \(6,\), .* got \(5,\)"),
        (torch.where(X == 4, math.nan, X), Y, "x has 1 value that is NaN or infinite"),
        (X, torch.where(Y > 3, math.inf, Y), "y has 2 values that are NaN or infinite"),
    ],
)
def test_unfit_data_are_refused(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BayesianNeuralNetwork.standardised(x, y)
    model = BayesianNeuralNetwork(2)
    with pytest.raises(ValueError, match=words):
        model(x, y)
    with pytest.raises(ValueError, match=words):
        ingle.fit(model, BayesianNeuralNetworkGuide(model), {"x": x, "y": y}, steps=2)


@pytest.mark.parametrize(
    ("x", "y", "words"),
    [
        (torch.cat([X, torch.full((6, 1), 0.1)], 1), Y, "column 2 of x is constant over its 6 rows"),
        (X, torch.full((6,), 0.1), "y is constant over its 6 rows"),
        (X[:1], Y[:1], "x has 1 row, and a standard deviation takes 2"),
    ],
)
def test_what_cannot_be_standardised_is_refused(x: Tensor, y: Tensor, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BayesianNeuralNetwork.standardised(x, y)


def test_standardised_takes_rows_of_a_data_frame_in_their_order() -> None:
    x = pd.DataFrame(X.numpy()).sample(frac=1, random_state=0)
    model = BayesianNeuralNetwork.standardised(x, pd.Series(Y.numpy())[x.index], activation="relu")
    assert model == BayesianNeuralNetwork.standardised(x.to_numpy(), Y[list(x.index)], activation="relu")
    assert model.centre == tuple(X.double().mean(0).tolist())
    assert model.y_spread == pytest.approx(float(Y.std()))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"activation": "gelu"}, "activation must be 'tanh' or 'relu', got 'gelu'"),
        ({"hidden": 16}, r"hidden must be a tuple of widths, as in \(16,\)"),
        ({"hidden": (16, 0)}, r"at least 1, got num_columns=2 and hidden=\(16, 0\)"),
        ({"weight_scale": 0.0}, "weight_scale must be positive and finite, got 0.0"),
        ({"spread": (1.0, -1.0)}, "spread must be positive and finite"),
        ({"centre": (1.0, 1.0, 1.0)}, "centre has 3 numbers and num_columns is 2"),
    ],
)
def test_wrong_hyperparameters_are_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        BayesianNeuralNetwork(2, **options)
