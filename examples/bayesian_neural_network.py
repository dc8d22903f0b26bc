"""Bayesian neural networks: bands of a curve with a gap in its inputs, and how often bands cover held-out data.

A curve with noise of known size, on two sides of a gap, by networks of tanh and of relu, beside a Gaussian process.
Then the progression of diabetes in 442 patients, each held out once, beside a linear regression.

Run from anywhere: python examples/bayesian_neural_network.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from sklearn.linear_model import LinearRegression

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.bayesian_neural_network import BayesianNeuralNetworkGuide
from ingle.models.bayesian_neural_network import BayesianNeuralNetwork

NOISE = 0.3
HEAD = f"{'':<26}{'50% band':>9}{'90% band':>17}{'log density':>13}{'RMSE':>9}"
ORANGES = ("#ffe2c6", "#ffc48a")  # opaque tints, so that a band keeps its colour on top of another
BLUES = ("#8fbbdb", "#1f77b4")
Array = NDArray[np.float64]


@dataclass
class Held:
    """Of held-out rows: the share of draws below each, its log density, and the error of its predicted mean."""

    rank: Array
    log_density: Array
    error: Array

    def coverage(self, level: float) -> float:
        """How many rows lie in the central band of that level."""
        return float((np.abs(self.rank - 0.5) < level / 2).mean())

    def row(self, name: str) -> str:
        """A line of the tables."""
        se = math.sqrt(0.9 * 0.1 / len(self.rank))
        rmse = math.sqrt(float((self.error**2).mean()))
        covered = f"{self.coverage(0.5):9.1%}{self.coverage(0.9):10.1%} ± {se:.1%}"
        return f"{name:<26}{covered}{self.log_density.mean():13.3f}{rmse:9.3f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    how: dict[str, Any] = {"device": options.device, "steps": 20 if options.smoke else None}

    x, y = waves(400, seed=10)
    new_x, new_y = waves(4_000, seed=1)
    fits = {activation: fitted(x, y, how, activation=activation) for activation in ("tanh", "relu")}
    print(fits["tanh"], "\n")
    kernel = ConstantKernel() * RBF() + WhiteKernel(0.1)
    process = GaussianProcessRegressor(kernel, normalize_y=True).fit(x, y)
    curve = {f"network of {name}": held_out(fit, new_x, new_y) for name, fit in fits.items()}
    mean, sd = process.predict(new_x, return_std=True)
    curve["Gaussian process"] = normal(mean, sd, new_y)
    print("4,000 new points of the curve, the coverage beside its binomial standard error at 90%", HEAD, sep="\n")
    print(*(held.row(name) for name, held in curve.items()), sep="\n", end="\n\n")

    grid = np.linspace(-5, 5, 201)[:, None]
    drawn = {name: predicted(fit, grid) for name, fit in fits.items()}
    noise = math.sqrt(process.kernel_.k2.noise_level) * y.std()
    of_process = np.sqrt(np.maximum(process.predict(grid, return_std=True)[1] ** 2 - noise**2, 0))
    widths = {f"network of {name}": draws["mean"].std(0) for name, draws in drawn.items()} | {
        "Gaussian process": of_process
    }
    print(f"{'sd of the function at x =':<26}{'1.6 (data)':>12}{'0 (gap)':>12}{'5 (outside)':>13}")
    for name, width in widths.items():
        at = [float(np.interp(place, grid[:, 0], width)) for place in (1.6, 0.0, 5.0)]
        print(f"{name:<26}{at[0]:12.2f}{at[1]:12.2f}{at[2]:13.2f}")
    draw_bands(drawn, grid, x, y, options.out / "bayesian_neural_network_bands.png")

    networks, lines = [], []
    for quarter in range(1 if options.smoke else 4):
        (x, y), (new_x, new_y) = diabetes(quarter)
        networks.append(held_out(fitted(x, y, how, seed=quarter), new_x, new_y))
        line = LinearRegression().fit(x, y)
        residual = math.sqrt(float(((line.predict(x) - y) ** 2).sum()) / (len(x) - x.shape[1] - 1))
        lines.append(normal(line.predict(new_x), np.full(len(new_x), residual), new_y))
    print("\nprogression of diabetes, quarters of the patients held out", HEAD, sep="\n")
    print(*(held.row(f"network, quarter {number}") for number, held in enumerate(networks, 1)), sep="\n")
    real = {"network of tanh": pooled(networks), "linear regression": pooled(lines)}
    print(*(held.row(f"{name}, pooled") for name, held in real.items()), sep="\n")
    draw_calibration({"curve": curve, "diabetes": real}, options.out / "bayesian_neural_network_calibration.png")


def waves(n: int, seed: int) -> tuple[Array, Array]:
    """Points of a curve and noise, x between -2.5 and 2.5 but for a gap in the middle."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(0.7, 2.5, n) * generator.choice([-1, 1], n)
    return x[:, None], truth(x) + NOISE * generator.normal(size=n)


