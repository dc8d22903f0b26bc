"""The hierarchical autoencoder: the exact posterior of linear layers, what each layer costs, and digits held out."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from pyro.optim import ExponentialLR
from sklearn.datasets import load_digits, load_iris
from torch import Tensor
from torch.distributions import LowRankMultivariateNormal, MultivariateNormal

import ingle
from ingle.guides.hierarchical_vae import HierarchicalVAEBottomUpGuide, HierarchicalVAELadderGuide
from ingle.guides.vae import VAEGuide
from ingle.models.factor_analysis import FactorAnalysis
from ingle.models.hierarchical_vae import ConditionalNormal, HierarchicalVAE
from ingle.models.vae import VAE
from ingle.objectives import STL_ELBO, Anneal, Trace_ELBO, TraceMeanField_ELBO

ADAM = functools.partial(torch.optim.Adam, lr=2e-3)
GUIDES = (HierarchicalVAEBottomUpGuide, HierarchicalVAELadderGuide)
SCALES = torch.tensor([0.5, 0.9, 0.7]).double()  # of z1 given z2


def put(layer: Any, weight: Tensor, bias: Tensor, scale: Tensor | None = None) -> None:
    """Give a linear map, and the constant scale beside it, values."""
    linear = layer.network[0] if isinstance(layer, ConditionalNormal) else layer[0]
    with torch.no_grad():
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)
        if scale is not None:
            above_floor = scale - 1e-4
            layer.raw_scale.copy_(above_floor + torch.log(-torch.expm1(-above_floor)))


def exact(kind: Any) -> tuple[HierarchicalVAE, Any, Tensor]:
    """z2 of 2 numbers, z1 of 3, x of 5, all linear, the noise of x 1, and a guide that is the posterior.

    Independent normals can be the posterior where its precisions are diagonal, which the maps are chosen for.
    """
    torch.manual_seed(4)
    model = HierarchicalVAE(5, (3, 2), hidden=(), likelihood="normal").double()
    guide = kind(model).double()
    x = 2.0 * torch.randn(7, 5).double()
    turn, wide = (torch.linalg.qr(torch.randn(rows, cols).double())[0] for rows, cols in ((3, 2), (5, 3)))
    bias, mean = torch.randn(3).double(), torch.randn(5).double()
    strength, size = torch.tensor([1.5, 0.8]).double(), torch.tensor([1.2, 0.6, 2.0]).double()
    if kind is HierarchicalVAELadderGuide:
        loading = wide * size
        seen = SCALES.square() + size**-2  # of what x alone says of z1, given z2
        above = seen.sqrt().unsqueeze(-1) * turn * strength
        inverse = (loading / size.square()).T
        put(guide.heads[0], inverse, -inverse @ mean, 1 / size)
        to_top = (above / seen.unsqueeze(-1)).T / (1 + strength.square()).unsqueeze(-1)
        put(guide.heads[1], to_top @ inverse, -to_top @ (inverse @ mean + bias), (1 + strength.square()).rsqrt())
    else:
        above = SCALES.unsqueeze(-1) * turn * strength
        before = torch.linalg.inv(above @ above.T + SCALES.square().diag())
        precision = torch.tensor([5.0, 6.0, 8.0]).double()
        loading = wide @ torch.linalg.cholesky(precision.diag() - before).T
        to_first = loading.T / precision.unsqueeze(-1)
        put(guide.ascent[0], to_first, -to_first @ mean + before @ bias / precision, precision.rsqrt())
        to_top = (above / SCALES.square().unsqueeze(-1)).T / (1 + strength.square()).unsqueeze(-1)
        put(guide.ascent[1], to_top, -to_top @ bias, (1 + strength.square()).rsqrt())
    put(model.decoder, loading, mean)
    put(model.descent[0], above, bias, SCALES)
    return model, guide, x


def marginal(model: HierarchicalVAE, noise: float = 1.0) -> tuple[MultivariateNormal, Tensor]:
    """The distribution of x of a linear model, and the covariance of all codes with x, the top one first."""
    with torch.no_grad():
        mean, joint = torch.zeros(model.latent_dims[-1]).double(), torch.eye(model.latent_dims[-1]).double()
        size = model.latent_dims[-1]
        for layer in range(model.layers - 1, -1, -1):
            linear = (model.descent[layer - 1].network if layer else model.decoder)[0]
            weight, bias = linear.weight.double().cpu(), linear.bias.double().cpu()
            given = torch.zeros(1, weight.shape[1]).to(linear.weight)
            scale = model.descent[layer - 1](given)[1][0].double().cpu() if layer else torch.full((len(bias),), noise)
            cross = weight @ joint[-size:]
            new = cross[:, -size:] @ weight.T + scale.double().square().diag()
            joint = torch.cat([torch.cat([joint, cross.T], 1), torch.cat([cross, new], 1)])
            mean, size = weight @ mean + bias, len(bias)
    return MultivariateNormal(mean, joint[-size:, -size:]), joint[:-size, -size:]


def frozen(model: Any, guide: Any, x: Tensor, device: torch.device, **options: Any) -> ingle.Fit:
    """A fit that moves nothing."""
    still = functools.partial(torch.optim.SGD, lr=0.0)
    options = {"steps": 3, "compile": "off", "dtype": torch.float64, **options}
    return ingle.fit(model, guide, x, optim=still, device=device, **options)


@pytest.mark.parametrize("kind", GUIDES)
def test_exact_posterior_of_two_linear_layers(kind: Any, device: torch.device) -> None:
    """Every weight is log p(x): so is every loss, and the estimate of the evidence."""
    model, guide, x = exact(kind)
    log_p = marginal(model)[0].log_prob(x)
    fit = frozen(model, guide, x, device)
    assert -fit.losses == pytest.approx(float(log_p.sum()), abs=1e-6)
    assert fit.log_evidence(100).verdict == "exact"
    assert fit.log_evidence(100, per="data").pointwise.log_z == pytest.approx(log_p.numpy(), abs=1e-6)


@pytest.mark.parametrize("kind", GUIDES)
def test_cost_of_each_layer_of_the_exact_posterior(kind: Any, device: torch.device) -> None:
    """In closed form: that of the top layer, and the sum, which is E[log p(x | z1)] - log p(x)."""
    model, guide, x = exact(kind)
    found, covariance = marginal(model)
    frozen(model, guide, x, device)
    error_of_x = x - found.mean
    means = error_of_x @ torch.linalg.solve(found.covariance_matrix, covariance.T)  # of z2, z1, without their own
    loading = model.decoder[0].weight.detach().double().cpu()
    first = torch.linalg.inv(
        loading.T @ loading + torch.linalg.inv(covariance_of_first(model))
    )  # of z1 given x, the same for all
    rest = error_of_x - means[:, 2:] @ loading.T
    fitted = -0.5 * (rest.square().sum(1) + (loading @ first @ loading.T).trace() + 5 * np.log(2 * np.pi))
    total = float((fitted - found.log_prob(x)).mean())
    above = model.descent[0].network[0].weight.detach().double().cpu()
    if kind is HierarchicalVAELadderGuide:
        top_mean, spread = means[:, :2], torch.zeros(2).double()
        inner = torch.eye(2) - covariance[:2] @ torch.linalg.solve(found.covariance_matrix, covariance[:2].T)
        variance = inner.diagonal()
    else:
        scaled = above.T / SCALES.square()
        variance = 1 / (1 + (scaled @ above).diagonal())
        to_top = variance.unsqueeze(-1) * scaled
        top_mean, spread = means[:, 2:] @ to_top.T, (to_top @ first @ to_top.T).diagonal()
    top = float(0.5 * (variance + spread + top_mean.square() - 1 - variance.log()).sum(1).mean())

    kl, error = guide.kl(x.to(device), 4_000)
    assert float(kl[1]) == pytest.approx(top, abs=4.5 * float(error[1]) + 1e-9)
    assert float(kl.sum()) == pytest.approx(total, abs=4.5 * float(error.sum()) + 1e-9)
    assert float(error.max()) < 0.02
    if kind is HierarchicalVAELadderGuide:
        assert float(error[1]) < 1e-9
    active = guide.activity(x.to(device), 2_000)
    assert torch.cat(active[::-1]).cpu() == pytest.approx(means.var(0), rel=0.1)


def covariance_of_first(model: HierarchicalVAE) -> Tensor:
    above = model.descent[0].network[0].weight.detach().double().cpu()
    return above @ above.T + SCALES.square().diag()


@pytest.mark.parametrize("kind", GUIDES)
def test_linear_fit_reaches_the_greatest_likelihood(kind: Any, device: torch.device) -> None:
    """Linear layers with one noise scale are probabilistic PCA, whose greatest likelihood has a closed form.

    Codes turn until independent normals are their posterior, so that the ELBO gets there as well: within 0.15 nats for
    150 rows, where learning rates end at a thousandth and leave 0.01 to 0.06.
    """
    columns = load_iris().data
    x = torch.tensor((columns - columns.mean(0)) / columns.std(0))
    pca = FactorAnalysis(4, 2, noise="isotropic").closed_form(x)
    noise = pca["noise_scale"].square().expand(4)
    best = float(LowRankMultivariateNormal(pca["mean"], pca["loading"], noise).log_prob(x).sum())
    torch.manual_seed(0)
    model = HierarchicalVAE(4, (2, 1), hidden=(), likelihood="normal")
    fit = ingle.fit(
        model,
        kind(model),
        x,
        objective=STL_ELBO(),
        optim=ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.05}, "gamma": 1e-3 ** (1 / 800)}),
        steps=800,
        compile="off",
        dtype=torch.float64,
        device=device,
    )
    log_p = float(marginal(model, float(fit.params["scale"]))[0].log_prob(x).sum())
    assert best - 0.05 < log_p < best + 1e-9
    assert fit.elbo[0] == pytest.approx(best, abs=0.15)
    evidence = fit.log_evidence(500, per="data")
    assert evidence.log_z == pytest.approx(log_p, abs=4.5 * evidence.se)
    assert evidence.se < 0.03


@pytest.mark.parametrize("kind", GUIDES)
def test_evidence_of_three_linear_layers(kind: Any, device: torch.device) -> None:
    """By importance sampling from a guide at random beside the closed form."""
    torch.manual_seed(1)
    model = HierarchicalVAE((2, 2), (2, 2, 1), hidden=(), likelihood="normal")
    guide, x = kind(model), torch.randn(6, 2, 2).double()
    for name, raw in guide.named_parameters():
        # Wider than the posterior, so that weights are bounded.
        torch.nn.init.constant_(raw, 1.0) if name.endswith("raw_scale") else raw.data.mul_(0.3)
    evidence = frozen(model, guide, x, device).log_evidence(20_000, per="data")
    assert evidence.pointwise is not None
    expected = marginal(model)[0].log_prob(x.flatten(1)).numpy()
    assert evidence.verdict in ("reliable", "costly")
    assert np.abs((evidence.pointwise.log_z - expected) / evidence.pointwise.se).max() < 4.5
    assert evidence.pointwise.se.max() < 0.1


@pytest.mark.parametrize("kind", GUIDES)
def test_one_layer_is_the_ordinary_autoencoder(kind: Any, where: dict[str, Any]) -> None:
    """The same networks from the same random numbers, so that the losses are the same."""
    x, losses = (torch.rand(20, 6) > 0.5).float(), []
    for make, encode in ((functools.partial(HierarchicalVAE, latent_dims=(2,)), kind), (VAE, VAEGuide)):
        torch.manual_seed(0)
        model = make(6, hidden=(5, 4))
        losses.append(ingle.fit(model, encode(model), x, steps=5, compile="off", **where).losses)
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_lower_layers_drawn_under_one_that_is_held(device: torch.device) -> None:
    """In a linear model the expected data given z2 are normal, around those of the mean of z1."""
    model, guide, x = exact(HierarchicalVAELadderGuide)
    frozen(model, guide, x, device)
    codes = guide.encode(x.to(device))
    drawn = model.redraw(codes["z2"].expand(4_000, -1, -1), 2).cpu()
    assert drawn.shape == (4_000, 7, 5)
    loading = model.decoder[0].weight.detach().cpu()
    covariance = loading @ SCALES.square().diag() @ loading.T
    away = (drawn.mean(0) - model.decode(codes["z2"], 2).cpu()) / (covariance.diagonal() / 4_000).sqrt()
    assert float(away.abs().max()) < 4.5
    assert (drawn - drawn.mean(0)).flatten(0, 1).T.cov() == pytest.approx(covariance, abs=0.1)
    np.testing.assert_array_equal(guide.reconstruct(x.to(device)).cpu(), model.decode(codes["z1"]).cpu())
    np.testing.assert_array_equal(guide.reconstruct(x.to(device), 2).cpu(), model.decode(codes["z2"], 2).cpu())
    fresh = model.generate(20_000).cpu()
    found, _ = marginal(model)
    error = (found.covariance_matrix.diagonal() / 20_000).sqrt()
    assert float(((fresh.mean(0) - found.mean) / error).abs().max()) < 4.5
    assert fresh.T.cov() == pytest.approx(found.covariance_matrix - torch.eye(5), rel=0.1, abs=0.3)


@pytest.mark.parametrize(("kind", "compile"), [
    (GUIDES[0], "off"),
    (GUIDES[1], "off"),
    pytest.param(GUIDES[1], "full", marks=pytest.mark.long),
])  # fmt: skip
def test_minibatches_with_warm_up(kind: Any, compile: Any, where: dict[str, Any]) -> None:
    x = (torch.rand(60, 6) > 0.5).float()
    torch.manual_seed(0)
    model = HierarchicalVAE(6, (3, 2), hidden=() if compile == "full" else (4,))
    fit = ingle.fit(
        model,
        kind(model),
        x,
        batch_size={"data": 16},
        objective=Trace_ELBO(kl_scale={"z1": Anneal(steps=20), "z2": Anneal(steps=40)}),
        steps=60,
        compile=compile,
        **where,
    )
    assert fit.engine == {"full": "compiled", "off": "eager"}[compile]
    draws = fit.draws(3)
    assert {name: tuple(value.shape) for name, value in draws.items()} == {"z2": (3, 60, 2), "z1": (3, 60, 3)}
    new = fit.predict(torch.zeros(4, 6), 3, new=("data",))
    assert {name: tuple(value.shape[1:]) for name, value in new.items()} == {"z2": (4, 2), "z1": (4, 3), "x": (4, 6)}


def test_analytic_divergences_suit_the_ladder(where: dict[str, Any]) -> None:
    """It draws in the model's order, so that the sum of divergences of each layer given those above is that of all."""
    model, guide, x = exact(HierarchicalVAELadderGuide)
    options = {"device": where["device"], "steps": 300, "objective": TraceMeanField_ELBO()}
    losses = frozen(model, guide, x, **options).losses
    expected = float(marginal(model)[0].log_prob(x).sum())
    assert -losses.mean() == pytest.approx(expected, abs=4.5 * losses.std() / 300**0.5)


