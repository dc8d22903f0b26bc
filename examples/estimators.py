"""Gradients of a mixture whose assignments are drawn: what each estimator's noise is, at the start and after a fit.

Run from anywhere: python examples/estimators.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.objectives import RLOO_ELBO, VIMCO_ELBO, Trace_ELBO, TraceGraph_ELBO

DATA = Path(__file__).parent / "data" / "old_faithful.csv"
K = 3


def mixture(x: torch.Tensor) -> None:
    """K normals with unknown places, widths and shares, which are parameters here; a component for each point."""
    shares = pyro.param("shares", torch.ones(K) / K, constraint=constraints.simplex)
    places = pyro.param("places", torch.linspace(-1.0, 1.0, K)[:, None].repeat(1, x.shape[-1]))
    widths = pyro.param("widths", torch.full((K, x.shape[-1]), 0.7), constraint=constraints.positive)
    with pyro.plate("points", len(x)):
        component = pyro.sample("component", dist.Categorical(shares))
        pyro.sample("x", dist.Normal(places[component], widths[component]).to_event(1), obs=x)


def assignments(x: torch.Tensor) -> None:
    """The guide: probabilities of the components, free for each point."""
    logits = pyro.param("logits", torch.zeros(len(x), K))
    with pyro.plate("points", len(x)):
        pyro.sample("component", dist.Categorical(logits=logits))


def averaged(x: torch.Tensor) -> None:
    """The same with the decaying average of the cost as a baseline."""
    logits = pyro.param("logits", torch.zeros(len(x), K))
    with pyro.plate("points", len(x)):
        infer = {"baseline": {"use_decaying_avg_baseline": True, "baseline_beta": 0.95}}
        pyro.sample("component", dist.Categorical(logits=logits), infer=infer)


# Four runs of the pair each, so that they cost alike. Averages are asked for by a guide, which so has its own line.
OBJECTIVES = {
    assignments: {
        "Trace": Trace_ELBO(num_particles=4),
        "TraceGraph": TraceGraph_ELBO(num_particles=4),
        "RLOO": RLOO_ELBO(num_particles=4),
        "VIMCO": VIMCO_ELBO(num_particles=4),
    },
    averaged: {"TraceGraph, average": TraceGraph_ELBO(num_particles=4)},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few samples and steps, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    samples, steps = (20, 20) if options.smoke else (20_000, 3_000)

    faithful = pd.read_csv(DATA)
    x = ((faithful - faithful.mean()) / faithful.std()).to_numpy()
    tables: dict[str, list[pd.DataFrame]] = {"at the start": [], "after the fit": []}
    for guide, objectives in OBJECTIVES.items():
        started = ingle.gradient_report(mixture, guide, x, objectives, samples, device=options.device)
        # By RLOO, as fit chooses it, which asks no baseline of the guide: both guides end at the same place.
        fit = ingle.fit(mixture, guide, x, steps=steps, device=options.device)
        ended = fit.gradient_report(objectives, samples)
        print(fit, "At the start", started, "After the fit", ended, sep="\n\n", end="\n\n")
        for label, report in zip(tables, (started, ended), strict=True):
            tables[label].append(report.to_dataframe().xs("logits", level="parameter"))
    draw({label: pd.concat(parts) for label, parts in tables.items()}, options.out / "estimators.png")


def draw(tables: dict[str, pd.DataFrame], path: Path) -> None:
    """Variance of the guide's gradient, and the same for a second of work: one panel for each, shorter is better."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), sharey=True, layout="constrained")
    names = ["Trace", "TraceGraph", "TraceGraph, average", "RLOO", "VIMCO"]
    for axis, column, title in (
        (axes[0], "variance", "variance of the gradient of the logits"),
        (axes[1], "variance_times_seconds", "the same times seconds a gradient"),
    ):
        for shift, (label, table) in zip((-0.18, 0.18), tables.items(), strict=True):
            places = [place + shift for place in range(len(names))]
            axis.barh(places, table.loc[names, column], height=0.34, label=label)
        axis.set(title=title, xscale="log", yticks=range(len(names)), yticklabels=names)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=2)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
