"""Weights on the divergence from the prior: annealing, factors by site and plate, free bits."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from objectives.programs import Y, differentiated, double, gradients, positive, real, score, score_guide
from pyro.infer import autoguide
from torch import Tensor

import ingle
from ingle import OptionError, ProgramError, objectives
from ingle.objectives import Anneal

SINGLE = [
    objectives.Trace_ELBO,
    objectives.TraceGraph_ELBO,
    objectives.TraceMeanField_ELBO,
    objectives.STL_ELBO,
    objectives.RLOO_ELBO,
]


@pytest.fixture(autouse=True)
def _double() -> Any:
    with double():
        yield


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, 0.5), obs=y)


def guide(y: Tensor) -> None:
    pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))
    with pyro.plate("data", len(y)):
        pyro.sample("z", dist.Normal(real("z_loc", 8), 0.6))


def by_hand(elbo: Any, factors: dict[str, float]) -> tuple[float, dict[str, Tensor]]:
    """The mean over particles of log p(y | z) - sum_j beta_j (log q_j - log p_j), its draws those of an objective."""
    pyro.clear_param_store()
    pyro.set_rng_seed(1)
    total: Any = 0.0
    for _ in range(elbo.num_particles):
        drawn = pyro.poutine.trace(guide).get_trace(Y)
        other = pyro.poutine.trace(pyro.poutine.replay(model, trace=drawn)).get_trace(Y)
        drawn.compute_log_prob()
        other.compute_log_prob()
        parts = [other.nodes["y"]["log_prob_sum"]]
        for name, factor in factors.items():
            divergence = drawn.nodes[name]["log_prob_sum"] - other.nodes[name]["log_prob_sum"]
            if isinstance(elbo, objectives.TraceMeanField_ELBO):
                divergence = torch.distributions.kl_divergence(drawn.nodes[name]["fn"], other.nodes[name]["fn"]).sum()
            parts.append(-factor * divergence)
        total = total + sum(parts) / elbo.num_particles
    (-total).backward()
    return float(-total.detach()), gradients()


@pytest.mark.parametrize("kind", SINGLE)
@pytest.mark.parametrize(
    ("scale", "factors"),
    [
        (0.3, {"mu": 0.3, "z": 0.3}),
        ({"mu": 0.2}, {"mu": 0.2, "z": 1.0}),
        ({"data": 4.0}, {"mu": 1.0, "z": 4.0}),
        ({"data": 4.0, "z": 0.0}, {"mu": 1.0, "z": 0.0}),
    ],
    ids=["all", "site", "plate", "site before plate"],
)
def test_factors(kind: Any, scale: Any, factors: dict[str, float]) -> None:
    elbo = kind(num_particles=2, kl_scale=scale)
    loss, found = differentiated(elbo, model, guide)
    expected, expected_found = by_hand(elbo, factors)
    assert loss == pytest.approx(expected, rel=1e-12)
    if kind is objectives.STL_ELBO:  # another gradient, of the same expectation
        return
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected_found[name], rtol=1e-11, atol=1e-12)


def test_sticking_the_landing_with_a_factor_has_no_noise_at_its_optimum() -> None:
    """Halving the divergence is fitting with the likelihood squared, whose posterior is known."""

    def conjugate(y: Tensor) -> None:
        mu = pyro.sample("mu", dist.Normal(0.0, 2.0))
        pyro.sample("y", dist.Normal(mu, 1.0).expand([8]).to_event(1), obs=y)

    precision = 1 / 4 + 2 * 8
    loc = 2 * Y.sum() / precision

    def exact(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(pyro.param("loc", loc), pyro.param("scale", torch.tensor(precision**-0.5))))

    for seed in range(5):
        _, found = differentiated(objectives.STL_ELBO(kl_scale=0.5), conjugate, exact, seed)
        assert all(float(gradient.abs().max()) < 1e-12 for gradient in found.values())


def test_score_functions_weigh_as_well() -> None:
    """A factor is a scale of the latents' terms in model and guide."""

    def scaled(program: Any) -> Any:
        def weighed(y: Tensor) -> None:
            with pyro.poutine.scale(scale=0.4):
                program(y)

        return weighed

    def observed_whole(y: Tensor) -> None:
        with pyro.poutine.scale(scale=0.4):
            k = pyro.sample("k", dist.Bernoulli(0.4))
            mu = pyro.sample("mu", dist.Normal(k, 1.0))
        with pyro.plate("data", len(y)):
            with pyro.poutine.scale(scale=0.4):
                b = pyro.sample("b", dist.Bernoulli(0.5))
            pyro.sample("y", dist.Normal(mu + b, positive("noise")), obs=y)

    for kind in (objectives.Trace_ELBO, objectives.TraceGraph_ELBO, objectives.RLOO_ELBO):
        loss, found = differentiated(kind(num_particles=2, kl_scale=0.4), score, score_guide)
        expected, expected_found = differentiated(kind(num_particles=2), observed_whole, scaled(score_guide))
        assert loss == pytest.approx(expected, rel=1e-12)
        for name, gradient in found.items():
            torch.testing.assert_close(gradient, expected_found[name], rtol=1e-11, atol=1e-12)


