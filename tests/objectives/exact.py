"""Programs whose bounds are known to the last digit, and the gradients of estimators held against them.

Every program takes a number of copies: with none it is the program itself; otherwise it stands in a plate of so many
copies, each with parameters of its own, so that one run tells as many gradients as there are copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from objectives.programs import Program, leaves
from scipy.stats import t as student
from torch import Tensor
from torch.nn.functional import softplus

Values = Mapping[str, Tensor]

Y = torch.tensor([-0.8, 0.4, 1.1, 2.0], dtype=torch.float64)
OFFSETS = torch.tensor([-1.0, 0.5, 2.0], dtype=torch.float64)
SHARES = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)


@dataclass(frozen=True)
class Known:
    """A pair whose bound is known as a function of its parameters.

    Attributes:
        start: where the gradient is taken, by parameter; all parameters are unconstrained.
        bound: the ELBO, or whatever the estimator under test is one of.
    """

    model: Program
    guide: Program
    start: Mapping[str, Any]
    bound: Callable[[Values], Tensor]

    def values(self) -> dict[str, Tensor]:
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in self.start.items()}

    def gradient(self) -> dict[str, Tensor]:
        """Of the loss, minus the bound."""
        values = {name: value.requires_grad_() for name, value in self.values().items()}
        found = torch.autograd.grad(-self.bound(values), list(values.values()))
        return dict(zip(values, found, strict=True))


def every(elbo: Any, known: Known, runs: int, copies: int = 0, *args: Any) -> dict[str, Tensor]:
    """The gradient of each copy in each run, runs and copies first."""
    for name, value in known.values().items():
        pyro.param(name, value.expand(copies, *(value.shape or (1,))).clone() if copies else value)
    kept: dict[str, list[Tensor]] = {name: [] for name in known.start}
    for _ in range(runs):
        for parameter in leaves().values():
            parameter.grad = None
        elbo.loss_and_grads(known.model, known.guide, copies, *args)
        for name, gradients in kept.items():
            gradient = leaves()[name].grad
            gradients.append(torch.zeros_like(leaves()[name]) if gradient is None else gradient)
    assert all(any(bool(gradient.any()) for gradient in gradients) for gradients in kept.values())
    shapes = {name: (runs, copies or 1, *value.shape) for name, value in known.values().items()}
    return {name: torch.stack(gradients).reshape(shapes[name]) for name, gradients in kept.items()}


def drawn(elbo: Any, known: Known, runs: int, copies: int = 0, *args: Any) -> dict[str, Tensor]:
    """The gradient of each run, its mean where there are copies; runs first."""
    return {name: gradients.mean(1) for name, gradients in every(elbo, known, runs, copies, *args).items()}


def scores(found: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Tensor:
    """By how many standard errors each element's mean is off; 0 where it has no noise and is right."""
    parts = []
    for name, gradients in found.items():
        off = (gradients.mean(0) - exact[name]).flatten()
        error = gradients.std(0).flatten() / math.sqrt(len(gradients))
        parts.append(torch.where(off.abs() < 1e-9, 0.0, off / error))
    return torch.cat(parts)


def assert_unbiased(found: Mapping[str, Tensor], exact: Mapping[str, Tensor], failures: float) -> None:
    """The mean is the exact gradient, as far as noise allows.

    Args:
        failures: how often an element of an unbiased gradient may fail, in expectation.
    """
    runs = len(next(iter(found.values())))
    worst = scores(found, exact).abs().max()
    assert worst < student.isf(failures / 2, runs - 1), {
        name: (gradients.mean(0).tolist(), exact[name].tolist()) for name, gradients in found.items()
    }


