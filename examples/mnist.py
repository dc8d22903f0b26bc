"""Importance-weighted autoencoders on MNIST as published: test log likelihood against epochs, with checkpoints.

The experiment of Burda, Grosse and Salakhutdinov (2016): pixels made black and white anew at every visit, a code of 50
numbers, two hidden layers of 200 tanh units, Adam, and the test log likelihood by importance sampling with 5,000
draws. They report 86.76 nats for the autoencoder (one particle), 85.54 with 5 and 84.78 with 50.

A run goes on where its checkpoint stands, so that the whole schedule may be spread over many sittings:

    python examples/mnist.py --particles 5 --epochs 3280 --minutes 15 --checkpoint k5.pt      # again and again

Run from anywhere: python examples/mnist.py [--out out] [--smoke] [--device cuda] [--data mnist.npz]

`--data` is an .npz file with x_train and x_test (or train_images and test_images), or a folder of IDX files. Without
it ../shared/data/mnist.npz beside the repository is taken, and where that is not, scikit-learn's 8 by 8 digits.
"""

import argparse
import gzip
import os
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import torch
from pyro.optim import Adam
from sklearn.datasets import load_digits

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.vae import VAEGuide
from ingle.models.vae import VAE
from ingle.objectives import IWAE_ELBO, Trace_ELBO

PUBLISHED = {1: 86.76, 5: 85.54, 50: 84.78}
BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist.npz"
NAMES = ("x_train", "train_images", "valid_images"), ("x_test", "test_images")  # what is left to validate is trained on
LOOKS = (1, 3, 10, 30, 100, 300, 1_000, 3_280)  # epochs after which the test images are looked at
LOOK_IMAGES, LOOK_DRAWS = 500, 1_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="a few steps on small digits, to see that it runs")
    parser.add_argument("--device", default="cpu", help="such as cuda")
    parser.add_argument("--data", type=Path, help="an .npz file or a folder of IDX files")
    parser.add_argument("--particles", type=int, default=1, help="K: 1 is the autoencoder, more the IWAE")
    parser.add_argument("--epochs", type=int, default=30, help="of the whole schedule; 3,280 were published")
    parser.add_argument("--minutes", type=float, default=np.inf, help="of this sitting, the last look apart")
    parser.add_argument("--batch", type=int, default=100, help="images a step; 20 were published")
    parser.add_argument("--checkpoint", type=Path, help="goes on from here if there is one, and is kept up to date")
    parser.add_argument("--test-images", type=int, default=1_000, help="for the last figure")
    parser.add_argument("--test-draws", type=int, default=5_000, help="importance draws an image for the last figure")
    options = parser.parse_args()
    if options.smoke:
        options.epochs, options.test_images, options.test_draws = 2, 50, 100
    options.out.mkdir(parents=True, exist_ok=True)

    train, test = load(options)
    run = Run(train, options)
    run.restore()
    run.train(test)

    nats, error = run.nll(test[: options.test_images], options.test_draws)
    beside = f", published {PUBLISHED[options.particles]}" if options.particles in PUBLISHED and run.is_mnist else ""
    print(
        f"\ntest NLL after {run.epoch:,} of {options.epochs:,} epochs: {nats:.2f} ± {error:.2f} nats "
        f"({min(len(test), options.test_images):,} images, {options.test_draws:,} draws{beside})"
    )
    bits = binary(test[:1_000], seed=1)
    active = int((run.guide.activity(bits) > 0.01).sum())
    print(f"active units {active} of {run.model.latent_dim}")
    draw_history(run, options.out / "mnist_nll.png")
    draw_images(run, bits, options.out / "mnist_images.png")


