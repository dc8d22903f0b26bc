"""A variational autoencoder on scikit-learn's 8 by 8 digits: codes, what they decode to, and what they are good for.

Run from anywhere: python examples/vae.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.vae import VAE
from ingle.objectives import IWAE_ELBO, Trace_ELBO

SHOWN, HELD_OUT = 10, 297
MODELS: dict[str, dict[str, Any]] = {
    "MLP": {},
    "convolutional": {"hidden": (32, 16), "architecture": "convolutional", "activation": "relu"},
    "IWAE, K = 5": {"objective": IWAE_ELBO(5, vectorize_particles=True)},
    "mixture prior": {"components": 10},
    "with labels": {"num_labels": 10},
    "MLP, 2 dimensions": {"latent_dim": 2},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    digits = load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    grey, target = digits.images[order, None] / 16.0, digits.target[order]
    bits = torch.tensor(grey > 0.47, dtype=torch.float32)  # black and white, for a Bernoulli likelihood
    train, test = slice(HELD_OUT, None), slice(HELD_OUT)

    fits = {}
    print(f"{'nats a test digit':18}  {'ELBO':>8}  log p(x)  active units  probe, % right")
    for name, settings in MODELS.items():
        fit = fits[name] = fitted(settings, bits[train], torch.tensor(target[train]), options)
        tested = evidence(fit, bits[test], torch.tensor(target[test]), 50 if options.smoke else 1_000)
        right = probe(fit, bits, target, train, test)
        print(
            f"{name:18}  {tested.pointwise.elbo.mean():8.2f}  {tested.log_z / HELD_OUT:8.2f}"
            f"  {active(fit, bits[train], target[train]):12}  {right}"
        )
    rates = bits[train].mean(0).clamp(1e-3, 1 - 1e-3)
    independent = torch.distributions.Bernoulli(rates).log_prob(bits[test]).sum() / HELD_OUT
    print(f"{'independent pixels':18}  {'':8}  {independent:8.2f}")
    for size in (2, 8):
        codes = PCA(size, random_state=0).fit(bits[train].flatten(1)).transform(bits.flatten(1))
        print(
            f"{f'PCA, {size} dimensions':18}  {'':11}  {'':10}  {'':14}  {'':12}  {share(codes, target, train, test)}"
        )
    print(f"\n{fits['MLP']}")

    draw_images(fits, bits[test], target[test], options.out / "vae_images.png")
    draw_walks(fits["MLP"], bits[test], target[test], options.out / "vae_walks.png")
    draw_grid(fits["MLP, 2 dimensions"], bits[test], target[test], options.out / "vae_grid.png")


def fitted(
    settings: dict[str, Any], bits: torch.Tensor, target: torch.Tensor, options: argparse.Namespace
) -> ingle.Fit:
    settings = {"latent_dim": 8, "hidden": (128,), **settings}
    objective = settings.pop("objective", None)
    torch.manual_seed(0)  # the networks start at random, outside the fit
    model = VAE((1, 8, 8), **settings)
    return ingle.fit(
        model,
        VAEGuide(model),
        (bits, target) if model.num_labels else bits,
        objective=objective or Trace_ELBO(),
        batch_size={"data": 100},
        optim=functools.partial(torch.optim.Adam, lr=2e-3),
        steps=5 if options.smoke else 4_000,
        compile="off" if options.smoke else "auto",
        device=options.device,
    )


def evidence(fit: ingle.Fit, bits: torch.Tensor, target: torch.Tensor, draws: int) -> ingle.Evidence:
    """Of images that were not trained on."""
    data = (bits, target) if fit.model.num_labels else bits
    with fit.active():
        return ingle.log_evidence(
            fit.model, fit.guide, data, num_samples=draws, per="data", device=fit.device, dtype=fit.dtype
        )


def codes_of(fit: ingle.Fit, bits: torch.Tensor, target: np.ndarray) -> torch.Tensor:
    """Means of the codes, shape (N, K)."""
    label = torch.tensor(target, device=fit.device) if fit.model.num_labels else None
    with torch.no_grad():
        return fit.guide.encode(bits.to(fit.device, fit.dtype), label).mean.cpu()


def active(fit: ingle.Fit, bits: torch.Tensor, target: np.ndarray) -> int:
    """Numbers of the code that move with the images."""
    label = torch.tensor(target, device=fit.device) if fit.model.num_labels else None
    with fit.active():
        return int((fit.guide.activity(bits.to(fit.device, fit.dtype), label) > 0.01).sum())


def probe(fit: ingle.Fit, bits: torch.Tensor, target: np.ndarray, train: slice, test: slice) -> str:
    """How often a logistic regression on the codes tells the digit of images that neither has seen."""
    if fit.model.num_labels:
        return "told the label"
    return share(codes_of(fit, bits, target).numpy(), target, train, test)


def share(codes: np.ndarray, target: np.ndarray, train: slice, test: slice) -> str:
    regression = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2_000)).fit(codes[train], target[train])
    right = regression.score(codes[test], target[test])
    return f"{100 * right:.1f} ± {100 * (right * (1 - right) / HELD_OUT) ** 0.5:.1f}"


def draw_images(fits: dict[str, ingle.Fit], bits: torch.Tensor, target: np.ndarray, path: Path) -> None:
    """Test images, the same rebuilt from their codes, and images of codes from the prior."""
    first = [int(np.flatnonzero(target == digit)[0]) for digit in range(SHOWN)]
    rows = {"test digits": bits[first]}
    torch.manual_seed(1)
    for name in ("MLP", "convolutional"):
        shown = bits[first].to(fits[name].device)
        rows[f"rebuilt from their codes, {name}"] = fits[name].guide.reconstruct(shown)
    for name in ("MLP", "mixture prior"):
        with fits[name].active():
            rows[f"new, {name}"] = fits[name].model.generate(SHOWN)
    labelled = fits["with labels"]
    label = torch.arange(SHOWN, device=labelled.device)
    with labelled.active():
        rows["new, told the label 0 to 9"] = labelled.model.generate(SHOWN, label)
    draw(rows, path)


def draw_walks(fit: ingle.Fit, bits: torch.Tensor, target: np.ndarray, path: Path) -> None:
    """Between two digits, and along the four numbers of a code that move most."""
    model, guide = fit.model, fit.guide
    images = bits.to(fit.device)
    ends = [(int(np.flatnonzero(target == a)[1]), int(np.flatnonzero(target == b)[1])) for a, b in ((0, 6), (1, 7))]
    rows = {}
    with torch.no_grad():
        codes = guide.encode(images).mean
    for a, b in ends:
        rows[f"from {target[a]} to {target[b]}"] = model.interpolate(codes[a], codes[b], SHOWN)
    most = guide.activity(images).argsort(descending=True)[:4].tolist()
    for dim in most:
        walk = model.traverse(codes[ends[0][0]], dim, torch.linspace(-2.5, 2.5, SHOWN))
        rows[f"number {dim} of the code of a {target[ends[0][0]]}, from -2.5 to 2.5"] = walk
    draw(rows, path)


def draw(rows: dict[str, torch.Tensor], path: Path) -> None:
    """One row of images for each entry, shape (SHOWN, 1, 8, 8), from white (0) to black (1)."""
    figure, axes = plt.subplots(len(rows), SHOWN, figsize=(SHOWN, 1.3 * len(rows)), gridspec_kw={"hspace": 0.35})
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=10)
        for place, image in zip(line, images.cpu().numpy(), strict=True):
            place.imshow(image[0], cmap="gray_r", vmin=0.0, vmax=1.0)
            place.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_grid(fit: ingle.Fit, bits: torch.Tensor, target: np.ndarray, path: Path, side: int = 12) -> None:
    """The plane of codes: what each point decodes to, by quantiles of the prior, and where the test digits lie."""
    quantiles = torch.distributions.Normal(0.0, 1.0).icdf(torch.linspace(0.02, 0.98, side))
    across, down = torch.meshgrid(quantiles, quantiles.flip(0), indexing="xy")
    images = fit.model.decode(torch.stack([across, down], -1).to(fit.device, fit.dtype))[:, :, 0].cpu()
    images = torch.nn.functional.pad(images, (1, 1, 1, 1))
    codes = codes_of(fit, bits, target)
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 5.2), layout="constrained")
    left.imshow(images.permute(0, 2, 1, 3).reshape(10 * side, 10 * side), cmap="gray_r", vmin=0.0, vmax=1.0)
    places = np.linspace(4.5, 10 * side - 5.5, side)[:: side - 1]
    names = [f"{quantiles[0]:.1f}", f"{quantiles[-1]:.1f}"]
    left.set(title="decoded", xlabel="first number of the code (prior sd)", ylabel="second number (prior sd)")
    left.set(xticks=places, xticklabels=names, yticks=places, yticklabels=names[::-1])
    for digit in range(10):
        right.plot(*codes[target == digit].T, "o", ms=4, color=plt.cm.tab10(digit), label=str(digit))
    right.set(title="test digits", xlabel="first number of the code (prior sd)", ylabel="second number (prior sd)")
    right.set_aspect("equal", adjustable="datalim")
    right.legend(ncols=2, fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
