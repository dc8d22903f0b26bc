"""The hierarchical models against exact conditionals and long NUTS (benchmarks/references.py), and what they refuse."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro.distributions.transforms import ComposeTransformModule, Permute, affine_autoregressive
from pyro.infer.autoguide import AutoNormalizingFlow
from support import (
    EIGHT_SCHOOLS,
    RADON,
    REFERENCES,
    assert_near_reference,
    eight_schools_data,
    radon_action_data,
    radon_counties_data,
    radon_data,
)

import ingle
from ingle.guides import hierarchical as guides
from ingle.models import hierarchical as models
from ingle.objectives import STL_ELBO

STRUCTURED: dict[str, tuple[Any, Any, Any]] = {
    "eight_schools": (models.eight_schools, guides.eight_schools_structured_guide, eight_schools_data),
    "eight_schools_centred": (
        models.eight_schools_centred, guides.eight_schools_centred_structured_guide, eight_schools_data,
    ),
    "radon_varying_intercepts": (
        models.radon_varying_intercepts, guides.radon_varying_intercepts_structured_guide, radon_data,
    ),
    "radon_uranium": (models.radon_uranium, guides.radon_uranium_guide, radon_counties_data),
    "radon_varying_slopes": (models.radon_varying_slopes, guides.radon_varying_slopes_guide, radon_counties_data),
    "hierarchical_logistic": (models.hierarchical_logistic, guides.hierarchical_logistic_guide, radon_action_data),
}  # fmt: skip
GROUP_SCALES = ("tau", "sigma_alpha", "sigma_beta", "rho", "rho_unit")


def figures(name: str, fit: ingle.Fit) -> dict[str, tuple[float, float, float]]:
    """Of each site, beside long NUTS: how many sds a mean is off at most, and the least and greatest ratio of sds."""
    # The centred program has the same posterior, without eta.
    reference = REFERENCES["eight_schools" if name == "eight_schools_centred" else name]
    found = {}
    for site, drawn in fit.draws(20_000).items():
        values = drawn.double().cpu().numpy()
        mean, sd = np.array(reference[site]["mean"]), np.array(reference[site]["sd"])
        ratio = values.std(0) / sd
        found[site] = (float((np.abs(values.mean(0) - mean) / sd).max()), float(ratio.min()), float(ratio.max()))
    assert found.keys() == reference.keys() - ({"eta"} if name == "eight_schools_centred" else set())
    return found


def assert_structured(name: str, steps: int | None, seed: int, where: dict[str, Any]) -> None:
    model, guide, data = STRUCTURED[name]
    fit = ingle.fit(model, guide, data(), objective=STL_ELBO(), steps=steps, seed=seed, **where)
    for site, (off, least, most) in figures(name, fit).items():
        print(f"{name:<26}{site:<14}{off:>8.3f}{least:>8.3f}{most:>8.3f}")
        assert off < 0.15, f"{site}: mean off by {off:.3f} sd"
        room = 0.3 if site in GROUP_SCALES else 0.15
        assert 1 - room < least <= most < 1 + room, f"{site}: sd ratio {least:.3f} to {most:.3f}"


def test_structured_guide_of_eight_schools(where: dict[str, Any]) -> None:
    assert_structured("eight_schools", 8_000, 0, where)


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("name", STRUCTURED)
def test_structured_guides_stop_right(name: str, seed: int, where: dict[str, Any]) -> None:
    assert_structured(name, None, seed, where)


def reversing(dim: int) -> ComposeTransformModule:
    """Two autoregressive layers, the second in the order reversed, so that no latent stays normal given the first."""
    layers = [affine_autoregressive(dim, hidden_dims=[16, 16]) for _ in range(2)]
    return ComposeTransformModule([layers[0], Permute(torch.arange(dim).flip(0)), layers[1]])


@pytest.mark.long
@pytest.mark.parametrize("seed", [0, 1])
def test_a_longer_flow_has_the_group_scale(seed: int, where: dict[str, Any]) -> None:
    """ "flow" alone leaves log tau normal given mu, and its sd is 18% to 25% too large."""
    guide = functools.partial(AutoNormalizingFlow, init_transform_fn=reversing)
    fit = ingle.fit(models.eight_schools, guide, eight_schools_data(), steps=60_000, seed=seed, **where)
    _, least, most = figures("eight_schools", fit)["tau"]
    assert 0.85 < least <= most < 1.15, f"tau: sd ratio {least:.3f} to {most:.3f}"


SMALL = {
    "county": torch.tensor([0] + [1] * 8 + [3] * 30 + [4]),  # none in 2 and 5, one house in 0 and in 4
    "floor": torch.tensor([0.0] + [0.0, 1.0] * 19 + [1.0]),
    "log_uranium": torch.tensor([-0.5, 0.0, 0.3, 0.5, -0.2, 0.1]),
    "num_counties": 6,
}


def small_data() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(3)
    noise = 0.5 * torch.randn(len(SMALL["county"]), generator=generator)
    level = torch.tensor([2.9, 1.5, 0.0, 1.2, 0.4, 0.0])[SMALL["county"]]
    return {**SMALL, "log_radon": level - 0.6 * SMALL["floor"] + noise}


def test_effects_have_their_exact_conditional(where: dict[str, Any]) -> None:
    """Given the globals an effect is exactly normal: counties without a house, with one, and with many."""
    data = small_data()
    fit = ingle.fit(
        models.radon_uranium,
        guides.radon_uranium_guide,
        data,
        objective=STL_ELBO(),
        steps=4_000,
        **where,
    )
    draws = {name: value.double().cpu() for name, value in fit.draws(20_000).items()}
    counties = torch.nn.functional.one_hot(data["county"], 6).double()
    count = counties.sum(0)
    residual = data["log_radon"] - draws["beta"][:, None] * data["floor"].double()
    line = draws["mu_alpha"][:, None] + draws["gamma"][:, None] * data["log_uranium"].double()
    prior, noise = draws["sigma_alpha"][:, None] ** -2, count * draws["sigma"][:, None] ** -2
    total = residual @ counties * draws["sigma"][:, None] ** -2
    standard = (draws["alpha"] - (prior * line + total) / (prior + noise)) * (prior + noise).sqrt()
    assert count.tolist() == [1, 8, 0, 30, 1, 0]
    assert standard.mean(0).abs().max() < 0.15
    assert (standard.std(0) - 1).abs().max() < 0.15
    for globals_ in ("mu_alpha", "sigma_alpha", "beta"):  # which a factor that does not follow them would show
        together = torch.cat([draws[globals_][:, None], standard], 1).T
        assert torch.corrcoef(together)[0, 1:].abs().max() < 0.2


@pytest.mark.long
def test_many_rows_give_the_log_odds(where: dict[str, Any]) -> None:
    """Where groups are large and covariates 0, alpha is the log odds of its group, with the sd of its counts."""
    group = torch.arange(4).repeat_interleave(1_000)
    share = torch.tensor([0.2, 0.4, 0.6, 0.7])
    y = (torch.arange(1_000) / 1_000 < share[:, None]).float().flatten()
    fit = ingle.fit(
        models.hierarchical_logistic,
        guides.hierarchical_logistic_guide,
        {"group": group, "x": torch.zeros(4_000, 1), "y": y, "num_groups": 5},
        objective=STL_ELBO(),
        **where,
    )
    draws = {name: value.double().cpu() for name, value in fit.draws(20_000).items()}
    sd = (1_000 * share * (1 - share)).rsqrt().double()
    assert ((draws["alpha"][:, :4].mean(0) - share.double().logit()).abs() < 0.3 * sd).all()
    assert ((draws["alpha"][:, :4].std(0) / sd - 1).abs() < 0.1).all()
    empty = (draws["alpha"][:, 4] - draws["mu_alpha"]) / draws["sigma_alpha"]
    assert abs(empty.mean()) < 0.1
    assert abs(empty.std() - 1) < 0.1
    assert abs(draws["beta"].std() / 2.5 - 1) < 0.1  # a column of zeros leaves the prior


@pytest.mark.parametrize("guide", [guides.eight_schools_guide, "normal"])
@pytest.mark.parametrize("steps", [3_000, pytest.param(None, marks=pytest.mark.long)])
def test_eight_schools(guide: Any, steps: int | None, where: dict[str, Any]) -> None:
    fit = ingle.fit(models.eight_schools, guide, eight_schools_data(), steps=steps, **where)
    assert_near_reference(fit, EIGHT_SCHOOLS)


@pytest.mark.long
def test_eight_schools_multivariate(where: dict[str, Any]) -> None:
    fit = ingle.fit(models.eight_schools, "multivariate_normal", eight_schools_data(), **where)
    assert_near_reference(fit, EIGHT_SCHOOLS)


@pytest.mark.parametrize("guide", [guides.radon_varying_intercepts_guide, "normal"])
@pytest.mark.parametrize("steps", [2_500, pytest.param(None, marks=pytest.mark.long)])
def test_radon(guide: Any, steps: int | None, where: dict[str, Any]) -> None:
    """Independent factors cannot hold the sd of what the county intercepts share, so those two are not asked for."""
    fit = ingle.fit(models.radon_varying_intercepts, guide, radon_data(), steps=steps, **where)
    assert_near_reference(fit, RADON, no_sd=("mu_alpha", "sigma_alpha"))


def test_centred_guide_is_worse(where: dict[str, Any]) -> None:
    """A mean-field guide of the centred program cannot follow theta's spread as tau changes."""
    options = {"steps": 600, "compile": "off", **where}
    free = ingle.fit(models.eight_schools, guides.eight_schools_guide, eight_schools_data(), **options)
    centred = ingle.fit(
        models.eight_schools_centred, guides.eight_schools_centred_guide, eight_schools_data(), **options
    )
    assert centred.elbo[0] < free.elbo[0] - 0.5


