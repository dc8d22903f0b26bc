"""`fit`: from a model, a guide and data to a `Fit`. The loop that ties the floors together."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle import results
from ingle.data import read, resolve_batch_size
from ingle.engine import resolve_optimisers
from ingle.errors import IngleError, OptionError, TrainedModuleWarning, warn
from ingle.objectives import choose
from ingle.options import positive_integer
from ingle.program import GuideName, Program, buffers_kept, build_program, find_modules
from ingle.progress import Progress
from ingle.runtime import Runtime, resolve_device, resolve_dtype, resolve_seed
from ingle.training import Stopped, Training
from ingle.trust import best_start
from ingle.version import __version__

__all__ = ["Fit", "fit"]

Compile = Literal["auto", "off", "full"]

# Module parameters by identity, with what keeps the identity honest: a weak reference to the parameter.
_trained: dict[int, weakref.ref[Tensor]] = {}


@dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """A fitted guide: what came out, why it stopped, and the ways on from here.

    Attributes:
        losses: the loss (negative ELBO) of each step, in nats, float64, shape (steps,).
        stopped: "steps" (all that were asked for), "plateau" (the rule on the smoothed ELBO), "budget" (the most
            that a fit takes by itself), "interrupted" (Ctrl-C) or "failed" (found on the error that says why).
        reason: the same in words.
        steps: how many were taken.
        seconds: of wall-clock time that the steps took.
        model: as it was given.
        guide: the trained guide; call it inside `with fit.active():`.
        objective, objective_reason, optimiser, engine, dtype, device, seed: what ran.
        notes: what else should be known, for the card.
    """

    losses: NDArray[np.float64]
    stopped: Stopped
    reason: str
    steps: int
    seconds: float
    model: Callable[..., Any]
    guide: Callable[..., Any]
    objective: str
    objective_reason: str
    optimiser: str
    engine: str
    dtype: torch.dtype
    device: torch.device
    seed: int
    notes: tuple[str, ...]
    _program: Program = field(repr=False)
    _runtime: Runtime = field(repr=False)

    @property
    def params(self) -> dict[str, Tensor]:
        """The trained parameters by name, constrained, detached copies."""
        with self._runtime.numerics():
            return self._program.parameters()

    @property
    def elbo(self) -> tuple[float, float, int]:
        """Mean ELBO of the last steps in nats, its standard error, and how many steps: a tenth, at least 100.

        NaN, NaN and 0 where no step was taken.
        """
        tail = self.losses[-max(len(self.losses) // 10, 100) :]
        if len(tail) == 0:
            return math.nan, math.nan, 0
        se = float(tail.std(ddof=1)) / math.sqrt(len(tail)) if len(tail) > 1 else math.nan
        return -float(tail.mean()), se, len(tail)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, Pyro's parameter store, default dtype and device are those of the fit.

        Any function of the user's then sees the fitted parameters; outside, everything is as it was. The random
        state is the user's, inside as outside. What is done to the store inside is forgotten on the way out.
        """
        with self._runtime.numerics(forget=True):
            yield

    def draws(self, n: int = 1_000, *, seed: int | None = None) -> dict[str, Tensor]:
        """Independent draws from the guide, by site, deterministic sites of the model included.

        Args:
            n: number of draws.
            seed: of the draws; None gives the same draws at every call.

        Returns:
            For each site a tensor of shape (n, *site shape), in the dtype and on the device of the fit, with all
            rows of every plate. Latents that are summed out are not drawn. All draws go through the program
            together, so Python of its own (a counter, a print) runs once for many draws.

        Raises:
            OptionError: n below 1.
        """
        positive_integer("n", n)
        with self._runtime.scope(None if seed is None else resolve_seed(seed)):
            return results.posterior(self._program, n)

    def to_arviz(
        self,
        draws: int = 1_000,
        *,
        coords: Mapping[str, Sequence[Any]] | None = None,
        dims: Mapping[str, Sequence[str]] | None = None,
    ) -> Any:
        """Posterior, posterior predictive and observed data for ArviZ, one chain of `draws` draws.

        Args:
            draws: number of draws.
            coords: labels for a dimension; the dimension of a plate has the plate's name.
            dims: names for the dimensions of a site, in place of those found.

        Returns:
            `arviz.InferenceData` with ArviZ 0.23, `xarray.DataTree` with 1.x.

        Raises:
            OptionError: draws below 1, labels of another length, names that are not there.
        """
        positive_integer("draws", draws)
        program = self._program
        with self._runtime.scope():
            drawn = results.posterior(program, draws, predictive=True)
            observed = results.observations(program)
        groups = {
            "posterior": {name: value for name, value in drawn.items() if name not in observed},
            "posterior_predictive": {name: drawn[name] for name in observed},
            "observed_data": observed,
        }
        attributes = {
            "inference_library": "ingle",
            "inference_library_version": __version__,
            "pyro_version": pyro.__version__,
            "torch_version": str(torch.__version__),
            "objective": self.objective,
            "steps": self.steps,
            "stopped": self.stopped,
            "seed": self.seed,
        }
        return results.to_arviz(program.model_sites, groups, coords=coords, dims=dims, attributes=attributes)

    def summary(self, draws: int = 1_000) -> Any:
        """Mean, sd and interval of every latent and deterministic site, as a DataFrame made by ArviZ."""
        return results.summary(self.to_arviz(draws))

    def __repr__(self) -> str:
        return results.card(self, self._program)


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
