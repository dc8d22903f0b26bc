"""Which step broke a fit, and which site or parameter was first at fault."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.engine import EagerEngine, State
from ingle.errors import NonFiniteError, ProgramError

__all__ = ["find_fault", "nonfinite_parameter"]

_ADVICE = (
    "Usual causes: a scale or probability without a constraint (pyro.param(…, constraint=constraints.positive)), a "
    "learning rate that is too large, a start far out, or float32 where float64 is needed (dtype=torch.float64)"
)


def find_fault(
    engine: EagerEngine, state: State, steps: int, *, seen: int | None, raised: bool
) -> tuple[NonFiniteError | ProgramError, list[float]]:
    """Replay a call of `steps` steps that broke, from `state` with the same noise, and name the first fault.

    Args:
        engine: to replay on; it is left as it was before the bad step, everything finite.
        state: before the call.
        steps: of the call.
        seen: the place of the first loss that was not finite, where there was one.
        raised: the program raised an error.

    Returns:
        The error to raise, with its step, and the losses of the steps before it.
    """
    engine.restore(state)
    losses: list[float] = []
    for _ in range(steps):
        before = engine.capture()
        try:
            with engine.program.explained("model or guide"):
                loss = engine.differentiate()
            fault = _fault(engine, loss)
        except ProgramError as error:
            engine.restore(before)
            told = ProgramError(f"step {before.step}: {error}", step=before.step)
            told.__cause__ = error.__cause__
            return told, losses
        if fault is None:
            losses.append(float(loss))
            continue
        if not bool(loss.isfinite()):
            engine.restore(before)
            where = _first_bad_site(engine)
            fault = f"{fault}: {where}" if where else fault
        engine.restore(before)
        return NonFiniteError(f"step {before.step}: {fault}. {_ADVICE}", step=before.step), losses
    engine.restore(state)
    step = state.step + (seen or 0)
    what = "the program raised" if raised else "something was not finite"
    kind = ProgramError if raised else NonFiniteError
    lost: NonFiniteError | ProgramError = kind(
        f"step {step}: {what}, but not when the step was repeated with the same noise, so the program keeps a state "
        f"of its own from step to step; the fit is as it was at step {state.step}",
        step=step,
    )
    return lost, []


def nonfinite_parameter(leaves: dict[str, Tensor]) -> str | None:
    """The first parameter that is not finite, and how much of it; None where all are."""
    values = {name: leaf.detach() for name, leaf in leaves.items() if leaf.is_floating_point()}
    if not values or bool(torch.stack([value.isfinite().all() for value in values.values()]).all()):
        return None
    return _first_bad(values)


def _fault(engine: EagerEngine, loss: Tensor) -> str | None:
    """Finish the step, and say what of it is not finite."""
    if not bool(loss.isfinite()):
        return f"the loss is {float(loss)}"
    gradients = {name: leaf.grad for name, leaf in engine.program.leaves().items() if leaf.grad is not None}
    bad = _first_bad(gradients)
    if bad is not None:
        return f"the loss is finite, but not the gradient of parameter {bad}"
    engine.update()
    bad = nonfinite_parameter(engine.program.leaves())
    return None if bad is None else f"the optimiser moved parameter {bad}"


def _first_bad(tensors: dict[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        share = _share(tensor)
        if share:
            return f"{name!r} ({share})"
    return None


def _first_bad_site(engine: EagerEngine) -> str | None:
    """Run guide and model once more as the step did, and read each site in order."""
    program, data = engine.program, engine.program.data
    with torch.no_grad(), engine.as_drawn():
        guide: Any = program.trace_guide()
        found = _scan("guide", guide)
        if found is None:
            replayed = poutine.replay(program.model, trace=guide)
            model: Any = poutine.trace(replayed).get_trace(*data.args, **data.kwargs)
            found = _scan("model", model)
    return found


def _scan(role: str, trace: Any) -> str | None:
    for node in trace.nodes.values():
        if node["type"] not in ("sample", "param") or (node["type"] == "sample" and site_is_subsample(node)):
            continue
        kind = "parameter" if node["type"] == "param" else "site"
        for name, argument in _arguments(node):
            if name == "logits":
                argument = argument[~argument.isneginf()]  # an impossible category is no fault
            share = _share(argument)
            if share:
                return f"{role} {kind} {node['name']!r} has {share} in {name} of its {type(node['fn']).__name__}"
        share = _share(node["value"])
        if share:
            return f"{role} {kind} {node['name']!r} has {share} in its value"
        if kind == "site":
            log_prob = node["fn"].log_prob(node["value"])
            share = _share(log_prob)
            if share:
                return f"{role} site {node['name']!r} has {share} in its log_prob"
    return None


def _arguments(node: Any) -> list[tuple[str, Tensor]]:
    if node["type"] != "sample":
        return []
    fn = node["fn"]
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    found = ((name, getattr(fn, name, None)) for name in getattr(fn, "arg_constraints", {}))
    return [(name, value) for name, value in found if isinstance(value, Tensor)]


def _share(value: Any) -> str | None:
    """How much of a tensor is not finite, in words; None where all of it is finite."""
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return None
    bad = ~value.isfinite()
    count = int(bad.sum())
    if count == 0:
        return None
    word = "NaN" if bool(value.isnan().any()) else "infinity"
    return word if value.numel() == 1 else f"{word} in {count} of {value.numel()} elements"
