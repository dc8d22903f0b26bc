"""Does a program say what it should? A line fitted in minibatches, right and with two faults, against a simulator.

The simulator is written apart from the models: a hundred lines, each with a thousand points around it. The right model
takes a hundred of the points at a time and counts each ten times. One fault is to count each once; the other is a minus
in the mean. Both fit without complaint, and their own draws show nothing, since these have the same fault.

Run from anywhere: python examples/calibrate.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

import ingle

ROWS, BATCH, NOISE = 1_000, 100, 3.0


def simulate(seed: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    intercept, slope = torch.randn(2, generator=generator)
    x = torch.linspace(-1.0, 1.0, ROWS)
    y = intercept + slope * x + NOISE * torch.randn(ROWS, generator=generator)
    return {"intercept": intercept, "slope": slope}, {"x": x, "y": y}


def make_line(*, scale: float = ROWS / BATCH, sign: float = 1.0):
    def line(x: Tensor, y: Tensor) -> None:
        intercept = pyro.sample("intercept", dist.Normal(0.0, 1.0))
        slope = pyro.sample("slope", dist.Normal(0.0, 1.0))
        rows = torch.randint(ROWS, (BATCH,))
        with pyro.plate("rows", BATCH), poutine.scale(scale=scale):
            pyro.sample("y", dist.Normal(intercept + sign * slope * x[rows], NOISE), obs=y[rows])

    return line


MODELS = {
    "right": make_line(),
    "no scale on the plate": make_line(scale=1.0),
    "a sign error": make_line(sign=-1.0),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few fits and steps, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    fits, steps, compile = (20, 20, "off") if options.smoke else (100, 4_000, "auto")

    found: dict[str, ingle.Calibration] = {}
    for name, model in MODELS.items():
        found[name] = ingle.calibrate(
            model, "normal", simulate=simulate, fits=fits, steps=steps, compile=compile, device=options.device
        )
        print(name, found[name], sep="\n", end="\n\n")
    draw(found, options.out / "calibrate.png")


def draw(found: dict[str, ingle.Calibration], path: Path) -> None:
    """How far the ranks of intercept and slope are from uniform, with the band that 19 of 20 right programs keep to."""
    figure, axes = plt.subplots(2, len(found), figsize=(9, 4.6), sharex=True, sharey=True, layout="constrained")
    for column, (name, calibration) in zip(axes.T, found.items(), strict=True):
        for axis, site in zip(column, ("intercept", "slope"), strict=True):
            calibration.plot(site, ax=axis)
        column[0].set_title(f"{name}\n{column[0].get_title()}")
    axes[0, 0].set_ylim(-0.6, 0.6)
    figure.supxlabel("rank of the truth among 199 draws, as a share")
    figure.supylabel("ECDF of 100 ranks less uniform")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
