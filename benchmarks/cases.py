"""The five cases as numbers: data and starts in NumPy, so that every library gets the same ones.

Each case is written twice, in Pyro (`pyro_cases.py`, which Ingle runs too) and in NumPyro (`numpyro_cases.py`): same
priors, same guide family, same start, one draw of the ELBO a step, Adam at 1e-3. The guide is each library's own
AutoNormal, with scales of 0.1 at first, and for the autoencoder the encoder, written out.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

__all__ = ["CASES", "LEARNING_RATE", "Array", "Case"]

LEARNING_RATE = 1e-3

Array = NDArray[np.float32] | NDArray[np.int64]

_DATA = Path(__file__).parents[1] / "examples" / "data"


@dataclass(frozen=True)
class Case:
    """What a case is made of, apart from its programs.

    Attributes:
        title: as the table has it.
        data: arguments of the model by name.
        start: where AutoNormal's locations begin, by latent, in the latent's own support; for the autoencoder the
            weights and biases of decoder and encoder, a weight of shape (outputs, inputs).
        summed: whether a discrete latent is summed out.
        checked: steps for which the losses of two ways can be compared.
    """

    title: str
    data: Mapping[str, Array]
    start: Mapping[str, Array]
    summed: bool = False
    checked: int = 2_000


def eight_schools() -> Case:
    """Non-centred, 10 latent numbers."""
    columns = _columns("eight_schools.csv", "sigma", "y")
    start = {"mu": _full((), 0.0), "tau": _full((), 1.0), "eta": _full((8,), 0.0)}
    return Case("eight schools", columns, start)


def radon() -> Case:
    """Varying intercepts, 919 houses in 85 counties, 89 latent numbers."""
    columns = _columns("radon.csv", "county_idx", "floor", "log_radon")
    county = columns.pop("county_idx").astype(np.int64)
    start = {
        "mu_alpha": _full((), 1.0),
        "sigma_alpha": _full((), 0.5),
        "alpha": _full((85,), 1.0),
        "beta": _full((), 0.0),
        "sigma": _full((), 1.0),
    }
    return Case("radon, 919 rows", {"county": county, **columns}, start)


def mixture() -> Case:
    """1,000 points of 3 components in 2 dimensions, 14 latent numbers after the assignments are summed out."""
    rng = np.random.default_rng(0)
    centres = np.array([[-2.0, 0.0], [2.0, -1.0], [0.5, 2.0]])
    x = centres[rng.integers(3, size=1_000)] + 0.7 * rng.standard_normal((1_000, 2))
    # Apart from the first step on: three components that start alike would part by chance, each way at its own step.
    start = {"weights": _full((3,), 1 / 3), "loc": (centres / 2).astype(np.float32), "scale": _full((3, 2), 1.0)}
    return Case("mixture, 1,000 points", {"x": x.astype(np.float32)}, start, summed=True)


def logistic() -> Case:
    """Logistic regression, 10,000 rows of 20 columns, 21 latent numbers."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((10_000, 20))
    logits = x @ rng.standard_normal(20) + 0.5
    y = rng.random(10_000) < 1 / (1 + np.exp(-logits))
    data = {"x": x.astype(np.float32), "y": y.astype(np.float32)}
    return Case("logistic, 10,000 x 20", data, {"weights": _full((20,), 0.0), "intercept": _full((), 0.0)})


def vae() -> Case:
    """A variational autoencoder 784-400-20, 256 random binary images, all of them at each step."""
    rng = np.random.default_rng(0)
    x = (rng.random((256, 784)) < 0.3).astype(np.float32)
    start: dict[str, Array] = {}
    for name, sizes in (("decoder", (20, 400, 784)), ("encoder", (784, 400, 40))):
        for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
            bound = inputs**-0.5  # what torch.nn.Linear draws from
            start[f"{name}.weight{layer}"] = rng.uniform(-bound, bound, (outputs, inputs)).astype(np.float32)
            start[f"{name}.bias{layer}"] = rng.uniform(-bound, bound, outputs).astype(np.float32)
    # Later it learns the images by heart, and its loss swings by itself.
    return Case("VAE 784-400-20, 256 images", {"x": x}, start, checked=60)


CASES: dict[str, Callable[[], Case]] = {
    "eight-schools": eight_schools,
    "radon": radon,
    "mixture": mixture,
    "logistic": logistic,
    "vae": vae,
}


def _columns(file: str, *names: str) -> dict[str, Array]:
    table = np.genfromtxt(_DATA / file, delimiter=",", names=True, usecols=names, encoding="utf-8")
    return {name: table[name].astype(np.float32) for name in names}


def _full(shape: tuple[int, ...], value: float) -> Array:
    return np.full(shape, value, dtype=np.float32)