def test_free_bits_by_formula() -> None:
    """Below its bits a divergence counts them, and pulls at nothing; above, it counts itself."""

    def start(y: Tensor) -> None:
        pyro.sample("mu", dist.Normal(real("loc", start=0.0), 1.9))
        with pyro.plate("data", len(y)):
            pyro.sample("z", dist.Normal(real("z_loc", 8), 0.6))

    plain, _ = differentiated(objectives.TraceMeanField_ELBO(), model, start)
    divergence = math.log(2.0 / 1.9) + 1.9**2 / (2 * 2.0**2) - 0.5
    loss, found = differentiated(objectives.TraceMeanField_ELBO(free_bits={"mu": 0.2}), model, start)
    assert loss == pytest.approx(plain - divergence + 0.2, rel=1e-12)
    below, _ = differentiated(objectives.TraceMeanField_ELBO(free_bits={"mu": 0.001}), model, start)
    assert below == pytest.approx(plain, rel=1e-12)

    # 8 rows of which each counts 50 nats at the least; the likelihood alone moves z_loc.
    loss, found = differentiated(objectives.TraceMeanField_ELBO(free_bits={"data": 50.0}), model, start)
    trace = pyro.poutine.trace(pyro.poutine.seed(start, 1)).get_trace(Y)
    likelihood = (Y - trace.nodes["z"]["value"]) / 0.5**2
    torch.testing.assert_close(found["z_loc"], -likelihood.detach(), rtol=1e-11, atol=1e-12)
    assert loss > 8 * 50.0


def test_free_bits_of_draws() -> None:
    """The estimate of a divergence from draws is what is held against its bits."""
    few = objectives.Trace_ELBO(num_particles=1, free_bits={"mu": 1e3, "z": 1e-6})
    loss, found = differentiated(few, model, guide)
    trace = pyro.poutine.trace(pyro.poutine.seed(guide, 1)).get_trace(Y)
    replayed = pyro.poutine.trace(pyro.poutine.replay(model, trace=trace)).get_trace(Y)
    trace.compute_log_prob()
    replayed.compute_log_prob()
    rest = sum(replayed.nodes[name]["log_prob_sum"] for name in ("y", "z")) - trace.nodes["z"]["log_prob_sum"]
    assert loss == pytest.approx(1e3 - float(rest.detach()), rel=1e-12)
    # mu has no weight of its own left: what moves loc is the prior of z alone.
    z, mu = trace.nodes["z"]["value"], trace.nodes["mu"]["value"]
    torch.testing.assert_close(found["loc"], -(z - mu).sum().detach(), rtol=1e-11, atol=1e-12)


def test_annealing_counts_steps_that_differentiate() -> None:
    elbo = objectives.Trace_ELBO(kl_scale=Anneal(4, start=0.2, end=1.0))
    whole = objectives.Trace_ELBO()
    free = objectives.Trace_ELBO(kl_scale=0.0)
    shares = []
    for _ in range(6):
        values = []
        for each in (elbo, whole, free):
            pyro.set_rng_seed(1)
            values.append(each.loss(model, guide, Y))
        shares.append((values[0] - values[2]) / (values[1] - values[2]))
        elbo.loss_and_grads(model, guide, Y)
    assert shares == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0], rel=1e-9)


