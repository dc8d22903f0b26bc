"""What ArviZ does with the fit of every pair that ships."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from support import arviz_line, az, eight_schools_data, old_faithful, radon_action_data, radon_data

import ingle
from ingle.guides import hierarchical as hierarchical_guides
from ingle.guides.bayesian_neural_network import BayesianNeuralNetworkGuide
from ingle.guides.coin import CoinGuide
from ingle.guides.diffusion import DiffusionGuide
from ingle.guides.factor_analysis import FactorAnalysisExactGuide, FactorAnalysisGuide, FactorAnalysisRowGuide
from ingle.guides.hierarchical_vae import HierarchicalVAEBottomUpGuide, HierarchicalVAELadderGuide
from ingle.guides.image_completion import ImageCompletionGuide
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.guides.regression import LinearRegressionGuide, LogisticRegressionGuide
from ingle.guides.vae import VAEGuide
from ingle.models import hierarchical
from ingle.models.bayesian_neural_network import BayesianNeuralNetwork
from ingle.models.coin import Coin
from ingle.models.diffusion import Diffusion
from ingle.models.factor_analysis import FactorAnalysis
from ingle.models.hierarchical_vae import HierarchicalVAE
from ingle.models.image_completion import ImageCompletion
from ingle.models.mixture import Covariance, GaussianMixture
from ingle.models.regression import LinearRegression, LogisticRegression
from ingle.models.vae import VAE

matplotlib.use("Agg")


def coin() -> ingle.Fit:
    model = Coin()
    return ingle.fit(model, CoinGuide(model), (torch.rand(30) > 0.5).float(), steps=20)


def diffusion() -> ingle.Fit:
    model = Diffusion(2, 3, hidden=(4,))
    return ingle.fit(model, DiffusionGuide(model), old_faithful()[:40], steps=20)


def factor_analysis(guide: Any, noise: Any) -> ingle.Fit:
    model = FactorAnalysis(2, 1, noise=noise)
    return ingle.fit(model, guide(model), old_faithful()[:40], steps=20)


def bayesian_neural_network() -> ingle.Fit:
    x, y = old_faithful()[:40, :1], old_faithful()[:40, 1]
    model = BayesianNeuralNetwork(1, hidden=(3,))
    return ingle.fit(model, BayesianNeuralNetworkGuide(model), {"x": x, "y": y}, steps=20)


def image_completion() -> ingle.Fit:
    seen = torch.rand(12, 6) > 0.3
    seen[:, 0] = True
    model = ImageCompletion(VAE(6, 2))
    return ingle.fit(model, ImageCompletionGuide(model), ((torch.rand(12, 6) > 0.5).float(), seen), steps=20)


def linear_regression() -> ingle.Fit:
    model, points = LinearRegression(), torch.tensor(old_faithful()[:40])
    return ingle.fit(model, LinearRegressionGuide(model), (points[:, :1], points[:, 1]), steps=20)


def logistic_regression() -> ingle.Fit:
    model, points = LogisticRegression(), torch.tensor(old_faithful()[:40])
    return ingle.fit(model, LogisticRegressionGuide(model), (points[:, :1], points[:, 1] > 0), steps=20)


def mixture(covariance: Covariance) -> ingle.Fit:
    model = GaussianMixture(2, covariance)
    return ingle.fit(model, GaussianMixtureGuide(model), old_faithful()[:40], steps=20)


def hierarchical_vae(guide: Any) -> ingle.Fit:
    model = HierarchicalVAE(6, (3, 2))
    return ingle.fit(model, guide(model), (torch.rand(12, 6) > 0.5).float(), steps=20)


def vae() -> ingle.Fit:
    model = VAE(6, 2)
    return ingle.fit(model, VAEGuide(model), (torch.rand(12, 6) > 0.5).float(), steps=20)


def vae_of_images() -> ingle.Fit:
    model = VAE((1, 4, 4), 2, (3,), "categorical", architecture="convolutional", levels=3, components=2, num_labels=2)
    return ingle.fit(model, VAEGuide(model), (torch.randint(3, (12, 1, 4, 4)), torch.arange(12) % 2), steps=20)


def few_counties() -> dict[str, Any]:
    """60 houses and the uranium of their counties."""
    data = {name: column[:60] for name, column in radon_data().items()}
    return {**data, "log_uranium": torch.linspace(-0.8, 0.5, data["county"].max() + 1)}


# By file of models/, and what of it.
PAIRS: dict[str, Callable[[], ingle.Fit]] = {
    "bayesian_neural_network": bayesian_neural_network,
    "coin": coin,
    "diffusion": diffusion,
    "factor_analysis: isotropic": lambda: factor_analysis(FactorAnalysisGuide, "isotropic"),
    "factor_analysis: isotropic, exact": lambda: factor_analysis(FactorAnalysisExactGuide, "isotropic"),
    "factor_analysis: diagonal, a row": lambda: factor_analysis(FactorAnalysisRowGuide, "diagonal"),
    "hierarchical: eight_schools": lambda: ingle.fit(
        hierarchical.eight_schools, hierarchical_guides.eight_schools_guide, eight_schools_data(), steps=20
    ),
    "hierarchical: eight_schools_centred": lambda: ingle.fit(
        hierarchical.eight_schools_centred,
        hierarchical_guides.eight_schools_centred_guide,
        eight_schools_data(),
        steps=20,
    ),
    "hierarchical: radon_varying_intercepts": lambda: ingle.fit(
        hierarchical.radon_varying_intercepts,
        hierarchical_guides.radon_varying_intercepts_guide,
        {name: column[:60] for name, column in radon_data().items()},
        steps=20,
    ),
    "hierarchical: radon_uranium": lambda: ingle.fit(
        hierarchical.radon_uranium, hierarchical_guides.radon_uranium_guide, few_counties(), steps=20
    ),
    "hierarchical: radon_varying_slopes": lambda: ingle.fit(
        hierarchical.radon_varying_slopes, hierarchical_guides.radon_varying_slopes_guide, few_counties(), steps=20
    ),
    "hierarchical: hierarchical_logistic": lambda: ingle.fit(
        hierarchical.hierarchical_logistic,
        hierarchical_guides.hierarchical_logistic_guide,
        {name: column[:60] for name, column in radon_action_data().items()},
        steps=20,
    ),
    "hierarchical_vae: bottom-up": lambda: hierarchical_vae(HierarchicalVAEBottomUpGuide),
    "hierarchical_vae: ladder": lambda: hierarchical_vae(HierarchicalVAELadderGuide),
    "image_completion": image_completion,
    "mixture: diagonal": lambda: mixture("diagonal"),
    "mixture: spherical": lambda: mixture("spherical"),
    "mixture: full": lambda: mixture("full"),
    "regression: linear": linear_regression,
    "regression: logistic": logistic_regression,
    "vae": vae,
    "vae: convolutional, categorical, mixture prior, labels": vae_of_images,
}
# A latent for each datum, which voids leave-one-out, with a warning.
LOCAL = {
    "diffusion",
    "factor_analysis: isotropic",
    "factor_analysis: isotropic, exact",
    "factor_analysis: diagonal, a row",
    "hierarchical: eight_schools",
    "hierarchical: eight_schools_centred",
    "hierarchical_vae: bottom-up",
    "hierarchical_vae: ladder",
    "image_completion",
    "vae",
    "vae: convolutional, categorical, mixture prior, labels",
}


def exported(fit: ingle.Fit, seed: int, *, warns: bool) -> Any:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ingle.IngleWarning)
        data = fit.to_arviz(100, seed=seed)
    assert len([one for one in caught if issubclass(one.category, ingle.IngleWarning)]) == warns
    return data


GROUPS = (
    "posterior", "posterior_predictive", "prior", "prior_predictive", "log_likelihood", "sample_stats", "observed_data",
)  # fmt: skip


@pytest.mark.parametrize("name", PAIRS)
def test_arviz_takes_every_pair(name: str, tmp_path: Path) -> None:
    fit = PAIRS[name]()
    data, again = (exported(fit, seed, warns=name in LOCAL) for seed in (0, 1))
    assert all(hasattr(data, group) for group in GROUPS)
    whole = [group for group in GROUPS if not (name == "image_completion" and group == "observed_data")]
    assert all(np.isfinite(data[group][site]).all() for group in whole for site in data[group].data_vars)
    latent = next(iter(data.posterior.data_vars))
    (observed,) = data.observed_data.data_vars
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of ArviZ: deprecations, and the k-hat of fits of 20 steps
        assert latent in "".join(az.summary(data, kind="stats").index)
        if arviz_line() == 0:
            az.plot_posterior(data, var_names=[latent])
            az.plot_ppc(data, num_pp_samples=10)
        else:
            az.plot_dist(data, var_names=[latent])
            az.plot_ppc_dist(data, num_samples=10)
        matplotlib.pyplot.close("all")
        found = az.loo(data, var_name=observed)
        assert found.n_data_points == data.log_likelihood[observed][0, 0].size
        table = az.compare({"one": data, "two": again}, var_name=observed)
        assert set(table.index) == {"one", "two"}
    data.to_netcdf(str(tmp_path / "fit.nc"))
    back: Any = az.from_netcdf(str(tmp_path / "fit.nc"))
    for group in GROUPS:
        assert set(back[group].data_vars) == set(data[group].data_vars)
        for site in data[group].data_vars:
            np.testing.assert_array_equal(back[group][site].to_numpy(), data[group][site].to_numpy())
        assert back[group].attrs["inference_library"] == "ingle"


def test_every_shipped_model_is_here() -> None:
    files = {path.stem for path in Path(hierarchical.__file__).parent.glob("*.py")} - {
        "__init__",
        "likelihoods",
        "networks",
    }
    assert {name.split(":")[0] for name in PAIRS} == files
    assert {name.split(": ")[1] for name in PAIRS if name.startswith("hierarchical:")} == set(hierarchical.__all__)
