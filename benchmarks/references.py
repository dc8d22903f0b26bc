"""Long NUTS runs on the models that ship with Ingle, summarised for the tests that compare a guide with the posterior.

Each model gets two chains, one after the other, in float64. The means, standard deviations, bulk effective sample
sizes and R-hats of every latent go to tests/references.json, once the chains of a model agree. From the root of the
repository, for all models or those that are named:

    python -m benchmarks.references [eight_schools …]
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import MCMC, NUTS, config_enumerate
from pyro.infer.autoguide.initialization import init_to_uniform, init_to_value
from sklearn.datasets import load_breast_cancer, load_diabetes
from torch import Tensor

from ingle.models.hierarchical import (
    eight_schools,
    hierarchical_logistic,
    radon_uranium,
    radon_varying_intercepts,
    radon_varying_slopes,
)
from ingle.models.mixture import GaussianMixture
from ingle.models.regression import LinearRegression, LogisticRegression

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / "examples" / "data"
OUTPUT = ROOT / "tests" / "references.json"

MAX_R_HAT = 1.01
MIN_ESS = 400.0

Draws = dict[str, Tensor]


@dataclass(frozen=True)
class Problem:
    """A model with its data, and how to sample its posterior.

    Args:
        name: key of the model in the JSON.
        model: the Pyro program.
        data: its keyword arguments.
        warmup: draws of each chain that adapt the sampler and are dropped.
        draws: draws of each chain that are kept.
        seeds: one for each chain.
        finish: from the draws of one chain to those that are summarised.
        init_strategy: where a chain starts.
        max_plate_nesting: needed where the model has a discrete site to sum out.
        target_accept_prob: of NUTS; higher takes smaller steps.
        jit: traces the potential once, which gives the same draws faster where the program has no branches.
    """

    name: str
    model: Callable[..., Any]
    data: dict[str, Tensor]
    warmup: int
    draws: int
    seeds: tuple[int, int]
    finish: Callable[[Draws], Draws] = dict
    init_strategy: Callable[..., Any] = init_to_uniform
    max_plate_nesting: int | None = None
    target_accept_prob: float = 0.8
    jit: bool = False


def add_theta(draws: Draws) -> Draws:
    """Adds the effects of the schools, which NUTS leaves out because their site is deterministic."""
    theta = draws["mu"].unsqueeze(-1) + draws["tau"].unsqueeze(-1) * draws["eta"]
    return {**draws, "theta": theta}


def add_intercepts(draws: Draws) -> Draws:
    """Adds the intercepts of groups with none but their own predictors."""
    alpha = draws["mu_alpha"].unsqueeze(-1) + draws["sigma_alpha"].unsqueeze(-1) * draws["eta"]
    return {**draws, "alpha": alpha}


def add_intercepts_on_line(draws: Draws, log_uranium: Tensor) -> Draws:
    """Adds the intercepts of counties about a line in their uranium."""
    mu_alpha, gamma, sigma_alpha = (draws[name].unsqueeze(-1) for name in ("mu_alpha", "gamma", "sigma_alpha"))
    return {**draws, "alpha": mu_alpha + gamma * log_uranium + sigma_alpha * draws["eta"]}


def add_intercepts_and_slopes(draws: Draws, log_uranium: Tensor) -> Draws:
    """Adds the intercepts and slopes of counties, and their correlation."""
    alpha = add_intercepts_on_line({**draws, "eta": draws["eta_alpha"]}, log_uranium)["alpha"]
    rho = 2 * draws["rho_unit"] - 1
    mu_beta, sigma_beta, r = (value.unsqueeze(-1) for value in (draws["mu_beta"], draws["sigma_beta"], rho))
    beta = mu_beta + sigma_beta * (r * draws["eta_alpha"] + (1 - r**2).sqrt() * draws["eta_beta"])
    return {**draws, "rho": rho, "alpha": alpha, "beta": beta}


def order_components(draws: Draws) -> Draws:
    """Relabels each draw so that the locations ascend in column 0."""
    order = draws["loc"][..., 0].argsort(dim=-1)
    ordered = {"weights": draws["weights"].gather(-1, order)}
    for name in draws.keys() - ordered.keys():
        ordered[name] = draws[name].gather(-2, order.unsqueeze(-1).expand_as(draws[name]))
    return ordered


def problems() -> Iterator[Problem]:
    """The models on the data of the examples."""
    schools = pd.read_csv(DATA / "eight_schools.csv")
    yield Problem(
        name="eight_schools",
        model=eight_schools,
        data={name: torch.tensor(schools[name].to_numpy(dtype=np.float64)) for name in ("sigma", "y")},
        warmup=1000,
        draws=10000,
        seeds=(1, 2),
        finish=add_theta,
        # Steps of the default size diverge now and then where tau is small.
        target_accept_prob=0.95,
    )

    faithful = pd.read_csv(DATA / "old_faithful.csv").to_numpy(dtype=np.float64)
    x = torch.tensor((faithful - faithful.mean(axis=0)) / faithful.std(axis=0))
    yield Problem(
        name="gaussian_mixture",
        model=config_enumerate(GaussianMixture(2), default="parallel"),
        data={"x": x},
        warmup=500,
        draws=1500,
        seeds=(3, 4),
        finish=order_components,
        init_strategy=init_to_value(values={"loc": torch.tensor([[-1.25, -1.2], [0.7, 0.7]])}),
        max_plate_nesting=1,
    )
    yield Problem(
        name="gaussian_mixture_full",
        model=config_enumerate(GaussianMixture(2, "full"), default="parallel"),
        data={"x": x},
        warmup=300,
        draws=1000,
        seeds=(7, 8),
        finish=order_components,
        init_strategy=init_to_value(values={"loc": torch.tensor([[-1.25, -1.2], [0.7, 0.7]])}),
        max_plate_nesting=1,
    )

    table = pd.read_csv(DATA / "radon.csv")
    radon = {
        "county": torch.tensor(table["county_idx"].to_numpy(dtype=np.int64)),
        "floor": torch.tensor(table["floor"].to_numpy(dtype=np.float64)),
        "log_radon": torch.tensor(table["log_radon"].to_numpy(dtype=np.float64)),
    }
    yield Problem(
        name="radon_varying_intercepts",
        model=radon_varying_intercepts,
        data=radon,
        warmup=500,
        draws=1500,
        seeds=(5, 6),
    )

    x, y = (torch.tensor(part, dtype=torch.float64) for part in load_diabetes(return_X_y=True, scaled=False))
    x = x[:, [1, 2, 3, 6, 8]]  # sex, body mass index, blood pressure, high-density lipoproteins, triglycerides
    yield Problem(
        name="linear_regression",
        model=LinearRegression.standardised(x, y),
        data={"x": x, "y": y},
        warmup=500,
        draws=2500,
        seeds=(7, 8),
    )

    x, y = (torch.tensor(part, dtype=torch.float64) for part in load_breast_cancer(return_X_y=True))
    x = x[:, [0, 1, 4, 7, 8]]  # mean radius, texture, smoothness, concave points, symmetry
    yield Problem(
        name="logistic_regression",
        model=LogisticRegression.standardised(x),
        data={"x": x, "y": y},
        warmup=500,
        draws=2500,
        seeds=(9, 10),
    )

    log_uranium = torch.tensor(table.groupby("county_idx")["log_uranium"].first().to_numpy(dtype=np.float64))
    yield Problem(
        name="radon_uranium",
        model=radon_uranium,
        data={**radon, "log_uranium": log_uranium},
        warmup=500,
        draws=2000,
        seeds=(7, 8),
        finish=partial(add_intercepts_on_line, log_uranium=log_uranium),
        target_accept_prob=0.9,
        jit=True,
    )
    yield Problem(
        name="radon_varying_slopes",
        model=radon_varying_slopes,
        data={**radon, "log_uranium": log_uranium},
        warmup=500,
        draws=2000,
        seeds=(9, 10),
        finish=partial(add_intercepts_and_slopes, log_uranium=log_uranium),
        target_accept_prob=0.9,
        jit=True,
    )
    yield Problem(
        name="hierarchical_logistic",
        model=hierarchical_logistic,
        data={
            "group": radon["county"],
            "x": torch.stack([radon["floor"], log_uranium[radon["county"]]], -1),
            "y": torch.tensor((table["radon_pci_l"] > 4.0).to_numpy(dtype=np.float64)),
        },
        warmup=500,
        draws=2000,
        seeds=(11, 12),
        finish=add_intercepts,
        target_accept_prob=0.9,
        jit=True,
    )


def chain(problem: Problem, seed: int) -> tuple[Draws, int]:
    """One chain: its draws and how many of them diverged."""
    pyro.set_rng_seed(seed)
    pyro.clear_param_store()
    kernel = NUTS(
        problem.model,
        init_strategy=problem.init_strategy,
        max_plate_nesting=problem.max_plate_nesting,
        target_accept_prob=problem.target_accept_prob,
        jit_compile=problem.jit,
        ignore_jit_warnings=True,
    )
    mcmc = MCMC(kernel, num_samples=problem.draws, warmup_steps=problem.warmup, num_chains=1, disable_progbar=True)
    start = time.perf_counter()
    mcmc.run(**problem.data)
    divergences = len(mcmc.diagnostics()["divergences"]["chain 0"])
    seconds = time.perf_counter() - start
    print(f"{problem.name}, seed {seed}: {seconds:.0f} s, {divergences} divergences", flush=True)
    return problem.finish(mcmc.get_samples()), divergences


def rounded(values: np.ndarray) -> Any:
    """Nested lists of the shape of `values`, a number where it has none, to 6 significant digits."""
    return np.vectorize(lambda value: float(f"{value:.6g}"), otypes=[np.float64])(values).tolist()


def summary(problem: Problem, chains: list[Draws]) -> dict[str, dict[str, Any]]:
    """The numbers of each site.

    Raises:
        RuntimeError: the chains disagree or are too short.
    """
    draws = {name: torch.stack([c[name] for c in chains]).numpy() for name in chains[0]}
    dataset = arviz.convert_to_dataset(draws)
    ess, r_hat = arviz.ess(dataset, method="bulk"), arviz.rhat(dataset)
    # NumPy's min and max keep a NaN, which then fails the test below; Python's may lose it.
    least = np.min([ess[name].to_numpy().min() for name in draws])
    most = np.max([r_hat[name].to_numpy().max() for name in draws])
    print(f"{problem.name}: ESS at least {least:.0f}, R-hat at most {most:.4f}", flush=True)
    if not (least > MIN_ESS and most < MAX_R_HAT):
        raise RuntimeError(f"{problem.name}: give it more draws, its ESS is {least:.0f} and its R-hat {most:.4f}")
    return {
        name: {
            "mean": rounded(values.mean(axis=(0, 1))),
            "sd": rounded(values.std(axis=(0, 1), ddof=1)),
            "ess": rounded(ess[name].to_numpy()),
            "r_hat": rounded(r_hat[name].to_numpy()),
        }
        for name, values in draws.items()
    }


def main() -> None:
    """Samples each model in turn and writes its summary beside those that are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="name", help="models to sample; all where none is named")
    names = parser.parse_args().names
    torch.set_num_threads(1)
    torch.set_default_dtype(torch.float64)
    chosen = [problem for problem in problems() if not names or problem.name in names]
    for problem in chosen:
        runs = [chain(problem, seed) for seed in problem.seeds]
        found = {
            "versions": {"torch": torch.__version__, "pyro": pyro.__version__},
            "warmup": problem.warmup,
            "draws": problem.draws,
            "seeds": problem.seeds,
            "divergences": [divergences for _, divergences in runs],
            "models": summary(problem, [draws for draws, _ in runs]),
        }
        result = json.loads(OUTPUT.read_text())
        for key, value in found.items():
            result.setdefault(key, {})[problem.name] = value
        OUTPUT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
