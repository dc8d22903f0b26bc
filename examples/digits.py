"""A variational autoencoder on scikit-learn's 8 by 8 digits, in minibatches: reconstructions and new digits.

Run from anywhere: python examples/digits.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
from pathlib import Path

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.vae import VAE

SHOWN = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    bits = (digits.data > 7.5).astype(float)  # grey levels 0 to 16, made black and white for a Bernoulli likelihood
    first = [int(np.flatnonzero(digits.target == digit)[0]) for digit in range(SHOWN)]

    torch.manual_seed(0)  # the networks start at random, outside the fit
    model = VAE(64, latent_dim=8, hidden=(128,))
    guide = VAEGuide(model)
    fit = ingle.fit(
        model,
        guide,
        bits,
        batch_size={"data": 128},
        optim=functools.partial(torch.optim.Adam, lr=2e-3),
        steps=100 if options.smoke else 4_000,
        device=options.device,
    )
    print(fit)

    rates = bits.mean(0).clip(1e-3, 1 - 1e-3)
    independent = float((bits * np.log(rates) + (1 - bits) * np.log1p(-rates)).sum()) / len(bits)
    print(f"\nnats a digit: ELBO {fit.elbo[0] / len(bits):.2f}, independent pixels {independent:.2f}")

    with fit.active():
        shown = torch.tensor(bits[first], dtype=fit.dtype, device=fit.device)
        rebuilt = guide.reconstruct(shown)
        fresh = model.generate(SHOWN)
    draw(
        {"digits": shown, "rebuilt from their codes": rebuilt, "from the prior": fresh},
        options.out / "digits.png",
    )


def draw(rows: dict[str, torch.Tensor], path: Path) -> None:
    """One row of images for each entry, shape (images, 64), from white (0) to black (1)."""
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(SHOWN, 1.3 * len(rows)), layout="constrained")
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=10)
        for place, image in zip(line, images.cpu().numpy(), strict=True):
            place.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0.0, vmax=1.0)
            place.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