class Run:
    """A model and its guide in training, with all that a checkpoint has to hold."""

    def __init__(self, train: torch.Tensor, options: argparse.Namespace) -> None:
        self.images, self.options = train, options
        self.is_mnist = train.shape[1:] == (28, 28)
        pyro.clear_param_store()
        pyro.set_rng_seed(0)
        self.model = VAE(train.shape[1:], latent_dim=50, hidden=(200, 200), activation="tanh").to(options.device)
        self.guide = VAEGuide(self.model).to(options.device)
        with torch.no_grad():  # the decoder begins at the mean image, as published
            rates = train.mean(0).clamp(1e-3, 1 - 1e-3).flatten()
            last = [layer for layer in self.model.decoder.modules() if isinstance(layer, torch.nn.Linear)][-1]
            last.bias.copy_(torch.logit(rates))
        self.optim = Adam({"lr": 1e-3})
        k = options.particles
        # Told the nesting, it need not run the program to find out, which would draw numbers when a run goes on.
        plates = {"max_plate_nesting": 1, "vectorize_particles": True}
        objective = Trace_ELBO(**plates) if k == 1 else IWAE_ELBO(k, **plates)
        self.svi = ingle.SVI(self.model, self.guide, self.optim, objective)
        self.epoch, self.seconds = 0, 0.0
        self.history: list[list[float]] = []  # epoch, seconds, bound on the training images, test NLL, its error

    def train(self, test: torch.Tensor) -> None:
        """Epochs until the schedule or the sitting is over."""
        options, began, saved = self.options, time.perf_counter(), time.perf_counter()
        before, steps = self.seconds, 0
        print(f"{'epoch':>6}  {'seconds':>8}  {'steps a s':>9}  {'bound':>8}  {'test NLL':>8}", flush=True)
        while self.epoch < options.epochs and time.perf_counter() - began < 60 * options.minutes:
            started = time.perf_counter()
            bound, taken = self.pass_over()
            self.epoch, self.seconds = self.epoch + 1, self.seconds + time.perf_counter() - started
            steps += taken
            if self.epoch in LOOKS or self.epoch == options.epochs:
                nats, error = self.nll(test[:LOOK_IMAGES], 100 if options.smoke else LOOK_DRAWS)
                self.history.append([self.epoch, self.seconds, bound, nats, error])
                pace = steps / (self.seconds - before)
                print(f"{self.epoch:6,}  {self.seconds:8,.0f}  {pace:9,.0f}  {bound:8.2f}  {nats:8.2f}", flush=True)
            if time.perf_counter() - saved > 60:
                self.save()
                saved = time.perf_counter()
        self.save()

    def pass_over(self) -> tuple[float, int]:
        """One epoch: the bound in nats an image, and the steps taken."""
        for one in self.optim.optim_objs.values():  # Pyro has an optimiser for each parameter
            one.param_groups[0]["lr"] = self.rate()
        order, total = torch.randperm(len(self.images), device=self.images.device), 0.0
        batches = order.split(self.options.batch)
        batches = batches[:20] if self.options.smoke else batches
        for rows in batches:
            total += self.svi.step(torch.bernoulli(self.images[rows]))
        return -total / sum(map(len, batches)), len(batches)

    def rate(self) -> float:
        """0.001 10^(-i/7) during stage i = 0 to 7, each three times as long as the one before, as published."""
        ends = np.cumsum(3.0 ** np.arange(8))
        stage = int(np.searchsorted(ends / ends[-1], (self.epoch + 0.5) / self.options.epochs))
        return float(1e-3 * 10 ** (-stage / 7))

    def nll(self, images: torch.Tensor, draws: int) -> tuple[float, float]:
        """Minus log p(x) an image by importance sampling, and its standard error over the images."""
        evidence = ingle.log_evidence(self.model, self.guide, binary(images, seed=1), num_samples=draws, per="data")
        log_p = evidence.pointwise.log_z
        return -float(log_p.mean()), float(log_p.std() / len(images) ** 0.5)

    def save(self) -> None:
        """Write the checkpoint, whole or not at all."""
        path = self.options.checkpoint
        if path is None:
            return
        state: dict[str, Any] = {
            "particles": self.options.particles,
            "epochs": self.options.epochs,
            "model": self.model.state_dict(),
            "guide": self.guide.state_dict(),
            "optim": self.optim.get_state(),
            "random": torch.get_rng_state(),
            "random_cuda": torch.cuda.get_rng_state() if self.images.is_cuda else None,
            "epoch": self.epoch,
            "seconds": self.seconds,
            "history": self.history,
        }
        beside = path.with_name(f"{path.name}.part")
        torch.save(state, beside)
        os.replace(beside, path)

    def restore(self) -> None:
        """Go on from the checkpoint, if there is one."""
        path = self.options.checkpoint
        if path is None or not path.exists():
            return
        state = torch.load(path, weights_only=True, map_location=self.options.device)
        for name in ("particles", "epochs"):
            if state[name] != getattr(self.options, name):
                raise SystemExit(f"{path} is of a run with --{name} {state[name]}")
        self.model.load_state_dict(state["model"])
        self.guide.load_state_dict(state["guide"])
        torch.set_rng_state(state["random"].cpu())
        if self.images.is_cuda and state["random_cuda"] is not None:
            torch.cuda.set_rng_state(state["random_cuda"].cpu())
        self.epoch, self.seconds, self.history = state["epoch"], state["seconds"], state["history"]
        for one in state["optim"].values():  # it is put in place at the next step, with the rate that it was saved at
            one["param_groups"][0]["lr"] = self.rate()
        self.optim.set_state(state["optim"])
        print(f"going on after {self.epoch:,} epochs")


