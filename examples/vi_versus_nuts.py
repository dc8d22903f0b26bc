"""The same model by variational inference and by NUTS, side by side in ArviZ: eight schools, then radon.

NUTS draws from the posterior itself, and tells by R-hat and ESS whether it got there. A guide is as good as its family:
differences of means are told in sds of NUTS, and sds as a ratio, for an independent guide and for a structured one.

Run from anywhere: python examples/vi_versus_nuts.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import pyro
import torch
from pyro.infer import MCMC, NUTS

matplotlib.use("Agg")
import matplotlib.pyplot as plt

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # ArviZ 0.23 announces 1.0 at every import
    import arviz as az

import ingle
from ingle.guides.hierarchical import (
    eight_schools_guide,
    eight_schools_structured_guide,
    radon_varying_intercepts_guide,
    radon_varying_intercepts_structured_guide,
)
from ingle.models.hierarchical import eight_schools, radon_varying_intercepts
from ingle.objectives import STL_ELBO

DATA = Path(__file__).parent / "data"
COLOURS = {"NUTS": "black", "structured guide": "tab:blue", "independent guide": "tab:orange"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--smoke", action="store_true", help="eight schools, few steps and draws, to see that it runs")
    parser.add_argument("--device", default=None, help="of the fits, such as cuda; NUTS runs on the CPU")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_default_dtype(torch.float64)  # for NUTS; a fit has a dtype of its own

    schools = pd.read_csv(DATA / "eight_schools.csv")
    posteriors = side_by_side(
        eight_schools,
        {"structured guide": eight_schools_structured_guide, "independent guide": eight_schools_guide},
        {name: torch.tensor(schools[name].to_numpy(dtype=np.float64)) for name in ("sigma", "y")},
        {"school": schools["school"].tolist()},
        {"eta": ["school"], "theta": ["school"]},
        0.95,  # larger steps diverge now and then where tau is small
        options,
    )
    print_differences(posteriors, ["mu", "tau", "theta"])
    draw_forest(posteriors, ["mu", "tau", "theta"], "points", options.out / "vi_versus_nuts_schools.png")
    if options.smoke:
        return

    radon = pd.read_csv(DATA / "radon.csv")
    data = {
        "county": torch.tensor(radon["county_idx"].to_numpy(dtype=np.int64)),
        "floor": torch.tensor(radon["floor"].to_numpy(dtype=np.float64)),
        "log_radon": torch.tensor(radon["log_radon"].to_numpy(dtype=np.float64)),
    }
    posteriors = side_by_side(
        radon_varying_intercepts,
        {
            "structured guide": radon_varying_intercepts_structured_guide,
            "independent guide": radon_varying_intercepts_guide,
        },
        data,
        {"county": radon.groupby("county_idx")["county"].first().tolist()},
        {"alpha": ["county"]},
        0.8,
        options,
    )
    print_differences(posteriors, ["mu_alpha", "sigma_alpha", "beta", "sigma", "alpha"])
    shown = ["mu_alpha", "sigma_alpha", "beta", "sigma"]
    draw_forest(posteriors, shown, "log pCi/L", options.out / "vi_versus_nuts_radon.png")


def side_by_side(
    model: Callable[..., Any],
    model_guides: dict[str, Callable[..., Any]],
    data: dict[str, torch.Tensor],
    coords: dict[str, list[str]],
    dims: dict[str, list[str]],
    accept: float,
    options: argparse.Namespace,
) -> dict[str, Any]:
    """The posterior by NUTS and by a fit of each guide, as ArviZ's datasets of the same names and coordinates."""
    found = {"NUTS": nuts(model, data, coords, dims, accept, options.smoke)}
    for name, guide in model_guides.items():
        steps = 30 if options.smoke else None
        fit = ingle.fit(model, guide, data, objective=STL_ELBO(), steps=steps, device=options.device)
        print(fit, end="\n\n")
        draws = 200 if options.smoke else 10_000
        found[name] = fit.to_arviz(draws=draws, coords=coords, groups=["posterior"]).posterior
    return found


