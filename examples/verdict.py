"""Did it work? One fit that did and three that did not, each with its card, beside the exact posterior.

A line far from where its predictor is zero: intercept and slope are tied, and a guide without correlations is too
narrow in both. The same line, stopped after a tenth of the steps. And a number of which the data tell the square alone,
so that it has two places to be, of which a Gaussian knows one.

Run from anywhere: python examples/verdict.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoMultivariateNormal
from torch import Tensor

import ingle

NOISE = 2.0
GREY, BLUE, RED = "0.8", "#2a6f97", "#c1440e"


def line(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 100.0))
    slope = pyro.sample("slope", dist.Normal(0.0, 10.0))
    with pyro.plate("row", len(x)):
        pyro.sample("y", dist.Normal(intercept + slope * x, NOISE), obs=y)


def square(y: Tensor) -> None:
    number = pyro.sample("number", dist.Normal(0.3, 1.0))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Normal(number**2, 1.0), obs=y)


def line_data() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = 60.0 + 10.0 * torch.randn(40, generator=generator)
    return {"x": x, "y": 80.0 + 0.5 * x + NOISE * torch.randn(40, generator=generator)}


def slope_density(data: dict[str, Tensor], at: np.ndarray) -> np.ndarray:
    """The exact posterior of the slope: normal, as prior and likelihood are."""
    x = torch.stack([torch.ones_like(data["x"]), data["x"]], 1).double()
    precision = x.T @ x / NOISE**2 + torch.diag(torch.tensor([100.0, 10.0], dtype=torch.float64) ** -2)
    covariance = precision.inverse()
    mean = covariance @ x.T @ data["y"].double() / NOISE**2
    return (
        np.exp(-0.5 * (at - float(mean[1])) ** 2 / float(covariance[1, 1]))
        / (2 * np.pi * float(covariance[1, 1])) ** 0.5
    )


def number_density(y: Tensor, at: np.ndarray) -> np.ndarray:
    """The exact posterior of the number, on a grid."""
    log = -0.5 * (at - 0.3) ** 2 - 0.5 * ((y.double().numpy()[:, None] - at**2) ** 2).sum(0)
    density = np.exp(log - log.max())
    return density / np.trapezoid(density, at)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    given, y = line_data(), torch.tensor([2.1, 1.0, 2.9, 1.6])
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    plain = {"device": options.device, "steps": 300 if options.smoke else None}
    short = {"device": options.device, "optim": adam, "steps": 100 if options.smoke else 1_000}
    fits = {
        "A line": ("slope", ingle.fit(line, "multivariate_normal", given, **plain)),
        "No correlations": ("slope", ingle.fit(line, "normal", given, **plain)),
        "A tenth of the steps": ("slope", ingle.fit(line, AutoMultivariateNormal, given, **short)),
        "One mode of two": ("number", ingle.fit(square, "normal", {"y": y}, **plain)),
    }
    for title, (_, fit) in fits.items():
        print(title, fit, sep="\n", end="\n\n")

    slopes, numbers = np.linspace(0.3, 0.7, 400), np.linspace(-2.2, 2.2, 400)
    exact = {"slope": (slopes, slope_density(given, slopes)), "number": (numbers, number_density(y, numbers))}
    draw(fits, exact, options.out / "verdict.png")


def draw(fits: dict[str, tuple[str, ingle.Fit]], exact: dict[str, tuple[np.ndarray, np.ndarray]], path: Path) -> None:
    """The exact posterior of one latent of each fit, the guide's draws of it, and what the verdict says."""
    figure, axes = plt.subplots(1, len(fits), figsize=(13, 3.6), layout="constrained")
    for axis, (title, (latent, fit)) in zip(axes, fits.items(), strict=True):
        at, density = exact[latent]
        verdict = fit.verdict
        axis.fill_between(at, density, color=GREY, label="posterior, exact")
        drawn = fit.draws(20_000)[latent].cpu().numpy()
        spread = max(float(drawn.std()), 1e-3)
        low, high = min(at[0], drawn.mean() - 4 * spread), max(at[-1], drawn.mean() + 4 * spread)
        color = BLUE if verdict.status == "ok" else RED
        bins = np.arange(low, high, spread / 4)
        axis.hist(drawn, bins=bins, density=True, histtype="step", color=color, label="guide")
        axis.set(title=f"{title}: {verdict.status}", xlabel=latent, yticks=[])
        axis.text(0.0, -0.28, "\n".join(textwrap.wrap(verdict.reasons[0], 44)), transform=axis.transAxes, va="top")
        for side in ("left", "top", "right"):
            axis.spines[side].set_visible(False)
    axes[-1].legend(loc="upper left", frameon=False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
