"""The Gaussian mixture against long NUTS and scikit-learn."""

from __future__ import annotations

from typing import Any

import pyro.infer
import pytest
import torch
from sklearn.mixture import GaussianMixture as Peer
from support import MIXTURE, assert_near_reference, old_faithful

import ingle
from ingle.guides.mixture import GaussianMixtureGuide
from ingle.models.mixture import GaussianMixture


@pytest.mark.parametrize("steps", [1_500, pytest.param(None, marks=pytest.mark.long)])
def test_old_faithful(steps: int | None, where: dict[str, Any]) -> None:
    model = GaussianMixture(2)
    fit = ingle.fit(model, GaussianMixtureGuide(model), old_faithful(), steps=steps, **where)
    assert fit.objective == "TraceEnum_ELBO"
    assert_near_reference(fit, MIXTURE)


@pytest.mark.long
def test_old_faithful_by_name(where: dict[str, Any]) -> None:
    """The labels may come out either way round."""
    fit = ingle.fit(GaussianMixture(2), "normal", old_faithful(), **where)
    first = int(fit.draws(100)["loc"].mean(0)[:, 0].argmax())
    assert_near_reference(fit, MIXTURE, order=[first, 1 - first])


def test_three_components_are_found_as_scikit_learn_finds_them() -> None:
    generator = torch.Generator().manual_seed(2)
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]).double()
    x = (centres[:, None] + 0.5 * torch.randn(3, 60, 2, generator=generator).double()).reshape(-1, 2)
    model = GaussianMixture(3)
    fit = ingle.fit(
        model, GaussianMixtureGuide(model), x, steps=600, optim=lambda leaves: torch.optim.Adam(leaves, lr=0.05)
    )
    ours = fit.draws(500)["loc"].mean(0).double()
    theirs = torch.tensor(Peer(3, covariance_type="diag", random_state=0).fit(x.numpy()).means_)
    nearest = torch.cdist(ours, theirs).min(dim=1)
    assert sorted(nearest.indices.tolist()) == [0, 1, 2]
    assert float(nearest.values.max()) < 0.1


def test_particles_may_be_vectorised() -> None:
    objective = pyro.infer.TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    model = GaussianMixture(2)
    for guide in ("normal", GaussianMixtureGuide(model)):
        fit = ingle.fit(model, guide, old_faithful(), objective=objective, batch_size={"point": 33}, steps=3)
        assert fit.steps == 3
