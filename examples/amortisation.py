"""Codes for 1,797 digits served three ways: a parameter set each, an encoder, and an encoder refined digit by digit.

Each trains a decoder of its own from the same start, so that their log p(x) differ. Time is that of steps, taken
eagerly, and of refining with its estimates, as the fits tell it; nothing is compiled, which would distort it. Where the
card calls log Z unreliable, a gap is at least what is told.

Run from anywhere: python examples/amortisation.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
import math
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from sklearn.datasets import load_digits
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.vae import VAE
from ingle.objectives import STL_ELBO

LATENT = 4
GUIDE_STEPS = 20  # of the own parameters for each of the decoder
COLOURS = {"own parameters": "tab:blue", "encoder": "tab:orange", "encoder, refined": "tab:green"}


@dataclass(frozen=True)
class OwnParameters:
    """q(z_i) = Normal(loc_i, scale_i), with a location and a scale of its own for each digit: no network."""

    latent_dim: int

    def __call__(self, x: Tensor) -> None:
        """One run of the guide; x has shape (N, D)."""
        n, k = len(x), self.latent_dim
        with pyro.plate("data", n):
            loc = pyro.param("z_loc", torch.zeros(n, k), event_dim=1)
            start = torch.full((n, k), 0.5)
            scale = pyro.param("z_scale", start, constraint=constraints.softplus_positive, event_dim=1)
            pyro.sample("z", dist.Normal(loc, scale).to_event(1))


@dataclass(frozen=True)
class Served:
    """What one way came to: seconds of its steps, and ELBO and gaps in nats a digit, each with its standard error."""

    seconds: float
    elbo: tuple[float, float]
    gap: tuple[float, float]
    family: tuple[float, float]
    encoder: tuple[float, float]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few digits, steps and draws, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    digits, steps, draws, refine = (60, 30, 100, 5) if options.smoke else (600, 4_000, 1_000, 150)
    x = torch.tensor(load_digits().data[:digits] > 7.5, dtype=torch.float64)

    fits = {"own parameters": own(x, steps, options.device), "encoder": amortised(x, steps, options.device)}
    for fit in fits.values():
        print(fit, end="\n\n")
    served = {}
    for name, fit in fits.items():
        gap = fit.elbo_gap(draws, per="data", refine=refine if name == "encoder" else 0)
        print(gap, end="\n\n")
        served |= told(name, fit, gap, digits)

    print("nats a digit      seconds     ELBO          gap to log p(x)  of the family  of the encoder")
    for name, one in served.items():
        parts = "  ".join(f"{pair(part):>15}" for part in (one.elbo, one.gap, one.family, one.encoder))
        print(f"{name:17} {one.seconds:7.1f}  {parts}")
    draw(fits, served, digits, options.out / "amortisation.png")


def own(x: Tensor, steps: int, device: str | None) -> ingle.Fit:
    """The digits' own parameters take some steps for each of the decoder, which so moves at nearly settled codes."""
    optim = {
        "model": functools.partial(torch.optim.Adam, lr=2e-2),
        "guide": functools.partial(torch.optim.Adam, lr=5e-2),
    }
    model = decoder()
    # STL_ELBO: noise left in the parameters would count as a gap of the family.
    return ingle.fit(
        model,
        OwnParameters(LATENT),
        x,
        steps=steps,
        objective=STL_ELBO(),
        optim=optim,
        guide_steps=GUIDE_STEPS,
        device=device,
        compile="off",
    )


def amortised(x: Tensor, steps: int, device: str | None) -> ingle.Fit:
    """One network for all digits, which moves together with the decoder."""
    model = decoder()
    return ingle.fit(
        model,
        VAEGuide(model),
        x,
        steps=steps,
        objective=STL_ELBO(),
        optim=functools.partial(torch.optim.Adam, lr=5e-3),
        device=device,
        compile="off",
    )


def decoder() -> VAE:
    """The same at every call."""
    torch.manual_seed(0)  # the networks start at random, outside the fit
    return VAE(64, latent_dim=LATENT, hidden=(64,))


def told(name: str, fit: ingle.Fit, gap: ingle.ElboGap, digits: int) -> dict[str, Served]:
    """What a fit came to, and where an encoder was refined what that came to."""

    def each(value: float, se: float) -> tuple[float, float]:
        return value / digits, se / digits

    whole, nothing = each(gap.gap, gap.gap_se), (0.0, 0.0)
    elbo = each(gap.elbo, gap.elbo_se)
    if gap.unsplit:  # own parameters: nothing is amortised, all that is left is of the family, and of steps not taken
        return {name: Served(fit.seconds, elbo, whole, whole, nothing)}
    family = each(gap.approximation, gap.approximation_se)
    refined = each(gap.refined_elbo, gap.refined_elbo_se)
    return {
        name: Served(fit.seconds, elbo, whole, family, each(gap.amortisation, gap.amortisation_se)),
        f"{name}, refined": Served(fit.seconds + gap.seconds, refined, family, family, nothing),
    }


def pair(value: tuple[float, float]) -> str:
    return "-" if math.isnan(value[0]) else f"{value[0]:.3f} ± {value[1]:.3f}"


def draw(fits: dict[str, ingle.Fit], served: dict[str, Served], digits: int, path: Path) -> None:
    """ELBO against time, and what each way lacks to log p(x) under its own decoder."""
    figure, (time, gaps) = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained")
    for name, fit in fits.items():
        window = max(1, fit.steps // 100)
        smooth = -np.convolve(fit.losses, np.full(window, 1 / window), mode="valid") / digits
        seconds = np.linspace(0, fit.seconds, fit.steps + 1)[window:]
        time.plot(seconds, smooth, color=COLOURS[name], lw=1, label=name)
    start, end = (served[name] for name in ("encoder", "encoder, refined"))
    line = {"ls": "--", "color": COLOURS["encoder, refined"], "label": "encoder, refined"}
    time.plot([start.seconds, end.seconds], [start.elbo[0], end.elbo[0]], marker="o", ms=4, **line)
    lowest = min(-fit.losses[fit.steps // 20 :].max() / digits for fit in fits.values())
    time.set(xlabel="seconds of steps (eager) and of refining", ylabel="ELBO (nats a digit)")
    time.set(title="ELBO against time", ylim=(lowest, None))
    time.legend(loc="lower right")

    for place, one in enumerate(served.values()):
        family, encoder = one.family[0], one.encoder[0]
        gaps.bar(place, family, color="tab:grey", width=0.6, label="approximation: the family" if place == 0 else None)
        label = "amortisation: the encoder" if place == 0 else None
        gaps.bar(place, encoder, bottom=family, color="tab:red", width=0.6, label=label)
        gaps.errorbar(place, one.gap[0], 2 * one.gap[1], color="black", capsize=4)
    gaps.set_xticks(range(len(served)), list(served))
    highest = 1.3 * max(one.gap[0] for one in served.values())  # room for the legend
    gaps.set(title="gap to log p(x), with two standard errors", ylabel="nats a digit", ylim=(0, highest))
    gaps.legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
