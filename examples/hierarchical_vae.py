"""One layer of codes, or two: the bound on held-out digits, what each layer holds, and why the KL is warmed up.

Each autoencoder takes the same steps on the same minibatches with about as many parameters. The last fit leaves the
warm-up out: the divergence from the prior then shuts a layer before it has learned to tell the data apart.

Run from anywhere: python examples/hierarchical_vae.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.hierarchical_vae import HierarchicalVAEBottomUpGuide, HierarchicalVAELadderGuide
from ingle.models.hierarchical_vae import HierarchicalVAE
from ingle.objectives import Anneal, Trace_ELBO

SHOWN = 10
COLOURS = ("tab:blue", "tab:orange")  # of layers, nearest the data first


@dataclass(frozen=True)
class Trained:
    """A fit, the steps at which its layers were looked at, and their cost then in nats a digit, shape (looks, L)."""

    fit: ingle.Fit
    at: list[int]
    kl: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="few steps and draws, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, looks, draws = (20, 4, 10) if options.smoke else (4_000, 20, 500)

    digits = load_digits()
    bits = torch.tensor(digits.data > 7.5).float()  # grey levels 0 to 16, made black and white
    order = torch.randperm(len(bits), generator=torch.Generator().manual_seed(1))
    seen, held_out = order[:1_400], order[1_400:]
    first = [int(held_out[np.flatnonzero(digits.target[held_out] == digit)[0]]) for digit in range(SHOWN)]

    bottom_up, ladder = HierarchicalVAEBottomUpGuide, HierarchicalVAELadderGuide
    ways = {
        "one layer": ((8,), (80,), bottom_up, True),
        "two, bottom-up": ((8, 4), (64,), bottom_up, True),
        "two, ladder": ((12, 4), (48,), ladder, True),
        "ladder, no warm-up": ((12, 4), (48,), ladder, False),
    }
    found: dict[str, Trained] = {}
    for name, (latent_dims, hidden, kind, warm_up) in ways.items():
        torch.manual_seed(0)  # the networks start at random, outside the fit
        model = HierarchicalVAE(64, latent_dims, hidden, activation="silu")
        anneal = Anneal(steps=steps // 2) if warm_up else 1.0
        found[name] = train(model, kind(model), bits[seen], anneal, steps, looks, options)
        print(found[name].fit, end="\n\n")

    print(f"{'nats a digit, held out':22}  parameters  ELBO            log p(x)        KL of each layer  active")
    for name, trained in found.items():
        print(f"{name:22}  {row(trained, bits[held_out], draws)}")
    best = found["two, ladder"].fit
    draw_samples(best, bits[first], options.out / "hierarchical_vae_samples.png")
    draw_training(found, steps, options.out / "hierarchical_vae_training.png")


def train(
    model: HierarchicalVAE,
    guide: HierarchicalVAEBottomUpGuide | HierarchicalVAELadderGuide,
    x: Tensor,
    anneal: Anneal | float,
    steps: int,
    looks: int,
    options: argparse.Namespace,
) -> Trained:
    """Fit in parts, with a look at what each layer costs after each of them."""
    part = steps // looks
    fit = ingle.fit(
        model,
        guide,
        x,
        batch_size={"data": 128},
        objective=Trace_ELBO(kl_scale=anneal),
        optim=functools.partial(torch.optim.Adam, lr=2e-3),
        steps=part,
        compile="off" if options.smoke else "auto",
        device=options.device,
    )
    kl = []
    while True:
        with fit.active():
            kl.append(guide.kl(x.to(fit.device))[0].cpu().numpy())
        if fit.steps == steps:
            return Trained(fit, [part * (1 + look) for look in range(len(kl))], np.stack(kl))
        fit = fit.resume(part)


def row(trained: Trained, x: Tensor, draws: int) -> str:
    """What a fit says of data that it has not seen."""
    fit = trained.fit
    model, guide = fit.model, fit.guide
    size = sum(parameter.numel() for module in (model, guide) for parameter in module.parameters())
    with fit.active():
        x = x.to(fit.device, fit.dtype)
        evidence = ingle.log_evidence(model, guide, x, num_samples=draws, per="data")
        kl = guide.kl(x)[0].tolist()
        active = [int((layer > 0.01).sum()) for layer in guide.activity(x)]
    elbo = evidence.pointwise.elbo
    bound = f"{elbo.mean():.2f} ± {elbo.std() / len(elbo) ** 0.5:.2f}"
    log_p = evidence.pointwise.log_z
    told = f"{log_p.mean():.2f} ± {log_p.std() / len(log_p) ** 0.5:.2f}"
    return f"{size:10,}  {bound:14}  {told:14}  {', '.join(f'{nats:.2f}' for nats in kl):16}  {active}"


def draw_samples(fit: ingle.Fit, x: Tensor, path: Path) -> None:
    """Digits, what comes back of them from each layer, the lower layer drawn anew, and digits from the prior."""
    torch.manual_seed(0)
    model, guide = fit.model, fit.guide
    with fit.active():
        shown = x.to(fit.device, fit.dtype)
        top = guide.encode(shown)["z2"]
        again = [model.redraw(top, 2) for _ in range(3)]
        rows = [
            ("held-out digits", shown),
            ("rebuilt from z1", guide.reconstruct(shown)),
            ("from z2 alone,\nz1 at its mean", guide.reconstruct(shown, 2)),
            ("", again[0]),
            ("z2 held, z1\ndrawn anew,\nthree times", again[1]),
            ("", again[2]),
            ("both drawn\nfrom the prior", model.generate(SHOWN)),
        ]
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(7.5, 4.4), layout="constrained")
    for line, (title, images) in zip(axes, rows, strict=True):
        line[0].text(-0.25, 0.5, title, ha="right", va="center", transform=line[0].transAxes)
        for place, image in zip(line, images.cpu().numpy(), strict=True):
            place.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=1.0)
            place.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_training(found: dict[str, Trained], steps: int, path: Path) -> None:
    """The cost of each layer over training, on the digits that are trained on."""
    figure, axes = plt.subplots(1, len(found), figsize=(12, 3.6), layout="constrained", sharey=True)
    for axis, (name, trained) in zip(axes, found.items(), strict=True):
        for layer, colour in zip(range(trained.kl.shape[1]), COLOURS, strict=False):
            axis.plot(trained.at, trained.kl[:, layer], "o-", ms=3, color=colour, label=f"z{layer + 1}")
        axis.plot(trained.at, trained.kl.sum(1), color="grey", ls=":", label="sum")
        if "no warm-up" not in name:
            axis.axvline(steps // 2, color="grey", lw=0.8)
            axis.text(steps // 2, 0.97, " KL in full", fontsize=8, va="top", transform=axis.get_xaxis_transform())
        axis.set(title=name, xlabel="step")
    axes[0].set_ylabel("KL from the prior (nats a digit)")
    axes[-1].legend(loc="upper right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
