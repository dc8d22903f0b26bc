"""What the ELBO is: log p(x) = ELBO + KL(q || posterior), seen while a guide learns; and why one draws from the guide.

The linear Gaussian model has all three in closed form. Beside it, two estimates of log p(x) from draws: naive, from the
prior, and by importance sampling, from the guide; once for that model, once for the sum over all states of ten bits.

Run from anywhere: python examples/elbo.py [--out out] [--smoke] [--device cuda]
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import constraints
from sklearn.datasets import load_iris
from torch import Tensor
from torch.distributions import MultivariateNormal, kl_divergence

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.factor_analysis import FactorAnalysisGuide
from ingle.models.factor_analysis import FactorAnalysis
from ingle.objectives import STL_ELBO

BITS, NOISE = 10, 2.0
Curve = dict[str, dict[int, list[float]]]  # estimates of log p(x) by proposal and number of draws


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few steps and draws, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    stops = [1, 3, 10] if options.smoke else [1, 3, 10, 20, 30, 50, 70, 100, 150, 200, 300, 400, 600]
    counts = [10, 100] if options.smoke else [10, 30, 100, 300, 1_000, 3_000, 10_000]
    seeds = 2 if options.smoke else 6

    iris = load_iris().data
    x = torch.tensor((iris - iris.mean(0)) / iris.std(0))
    model = FactorAnalysis(4, 2, noise="isotropic")
    table, fit = learn(model, x, stops, options.device)
    print(fit, "", sep="\n")
    print(f"{'steps':>5}  {'log p(x)':>11}  {'ELBO':>11}  {'KL':>11}  {'log p - ELBO - KL':>17}")
    for steps, (log_p, elbo, kl) in table.items():
        print(f"{steps:5}  {log_p:11.4f}  {elbo:11.4f}  {kl:11.4f}  {log_p - elbo - kl:17.1e}")
    print(f"largest deviation {max(abs(log_p - elbo - kl) for log_p, elbo, kl in table.values()):.1e} nats\n")

    codes = estimates(fit, counts, seeds)
    bits, exact = states(20 if options.smoke else 600, options.device)
    sums = estimates(bits, counts, seeds)
    last = list(table.values())[-1][0]
    tell(f"{model.latent_dim} factors for each of {len(x)} flowers", codes, last)
    tell(f"{BITS} bits, {2**BITS:,} states", sums, exact)
    draw(table, (codes, last), (sums, exact), options.out / "elbo.png")


def learn(
    model: FactorAnalysis, x: Tensor, stops: list[int], device: str | None
) -> tuple[dict[int, tuple[float, float, float]], ingle.Fit]:
    """Exact log p(x), ELBO and KL(q || posterior), in nats, after each of some numbers of steps."""
    guide = FactorAnalysisGuide(model)
    adam = functools.partial(torch.optim.Adam, lr=0.02)
    options: Any = {"optim": adam, "objective": STL_ELBO(), "dtype": torch.float64, "device": device, "compile": "off"}
    fit = ingle.fit(model, guide, x, steps=stops[0], **options)
    table = {}
    for stop in stops:
        fit = fit.resume(stop - fit.steps) if stop > fit.steps else fit
        with fit.active(), torch.no_grad():
            data = x.to(fit.device)
            found = guide.encode(data)
            q = MultivariateNormal(found.loc, scale_tril=found.scale_tril)
            exact, posterior = model.log_evidence(data).sum(), model.posterior(data)
            kl = kl_divergence(q, MultivariateNormal(posterior.loc, scale_tril=posterior.scale_tril)).sum()
            table[stop] = (float(exact), float(elbo(fit.params, data, q)), float(kl))
    return table, fit


def elbo(params: dict[str, Tensor], x: Tensor, q: MultivariateNormal) -> Tensor:
    """E_q[log p(x | z)] - KL(q || prior): the expectation of a square is that at the mean, and the variance's share."""
    loading, noise = params["loading"], params["noise_scale"]
    at_mean = torch.distributions.Normal(params["mean"] + q.mean @ loading.T, noise).log_prob(x).sum()
    spread = ((loading @ q.covariance_matrix) * loading).sum(-1) / noise.square()
    prior = MultivariateNormal(torch.zeros_like(q.mean), torch.eye(loading.shape[1]).to(loading))
    return at_mean - 0.5 * spread.sum() - kl_divergence(q, prior).sum()


