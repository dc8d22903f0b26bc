"""Probabilistic PCA against its closed form, factor analysis against scikit-learn, and the exact evidence of both."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.optim import ExponentialLR
from sklearn.datasets import load_iris, load_wine
from sklearn.decomposition import PCA
from sklearn.decomposition import FactorAnalysis as Peer
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal, kl_divergence

import ingle
from ingle.guides.factor_analysis import FactorAnalysisExactGuide, FactorAnalysisGuide, FactorAnalysisRowGuide
from ingle.models.factor_analysis import FactorAnalysis
from ingle.objectives import STL_ELBO, Trace_ELBO

GUIDES = (FactorAnalysisGuide, FactorAnalysisRowGuide)


def standardised(load: Any) -> Tensor:
    x = load().data
    return torch.tensor((x - x.mean(0)) / x.std(0))


IRIS, WINE = standardised(load_iris), standardised(load_wine)


def fitted(
    model: FactorAnalysis,
    guide: Any,
    x: Tensor,
    where: dict[str, Any],
    steps: int,
    particles: int = 1,
    fall: float = 1e-3,
    **options: Any,
) -> ingle.Fit:
    """With a learning rate that falls, since the gradient of the loading is noisy to the end."""
    adam = ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": fall ** (1 / steps)})
    options = {"objective": STL_ELBO(particles, vectorize_particles=True), **options}
    return ingle.fit(model, guide, x, optim=adam, steps=steps, compile="off", **where, **options)


def sine(axes: Tensor, others: Tensor) -> float:
    """Of the largest principal angle between the spaces that two orthonormal bases span."""
    return float(torch.linalg.matrix_norm(axes - others @ (others.T @ axes), 2))


def adopt(guide: Any, x: Tensor) -> None:
    if isinstance(guide, FactorAnalysisGuide):
        guide.adopt_posterior()
    else:
        guide.adopt_posterior(x)


def assert_closed_form(x: Tensor, fit: ingle.Fit) -> None:
    """Subspace, noise and likelihood from the eigenvalues of the covariance.

    The noise has to lie within a tenth of its standard error.
    """
    model, n = fit.model, len(x)
    assert isinstance(model, FactorAnalysis)
    values, vectors = np.linalg.eigh(np.cov(x.numpy().T, bias=True))
    k, d = model.latent_dim, model.data_dim
    noise = values[: d - k].mean()
    best = -n / 2 * (d * np.log(2 * np.pi) + np.log(values[d - k :]).sum() + (d - k) * np.log(noise) + d)
    with fit.active():
        axes = model.axes().double().cpu()
        log_p = float(model.log_evidence(x.to(fit.device, fit.dtype)).double().sum())
    assert sine(axes, torch.tensor(vectors[:, d - k :].copy())) < 1e-3
    assert float(fit.params["noise_scale"]) ** 2 == pytest.approx(noise, abs=0.1 * noise * (2 / (n * (d - k))) ** 0.5)
    assert best - 0.05 < log_p < best + 1e-3
    assert fit.elbo[0] == pytest.approx(best, abs=0.1)


def assert_posterior(x: Tensor, fit: ingle.Fit) -> None:
    """KL(guide || posterior) summed over the rows, in nats, and the exact evidence from the guide's draws."""
    model, x = fit.model, x.to(fit.device, fit.dtype)
    assert isinstance(model, FactorAnalysis)
    with fit.active(), torch.no_grad():
        posterior, log_p = model.posterior(x), float(model.log_evidence(x).double().sum())
        trace: Any = pyro.poutine.trace(fit.guide).get_trace(x)
        q = trace.nodes["z"]["fn"]
        apart = float(kl_divergence(MultivariateNormal(q.loc, scale_tril=q.scale_tril), posterior).sum())
    assert apart < 0.05
    evidence = fit.log_evidence(200, per="row")
    assert evidence.log_z == pytest.approx(log_p, abs=4.5 * evidence.se + (1e-6 if x.dtype == torch.float64 else 1e-3))
    assert evidence.se < 0.03


@pytest.mark.parametrize("guide", GUIDES)
def test_probabilistic_pca_finds_its_closed_form(guide: Any, where: dict[str, Any]) -> None:
    model = FactorAnalysis(4, 2, noise="isotropic")
    fit = fitted(model, guide(model), IRIS, where, 1_200, 2)
    assert_closed_form(IRIS, fit)
    assert_posterior(IRIS, fit)
    if guide is FactorAnalysisGuide:
        gap = fit.elbo_gap(200, refine=50)
        assert gap.unsplit == ""
        assert abs(gap.gap) < 0.1
        assert gap.amortisation < 4.5 * gap.amortisation_se + 0.1


