"""Eight schools and radon against long NUTS (benchmarks/references.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support import EIGHT_SCHOOLS, RADON, assert_near_reference, eight_schools_data, radon_data

import ingle
from ingle.guides import hierarchical as guides
from ingle.models import hierarchical as models


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
    options = {"steps": 2_000, **where}
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
