"""`fit`: from a model, a guide and data to a `Fit`. The loop that ties the floors together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from ingle.data import read, resolve_batch_size
from ingle.engine import resolve_optimisers
from ingle.errors import IngleError, OptionError, TrainedModuleWarning, warn
from ingle.fitted import Fit
from ingle.objectives import choose
from ingle.options import positive_integer
from ingle.program import GuideName, Program, buffers_kept, build_program, find_modules
from ingle.progress import Progress
from ingle.runtime import Runtime, resolve_device, resolve_dtype, resolve_seed
from ingle.training import Training
from ingle.trust import best_start

__all__ = ["fit"]

Compile = Literal["auto", "off", "full"]

# Module parameters by identity, with what keeps the identity honest: a weak reference to the parameter.
_trained: dict[int, weakref.ref[Tensor]] = {}


def fit(
    model: Callable[..., Any],
    guide: GuideName | Callable[..., Any] | type,
    data: Any,
    *,
    objective: Any = None,
    optim: Any = None,
    steps: int | None = None,
    batch_size: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    compile: Compile = "auto",
    guide_steps: int = 1,
    progress: bool | None = None,
) -> Fit:
    """Fit a guide to the posterior of a Pyro model by stochastic variational inference.

    Args:
        model: a callable with Pyro statements; an `nn.Module` or `PyroModule` too.
        guide: a callable with Pyro statements; an AutoGuide, its class or a partial of it; or one of the names
            "normal", "multivariate_normal", "low_rank", "delta", "laplace", "flow". A discrete latent of finite
            support that the guide leaves out is summed out.
        data: the arguments of model and guide: a mapping (by name), a tuple (by position), or one tensor or
            array. Tensors and arrays are copied; floating ones take the dtype and device of the fit, integers and
            booleans keep their kind. Everything else passes untouched.
        objective: a `pyro.infer.ELBO`. None: TraceEnum_ELBO where something is summed out, TraceGraph_ELBO where
            a guide site has no pathwise gradient, Trace_ELBO otherwise.
        optim: a callable from parameters to a `torch.optim.Optimizer`, such as
            `functools.partial(torch.optim.Adam, lr=1e-2)`; a Pyro optimiser; or a mapping with one for "model" and
            one for "guide". A schedule of Pyro's advances once a step. None: ClippedAdam at 0.02, decaying.
        steps: how many to take. None stops by a rule on the smoothed ELBO, at 50,000 at the latest.
        batch_size: rows of named plates to draw for each step, as in `{"data": 100}`, for a model written for
            the full plate, `with pyro.plate("data", N) as i:` and `x[i]`.
        seed: 0 to 2**32 - 1. The same seed gives the same losses, bit for bit on the CPU.
        device: None is the device of the first tensor in the data.
        dtype: of the whole program, constants in the model included.
        compile: "auto", "off" or "full". This version has the eager engine alone: "full" is refused.
        guide_steps: the guide moves at every step, the model's parameters at every `guide_steps`-th.
        progress: True or False; None shows a bar where standard error is a terminal.

    Returns:
        A `Fit`. After Ctrl-C it is the fit so far.

    Raises:
        DataError, OptionError: something was handed over that cannot be used.
        ProgramError: model or guide raised, or they do not belong together.
        NonFiniteError: a loss, gradient or parameter became NaN or infinite.

        An error that ends a fit after it began has the fit up to then, every parameter finite, as its `fit`.

    References:
        Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
        Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> fit = ingle.fit(model, "normal", {"y": torch.tensor([1.0, 2.0, 3.0])}, steps=500)
        >>> fit.draws(100)["mu"].shape
        torch.Size([100])
    """
    _options(steps, compile, progress)
    arguments = read(data)
    runtime = Runtime(
        dtype=resolve_dtype(dtype),
        device=resolve_device(device, default=arguments.device()),
        seed=resolve_seed(seed),
    )
    optimisers = resolve_optimisers(optim, guide_steps=guide_steps, steps=steps)
    rows = resolve_batch_size(batch_size)
    with runtime.scope():
        arguments = arguments.to(runtime.dtype, runtime.device)
        with buffers_kept(find_modules(model, guide)):
            program = build_program(model, guide, arguments, batch_size=rows, runtime=runtime)
            choice = choose(objective, program)
            best_start(program, choose(None, program).objective, runtime)  # by the ELBO, whatever is trained on
        _warn_of_trained(program)
        runtime.reseed()
        training = Training(program, choice, optimisers, runtime)
        try:
            with Progress(steps, progress) as bar:
                training.run(steps, bar)
            training.finish()
        except IngleError as error:
            error.fit = _result(model, training)
            error.step = error.fit.steps if error.step is None else error.step
            raise
        return _result(model, training)


def _result(model: Callable[..., Any], training: Training) -> Fit:
    return Fit(
        losses=np.asarray(training.losses, dtype=np.float64),
        stopped=training.stopped,
        reason=training.reason,
        steps=len(training.losses),
        seconds=training.seconds,
        model=model,
        guide=training.program.guide,
        objective=training.choice.name,
        objective_reason=training.choice.reason,
        optimiser=training.optimisers.description,
        engine=training.engine.name,
        dtype=training.runtime.dtype,
        device=training.runtime.device,
        seed=training.runtime.seed,
        notes=tuple(training.notes),
        _program=training.program,
        _runtime=training.runtime,
    )


def _warn_of_trained(program: Program) -> None:
    parameters = {name: leaf for name, leaf in program.leaves().items() if isinstance(leaf, torch.nn.Parameter)}
    again = [name for name, leaf in parameters.items() if id(leaf) in _trained and _trained[id(leaf)]() is leaf]
    if again:
        warn(
            f"{len(again)} module parameters, {again[0]!r} first, were trained by another fit in this process and are "
            "trained on from there; that fit's results change with them. Build the module anew for a fresh start",
            TrainedModuleWarning,
        )
    for leaf in parameters.values():
        key = id(leaf)
        _trained[key] = weakref.ref(leaf, lambda _, key=key: _trained.pop(key, None))  # type: ignore[misc]


def _options(steps: object, compile: object, progress: object) -> None:
    if steps is not None:
        positive_integer("steps", steps)
    if not isinstance(compile, str) or compile not in get_args(Compile):
        raise OptionError(f"compile must be one of {', '.join(map(repr, get_args(Compile)))}, got {compile!r}")
    if compile == "full":
        raise OptionError("compile='full' asks for a compiled engine, which this version does not have; use 'auto'")
    if progress is not None and not isinstance(progress, bool):
        raise OptionError(f"progress must be True, False or None, got {progress!r}")
