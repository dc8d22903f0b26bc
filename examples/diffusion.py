"""Diffusion: a bound that tends to log p(x) with the number of steps, a mixture in the plane, and 8 by 8 digits.

Run from anywhere: python examples/diffusion.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import math
from pathlib import Path

import matplotlib
import numpy as np
import torch
from pyro.optim import ExponentialLR
from sklearn.datasets import load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.diffusion import DiffusionGuide, RandomStepsGuide
from ingle.models.diffusion import Diffusion, GaussianDenoiser, RandomSteps
from ingle.objectives import TraceMeanField_ELBO

LEVELS = 17  # of grey in a pixel of the digits, 0 to 16


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)

    tell_gaussian(2**4 if options.smoke else 2**10)

    shape = torch.distributions.MixtureSameFamily(
        torch.distributions.Categorical(torch.tensor([0.5, 0.3, 0.2])),
        torch.distributions.MultivariateNormal(
            torch.tensor([[-1.2, -0.4], [1.1, -0.8], [0.3, 1.2]]),
            scale_tril=torch.tensor([[[0.2, 0.0], [0.3, 0.3]], [[0.4, 0.0], [-0.1, 0.15]], [[0.25, 0.0], [0.0, 0.25]]]),
        ),
    )
    points, held = shape.sample((8_000,)), shape.sample((2_000,))
    model = Diffusion(2, num_steps=10 if options.smoke else 50)
    fit = train(model, points, 500, 10 if options.smoke else 5_000, options.device)
    print(fit, end="\n\n")
    guide, here = DiffusionGuide(model), {"dtype": fit.dtype, "device": fit.device}
    bits, se = guide.bits_per_dim(held.to(**here))
    exact = -float(shape.log_prob(held).mean()) / (2 * math.log(2))
    print(f"mixture, held out, bits a dimension: {bits:.3f} ± {se:.3f} by the bound, {exact:.3f} by the density itself")
    few, draws = (held[:10], 20) if options.smoke else (held[:100], 500)
    # The whole chain is a model like any other, so that importance sampling says what its bound loses.
    evidence = ingle.log_evidence(model, guide, (few.to(**here),), num_samples=draws, per="data", device=fit.device)
    bound = float(evidence.pointwise.elbo.sum())
    print(f"{len(few)} of them, nats: bound {bound:.1f}, evidence {evidence.log_z:.1f} ± {evidence.se:.1f}, ", end="")
    print(f"{evidence.verdict}, of the chain; {float(shape.log_prob(few).sum()):.1f} by the density itself")
    p_value = same(model.sample(1_000).cpu(), held[:1_000])
    print(f"samples beside points held out, energy distance: p-value {p_value:.3f} by permutations\n")
    draw_plane(model, held[:1_000].to(**here), options.out / "diffusion.png")

    levels = torch.tensor(load_digits().data)
    # Each pixel is spread over its level once, so that the fit may learn the very numbers: held out it tells.
    pixels = 2.0 * (levels + torch.rand_like(levels)) / LEVELS - 1.0  # from -1 to 1
    shuffled = torch.randperm(len(pixels))
    seen, unseen = shuffled[:1_536], shuffled[1_536:]
    model = Diffusion(64, num_steps=20 if options.smoke else 500, hidden=(512, 512))
    print(train(model, pixels[seen], 256, 10 if options.smoke else 4_000, options.device), end="\n\n")
    bits, se = DiffusionGuide(model).bits_per_dim(pixels[unseen].to(**here))
    per_level = math.log2(LEVELS / 2)  # from a density to a probability
    print("digits, held out, bits a pixel")
    print(f"  diffusion, by the bound              {bits + per_level:.3f} ± {se:.3f}")
    print(f"  one Gaussian with full covariance    {one_gaussian(pixels[seen], pixels[unseen]) + per_level:.3f}")
    print(f"  each pixel's own levels, as a table  {independent(levels[seen].long(), levels[unseen].long()):.3f}")
    draw_digits(model, options.out / "diffusion_digits.png")


def train(model: Diffusion, x: torch.Tensor, rows: int, steps: int, device: str | None) -> ingle.Fit:
    """A fit of random steps, with a learning rate that falls a hundredfold."""
    program = RandomSteps(model, "simple")
    rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 3e-3}, "gamma": 0.01 ** (1 / steps)}
    return ingle.fit(
        program,
        RandomStepsGuide(program),
        x,
        objective=TraceMeanField_ELBO(),
        batch_size={"data": rows},
        optim=ExponentialLR(rate),
        steps=steps,
        device=device,
    )


def tell_gaussian(most: int) -> None:
    """The bound of the best denoiser for Gaussian data, in closed form and estimated, beside log p(x)."""
    loc, covariance = torch.tensor([1.0, -0.5]).double(), torch.tensor([[1.0, 0.6], [0.6, 0.45]]).double()
    gaussian = torch.distributions.MultivariateNormal(loc, covariance)
    x = gaussian.sample((10_000,))
    exact = -float(gaussian.entropy())
    print(f"Gaussian data, nats a datum: E log p(x) = {exact:.4f}")
    print(
        f"{'steps':>6}  {'bound':>8}  {'estimated':>16}  {'lost':>7}  {'x steps':>7}  {'lost, posterior variance':>24}"
    )
    steps = 2
    while steps <= most:
        model, other = Diffusion(2, steps), Diffusion(2, steps, variance="posterior")
        lost, lost_other = lost_by(model, loc, covariance), lost_by(other, loc, covariance)
        model.denoiser = GaussianDenoiser(model, loc, covariance)
        guide = DiffusionGuide(model)
        # What is lost on these points, so that the noise of drawing them is left out.
        found = exact - gaussian.log_prob(x) - guide.step_terms(x).sum(0) - guide.prior_term(x)
        estimated = f"{float(found.mean()):.4f} ± {float(found.std()) / len(x) ** 0.5:.4f}"
        print(f"{steps:6}  {exact - lost:8.4f}  {estimated:>16}  {lost:7.4f}  {lost * steps:7.3f}  {lost_other:24.4f}")
        steps *= 2
    print()


def lost_by(model: Diffusion, loc: torch.Tensor, covariance: torch.Tensor) -> float:
    """E log p(x) less the bound: divergences between Gaussians, of the true step backwards from the model's."""
    variances, axes = torch.linalg.eigh(covariance)
    marginal = model.alpha_bar[:, None] * variances + model.noise_var[:, None]
    beta = model.beta[1:, None]
    ratio = 1 / (1 / marginal[:-1] + (1 - beta) / beta) / model.sigma[1:, None] ** 2
    far = marginal[-1] + model.alpha_bar[-1] * (loc @ axes) ** 2 - 1 - marginal[-1].log()
    return float(0.5 * (ratio - 1 - ratio.log()).sum() + 0.5 * far.sum())


