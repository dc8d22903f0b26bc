"""`log_evidence`: log p(x) by importance sampling, streamed over draws."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from ingle.data import read
from ingle.errors import OptionError
from ingle.evidence.estimate import ProposalName, estimate
from ingle.evidence.evidence import Evidence
from ingle.evidence.proposal import prior_alone
from ingle.evidence.sampler import Chunk
from ingle.program import build_program, find_modules, modules_kept, set_guide
from ingle.runtime import Runtime

__all__ = ["log_evidence"]


def log_evidence(
    model: Callable[..., Any],
    guide: Callable[..., Any] | None,
    data: Any,
    *,
    num_samples: int = 10_000,
    per: str | None = None,
    proposal: ProposalName = "guide",
    defensive: float = 0.0,
    given: Mapping[str, Any] | None = None,
    chunk: Chunk = "auto",
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> Evidence:
    r"""Estimate log p(x), the marginal likelihood of the data, and say how far the estimate can be trusted.

        log Z = log 1/S sum_s w_s,   w_s = p(x, z_s) / q(z_s),   z_s ~ q,

    with the parameters that Pyro's store and the modules hold now; `Fit.log_evidence` does it for a fitted pair. The
    mean of the weights is unbiased; its log lies below log p(x) on average, by about half the square of the standard
    error. All rows of every plate are used.

    Args:
        model: a callable with Pyro statements. Discrete latents of finite support that the guide leaves out are summed
            out exactly. What `poutine.mask` or `obs_mask` hides is integrated out, so that the evidence is that of
            what was observed.
        guide: its proposal, trained: a callable with Pyro statements. None draws from the prior.
        data: as for `ingle.fit`.
        num_samples: S.
        per: the name of a plate: one estimate for each of its elements, log p(x_i), from weights of its own, for
            models whose latents all lie inside; the total is their sum. None: one weight a draw for all data.
        proposal: "guide"; "prior", naive Monte Carlo; or "ais", annealed importance sampling from the guide and from
            the prior to the posterior, for continuous latents that importance sampling cannot do.
        defensive: the share of draws that come from the prior, at most 0.5. All draws are then weighed against the
            mixture of both, so that no weight is larger than the likelihood over the share, and a mode that the guide
            misses can be found.
        given: values of latents that are held fixed, by name: log p(x | given).
        chunk: how many draws go through the program together; "auto" finds it from memory. The result is the same up to
            rounding.
        seed: 0 to 2**32 - 1. The same seed gives the same draws, whatever the chunk.
        device: None is that of the first tensor in the data.
        dtype: None is that of the parameters; without any, torch's default. Sums over draws are kept in float64.

    Returns:
        `Evidence`: `log_z` in nats, standard error, ESS, k-hat, a verdict in words; `pointwise` arrays with `per`.

    Raises:
        DataError, ProgramError: as from `ingle.fit`.
        OptionError: a guide that is a point mass or was not made yet, a plate whose elements share a latent, a prior
            that cannot be drawn, or a value that an option cannot take.

    References:
        Kloek and van Dijk (1978), Bayesian Estimates of Equation System Parameters: An Application of Integration by
        Monte Carlo.
        Owen and Zhou (2000), Safe and Effective Importance Sampling (`defensive`).
        Vehtari, Simpson, Gelman, Yao and Gabry (2024), Pareto Smoothed Importance Sampling (k-hat).
        Neal (2001), Annealed Importance Sampling.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("mu", dist.Normal(y / 2, 0.5**0.5))  # the posterior
        >>> ingle.log_evidence(model, guide, torch.tensor(0.8), num_samples=100).verdict
        'exact'
    """
    if isinstance(guide, (str, type)):
        named = guide.__name__ if isinstance(guide, type) else repr(guide)
        raise OptionError(
            f"guide {named} has no parameters yet: ingle.fit(model, guide, data).log_evidence() fits it first"
        )
    if guide is None and proposal == "guide":
        raise OptionError("there is no guide to draw from: give one, or proposal='prior'")
    arguments = read(data)
    state = pyro.get_param_store().get_state()
    runtime = Runtime.resolved(
        _dtype(state, model, guide) if dtype is None else dtype, device, seed, default=arguments.device()
    )
    runtime.parameters = {"params": dict(state["params"]), "constraints": dict(state["constraints"])}
    with runtime.scope(), modules_kept(find_modules(model, guide)):
        arguments = arguments.to(runtime.dtype, runtime.device)
        program = build_program(
            model,
            prior_alone(model) if guide is None else guide,
            arguments,
            batch_size={},
            runtime=runtime,
            tolerated=("nothing to train", "support"),
        )
        set_guide(program)
        return estimate(
            program,
            runtime,
            num_samples=num_samples,
            per=per,
            proposal=proposal,
            defensive=defensive,
            given=given,
            chunk=chunk,
            guided=guide is not None,
        )


def _dtype(state: Any, *programs: object) -> torch.dtype:
    """Of the first floating parameter, of the store or of a module."""
    leaves = [*state["params"].values(), *(leaf for module in find_modules(*programs) for leaf in module.parameters())]
    floating = (leaf.dtype for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())
    return next(floating, torch.get_default_dtype())
