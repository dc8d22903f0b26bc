"""Probabilistic PCA and factor analysis of 178 wines: a fit beside the closed form, and the plane that it finds.

Run from anywhere: python examples/factor_analysis.py [--out out] [--smoke] [--device cuda]
"""

import argparse
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch
from pyro.optim import ExponentialLR
from sklearn.datasets import load_wine
from sklearn.decomposition import FactorAnalysis as Peer

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import ingle
from ingle.guides.factor_analysis import FactorAnalysisExactGuide, FactorAnalysisGuide, FactorAnalysisRowGuide
from ingle.models.factor_analysis import FactorAnalysis
from ingle.objectives import STL_ELBO, Trace_ELBO


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the picture")
    parser.add_argument("--smoke", action="store_true", help="few steps, to see that it runs")
    parser.add_argument("--device", default=None, help="such as cuda; the CPU where not given")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    steps = 20 if options.smoke else 1_500

    wine = load_wine()
    x = torch.tensor((wine.data - wine.data.mean(0)) / wine.data.std(0))
    pca, factors = FactorAnalysis(13, 2, noise="isotropic"), FactorAnalysis(13, 2, noise="diagonal")
    pairs = {
        "PCA, encoder": (pca, FactorAnalysisGuide(pca)),
        "PCA, own parameters": (pca, FactorAnalysisRowGuide(pca)),
        "PCA, exact guide": (pca, FactorAnalysisExactGuide(pca)),
        "factors, exact guide": (factors, FactorAnalysisExactGuide(factors)),
    }
    known = {"closed form": closed_form(pca, x), "scikit-learn, factors": from_peer(x)}

    # The gradient of the loading is noisy to the end, so that the learning rate falls; but under the exact guide, whose
    # loss is log p(x) itself. Pyro empties the dict that it is given.
    rate = {"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 1e-3 ** (1 / steps)}
    fits: dict[str, ingle.Fit] = {}
    rows: list[tuple[str, float, float, float, float]] = []
    for name, (model, guide) in pairs.items():
        fits[name] = fit = ingle.fit(
            model,
            guide,
            x,
            objective=Trace_ELBO()
            if isinstance(guide, FactorAnalysisExactGuide)
            else STL_ELBO(4, vectorize_particles=True),
            optim=ExponentialLR(dict(rate)),
            steps=steps,
            dtype=torch.float64,
            device=options.device,
        )
        print(fit, end="\n\n")
        with fit.active():
            data = x.to(fit.device)
            exact = float(model.log_evidence(data).sum())
            away = sine(model.axes().cpu(), known["closed form"][2]) if model is pca else np.nan
        noise = float(fit.params["noise_scale"].square().mean())
        rows.append((name, exact, fit.log_evidence(1_000, per="row").log_z, noise, away))

    print(f"{'':22}  log p(x), exact  by the guide  noise variance  sine of the angle")
    for name, exact, estimated, noise, away in rows:
        print(
            f"{name:22}  {exact:15.4f}  {estimated:12.4f}  {noise:14.5f}"
            + ("" if np.isnan(away) else f"  {away:17.2g}")
        )
    for name, (log_p, noise, _) in known.items():
        print(f"{name:22}  {log_p:15.4f}  {'':12}  {noise:14.5f}")
    draw(fits["PCA, encoder"], x, wine, options.out / "factor_analysis.png")


def closed_form(model: FactorAnalysis, x: torch.Tensor) -> tuple[float, float, torch.Tensor]:
    """Log likelihood in nats, noise variance and principal axes of Tipping and Bishop (1999)."""
    best = model.closed_form(x)
    noise = best["noise_scale"].square()
    fitted = torch.distributions.LowRankMultivariateNormal(best["mean"], best["loading"], noise.expand(x.shape[1]))
    return float(fitted.log_prob(x).sum()), float(noise), best["loading"] / best["loading"].norm(dim=0)


def from_peer(x: torch.Tensor) -> tuple[float, float, None]:
    """The same of scikit-learn's factor analysis, which has no axes."""
    peer = Peer(2, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(x.numpy())
    return peer.score(x.numpy()) * len(x), float(peer.noise_variance_.mean()), None


def sine(axes: torch.Tensor, others: torch.Tensor) -> float:
    """Of the largest principal angle between two subspaces."""
    return float(torch.linalg.matrix_norm(axes - others @ (others.T @ axes), 2))


def draw(fit: ingle.Fit, x: torch.Tensor, wine: Any, path: Path) -> None:
    """The wines in the latent plane, turned to the principal axes, with 95% regions; and what each column adds."""
    model = fit.model
    with fit.active():
        posterior = model.posterior(x.to(fit.device))
        mean, covariance = posterior.mean.cpu(), posterior.covariance_matrix[0].cpu()
    # The factors are known up to a rotation: turn them so that the first explains the most.
    loading = fit.params["loading"].cpu()
    turn = torch.linalg.svd(loading, full_matrices=False)[2].T
    mean, covariance, loading = (mean @ turn).numpy(), (turn.T @ covariance @ turn).numpy(), (loading @ turn).numpy()
    circle = np.stack([np.cos(np.linspace(0, 2 * np.pi, 60)), np.sin(np.linspace(0, 2 * np.pi, 60))])
    edge = 5.991**0.5 * np.linalg.cholesky(covariance) @ circle  # the 95% quantile of chi-squared, two degrees

    figure, (plane, arrows) = plt.subplots(1, 2, figsize=(12, 5.4), layout="constrained")
    for kind, colour in enumerate(("tab:blue", "tab:orange", "tab:green")):
        of = wine.target == kind
        for centre in mean[of][::4]:
            plane.plot(centre[0] + edge[0], centre[1] + edge[1], color=colour, lw=0.8, alpha=0.4)
        plane.plot(*mean[of].T, "o", color=colour, ms=4, label=f"cultivar {kind + 1}")
    plane.set(
        title="wines: means, some 95% regions",
        xlabel="first factor",
        ylabel="second factor",
        aspect="equal",
    )
    plane.legend()

    for side in (-1, 1):
        height = -np.inf
        for column in np.argsort(loading[:, 1]):
            first, second = loading[column]
            if (first > 0) == (side > 0):
                height = max(second, height + 0.09)  # names in two columns, none over another
                label = wine.feature_names[column].replace("_of_diluted_wines", "").replace("_", " ")
                arrows.annotate("", (first, second), (0, 0), arrowprops={"arrowstyle": "->", "color": "tab:red"})
                arrows.plot([first, side * 1.02], [second, height], color="grey", lw=0.5, ls=":")
                arrows.text(side * 1.05, height, label, ha="left" if side > 0 else "right", va="center", fontsize=8)
    arrows.plot([-1, 1], [0, 0], color="grey", lw=0.5)
    arrows.axvline(0, color="grey", lw=0.5)
    arrows.set(title="loadings", xlabel="of the first factor (sd of the column)")
    arrows.set(ylabel="of the second factor (sd of the column)", xlim=(-1.9, 1.9), ylim=(-0.55, 0.9))
    figure.savefig(path, dpi=120)
    plt.close(figure)


if __name__ == "__main__":
    main()
