"""Gaussian mixtures against their formulas, scikit-learn's EM and long NUTS."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pytest
import torch
from pyro import poutine
from sklearn.mixture import GaussianMixture as Peer
from support import FULL_MIXTURE, MIXTURE, assert_near_reference, old_faithful
from torch import Tensor

import ingle
from ingle.guides.mixture import GaussianMixtureGuide, maximum_likelihood_guide
from ingle.models.mixture import Clusters, Covariance, GaussianMixture, MaximumLikelihoodMixture

COVARIANCES: dict[Covariance, str] = {"spherical": "spherical", "diagonal": "diag", "full": "full"}  # scikit-learn's
FAST = functools.partial(torch.optim.Adam, lr=0.05)


def three_clusters(n: int = 60, sd: float = 0.5) -> Tensor:
    """Around a triangle, n points each, shape (3 n, 2)."""
    generator = torch.Generator().manual_seed(2)
    centres = torch.tensor([[-3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]).double()
    return (centres[:, None] + sd * torch.randn(3, n, 2, generator=generator).double()).reshape(-1, 2)


def peer_from(start: Clusters, covariance: Covariance) -> Peer:
    """Scikit-learn's mixture, to start from the same clusters."""
    scale = start.scale
    precision = torch.linalg.inv(scale @ scale.mT) if covariance == "full" else scale**-2
    return Peer(
        len(start.weights),
        covariance_type=COVARIANCES[covariance],
        weights_init=start.weights.numpy(),
        means_init=start.loc.numpy(),
        precisions_init=precision.numpy(),
        tol=1e-12,
        max_iter=10_000,
    )


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_clusters_are_those_of_scikit_learn(covariance: Covariance) -> None:
    """Density and responsibilities at the same parameters, also with many mixtures at once."""
    x = torch.tensor(old_faithful())
    peer = Peer(3, covariance_type=COVARIANCES[covariance], random_state=0).fit(x.numpy())
    spread = torch.tensor(peer.covariances_)
    scale = torch.linalg.cholesky(spread) if covariance == "full" else spread.sqrt()
    one = Clusters(torch.tensor(peer.weights_), torch.tensor(peer.means_), scale)
    torch.testing.assert_close(one.log_density(x), torch.tensor(peer.score_samples(x.numpy())))
    torch.testing.assert_close(one.responsibilities(x), torch.tensor(peer.predict_proba(x.numpy())))
    many = Clusters(*(torch.stack([value, value.flip(0)]) for value in one))
    torch.testing.assert_close(many.log_density(x), one.log_density(x).expand(2, -1))
    torch.testing.assert_close(many.responsibilities(x)[1], one.responsibilities(x).flip(-1))
    for each, expected in zip(many.ordered(), one.ordered(), strict=True):
        torch.testing.assert_close(each[0], expected)
        torch.testing.assert_close(each[1], expected)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_ancestral_draws_have_the_moments_of_the_mixture(covariance: Covariance) -> None:
    """Shares, means and covariances of each component, within 4.5 standard errors, 30 numbers: 2 in 10,000."""
    factor = torch.tensor([[[0.5, 0.0], [0.3, 0.4]], [[1.0, 0.0], [-0.6, 0.2]]])
    scale = {"spherical": torch.tensor([0.5, 1.0]), "diagonal": factor.diagonal(dim1=-2, dim2=-1), "full": factor}
    clusters = Clusters(torch.tensor([0.3, 0.7]), torch.tensor([[-1.0, 2.0], [1.0, 0.0]]), scale[covariance])
    n = 40_000
    component, x = clusters.sample(n)
    assert component.shape == (n,)
    assert x.shape == (n, 2)
    share = (component == 1).double().mean()
    assert abs(share - 0.7) < 4.5 * math.sqrt(0.7 * 0.3 / n)
    wide = {
        "spherical": lambda s: s**2 * torch.eye(2),
        "diagonal": lambda s: torch.diag(s**2),
        "full": lambda s: s @ s.T,
    }
    for k in range(2):
        inside, expected = x[component == k], wide[covariance](scale[covariance][k])
        sd = expected.diagonal().sqrt()
        assert ((inside.mean(0) - clusters.loc[k]).abs() < 4.5 * sd / math.sqrt(len(inside))).all()
        se = ((expected**2 + torch.outer(sd, sd) ** 2) / len(inside)).sqrt()
        assert ((inside.T.cov() - expected).abs() < 4.5 * se).all()


