"""`fit`: from a model, a guide and data to a `Fit`. The loop that ties the floors together."""

from __future__ import annotations

import math
import time
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
from ingle.engine import EagerEngine, Optimisers, State, resolve_optimisers
from ingle.errors import (
    IngleError,
    IngleWarning,
    OptionError,
    ProgramError,
    TrainedModuleWarning,
    positive_integer,
    warn,
)
from ingle.objectives import Choice, choose
from ingle.program import GuideName, Program, build_program
from ingle.progress import Progress
from ingle.runtime import Runtime, resolve_device, resolve_dtype, resolve_seed
from ingle.trust import Decision, Plateau, best_start, find_fault, nonfinite_parameter
from ingle.version import __version__

__all__ = ["Fit", "fit"]

Compile = Literal["auto", "off", "full"]
Stopped = Literal["steps", "plateau", "budget", "interrupted", "failed"]

_CALL = 50  # steps between two looks: a copy of the state before, losses to the host after

# Module parameters by identity, with what keeps the identity honest: a weak reference to the parameter.
_trained: dict[int, weakref.ref[Tensor]] = {}


@dataclass(frozen=True, repr=False, eq=False)
class Fit:
    """A fitted guide: what came out, why it stopped, and the ways on from here.

    Attributes:
        losses: the loss (negative ELBO) of each step, in nats, float64, shape (steps,).
        stopped: "steps" (all that were asked for), "plateau" (the rule on the smoothed ELBO), "budget" (the most
            that a fit takes by itself), "interrupted" (Ctrl-C) or "failed" (found on the error that says why).
        steps: how many were taken.
        seconds: of wall-clock time that the steps took.
        model: as it was given.
        guide: the trained guide; call it inside `with fit.active():`.
        objective, objective_reason, optimiser, engine, dtype, device, seed: what ran.
        notes: what else should be known, for the card.
    """

    losses: NDArray[np.float64]
    stopped: Stopped
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
            constrained = dict(pyro.get_param_store().items())
        return {name: constrained.get(name, leaf).detach().clone() for name, leaf in self._program.leaves().items()}

    @property
    def elbo(self) -> tuple[float, float, int]:
        """Mean ELBO of the last steps in nats, its standard error, and how many steps: a tenth, at least 100."""
        tail = self.losses[-max(len(self.losses) // 10, 100) :]
        se = float(tail.std(ddof=1)) / math.sqrt(len(tail)) if len(tail) > 1 else math.nan
        return -float(tail.mean()), se, len(tail)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Inside, Pyro's parameter store, default dtype and device are those of the fit.

        Any function of the user's then sees the fitted parameters; outside, everything is as it was. The random
        state is the user's, inside as outside.
        """
        with self._runtime.numerics():
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
            array. Floating arrays and tensors take the dtype and device of the fit; integers and booleans keep
            their kind.
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
        program = build_program(model, guide, arguments, batch_size=rows, runtime=runtime)
        choice = choose(objective, program)
        best_start(program, choice.objective, runtime)
        runtime.reseed()
        run = _Run(model, program, choice, optimisers, runtime)
        with Progress(steps, progress) as bar:
            stopped = run.train(steps, bar)
        run.finish()
        return run.result(stopped)


class _Run:
    """One fit while it runs."""

    def __init__(
        self, model: Callable[..., Any], program: Program, choice: Choice, optimisers: Optimisers, runtime: Runtime
    ) -> None:
        self.model = model
        self.program = program
        self.choice = choice
        self.optimisers = optimisers
        self.runtime = runtime
        self.engine = EagerEngine(program, choice.objective, optimisers, runtime)
        self.losses: list[float] = []
        self.seconds = 0.0
        self.notes: list[str] = []

    def train(self, steps: int | None, bar: Progress) -> Stopped:
        """Advance until the steps are done, the rule says stop, or Ctrl-C."""
        _warn_of_trained(self.program)
        bad = nonfinite_parameter(self.program.leaves())
        if bad is not None:
            raise ProgramError(f"parameter {bad} is not finite before the first step: start it from a number")
        rule = Plateau(decays=self.optimisers.decays)
        start = time.perf_counter()
        before = self.engine.capture()
        try:
            while steps is None or len(self.losses) < steps:
                before = self.engine.capture()
                call = _CALL if steps is None else min(_CALL, steps - len(self.losses))
                losses = self._advance(before, call, start)
                self.losses.extend(losses)
                self.seconds = time.perf_counter() - start
                bar.advance(losses)
                decision = Decision.GO_ON if steps is not None else rule.look(np.asarray(self.losses))
                if decision is Decision.DECAY:
                    self.optimisers.scale_lr(Plateau.FACTOR)
                elif decision is not Decision.GO_ON:
                    return "plateau" if decision is Decision.STOP else "budget"
        except KeyboardInterrupt:
            if len(self.losses) == before.step:  # inside a call, perhaps inside an update: go back to its start
                self.engine.restore(before)
            return "interrupted"
        return "steps"

    def _advance(self, before: State, steps: int, start: float) -> list[float]:
        """The losses of one call, all finite; otherwise the error that says what broke it, with the fit so far."""
        cause, bad = None, None
        try:
            losses: list[float] = self.engine.advance(steps).double().tolist()
            bad = next((place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
            if bad is None and nonfinite_parameter(self.program.leaves()) is None:
                return losses
        except IngleError:
            raise
        except Exception as error:  # model and guide are the user's, and may raise anything
            cause = error
        fault, good = find_fault(self.engine, before, steps, seen=bad, raised=cause is not None)
        self.losses.extend(good)
        self.seconds = time.perf_counter() - start
        fault.fit = self.result("failed")
        raise fault from (fault.__cause__ or cause)

    def finish(self) -> None:
        """Replace the guide where its recipe says so, by the Laplace approximation for one."""
        finish, data = self.program.recipe.finish, self.program.data
        if finish is None:
            return
        try:
            self.program.guide = finish(self.program.guide, data.args, data.kwargs)
        except (RuntimeError, ValueError) as error:
            note = (
                "the curvature at the mode is not positive definite, so there is no Laplace approximation: the "
                "draws are all at the mode. Fit on, or use 'multivariate_normal'"
            )
            warn(f"{note} ({error})", IngleWarning)
            self.notes.append(note)

    def result(self, stopped: Stopped) -> Fit:
        """The fit as it stands."""
        return Fit(
            losses=np.asarray(self.losses, dtype=np.float64),
            stopped=stopped,
            steps=len(self.losses),
            seconds=self.seconds,
            model=self.model,
            guide=self.program.guide,
            objective=self.choice.name,
            objective_reason=self.choice.reason,
            optimiser=self.optimisers.description,
            engine=self.engine.name,
            dtype=self.runtime.dtype,
            device=self.runtime.device,
            seed=self.runtime.seed,
            notes=tuple(self.notes),
            _program=self.program,
            _runtime=self.runtime,
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