def hermite(points: int = 64) -> tuple[Tensor, Tensor]:
    """Nodes and weights of expectations under Normal(0, 1)."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(points)
    return torch.as_tensor(nodes), torch.as_tensor(weights) / math.sqrt(2 * math.pi)


def normal(x: Any, loc: Any, log_scale: Any) -> Tensor:
    log_scale = torch.as_tensor(log_scale, dtype=torch.float64)
    density: Tensor = -0.5 * ((x - loc) / log_scale.exp()) ** 2 - log_scale - 0.5 * math.log(2 * math.pi)
    return density


def bernoulli(x: Any, logit: Any) -> Tensor:
    logit = torch.as_tensor(logit, dtype=torch.float64)
    return x * logit - softplus(logit)


def elbo_of(log_p: Tensor, log_q: Tensor) -> Tensor:
    """A sum over states."""
    return (log_q.exp() * (log_p - log_q)).sum()


def pair_bound_of(log_p: Tensor, log_q: Tensor, alpha: float = 0.0) -> Tensor:
    """Of two particles: a sum over all pairs of states."""
    powers = (1 - alpha) * (log_p - log_q)
    bounds = (torch.logaddexp(powers.unsqueeze(0), powers.unsqueeze(1)) - math.log(2)) / (1 - alpha)
    return ((log_q.unsqueeze(0) + log_q.unsqueeze(1)).exp() * bounds).sum()


def leaf(name: str) -> Tensor:
    value: Tensor = pyro.param(name)
    return value


def copied(copies: int) -> Any:
    return pyro.plate("copies", copies, dim=-2) if copies else nullcontext()


# A chain of three switches.

CHAIN = {"m": 0.3, "n": -0.3, "a1": -0.4, "a2": 0.2, "c2": 0.7, "a3": 0.5, "c3": -0.6, "d3": 0.4}
X = 0.7


class Guess(torch.nn.Module):
    """A baseline that has learnt something, and goes on learning."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(-1.5, dtype=torch.float64))

    def forward(self, known: Tensor) -> Tensor:
        return self.level + 0.5 * known


def chain(copies: int) -> None:
    with copied(copies):
        z1 = pyro.sample("z1", dist.Bernoulli(logits=leaf("m")))
        z2 = pyro.sample("z2", dist.Bernoulli(logits=1.5 * z1 - 0.5))
        z3 = pyro.sample("z3", dist.Bernoulli(logits=0.3 - z2))
        pyro.sample("x", dist.Normal(z1 + 2.0 * z2 * z3 - z3, leaf("n").exp()), obs=torch.tensor(X))


def chain_guide(copies: int, baseline: Callable[[Tensor], dict[str, Any]] | None = None) -> None:
    def infer(known: Tensor) -> dict[str, Any]:
        return {} if baseline is None else {"baseline": baseline(known)}

    with copied(copies):
        a1 = leaf("a1")
        z1 = pyro.sample("z1", dist.Bernoulli(logits=a1), infer=infer(torch.zeros_like(a1)))
        z2 = pyro.sample("z2", dist.Bernoulli(logits=leaf("a2") + leaf("c2") * z1), infer=infer(z1))
        logits = leaf("a3") + leaf("c3") * z2 + leaf("d3") * z1
        pyro.sample("z3", dist.Bernoulli(logits=logits), infer=infer(z2))


def chain_states(v: Values) -> tuple[Tensor, Tensor]:
    """log p and log q of all eight states."""
    z1, z2, z3 = (
        part.flatten() for part in torch.meshgrid(*[torch.tensor([0.0, 1.0], dtype=torch.float64)] * 3, indexing="ij")
    )
    log_p = bernoulli(z1, v["m"]) + bernoulli(z2, 1.5 * z1 - 0.5) + bernoulli(z3, 0.3 - z2)
    log_p = log_p + normal(X, z1 + 2.0 * z2 * z3 - z3, v["n"])
    log_q = bernoulli(z1, v["a1"]) + bernoulli(z2, v["a2"] + v["c2"] * z1)
    return log_p, log_q + bernoulli(z3, v["a3"] + v["c3"] * z2 + v["d3"] * z1)


def chain_elbo(v: Values) -> Tensor:
    return elbo_of(*chain_states(v))


def chain_pair_bound(v: Values, alpha: float = 0.0) -> Tensor:
    return pair_bound_of(*chain_states(v), alpha)


# A mixture, its assignments drawn; all rows of the data, or some.

MIXTURE = {
    "m": 0.3,
    "s": -0.7,
    "slope": 0.2,
    "noise": -0.4,
    "logits": [[0.1, -0.2, 0.3], [0.0, 0.5, -0.5], [-0.3, 0.2, 0.1], [-1.0, 0.0, 0.8]],
}


