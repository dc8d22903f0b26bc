"""Image completion: the Gaussian case exactly, training with missing pixels, digits of which half was seen."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.distributions import MultivariateNormal

import ingle
from ingle.guides.image_completion import ImageCompletionGuide
from ingle.models.image_completion import ImageCompletion
from ingle.models.vae import VAE

NOISE = 0.5
TOP = torch.arange(64) < 32


def linear(device: torch.device) -> tuple[ImageCompletionGuide, ingle.Fit, Tensor, Tensor]:
    """x = W z + b + noise with parameters set by hand, a guide that looks at nothing, and three images, other masks."""
    torch.manual_seed(0)
    model = ImageCompletion(VAE(4, latent_dim=2, hidden=(), likelihood="normal"))
    guide = ImageCompletionGuide(model)
    seen = torch.tensor([[True, False, False, True], [False, True, True, False], [True, True, True, False]])
    x = torch.tensor([[1.0, 0.5, 0.3, 2.0], [2.5, 0.0, 1.0, 3.0], [0.0, -2.3, 1.2, 0.7]])
    fit = ingle.fit(model, guide, (x, seen), steps=1, dtype=torch.float64, device=device)
    with torch.no_grad():
        for parameter in guide.encoder.parameters():
            parameter.zero_()
        parameter[2:] = math.log(math.expm1(1.2))  # q(z) = Normal(0, 1.2), whatever was seen
        weight, bias = model.vae.decoder[0].parameters()
        weight.copy_(torch.tensor([[1.5, 0.0], [1.0, 1.0], [0.0, -1.0], [1.0, 0.5]]))
        bias.copy_(torch.tensor([0.5, -1.0, 0.0, 2.0]))
    return guide, fit, x.to(fit.device, fit.dtype), seen.to(fit.device)


def conditional(guide: ImageCompletionGuide, x: Tensor, seen: Tensor) -> tuple[MultivariateNormal, Tensor]:
    """p(missing | seen) of one image, and its part that is the spread of the expected values."""
    weight, bias = (parameter.detach().double().cpu() for parameter in guide.model.vae.decoder[0].parameters())
    x, seen = x.cpu(), seen.cpu()
    joint = weight @ weight.T + NOISE**2 * torch.eye(4).double()
    gain = joint[~seen][:, seen] @ torch.linalg.inv(joint[seen][:, seen])
    covariance = joint[~seen][:, ~seen] - gain @ joint[seen][:, ~seen]
    mean = bias[~seen] + gain @ (x - bias)[seen]
    return MultivariateNormal(mean, covariance), covariance - NOISE**2 * torch.eye(len(mean)).double()


@pytest.mark.parametrize("refine", [0, 200])
def test_gaussian_completions_are_exact(refine: int, device: torch.device) -> None:
    """Mean and covariance within 5 standard errors: one of 40 numbers outside once in 40,000 seeds.

    A mean over M of the S codes has the variance v (1/M + 1/ESS), where weights and values are not too dependent.
    """
    guide, fit, x, seen = linear(device)
    torch.manual_seed(1)
    with fit.active():
        pyro.get_param_store()["scale"] = torch.tensor(NOISE)
        found = guide.complete(x, seen, num_completions=20_000, num_samples=20_000, refine=refine)
        log_p, se, ess = guide.log_missing(x, seen, num_samples=20_000, refine=refine)
        score = guide.score(x, seen, num_samples=20_000, refine=refine)
        alone = guide.score(x, seen, num_samples=20_000, weighted=False)
    assert bool((found.x == x)[:, seen].all())
    assert bool((found.expected == x)[seen].all())
    for place in range(3):
        known, spread = conditional(guide, x[place], seen[place])
        drawn = found.x[:, place][:, ~seen[place]].cpu()
        share = 1 / 20_000 + 1 / float(found.ess[place])
        off = (drawn.mean(0) - known.mean) / (known.variance * share).sqrt()
        assert float(off.abs().max()) < 5
        sd = (known.variance[:, None] * known.variance + known.covariance_matrix**2).sqrt() * math.sqrt(share)
        assert float(((drawn.T.cov() - known.covariance_matrix) / sd).abs().max()) < 5
        off = (found.expected[place][~seen[place]].cpu() - known.mean) / (
            spread.diagonal() / found.ess[place].cpu()
        ).sqrt()
        assert float(off.abs().max()) < 5
        exact = float(known.log_prob(x[place][~seen[place]].cpu()))
        assert float(log_p[place]) == pytest.approx(exact, abs=5 * float(se[place]))
        assert float(score[place]) == pytest.approx(exact, abs=0.1)
        assert abs(float(alone[place]) - exact) > 0.2
    assert min(float(found.ess.min()), float(ess.min())) > 300
    assert float(se.max()) < 0.06
    if refine:  # four fifths of the codes are then from the posterior itself, and no weight is above 5/4 of the mean
        assert float(found.ess.min()) > 0.75 * 20_000
        assert float(se.max()) < 0.006


@pytest.mark.parametrize("refine", [0, 400])
def test_both_answers_are_completed_where_two_are_possible(refine: int, where: dict[str, Any]) -> None:
    """Of (z^2, z) the square is seen, 4: z is 2 or -2, half of each within 5 standard errors, which no normal holds."""

    class Square(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.shift = torch.nn.Parameter(torch.zeros(()))

        def forward(self, z: Tensor) -> Tensor:
            return torch.stack([z**2, z], -1).reshape(*z.shape[:-1], 1, 2) + 0 * self.shift

    model = ImageCompletion(VAE(2, 1, likelihood="normal"))
    model.vae.decoder = Square()
    guide = ImageCompletionGuide(model, hidden=())
    x, seen = torch.tensor([[4.0, torch.nan]]), torch.tensor([True, False])
    fit = ingle.fit(model, guide, (x, seen), steps=1, **where)
    with torch.no_grad():
        for parameter in guide.encoder.parameters():
            parameter.zero_()
        parameter[1:] = 2.0
    with fit.active():
        pyro.get_param_store()["scale"] = torch.tensor(0.3)
        found = guide.complete(x.to(fit.device, fit.dtype), seen.to(fit.device), 2_000, 20_000, refine)
    z = found.z.flatten().cpu()
    assert float((z.abs() - 2).abs().max()) < 1
    se = 0.5 * (1 / 2_000 + 1 / float(found.ess)) ** 0.5
    assert float((z > 0).double().mean()) == pytest.approx(0.5, abs=5 * se)
    assert se < 0.03


def test_evidence_of_two_masks_is_the_recipe(device: torch.device) -> None:
    """Of the guide's docstring, by the library, against the closed form: each within 5 standard errors."""
    guide, fit, x, seen = linear(device)
    with fit.active():
        pyro.get_param_store()["scale"] = torch.tensor(NOISE)
        both = [
            ingle.log_evidence(guide.model, guide, (x, mask), num_samples=20_000, per="data").pointwise
            for mask in (torch.ones_like(seen), seen)
        ]
    whole, part = (one for one in both if one is not None)
    log_p, se = whole.log_z - part.log_z, np.hypot(whole.se, part.se)
    for place in range(3):
        known, _ = conditional(guide, x[place], seen[place])
        assert log_p[place] == pytest.approx(float(known.log_prob(x[place][~seen[place]].cpu())), abs=5 * se[place])
        assert se[place] < 0.06


