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
ALL_BUT_LIKELIHOOD = (
    "posterior", "posterior_predictive", "prior", "prior_predictive", "sample_stats", "observed_data", "constant_data",
)  # fmt: skip


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
        dims={"sigma": ["school"]},
        show=["mu", "tau", "theta"],
        groups=ALL_BUT_LIKELIHOOD,  # each school has an effect of its own, so leaving one out would say little
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
        dims={"county": ["house"], "floor": ["house"]},
        show=["mu_alpha", "sigma_alpha", "beta", "sigma"],
        groups=None,
        options=options,
    )


def report(
    name: str,
    model: Callable[..., Any],
    guide: Any,
    data: dict[str, Any],
    *,
    coords: dict[str, list[str]],
    dims: dict[str, list[str]],
    show: list[str],
    groups: tuple[str, ...] | None,
    options: argparse.Namespace,
) -> None:
    """Fit, print the card and a summary, and write pictures and the posterior."""
    fit = ingle.fit(model, guide, data, steps=200 if options.smoke else None, device=options.device)
    print(fit)
    posterior = fit.to_arviz(draws=200 if options.smoke else 2_000, coords=coords, dims=dims, groups=groups)
    print(az.summary(posterior, var_names=show, kind="stats"), end="\n\n")

    posterior.to_netcdf(str(options.out / f"{name}.nc"))
    draw_loss(fit, posterior, options.out / f"{name}_loss.png")
    draw_forest(posterior, show, options.out / f"{name}_forest.png")
    draw_predictive(posterior, options.out / f"{name}_predictive.png")
    draw_prior(posterior, show, options.out / f"{name}_prior.png")


def draw_loss(fit: ingle.Fit, posterior: Any, path: Path) -> None:
    """Negative ELBO against steps: every step faintly, the mean of 50 boldly."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    steps = np.arange(fit.steps)
    window = 50
    smooth = np.convolve(fit.losses, np.ones(window) / window, mode="valid")
    axes.plot(steps, fit.losses, color="tab:blue", alpha=0.2, linewidth=0.5, label="each step")
    axes.plot(steps[window - 1 :], smooth, color="tab:blue", label=f"mean of {window} steps")
    low, high = np.quantile(fit.losses[fit.steps // 10 :], [0.0, 0.995])
    axes.set_ylim(low - 0.05 * (high - low), high + 0.25 * (high - low))
    told = posterior.posterior.attrs
    title = f"{told['steps']:,} steps, stopped by: {told['stopped']}"
    axes.set(xlabel="step", ylabel="negative ELBO (nats)", title=title)
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_forest(posterior: Any, names: list[str], path: Path) -> None:
    """Median, 50% and 94% interval of each quantity, one row each."""
    rows: list[tuple[str, np.ndarray]] = []
    for name in names:
        site = posterior.posterior[name].stack(sample=("chain", "draw"))
        if site.ndim == 1:
            rows.append((name, site.to_numpy()))
        else:
            labels = site[site.dims[0]].to_numpy()
            rows += [(f"{name}[{label}]", values) for label, values in zip(labels, site.to_numpy(), strict=True)]
    places = np.arange(len(rows))[::-1]
    figure, axes = plt.subplots(figsize=(7, 1 + 0.32 * len(rows)), layout="constrained")
    for share, width in ((0.94, 1.5), (0.5, 4.0)):
        low, high = np.quantile([values for _, values in rows], [0.5 - share / 2, 0.5 + share / 2], axis=1)
        axes.hlines(places, low, high, color="tab:blue", linewidth=width, label=f"{share:.0%} interval")
    axes.plot([np.median(values) for _, values in rows], places, "o", color="white", markeredgecolor="tab:blue")
    axes.axvline(0.0, color="grey", linewidth=0.5)
    axes.set_yticks(places, [label for label, _ in rows])
    axes.set_title("posterior")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_predictive(posterior: Any, path: Path) -> None:
    """The data beside data drawn from the fitted model: histograms, or an interval a point where points are few."""
    (name,) = posterior.observed_data.data_vars
    observed = posterior.observed_data[name]
    drawn = posterior.posterior_predictive[name].to_numpy().reshape(-1, observed.size)
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    if observed.size > 30:
        edges = np.histogram_bin_edges(observed, bins=40)
        for values in drawn[:: max(1, len(drawn) // 50)]:
            axes.stairs(np.histogram(values, edges)[0], edges, color="tab:blue", alpha=0.15)
        axes.plot([], [], color="tab:blue", label="50 data sets drawn from the fit")
        axes.stairs(np.histogram(observed, edges)[0], edges, color="black", linewidth=1.5, label="observed")
        axes.set(xlabel=name, ylabel=f"{observed.dims[0]}s in a bin")
    else:
        places = np.arange(observed.size)
        for share, width in ((0.94, 1.5), (0.5, 4.0)):
            low, high = np.quantile(drawn, [0.5 - share / 2, 0.5 + share / 2], axis=0)
            axes.vlines(places, low, high, color="tab:blue", linewidth=width, label=f"{share:.0%} of predicted")
        axes.plot(places, observed, "o", color="black", label="observed")
        axes.set_xticks(places, observed[observed.dims[0]].to_numpy())
        axes.set(xlabel=observed.dims[0], ylabel=name)
    axes.set_title("posterior predictive")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_prior(posterior: Any, names: list[str], path: Path) -> None:
    """What the data have taught about each quantity: prior and posterior, the first element where there are many."""
    figure, all_axes = plt.subplots(1, len(names), figsize=(2.6 * len(names), 2.6), layout="constrained")
    for axes, name in zip(all_axes, names, strict=True):
        before, after = (group[name].to_numpy()[0] for group in (posterior.prior, posterior.posterior))
        before, after = (values.reshape(len(values), -1)[:, 0] for values in (before, after))
        low, high = np.quantile(after, [0.001, 0.999])
        edges = np.linspace(low - 2 * (high - low), high + 2 * (high - low), 80)
        for values, colour, label in ((before, "grey", "prior"), (after, "tab:blue", "posterior")):
            axes.stairs(np.histogram(values, edges)[0] / len(values), edges, color=colour, label=label)
        axes.set(title=name if posterior.posterior[name].ndim == 2 else f"{name}, first", yticks=[])
    all_axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