def mixture(copies: int, rows: int = 4) -> None:
    with copied(copies):
        mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            k = pyro.sample("k", dist.Categorical(SHARES))
            pyro.sample("y", dist.Normal(mu + OFFSETS[k], leaf("noise").exp()), obs=Y[i])


def mixture_guide(copies: int, rows: int = 4) -> None:
    with copied(copies):
        mu = pyro.sample("mu", dist.Normal(leaf("m"), leaf("s").exp()))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            lean = (leaf("slope") * mu).unsqueeze(-1) * torch.arange(3.0)
            pyro.sample("k", dist.Categorical(logits=leaf("logits")[..., i, :] + lean))


def mixture_elbo(v: Values) -> Tensor:
    nodes, weights = hermite()
    mu = v["m"] + v["s"].exp() * nodes
    outside = (weights * (normal(mu, 0.0, 0.0) - normal(mu, v["m"], v["s"]))).sum()
    at = mu.reshape(-1, 1, 1)
    log_q = torch.log_softmax(v["logits"] + v["slope"] * at * torch.arange(3.0), -1)
    log_p = SHARES.log() + normal(Y.unsqueeze(-1), at + OFFSETS, v["noise"])
    return outside + (weights * (log_q.exp() * (log_p - log_q)).sum((-2, -1))).sum()


# A switch outside, a pathwise latent that depends on it, switches in a plate.

MIXED = {"g": 0.4, "loc": 0.2, "s": -0.5, "noise": -0.2, "r": [0.3, -0.6, 0.1, 0.9]}


def mixed(copies: int, rows: int = 4) -> None:
    with copied(copies):
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))
        mu = pyro.sample("mu", dist.Normal(k, 1.0))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            b = pyro.sample("b", dist.Bernoulli(logits=0.2 + k))
            pyro.sample("y", dist.Normal(mu + b, leaf("noise").exp()), obs=Y[i])


def mixed_guide(copies: int, rows: int = 4) -> None:
    with copied(copies):
        k = pyro.sample("k", dist.Bernoulli(logits=leaf("g")))
        mu = pyro.sample("mu", dist.Normal(leaf("loc") + 0.8 * k, leaf("s").exp()))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            pyro.sample("b", dist.Bernoulli(logits=leaf("r")[..., i] + 0.5 * k - 0.3 * mu))


def mixed_elbo(v: Values) -> Tensor:
    nodes, weights = hermite()
    total = torch.zeros((), dtype=torch.float64)
    for k in (0.0, 1.0):
        loc = v["loc"] + 0.8 * k
        mu = loc + v["s"].exp() * nodes
        inside = normal(mu, k, 0.0) - normal(mu, loc, v["s"])
        for b in (0.0, 1.0):
            log_q = bernoulli(b, v["r"] + 0.5 * k - 0.3 * mu.unsqueeze(-1))
            log_p = bernoulli(b, 0.2 + k) + normal(Y, mu.unsqueeze(-1) + b, v["noise"])
            inside = inside + (log_q.exp() * (log_p - log_q)).sum(-1)
        outside = bernoulli(k, math.log(0.4 / 0.6)) - bernoulli(k, v["g"])
        total = total + bernoulli(k, v["g"]).exp() * (outside + (weights * inside).sum())
    return total


# Normals throughout.

LINEAR = {"p": 0.4, "noise": -0.3, "m": 0.1, "s": -0.6, "slope": 0.4, "t": -0.2, "a": [-0.5, 0.2, 0.7, 1.1]}


def linear(copies: int, rows: int = 4) -> None:
    with copied(copies):
        mu = pyro.sample("mu", dist.Normal(leaf("p"), 1.0))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("y", dist.Normal(z, leaf("noise").exp()), obs=Y[i])


def linear_guide(copies: int, rows: int = 4) -> None:
    with copied(copies):
        mu = pyro.sample("mu", dist.Normal(leaf("m"), leaf("s").exp()))
        with pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
            pyro.sample("z", dist.Normal(leaf("a")[..., i] + leaf("slope") * mu, leaf("t").exp()))