@pytest.mark.parametrize("likelihood", ["normal", "bernoulli", "categorical"])
def test_missing_values_never_matter(likelihood: Any, where: dict[str, Any]) -> None:
    """To the bit: losses, evidence, completions, whatever stands in the missing places."""
    seen = torch.rand(20, 6) < 0.6
    seen[:, 0] = True
    x = (torch.rand(20, 6) > 0.5).double()
    kinds = [x, x.masked_fill(~seen, torch.nan), x.masked_fill(~seen, -torch.inf), x.masked_fill(~seen, 1e9)]
    if likelihood == "categorical":
        kinds = [x.long(), x.long().masked_fill(~seen, -1), x.long().masked_fill(~seen, 10**9)]
    results = []
    for values in kinds:
        torch.manual_seed(0)
        model = ImageCompletion(VAE(6, 2, hidden=(8,), likelihood=likelihood, levels=3))
        guide = ImageCompletionGuide(model)
        fit = ingle.fit(model, guide, (values, seen), steps=5, **where)
        torch.manual_seed(2)
        with fit.active():
            moved = values.to(fit.device, fit.dtype) if values.is_floating_point() else values.to(fit.device)
            done = guide.complete(moved, seen.to(fit.device), num_samples=50, refine=3)
        hidden = ~seen.to(fit.device)
        assert bool((done.x[:, ~hidden] == moved[~hidden]).all())
        results.append((fit.losses.tolist(), fit.log_evidence(200).log_z, done.x.tolist(), done.expected.tolist()))
    assert all(other == results[0] for other in results[1:])
    assert np.isfinite(results[0][0]).all()


