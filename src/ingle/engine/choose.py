"""Which engine takes the steps of a fit, decided from counts."""

from __future__ import annotations

from typing import Any, Literal, get_args

from ingle.engine import internals
from ingle.engine.compiled import CompiledEngine
from ingle.engine.eager import EagerEngine
from ingle.engine.endings import Moments
from ingle.engine.optimiser import Optimisers
from ingle.engine.protocol import Engine
from ingle.errors import IngleWarning, OptionError, warn
from ingle.objectives import Estimator
from ingle.program import Program
from ingle.runtime import Runtime

__all__ = ["Compile", "choose_engine", "resolve_compile"]

Compile = Literal["auto", "off", "full"]

_WORTH = 40_000  # statements that a fit runs eagerly in about the time that a graph takes to compile
_UNKNOWN = 6_000  # steps that a fit takes by itself, as a rule


def resolve_compile(compile: object) -> None:
    """Raises `OptionError` for anything but one of the choices."""
    if not isinstance(compile, str) or compile not in get_args(Compile):
        raise OptionError(f"compile must be one of {', '.join(map(repr, get_args(Compile)))}, got {compile!r}")


def choose_engine(
    compile: Compile,
    program: Program,
    objective: Any,
    optimisers: Optimisers | Moments,
    runtime: Runtime,
    *,
    steps: int | None,
    before: str | None = None,
) -> Engine:
    """The engine of a fit.

    Args:
        compile: "off" runs eagerly, "full" compiles or raises, "auto" compiles where the program has statements enough,
            counted once for each particle that runs by itself, and the fit steps enough for that to pay.
        program, objective, optimisers, runtime: of the fit.
        steps: that it takes, None for as many as a rule finds.
        before: the engine of the fit that this one goes on from.

    Raises:
        OptionError: "full" where nothing can compile.
    """
    eager = EagerEngine(program, objective, optimisers, runtime)
    if compile == "off" or (compile == "auto" and before == "eager"):
        return eager
    traceable = isinstance(objective, Estimator)
    if compile == "auto":
        runs = 1 if getattr(objective, "vectorize_particles", False) else getattr(objective, "num_particles", 1)
        statements = runs * (len(program.model_sites) + len(program.guide_sites) + len(program.leaves()))
        enough = before == "compiled" or statements * (_UNKNOWN if steps is None else steps) >= _WORTH
        if not traceable:
            eager.notes.append(f"the steps ran eagerly: {type(objective).__name__} cannot be compiled")
            return eager
        if not enough:
            eager.notes.append("the steps ran eagerly: too few steps for compiling to pay")
            return eager
    elif not traceable:
        raise OptionError(
            f"compile='full': {type(objective).__name__} is not one of the objectives that can be compiled; "
            "use compile='auto'"
        )
    if internals.compiler() is None and runtime.device.type == "cpu":
        told = internals.NO_COMPILER
        if compile == "full":
            raise OptionError(f"compile='full': {told}")
        warn(told, IngleWarning)
        return CompiledEngine(program, objective, optimisers, runtime, using="graph")
    return CompiledEngine(program, objective, optimisers, runtime, required=compile == "full")