def linear_elbo(v: Values) -> Tensor:
    """By the moments of the guide."""
    var, spread = (2 * v["s"]).exp(), (2 * v["t"]).exp()
    of_mu = (v["m"] - v["p"]) ** 2 + var
    of_z = (v["a"] + (v["slope"] - 1) * v["m"]) ** 2 + (v["slope"] - 1) ** 2 * var + spread
    of_y = (Y - v["a"] - v["slope"] * v["m"]) ** 2 + v["slope"] ** 2 * var + spread
    log_p = -0.5 * of_mu - 0.5 * of_z.sum() - 0.5 * (of_y / (2 * v["noise"]).exp()).sum() - 4 * v["noise"]
    return log_p + v["s"] + 4 * v["t"] - 2 * math.log(2 * math.pi) + 2.5


# Python's own decisions on a draw.


def branching(copies: int) -> None:
    b = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
    loc = 2.0 if b else -1.0
    pyro.sample("y", dist.Normal(torch.tensor(loc), leaf("noise").exp()), obs=torch.tensor(X))


def branching_guide(copies: int) -> None:
    pyro.sample("b", dist.Bernoulli(logits=leaf("g")))


def branching_states(v: Values) -> tuple[Tensor, Tensor]:
    """log p and log q of both states."""
    b, loc = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.tensor([-1.0, 2.0], dtype=torch.float64)
    return bernoulli(b, math.log(0.4 / 0.6)) + normal(X, loc, v["noise"]), bernoulli(b, v["g"])


def branching_elbo(v: Values) -> Tensor:
    return elbo_of(*branching_states(v))


def branching_pair_bound(v: Values) -> Tensor:
    return pair_bound_of(*branching_states(v))


def branched(copies: int) -> None:
    pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
    mu = pyro.sample("mu", dist.Normal(torch.tensor(0.0), 1.0))
    pyro.sample("y", dist.Normal(mu, leaf("noise").exp()), obs=torch.tensor(X))


def branched_guide(copies: int) -> None:
    b = pyro.sample("b", dist.Bernoulli(logits=leaf("g")))
    loc = 2.0 if b else -1.0
    pyro.sample("mu", dist.Normal(leaf("c") + loc, leaf("s").exp()))


def branched_elbo(v: Values) -> Tensor:
    var = (2 * v["s"]).exp()
    total = torch.zeros((), dtype=torch.float64)
    for b, loc in ((0.0, -1.0), (1.0, 2.0)):
        log_q, mean = bernoulli(b, v["g"]), v["c"] + loc
        inside = bernoulli(b, math.log(0.4 / 0.6)) - log_q + v["s"] + 0.5
        inside = inside - 0.5 * (mean**2 + var) - 0.5 * ((X - mean) ** 2 + var) / (2 * v["noise"]).exp()
        total = total + log_q.exp() * (inside - v["noise"] - 0.5 * math.log(2 * math.pi))
    return total


def forking(copies: int) -> None:
    """The second switch is there where the first is on."""
    level = pyro.sample("b", dist.Bernoulli(torch.tensor(0.4)))
    if level:
        level = level + pyro.sample("c", dist.Bernoulli(torch.tensor(0.7)))
    pyro.sample("y", dist.Normal(level, leaf("noise").exp()), obs=torch.tensor(X))


def forking_guide(copies: int) -> None:
    if pyro.sample("b", dist.Bernoulli(logits=leaf("g"))):
        pyro.sample("c", dist.Bernoulli(logits=leaf("h")))


def forking_elbo(v: Values) -> Tensor:
    b, c = torch.tensor([0.0, 1.0, 1.0], dtype=torch.float64), torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    log_p = bernoulli(b, math.log(0.4 / 0.6)) + b * bernoulli(c, math.log(0.7 / 0.3)) + normal(X, b + c, v["noise"])
    return elbo_of(log_p, bernoulli(b, v["g"]) + b * bernoulli(c, v["h"]))


