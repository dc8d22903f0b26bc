"""Discrete latents summed out and drawn, against sums over every assignment."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.ops.indexing import Vindex
from torch import Tensor

from ingle.program import Given, Summed

SHARES = torch.tensor([0.2, 0.5, 0.3])
LEVELS = torch.tensor([-1.0, 0.5, 2.0])


def mixture() -> None:
    with pyro.plate("data", 4):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.sample("x", dist.Normal(LEVELS[c], 1.0), obs=torch.tensor([-1.0, 0.0, 1.0, 2.0]))
        pyro.sample("apart", dist.Normal(0.0, 1.0), obs=torch.zeros(4))


def two_views() -> None:
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(c, 1.0), obs=torch.tensor([-1.0, 0.3, 2.0]))
        pyro.sample("y", dist.Poisson(1.0 + 2 * c), obs=torch.tensor([0.0, 4.0, 1.0]))


def words() -> None:
    """A topic for each document, shared by its words."""
    documents, places = pyro.plate("document", 3, dim=-2), pyro.plate("word", 2, dim=-1)
    with documents:
        topic = pyro.sample("topic", dist.Categorical(SHARES))
    with documents, places:
        table = torch.tensor([[0.7, 0.3], [0.5, 0.5], [0.1, 0.9]])
        pyro.sample("w", dist.Categorical(table[topic]), obs=torch.tensor([[0, 1], [1, 1], [0, 0]]))


def chain() -> None:
    state: Any = 0
    table = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    for t in pyro.markov(range(4)):
        state = pyro.sample(f"s{t}", dist.Categorical(table[state]))
        pyro.sample(f"x{t}", dist.Normal(LEVELS[state], 1.0), obs=torch.tensor(0.4 * t))


def nested() -> None:
    """A latent over all, one for each group below it, and a given real that depends on both."""
    a = pyro.sample("a", dist.Bernoulli(0.4))
    with pyro.plate("group", 2):
        b = pyro.sample("b", dist.Categorical(SHARES))
        z = pyro.sample("z", dist.Normal(LEVELS[b] + a, 1.0))
        pyro.sample("x", dist.Normal(z + a, 1.0), obs=torch.tensor([0.5, -1.0]))


def masked() -> None:
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Categorical(SHARES))
        with poutine.mask(mask=torch.tensor([True, False, True])), poutine.scale(scale=2.0):
            pyro.sample("x", dist.Normal(LEVELS[c], 1.0), obs=torch.tensor([1.0, 99.0, 0.0]))


def one_hot() -> None:
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.OneHotCategorical(SHARES))
        pyro.sample("x", dist.Normal((c * LEVELS).sum(-1), 1.0), obs=torch.tensor([1.0, 2.0, 0.0]))


def impossible() -> None:
    """No state leads to state 1: after the first, the sum over what precedes it is minus infinity."""
    table = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 1.0], [0.4, 0.0, 0.6]]).log()
    state = pyro.sample("s0", dist.Categorical(SHARES))
    for t in range(1, 4):
        state = pyro.sample(f"s{t}", dist.Categorical(logits=table[state]))
        pyro.sample(f"x{t}", dist.Normal(LEVELS[state], 1.0), obs=torch.tensor(0.4 * t))


def tangled() -> None:
    """One latent for all and two for each row, all in one factor."""
    a = pyro.sample("a", dist.Categorical(SHARES))
    with pyro.plate("data", 2):
        b = pyro.sample("b", dist.Categorical(SHARES))
        c = pyro.sample("c", dist.Categorical(SHARES))
        means = Vindex(torch.randn(3, 3, 3, generator=torch.Generator().manual_seed(1)))[a, b, c]
        pyro.sample("x", dist.Normal(means, 0.5), obs=torch.tensor([0.2, -1.0]))


def weighed() -> None:
    """Factors: of a latent that data depend on, of one that none do, and of none at all."""
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Categorical(SHARES))
        pyro.factor("penalty", 0.7 * LEVELS[c])
        pyro.sample("x", dist.Normal(LEVELS[c], 1.0), obs=torch.tensor([-1.0, 0.3, 2.0]))
    b = pyro.sample("b", dist.Categorical(SHARES))
    pyro.factor("unseen", -LEVELS[b])


def one_value() -> None:
    with pyro.plate("data", 3):
        c = pyro.sample("c", dist.Categorical(torch.ones(1)))
        pyro.sample("x", dist.Normal(LEVELS[c], 1.0), obs=torch.tensor([-1.0, 0.3, 2.0]))


def crossed() -> None:
    rows, columns = pyro.plate("row", 2, dim=-2), pyro.plate("column", 1, dim=-1)
    weights = torch.tensor([0.4, 0.6])
    with rows, columns:
        c = pyro.sample("c", dist.Categorical(weights))
        means = Vindex(torch.tensor([0.0, 3.0]))[c]
        pyro.sample("x", dist.Normal(means, 1.0), obs=torch.tensor([[0.2], [2.0]]))


# The model, its discrete latents with shape and values, and given reals.
MODELS: dict[str, tuple[Callable[[], None], dict[str, tuple[tuple[int, ...], int]], dict[str, Tensor]]] = {
    "mixture": (mixture, {"c": ((4,), 3)}, {}),
    "two views": (two_views, {"c": ((3,), 2)}, {}),
    "words": (words, {"topic": ((3, 1), 3)}, {}),
    "chain": (chain, {f"s{t}": ((), 3) for t in range(4)}, {}),
    "nested": (nested, {"a": ((), 2), "b": ((2,), 3)}, {"z": torch.tensor([0.3, 1.2])}),
    "masked": (masked, {"c": ((3,), 3)}, {}),
    "crossed": (crossed, {"c": ((2, 1), 2)}, {}),
    "impossible": (impossible, {f"s{t}": ((), 3) for t in range(4)}, {}),
    "tangled": (tangled, {"a": ((), 3), "b": ((2,), 3), "c": ((2,), 3)}, {}),
    "weighed": (weighed, {"c": ((3,), 3), "b": ((), 3)}, {}),
}


def marked(model: Callable[[], None], names: Any) -> Callable[[], None]:
    configured: Callable[[], None] = poutine.infer_config(
        model, config_fn=lambda site: {"enumerate": "parallel"} if site["name"] in names else {}
    )
    return configured


def summed(name: str) -> Summed:
    model, latents, given = MODELS[name]
    with Given(given):
        return Summed(marked(model, latents), (), {}, first_dim=-3)


def assignments(name: str) -> Iterator[tuple[dict[str, Tensor], Any]]:
    """Every assignment of the discrete latents, and the trace of the model at it."""
    model, latents, given = MODELS[name]
    sizes = [(latent, shape, math.prod(shape), values) for latent, (shape, values) in latents.items()]
    for flat in itertools.product(*(range(values) for _, _, count, values in sizes for _ in range(count))):
        place, values = 0, {}
        for latent, shape, count, _ in sizes:
            values[latent] = torch.tensor(flat[place : place + count]).reshape(shape)
            place += count
        kinds = {
            latent: value.float() if name in ("two views",) or (name, latent) == ("nested", "a") else value
            for latent, value in values.items()
        }
        with Given({**given, **kinds}):
            trace = poutine.trace(model).get_trace()
        trace.compute_log_prob()
        yield values, trace


def weight(trace: Any, *, observed: bool = True) -> float:
    """The log joint of an assignment, masked and without a scale."""
    total = 0.0
    for node in trace.nodes.values():
        data = node["type"] == "sample" and node["is_observed"] and type(node["fn"]).__name__ != "Unit"
        if node["type"] == "sample" and "unscaled_log_prob" in node and (observed or not data):
            log_prob = node["unscaled_log_prob"]
            total += float(log_prob.sum() if node["mask"] is None else log_prob[node["mask"]].sum())
    return total


@pytest.mark.parametrize("name", MODELS)
def test_log_likelihood_is_the_sum_over_all_assignments(name: str) -> None:
    """log p(x, z) - log p(z), summed over assignments each, against the sum of all pointwise terms."""
    found = summed(name)
    traces = [trace for _, trace in assignments(name)]
    joint, latent = (torch.tensor([weight(t, observed=o) for t in traces]).logsumexp(0) for o in (True, False))
    apart = 0.0
    if name == "mixture":
        apart = float(traces[0].nodes["apart"]["log_prob"].sum())
        assert "apart" not in found.names
    total = sum(float(value.sum()) for value in found.log_likelihood().values())
    assert total + apart == pytest.approx(float(joint - latent), abs=1e-4)
    if name != "masked":
        assert float(found.log_joint()) + apart == pytest.approx(float(joint), abs=1e-4)


def test_scale_is_in_the_joint_and_not_in_the_likelihood() -> None:
    model, latents, _ = MODELS["two views"]
    plain, scaled = (
        Summed(marked(run, latents), (), {}, first_dim=-2) for run in (model, poutine.scale(model, scale=3.0))
    )
    assert float(scaled.log_joint()) == pytest.approx(3 * float(plain.log_joint()))
    assert torch.equal(scaled.log_likelihood()["x+y"], plain.log_likelihood()["x+y"])


SHAPES = {
    "mixture": {"x": (4,)},
    "two views": {"x+y": (3,)},
    "words": {"w": (3, 1)},
    "chain": {"x0+x1+x2+x3": ()},
    "nested": {"x": ()},
    "masked": {"x": (3,)},
    "crossed": {"x": (2, 1)},
    "impossible": {"x1+x2+x3": ()},
    "tangled": {"x": ()},
    "weighed": {"x": (3,)},
}


@pytest.mark.parametrize("name", MODELS)
def test_pointwise_terms_have_the_plates_of_their_latents(name: str) -> None:
    shapes = {site: tuple(value.shape) for site, value in summed(name).log_likelihood().items()}
    assert shapes == SHAPES[name]


def test_each_point_of_a_mixture_by_hand() -> None:
    x = torch.tensor([-1.0, 0.0, 1.0, 2.0])
    expected = (SHARES.log() + dist.Normal(LEVELS, 1.0).log_prob(x[:, None])).logsumexp(-1)
    torch.testing.assert_close(summed("mixture").log_likelihood()["x"], expected)


def test_masked_point_counts_nothing() -> None:
    likelihood = summed("masked").log_likelihood()["x"]
    assert likelihood[1] == pytest.approx(0.0, abs=1e-6)
    assert bool(likelihood.isfinite().all())


@pytest.mark.parametrize("name", MODELS)
def test_probabilities_and_draws_follow_the_exact_posterior(name: str) -> None:
    """Frequencies of 4,000 draws within 5 standard errors (and 1/4,000) of the exact ones, elementwise and jointly."""
    _, latents, _ = MODELS[name]
    everything = list(assignments(name))
    posterior = torch.tensor([weight(trace) for _, trace in everything]).softmax(0)
    found = summed(name)
    for latent, probability in found.probabilities().items():
        shape, values = latents[latent]
        assert probability.shape == (*shape, values)
        for value in range(values):
            held = torch.stack([(assigned[latent] == value).float() for assigned, _ in everything])
            expected = torch.einsum("a,a...->...", posterior, held)
            torch.testing.assert_close(probability[..., value], expected, atol=1e-5, rtol=1e-4)
    n = 4_000
    drawn = torch.vmap(lambda _: found.draw(), randomness="different")(torch.arange(n))
    joint = torch.ones(n, dtype=torch.bool)
    assigned, _ = everything[int(posterior.argmax())]
    for latent, value in assigned.items():
        assert drawn[latent].shape == (n, *value.shape)
        joint &= (drawn[latent].reshape(n, -1) == value.reshape(-1)).all(-1)
    expected = float(posterior.max())
    assert abs(float(joint.float().mean()) - expected) < 5 * (expected * (1 - expected) / n) ** 0.5 + 1 / n


def test_values_with_an_event_dimension() -> None:
    found = Summed(marked(one_hot, ["c"]), (), {}, first_dim=-2)
    assert found.draw()["c"].shape == (3, 3)
    assert bool((found.draw()["c"].sum(-1) == 1).all())
    x = torch.tensor([1.0, 2.0, 0.0])
    expected = (SHARES.log() + dist.Normal(LEVELS, 1.0).log_prob(x[:, None])).softmax(-1)
    torch.testing.assert_close(found.probabilities()["c"], expected)


def test_long_chain_is_eliminated_step_by_step() -> None:
    """200 states of 3 values: the sum has 3**200 terms; against the forward recursion."""
    table = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    x = torch.sin(torch.arange(200) / 7)

    def long() -> None:
        state: Any = 0
        for t in pyro.markov(range(200)):
            state = pyro.sample(f"s{t}", dist.Categorical(table[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(LEVELS[state], 1.0), obs=x[t])

    forward = table[0].log() + dist.Normal(LEVELS, 1.0).log_prob(x[0])
    for value in x[1:]:
        forward = (forward[:, None] + table.log()).logsumexp(0) + dist.Normal(LEVELS, 1.0).log_prob(value)
    (found,) = Summed(long, (), {}, first_dim=-1).log_likelihood().values()
    assert float(found) == pytest.approx(float(forward.logsumexp(0)), rel=1e-4)


def test_draws_of_a_long_chain_against_filter_and_smoother() -> None:
    """200 states of 3 values: marginals to 1e-4, frequencies of neighbours' pairs within 5 standard errors."""
    steps, n = 200, 2_000
    table = torch.tensor([[0.8, 0.1, 0.1], [0.2, 0.6, 0.2], [0.3, 0.3, 0.4]])
    terms = dist.Normal(LEVELS, 1.0).log_prob(torch.sin(torch.arange(steps) / 7)[:, None]).double()

    def long() -> None:
        state: Any = 0
        for t in pyro.markov(range(steps)):
            state = pyro.sample(f"s{t}", dist.Categorical(table[state]), infer={"enumerate": "parallel"})
            pyro.sample(f"x{t}", dist.Normal(LEVELS[state], 1.0), obs=torch.sin(torch.tensor(t / 7)))

    forward, backward = [table[0].double().log() + terms[0]], [torch.zeros(3).double()]
    for term in terms[1:]:
        forward.append((forward[-1][:, None] + table.log()).logsumexp(0) + term)
    for term in terms.flip(0)[:-1]:
        backward.insert(0, (table.log() + term + backward[0]).logsumexp(-1))
    summed_out = Summed(long, (), {}, first_dim=-1)
    marginals = (torch.stack(forward) + torch.stack(backward)).softmax(-1)
    found = summed_out.probabilities()
    torch.testing.assert_close(
        torch.stack([found[f"s{t}"] for t in range(steps)]).double(), marginals, atol=1e-4, rtol=0.0
    )
    drawn = torch.vmap(lambda _: summed_out.draw(), randomness="different")(torch.arange(n))
    states = torch.stack([drawn[f"s{t}"] for t in range(steps)], -1)
    pairs = torch.stack(forward)[:-1, :, None] + table.log() + (terms + torch.stack(backward))[1:, None, :]
    expected = pairs.flatten(1).softmax(-1)
    frequency = torch.nn.functional.one_hot(3 * states[:, :-1] + states[:, 1:], 9).double().mean(0)
    assert bool(((frequency - expected).abs() < 5 * (expected * (1 - expected) / n).sqrt() + 1 / n).all())


def test_draw_is_one_elimination_of_each_latent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not a whole elimination for each: that takes a time of T squared in a chain of T."""
    found, calls = summed("chain"), []
    eliminate = torch.logsumexp
    monkeypatch.setattr(torch, "logsumexp", lambda *args: calls.append(1) or eliminate(*args))
    found.draw()
    assert len(calls) == 4


def test_latent_of_one_value() -> None:
    found = Summed(marked(one_value, ["c"]), (), {}, first_dim=-2)
    assert found.draw()["c"].tolist() == [0, 0, 0]
    assert found.probabilities()["c"].tolist() == [[1.0]] * 3


def test_factors_alone_are_no_likelihood() -> None:
    def alone() -> None:
        b = pyro.sample("b", dist.Categorical(SHARES))
        pyro.factor("f", LEVELS[b])

    found = Summed(marked(alone, ["b"]), (), {}, first_dim=-1)
    assert found.log_likelihood() == {}
    assert float(found.log_joint()) == pytest.approx(float((SHARES.log() + LEVELS).logsumexp(0)))
