"""Which step, and which site or parameter, first became NaN or infinite."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.engine import EagerEngine, State

__all__ = ["find_nonfinite"]


def find_nonfinite(engine: EagerEngine, state: State, steps: int) -> tuple[str, list[float]]:
    """Replay `steps` steps from `state` with the same noise, and say where the first fault is.

    Returns:
        What went bad, in words, and the losses of the steps before it. The engine is left before the bad step,
        everything finite.
    """
    engine.restore(state)
    losses: list[float] = []
    for _ in range(steps):
        before = engine.capture()
        loss = engine.differentiate()
        fault = None if bool(loss.isfinite()) else "the loss is " + str(float(loss))
        bad_gradient = None if fault else _first_bad_gradient(engine)
        if fault is None and bad_gradient is None:
            engine.update()
            bad = _first_bad({name: leaf.detach() for name, leaf in engine.program.leaves().items()})
            if bad is None:
                losses.append(float(loss))
                continue
            fault = f"the optimiser moved parameter {bad}"
        engine.restore(before)
        if bad_gradient is not None:
            fault = f"the loss is finite, but the gradient of parameter {bad_gradient}"
        elif not bool(loss.isfinite()):
            where = _first_bad_site(engine)
            fault = f"{fault}{f': {where}' if where else ''}"
            engine.restore(before)
        return str(fault), losses
    return "replayed with the same noise it did not happen again; the program may keep state of its own", losses


def _first_bad(tensors: dict[str, Tensor]) -> str | None:
    for name, tensor in tensors.items():
        share = _share(tensor)
        if share:
            return f"{name!r} to {share}"
    return None


def _first_bad_gradient(engine: EagerEngine) -> str | None:
    for name, leaf in engine.program.leaves().items():
        share = _share(leaf.grad) if leaf.grad is not None else None
        if share:
            return f"{name!r} has {share}"
    return None


def _first_bad_site(engine: EagerEngine) -> str | None:
    """Run guide and model once more as the step did, and read each site in order."""
    program, data = engine.program, engine.program.data
    with torch.no_grad(), program.rows:
        guide: Any = poutine.trace(program.guide).get_trace(*data.args, **data.kwargs)
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