def incomplete() -> tuple[Tensor, Tensor]:
    """600 rows of six columns from two factors, of which 30% of the numbers are missing at random."""
    source = torch.Generator().manual_seed(4)
    weight = torch.tensor([[1.5, 0.0], [1.0, 1.0], [0.0, -1.5], [1.0, 0.5], [-1.0, 1.0], [0.5, 0.5]]).double()
    z = torch.randn(600, 2, generator=source).double()
    x = z @ weight.T + torch.tensor([1.0, 0.0, -1.0, 0.5, 0.0, 2.0]) + NOISE * torch.randn(600, 6, generator=source)
    seen = torch.rand(600, 6, generator=source) < 0.7
    seen[~seen.any(1), 0] = True
    return x.masked_fill(~seen, torch.nan), seen


def observed(x: Tensor, seen: Tensor, weight: Tensor, bias: Tensor, scale: Tensor) -> Tensor:
    """The marginal of factor analysis at the numbers seen, in nats a row; missing ones have a variance of their own."""
    both = (seen[:, :, None] & seen[:, None, :]).double()
    covariance = both * (weight @ weight.T) + torch.diag_embed(torch.where(seen, scale**2, 1.0))
    gap = torch.where(seen, x - bias, 0.0)
    flat = MultivariateNormal(torch.zeros(x.shape[1]).double(), covariance).log_prob(gap)
    return (flat + 0.5 * math.log(2 * math.pi) * (~seen).sum(1)).mean()


@functools.cache
def highest() -> float:
    """The log likelihood of what was seen at its maximum, climbed directly."""
    x, seen = incomplete()
    torch.manual_seed(0)
    values = [torch.randn(6, 2).double(), torch.zeros(6).double(), torch.ones(()).double()]
    for value in values:
        value.requires_grad_()
    optimiser = torch.optim.LBFGS(values, max_iter=300, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def loss() -> Tensor:
        optimiser.zero_grad()
        lost = -observed(x, seen, *values)
        lost.backward()
        return lost

    optimiser.step(loss)
    return -float(loss().detach())


def at(fit: ingle.Fit, model: ImageCompletion) -> float:
    x, seen = incomplete()
    weight, bias = (parameter.detach().double().cpu() for parameter in model.vae.decoder[0].parameters())
    return float(observed(x, seen, weight, bias, fit.params["scale"].double().cpu()))


def test_training_with_missing_numbers_is_maximum_likelihood() -> None:
    """With the exact posterior as the guide, the ELBO is log p(seen): the fit has to find its maximum to rounding."""
    x, seen = incomplete()
    torch.manual_seed(0)
    model = ImageCompletion(VAE(6, 2, hidden=(), likelihood="normal"))

    def exact(x: Tensor, seen: Tensor) -> None:
        weight, bias = model.vae.decoder[0].parameters()
        scale = pyro.param("scale", torch.ones(()), constraint=dist.constraints.softplus_positive)
        scaled = seen.to(x.dtype)[:, :, None] * weight / scale**2
        covariance = torch.linalg.inv(torch.eye(2) + scaled.mT @ weight)
        loc = (covariance @ scaled.mT @ torch.where(seen, x - bias, 0.0)[:, :, None]).squeeze(-1)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.MultivariateNormal(loc, covariance))

    adam = pyro.optim.ExponentialLR({"optimizer": torch.optim.Adam, "optim_args": {"lr": 0.1}, "gamma": 0.985})
    fit = ingle.fit(model, exact, (x, seen), optim=adam, steps=500, dtype=torch.float64, compile="off")
    assert highest() - 1e-4 < at(fit, model) < highest() + 1e-6
    assert -fit.losses[-1] / 600 == pytest.approx(highest(), abs=1e-4)