def test_models_draw_data_where_none_are_given() -> None:
    assert models.eight_schools(torch.ones(5)).shape == (5,)
    assert models.eight_schools_centred(torch.ones(5)).shape == (5,)
    county = torch.tensor([0, 1, 1, 4])
    assert models.radon_varying_intercepts(county, torch.zeros(4)).shape == (5,)
    assert models.radon_varying_intercepts(county, torch.zeros(4), num_counties=7).shape == (7,)
    assert models.radon_uranium(county, torch.zeros(4), torch.zeros(5)).shape == (5,)
    alpha, beta = models.radon_varying_slopes(county, torch.zeros(4), torch.zeros(7), num_counties=7)
    assert alpha.shape == beta.shape == (7,)
    assert models.hierarchical_logistic(county, torch.zeros(4, 2)).shape == (5,)


def test_slopes_and_intercepts_have_the_correlation_that_is_drawn() -> None:
    """rho is the correlation of alpha and beta, and the scales are their sds: 20,000 counties of one draw."""
    counties = 20_000
    program = pyro.condition(
        models.radon_varying_slopes,
        {name: torch.tensor(value) for name, value in {"sigma_alpha": 0.5, "sigma_beta": 2.0, "rho_unit": 0.2}.items()},
    )
    alpha, beta = program(torch.tensor([0]), torch.zeros(1), torch.zeros(counties), num_counties=counties)
    error = 4 / counties**0.5  # four standard errors of a correlation at most
    assert abs(torch.corrcoef(torch.stack([alpha, beta]))[0, 1] + 0.6) < error
    assert abs(alpha.std() / 0.5 - 1) < error
    assert abs(beta.std() / 2.0 - 1) < error


