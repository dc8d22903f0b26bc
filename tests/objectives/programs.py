"""The programs that the objectives are held against Pyro's on, and the harness for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import pyro.infer
import torch
from pyro import poutine
from pyro.distributions import constraints
from pyro.infer import config_enumerate
from pyro.ops.indexing import Vindex
from torch import Tensor

Program = Callable[..., Any]

Y = torch.linspace(-1.0, 2.0, 8, dtype=torch.float64)
MASK = torch.tensor([True, False, True, True, False, True, True, True])


def positive(name: str, *shape: int, start: float = 0.5) -> Tensor:
    return pyro.param(name, torch.full(shape, start), constraint=constraints.positive)


def share(name: str, *shape: int, start: float = 0.4) -> Tensor:
    return pyro.param(name, torch.full(shape, start), constraint=constraints.unit_interval)


def real(name: str, *shape: int, start: float = 0.1) -> Tensor:
    return pyro.param(name, torch.full(shape, start))


def pathwise(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    noise = positive("noise", start=0.7)
    with pyro.plate("data", 8, subsample_size=4) as i:
        z = pyro.sample("z", dist.Normal(mu, 1.0))
        pyro.sample("y", dist.Normal(z, noise), obs=y[i])


def pathwise_guide(y: Tensor) -> None:
    scale = positive("scale")
    mu = pyro.sample("mu", dist.Normal(real("loc"), scale))
    with pyro.plate("data", 8, subsample_size=4) as i:
        pyro.sample("z", dist.Normal(real("z_loc", 8)[i] + 0.3 * mu, scale))


def score(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(0.4))
    mu = pyro.sample("mu", dist.Normal(k, 1.0))
    with pyro.plate("data", len(y)):
        b = pyro.sample("b", dist.Bernoulli(0.5))
        pyro.sample("y", dist.Normal(mu + b, positive("noise")), obs=y)


def score_guide(y: Tensor) -> None:
    k = pyro.sample("k", dist.Bernoulli(share("p", start=0.6)))
    pyro.sample("mu", dist.Normal(real("loc") + 0.1 * k, 0.7))
    with pyro.plate("data", len(y)):
        pyro.sample("b", dist.Bernoulli(share("rates", 8)))


def nested(y: Tensor) -> None:
    inner = pyro.plate("inner", 4, dim=-1)
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        m = pyro.sample("m", dist.Normal(a, 1.0))
        with inner:
            b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
            pyro.sample("y", dist.Normal(m + b, positive("noise")), obs=y.reshape(2, 4))


def nested_guide(y: Tensor) -> None:
    inner = pyro.plate("inner", 4, dim=-1)
    with pyro.plate("outer", 2, dim=-2):
        a = pyro.sample("a", dist.Bernoulli(share("p", 2, 1)))
        pyro.sample("m", dist.Normal(real("loc", 2, 1) + 0.2 * a, 0.5))
        with inner:
            pyro.sample("b", dist.Bernoulli(share("rates", 2, 4)))


def missing(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, positive("noise")), obs=y, obs_mask=MASK)


def missing_guide(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))
    with pyro.plate("data", len(y)), poutine.mask(mask=~MASK):
        pyro.sample("y_unobserved", dist.Normal(mu, positive("spread")))


def weighted(y: Tensor) -> None:
    with poutine.scale(scale=0.3):
        k = pyro.sample("k", dist.Bernoulli(0.4))
    with pyro.plate("data", len(y)), poutine.mask(mask=MASK), poutine.scale(scale=torch.tensor(2.0)):
        z = pyro.sample("z", dist.Normal(k, 1.0))
        pyro.sample("y", dist.Normal(z, positive("noise")), obs=y)


def weighted_guide(y: Tensor) -> None:
    with poutine.scale(scale=0.3):
        k = pyro.sample("k", dist.Bernoulli(share("p")))
    with pyro.plate("data", len(y)), poutine.mask(mask=MASK), poutine.scale(scale=torch.tensor(2.0)):
        pyro.sample("z", dist.Normal(real("loc", 8) + 0.2 * k, positive("scale")))


def without_formula(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.StudentT(4.0, 0.0, 1.0))  # has no divergence from a Normal
    w = pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))
    with pyro.plate("data", len(y)), poutine.mask(mask=MASK), poutine.scale(scale=0.5):
        z = pyro.sample("z", dist.Normal(mu + w.sum(-1), 1.0))
        pyro.sample("y", dist.Normal(z, positive("noise")), obs=y)


def without_formula_guide(y: Tensor) -> None:
    aside = pyro.sample("aside", dist.Normal(real("aside_loc"), 1.0), infer={"is_auxiliary": True})
    pyro.sample("mu", dist.Normal(real("loc") + 0.1 * aside, positive("scale")))
    pyro.sample("w", dist.Normal(real("w_loc", 3), positive("w_scale", 3)).to_event(1))
    with pyro.plate("data", len(y)), poutine.mask(mask=MASK), poutine.scale(scale=0.5):
        pyro.sample("z", dist.Normal(real("z_loc", 8), 0.6))


@config_enumerate
def mixture(y: Tensor) -> None:
    weights = pyro.param("weights", torch.tensor([0.2, 0.3, 0.5]), constraint=constraints.simplex)
    with pyro.plate("components", 3):
        locs = pyro.sample("locs", dist.Normal(0.0, 2.0))
    with pyro.plate("data", 8, subsample_size=5) as i, poutine.scale(scale=torch.tensor(0.7)):
        k = pyro.sample("k", dist.Categorical(weights))
        with poutine.mask(mask=MASK[i]):
            pyro.sample("y", dist.Normal(Vindex(locs.unsqueeze(-2))[..., k], 0.5), obs=y[i])


def mixture_guide(y: Tensor) -> None:
    with pyro.plate("components", 3):
        pyro.sample("locs", dist.Normal(real("loc", 3), positive("scale", 3)))


def coin(y: Tensor) -> None:
    """One switch outside and one inside a plate, the component of each datum in the model."""
    k = pyro.sample("k", dist.Bernoulli(0.4))
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        b = pyro.sample("b", dist.Bernoulli(0.3 + 0.2 * k))
        c = pyro.sample("c", dist.Categorical(torch.tensor([0.3, 0.7])), infer={"enumerate": "parallel"})
        pyro.sample("y", dist.Normal(mu + b - 2.0 * c, positive("noise")), obs=y)


def coin_guide(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(real("loc"), positive("scale")))
    k = pyro.sample("k", dist.Bernoulli(logits=real("logit") + mu))
    with pyro.plate("data", len(y)):
        pyro.sample("b", dist.Bernoulli((0.2 + 0.3 * k + share("rates", 8)) / 2))


@config_enumerate
def markov(y: Tensor) -> None:
    stay = share("stay", start=0.8)
    change = torch.stack([torch.stack([stay, 1 - stay]), torch.stack([1 - stay, stay])])
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    x: Any = 0
    for t in pyro.markov(range(4)):
        x = pyro.sample(f"x_{t}", dist.Categorical(change[x]))
        pyro.sample(f"y_{t}", dist.Normal(loc * x, 0.5), obs=y[t])


def markov_guide(y: Tensor) -> None:
    pyro.sample("loc", dist.Normal(real("loc_loc"), positive("scale")))


def impossible(y: Tensor) -> None:
    k = pyro.sample("k", dist.Categorical(torch.ones(3) / 3))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(k.to(y.dtype), positive("noise")), obs=y)


def impossible_guide(y: Tensor) -> None:
    """A value of probability 0, whose log q is -inf."""
    logits = torch.cat([torch.full((1,), -torch.inf), real("logits", 2)])
    pyro.sample("k", dist.Categorical(logits=logits), infer={"enumerate": "parallel"})


class Baseline(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.slope = torch.nn.Parameter(torch.tensor(0.3, dtype=torch.float64))

    def forward(self, y: Tensor) -> Tensor:
        return self.slope * y


NET = Baseline()


def baselined_guide(y: Tensor) -> None:
    net = pyro.module("net", NET)
    guess = {"baseline_value": real("guess")}
    k = pyro.sample("k", dist.Bernoulli(share("p", start=0.6)), infer={"baseline": guess})
    pyro.sample("mu", dist.Normal(real("loc") + 0.1 * k, 0.7))
    with pyro.plate("data", len(y)):
        fitted = {"nn_baseline": net, "nn_baseline_input": y}
        pyro.sample("b", dist.Bernoulli(share("rates", 8)), infer={"baseline": fitted})


PATHWISE = {
    "pathwise": (pathwise, pathwise_guide),
    "missing": (missing, missing_guide),
}
SCORED = {
    "score function": (score, score_guide),
    "nested plates": (nested, nested_guide),
    "mask and scale": (weighted, weighted_guide),
}
SUMMED = {
    "mixture": (mixture, mixture_guide),
    "markov": (markov, markov_guide),
    "guide": (score, config_enumerate(score_guide)),
    "guide, nested plates": (nested, config_enumerate(nested_guide)),
    "guide, one after the other": (coin, config_enumerate(coin_guide, "sequential")),
    "guide and model": (coin, config_enumerate(coin_guide, "parallel")),
    "guide drawn, model": (coin, coin_guide),
    "several draws": (coin, config_enumerate(coin_guide, num_samples=3)),
    "mask and scale": (weighted, config_enumerate(weighted_guide)),
    "probability 0": (impossible, impossible_guide),
}
CASES: dict[str, dict[str, tuple[Program, Program]]] = {
    "Trace_ELBO": {**PATHWISE, **SCORED},
    "TraceGraph_ELBO": {**PATHWISE, **SCORED, "baselines": (score, baselined_guide)},
    "TraceMeanField_ELBO": {**PATHWISE, "without a formula": (without_formula, without_formula_guide)},
    "TraceEnum_ELBO": SUMMED,
}
PAIRS = [(name, case) for name, cases in CASES.items() for case in cases]
NESTING = {"nested plates": 2, "guide, nested plates": 2, "markov": 0}


@contextmanager
def double() -> Any:
    """Double precision, and a parameter store of its own."""
    NET.load_state_dict(Baseline().state_dict())
    with pyro.get_param_store().scope():
        torch.set_default_dtype(torch.float64)
        yield
        torch.set_default_dtype(torch.float32)


def leaves() -> dict[str, Tensor]:
    return dict(pyro.get_param_store().named_parameters())


def gradients() -> dict[str, Tensor]:
    return {name: leaf.grad.clone() for name, leaf in leaves().items() if leaf.grad is not None}


def differentiated(elbo: Any, model: Program, guide: Program, seed: int = 1) -> tuple[float, dict[str, Tensor]]:
    """The loss, and the gradient of each parameter, from a clean store."""
    pyro.clear_param_store()
    NET.zero_grad()
    pyro.set_rng_seed(seed)
    return elbo.loss_and_grads(model, guide, Y), gradients()
