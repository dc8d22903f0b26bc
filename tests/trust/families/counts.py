"""Outcomes that are counted or ordered: logistic, Poisson, ordered logistic, and shares between 0 and 1."""

from __future__ import annotations

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.distributions.transforms import OrderedTransform
from torch import Tensor
from trust.families.case import Data, Family, Moments
from trust.families.regression import predictors

__all__ = ["FAMILIES"]


def logistic(x: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 2.5).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Bernoulli(logits=intercept + x @ slopes), obs=y)


def draw_logistic(rng: np.random.Generator, size: int) -> Data:
    x = predictors(rng, size, 4)
    logits = x @ (rng.standard_normal(4) / x.std(0))
    logits = rng.normal() + logits - logits.mean()
    return {"x": x, "y": (rng.random(size) < 1 / (1 + np.exp(-logits))).astype(float)}


def poisson(x: Tensor, exposure: Tensor, y: Tensor) -> None:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    slopes = pyro.sample("slopes", dist.Normal(0.0, 2.0).expand([x.shape[-1]]).to_event(1))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.Poisson(exposure * torch.exp(intercept + x @ slopes)), obs=y)


def draw_poisson(rng: np.random.Generator, size: int) -> Data:
    x = predictors(rng, size, 3)
    log_rate = x @ (0.5 * rng.standard_normal(3) / x.std(0))
    exposure = 10 ** rng.uniform(0, 1.5, size)
    rate = exposure * np.exp(rng.uniform(-3, 1) + log_rate - log_rate.mean())
    return {"x": x, "exposure": exposure, "y": rng.poisson(rate).astype(float)}


def ordered(x: Tensor, y: Tensor) -> None:
    slopes = pyro.sample("slopes", dist.Normal(0.0, 2.5).expand([x.shape[-1]]).to_event(1))
    base = dist.Normal(0.0, 3.0).expand([3]).to_event(1)
    cuts = pyro.sample("cuts", dist.TransformedDistribution(base, OrderedTransform()))
    with pyro.plate("row", len(y)):
        pyro.sample("y", dist.OrderedLogistic(x @ slopes, cuts), obs=y)


def draw_ordered(rng: np.random.Generator, size: int) -> Data:
    x = predictors(rng, size, 2)
    score = x @ (rng.standard_normal(2) / x.std(0)) + rng.logistic(size=size)
    cuts = np.quantile(score, np.sort(rng.choice(np.linspace(0.1, 0.9, 9), 3, replace=False)))
    return {"x": x, "y": np.searchsorted(cuts, score)}


def shares(hits: Tensor, trials: Tensor, prior: Tensor, kind: Tensor) -> None:
    """Rates of a few groups, and the shares of four kinds: bounded supports, near their ends at times."""
    with pyro.plate("group", len(hits)):
        rate = pyro.sample("rate", dist.Beta(prior[0], prior[1]))
        pyro.sample("hits", dist.Binomial(trials, rate), obs=hits)
    part = pyro.sample("part", dist.Dirichlet(torch.ones(4)))
    with pyro.plate("row", len(kind)):
        pyro.sample("kind", dist.Categorical(part), obs=kind)


def draw_shares(rng: np.random.Generator, size: int) -> Data:
    prior = rng.uniform(1.0, 4.0, 2)
    trials = np.round(10 ** rng.uniform(0.5, 2.0, 5))
    return {
        "hits": rng.binomial(trials.astype(int), rng.beta(*prior, 5)).astype(float),
        "trials": trials,
        "prior": prior,
        "kind": rng.choice(4, size, p=rng.dirichlet(np.ones(4))),
    }


def shares_exact(data: Data) -> Moments:
    """Beta and Dirichlet are conjugate."""
    a, b = data["prior"][0] + data["hits"], data["prior"][1] + data["trials"] - data["hits"]
    counts = 1.0 + np.bincount(data["kind"], minlength=4)
    mean = counts / counts.sum()
    return {
        "rate": (a / (a + b), np.sqrt(a * b / (a + b + 1)) / (a + b)),
        "part": (mean, np.sqrt(mean * (1 - mean) / (counts.sum() + 1))),
    }


FAMILIES = {
    "logistic": Family(logistic, draw_logistic, (50, 120, 300), ("intercept", "slopes")),
    "poisson": Family(poisson, draw_poisson, (40, 120), ("intercept", "slopes")),
    "ordered": Family(ordered, draw_ordered, (80, 200), ("slopes", "cuts")),
    "shares": Family(shares, draw_shares, (15, 60), ("rate", "part"), shares_exact),
}
