"""What several test files share."""

from __future__ import annotations

import json
import random
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyro
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_diabetes

import ingle

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at every import
    import arviz as az


def arviz_line() -> int:
    """0 for ArviZ 0.23, 1 for 1.x."""
    return int(az.__version__.split(".")[0])


def global_state() -> dict[str, Any]:
    """What a user would notice if a fit left it changed."""
    name, keys, position, *_ = np.random.get_state()
    return {
        "store": {name: value.tolist() for name, value in pyro.get_param_store().items()},
        "settings": pyro.settings.get(),
        "validate_args": torch.distributions.Distribution._validate_args,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "grad": torch.is_grad_enabled(),
        "torch": torch.get_rng_state().tolist(),
        "numpy": (name, keys.tolist(), position),
        "python": random.getstate(),
        "handlers": len(pyro.poutine.runtime._PYRO_STACK),
    }


DATA = Path(__file__).parents[1] / "examples" / "data"
REFERENCES = json.loads((Path(__file__).parent / "references.json").read_text())["models"]
EIGHT_SCHOOLS = REFERENCES["eight_schools"]
LINEAR = REFERENCES["linear_regression"]
LOGISTIC = REFERENCES["logistic_regression"]
MIXTURE = REFERENCES["gaussian_mixture"]
FULL_MIXTURE = REFERENCES["gaussian_mixture_full"]
RADON = REFERENCES["radon_varying_intercepts"]


def eight_schools_data() -> dict[str, Any]:
    table = pd.read_csv(DATA / "eight_schools.csv")
    return {"sigma": table["sigma"].astype(float), "y": table["y"].astype(float)}


def radon_data() -> dict[str, Any]:
    table = pd.read_csv(DATA / "radon.csv")
    return {"county": table["county_idx"], "floor": table["floor"], "log_radon": table["log_radon"]}


def radon_counties_data() -> dict[str, Any]:
    """Radon, and the uranium of each county."""
    table = pd.read_csv(DATA / "radon.csv")
    return {**radon_data(), "log_uranium": table.groupby("county_idx")["log_uranium"].first()}


def radon_action_data() -> dict[str, Any]:
    """Which houses lie above the action level of 4 pCi/L."""
    table = pd.read_csv(DATA / "radon.csv")
    x = table[["floor", "log_uranium"]].to_numpy(dtype=float)
    return {"group": table["county_idx"], "x": x, "y": (table["radon_pci_l"] > 4).astype(float)}


def old_faithful() -> NDArray[np.float64]:
    """Both columns standardised, shape (272, 2)."""
    table = pd.read_csv(DATA / "old_faithful.csv").to_numpy()
    standardised: NDArray[np.float64] = (table - table.mean(0)) / table.std(0)
    return standardised


def diabetes() -> tuple[torch.Tensor, torch.Tensor]:
    """Sex, body mass index, blood pressure, HDL, log triglycerides; progression: shapes (442, 5) and (442,)."""
    x, y = load_diabetes(return_X_y=True, scaled=False)
    return torch.tensor(x[:, [1, 2, 3, 6, 8]]), torch.tensor(y)


def breast_cancer() -> tuple[torch.Tensor, torch.Tensor]:
    """Mean radius, texture, smoothness, concave points and symmetry; 1 for benign: shapes (569, 5) and (569,)."""
    x, y = load_breast_cancer(return_X_y=True)
    return torch.tensor(x[:, [0, 1, 4, 7, 8]]), torch.tensor(y)


def assert_near_reference(
    fit: ingle.Fit,
    reference: dict[str, Any],
    *,
    no_sd: tuple[str, ...] = (),
    order: list[int] | None = None,
    within: float = 0.3,
) -> None:
    """Means within 0.3 sd and sds within 30% of long NUTS, or `within`, at every element of every site."""
    draws = fit.draws(20_000)
    for name, expected in reference.items():
        drawn = draws[name].double().cpu().numpy()
        mean, sd = (moment if order is None else moment[order] for moment in (drawn.mean(0), drawn.std(0)))
        expected_mean, expected_sd = np.array(expected["mean"]), np.array(expected["sd"])
        shift = np.abs(mean - expected_mean) / expected_sd
        assert shift.max() < within, f"{name}: mean off by {shift.max():.2f} sd"
        if name not in no_sd:
            ratio = sd / expected_sd
            assert np.all(np.abs(ratio - 1) < within), f"{name}: sd ratio {ratio.min():.2f} to {ratio.max():.2f}"
