"""Two fits from model to posterior summary and pictures: eight schools, and radon in Minnesota.

Run from anywhere: python examples/quickstart.py [--out out] [--smoke]
"""

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at every import
    import arviz as az

import ingle
from ingle.guides.hierarchical import eight_schools_guide
from ingle.models.hierarchical import eight_schools, radon_varying_intercepts

DATA = Path(__file__).parent / "data"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and NetCDF files")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    schools = pd.read_csv(DATA / "eight_schools.csv")
    report(
        "eight_schools",
        eight_schools,
        eight_schools_guide,  # a guide of one's own: a plain function
        {"sigma": schools["sigma"].astype(float), "y": schools["y"].astype(float)},
        coords={"school": schools["school"].tolist()},
        show=["mu", "tau", "theta"],
        options=options,
    )

    radon = pd.read_csv(DATA / "radon.csv")
    counties = radon.drop_duplicates("county_idx").sort_values("county_idx")["county"]
    report(
        "radon",
        radon_varying_intercepts,
        "normal",  # a guide by name: independent normals in unconstrained space
        {"county": radon["county_idx"], "floor": radon["floor"], "log_radon": radon["log_radon"]},
        coords={"county": counties.tolist()},
        show=["mu_alpha", "sigma_alpha", "beta", "sigma"],
        options=options,
    )


def report(
    name: str,
    model: Callable[..., Any],
    guide: Any,
    data: dict[str, Any],
    *,
    coords: dict[str, list[str]],
    show: list[str],
    options: argparse.Namespace,
) -> None:
    """Fit, print the card and a summary, and write pictures and the posterior."""
    fit = ingle.fit(model, guide, data, steps=200 if options.smoke else None, device=options.device)
    print(fit)
    posterior = fit.to_arviz(draws=200 if options.smoke else 2_000, coords=coords)
    print(az.summary(posterior, var_names=show, kind="stats"), end="\n\n")

    posterior.to_netcdf(str(options.out / f"{name}.nc"))
    draw_loss(fit, options.out / f"{name}_loss.png")
    draw_forest(posterior, show, options.out / f"{name}_forest.png")
    draw_predictive(posterior, options.out / f"{name}_predictive.png")


def draw_loss(fit: ingle.Fit, path: Path) -> None:
    """Negative ELBO against steps: every step faintly, the mean of 50 boldly."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = np.arange(fit.steps)
    window = 50
    smooth = np.convolve(fit.losses, np.ones(window) / window, mode="valid")
    axes.plot(steps, fit.losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="each step")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    low, high = np.quantile(fit.losses[fit.steps // 10 :], [0.0, 0.995])
    axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
    axes.set(xlabel="step", ylabel="negative ELBO (nats)", title=f"{fit.steps:,} steps, stopped by: {fit.stopped}")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_forest(posterior: Any, names: list[str], path: Path) -> None:
    """Median, 50% and 94% interval of each quantity."""
    axes = az.plot_forest(posterior, var_names=names, combined=True, hdi_prob=0.94, figsize=(7, 4.5))
    axes[0].set_title("94% and 50% posterior intervals")
    axes[0].figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(axes[0].figure)


def draw_predictive(posterior: Any, path: Path) -> None:
    """The data beside data drawn from the fitted model: densities, or an interval a point where points are few."""
    (name,) = posterior.observed_data.data_vars
    observed = posterior.observed_data[name]
    if observed.size > 30:
        axes = az.plot_ppc(posterior, num_pp_samples=100, figsize=(7, 4), random_seed=0)
    else:
        drawn = posterior.posterior_predictive[name].to_numpy().reshape(-1, observed.size)
        places = np.arange(observed.size)
        _, axes = plt.subplots(figsize=(7, 4), layout="constrained")
        for share, width in ((0.94, 1.5), (0.5, 4.0)):
            low, high = np.quantile(drawn, [0.5 - share / 2, 0.5 + share / 2], axis=0)
            axes.vlines(places, low, high, color="tab:blue", linewidth=width, label=f"{share:.0%} of predicted")
        axes.plot(places, observed, "o", color="black", label="observed")
        axes.set_xticks(places, observed[observed.dims[0]].to_numpy())
        axes.set(xlabel=observed.dims[0], ylabel=name, title="posterior predictive")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    axes.figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(axes.figure)


if __name__ == "__main__":
    main()
