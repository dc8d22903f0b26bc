"""`fit`: from a model, a guide and data to a `Fit`. The loop that ties the floors together."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from typing import Any

import torch

from ingle import saved
from ingle.checkpoint import Checkpoint
from ingle.data import read, resolve_batch_size
from ingle.engine import Compile, choose_engine, resolve_compile, resolve_optimisers
from ingle.errors import OptionError
from ingle.fitted import Fit, carry_on
from ingle.objectives import choose
from ingle.options import positive_integer
from ingle.program import GuideName, buffers_kept, build_program, find_modules, modules_kept
from ingle.runtime import Runtime
from ingle.trained import note_trained, warn_of_trained
from ingle.training import Training
from ingle.trust import best_start, start_from_file

__all__ = ["fit"]


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
    checkpoint: str | os.PathLike[str] | None = None,
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
        objective: a `pyro.infer.ELBO`. None: TraceEnum_ELBO where something is summed out,
            `ingle.objectives.RLOO_ELBO` where a guide site has no pathwise gradient, Trace_ELBO otherwise.
        optim: a callable from parameters to a `torch.optim.Optimizer`, such as
            `functools.partial(torch.optim.Adam, lr=1e-2)`; a Pyro optimiser; or a mapping with one for "model" and
            one for "guide". A schedule of Pyro's advances once a step. None: ClippedAdam, its learning rate 0.1 where
            the guide moves in sds of the posterior (`Fit.start`), 0.02 otherwise, decaying.
        steps: how many to take; the result is the last. None goes on until the parameters have settled, halves the
            learning rate while that still gains, and results in averages over the last stretch (`Fit.params`, and
            `Fit.last` for the last step): see `Fit.reason`. It ends after 50,000 steps or half an hour at the latest.
        batch_size: rows of named plates to draw for each step, as in `{"data": 100}`, for a model written for
            the full plate, `with pyro.plate("data", N) as i:` and `x[i]`.
        seed: 0 to 2**32 - 1. The same seed gives the same losses, bit for bit on the CPU.
        device: None is the device of the first tensor in the data.
        dtype: of the whole program, constants in the model included; where a guide by name starts is found in float64.
        compile: "off" takes every step as Pyro would. "full" takes a few so, then records one and compiles loss,
            gradient and update into one graph that takes all others; where that cannot be, it raises. "auto" compiles
            where sites and steps are many enough for it to pay, and goes on eagerly where it cannot, with a warning.
        guide_steps: the guide moves at every step, the model's parameters at every `guide_steps`-th.
        progress: True or False; None shows a bar where standard error is a terminal.
        checkpoint: a file that the fit keeps of itself, every minute and at its end, whole at any moment. Where it
            is there already, from a fit that was killed, stopped, or saved by `Fit.save`, the fit goes on from it, on
            the CPU to the same bits as one that was never broken off; `steps` may be another number, counts from
            the first step, and is met at once by a fit that has them. A learning rate of Ingle's keeps to the steps
            of the first call. Arguments that would change the course are refused.

    Returns:
        A `Fit`. After Ctrl-C it is the fit so far.

    Raises:
        DataError, OptionError: something was handed over that cannot be used.
        ProgramError: model or guide raised, or they do not belong together.
        NonFiniteError: a loss, gradient or parameter became NaN or infinite.
        FileError: the checkpoint cannot be read or written, or is of another fit. A write on the way that fails
            only warns.

        An error that ends a fit after it began has the fit up to then, every parameter finite, as its `fit`.

    References:
        Hoffman, Blei, Wang and Paisley (2013), Stochastic Variational Inference.
        Kucukelbir et al. (2017), Automatic Differentiation Variational Inference.
        Welandawe, Andersen, Vehtari and Huggins (2022), A Framework for Improving the Reliability of Black-box
        Variational Inference (when it stops).

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
    runtime = Runtime.resolved(dtype, device, seed, default=arguments.device())
    optimisers = resolve_optimisers(optim, guide_steps=guide_steps, steps=steps)
    rows = resolve_batch_size(batch_size)
    file = None if checkpoint is None else Checkpoint(saved.resolve_path("checkpoint", checkpoint))
    content = None if file is None else file.read()
    with runtime.scope(), ExitStack() as stack:
        if content is not None:
            refused = stack.enter_context(modules_kept(find_modules(model, guide)))
        arguments = arguments.to(runtime.dtype, runtime.device)
        with buffers_kept(find_modules(model, guide)):
            program = build_program(model, guide, arguments, batch_size=rows, runtime=runtime)
            choice = choose(objective, program)
            if content is None:
                start = best_start(
                    program, choose(None, program).objective, runtime
                )  # by the ELBO, whatever is trained on
            else:
                start = start_from_file(program, content["about"].get("start"))
            choice = choice.prepared(program)
        if start.whitened != "no":
            optimisers.in_sds()
        runtime.reseed()
        before = None if content is None else content["about"]["engine"]
        engine = choose_engine(compile, program, choice.objective, optimisers, runtime, steps=steps, before=before)
        training = Training(program, choice, optimisers, engine, runtime, checkpoint=file, show=progress, start=start)
        if file is not None:
            optimisers.check_plain(*program.sides())
        if file is None or content is None:
            warn_of_trained(program.leaves(), "trained on from there")
        else:
            training.adopt(file.path, content)
            refused.pop_all()
        note_trained(program.leaves())
        if training.complete(steps):
            return carry_on(model, training, training.finish)
        if file is not None:
            file.check()
        return carry_on(model, training, lambda: training.go(steps))


def _options(steps: object, compile: object, progress: object) -> None:
    if steps is not None:
        positive_integer("steps", steps)
    resolve_compile(compile)
    if progress is not None and not isinstance(progress, bool):
        raise OptionError(f"progress must be True, False or None, got {progress!r}")