def test_what_cannot_be_a_model_is_told() -> None:
    with pytest.raises(ValueError, match="latent_dims is empty: give the dimensions of at least one layer"):
        HierarchicalVAE(4, ())
    with pytest.raises(ValueError, match=r"whole numbers of 1 or more, one for each layer, got \(4, 0\)"):
        HierarchicalVAE(4, (4, 0))
    with pytest.raises(ValueError, match=r"as in \(3,\), got 3"):
        HierarchicalVAE(4, 3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"data_shape must be whole numbers of 1 or more, got \(8, 0\)"):
        HierarchicalVAE((8, 0))
    with pytest.raises(ValueError, match="hidden must be whole numbers of 1 or more"):
        HierarchicalVAE(4, hidden=(8, 0))
    with pytest.raises(ValueError, match="'bernoulli', 'normal'"):
        HierarchicalVAE(4, likelihood="poisson")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer must be from 1, nearest the data, to 2, the top; got 3"):
        HierarchicalVAE(4, (3, 2)).decode(torch.zeros(2), 3)
    with pytest.raises(ValueError, match=r"codes of layer 2 must have shape \(…, 2\), got \(5, 3\)"):
        HierarchicalVAE(4, (3, 2)).redraw(torch.zeros(5, 3), 2)
    with pytest.raises(ValueError, match="give the code above"):
        HierarchicalVAE(4, (3, 2)).prior(1)