def truth(x: Array) -> Array:
    return np.asarray(np.sin(2 * x) + 0.3 * x)


def diabetes(quarter: int) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Ten measurements and the progression a year later, in their units: to fit, and a quarter held out."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    quarters = np.array_split(np.random.default_rng(0).permutation(len(y)), 4)
    held = quarters.pop(quarter)
    kept = np.concatenate(quarters)
    return (x[kept], y[kept]), (x[held], y[held])


def fitted(x: Array, y: Array, how: dict[str, Any], seed: int = 0, **options: Any) -> ingle.Fit:
    model = BayesianNeuralNetwork.standardised(x, y, **options)
    return ingle.fit(model, BayesianNeuralNetworkGuide(model, seed), {"x": x, "y": y}, seed=seed, **how)


def predicted(fit: ingle.Fit, x: Array) -> dict[str, Array]:
    return {name: value.double().cpu().numpy() for name, value in fit.predict({"x": x}, 1_000, new="row").items()}


def held_out(fit: ingle.Fit, x: Array, y: Array) -> Held:
    drawn = {name: torch.tensor(value) for name, value in predicted(fit, x).items()}
    density = torch.distributions.Normal(drawn["mean"], drawn["sigma"][:, None]).log_prob(torch.tensor(y))
    log_density = density.logsumexp(0) - math.log(len(density))
    rank = (drawn["y"] < torch.tensor(y)).double().mean(0)
    return Held(rank.numpy(), log_density.numpy(), drawn["mean"].mean(0).numpy() - y)


def normal(mean: Array, sd: Array, y: Array) -> Held:
    """The same of normal predictions."""
    distribution = torch.distributions.Normal(torch.tensor(mean), torch.tensor(sd))
    return Held(
        distribution.cdf(torch.tensor(y)).numpy(), distribution.log_prob(torch.tensor(y)).numpy(), np.asarray(mean - y)
    )


def pooled(splits: list[Held]) -> Held:
    columns = zip(*((each.rank, each.log_density, each.error) for each in splits), strict=True)
    return Held(*map(np.concatenate, columns))


def draw_bands(drawn: dict[str, dict[str, Array]], grid: Array, x: Array, y: Array, path: Path) -> None:
    """Bands of 50 and 90% for the function, and for new data around it."""
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), sharey=True, layout="constrained")
    for axis, (name, draws) in zip(axes, drawn.items(), strict=True):
        for site, shades, label in (("y", ORANGES, "new data"), ("mean", BLUES, "function")):
            for level, shade in zip((0.9, 0.5), shades, strict=True):
                low, high = np.quantile(draws[site], [0.5 - level / 2, 0.5 + level / 2], axis=0)
                axis.fill_between(grid[:, 0], low, high, color=shade, lw=0, label=f"{label}, {level:.0%} band")
        axis.plot(grid[:, 0], draws["mean"].mean(0), color="tab:red", lw=1.2, label="posterior mean")
        axis.plot(grid[:, 0], truth(grid[:, 0]), "--", color="black", lw=1.2, label="true function")
        axis.plot(x[:, 0], y, ".", color="tab:gray", ms=3, label="data", zorder=1.5)
        axis.set(title=f"network of {name}", xlabel="x", xlim=(-5, 5), ylim=(-5, 5))
    axes[0].set_ylabel("y")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_calibration(found: dict[str, dict[str, Held]], path: Path) -> None:
    """Observed against nominal coverage of held-out data, with what chance does to a band that is right."""
    figure, axes = plt.subplots(1, len(found), figsize=(9.5, 4.6), layout="constrained")
    levels = np.linspace(0, 1, 41)
    for axis, (title, held) in zip(axes, found.items(), strict=True):
        rows = len(next(iter(held.values())).rank)
        se = np.sqrt(levels * (1 - levels) / rows)
        axis.fill_between(
            levels, levels - 2 * se, levels + 2 * se, color="lightgrey", label="right, ± 2 standard errors"
        )
        axis.plot([0, 1], [0, 1], color="grey", lw=1)
        for (name, each), colour in zip(held.items(), ("tab:blue", "tab:orange", "tab:green"), strict=False):
            axis.plot(levels, [each.coverage(level) for level in levels], color=colour, label=name)
        axis.set(
            title=f"{title}: {rows:,} held-out rows",
            xlabel="nominal coverage of the central band",
            ylabel="observed coverage",
            xlim=(0, 1),
            ylim=(0, 1),
            aspect="equal",
        )
        axis.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
