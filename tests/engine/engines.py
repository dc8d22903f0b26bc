"""An engine made as `fit` makes it, to be run by hand inside a scope of its runtime."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ingle.data import read, resolve_batch_size
from ingle.engine import EagerEngine, resolve_optimisers
from ingle.engine.compiled import CompiledEngine
from ingle.engine.graph import Using
from ingle.objectives import choose
from ingle.program import build_program, set_guide
from ingle.runtime import Runtime

FIRST = 4  # steps that a compiled engine takes eagerly, whatever comes after


@contextmanager
def engine_of(
    model: Any,
    guide: Any,
    data: Any,
    *,
    using: Using | None = "graph",
    objective: Any = None,
    optim: Any = None,
    batch_size: Any = None,
    guide_steps: int = 1,
    steps: int | None = 200,
    seed: int = 0,
    required: bool = True,
    dtype: torch.dtype = torch.float64,
    device: str | torch.device | None = None,
) -> Iterator[Any]:
    """A compiled engine, an eager one where `using` is None; everything that is done with it is done inside."""
    arguments = read(data)
    runtime = Runtime.resolved(dtype, device, seed, default=arguments.device())
    optimisers = resolve_optimisers(optim, guide_steps=guide_steps, steps=steps)
    with runtime.scope():
        arguments = arguments.to(runtime.dtype, runtime.device)
        program = build_program(model, guide, arguments, batch_size=resolve_batch_size(batch_size), runtime=runtime)
        choice = choose(objective, program)
        set_guide(program)
        chosen = choice.prepared(program).objective
        runtime.reseed()
        if using is None:
            yield EagerEngine(program, chosen, optimisers, runtime)
        else:
            yield CompiledEngine(program, chosen, optimisers, runtime, using=using, required=required)


def numbers(engine: Any) -> dict[str, Tensor]:
    """All that a step changes, copied: parameters, buffers, and what the objective remembers, by name."""
    values = engine.capture().values
    return {**values["leaves"], **values["buffers"], **values["memory"]}


def gradients(engine: Any) -> dict[str, Tensor]:
    """What the last step handed to a `Still`, by parameter; nothing for another optimiser."""
    ours = engine if isinstance(engine, EagerEngine) else engine._eager
    states: dict[Any, Any] = {}
    for group in ours.optimisers.groups.values():
        if isinstance(group.optimiser, Still):
            states.update(group.optimiser.state)
    leaves = ours.program.leaves()
    return {name: states[leaf]["gradient"] for name, leaf in leaves.items() if "gradient" in states.get(leaf, {})}


class Still(torch.optim.Optimizer):
    """An optimiser of the user's that moves nothing and keeps the gradients that it is given, one step's."""

    def __init__(self, params: Any) -> None:
        super().__init__(params, {"lr": 0.0})

    def step(self, closure: Any = None) -> Any:
        for group in self.param_groups:
            for leaf in group["params"]:
                self.state[leaf].clear()
                if leaf.grad is not None:
                    self.state[leaf]["gradient"] = leaf.grad.clone()
