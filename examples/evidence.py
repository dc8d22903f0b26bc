"""How many clusters of galaxies? Mixtures with one to six components compared by their evidence.

The guide's own draws do for one and two components. From three on, where the posterior is no independent normal, they
say that they cannot be trusted, and annealed importance sampling takes over.

Run from anywhere: python examples/evidence.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from pathlib import Path

import matplotlib
import pandas as pd

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.models.mixture import GaussianMixture

DATA = Path(__file__).parent / "data" / "galaxies.csv"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument(
        "--smoke", action="store_true", help="few draws and steps, and no annealing, to see that it runs"
    )
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    most, steps, draws, points = (2, 20, 200, 200) if options.smoke else (6, 3_000, 10_000, 4_000)

    velocity = pd.read_csv(DATA)["velocity_km_s"]
    x = ((velocity - velocity.mean()) / velocity.std()).to_numpy()[:, None]

    sampled: dict[str, ingle.Evidence] = {}
    annealed: dict[str, ingle.Evidence] = {}
    for components in range(1, most + 1):
        model = GaussianMixture(components)
        fit = ingle.fit(model, GaussianMixtureGuide(model), x, steps=steps, device=options.device)
        name = f"{components} component{'s' if components > 1 else ''}"
        sampled[name] = fit.log_evidence(draws, defensive=0.1)
        annealed[name] = fit.log_evidence(points, proposal="prior" if options.smoke else "ais")
        print(fit, sampled[name], annealed[name], sep="\n\n", end="\n\n")

    print(ingle.compare(annealed))
    draw(sampled, annealed, options.out / "evidence.png")


def draw(sampled: dict[str, ingle.Evidence], annealed: dict[str, ingle.Evidence], path: Path) -> None:
    """Evidence against the number of components, with two standard errors; open where it is not to be trusted."""
    figure, axis = plt.subplots(figsize=(7, 4.2), layout="constrained")
    places = range(1, len(annealed) + 1)
    ways = {"annealed importance sampling": (annealed, "C0", -0.08), "importance sampling": (sampled, "C1", 0.08)}
    for label, (found, colour, shift) in ways.items():
        for place, evidence in zip(places, found.values(), strict=True):
            good = evidence.verdict in ("exact", "reliable", "costly")
            axis.errorbar(
                place + shift,
                evidence.log_z,
                2 * evidence.se,
                fmt="o",
                color=colour,
                mfc=colour if good else "white",
                capsize=3,
            )
        axis.plot([], [], "o-", color=colour, label=label)
    axis.plot([place - 0.08 for place in places], [each.log_z for each in annealed.values()], color="C0", lw=1)
    axis.plot([], [], "o", color="grey", mfc="white", label="open: doubtful or unreliable, says the card")
    lowest = min(evidence.log_z for evidence in annealed.values())
    axis.set(xlabel="components", ylabel="log evidence (nats)", xticks=list(places), ylim=(lowest - 3, None))
    axis.grid(axis="y", alpha=0.3)
    axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
