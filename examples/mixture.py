"""Old Faithful's eruptions as a mixture of Gaussians: soft clusters, and how many of them the evidence asks for.

For each number of components eight starts are fitted in one run, one more fit goes on from the best, and its evidence
is estimated. Held-out densities stand beside those of scikit-learn's EM. Between two and three components the evidence
leans on the prior: a wider one for their covariances turns the order round.

Run from anywhere: python examples/mixture.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
import math
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import torch
from sklearn.mixture import GaussianMixture as Peer

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Ellipse

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.models.mixture import Clusters, GaussianMixture

DATA = Path(__file__).parent / "data" / "old_faithful.csv"
COLOURS = np.array([matplotlib.colors.to_rgb(f"tab:{name}") for name in ("blue", "red", "green", "orange")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    table = pd.read_csv(DATA)
    centre, spread = table.mean().to_numpy(), table.std().to_numpy()
    x = (table.to_numpy() - centre) / spread  # the prior is for standardised columns
    order = np.random.default_rng(0).permutation(len(x))
    train, rest = x[order[:200]], x[order[200:]]

    found: dict[str, ingle.Evidence] = {}
    clusters: dict[str, Clusters] = {}
    held_out: dict[str, tuple[float, float]] = {}
    for k in (1, 2) if options.smoke else (1, 2, 3, 4):
        name = f"{k} component{'s' if k > 1 else ''}"
        fit = fitted(k, x, options)
        found[name] = fit.log_evidence(200 if options.smoke else 20_000)
        print(fit, found[name], sep="\n\n", end="\n\n")
        clusters[name] = GaussianMixture(k, "full").clusters(fit.draws(500)).ordered(together=True)

        drawn = GaussianMixture(k, "full").clusters(fitted(k, train, options).draws(500))
        density = drawn.log_density(drawn.loc.new_tensor(rest)).logsumexp(0) - math.log(500)
        peer = Peer(k, n_init=10, random_state=0).fit(train)
        held_out[name] = float(density.mean()), peer.score(rest)

    print(ingle.compare(found), end="\n\n")
    print("held-out log density, nats a point    ours    EM")
    for name, (ours, theirs) in held_out.items():
        print(f"  {name:34s}{ours:8.3f}{theirs:8.3f}")

    draw_evidence(found, options.out / "mixture_evidence.png")
    most = max(clusters, key=lambda name: found[name].log_z)
    draw_clusters(clusters[most], x, centre, spread, most, options.out / "mixture.png")


def fitted(k: int, x: np.ndarray, options: argparse.Namespace) -> ingle.Fit:
    """The best of eight starts, fitted on by itself."""
    many = GaussianMixture(k, "full", starts=8)
    guide = GaussianMixtureGuide(many)
    quick = functools.partial(torch.optim.Adam, lr=0.05)
    steps = 10 if options.smoke else 300
    search = ingle.fit(many, guide, x, steps=steps, optim=quick, compile="off", device=options.device)
    with search.active():
        best, elbo = guide.best(torch.tensor(x, dtype=search.dtype, device=search.device))
    print(f"ELBO of the eight starts of {k}: {', '.join(f'{each:.1f}' for each in elbo.tolist())}")
    model = GaussianMixture(k, "full")
    steps = 20 if options.smoke else 2_500
    return ingle.fit(model, GaussianMixtureGuide(model, start=best), x, steps=steps, device=options.device)


def draw_evidence(found: dict[str, ingle.Evidence], path: Path) -> None:
    """Evidence against the number of components, with two standard errors; open where it is not to be trusted."""
    figure, axis = plt.subplots(figsize=(6, 4), layout="constrained")
    for place, evidence in enumerate(found.values(), start=1):
        good = evidence.verdict in ("exact", "reliable", "costly")
        face = "tab:blue" if good else "white"
        axis.errorbar(place, evidence.log_z, 2 * evidence.se, fmt="o", color="tab:blue", mfc=face, capsize=3)
    axis.plot(range(1, len(found) + 1), [each.log_z for each in found.values()], color="tab:blue", lw=0.8)
    axis.plot([], [], "o", color="grey", mfc="white", label="open: unreliable, and rather too low than too high")
    axis.set(xlabel="components", ylabel="log evidence (nats)", xticks=range(1, len(found) + 1))
    lowest, *higher = sorted(each.log_z for each in found.values())
    if higher and lowest < higher[0] - 30:  # far below all others, which it would press into a line
        axis.set_ylim(higher[0] - 6, higher[-1] + 3)
        axis.annotate(
            f"1 component:\n{found['1 component'].log_z:.0f}",
            (1.0, higher[0] - 6),
            (1.0, higher[0] - 4),
            arrowprops={"arrowstyle": "->"},
        )
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_clusters(
    clusters: Clusters, x: np.ndarray, centre: np.ndarray, spread: np.ndarray, name: str, path: Path
) -> None:
    """Points in the mixture of the colours of their clusters; ellipses of one and two sd at the posterior mean."""
    points = clusters.loc.new_tensor(x)
    soft = clusters.responsibilities(points).mean(0).cpu().numpy()
    loc = clusters.loc.mean(0).cpu().numpy() * spread + centre
    covariance = (clusters.scale @ clusters.scale.mT).mean(0).cpu().numpy() * np.outer(spread, spread)
    weights = clusters.weights.mean(0).cpu().numpy()
    figure, axis = plt.subplots(figsize=(6, 4.5), layout="constrained")
    minutes = x * spread + centre
    colours = COLOURS[: len(weights)]
    axis.scatter(minutes[:, 0], minutes[:, 1], c=(soft @ colours).clip(0, 1), s=14)
    for colour, weight, mean, square in zip(colours, weights, loc, covariance, strict=True):
        values, vectors = np.linalg.eigh(square)
        angle = math.degrees(math.atan2(vectors[1, 1], vectors[0, 1]))
        for sds in (1, 2):
            width, height = 2 * sds * np.sqrt(values[::-1])
            axis.add_patch(Ellipse(mean, width, height, angle=angle, fill=False, color=colour, lw=1.5 / sds))
        axis.plot(*mean, "+", color=colour, ms=10, mew=2, label=f"{weight:.0%} of eruptions")
    axis.set(xlabel="eruption (minutes)", ylabel="wait for the next (minutes)", title=f"{name}, one and two sd")
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