def nuts(
    model: Callable[..., Any],
    data: dict[str, torch.Tensor],
    coords: dict[str, list[str]],
    dims: dict[str, list[str]],
    accept: float,
    smoke: bool,
) -> Any:
    """Two chains of Pyro's NUTS in float64, and what ArviZ says of them."""
    began = time.perf_counter()
    warmup, draws = (10, 20) if smoke else (300, 1_000)
    chains, divergences = [], 0
    for seed in (1, 2):
        pyro.set_rng_seed(seed)
        kernel = NUTS(
            model, target_accept_prob=0.8 if smoke else accept, jit_compile=not smoke, ignore_jit_warnings=True
        )
        chain = MCMC(kernel, num_samples=draws, warmup_steps=warmup, disable_progbar=True)
        chain.run(**data)
        divergences += len(chain.diagnostics()["divergences"]["chain 0"])
        latents = chain.get_samples()
        if "eta" in latents:  # NUTS leaves deterministic sites out
            latents["theta"] = latents["mu"][:, None] + latents["tau"][:, None] * latents["eta"]
        chains.append(latents)
    stacked = {name: torch.stack([chain[name] for chain in chains]).numpy() for name in chains[0]}
    dataset = az.convert_to_dataset(stacked, coords=coords, dims=dims)
    ess, r_hat = az.ess(dataset), az.rhat(dataset)
    least = min(float(ess[name].min()) for name in stacked)
    most = max(float(r_hat[name].max()) for name in stacked)
    print(f"NUTS on {model.__name__}: 2 chains of {draws:,} draws in {time.perf_counter() - began:.1f} s")
    print(f"  ESS at least {least:,.0f}, R-hat at most {most:.3f}, {divergences} divergences\n")
    return dataset


def rows(posterior: Any, names: list[str]) -> dict[str, np.ndarray]:
    """Draws of each element of the sites named, by its label."""
    found = {}
    for name in names:
        site = posterior[name].stack(sample=("chain", "draw"))
        if site.ndim == 1:
            found[name] = site.to_numpy()
        else:
            labels = site[site.dims[0]].to_numpy()
            found |= {f"{name}[{label}]": values for label, values in zip(labels, site.to_numpy(), strict=True)}
    return found


def print_differences(posteriors: dict[str, Any], names: list[str]) -> None:
    """Means and sds of NUTS; of each guide, how many of those sds its mean is off, and the ratio of its sd to them."""
    guide_names = list(posteriors)[1:]
    all_rows = {way: rows(posterior, names) for way, posterior in posteriors.items()}
    width = 22
    print(f"{'':<{width}}{'NUTS':>9}{'':>9}" + "".join(f"{name:>22}" for name in guide_names))
    print(f"{'':<{width}}{'mean':>9}{'sd':>9}" + f"{'off (sds)':>12}{'sd ratio':>10}" * len(guide_names))
    worst = dict.fromkeys(guide_names, (0.0, 1.0))
    many = len(all_rows["NUTS"]) > 20
    for label, truth in all_rows["NUTS"].items():
        line = f"{label:<{width}}{truth.mean():>9.3f}{truth.std():>9.3f}"
        for name in guide_names:
            off, ratio = (
                (all_rows[name][label].mean() - truth.mean()) / truth.std(),
                all_rows[name][label].std() / truth.std(),
            )
            line += f"{off:>12.2f}{ratio:>10.2f}"
            before = worst[name]
            worst[name] = (
                max(before[0], abs(off)),
                ratio if abs(np.log(ratio)) > abs(np.log(before[1])) else before[1],
            )
        if not (many and "[" in label):
            print(line)
    farthest = f"farthest of {len(all_rows['NUTS'])} rows"
    print(f"{farthest:<{width + 18}}", end="")
    print("".join(f"{off:>12.2f}{ratio:>10.2f}" for off, ratio in worst.values()), end="\n\n")


def draw_forest(posteriors: dict[str, Any], names: list[str], unit: str, path: Path) -> None:
    """Mean, 50% and 94% interval of each quantity, one line for each way of finding it."""
    all_rows = {way: rows(posterior, names) for way, posterior in posteriors.items()}
    labels = list(all_rows["NUTS"])
    places = np.arange(len(labels))[::-1].astype(float)
    figure, axes = plt.subplots(figsize=(8, 1.4 + 0.5 * len(labels)), layout="constrained")
    for shift, (way, found) in zip((0.22, 0.0, -0.22), all_rows.items(), strict=True):
        for share, width in ((0.94, 1.2), (0.5, 3.5)):
            low, high = np.quantile([found[label] for label in labels], [0.5 - share / 2, 0.5 + share / 2], axis=1)
            axes.hlines(places + shift, low, high, color=COLOURS[way], linewidth=width)
        means = [found[label].mean() for label in labels]
        axes.plot(means, places + shift, "o-", color=COLOURS[way], mfc="white", ms=5, lw=0)
        axes.plot([], [], "o-", color=COLOURS[way], mfc="white", label=way)
    axes.axvline(0.0, color="grey", linewidth=0.5)
    axes.set_yticks(places, labels)
    axes.set(xlabel=unit, title="posterior mean, 50% and 94% intervals")
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
