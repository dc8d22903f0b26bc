"""One coin, tossed 3, 10 and 100 times: the fitted posterior beside the exact one, its prediction and its evidence.

Run from anywhere: python examples/coin.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from pathlib import Path

import matplotlib
import numpy as np
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.coin import CoinGuide
from ingle.models.coin import Coin

TOSSES = (3, 10, 100)
CHANCE = 0.7  # of heads, of the coin that is tossed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="a few steps only, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps, draws = (50, 500) if options.smoke else (3_000, 20_000)

    coin = Coin(alpha=2.0, beta=2.0)  # most likely fair, as if two heads and two tails had been seen before
    x = (torch.rand(max(TOSSES), generator=torch.Generator().manual_seed(3)) < CHANCE).float()
    found: dict[int, np.ndarray] = {}
    rows = []
    for n in TOSSES:
        fit = ingle.fit(coin, CoinGuide(coin), x[:n], steps=steps, compile="off", device=options.device)
        if n == max(TOSSES):
            print(fit, end="\n\n")
        p = found[n] = fit.draws(draws)["p"].double().cpu().numpy()
        next_toss = fit.predict({"tosses": 1}, draws, new=("toss",))["x"].mean().item()
        exact, evidence = coin.posterior(x[:n]), fit.log_evidence(draws)
        rows += [
            (n, "posterior mean", float(exact.mean), p.mean(), p.std() / draws**0.5),
            (n, "posterior sd", float(exact.stddev), p.std(), p.std() / (2 * draws) ** 0.5),
            (n, "P(heads next)", coin.predictive(x[:n]), next_toss, (next_toss * (1 - next_toss) / draws) ** 0.5),
            (n, "log evidence", coin.log_evidence(x[:n]), evidence.log_z, evidence.se),
        ]
    print(f"{'tosses':>6}  {'':14}  {'exact':>10}  {'fitted':>10}  {'Monte Carlo error':>17}")
    for n, name, known, ours, error in rows:
        print(f"{n:>6}  {name:14}  {known:>10.4f}  {ours:>10.4f}  {error:>17.4f}")
    draw(coin, x, found, options.out / "coin.png")


def draw(coin: Coin, x: torch.Tensor, found: dict[int, np.ndarray], path: Path) -> None:
    """Prior, then exact posterior as a line and draws of the fit as a histogram, a panel for each number of tosses."""
    figure, all_axes = plt.subplots(1, len(found) + 1, figsize=(11, 3.2), layout="constrained", sharex=True)
    p = torch.linspace(0.001, 0.999, 500, dtype=torch.float64)
    prior = torch.distributions.Beta(coin.alpha, coin.beta).log_prob(p).exp()
    for axes, n in zip(all_axes, (0, *found), strict=True):
        axes.plot(p, prior, color="grey", linestyle="--", label="prior")
        if n:
            density, edges = np.histogram(found[n], bins=np.linspace(0, 1, 81), density=True)
            axes.stairs(density, edges, fill=True, color="tab:blue", alpha=0.4, label="posterior, fitted")
            axes.plot(p, coin.posterior(x[:n]).log_prob(p).exp(), color="tab:orange", label="posterior, exact")
            axes.set_title(f"{int(x[:n].sum())} heads in {n} tosses")
        else:
            axes.set_title("no tosses yet")
        axes.axvline(CHANCE, color="black", linewidth=0.8, linestyle=":", label="the coin itself")
        axes.set(xlabel="p, chance of heads", ylim=(0, None))
    all_axes[0].set_ylabel("density")
    all_axes[1].legend(loc="upper left", fontsize=8)
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