def load(options: argparse.Namespace) -> tuple[torch.Tensor, torch.Tensor]:
    """Grey images from 0 to 1 for training and test, shape (N, height, width), on the device."""
    path = options.data or (BESIDE if BESIDE.exists() and not options.smoke else None)
    if path is None:
        digits = np.random.default_rng(0).permutation(load_digits().images / 16.0)
        train, test = digits[:1_500], digits[1_500:]
    elif path.is_dir():
        train, test = (idx(path, f"{part}-images-idx3-ubyte") for part in ("train", "t10k"))
    else:
        with np.load(path) as arrays:
            train, test = (named(arrays, *names, path=path) for names in NAMES)
    print(f"{len(train):,} images to train on, {len(test):,} to test, {path or 'digits of scikit-learn'}")
    return tuple(torch.tensor(part, dtype=torch.float32, device=options.device) for part in (train, test))  # type: ignore[return-value]


def named(arrays: Any, *names: str, path: Path) -> np.ndarray:
    """The images of an .npz file that go by one of these names, all of them in one array."""
    found = [arrays[name] / 255.0 for name in names if name in arrays]
    if not found:
        raise SystemExit(f"{path} has none of {', '.join(names)}, but {', '.join(arrays)}")
    return np.concatenate(found)


def idx(folder: Path, name: str) -> np.ndarray:
    """An IDX file of images, packed or not: four big-endian numbers, then a byte a pixel."""
    found = [folder / f"{name}{ending}" for ending in ("", ".gz") if (folder / f"{name}{ending}").exists()]
    if not found:
        raise SystemExit(f"there is no {name} or {name}.gz in {folder}")
    with gzip.open(found[0]) if found[0].suffix == ".gz" else open(found[0], "rb") as file:
        held = file.read()
    magic, count, height, width = np.frombuffer(held, ">i4", 4)
    if magic != 2051:
        raise SystemExit(f"{found[0]} is no IDX file of images: it begins with {magic} and not with 2051")
    return np.frombuffer(held, np.uint8, offset=16).reshape(count, height, width) / 255.0


def binary(images: torch.Tensor, seed: int) -> torch.Tensor:
    """Black and white images drawn from grey ones, the same at every call."""
    generator = torch.Generator(images.device).manual_seed(seed)
    return torch.bernoulli(images, generator=generator)


def draw_history(run: Run, path: Path) -> None:
    """Test NLL against epochs, with what was published at the end of the schedule."""
    epochs, _, _, nats, error = np.array(run.history).T
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    axes.errorbar(epochs, nats, 2 * error, fmt="o-", color="tab:blue", capsize=3, label="this run, 2 standard errors")
    if run.is_mnist and run.options.particles in PUBLISHED:
        level = PUBLISHED[run.options.particles]
        axes.axhline(level, color="tab:red", ls="--", lw=1, label=f"published, {level} after 3,280 epochs")
    axes.set(xscale="log", xlabel="epochs", ylabel="nats an image", title=f"test NLL, K = {run.options.particles}")
    axes.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_images(run: Run, bits: torch.Tensor, path: Path) -> None:
    """Test images, their reconstructions, and images of codes from the prior."""
    torch.manual_seed(2)
    rows = {"test images": bits[:12], "rebuilt": run.guide.reconstruct(bits[:12]), "new": run.model.generate(12)}
    figure, axes = plt.subplots(len(rows), 12, figsize=(12, 3.9), gridspec_kw={"hspace": 0.35})
    for line, (title, images) in zip(axes, rows.items(), strict=True):
        line[0].set_title(title, loc="left", fontsize=10)
        for place, image in zip(line, images.cpu().numpy(), strict=True):
            place.imshow(image, cmap="gray_r", vmin=0.0, vmax=1.0)
            place.set_axis_off()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