@pytest.mark.parametrize("kind", GUIDES)
def test_data_and_guides_that_do_not_belong_are_told(kind: Any) -> None:
    torch.manual_seed(0)
    model = HierarchicalVAE((8, 8), (3, 2))
    guide, x = kind(model), torch.zeros(5, 8, 8)
    with pytest.raises(ValueError, match=f"{kind.__name__} is a guide of HierarchicalVAE, got VAE"):
        kind(VAE(64))
    with pytest.raises(ValueError, match="num_samples must be 2 or more"):
        guide.kl(x, 1)
    with pytest.raises(ValueError, match="layer must be from 1"):
        guide.reconstruct(x, 3)
    for ask in (guide.kl, guide.activity):
        with pytest.raises(ValueError, match=r"for one datum give x\[None\]"):
            ask(x[0])
    with pytest.raises(ValueError, match="2 or more of them and a draw, got 1 and 10"):
        guide.activity(x[:1])
    with pytest.raises(ValueError, match="must be 0 or 1"):
        guide.encode(x - 1)
    with pytest.raises(ValueError, match=r"x must have shape \(…, 8, 8\), since data_shape is that; got \(5, 64\)"):
        guide.encode(x.reshape(5, 64))
    for strange, told in (
        (torch.zeros(5, 8, 9), r"x must have shape \(N, 8, 8\)"),
        (torch.zeros(5, 64), r"give x.reshape\(-1, 8, 8\)"),
        (torch.full((5, 8, 8), 0.5), "must be 0 or 1 for likelihood 'bernoulli'"),
    ):
        with pytest.raises(ingle.IngleError, match=told):
            ingle.fit(model, guide, strange, steps=1)
    with pytest.raises(
        ingle.IngleError, match=r"'z1' has shape \(5, 4\) in the model and \(5, 3\) in the guide|another"
    ):
        ingle.fit(HierarchicalVAE((8, 8), (4, 2)), guide, x, steps=1)