CHAINED = Known(chain, chain_guide, CHAIN, chain_elbo)
MIXED_UP = Known(mixed, mixed_guide, MIXED, mixed_elbo)
ASSIGNED = Known(mixture, mixture_guide, MIXTURE, mixture_elbo)
GAUSSIAN = Known(linear, linear_guide, LINEAR, linear_elbo)
BRANCHING = Known(branching, branching_guide, {"g": 0.3, "noise": 0.1}, branching_elbo)
FORKING = Known(forking, forking_guide, {"g": 0.3, "h": -0.2, "noise": -0.4}, forking_elbo)
BRANCHED = Known(branched, branched_guide, {"g": 0.3, "noise": 0.1, "c": 0.2, "s": -0.5}, branched_elbo)


# Latents of each datum alone.

LOCAL = {"p": 0.3, "noise": -0.2, "s": -0.1, "a": [-0.5, 0.2, 0.7, 0.4]}


def local(copies: int, rows: int = 4) -> None:
    with copied(copies), pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
        z = pyro.sample("z", dist.Normal(leaf("p"), 1.0))
        pyro.sample("y", dist.Normal(z, leaf("noise").exp()), obs=Y[i])


def local_guide(copies: int, rows: int = 4) -> None:
    with copied(copies), pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
        pyro.sample("z", dist.Normal(leaf("a")[..., i], leaf("s").exp()))


def local_log_weight(v: Values, z: Tensor) -> Tensor:
    """Of draws of shape (..., 4)."""
    return normal(z, v["p"], 0.0) + normal(Y, z, v["noise"]) - normal(z, v["a"], v["s"])


def local_pair_bound(v: Values, alpha: float = 0.0) -> Tensor:
    """Of two particles, by quadrature over both."""
    nodes, weights = hermite(80)
    powers = (1 - alpha) * local_log_weight(v, v["a"] + v["s"].exp() * nodes.unsqueeze(-1))
    bounds = (torch.logaddexp(powers.unsqueeze(0), powers.unsqueeze(1)) - math.log(2)) / (1 - alpha)
    return (weights.reshape(-1, 1, 1) * weights.reshape(-1, 1) * bounds).sum()


def local_evidence(v: Values) -> Tensor:
    return normal(Y, v["p"], 0.5 * (1 + (2 * v["noise"]).exp()).log()).sum()


SWITCH = {"g": [0.4, -0.3, 0.2, 0.9], "c": 0.2, "s": -0.3, "noise": -0.2}


def switch(copies: int, rows: int = 4) -> None:
    with copied(copies), pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
        k = pyro.sample("k", dist.Bernoulli(torch.tensor(0.4)))
        z = pyro.sample("z", dist.Normal(2.0 * k - 0.5, 1.0))
        pyro.sample("y", dist.Normal(z, leaf("noise").exp()), obs=Y[i])


def switch_guide(copies: int, rows: int = 4) -> None:
    with copied(copies), pyro.plate("data", 4, subsample_size=rows, dim=-1) as i:
        k = pyro.sample("k", dist.Bernoulli(logits=leaf("g")[..., i]))
        pyro.sample("z", dist.Normal(leaf("c") + 0.8 * k, leaf("s").exp()))


def switch_pair_bound(v: Values) -> Tensor:
    """Of two particles: a sum over both switches, quadrature over both normals."""
    nodes, weights = hermite(80)
    log_weights, chances = [], []
    for k in (0.0, 1.0):
        loc = v["c"] + 0.8 * k
        z = (loc + v["s"].exp() * nodes).unsqueeze(-1)
        log_q = bernoulli(k, v["g"])
        log_p = bernoulli(k, math.log(0.4 / 0.6)) + normal(z, 2.0 * k - 0.5, 0.0) + normal(Y, z, v["noise"])
        log_weights.append(log_p - log_q - normal(z, loc, v["s"]))
        chances.append(log_q.exp() * weights.unsqueeze(-1))
    w, q = torch.cat(log_weights), torch.cat(chances)
    bounds = torch.logaddexp(w.unsqueeze(0), w.unsqueeze(1)) - math.log(2)
    return (q.unsqueeze(0) * q.unsqueeze(1) * bounds).sum()


ALONE = Known(local, local_guide, LOCAL, local_pair_bound)
SWITCHED = Known(switch, switch_guide, SWITCH, switch_pair_bound)
