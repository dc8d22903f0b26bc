"""What a model says before it has seen data."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from pyro import poutine
from torch import Tensor
from torch.distributions import constraints

from ingle.data import read
from ingle.errors import OptionError, ProgramError
from ingle.options import positive_integer
from ingle.program import (
    Site,
    Unobserve,
    check_call,
    explained,
    find_modules,
    layers,
    modules_kept,
    repeat,
)
from ingle.results.draws import chunk_of, refuse_too_large
from ingle.results.probe import probed
from ingle.runtime import Runtime

__all__ = ["drawn_from", "prior_predictive"]


def prior_predictive(
    model: Callable[..., Any],
    data: Any,
    n: int = 1_000,
    *,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[str, Tensor]:
    """Draws from a model with nothing observed: what it takes to be plausible before it has seen data.

    Args:
        model: a callable with Pyro statements; an `nn.Module` or `PyroModule` too, its parameters as they are and in
            evaluation mode.
        data: the arguments of the model, as for `ingle.fit`. Values that it observes are drawn in their place.
        n: number of draws.
        seed: 0 to 2**32 - 1.
        device: None is the device of the first tensor in the data.
        dtype: of the whole program, constants in the model included.

    Returns:
        For each site, latent, deterministic and observed, a tensor of shape (n, *site shape).

    Raises:
        DataError, OptionError: something was handed over that cannot be used.
        ProgramError: the model raised, a prior of it cannot be drawn, or some draws leave the range of an argument,
            such as a scale below zero.

    References:
        Gabry, Simpson, Vehtari, Betancourt and Gelman (2019), Visualization in Bayesian workflow.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> ingle.prior_predictive(model, torch.zeros(3), n=100)["y"].shape
        torch.Size([100, 3])
    """
    positive_integer("n", n)
    if not callable(model) or isinstance(model, type):
        raise OptionError(f"model must be a callable with Pyro statements, got {model!r}")
    arguments = read(data)
    runtime = Runtime.resolved(dtype, device, seed, default=arguments.device())
    arguments = check_call("model", model, arguments)
    modules = find_modules(model)
    with runtime.scope(), modules_kept(modules), torch.no_grad():
        for module in modules:
            module.to(dtype=runtime.dtype, device=runtime.device).eval()
        arguments = arguments.to(runtime.dtype, runtime.device)
        args, kwargs = arguments.args, arguments.kwargs
        with explained("model", arguments):
            sites = probed(model, args, kwargs)
            refuse_too_large(sites, n, runtime.dtype, runtime.device, "the draws")
            drawn, wrong = drawn_from(Unobserve()(model), args, kwargs, n, sites=sites)
    if wrong is not None:
        raise ProgramError(f"the model cannot be drawn from its prior: {wrong}")
    return drawn


def drawn_from(
    model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], n: int, *, sites: Sequence[Site]
) -> tuple[dict[str, Tensor], str | None]:
    """Draws of a model that observes nothing, and what is wrong with some of them, in words.

    Validation stops at the first draw whose scale is negative, and takes no draws together; so arguments of
    distributions are held against their ranges as the draws are made, and the draws that left them are counted.

    Args:
        model: with its observed sites unobserved.
        args, kwargs: of it.
        n: number of draws.
        sites: as one run showed them; those of `pyro.factor` are left out.
    """
    keep = [site.name for site in sites if site.distribution != "Unit"]

    def run(_: Any) -> dict[str, Any]:
        trace: Any = poutine.trace(model).get_trace(*args, **kwargs)
        nodes = {name: trace.nodes[name] for name in keep}
        return {
            "values": {name: node["value"] for name, node in nodes.items()},
            "right": {f"{name}\n{argument}": right for name, node in nodes.items() for argument, right in _right(node)},
        }

    done = repeat(run, n, chunk=chunk_of(sites, n))
    for place, right in done.get("right", {}).items():
        bad = int((~right).sum())
        if bad:
            name, argument = place.split("\n")
            return {}, (
                f"{argument} at site {name!r} is out of its range in {bad:,} of {n:,} draws; give what it is computed "
                "from a prior on the right range, or transform it (exp, softplus)"
            )
    return done.get("values", {}), None


def _right(node: Any) -> Iterator[tuple[str, Tensor]]:
    """For each argument of a distribution, whether all of it is in its range, as a tensor."""
    for fn in layers(node["fn"]):
        for name, constraint in getattr(fn, "arg_constraints", {}).items():
            value = vars(fn).get(name)
            if isinstance(value, Tensor) and not constraints.is_dependent(constraint):
                yield f"{name} of its {type(fn).__name__}", constraint.check(value).all()
