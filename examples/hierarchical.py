"""Radon in the counties of Minnesota: no pooling, partial pooling, uranium as predictor, and a slope for each county.

The guides are structured: the counties' effects follow the scales of their groups, so that those scales come out
right, and long runs of NUTS stand beside them. The last fit asks which houses lie above the action level.

Run from anywhere: python examples/hierarchical.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides import hierarchical as guides
from ingle.models import hierarchical as models
from ingle.objectives import STL_ELBO

DATA = Path(__file__).parent / "data" / "radon.csv"
ACTION_LEVEL = 4.0  # pCi/L, of the Environmental Protection Agency
# Mean and sd of long NUTS on the same models (benchmarks/references.py).
NUTS = {
    ("varying intercepts", "sigma"): (0.727, 0.017),
    ("varying intercepts", "sigma_alpha"): (0.321, 0.045),
    ("with uranium", "sigma"): (0.729, 0.018),
    ("with uranium", "sigma_alpha"): (0.149, 0.048),
    ("varying slopes", "sigma"): (0.721, 0.018),
    ("varying slopes", "sigma_alpha"): (0.128, 0.050),
    ("varying slopes", "sigma_beta"): (0.333, 0.122),
    ("varying slopes", "rho"): (0.099, 0.364),
}

Draws = dict[str, np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    radon = pd.read_csv(DATA)
    log_uranium = radon.groupby("county_idx")["log_uranium"].first().to_numpy()
    houses = {"county": radon["county_idx"], "floor": radon["floor"], "log_radon": radon["log_radon"]}

    def fitted(model: Callable[..., Any], guide: Callable[..., Any], data: dict[str, Any]) -> Draws:
        # The path gradient alone: as the guide nears the posterior, its noise goes to none.
        steps = 30 if options.smoke else None
        fit = ingle.fit(model, guide, data, objective=STL_ELBO(), steps=steps, device=options.device)
        print(fit, end="\n\n")
        return {name: value.cpu().numpy() for name, value in fit.draws(200 if options.smoke else 4_000).items()}

    with_uranium = {**houses, "log_uranium": log_uranium}
    found = {
        "varying intercepts": fitted(
            models.radon_varying_intercepts, guides.radon_varying_intercepts_structured_guide, houses
        ),
        "with uranium": fitted(models.radon_uranium, guides.radon_uranium_guide, with_uranium),
        "varying slopes": fitted(models.radon_varying_slopes, guides.radon_varying_slopes_guide, with_uranium),
    }
    print_scales(found)

    above = (radon["radon_pci_l"] > ACTION_LEVEL).to_numpy(dtype=float)
    covariates = radon[["floor", "log_uranium"]].to_numpy(dtype=float)
    risk = fitted(
        models.hierarchical_logistic,
        guides.hierarchical_logistic_guide,
        {"group": radon["county_idx"], "x": covariates, "y": above},
    )
    odds = np.exp(risk["beta"][:, 0])
    low, high = np.quantile(odds, [0.05, 0.95])
    print(f"odds of more than {ACTION_LEVEL:g} pCi/L, first floor over basement: ", end="")
    print(f"{odds.mean():.2f} (90% from {low:.2f} to {high:.2f})")

    draw_shrinkage(radon, found["varying intercepts"], options.out / "hierarchical_shrinkage.png")
    draw_line(radon, log_uranium, found["with uranium"], options.out / "hierarchical_uranium.png")
    draw_slopes(found["varying slopes"], options.out / "hierarchical_slopes.png")
    draw_action(radon, log_uranium, above, risk, options.out / "hierarchical_action.png")


def print_scales(found: dict[str, Draws]) -> None:
    """Mean and sd of the scales of each model, with those of NUTS beside."""
    print(f"{'scale':<14}{'model':<22}{'mean':>8}{'sd':>8}{'NUTS mean':>12}{'sd':>8}")
    for scale in ("sigma", "sigma_alpha", "sigma_beta", "rho"):
        for name, draws in found.items():
            if scale in draws:
                mean, sd = NUTS[name, scale]
                print(
                    f"{scale:<14}{name:<22}{draws[scale].mean():>8.3f}{draws[scale].std():>8.3f}{mean:>12.3f}{sd:>8.3f}"
                )
    print()


def unpooled(radon: pd.DataFrame) -> np.ndarray:
    """Least squares: an intercept for each county by itself, and one slope for the floor."""
    county = radon["county_idx"].to_numpy()
    columns = np.column_stack([np.eye(county.max() + 1)[county], radon["floor"]])
    intercepts: np.ndarray = np.linalg.lstsq(columns, radon["log_radon"].to_numpy(), rcond=None)[0][:-1]
    return intercepts


def draw_shrinkage(radon: pd.DataFrame, draws: Draws, path: Path) -> None:
    """Where partial pooling draws each county's intercept, against the number of its houses."""
    raw, pooled = unpooled(radon), draws["alpha"].mean(0)
    count = np.bincount(radon["county_idx"])
    shift = np.exp(np.random.default_rng(0).uniform(-0.12, 0.12, len(count)))  # counties of the same size apart
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for x, start, end in zip(count * shift, raw, pooled, strict=True):
        axes.annotate("", (x, end), (x, start), arrowprops={"arrowstyle": "->", "color": "grey", "lw": 0.7})
    axes.plot(count * shift, raw, "o", color="tab:orange", mfc="none", ms=5, label="by itself (no pooling)")
    axes.plot(count * shift, pooled, "o", color="tab:blue", ms=4, label="partial pooling, posterior mean")
    axes.axhline(draws["mu_alpha"].mean(), color="black", lw=0.8, ls="--", label="mean of all counties")
    ticks = [1, 2, 5, 10, 20, 50, 100]
    axes.set(xscale="log", xlabel="houses in the county", ylabel="intercept, basement (log pCi/L)")
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_title("the fewer houses, the farther a county is drawn to the mean")
    axes.legend(loc="lower right", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def band(axes: Any, x: np.ndarray, lines: np.ndarray, colour: str, label: str) -> None:
    """Mean and 90% band of many lines, shape (S, len(x))."""
    low, high = np.quantile(lines, [0.05, 0.95], axis=0)
    axes.fill_between(x, low, high, color=colour, alpha=0.2, lw=0)
    axes.plot(x, lines.mean(0), color=colour, label=label)


def draw_line(radon: pd.DataFrame, log_uranium: np.ndarray, draws: Draws, path: Path) -> None:
    """Intercepts of the counties against their uranium, about the line of the group level."""
    grid = np.linspace(log_uranium.min() - 0.05, log_uranium.max() + 0.05, 50)
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    lines = draws["mu_alpha"][:, None] + draws["gamma"][:, None] * grid
    band(axes, grid, lines, "tab:blue", "line of the group level, 90% band")
    mean, sd = draws["alpha"].mean(0), draws["alpha"].std(0)
    axes.errorbar(log_uranium, mean, sd, fmt="o", color="black", ms=3, lw=0.6, label="county, mean and one sd")
    axes.plot(log_uranium, unpooled(radon), "o", color="tab:orange", mfc="none", ms=4, label="by itself (no pooling)")
    axes.set(xlabel="uranium in the county's soil (log ppm)", ylabel="intercept, basement (log pCi/L)")
    axes.set_title("uranium tells most of what counties differ in")
    axes.legend(loc="upper left", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_slopes(draws: Draws, path: Path) -> None:
    """Intercept and slope of each county, with the correlation that the model finds among them."""
    alpha, beta = draws["alpha"].mean(0), draws["beta"].mean(0)
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4), layout="constrained")
    left.errorbar(
        alpha, beta, draws["beta"].std(0), draws["alpha"].std(0), fmt="o", color="tab:blue", ms=3, lw=0.4, alpha=0.7
    )
    left.axhline(0.0, color="grey", lw=0.6)
    left.set(xlabel="intercept, basement (log pCi/L)", ylabel="first floor less basement (log pCi/L)")
    left.set_title("counties, mean and one sd")
    right.hist(draws["rho"], np.linspace(-1, 1, 41), density=True, color="tab:blue", alpha=0.6, label="posterior")
    grid = np.linspace(-1, 1, 101)
    right.plot(grid, 0.75 * (1 - grid**2), color="grey", label="prior")
    right.set_xticks(np.linspace(-1, 1, 5))
    right.set(xlabel="correlation of intercept and slope, rho", ylabel="density", title="what the data say of rho")
    right.legend(fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_action(radon: pd.DataFrame, log_uranium: np.ndarray, above: np.ndarray, risk: Draws, path: Path) -> None:
    """Chance of more than the action level, against uranium and by floor; counties as they were counted."""
    grid = np.linspace(log_uranium.min() - 0.05, log_uranium.max() + 0.05, 50)
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for floor, colour, label in ((0.0, "tab:blue", "basement"), (1.0, "tab:orange", "first floor")):
        of_floor = (radon["floor"] == floor).to_numpy()
        county = radon["county_idx"][of_floor]
        count = np.bincount(county, minlength=len(log_uranium))
        share = np.bincount(county, above[of_floor], len(log_uranium))[count > 0] / count[count > 0]
        axes.scatter(log_uranium[count > 0], share, 6 * count[count > 0], color=colour, alpha=0.35, lw=0)
        logits = risk["mu_alpha"][:, None] + risk["beta"][:, :1] * floor + risk["beta"][:, 1:] * grid
        band(axes, grid, 1 / (1 + np.exp(-logits)), colour, f"{label}: a typical county, 90% band")
    axes.scatter([], [], 40, color="grey", alpha=0.5, label="share of a county's houses, area by number")
    axes.set(xlabel="uranium in the county's soil (log ppm)", ylabel="chance", ylim=(-0.05, 1.05))
    axes.set_title(f"houses with more than {ACTION_LEVEL:g} pCi/L of radon")
    axes.legend(loc="upper left", fontsize=9)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
