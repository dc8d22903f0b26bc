"""Regressions: waits at Old Faithful, tumours told apart, and what the prior does where two classes are separated.

Run from anywhere: python examples/regression.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from dataclasses import replace
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pyro.optim
import torch
from sklearn.datasets import load_breast_cancer
from sklearn.linear_model import LogisticRegression as Peer
from sklearn.metrics import log_loss

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.regression import LinearRegressionGuide, LogisticRegressionGuide
from ingle.models.regression import LinearRegression, LogisticRegression

DATA = Path(__file__).parent / "data" / "old_faithful.csv"
Draws = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    waits(options)
    names, weights, peer = tumours(options)
    draw_coefficients(names, weights, peer, separated(options), options.out / "regression_coefficients.png")


def fitted(
    model: LinearRegression | LogisticRegression, x: torch.Tensor, y: torch.Tensor, options: argparse.Namespace
) -> ingle.Fit:
    guide = LinearRegressionGuide(model) if isinstance(model, LinearRegression) else LogisticRegressionGuide(model)
    steps = 30 if options.smoke else 1_000
    return ingle.fit(
        model,
        guide,
        {"x": x, "y": y},
        # Steps long at first and short at the end, along a gradient without noise once the guide is the posterior.
        optim=pyro.optim.ClippedAdam({"lr": 0.2, "lrd": 0.01 ** (1 / steps)}),
        objective=ingle.objectives.STL_ELBO(),
        steps=steps,
        compile="off",
        device=options.device,
    )


def arrays(draws: dict[str, torch.Tensor]) -> Draws:
    return {name: value.double().cpu().numpy() for name, value in draws.items()}


def waits(options: argparse.Namespace) -> None:
    """The wait for the next eruption, on how long this one was."""
    table = pd.read_csv(DATA)
    x, y = torch.tensor(table[["eruptions"]].to_numpy()), torch.tensor(table["waiting"].to_numpy(dtype=float))
    model = LinearRegression.standardised(x, y)
    fit = fitted(model, x, y, options)
    print(fit, end="\n\n")

    draws = arrays(fit.draws(200 if options.smoke else 10_000))
    noise = float(draws["noise"].mean())
    known = replace(model, noise=noise)
    exact = known.posterior(x, y)
    unit = model.y_spread / np.append(1.0, model.spread)  # of intercept and slope, in minutes
    origin = np.array([model.y_centre, 0.0])
    print(f"{'minutes':30}  {'exact mean':>10}  {'sd':>6}  {'fitted':>8}  {'sd':>6}   (exact given the fitted noise)")
    at_centre = model.y_centre + model.y_spread * draws["intercept"]
    rows = {"wait after a mean eruption": at_centre, "more wait a minute of eruption": draws["slopes"][:, 0]}
    means, sds = origin + unit * exact.mean.numpy(), unit * exact.stddev.numpy()
    for (name, ours), mean, sd in zip(rows.items(), means, sds, strict=True):
        print(f"{name:30}  {mean:>10.3f}  {sd:>6.3f}  {ours.mean():>8.3f}  {ours.std():>6.3f}")
    print(f"{'noise, sd about the line':30}  {'':>10}  {'':>6}  {noise:>8.3f}  {draws['noise'].std():>6.3f}")
    print(f"log evidence {fit.log_evidence(200 if options.smoke else 10_000).log_z:,.2f} nats\n")

    new = torch.linspace(1.4, 5.4, 81, dtype=torch.float64).unsqueeze(-1)
    predicted = arrays(fit.predict({"x": new}, 200 if options.smoke else 10_000, new=("row",)))["y"]
    line = model.mean(new, *(torch.tensor(draws[name]) for name in ("intercept", "weights"))).numpy()
    draw_lines(table, new[:, 0].numpy(), line, predicted, known.predictive(x, y, new), options.out)


def tumours(options: argparse.Namespace) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Benign or not, from ten measurements of the nuclei of cells; a third of the rows held out."""
    table = load_breast_cancer()
    names = [name.removeprefix("mean ") for name in table.feature_names[:10]]
    x, y = torch.tensor(table.data[:, :10]), torch.tensor(table.target)
    held_out = torch.arange(len(y)) % 3 == 2
    model = LogisticRegression.standardised(x[~held_out])
    fit = fitted(model, x[~held_out], y[~held_out], options)
    print(fit, end="\n\n")

    draws = arrays(fit.draws(200 if options.smoke else 4_000))
    logits = model.logits(x[held_out], *(torch.tensor(draws[name]) for name in ("intercept", "weights")))
    chance = torch.sigmoid(logits).mean(0).numpy()  # over the posterior, not at its mean
    # The same prior on the weights, and their most likely value alone.
    peer = Peer(C=model.weights_scale**2, max_iter=10_000).fit(model.standardise(x[~held_out]), y[~held_out])
    theirs = peer.predict_proba(model.standardise(x[held_out]))[:, 1]
    rates = {"rate of the classes alone": np.full(len(chance), float(y[~held_out].double().mean()))}
    print(f"{'of ' + str(len(chance)) + ' rows held out':26}  {'log loss':>8}  {'errors':>6}")
    for name, p in {"this fit": chance, "scikit-learn, one estimate": theirs, **rates}.items():
        print(f"{name:26}  {log_loss(y[held_out], p):>8.4f}  {int(((p > 0.5) != y[held_out].numpy()).sum()):>6}")
    print()
    return names, draws["weights"], peer.coef_[0]