def test_encoder_learns_from_missing_numbers(where: dict[str, Any]) -> None:
    """The shipped guide, which has to learn 63 masks and has no correlations: within 0.05 nats a row of the maximum.

    Zeros taken for data cost more than ten times as much.
    """
    x, seen = incomplete()
    adam = functools.partial(torch.optim.Adam, lr=1e-2)
    lost = []
    for values, mask, steps in ((x, seen, 700), (x.nan_to_num(), torch.ones_like(seen), 300)):
        torch.manual_seed(0)
        model = ImageCompletion(VAE(6, 2, hidden=(), likelihood="normal"))
        guide = ImageCompletionGuide(model, hidden=(32,))
        fit = ingle.fit(model, guide, (values, mask), optim=adam, steps=steps, compile="off", **where)
        lost.append(highest() - at(fit, model))
    assert lost[0] < 0.05
    assert lost[1] > 0.5


def digits(steps: int, where: dict[str, Any], latent_dim: int = 8, hidden: int = 64) -> tuple[Any, ...]:
    """Trained on 1,500 digits, each whole and with its bottom half hidden; the others held out."""
    bits = torch.tensor(load_digits().data > 7.5, dtype=torch.float64)
    order = torch.randperm(len(bits), generator=torch.Generator().manual_seed(0))
    train, held = bits[order[:1_500]], bits[order[1_500:]]
    seen = torch.cat([torch.ones(1_500, 64, dtype=torch.bool), TOP.expand(1_500, 64)])
    torch.manual_seed(0)
    model = ImageCompletion(VAE(64, latent_dim, hidden=(hidden,)))
    guide = ImageCompletionGuide(model)
    adam = functools.partial(torch.optim.Adam, lr=5e-3 if steps < 1_000 else 1e-3)
    data = (train.repeat(2, 1), seen)
    fit = ingle.fit(model, guide, data, batch_size={"data": 128}, optim=adam, steps=steps, **where)
    return guide, fit, held.to(fit.device, fit.dtype), train.mean(0).clamp(1e-3, 1 - 1e-3)


def held_out(results: tuple[Any, ...], mask: Tensor, steps: int) -> dict[str, Tensor]:
    """Log p(missing | seen) of each held-out digit in nats by three kinds of codes, and the ESS of the last."""
    guide, fit, held, rates = results
    seen, found = mask.to(held.device), {}
    with fit.active():
        for name, refine, weighted in (("encoded", 0, False), ("weighed", 0, True), ("refined", steps, True)):
            torch.manual_seed(1)
            found[name] = guide.score(held, seen, 500, refine, weighted=weighted).cpu()
        log_p, _, ess = guide.log_missing(held, seen, 500, steps)
        found |= {"log_p": log_p.cpu(), "ess": ess.cpu()}
    means = torch.distributions.Bernoulli(rates).log_prob(held.double().cpu())[:, ~mask].sum(1)
    return {"means": means, **found}


def gain(found: dict[str, Tensor], of: str, over: str) -> float:
    """In nats a digit, less four standard errors: below the true one in all but one of 30,000 samples of digits."""
    each = found[of] - found[over]
    return float(each.mean() - 4 * each.std() / len(each) ** 0.5)