def test_ladder_of_another_model_is_told() -> None:
    """Its networks would stay as they are: Pyro trains the first module of a name."""
    guide = HierarchicalVAELadderGuide(HierarchicalVAE(6, (3, 2)))
    with pytest.raises(ingle.IngleError, match="the guide was made for another HierarchicalVAE"):
        ingle.fit(HierarchicalVAE(6, (3, 2)), guide, torch.zeros(5, 6), steps=1)


def held_out(
    seen: Tensor, unseen: Tensor, latent_dims: tuple[int, ...], hidden: int, kind: Any, seed: int, **options: Any
) -> tuple[int, ingle.Evidence]:
    """Numbers that were trained, and the evidence of data that were not seen."""
    torch.manual_seed(seed)
    model = HierarchicalVAE(seen.shape[1], latent_dims, (hidden,), activation=options.pop("activation"))
    guide, draws = kind(model), options.pop("draws")
    warm_up = Trace_ELBO(kl_scale=Anneal(steps=options["steps"] // 2))
    fit = ingle.fit(model, guide, seen, objective=warm_up, seed=seed, **options)
    size = sum(parameter.numel() for module in (model, guide) for parameter in module.parameters())
    with fit.active():
        return size, ingle.log_evidence(model, guide, unseen.to(fit.device), num_samples=draws, per="data")


def test_two_layers_beat_one_on_prototypes(where: dict[str, Any]) -> None:
    """Ten patterns of 36 bits, one in twenty flipped: log p(x) is known, and two layers come nearer to it.

    Over four seeds one layer lacks 1.7 nats a datum of it, and the ladder with as many numbers 0.9 to 1.2.
    """
    random = torch.Generator().manual_seed(7)
    patterns = (torch.rand(10, 36, generator=random) > 0.5).float()
    x = patterns[torch.randint(0, 10, (1_500,), generator=random)]
    x = (x - (torch.rand(1_500, 36, generator=random) < 0.05).float()).abs()
    unseen = x[500:]
    away = (unseen.unsqueeze(1) - patterns).abs().sum(-1)
    true = torch.logsumexp(away * np.log(0.05) + (36 - away) * np.log(0.95), 1) - np.log(10)

    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    options = {"activation": "tanh", "steps": 600, "batch_size": {"data": 100}, "optim": adam, "compile": "off"}
    log_p, bounds, sizes = [], [], []
    for latent_dims, hidden, kind in (((4,), 24, GUIDES[0]), ((4, 2), 17, GUIDES[1])):
        size, evidence = held_out(x[:500], unseen, latent_dims, hidden, kind, 0, draws=200, **options, **where)
        assert evidence.pointwise is not None
        log_p.append(evidence.pointwise.log_z)
        bounds.append(evidence.pointwise.elbo)
        sizes.append(size)
    assert sizes[1] < sizes[0]
    for better, worse in ((log_p[1], log_p[0]), (bounds[1], bounds[0]), (true.numpy(), log_p[1])):
        gain = better - worse
        assert gain.mean() > 5 * gain.std() / len(gain) ** 0.5


@pytest.mark.long
def test_two_layers_beat_one_on_held_out_digits(where: dict[str, Any]) -> None:
    """Bound and log p(x) of 397 digits, in nats a digit: the same steps, minibatches and number of parameters."""
    bits = torch.tensor(load_digits().data > 7.5, dtype=torch.float32)
    order = torch.randperm(len(bits), generator=torch.Generator().manual_seed(1))
    seen, unseen = bits[order[:1_400]], bits[order[1_400:]]
    options = {"activation": "silu", "steps": 4_000, "batch_size": {"data": 128}, "optim": ADAM}
    ways = {"one": ((8,), 80, GUIDES[0]), "bottom-up": ((8, 4), 64, GUIDES[0]), "ladder": ((12, 4), 48, GUIDES[1])}
    bound: dict[str, list[float]] = {name: [] for name in ways}
    log_p: dict[str, list[float]] = {name: [] for name in ways}
    for name, way in ways.items():
        for seed in range(3):
            size, evidence = held_out(seen, unseen, *way, seed, draws=500, **options, **where)
            assert evidence.pointwise is not None
            assert size <= 12_400
            bound[name].append(float(evidence.pointwise.elbo.mean()))
            log_p[name].append(float(evidence.pointwise.log_z.mean()))
        for what, found in (("ELBO", bound[name]), ("log p", log_p[name])):
            print(f"{name:10} {what:6} {np.mean(found):.3f} sd {np.std(found, ddof=1):.3f}: {np.round(found, 3)}")
    for name in ("bottom-up", "ladder"):
        assert min(bound[name]) > max(bound["one"])
        assert min(log_p[name]) > max(log_p["one"])
