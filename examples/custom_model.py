"""A model of one's own, from a check before the first step to ArviZ: the wait for Old Faithful's next eruption.

The wait grows with the length of the last eruption; so may its scatter, and a few waits lie far out.

Run from anywhere: python examples/custom_model.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import warnings
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyro
import pyro.distributions as dist
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at every import
    import arviz as az

import ingle

DATA = Path(__file__).parent / "data"


def waits(minutes: torch.Tensor, waiting: torch.Tensor | None = None) -> None:
    """Student t around a line, with a scale that changes along it.

    Args:
        minutes: length of the last eruption, shape (N,).
        waiting: minutes until the next, shape (N,); None draws them.
    """
    level = pyro.sample("level", dist.Normal(70.0, 20.0))  # at the mean eruption, 3.5 minutes
    slope = pyro.sample("slope", dist.Normal(0.0, 20.0))
    scale = pyro.sample("scale", dist.LogNormal(1.5, 1.0))
    growth = pyro.sample("growth", dist.Normal(0.0, 0.5))
    freedom = pyro.sample("freedom", dist.Gamma(2.0, 0.1))
    with pyro.plate("eruption", len(minutes)):
        mean = pyro.deterministic("mean", level + slope * (minutes - 3.5), event_dim=0)
        spread = scale * torch.exp(growth * (minutes - 3.5))
        pyro.sample("waiting", dist.StudentT(freedom, mean, spread), obs=waiting)


def plain(minutes: torch.Tensor, waiting: torch.Tensor | None = None) -> None:
    """The textbook's line: normal scatter, the same everywhere. Arguments as for `waits`."""
    level = pyro.sample("level", dist.Normal(70.0, 20.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 20.0))
    scale = pyro.sample("scale", dist.LogNormal(1.5, 1.0))
    with pyro.plate("eruption", len(minutes)):
        pyro.sample("waiting", dist.Normal(level + slope * (minutes - 3.5), scale), obs=waiting)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for pictures and files")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    draws = 200 if options.smoke else 2_000

    table = pd.read_csv(DATA / "old_faithful.csv")
    data = {"minutes": table["eruptions"], "waiting": table["waiting"].astype(float)}

    # Before any step. A column of shape (N, 1) beside a vector of shape (N,) is the classic: it would give N by N.
    column = {**data, "minutes": table[["eruptions"]].to_numpy()}
    print(ingle.check(waits, "multivariate_normal", column, device=options.device), end="\n\n")
    checked = ingle.check(waits, "multivariate_normal", data, device=options.device)
    print(checked, end="\n\n")
    if not checked.ok:
        raise SystemExit("the pair is not fit to be trained")

    # What the priors hold possible, before the data are looked at.
    prior = ingle.prior_predictive(waits, data, draws, device=options.device)
    draw_lines(prior, table, options.out / "custom_model_prior.png")

    # The fit goes on from its checkpoint if it is stopped and the script run again.
    checkpoint = options.out / "custom_model.fit"
    fit = ingle.fit(
        waits,
        "multivariate_normal",
        data,
        steps=300 if options.smoke else 5_000,
        checkpoint=checkpoint,
        device=options.device,
    )
    print(fit, end="\n\n")

    posterior = fit.to_arviz(draws)
    names = ["level", "slope", "scale", "growth", "freedom"]
    print(az.summary(posterior, var_names=names, kind="stats"), end="\n\n")
    posterior.to_netcdf(str(options.out / "custom_model.nc"))

    # Is the richer model worth it? Leave-one-out, in nats: here the plain line does as well.
    other = ingle.fit(plain, "multivariate_normal", data, steps=300 if options.smoke else 5_000, device=options.device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # ArviZ on the k-hat of single data
        compared = az.compare({"waits": posterior, "plain": other.to_arviz(draws)}, var_name="waiting")
    print(compared.iloc[:, :4], end="\n\n")

    # New eruptions: a plate with other rows, which have no waits yet.
    lengths = np.linspace(1.5, 5.5, 41)
    again = ingle.load(checkpoint, waits, "multivariate_normal", data, device=options.device)
    predicted = again.predict({"minutes": lengths}, draws, new=("eruption",))
    draw_bands(predicted["waiting"].cpu().numpy(), lengths, table, options.out / "custom_model_predicted.png")
    draw_scatter(posterior, options.out / "custom_model_replicated.png")


def draw_lines(prior: dict[str, torch.Tensor], table: pd.DataFrame, path: Path) -> None:
    """Lines drawn from the prior, with the data over them."""
    order = np.argsort(table["eruptions"].to_numpy())
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for mean in prior["mean"][:60].cpu().numpy():
        axes.plot(table["eruptions"].to_numpy()[order], mean[order], color="tab:blue", alpha=0.25, linewidth=0.8)
    axes.plot([], [], color="tab:blue", label="60 lines from the prior")
    axes.plot(table["eruptions"], table["waiting"], ".", color="black", label="observed")
    axes.set(xlabel="eruption (minutes)", ylabel="wait (minutes)", title="prior")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_bands(waiting: np.ndarray, lengths: np.ndarray, table: pd.DataFrame, path: Path) -> None:
    """Predicted waits, 50% and 94%, with the data over them."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for share, alpha in ((0.94, 0.2), (0.5, 0.4)):
        low, high = np.quantile(waiting, [0.5 - share / 2, 0.5 + share / 2], axis=0)
        axes.fill_between(lengths, low, high, color="tab:blue", alpha=alpha, linewidth=0, label=f"{share:.0%}")
    axes.plot(lengths, np.median(waiting, axis=0), color="tab:blue", label="median")
    axes.plot(table["eruptions"], table["waiting"], ".", color="black", label="observed")
    axes.set(xlabel="eruption (minutes)", ylabel="wait (minutes)", title="predicted for new eruptions")
    axes.legend(loc="upper left")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_scatter(posterior: Any, path: Path) -> None:
    """Histograms of replicated data and of the data themselves."""
    observed = posterior.observed_data["waiting"].to_numpy()
    replicated = posterior.posterior_predictive["waiting"].to_numpy()[0]
    edges = np.arange(observed.min() - 10, observed.max() + 11, 3) - 0.5  # waits are whole minutes
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    for values in replicated[:: max(1, len(replicated) // 50)]:
        axes.stairs(np.histogram(values, edges)[0], edges, color="tab:blue", alpha=0.15)
    axes.plot([], [], color="tab:blue", label="50 data sets drawn from the fit")
    axes.stairs(np.histogram(observed, edges)[0], edges, color="black", linewidth=1.5, label="observed")
    axes.set(xlabel="wait (minutes)", ylabel="eruptions in a bin", title="posterior predictive")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