def test_bottom_half_given_top_half_beats_pixel_means(where: dict[str, Any]) -> None:
    """And where the encoder never saw the mask, only the top half missing, its codes want their weights."""
    results = digits(600, {**where, "compile": "off"})
    found, other = held_out(results, TOP, 30), held_out(results, ~TOP, 30)
    for name in ("weighed", "refined", "log_p"):
        assert gain(found, name, "means") > 1.5
        assert gain(other, name, "means") > 1
        assert gain(other, name, "encoded") > 0.2
    assert float((found["weighed"] - found["encoded"]).mean()) > 0


@pytest.mark.long
def test_trained_for_longer_it_beats_pixel_means_by_more(where: dict[str, Any]) -> None:
    """With another mask this encoder is far off, which its ESS says and steps of refinement mend."""
    results = digits(8_000, where, 12, 256)
    found, other = held_out(results, TOP, 100), held_out(results, ~TOP, 100)
    for each in (found, other):
        print({name: round(float(value.mean()), 3) for name, value in each.items()})
        assert gain(each, "refined", "means") > 3
        assert gain(each, "log_p", "means") > 3
        assert float((each["weighed"] - each["encoded"]).mean()) > 0
        assert gain(each, "log_p", "encoded") > 0
        assert float(each["ess"].quantile(0.1)) > 50
    assert gain(found, "weighed", "means") > 3
    assert gain(other, "refined", "encoded") > 3
    guide, fit, held, _ = results
    with fit.active():
        assert float(guide.complete(held, ~TOP.to(held.device), 1, 500).ess.quantile(0.5)) < 20


def test_images_and_levels_through_convolutions(where: dict[str, Any]) -> None:
    """One mask for all, integers of 17 levels; seen pixels are kept, the others are levels."""
    x = torch.tensor(load_digits().images[:60]).long().unsqueeze(1)
    top = TOP.reshape(1, 8, 8)
    torch.manual_seed(0)
    vae = VAE((1, 8, 8), 3, hidden=(4, 8), likelihood="categorical", architecture="convolutional", levels=17)
    guide = ImageCompletionGuide(ImageCompletion(vae))
    fit = ingle.fit(guide.model, guide, (x, top), batch_size={"data": 20}, steps=5, compile="off", **where)
    x, top = x.to(fit.device), top.to(fit.device)
    with fit.active():
        found = guide.complete(x, top, num_completions=2, num_samples=20)
        whole, se, _ = guide.log_missing(x, torch.ones_like(top), num_samples=20)
    assert found.x.shape == (2, 60, 1, 8, 8)
    assert found.z.shape == (2, 60, 3)
    assert found.x.dtype == x.dtype
    assert bool((found.x[:, :, :, :4] == x[:, :, :4]).all())
    assert int(found.x.max()) <= 16
    assert bool(((found.ess >= 1) & (found.ess <= 20 + 1e-6)).all())
    assert fit.predict((x[:7], top), 3, new=("data",))["x"].shape == (3, 7, 1, 8, 8)
    assert not whole.any()
    assert not se.any()


def test_mixture_as_the_prior_is_weighed_too(where: dict[str, Any]) -> None:
    """log p(seen) of `complete` is that of the library, within 5 standard errors of both."""
    x = torch.tensor(load_digits().data[:50] > 7.5).double()
    torch.manual_seed(0)
    model = ImageCompletion(VAE(64, 2, components=3))
    guide = ImageCompletionGuide(model)
    fit = ingle.fit(model, guide, (x, TOP), steps=100, compile="off", **where)
    evidence = fit.log_evidence(4_000, per="data").pointwise
    assert evidence is not None
    with fit.active():
        found = guide.complete(x.to(fit.device, fit.dtype), TOP.to(fit.device), num_samples=4_000)
    se = np.hypot(found.log_seen_se.cpu().numpy(), evidence.se)
    assert (np.abs(found.log_seen.cpu().numpy() - evidence.log_z) < 5 * se).all()


