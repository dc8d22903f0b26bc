"""Digits completed from what was seen of them: from their top half, and from a third of their pixels.

No digit of the training data was seen whole either: a fifth of its pixels is missing.

Run from anywhere: python examples/image_completion.py [--out out] [--smoke] [--device cuda]
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
from matplotlib.colors import to_rgb

import ingle
from ingle.guides.image_completion import Completions, ImageCompletionGuide
from ingle.models.image_completion import ImageCompletion
from ingle.models.vae import VAE

COMPLETIONS = 4
TILE = 8 * 4 + 6  # of the picture, four times as large as a digit, with a frame and a gap


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    bits = torch.tensor(digits.data > 7.5)  # grey levels 0 to 16, made black and white for a Bernoulli likelihood
    order = torch.randperm(len(bits), generator=torch.Generator().manual_seed(0))
    train, held = bits[order[:1_500]], bits[order[1_500:]]
    labels = digits.target[order[1_500:].numpy()]

    # Each digit stands in the data four times: as it was seen, its top half, and two random parts of it.
    source = torch.Generator().manual_seed(1)
    whole = torch.rand(train.shape, generator=source) < 0.8
    top = torch.arange(64) < 32
    shares = 0.1 + 0.9 * torch.rand(2, len(train), 1, generator=source)
    parts = torch.rand(2, *train.shape, generator=source) < shares
    seen = torch.cat([whole, whole & top, whole & parts[0], whole & parts[1]])
    x = train.repeat(4, 1).double().masked_fill(~seen, torch.nan)
    some = seen.any(1)

    torch.manual_seed(0)  # the networks start at random, outside the fit
    model = ImageCompletion(VAE(64, latent_dim=12, hidden=(256,)))
    guide = ImageCompletionGuide(model)
    fit = ingle.fit(
        model,
        guide,
        (x[some], seen[some]),
        batch_size={"data": 128},
        optim=functools.partial(torch.optim.Adam, lr=1e-3),
        steps=20 if options.smoke else 12_000,
        device=options.device,
    )
    print(fit)

    masks = {
        "bottom half | top half": top.expand(held.shape),
        "the rest | a third": torch.rand(held.shape, generator=source) < 0.33,
    }
    rates = (train.double() * whole).sum(0) / whole.sum(0)  # of what was seen
    means = torch.distributions.Bernoulli(rates.clamp(1e-3, 1 - 1e-3)).log_prob(held.double())
    picked = {0: 0, 2: 2, 3: 1, 6: 1, 9: 3}  # of each digit one that is easy to read
    shown = torch.tensor([int(np.flatnonzero(labels == digit)[which]) for digit, which in picked.items()])
    rows, num, refine = (30, 20, 2) if options.smoke else (len(held), 1_000, 50)

    table: dict[str, list[str]] = {}
    found = {}
    torch.manual_seed(1)
    for name, mask in masks.items():
        x, seen = held.to(fit.device, fit.dtype), mask.to(fit.device)
        tell(table, "independent pixels at their means", means.masked_fill(mask, 0.0)[:rows].sum(1))
        with fit.active():
            # Importance weights turn the encoder's codes into codes from the posterior given what was seen.
            for way, steps, weighted in (
                ("codes from the encoder alone", 0, False),
                ("the same codes, resampled", 0, True),
                (f"refined by {refine} steps, resampled", refine, True),
            ):
                tell(table, way, guide.score(x[:rows], seen[:rows], num, steps, weighted=weighted))
            log_p, se, _ = guide.log_missing(x[:rows], seen[:rows], num, refine)
            tell(table, "log p(all) - log p(seen)", log_p)
            table.setdefault("  its error by sampling", []).append(f"{float(se.square().sum().sqrt()) / rows:.4f}")
            for steps in (0, refine):
                ess = guide.complete(x[:rows], seen[:rows], 1, num, steps).ess
                low, half = ess.quantile(torch.tensor([0.1, 0.5]).to(ess)).tolist()
                table.setdefault(f"ESS of {num:,}, {steps} steps refined", []).append(
                    f"{half:,.0f}, a tenth below {low:,.0f}"
                )
            found[name] = (x[shown], seen[shown], guide.complete(x[shown], seen[shown], COMPLETIONS, num, refine))

    print(f"\n{f'nats a digit, {rows} held out':<34}" + "".join(f"{name:>28}" for name in masks))
    print("\n".join(f"{name:<34}" + "".join(f"{cell:>28}" for cell in cells) for name, cells in table.items()))
    draw(found, options.out / "image_completion.png")


def tell(table: dict[str, list[str]], name: str, values: torch.Tensor) -> None:
    """A cell of the table: the mean over digits, and its standard error."""
    table.setdefault(name, []).append(f"{float(values.mean()):.2f} ± {float(values.std()) / len(values) ** 0.5:.2f}")


def draw(found: dict[str, tuple[torch.Tensor, torch.Tensor, Completions]], path: Path) -> None:
    """A row for each digit: what it was, what was seen of it, its completions, their expected value."""
    titles = ["digit", "seen", *["drawn"] * COMPLETIONS, "expected"]
    figure, axes = plt.subplots(1, 2, figsize=(11.5, 4.8), layout="constrained")
    for axis, (name, (digits, seen, done)) in zip(axes, found.items(), strict=True):
        sheet = np.ones((len(digits), TILE, len(titles), TILE, 3))
        for row in range(len(digits)):
            images = [digits[row], digits[row], *done.x[:, row], done.expected[row]]
            for column, image in enumerate(images):
                tile = coloured(image, None if column == 0 else seen[row], empty=column == 1)
                sheet[row, 1:-3, column, 1:-3] = 0.5  # a frame
                sheet[row, 2:-4, column, 2:-4] = np.kron(tile, np.ones((4, 4, 1)))
        sheet = sheet.reshape(len(digits) * TILE, len(titles) * TILE, 3)
        axis.imshow(sheet, interpolation="nearest")
        axis.set_xlabel(name, fontsize=12)
        axis.xaxis.set_label_position("top")
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        axis.set(xticks=[(column + 0.5) * TILE - 1.5 for column in range(len(titles))], xticklabels=titles, yticks=[])
        axis.spines[:].set_visible(False)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def coloured(image: torch.Tensor, seen: torch.Tensor | None, *, empty: bool) -> np.ndarray:
    """Seen pixels black on white, missing ones orange: plain where they are empty, else as dark as they are black."""
    values = image.cpu().double().numpy().reshape(8, 8, 1)
    grey = (1 - values) * np.ones(3)
    if seen is None:
        return grey
    light, dark = np.array([1.0, 0.93, 0.82]), 0.75 * np.array(to_rgb("tab:orange"))
    filled = np.array(to_rgb("tab:orange")) if empty else light + values * (dark - light)
    return np.where(seen.cpu().numpy().reshape(8, 8, 1), grey, filled)


if __name__ == "__main__":
    main()