HOUSES = {"county": torch.tensor([0, 1, 1, 3]), "floor": torch.tensor([0.0, 1.0, 0.0, 1.0])}
ROWS = {"group": HOUSES["county"], "x": HOUSES["floor"][:, None]}
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "float index": (
        models.radon_varying_intercepts, {"county": torch.ones(4)}, "one integer a row.*float32.*county.long()",
    ),
    "boolean index": (models.radon_varying_intercepts, {"county": torch.ones(4) > 0}, "one integer a row.*bool"),
    "negative index": (models.radon_varying_intercepts, {"county": HOUSES["county"] - 1}, "index from 0, got -1"),
    "index too large": (
        models.radon_varying_intercepts, {"num_counties": 3}, "below num_counties, 3, got 3; give num_counties=4",
    ),
    "no rows": (models.radon_varying_intercepts, {"county": torch.zeros(0).long()}, "at least one row, got none"),
    "uranium of houses": (
        models.radon_uranium, {"log_uranium": torch.zeros(9)}, r"one value a county, 4 of them.*got shape \(9,\)",
    ),
    "uranium of too few": (
        models.radon_varying_slopes, {"log_uranium": torch.zeros(4), "num_counties": 6}, r"6 of them.*got shape \(4,\)",
    ),
    "one column": (models.hierarchical_logistic, {"x": torch.zeros(4)}, r"a row for each of the 4.*x\[:, None\]"),
    "x of other rows": (models.hierarchical_logistic, {"x": torch.zeros(5, 1)}, r"each of the 4.*got shape \(5, 1\)"),
    "labels of 1 and 2": (
        models.hierarchical_logistic, {"y": torch.tensor([1.0, 2.0, 1.0, 2.0])}, "y must be 0 or 1.*from 1 to 2",
    ),
    "float group": (models.hierarchical_logistic, {"group": torch.ones(4)}, "group must be one integer a row"),
    "group too large": (models.hierarchical_logistic, {"num_groups": 2}, "below num_groups, 2, got 3"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_refused_in_words(case: str) -> None:
    model, wrong, words = BAD[case]
    right = ROWS if model is models.hierarchical_logistic else HOUSES
    with pytest.raises(ValueError, match=words):
        model(**{**right, **wrong})


def test_a_fit_tells_what_the_model_refuses(where: dict[str, Any]) -> None:
    data = {**HOUSES, "log_uranium": torch.zeros(4), "log_radon": torch.zeros(4)}
    with pytest.raises(ValueError, match=r"4 of them.*got shape \(9,\)"):
        ingle.fit(models.radon_uranium, guides.radon_uranium_guide, {**data, "log_uranium": torch.zeros(9)}, **where)