def test_prior_of_full_covariances_is_an_inverse_wishart() -> None:
    """The density of the precision F'F by the sites of its factor and their Jacobian, against torch's Wishart."""
    model, columns = GaussianMixture(4, "full", spread=8.0), 3
    pyro.set_rng_seed(1)
    trace = poutine.trace(model.prior).get_trace(columns)
    trace.compute_log_prob()
    square, below = (trace.nodes[name]["value"].double() for name in ("factor_square", "factor_below"))
    scale = model.cholesky(square, below).double()
    precision = torch.linalg.inv(scale @ scale.mT)  # typical_sd is 1 here
    ours = trace.nodes["factor_square"]["log_prob"] + trace.nodes["factor_below"]["log_prob"]

    def from_entries(entries: Tensor) -> Tensor:
        factor = torch.diag(entries[:columns].sqrt())
        rows, before = torch.tril_indices(columns, columns, -1)
        factor = factor.index_put((rows, before), entries[columns:])
        product = factor.T @ factor
        return product[tuple(torch.tril_indices(columns, columns))]

    wishart = torch.distributions.Wishart(torch.tensor(columns + 2.0).double(), torch.eye(columns).double())
    for k in range(4):
        jacobian = torch.func.jacrev(from_entries)(torch.cat([square[k], below[k]]))
        expected = wishart.log_prob(precision[k]) + jacobian.slogdet().logabsdet
        assert float(ours[k]) == pytest.approx(float(expected), abs=1e-3)


@pytest.mark.parametrize("steps", [1_500, pytest.param(None, marks=pytest.mark.long)])
def test_old_faithful(steps: int | None, where: dict[str, Any]) -> None:
    model = GaussianMixture(2)
    fit = ingle.fit(model, GaussianMixtureGuide(model), old_faithful(), steps=steps, **where)
    assert fit.objective == "TraceEnum_ELBO"
    assert_near_reference(fit, MIXTURE)


@pytest.mark.long
def test_old_faithful_with_full_covariances(where: dict[str, Any]) -> None:
    model = GaussianMixture(2, "full")
    fit = ingle.fit(model, GaussianMixtureGuide(model), old_faithful(), **where)
    assert_near_reference(fit, FULL_MIXTURE)


@pytest.mark.long
def test_old_faithful_by_name(where: dict[str, Any]) -> None:
    """The labels may come out either way round."""
    fit = ingle.fit(GaussianMixture(2), "normal", old_faithful(), **where)
    first = int(fit.draws(100)["loc"].mean(0)[:, 0].argmin())
    assert_near_reference(fit, MIXTURE, order=[first, 1 - first])


