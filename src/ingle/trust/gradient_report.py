"""`gradient_report`: what each estimator's gradient is worth, on one pair, at the same parameters."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import config_enumerate
from torch import Tensor

from ingle.data import read, resolve_batch_size
from ingle.engine import Compile, Moments, choose_engine, resolve_compile
from ingle.errors import OptionError
from ingle.objectives import TraceEnum_ELBO, choose
from ingle.options import positive_integer
from ingle.program import GuideName, Program, Values, buffers_kept, build_program, find_modules
from ingle.runtime import Runtime
from ingle.trust.start import best_start

__all__ = ["GradientReport", "GradientRow", "ObjectiveRow", "gradient_report", "report_on"]

_WARM = 4  # samples that are not timed, beside those that a compiled engine takes eagerly


@dataclass(frozen=True)
class GradientRow:
    """The gradient of the loss with respect to one parameter, or to several together, unconstrained.

    Attributes:
        parameter: its name.
        size: how many numbers it has.
        norm: of the mean gradient, in nats a unit of the parameter; with few samples noise adds to it.
        variance: of one sample, summed over its numbers.
        snr: norm over the square root of the variance.
        cost: variance times the seconds of one sample.
        z: the largest distance of a number's mean from the exact gradient, in standard errors; NaN without an exact
            gradient of the same objective. Among hundreds of numbers, or where draws that matter are rare, above 4 is
            no sign of a fault.
    """

    parameter: str
    size: int
    norm: float
    variance: float
    snr: float
    cost: float
    z: float


@dataclass(frozen=True)
class ObjectiveRow:
    """What one objective gave.

    Attributes:
        name: in the report.
        bound: mean of the ELBO, or of the bound that it estimates, in nats.
        se: its standard error.
        samples: how many gradients.
        seconds: of one.
        engine: that drew them, "exact" for the exact gradient.
        total: all parameters together.
        parameters: one by one.
    """

    name: str
    bound: float
    se: float
    samples: int
    seconds: float
    engine: str
    total: GradientRow
    parameters: tuple[GradientRow, ...]


@dataclass(frozen=True)
class GradientReport:
    """Gradients of several objectives at the same parameters; prints as a table.

    Attributes:
        rows: one for each objective, the exact gradient last where the guide can be summed out.
        told: what pair, where, and with which numbers, in words.
    """

    rows: tuple[ObjectiveRow, ...]
    told: str

    def __getitem__(self, name: str) -> ObjectiveRow:
        """The row of an objective."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; there are {', '.join(repr(row.name) for row in self.rows)}")

    def to_dataframe(self) -> Any:
        """One line for each objective and parameter, the total of an objective as parameter "all"."""
        import pandas as pd

        lines = [
            {
                "objective": row.name,
                "parameter": line.parameter,
                "bound": row.bound,
                "bound_se": row.se,
                "samples": row.samples,
                "seconds": row.seconds,
                "engine": row.engine,
                "size": line.size,
                "mean_norm": line.norm,
                "variance": line.variance,
                "snr": line.snr,
                "variance_times_seconds": line.cost,
                "z": line.z,
            }
            for row in self.rows
            for line in (*row.parameters, row.total)
        ]
        return pd.DataFrame(lines).set_index(["objective", "parameter"])

    def __repr__(self) -> str:
        heads = ["objective", "bound", "µs", "parameter", "|mean|", "variance", "SNR", "var x µs", "max |z|"]
        lines = [heads]
        for row in self.rows:
            first = [row.name, _bound(row), "" if row.engine == "exact" else f"{row.seconds * 1e6:,.1f}"]
            shown = row.parameters if 1 < len(row.parameters) <= 6 else ()
            for line in (*shown, row.total):
                lines.append([*first, line.parameter, *_numbers(line)])
                first = ["", "", ""]
        widths = [max(len(line[place]) for line in lines) for place in range(len(heads))]
        left = (0, 3)
        table = [
            "  ".join(
                cell.ljust(width) if place in left else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        ]
        return "\n".join([self.told, "", *table])


def gradient_report(
    model: Callable[..., Any],
    guide: GuideName | Callable[..., Any] | type,
    data: Any,
    objectives: Any,
    num_samples: int = 1_000,
    *,
    batch_size: Mapping[str, int] | None = None,
    seed: int = 0,
    device: str | torch.device | None = None,
    dtype: torch.dtype = torch.float32,
    compile: Compile = "auto",
) -> GradientReport:
    """Draw gradients by several objectives at the parameters that a fit would start from, and hold them side by side.

    `Fit.gradient_report` does it at the parameters of a fit.

    Args:
        model, guide, data, batch_size, seed, device, dtype: as for `ingle.fit`.
        objectives: a `pyro.infer.ELBO`, several in a list, or in a mapping by the names that the report is to use. Its
            particles are part of an objective: for estimators at equal cost give K of one the K times as many of
            another.
        num_samples: of the gradient, for each objective; 2 or more.
        compile: as for `ingle.fit`. Times are those of the engine that drew.

    Returns:
        A `GradientReport`. Where the guide has only finite discrete latents, and all rows of every plate are used, the
        exact ELBO and its gradient are the last row, "exact", and z-scores of the estimators of the ELBO are against
        it. Nothing moves: not the parameters, nor what modules keep. Averages of decaying baselines begin at the first
        sample.

    Raises:
        OptionError: fewer than two samples, two objectives of one name, or what is no objective.
        ProgramError: an objective cannot serve the pair; or model or guide raised.

    References:
        Rainforth et al. (2018), Tighter Variational Bounds Are Not Necessarily Better (signal to noise).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> from ingle.objectives import RLOO_ELBO, TraceGraph_ELBO
        >>> def model(y):
        ...     k = pyro.sample("k", dist.Bernoulli(0.3))
        ...     pyro.sample("y", dist.Normal(k, 1.0), obs=y)
        >>> def guide(y):
        ...     pyro.sample("k", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.0))))
        >>> report = ingle.gradient_report(model, guide, torch.tensor(0.8), [TraceGraph_ELBO(4), RLOO_ELBO(4)], 100)
        >>> report["RLOO_ELBO(4)"].total.variance < report["TraceGraph_ELBO(4)"].total.variance
        True
    """
    named = _named(objectives)
    resolve_compile(compile)
    _enough(num_samples)
    arguments = read(data)
    runtime = Runtime.resolved(dtype, device, seed, default=arguments.device())
    rows = resolve_batch_size(batch_size)
    with runtime.scope(), buffers_kept(find_modules(model, guide)):
        arguments = arguments.to(runtime.dtype, runtime.device)
        program = build_program(model, guide, arguments, batch_size=rows, runtime=runtime)
        best_start(program, choose(None, program).objective, runtime)
        return report_on(program, runtime, named, num_samples, compile=compile)


def report_on(
    program: Program, runtime: Runtime, objectives: Any, num_samples: int, *, compile: Compile
) -> GradientReport:
    """The report of a program as it is now, inside a scope of its runtime; the program is left as it was."""
    named = _named(objectives)
    _enough(num_samples)
    resolve_compile(compile)
    values = Values(program)
    remembered, before = program.memory, values.capture()
    try:
        exact = _exact(program, runtime)
        rows = [_drawn(name, given, program, runtime, num_samples, compile, exact) for name, given in named.items()]
    finally:
        program.memory = remembered
        values.restore(before)
    model, guide = getattr(program.model, "__name__", "the model"), program.recipe.description
    told = (
        f"Gradients of {model} and {guide}: {num_samples:,} samples each, {str(runtime.dtype).removeprefix('torch.')} "
        f"on {runtime.device}, seed {runtime.seed}"
    )
    if exact is not None:
        rows.append(_exact_row(*exact))
    return GradientReport(tuple(rows), told)


def _drawn(
    name: str,
    objective: Any,
    program: Program,
    runtime: Runtime,
    num_samples: int,
    compile: Compile,
    exact: tuple[float, dict[str, Tensor]] | None,
) -> ObjectiveRow:
    choice = choose(objective, program).prepared(program)
    runtime.reseed()
    moments = Moments(program)
    engine = choose_engine(compile, program, choice.objective, moments, runtime, steps=num_samples)
    losses = [engine.advance(min(num_samples, 2 * _WARM)).double().cpu()]
    rest = num_samples - len(losses[0])
    began = time.perf_counter()
    if rest:
        losses.append(engine.advance(rest).double().cpu())
    seconds = (time.perf_counter() - began) / rest if rest else math.nan
    loss = torch.cat(losses)
    truth = exact[1] if exact is not None and getattr(choice.objective, "is_elbo", False) else None
    found = moments.found()
    parameters = tuple(
        _row(parameter, mean, variance, num_samples, seconds, None if truth is None else truth[parameter])
        for parameter, (mean, variance) in found.items()
    )
    together = [torch.cat([part[place].reshape(-1) for part in found.values()]) for place in (0, 1)]
    whole = None if truth is None else torch.cat([truth[parameter].reshape(-1) for parameter in found])
    total = _row("all", together[0], together[1], num_samples, seconds, whole)
    return ObjectiveRow(
        name=name,
        bound=-float(loss.mean()),
        se=float(loss.std()) / math.sqrt(num_samples),
        samples=num_samples,
        seconds=seconds,
        engine=engine.name,
        total=total,
        parameters=parameters,
    )


def _row(name: str, mean: Tensor, variance: Tensor, samples: int, seconds: float, truth: Tensor | None) -> GradientRow:
    norm, total = float(mean.norm()), float(variance.sum())
    z = math.nan
    if truth is not None:
        rounding = 1e-6 * (1.0 + truth.abs())  # of single precision, where a gradient has no variance
        z = float(((mean - truth).abs() / ((variance / samples).sqrt() + rounding)).max())
    snr = norm / math.sqrt(total) if total > 0 else math.inf
    return GradientRow(name, mean.numel(), norm, total, snr, total * seconds, z)


def _exact(program: Program, runtime: Runtime) -> tuple[float, dict[str, Tensor]] | None:
    """The ELBO and the gradient of the loss where every draw of the guide can be summed over, else None."""
    drawn = [site for site in program.guide_sites if site.kind != "observed"]
    partial = any(program.partial(site) for site in (*program.model_sites, *program.guide_sites))
    if not all(site.enumerable for site in drawn) or program.batch_sizes or partial or program.enumerated:
        return None
    elbo = TraceEnum_ELBO(max_plate_nesting=program.max_plate_nesting)
    guide = config_enumerate(program.guide, "parallel")
    args, kwargs = program.data.args, program.data.kwargs
    with program.explained("model or guide"):
        with torch.no_grad():
            elbo.told(program.model, guide, *args, **kwargs)
        loss = elbo.differentiable_loss(program.model, guide, *args, **kwargs)
    leaves = program.leaves()
    found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
    gradients = {
        name: torch.zeros(leaf.shape, dtype=torch.float64) if gradient is None else gradient.double().cpu()
        for (name, leaf), gradient in zip(leaves.items(), found, strict=True)
    }
    return -float(loss.detach()), gradients


def _exact_row(elbo: float, gradients: Mapping[str, Tensor]) -> ObjectiveRow:
    def row(name: str, gradient: Tensor) -> GradientRow:
        return GradientRow(name, gradient.numel(), float(gradient.norm()), 0.0, math.inf, 0.0, 0.0)

    parameters = tuple(row(name, gradient) for name, gradient in gradients.items())
    total = row("all", torch.cat([gradient.reshape(-1) for gradient in gradients.values()]))
    return ObjectiveRow("exact", elbo, 0.0, 0, 0.0, "exact", total, parameters)


def _named(objectives: Any) -> dict[str, Any]:
    """Objectives by name; "RLOO_ELBO(4)" where there is none."""
    if isinstance(objectives, Mapping):
        return {str(name): objective for name, objective in objectives.items()}
    several = list(objectives) if isinstance(objectives, Iterable) else [objectives]
    named: dict[str, Any] = {}
    for objective in several:
        particles = getattr(objective, "num_particles", 1)
        name = type(objective).__name__ + (f"({particles})" if particles != 1 else "")
        if name in named:
            raise OptionError(
                f"two objectives would be called {name!r} in the report; give a mapping from names to objectives"
            )
        named[name] = objective
    if not named:
        raise OptionError("objectives is empty: give a pyro.infer.ELBO or several")
    return named


def _enough(num_samples: int) -> None:
    if positive_integer("num_samples", num_samples) < 2:
        raise OptionError("num_samples must be 2 or more, for a variance")


def _bound(row: ObjectiveRow) -> str:
    return f"{row.bound:,.3f}" if row.engine == "exact" else f"{row.bound:,.3f} ± {row.se:.2g}"


def _numbers(row: GradientRow) -> list[str]:
    known = row.variance > 0
    return [
        f"{row.norm:.4g}",
        f"{row.variance:.3g}",
        f"{row.snr:.3g}" if known else "",
        f"{row.cost * 1e6:.3g}" if known else "",
        "" if math.isnan(row.z) or not known else f"{row.z:.2f}",
    ]