def separated(options: argparse.Namespace) -> dict[float, tuple[np.ndarray, float]]:
    """Ten rows that a line separates: draws of the weight, and its mean by a grid, under three priors."""
    x = torch.arange(10, dtype=torch.float64).unsqueeze(-1)
    y = x[:, 0] > 4.5
    found = {}
    print("two classes that a line separates: posterior of the weight, in log odds per sd of the column")
    print(f"{'prior sd':>8}  {'fitted mean':>11}  {'sd':>6}  {'by a grid':>9}  {'sd':>6}  {'maximum likelihood':>18}")
    for scale in (1.0, 2.5, 10.0):
        model = LogisticRegression.standardised(x, weights_scale=scale)
        fit = fitted(model, x, y, options)
        ours = arrays(fit.draws(200 if options.smoke else 10_000))["weights"][:, 0]
        mean, sd = on_a_grid(model, x, y)
        found[scale] = ours, mean
        print(f"{scale:>8}  {ours.mean():>11.2f}  {ours.std():>6.2f}  {mean:>9.2f}  {sd:>6.2f}  {'infinite':>18}")
    print("The wider the prior, the larger the weight: the data only say that it is not small. Under the widest the")
    print("posterior leans to one side as well, and the normal that is nearest lies below its mean.")
    return found


def on_a_grid(model: LogisticRegression, x: torch.Tensor, y: torch.Tensor) -> tuple[float, float]:
    """Mean and sd of the weight by adding up the posterior over intercept and weight."""
    scale = model.weights_scale
    sides = torch.linspace(-12, 12, 241).double(), torch.linspace(-scale, 6 * scale, 561).double()
    intercept, weight = (side.flatten() for side in torch.meshgrid(*sides, indexing="ij"))
    logits = model.logits(x, intercept, weight.unsqueeze(-1))
    likelihood = torch.distributions.Bernoulli(logits=logits).log_prob(y.double()).sum(-1)
    p = (likelihood - (intercept / model.intercept_scale) ** 2 / 2 - (weight / scale) ** 2 / 2).softmax(0)
    mean = (p * weight).sum()
    return float(mean), float((p * (weight - mean) ** 2).sum().sqrt())


def draw_lines(
    table: pd.DataFrame,
    x: np.ndarray,
    line: np.ndarray,
    predicted: np.ndarray,
    exact: torch.distributions.Normal,
    out: Path,
) -> None:
    """Data, the line, and where new waits lie; the bands of the closed form as dashes."""
    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for share, alpha in ((0.94, 0.15), (0.5, 0.25)):
        low, high = np.quantile(predicted, [0.5 - share / 2, 0.5 + share / 2], axis=0)
        axes.fill_between(x, low, high, color="tab:blue", alpha=alpha, linewidth=0, label=f"{share:.0%} of new waits")
    for end in (0.03, 0.97):
        label = "94% by the closed form, noise given" if end < 0.5 else None
        axes.plot(x, exact.icdf(torch.tensor(end)), color="tab:orange", linestyle="--", linewidth=1, label=label)
    low, high = np.quantile(line, [0.03, 0.97], axis=0)
    axes.fill_between(x, low, high, color="tab:blue", alpha=0.7, linewidth=0, label="94% interval of the line")
    axes.plot(table["eruptions"], table["waiting"], ".", color="black", markersize=4, label="eruptions seen")
    axes.set(xlabel="length of the eruption (minutes)", ylabel="wait for the next (minutes)", title="Old Faithful")
    axes.legend(loc="upper left", fontsize=8)
    figure.savefig(out / "regression_lines.png", dpi=120)
    plt.close(figure)


def draw_coefficients(
    names: list[str], weights: np.ndarray, peer: np.ndarray, scales: dict[float, tuple[np.ndarray, float]], path: Path
) -> None:
    """Weights of the tumours, and the weight of separated classes under each prior: 50% and 94% intervals."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.5), layout="constrained", width_ratios=(3, 2))
    places = np.arange(len(names))[::-1]
    spots = np.arange(len(scales))
    for share, width in ((0.94, 1.5), (0.5, 4.0)):
        ends = [0.5 - share / 2, 0.5 + share / 2]
        left.hlines(
            places,
            *np.quantile(weights, ends, axis=0),
            color="tab:blue",
            linewidth=width,
            label=f"{share:.0%} interval",
        )
        right.vlines(
            spots,
            *np.quantile([draws for draws, _ in scales.values()], ends, axis=1),
            color="tab:blue",
            linewidth=width,
            label=f"{share:.0%} interval",
        )
    left.plot(weights.mean(0), places, "o", color="white", markeredgecolor="tab:blue", label="posterior mean")
    left.plot(peer, places, "x", color="tab:orange", label="scikit-learn, same prior")
    left.axvline(0.0, color="grey", linewidth=0.5)
    left.set_yticks(places, names)
    left.set(xlabel="log odds of benign, per sd of the column", title="tumours")
    left.legend(loc="lower left", fontsize=8)
    right.plot(
        spots,
        [draws.mean() for draws, _ in scales.values()],
        "o",
        color="white",
        markeredgecolor="tab:blue",
        label="posterior mean",
    )
    right.plot(spots, [mean for _, mean in scales.values()], "x", color="tab:orange", label="mean by a grid")
    right.axhline(0.0, color="grey", linewidth=0.5)
    right.set_xticks(spots, [f"{scale:g}" for scale in scales])
    right.set(
        xlabel="prior sd of the weight",
        ylabel="log odds, per sd of the column",
        xlim=(-0.5, len(scales) - 0.5),
        title="two separated classes",
    )
    right.legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
