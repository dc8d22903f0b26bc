"""What a model says before it has seen data."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ingle.data import read
from ingle.errors import OptionError
from ingle.options import positive_integer
from ingle.program import Unobserve, check_call, explained, find_modules, modules_kept, read_sites, typical_value
from ingle.results.draws import chunk_of, drawn_anew, refuse_too_large
from ingle.results.vectorise import repeat
from ingle.runtime import Runtime, resolve_device, resolve_dtype, resolve_seed

__all__ = ["prior_predictive"]


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
        model: a callable with Pyro statements; an `nn.Module` or `PyroModule` too, its parameters as they are.
        data: the arguments of the model, as for `ingle.fit`. Values that it observes are drawn in their place.
        n: number of draws.
        seed: 0 to 2**32 - 1.
        device: None is the device of the first tensor in the data.
        dtype: of the whole program, constants in the model included.

    Returns:
        For each site, latent, deterministic and observed, a tensor of shape (n, *site shape).

    Raises:
        DataError, OptionError: something was handed over that cannot be used.
        ProgramError: the model raised, or a prior of it cannot be drawn.

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
    runtime = Runtime(
        dtype=resolve_dtype(dtype),
        device=resolve_device(device, default=arguments.device()),
        seed=resolve_seed(seed),
    )
    arguments = check_call("model", model, arguments)
    modules = find_modules(model)
    with runtime.scope(), modules_kept(modules), torch.no_grad():
        for module in modules:
            module.to(dtype=runtime.dtype, device=runtime.device)
        arguments = arguments.to(runtime.dtype, runtime.device)
        args, kwargs = arguments.args, arguments.kwargs
        with explained("model", arguments):
            with InitMessenger(typical_value):
                probe: Any = poutine.trace(model).get_trace(*args, **kwargs)
            sites = read_sites(probe)
            refuse_too_large(sites, n, runtime.dtype, runtime.device, "the draws")
            unobserved = Unobserve([site.name for site in drawn_anew(sites)])(model)
            keep = [site.name for site in sites if site.distribution != "Unit"]

            def run(_: Any) -> dict[str, Tensor]:
                trace: Any = poutine.trace(unobserved).get_trace(*args, **kwargs)
                return {name: trace.nodes[name]["value"] for name in keep}

            drawn: dict[str, Tensor] = repeat(run, n, chunk=chunk_of(sites, n))
    return drawn
