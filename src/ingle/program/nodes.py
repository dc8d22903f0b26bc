"""What the sample statements of one run hold: inputs, log_prob, and how much of a tensor is at fault."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from ingle.program.distributions import layers, plain_constraint
from ingle.runtime import validation

__all__ = ["bad_share", "inputs", "outside", "sample_nodes", "score_sampled", "share_of", "site_log_prob"]


def sample_nodes(trace: Any) -> list[Any]:
    """The sample statements of a trace, in order, without the plates' own."""
    return [node for node in trace.nodes.values() if node["type"] == "sample" and not site_is_subsample(node)]


def score_sampled(node: Any) -> bool:
    """Whether a site's draws have no pathwise gradient, so that only the score function has one."""
    return not getattr(node["fn"], "has_rsample", False)


def site_log_prob(node: Any, *, check: bool = False) -> Tensor:
    """The log_prob of a node as it is, before mask and scale, checked by the distribution or not."""
    with _validating(node["fn"], check):
        return node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])  # type: ignore[no-any-return]


def inputs(node: Any) -> Iterator[tuple[str, Tensor]]:
    """The tensors that a log_prob is made from, each with words for it."""
    if isinstance(node["value"], Tensor):
        yield "its value", node["value"]
    for fn in layers(node["fn"]):
        for name in getattr(fn, "arg_constraints", ()):
            argument = vars(fn).get(name)
            if isinstance(argument, Tensor):
                yield f"{name} of its {type(fn).__name__}", argument


def bad_share(value: Tensor) -> str | None:
    """How much of a tensor is NaN or infinite, in words; None where all of it is finite."""
    if not (value.is_floating_point() or value.is_complex()):
        return None
    bad = ~value.isfinite()
    return f"{_word(value)} {share_of(bad, value)}" if bool(bad.any()) else None


def outside(constraint: Any, value: Tensor) -> Tensor | None:
    """Where a value is outside, element by element where the constraint is; None where that cannot be told."""
    try:
        bad: Tensor = ~plain_constraint(constraint).check(value)
    except Exception:  # shapes that do not go together, which the log_prob tells better
        return None
    return bad if tuple(bad.shape) == tuple(value.shape[: bad.dim()]) else None


def share_of(bad: Tensor, value: Tensor) -> str:
    """How many of how many, the first place and what is there."""
    if bad.dim() == 0:
        return f"({_number(value)})"
    first = tuple(int(place) for place in bad.nonzero()[0])
    return f"in {int(bad.sum()):,} of {bad.numel():,} places, first {_number(value[first])} at {list(first)}"


def _number(value: Tensor) -> str:
    if value.numel() == 1:
        return f"{value.item():.6g}" if value.is_floating_point() else str(value.item())
    shown = ", ".join(f"{number:.4g}" for number in value.flatten()[:4].double().tolist())
    return f"[{shown}{', …' if value.numel() > 4 else ''}]"


def _word(value: Tensor) -> str:
    return "NaN" if bool(value.isnan().any()) else "infinity"


@contextmanager
def _validating(fn: Any, on: bool) -> Iterator[None]:
    """The checks of one distribution on or off; an expanded one keeps those that it was made with."""
    parts = [
        layer
        for layer in layers(fn)
        if isinstance(layer, torch.distributions.Distribution)
        and not isinstance(getattr(type(layer), "_validate_args", None), property)  # Independent asks its base
    ]
    before = [vars(part).get("_validate_args") for part in parts]
    with validation(on):
        for layer in parts:
            layer._validate_args = on
        try:
            yield
        finally:
            for layer, kept in zip(parts, before, strict=True):
                if kept is None:
                    del layer._validate_args
                else:
                    layer._validate_args = kept
