"""What a distribution says of itself: what it wraps, its family, and its support in words."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.distributions import Distribution
from torch import Tensor
from torch.distributions import Distribution as TorchDistribution
from torch.distributions import Transform, biject_to
from torch.distributions.constraints import Constraint

__all__ = ["bound", "family", "innermost", "layers", "made_of", "plain_constraint", "range_of", "to_support"]

_WRAPPERS = ("Independent", "MaskedDistribution", "ExpandedDistribution")

_PARTS = (Distribution, TorchDistribution, Transform, Constraint)
_REMEMBERED = ("_cached_x_y",)  # of another draw, where sites share a transform

_WORDS = {
    "_Boolean": "0 or 1",
    "_GreaterThan": "greater than {lower}",
    "_GreaterThanEq": "{lower} or greater",
    "_HalfOpenInterval": "from {lower} to below {upper}",
    "_IntegerGreaterThan": "an integer of {lower} or more",
    "_IntegerInterval": "an integer from {lower} to {upper}",
    "_Interval": "between {lower} and {upper}",
    "_LessThan": "less than {upper}",
    "_Multinomial": "counts that sum to {upper}",
    "_OneHot": "one 1 among zeros",
    "_Real": "any real number",
    "_Simplex": "positive with sum 1",
}


def layers(fn: Any) -> Iterator[Any]:
    """A distribution and those that it wraps or transforms, outermost first."""
    while fn is not None:
        yield fn
        fn = vars(fn).get("base_dist")


def made_of(thing: Any) -> list[Tensor]:
    """The tensors that a distribution is made of, with those of its components, transforms and bounds."""
    found: list[Tensor] = []
    waiting, met = [thing], set()
    while waiting:
        part = waiting.pop()
        if isinstance(part, Tensor):
            found.append(part)
        elif isinstance(part, (list, tuple, dict, *_PARTS)) and id(part) not in met:
            met.add(id(part))
            if isinstance(part, (list, tuple)):
                waiting += part
            else:
                named = part if isinstance(part, dict) else vars(part)
                waiting += [value for name, value in named.items() if name not in _REMEMBERED]
    return found


def innermost(fn: Any) -> Any:
    """A distribution without what only repeats, masks or reinterprets it."""
    return next(layer for layer in layers(fn) if type(layer).__name__ not in _WRAPPERS)


def family(fn: Any) -> str:
    """The name that a user wrote: `Normal` for an expanded one."""
    return type(innermost(fn)).__name__


def plain_constraint(constraint: Any) -> Any:
    """A constraint on single elements where it is one on many independent ones, or on a mixture's components."""
    constraint = _of_components(constraint)
    while hasattr(constraint, "base_constraint") and hasattr(constraint, "reinterpreted_batch_ndims"):
        constraint = constraint.base_constraint
    return constraint


def to_support(fn: Any) -> Transform:
    """The bijection from unconstrained numbers to the support of a distribution.

    Raises:
        NotImplementedError: none is known.
    """
    transform: Transform = biject_to(_of_components(fn.support))
    return transform


def _of_components(constraint: Any) -> Any:
    """Of a mixture, the support of its components where they have the same one; any other constraint as it is."""
    if type(constraint).__name__ != "MixtureSameFamilyConstraint":
        return constraint
    components = constraint.base_constraint
    return constraint if made_of(components) else components


def range_of(constraint: Any) -> str:
    """A constraint in words."""
    constraint = plain_constraint(constraint)
    words = _WORDS.get(type(constraint).__name__)
    if words is None:
        return str(constraint).removesuffix("()")
    return words.format(lower=bound(constraint, "lower_bound"), upper=bound(constraint, "upper_bound"))


def bound(constraint: Any, side: str) -> str:
    """A bound in words, "low … high" where it differs by row."""
    value = getattr(constraint, side, None)
    if isinstance(value, Tensor):
        low, high = float(value.min()), float(value.max())
        return f"{low:g}" if low == high else f"{low:g} … {high:g}"
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