def held_out(covariance: Covariance, seed: int, steps: int, where: dict[str, Any]) -> float:
    """Held-out log likelihood a point of half of Old Faithful, in nats: ours less scikit-learn's best of ten EMs."""
    x = old_faithful()
    order = np.random.default_rng(seed).permutation(len(x))
    train, rest = x[order[: len(x) // 2]], x[order[len(x) // 2 :]]
    model = GaussianMixture(2, covariance)
    fit = ingle.fit(model, GaussianMixtureGuide(model), train, steps=steps, compile="off", **where)
    clusters = model.clusters(fit.draws(500))
    density = clusters.log_density(clusters.loc.new_tensor(rest)).logsumexp(0) - math.log(500)
    peer = Peer(2, covariance_type=COVARIANCES[covariance], n_init=10, random_state=0).fit(train)
    return float(density.mean()) - peer.score(rest)


@pytest.mark.parametrize(
    "covariance",
    [pytest.param("spherical", marks=pytest.mark.long), pytest.param("diagonal", marks=pytest.mark.long), "full"],
)
def test_held_out_points_are_as_likely_as_under_scikit_learn(covariance: Covariance, where: dict[str, Any]) -> None:
    assert held_out(covariance, 0, 1_000, where) > -0.02


@pytest.mark.long
@pytest.mark.parametrize("covariance", COVARIANCES)
def test_held_out_points_over_twenty_splits(covariance: Covariance, where: dict[str, Any]) -> None:
    found = [held_out(covariance, seed, 1_500, where) for seed in range(20)]
    print(f"{covariance}: mean {np.mean(found):.4f}, least {min(found):.4f} nats a point")
    assert np.mean(found) > 0.0
    assert min(found) > -0.02


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_maximum_likelihood_is_the_optimum_of_em(covariance: Covariance) -> None:
    """From the same start: the log likelihood a point and every parameter to 1e-3."""
    x = three_clusters(sd=1.2)  # they overlap
    start = Clusters.far_apart(x, 3, covariance)
    peer = peer_from(start, covariance).fit(x.numpy())
    model = MaximumLikelihoodMixture(3, covariance, start=start)
    fit = ingle.fit(
        model, maximum_likelihood_guide, x, steps=600, optim=FAST, compile="off", dtype=torch.float64, seed=1
    )
    found = Clusters(**fit.params)
    assert float(found.log_density(x).mean()) == pytest.approx(peer.score(x.numpy()), abs=1e-6)
    np.testing.assert_allclose(found.weights, peer.weights_, atol=1e-3)
    np.testing.assert_allclose(found.loc, peer.means_, atol=1e-3)
    squares = found.scale @ found.scale.mT if covariance == "full" else found.scale**2
    np.testing.assert_allclose(squares, peer.covariances_, atol=1e-3)


def trapped() -> Tensor:
    """Four clusters and an outlier, which the farthest point takes a component for, shape (121, 2)."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    x = (centres[:, None] + 0.15 * torch.randn(4, 30, 2, generator=generator)).reshape(-1, 2)
    return torch.cat([x, torch.tensor([[6.0, 6.0]])])


@pytest.mark.parametrize("covariance", ["spherical", pytest.param("full", marks=pytest.mark.long)])
def test_the_best_of_several_starts_is_taken(covariance: Covariance, where: dict[str, Any]) -> None:
    """Eight starts in one run: the best beats the first, and one fit from there has its ELBO and its labels."""
    x = trapped()
    many = GaussianMixture(4, covariance, starts=8)
    guide = GaussianMixtureGuide(many)
    search = ingle.fit(many, guide, x, steps=300, optim=FAST, compile="off", **where)
    on = {"dtype": search.dtype, "device": search.device}
    with search.active():
        best, elbo = guide.best(x.to(**on))
    assert elbo.shape == (8,)
    last = search.losses[-50:]
    assert -float(elbo.sum()) == pytest.approx(last.mean(), abs=0.02 * abs(last.mean()))
    assert (best.loc[1:, 0] >= best.loc[:-1, 0]).all()
    model = GaussianMixture(4, covariance)
    fits = {
        name: ingle.fit(
            model, GaussianMixtureGuide(model, start=start), x, steps=300, optim=FAST, compile="off", **where
        )
        for name, start in (("best", best), ("first", None))
    }
    assert fits["best"].elbo[0] > float(elbo.max()) - 2.0
    assert fits["best"].elbo[0] >= fits["first"].elbo[0] - 1.0


def test_the_search_escapes_what_the_farthest_points_fall_into(where: dict[str, Any]) -> None:
    many = MaximumLikelihoodMixture(4, "spherical", starts=8)
    x = trapped()
    fit = ingle.fit(many, maximum_likelihood_guide, x, steps=300, optim=FAST, compile="off", **where)
    found = Clusters(**fit.params).log_density(x.to(fit.device, fit.dtype)).sum(-1)
    assert float(found.max()) > float(found[0]) + 10.0


def test_sampled_assignments_find_what_summing_them_out_finds(where: dict[str, Any]) -> None:
    """Score-function gradients of 24 assignments find the same clusters, by a lower bound that is lower."""
    x, model = three_clusters(8), GaussianMixture(3)
    options: Any = {"steps": 200, "compile": "off", **where}
    exact = ingle.fit(model, GaussianMixtureGuide(model), x, **options)
    sampled = ingle.fit(model, GaussianMixtureGuide(model, assignments="sampled"), x, **options)
    assert (exact.objective, sampled.objective) == ("TraceEnum_ELBO", "RLOO_ELBO")
    ours, theirs = (fit.draws(1_000)["loc"] for fit in (sampled, exact))
    assert float(((ours.mean(0) - theirs.mean(0)) / theirs.std(0)).abs().max()) < 0.5
    assert sampled.elbo[0] < exact.elbo[0] + 3 * math.hypot(exact.elbo[1], sampled.elbo[1])
    component = sampled.draws(200)["component"]
    assert component.shape == (200, 24)
    soft = model.clusters(exact.draws(200)).responsibilities(x.to(theirs)).mean(0)
    drawn = torch.nn.functional.one_hot(component, 3).to(soft).mean(0)
    assert (drawn.argmax(-1) == soft.argmax(-1)).all()


def test_three_components_are_found_as_scikit_learn_finds_them() -> None:
    x = three_clusters()
    model = GaussianMixture(3)
    fit = ingle.fit(model, GaussianMixtureGuide(model), x, steps=600, optim=FAST)
    ours = fit.draws(500)["loc"].mean(0).double()
    theirs = torch.tensor(Peer(3, covariance_type="diag", random_state=0).fit(x.numpy()).means_)
    assert float((ours - theirs[theirs[:, 0].argsort()]).abs().max()) < 0.1


@pytest.mark.long
def test_particles_may_be_vectorised() -> None:
    objective = pyro.infer.TraceEnum_ELBO(num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    for covariance in COVARIANCES:
        model = GaussianMixture(2, covariance)
        for guide in ("normal", GaussianMixtureGuide(model)):
            fit = ingle.fit(model, guide, old_faithful(), objective=objective, batch_size={"point": 33}, steps=3)
            assert fit.steps == 3


def test_new_points_and_points_from_the_prior() -> None:
    model = GaussianMixture(2, "full")
    fit = ingle.fit(model, GaussianMixtureGuide(model), old_faithful(), steps=5)
    drawn = fit.predict(torch.zeros(7, 2) + torch.arange(7.0)[:, None], 11, new=("point",))
    assert drawn["x"].shape == (11, 7, 2)
    assert drawn["component"].shape == (11, 7)
    assert model(size=(9, 4)).shape == (9, 4)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_bad_points_are_refused_in_words(covariance: Covariance) -> None:
    model = GaussianMixture(3, covariance)
    guide = GaussianMixtureGuide(model)
    few = torch.tensor([[0.0, 0.0], [1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match=r"3 components for 2 different points \(3 rows\)"):
        ingle.fit(model, guide, few, steps=1)
    constant = torch.cat([three_clusters(), torch.ones(180, 1)], 1)
    with pytest.raises(ValueError, match="column 2 of x has the same value in all 180 rows"):
        ingle.fit(model, guide, constant, steps=1)
    with pytest.raises(ValueError, match=r"x must have shape \(N, D\).* for one column, x\[:, None\]"):
        ingle.fit(model, guide, torch.arange(9.0), steps=1)
    with pytest.raises(ValueError, match=r"floating-point numbers, got torch\.int64: x\.double"):
        ingle.fit(model, guide, (10 * three_clusters()).long(), steps=1)


def test_a_start_of_another_mixture_is_refused_in_words() -> None:
    x, model = three_clusters(), GaussianMixture(3, "full")
    for start, words in (
        (
            Clusters.far_apart(x, 3),
            r"\(3,\), \(3, 2\), \(3, 2\), and 3 components .* need \(3,\), \(3, 2\), \(3, 2, 2\)",
        ),
        (Clusters.far_apart(x, 2, "full"), r"\(2,\), \(2, 2\), \(2, 2, 2\), and 3 components of 2 columns"),
        (Clusters.far_apart(x, 3, "full", starts=4), r"shapes \(4, 3\),"),
    ):
        with pytest.raises(ValueError, match=words):
            ingle.fit(model, GaussianMixtureGuide(model, start=start), x, steps=1)
        with pytest.raises(ValueError, match=words):
            ingle.fit(MaximumLikelihoodMixture(3, "full", start=start), maximum_likelihood_guide, x, steps=1)


def test_bad_options_are_refused_in_words() -> None:
    with pytest.raises(ValueError, match="'spherical', 'diagonal' or 'full', got 'tied'"):
        GaussianMixture(2, "tied")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="num_components must be at least 1, got 0"):
        MaximumLikelihoodMixture(0)
    with pytest.raises(ValueError, match="'summed out' or 'sampled', got 'drawn'"):
        GaussianMixtureGuide(GaussianMixture(2), assignments="drawn")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"give x of shape \(N, D\), or size"):
        GaussianMixture(2)()