def test_annealing_goes_on_with_the_fit(tmp_path: Any) -> None:
    def fit(steps: int, **options: Any) -> ingle.Fit:
        elbo = objectives.Trace_ELBO(kl_scale=Anneal(30))
        adam = pyro.optim.Adam({"lr": 0.05})
        return ingle.fit(model, guide, Y, objective=elbo, optim=adam, steps=steps, dtype=torch.float64, **options)

    whole = fit(40)
    assert whole.losses.tolist() != fit(40, seed=1).losses.tolist()
    assert (fit(15).resume(25).losses == whole.losses).all()
    fit(15, checkpoint=tmp_path / "fit")
    assert (fit(40, checkpoint=tmp_path / "fit").losses == whole.losses).all()
    with pytest.raises(ingle.FileError, match=r"objective options kl_scale=Anneal\(steps=30, .* and this fit has none"):
        ingle.fit(
            model,
            guide,
            Y,
            objective=objectives.Trace_ELBO(),
            optim=pyro.optim.Adam({"lr": 0.05}),
            steps=50,
            dtype=torch.float64,
            checkpoint=tmp_path / "fit",
        )
    loaded = ingle.load(tmp_path / "fit", model, guide, Y)
    assert loaded.steps == 40


def test_one_objective_serves_many_fits() -> None:
    elbo = objectives.Trace_ELBO(kl_scale=Anneal(20))
    one, other = (ingle.fit(model, guide, Y, objective=elbo, steps=10) for _ in range(2))
    assert (one.losses == other.losses).all()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"kl_scale": -1.0}, "kl_scale must be a finite number, 0 or more, got -1.0"),
        ({"kl_scale": {"mu": math.nan}}, r"kl_scale\['mu'\] must be a finite number"),
        ({"free_bits": "some"}, "free_bits must be a finite number, 0 or more, got 'some'"),
        ({"free_bits": True}, "free_bits must be"),
    ],
)
def test_options_are_checked(options: Any, told: str) -> None:
    for kind in SINGLE:
        with pytest.raises(OptionError, match=told):
            kind(**options)


@pytest.mark.parametrize("bad", [{"steps": 0}, {"steps": 2.5}, {"steps": 5, "start": -0.1}, {"steps": 5, "end": "1"}])
def test_anneal_is_checked(bad: Any) -> None:
    with pytest.raises(OptionError, match="Anneal: "):
        Anneal(**bad)


@pytest.mark.parametrize("option", ["kl_scale", "free_bits"])
def test_a_name_that_is_not_there(option: str) -> None:
    for kind in SINGLE:
        with pytest.raises(ProgramError, match=f"{option} names 'nu', .*'mu', 'z', 'data'"):
            differentiated(kind(**{option: {"nu": 0.5}}), model, guide)


def test_a_guide_whose_divergences_are_one() -> None:
    joint = autoguide.AutoMultivariateNormal(model)
    assert math.isfinite(objectives.Trace_ELBO(kl_scale=0.5).loss(model, joint, Y))
    with pytest.raises(ProgramError, match="'_AutoMultivariateNormal_latent' is none of the model's latents"):
        objectives.Trace_ELBO(kl_scale={"mu": 0.5}).loss(model, joint, Y)
    apart = autoguide.AutoNormal(model)
    assert math.isfinite(objectives.Trace_ELBO(kl_scale={"mu": 0.5}, free_bits=0.1).loss(model, apart, Y))


@pytest.mark.parametrize(
    "make",
    [
        objectives.IWAE_ELBO,
        objectives.VIMCO_ELBO,
        objectives.DReG_ELBO,
        lambda k, **o: objectives.RenyiELBO(0.5, k, **o),
    ],
    ids=["IWAE", "VIMCO", "DReG", "Renyi"],
)
@pytest.mark.parametrize("option", [{"kl_scale": 0.5}, {"free_bits": 0.5}])
def test_bounds_of_several_samples_take_none(make: Any, option: dict[str, float]) -> None:
    with pytest.raises(OptionError, match=f"takes no {next(iter(option))}: log p - log q is inside the logarithm"):
        make(3, **option)