def test_exact_guide_climbs_the_likelihood_itself(device: torch.device) -> None:
    """No noise in the loss: the closed form to rounding, where noise of draws would leave 1e-3."""
    model = FactorAnalysis(13, 2, noise="isotropic")
    where = {"device": device, "dtype": torch.float64}
    fit = fitted(model, FactorAnalysisExactGuide(model), WINE, where, 400, objective=Trace_ELBO())
    x, best = WINE.to(device), model.closed_form(WINE)
    peak = LowRankMultivariateNormal(best["mean"], best["loading"], best["noise_scale"].square().expand(13))
    with fit.active():
        assert sine(model.axes().cpu(), torch.linalg.qr(best["loading"])[0]) < 1e-4
        assert -fit.losses[-1] == pytest.approx(float(model.log_evidence(x).sum()), abs=1e-6)
    assert -fit.losses[-1] == pytest.approx(float(peak.log_prob(WINE).sum()), abs=1e-6)
    assert fit.log_evidence(100).verdict == "exact"


def test_closed_form_is_that_of_scikit_learn() -> None:
    """Whose covariance divides by N - 1."""
    model = FactorAnalysis(4, 2, noise="isotropic")
    found, peer = model.closed_form(IRIS), PCA(2).fit(IRIS.numpy())
    share = (len(IRIS) - 1) / len(IRIS)
    covariance = found["loading"] @ found["loading"].T + found["noise_scale"] ** 2 * torch.eye(4, dtype=torch.float64)
    np.testing.assert_allclose(covariance, share * peer.get_covariance(), rtol=1e-10, atol=1e-10)
    axes = found["loading"] / found["loading"].norm(dim=0)
    np.testing.assert_allclose(np.abs(peer.components_ @ axes.numpy()), np.eye(2), atol=1e-10)
    with pytest.raises(ValueError, match="no closed form"):
        FactorAnalysis(4, 2).closed_form(IRIS)


@pytest.mark.parametrize("guide", [*GUIDES, FactorAnalysisExactGuide])
def test_factor_analysis_is_that_of_scikit_learn(guide: Any, where: dict[str, Any]) -> None:
    """The likelihood is told for a row; noise in the gradient costs little of it, and moves single variances more.

    Far from the posterior STL_ELBO is the noisier one, and can send rows with parameters of their own astray.
    """
    model = FactorAnalysis(13, 2)
    exact = guide is FactorAnalysisExactGuide
    options = {} if guide is FactorAnalysisGuide else {"objective": Trace_ELBO(1 if exact else 2)}
    fit = fitted(model, guide(model), WINE, where, 800, 2, **options)
    peer = Peer(2, tol=1e-9, max_iter=20_000, svd_method="lapack").fit(WINE.numpy())
    with fit.active():
        log_p = float(model.log_evidence(WINE.to(fit.device, fit.dtype)).mean())
    assert log_p == pytest.approx(peer.score(WINE.numpy()), abs=1e-4 if exact else 1e-2)
    if exact:
        np.testing.assert_allclose(fit.params["noise_scale"].cpu() ** 2, peer.noise_variance_, atol=2e-3)


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("noise", ["isotropic", "diagonal"])
def test_guide_at_the_posterior_has_the_exact_evidence(noise: Any, guide: Any, device: torch.device) -> None:
    """Every weight is then p(x), whatever the draw."""
    model = FactorAnalysis(4, 2, noise=noise)
    fit = fitted(model, guide(model), IRIS, {"device": device, "dtype": torch.float64}, 5)
    x = IRIS.to(device)
    values = {name: value.cpu() for name, value in fit.params.items()}
    covariance = values["loading"] @ values["loading"].T + torch.diag(values["noise_scale"].expand(4) ** 2)
    rows = MultivariateNormal(values["mean"], covariance).log_prob(IRIS)
    with fit.active():
        torch.testing.assert_close(model.log_evidence(x).cpu(), rows)
        before = ingle.log_evidence(model, fit.guide, x, num_samples=100)
        adopt(fit.guide, x)
        evidence = ingle.log_evidence(model, fit.guide, x, num_samples=100)
    assert abs(before.log_z - float(rows.sum())) > 0.1
    assert evidence.log_z == pytest.approx(float(rows.sum()), abs=1e-6)
    assert evidence.verdict == "exact"


