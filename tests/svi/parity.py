"""One script with `ingle.SVI` and with `pyro.infer.SVI`: the harness, and the models that several files share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.infer
import pyro.optim
import torch
from pyro.distributions import constraints
from torch import Tensor

import ingle

SVI = type[pyro.infer.SVI]
Program = Callable[..., Any]
Script = Callable[[SVI], Sequence[Any]]

DATA = torch.tensor([0.3, -0.7, 1.9, 2.4, 1.1, 0.6])


def play(script: Script, svi: SVI, seed: int = 0) -> dict[str, Any]:
    """Run the script from a clean store and a set seed; what it returned, and what it left behind."""
    pyro.clear_param_store()
    pyro.set_rng_seed(seed)
    store = pyro.get_param_store()
    returned = script(svi)
    assert len(returned) > 0
    left = {
        "returned": returned,
        "values": {name: value.detach().clone() for name, value in store.items()},
        "unconstrained": {name: value.detach().clone() for name, value in store.named_parameters()},
        "gradients": {name: deepcopy(value.grad) for name, value in store.named_parameters()},
        "constraints": {name: str(constraint) for name, constraint in store.get_state()["constraints"].items()},
        "random state": pyro.util.get_rng_state(),
    }
    pyro.clear_param_store()
    return left


def assert_identical(ours: Any, theirs: Any, where: str = "") -> None:
    assert type(ours) is type(theirs), where
    if isinstance(ours, Tensor):
        assert ours.dtype == theirs.dtype, where
        assert torch.equal(ours, theirs), where
    elif isinstance(ours, np.ndarray):
        assert np.array_equal(ours, theirs), where
    elif isinstance(ours, dict):
        assert set(ours) == set(theirs), where
        for key in ours:
            assert_identical(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, list | tuple):
        assert len(ours) == len(theirs), where
        for i, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            assert_identical(our, their, f"{where}/{i}")
    else:
        assert ours == theirs, f"{where}: {ours!r}, not {theirs!r}"


def assert_same(script: Script) -> dict[str, Any]:
    """The script leaves the same behind with either class; what that is."""
    theirs = play(script, pyro.infer.SVI)
    ours = play(script, ingle.SVI)
    assert list(ours["values"]) == list(theirs["values"])
    assert_identical(ours, theirs)
    return ours


def adam(lr: float = 0.05) -> pyro.optim.PyroOptim:
    return pyro.optim.Adam({"lr": lr})


def state_of(optim: pyro.optim.PyroOptim) -> dict[str, Any]:
    return deepcopy(optim.get_state())


def train(
    svi: SVI, model: Program, guide: Program, loss: Any, *args: Any, optim: Any = None, **kwargs: Any
) -> list[Any]:
    """The usual script: some steps, with a look at the loss before and after."""
    fit = svi(model, guide, optim or adam(), loss=loss)
    losses = [fit.evaluate_loss(*args, **kwargs)]
    losses += [fit.step(*args, **kwargs) for _ in range(3)]
    losses.append(fit.evaluate_loss(*args, **kwargs))
    # A pair that does not learn would make the comparison empty.
    assert losses[0] != losses[-1]
    return losses


def normal_model(data: Tensor = DATA) -> Tensor:
    scale = pyro.param("noise", torch.tensor(1.5), constraint=constraints.positive)
    z = pyro.sample("z", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(data)):
        return pyro.sample("x", dist.Normal(z, scale), obs=data)


def normal_guide(data: Tensor = DATA) -> Tensor:
    loc = pyro.param("loc", lambda: torch.randn(()))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=constraints.positive)
    return pyro.sample("z", dist.Normal(loc, scale))


def normal_svi(svi: SVI, optim: Any = None, loss: Any = None, *loss_and_grads: Any) -> pyro.infer.SVI:
    return svi(normal_model, normal_guide, optim or adam(), loss or pyro.infer.Trace_ELBO(), *loss_and_grads)


def train_normal(svi: SVI, optim: Any = None) -> list[Any]:
    return train(svi, normal_model, normal_guide, pyro.infer.Trace_ELBO(), DATA, optim=optim)