def states(steps: int, device: str | None) -> tuple[ingle.Fit, float]:
    """A guide for ten bits behind 20 numbers, and log p(x) as the sum over all 1,024 states."""
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(BITS, 20, generator=generator, dtype=torch.float64)
    truth = torch.randint(2, (BITS,), generator=generator).double()
    x = truth @ weights + NOISE * torch.randn(20, generator=generator, dtype=torch.float64)

    def model(weights: Tensor, x: Tensor) -> None:
        bits = pyro.sample("bits", dist.Bernoulli(torch.full((BITS,), 0.5)).to_event(1))
        pyro.sample("x", dist.Normal(bits @ weights, NOISE).to_event(1), obs=x)

    def guide(weights: Tensor, x: Tensor) -> None:
        probs = pyro.param("probs", torch.full((BITS,), 0.5), constraint=constraints.unit_interval)
        pyro.sample("bits", dist.Bernoulli(probs).to_event(1))

    options: Any = {"optim": functools.partial(torch.optim.Adam, lr=0.05), "dtype": torch.float64, "device": device}
    fit = ingle.fit(model, guide, (weights, x), steps=steps, compile="off", **options)
    print(fit, end="\n\n")
    every = torch.cartesian_prod(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * BITS)
    likelihood = torch.distributions.Normal(every @ weights, NOISE).log_prob(x).sum(-1)
    return fit, float(likelihood.logsumexp(0)) - BITS * math.log(2)


def estimates(fit: ingle.Fit, counts: list[int], seeds: int) -> Curve:
    """Estimates of log p(x) from draws of the prior and of the guide, for several numbers of draws and seeds."""
    per = "row" if isinstance(fit.model, FactorAnalysis) else None
    take: Callable[..., Any] = functools.partial(fit.log_evidence, per=per)
    proposals = {"prior (naive Monte Carlo)": "prior", "guide (importance sampling)": "guide"}
    return {
        name: {n: [take(n, proposal=proposal, seed=seed).log_z for seed in range(seeds)] for n in counts}
        for name, proposal in proposals.items()
    }


def tell(title: str, curve: Curve, exact: float) -> None:
    """Root mean square error of each estimate, in nats."""
    print(f"{title}: log p(x) = {exact:.4f} nats; root mean square error of")
    for name, found in curve.items():
        errors = {n: math.sqrt(np.mean(np.square(np.array(values) - exact))) for n, values in found.items()}
        print(f"  {name:28}" + "".join(f"  {n:,}: {error:.2g}" for n, error in errors.items()))
    print()


def draw(
    table: dict[int, tuple[float, float, float]], codes: tuple[Curve, float], sums: tuple[Curve, float], path: Path
) -> None:
    """The identity while the guide learns, and both estimates against the number of draws."""
    figure, (identity, *others) = plt.subplots(1, 3, figsize=(14, 4.4), layout="constrained")
    steps = list(table)
    log_p, elbos, _ = (np.array(column) for column in zip(*table.values(), strict=True))
    identity.fill_between(steps, elbos, log_p, color="tab:orange", alpha=0.25, label="KL(q || posterior)")
    identity.plot(steps, log_p, "o-", ms=3, color="black", label="log p(x), exact")
    identity.plot(steps, elbos, "o-", ms=3, color="tab:blue", label="ELBO")
    identity.set(title="log p(x) = ELBO + KL", xlabel="steps", ylabel="nats", xscale="log")
    identity.legend(loc="lower right")
    titles = ("two factors for each of 150 flowers", f"a sum over {2**BITS:,} states, all as likely at first")
    for axis, title, (curve, exact) in zip(others, titles, (codes, sums), strict=True):
        for colour, (name, found) in zip(("tab:red", "tab:blue"), curve.items(), strict=True):
            values = np.array(list(found.values()))
            axis.plot(list(found), values.mean(1), "o-", ms=3, color=colour, label=name)
            axis.fill_between(list(found), values.min(1), values.max(1), color=colour, alpha=0.2)
        axis.axhline(exact, color="black", lw=1, label="exact")
        axis.set(
            title=title,
            xlabel="draws (band: lowest to highest of all seeds)",
            ylabel="log p(x), estimated (nats)",
            xscale="log",
        )
        axis.legend(loc="lower right")
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