def test_posterior_is_the_conditional_of_the_joint() -> None:
    """By the formula for a joint Gaussian of z and x, which inverts a (D, D) matrix instead of (K, K)."""
    model = FactorAnalysis(4, 2)
    fit = fitted(model, FactorAnalysisGuide(model), IRIS, {"dtype": torch.float64}, 20)
    values = fit.params
    loading, noise = values["loading"], torch.diag(values["noise_scale"] ** 2)
    gain = loading.T @ torch.linalg.inv(loading @ loading.T + noise)
    with fit.active():
        posterior = model.posterior(IRIS)
        axes = model.axes()
    torch.testing.assert_close(posterior.mean, (IRIS - values["mean"]) @ gain.T)
    torch.testing.assert_close(posterior.covariance_matrix[7], torch.eye(2, dtype=torch.float64) - gain @ loading)
    torch.testing.assert_close(axes.T @ axes, torch.eye(2, dtype=torch.float64))
    assert sine(axes, torch.linalg.qr(loading)[0]) < 1e-10


@pytest.mark.parametrize(("guide", "steps"), [(FactorAnalysisGuide, 500), (FactorAnalysisRowGuide, 1_500)])
def test_minibatches_move_the_rows_that_were_drawn(guide: Any, steps: int, where: dict[str, Any]) -> None:
    model = FactorAnalysis(4, 2, noise="isotropic")
    start = fitted(model, guide(model), IRIS, where, 1, batch_size={"row": 50})
    if guide is FactorAnalysisRowGuide:
        assert int(start.params["z_loc"].ne(0).any(-1).sum()) == 50
        assert start.params["z_scale_tril"].shape == (150, 2, 2)
    fit = fitted(model, guide(model), IRIS, where, steps, fall=1e-2, batch_size={"row": 50})
    best = PCA(2).fit(IRIS.numpy()).score(IRIS.numpy())
    with fit.active():
        log_p = float(model.log_evidence(IRIS.to(fit.device, fit.dtype)).mean())
    assert log_p == pytest.approx(best, abs=0.01)
    assert fit.draws(3)["z"].shape == (3, 150, 2)
    assert fit.predict(IRIS[:7], 5, new=("row",))["x"].shape == (5, 7, 4)


def test_start_does_not_depend_on_the_random_state() -> None:
    model = FactorAnalysis(4, 2, seed=3)
    starts = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        pyro.clear_param_store()
        model(IRIS.float())
        starts.append(pyro.param("loading").detach())
    pyro.clear_param_store()
    assert torch.equal(*starts)
    FactorAnalysis(4, 2, seed=4)(IRIS.float())
    assert not torch.equal(pyro.param("loading").detach(), starts[0])
    pyro.clear_param_store()


def test_constant_column_stops_at_the_floor(where: dict[str, Any]) -> None:
    """Its likelihood has no upper bound; the other columns' noise stays what it is."""
    x = torch.cat([IRIS, torch.full((len(IRIS), 1), 0.1)], dim=-1)
    model = FactorAnalysis(5, 1, floor=0.05)
    fit = fitted(model, FactorAnalysisGuide(model), x, where, 300)
    noise = fit.params["noise_scale"].cpu()
    assert 0.05 <= float(noise[4]) < 0.08
    assert float(noise[1]) > 0.8
    assert bool(torch.isfinite(torch.tensor(fit.losses)).all())


@pytest.mark.parametrize("latent_dim", [0, 4, 5])
def test_as_many_factors_as_columns_are_refused(latent_dim: int) -> None:
    with pytest.raises(ValueError, match=f"below data_dim, got {latent_dim} factors for 4 columns"):
        FactorAnalysis(4, latent_dim)


def test_unknown_noise_and_floor_are_refused() -> None:
    with pytest.raises(ValueError, match="'isotropic' or 'diagonal', got 'full'"):
        FactorAnalysis(4, 2, noise="full")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="floor must be above 0 and below 1"):
        FactorAnalysis(4, 2, floor=0.0)


def test_bad_data_are_refused_in_words() -> None:
    model = FactorAnalysis(4, 2)
    guide = FactorAnalysisGuide(model)
    with pytest.raises(ingle.ProgramError, match=r"shape \(rows, 4\)"):
        ingle.fit(model, guide, torch.randn(20, 3), steps=1)
    scales = torch.tensor([1e6, 1.0, 1.0, 1e-3], dtype=torch.float64)
    with pytest.raises(ingle.ProgramError, match=r"column 0 of x has a standard deviation of .*standardise them first"):
        ingle.fit(model, guide, scales * IRIS, steps=1)
    gone = IRIS.clone()
    gone[3, 1] = torch.nan
    with pytest.raises(ingle.IngleError, match="NaN"):
        ingle.fit(model, guide, gone, steps=1)
    with pytest.raises(ValueError, match=r"fit\.active"):
        model.log_evidence(IRIS)