def same(one: torch.Tensor, two: torch.Tensor, permutations: int = 200) -> float:
    """p-value of the energy distance between two samples of one size, by permutations."""
    both = torch.cat([one, two])
    distances = torch.cdist(both, both)
    signs = torch.cat([torch.ones(len(one)), -torch.ones(len(two))])
    signs = torch.stack([signs, *(signs[torch.randperm(len(both))] for _ in range(permutations))])
    energy = -((signs @ distances) * signs).sum(1)
    return float((energy >= energy[0]).float().mean())


def one_gaussian(seen: torch.Tensor, unseen: torch.Tensor) -> float:
    """Bits a pixel of the density with the mean and covariance of what was seen."""
    fitted = torch.distributions.MultivariateNormal(seen.mean(0), torch.cov(seen.T))
    return -float(fitted.log_prob(unseen).mean()) / (seen.shape[1] * math.log(2))


def independent(seen: torch.Tensor, unseen: torch.Tensor) -> float:
    """Bits a pixel by the frequencies of each pixel's levels, half a count added."""
    counts = torch.stack([(seen == level).sum(0) for level in range(LEVELS)]) + 0.5
    return -float((counts / counts.sum(0)).gather(0, unseen).log2().mean())


def draw_plane(model: Diffusion, x: torch.Tensor, path: Path) -> None:
    """Points on their way to noise, samples on their way back, and what each step costs."""
    guide = DiffusionGuide(model)
    with torch.no_grad():
        forward, backward = guide.path(x).cpu(), model.sample(len(x), path=True).cpu()
    costs = guide.step_terms(x).mean(1).cpu() / math.log(2.0)
    shown = [round(share * model.num_steps) for share in (0, 0.1, 0.25, 0.5, 1)]
    figure, axes = plt.subplot_mosaic(
        [[f"forward {t}" for t in shown], [f"backward {t}" for t in shown], ["costs"] * len(shown)],
        figsize=(10, 6.2),
        height_ratios=(1, 1, 0.8),
        layout="constrained",
    )
    for way, found, colour in (("forward", forward, "tab:blue"), ("backward", backward, "tab:orange")):
        for t in shown:
            axis = axes[f"{way} {t}"]
            axis.plot(*found[t].T, ".", ms=1.5, color=colour)
            axis.set(xlim=(-3.2, 3.2), ylim=(-3.2, 3.2), aspect="equal", xticks=(-2, 0, 2), yticks=(-2, 0, 2))
            if way == "forward":
                axis.set_title(f"step {t}" if t else "data, step 0", fontsize=10)
                axis.tick_params(labelbottom=False)
            if t:
                axis.tick_params(labelleft=False)
        axes[f"{way} 0"].set_ylabel({"forward": "noise added →", "backward": "← noise taken away"}[way])
    axis = axes["costs"]
    axis.bar(range(2, model.num_steps + 1), costs[1:], color="tab:green")
    axis.set(xlabel="step t", ylabel="bits a datum", xlim=(0, model.num_steps + 1))
    axis.set_title("what each step costs: KL(q(x$_{t-1}$ | x$_t$, x) || p(x$_{t-1}$ | x$_t$))", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_digits(model: Diffusion, path: Path) -> None:
    """Digits that were sampled, and the way to some of them from noise."""
    with torch.no_grad():
        found = model.sample(50, path=True, last_noise=False).cpu().numpy()
    shown = np.linspace(model.num_steps, 0, 10).round().astype(int)
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 2.8), layout="constrained")
    left.imshow(tiled(found[0]), cmap="gray_r", vmin=-1, vmax=1)
    left.set_title("new digits", fontsize=10)
    right.imshow(tiled(found[shown][:, :5].swapaxes(0, 1).reshape(50, 64)), cmap="gray_r", vmin=-1, vmax=1)
    right.set_title("five of them from noise (left) to digit (right)", fontsize=10)
    for axis in (left, right):
        axis.set_axis_off()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def tiled(images: np.ndarray) -> np.ndarray:
    """Fifty images, shape (50, 64), as five rows of ten, with a white line between."""
    padded = np.pad(images.reshape(5, 10, 8, 8), ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=-1.0)
    return padded.transpose(0, 2, 1, 3).reshape(50, 100)


if __name__ == "__main__":
    main()