@pytest.mark.long
def test_compiled_minibatches(where: dict[str, Any]) -> None:
    x, seen = incomplete()
    model = ImageCompletion(VAE(6, 2, hidden=(8,), likelihood="normal"))
    batches: dict[str, Any] = {"batch_size": {"data": 100}, "steps": 60, "compile": "full", **where}
    fit = ingle.fit(model, ImageCompletionGuide(model), (x, seen), **batches)
    assert fit.engine.startswith("compiled")
    assert fit.losses[-10:].mean() < 0.95 * fit.losses[:10].mean()


def small() -> tuple[ImageCompletionGuide, Tensor, Tensor]:
    torch.manual_seed(0)
    return ImageCompletionGuide(ImageCompletion(VAE(4, 2))), torch.ones(5, 4), torch.ones(5, 4, dtype=torch.bool)


def test_mask_that_hides_all_is_refused() -> None:
    guide, x, seen = small()
    seen[3] = False
    told = r"hides every pixel of 1 of the 5 images, the first image 3: nothing is left"
    for call in (guide, guide.model, guide.encode, guide.complete, guide.log_missing, guide.score):
        with pytest.raises(ValueError, match=told):
            call(x, seen)
    with pytest.raises(ValueError, match="hides every pixel of 5 of the 5 images"):
        guide.complete(x, torch.zeros(4, dtype=torch.bool))
    with pytest.raises(ingle.ProgramError, match=told):
        ingle.fit(guide.model, guide, (x, seen), steps=1)


def test_bad_input_is_refused_in_words() -> None:
    guide, x, seen = small()
    with pytest.raises(ValueError, match=r"shape \(N, 4\), since data_shape is that; got \(5, 3\)"):
        guide.complete(x[:, :3], seen[:, :3])
    with pytest.raises(ValueError, match=r"for one datum give x\[None\]"):
        guide.complete(x[0], seen[0])
    with pytest.raises(ValueError, match=r"shape of x, \(5, 4\), or \(4,\) for one mask for all images; got \(5, 3\)"):
        guide.complete(x, seen[:, :3])
    with pytest.raises(ValueError, match=r"must be bool.*got torch\.float32: give seen == 1"):
        guide.complete(x, seen.float())
    seen[1, 2] = False
    x[1, 2] = 7.0  # in a missing place, so nobody's business
    guide.complete(x, seen, num_samples=10)
    x[2, 1] = 3.0
    with pytest.raises(ValueError, match=r"must be 0 or 1.*1 of its 20 values are not, the first 3 at \[2, 1\]"):
        guide.complete(x, seen)
    x[2, 1] = torch.nan
    with pytest.raises(ValueError, match=r"1 of the 19 pixels that seen calls seen are NaN.*first at \[2, 1\]: mark"):
        guide.complete(x, seen)
    x[2, 1] = 1.0
    with pytest.raises(ValueError, match="must be 0 or 1"):
        guide.log_missing(x, seen)  # of images that have to be whole
    with pytest.raises(ValueError, match="num_samples must be a whole number of 1 or more, got 0"):
        guide.complete(x, seen, num_samples=0)
    with pytest.raises(ValueError, match="conditional on 3"):
        ImageCompletion(VAE(4, 2, num_labels=3))


def test_a_scale_that_is_not_fitted_is_not_made_up(where: dict[str, Any]) -> None:
    model = ImageCompletion(VAE(4, 2, likelihood="normal"))
    guide = ImageCompletionGuide(model)
    x, seen = torch.randn(5, 4), torch.tensor([True, True, False, True])
    fit = ingle.fit(model, guide, (x, seen), steps=2, compile="off", **where)
    x, seen = x.to(fit.device, fit.dtype), seen.to(fit.device)
    for ask in (guide.complete, guide.log_missing, guide.score):
        with pytest.raises(ValueError, match=r"no fitted scale in Pyro's store: .* inside `with fit.active\(\):`"):
            ask(x, seen)
        with fit.active():
            ask(x, seen)
    assert "scale" not in pyro.get_param_store()
