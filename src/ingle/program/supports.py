"""Whether a guide draws only values that the model's distribution can have, and on the line all of them.

The guide's support has to lie inside the model's; where it leaves out a part of the line, by its kind and not by bounds
that were computed, that is told too. The first is tried at points of the guide's support, all of a finite one, else
points far out and in between that are mapped onto it from unconstrained space. Where a line reaches out of a bounded
interval, draws of the guide tell a guide in its wrong place from one whose tails hardly count.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.distributions import TransformedDistribution, biject_to

from ingle.program.distributions import bound, family, innermost, plain_constraint, range_of
from ingle.program.finding import Finding, Severity

__all__ = ["bounds_may_move", "support_finding"]

_FAR = (0.0, -0.5, 0.5, -3.0, 3.0, -40.0, 40.0)
_FARTHER = (-1e4, -1e3, 1e3, 1e4)  # for the reals, where nothing is exponentiated on the way
_INTEGERS = (0, 1, 2, 3, 10, 1_000, 1_000_000)
_MOST = 4_096  # values of a finite support that are tried
_DRAWS, _NUMBERS = 100, 10**6  # draws of the guide, fewer where they would be more numbers than these
_INTERVALS = ("_HalfOpenInterval", "_Interval")
_LINES = ("_GreaterThan", "_GreaterThanEq", "_LessThan", "_Real")

# Constraints that say with two bounds what they hold; others of one class hold the same.
_BOUNDED = (
    "_GreaterThan",
    "_GreaterThanEq",
    "_HalfOpenInterval",
    "_IntegerGreaterThan",
    "_IntegerInterval",
    "_IntegerLessThan",
    "_Interval",
    "_LessThan",
)


def support_finding(ours: Any, theirs: Any, *, moves: bool = False) -> Finding | None:
    """What the guide draws at a site that the model's distribution cannot have; None where nothing was found.

    Args:
        ours, theirs: the nodes of one latent in a run of the guide and in one of the model, of the same shape.
        moves: whether the model's bounds are others in another run.
    """
    guide = innermost(ours["fn"])
    try:
        wanted = plain_constraint(theirs["fn"].support)
        given = None if _is_point(guide) else plain_constraint(guide.support)
    except (AttributeError, NotImplementedError):  # a distribution need not say what its support is
        return None
    if given is None:
        outside = _first_outside(wanted, iter([ours["value"]]))
    elif given.is_discrete != wanted.is_discrete:
        # A relaxed distribution may draw from a discrete support after all, straight through.
        crossed = given.is_discrete or _first_outside(wanted, iter([ours["value"]])) is not None
        return _finding(ours, theirs, given, wanted, _kinds(wanted), _fix(wanted, moves=moves)) if crossed else None
    elif _inside(given, wanted):
        return _cut(ours, theirs, given, wanted)
    else:
        shape = ours["value"].shape if wanted.event_dim > given.event_dim else torch.Size()
        outside = _first_outside(wanted, _points(guide, given, shape))
    if outside is None:
        return None if given is None else _cut(ours, theirs, given, wanted)
    fix = _fix(wanted, moves=moves)
    kinds = [type(constraint).__name__ for constraint in (given, wanted)]
    if kinds[0] not in _LINES or kinds[1] not in _INTERVALS:
        return _finding(ours, theirs, given, wanted, _reaches("can draw", outside), fix)
    drawn = _draws(ours)
    beyond = _first_outside(wanted, iter(drawn))
    if not drawn:
        return _finding(ours, theirs, given, wanted, _reaches("can draw", outside), fix)
    if beyond is not None:
        return _finding(ours, theirs, given, wanted, _reaches("drew", beyond), fix)
    what = "has tails that reach outside the model's support, though all draws tried lie inside"
    fix = f"keep it if the guide stays well inside, since a draw outside makes the loss infinite; else {fix}"
    return _finding(ours, theirs, given, wanted, what, fix, severity="warning")


def _cut(ours: Any, theirs: Any, given: Any, wanted: Any) -> Finding | None:
    """A guide that leaves out a part of the line that the model has; None where it has all, or that cannot be told."""
    inner, outer = _ends(given), _ends(wanted)
    if inner is None or outer is None or bounds_may_move(ours["fn"]) or bounds_may_move(theirs["fn"]):
        return None
    try:
        slack = [1e-6 * (1.0 + end.abs()).nan_to_num(posinf=0.0) for end in outer]
        below, above = inner[0] > outer[0] + slack[0], inner[1] < outer[1] - slack[1]
    except RuntimeError:  # bounds of other shapes
        return None
    sides = [
        f"{side} {float(end.expand_as(cut)[cut].flatten()[0]):.4g}"
        for side, end, cut in (("below", inner[0], below), ("above", inner[1], above))
        if bool(cut.any())
    ]
    if not sides:
        return None
    what = f"cannot draw {' or '.join(sides)}, which the model's distribution can: the fit never looks there"
    fix = "sample it from a distribution on all of the model's support, such as its own family, unless you mean it"
    return _finding(ours, theirs, given, wanted, what, fix, severity="warning")


def _ends(constraint: Any) -> tuple[Tensor, Tensor] | None:
    """Where a stretch of the line begins and ends; None for anything else."""
    kind = type(constraint).__name__
    if kind not in (*_LINES, *_INTERVALS):
        return None
    low, high = getattr(constraint, "lower_bound", -torch.inf), getattr(constraint, "upper_bound", torch.inf)
    return torch.as_tensor(low).detach().double(), torch.as_tensor(high).detach().double()


def bounds_may_move(fn: Any) -> bool:
    """Whether the support of a distribution has bounds that could be computed from other sites."""
    try:
        constraint = plain_constraint(fn.support)
    except (AttributeError, NotImplementedError):
        return False
    return any(not isinstance(value, (int, float)) for value in vars(constraint).values())


def _is_point(fn: Any) -> bool:
    return type(fn).__name__ == "Delta"


def _inside(given: Any, wanted: Any) -> bool:
    """Whether the classes of the constraints, and their bounds, say already that the one lies in the other."""
    if type(wanted).__name__ == "_Real":
        return True
    if type(given) is not type(wanted):
        return False
    if type(given).__name__ not in _BOUNDED:
        return True
    lower, upper = (
        tuple(torch.as_tensor(getattr(constraint, side, 0.0)) for constraint in (given, wanted))
        for side in ("lower_bound", "upper_bound")
    )
    try:
        return bool((lower[0] >= lower[1]).all() and (upper[0] <= upper[1]).all())
    except RuntimeError:  # bounds of other shapes
        return False


def _points(guide: Any, given: Any, shape: torch.Size) -> Iterator[Tensor]:
    """Values that the guide can draw, in float64, repeated to a shape."""
    if given.is_discrete:
        if getattr(guide, "has_enumerate_support", False):
            yield guide.enumerate_support(expand=False)[:_MOST]
        elif type(given).__name__ == "_IntegerGreaterThan":
            for step in _INTEGERS:
                yield torch.as_tensor(given.lower_bound).double() + step
    elif isinstance(guide, TransformedDistribution):
        # Through the transforms, since their codomain may be wider than what they reach.
        start: Any = guide.base_dist
        base = plain_constraint(innermost(start).support)
        for point in _FAR:
            value = biject_to(base)(torch.full(start.shape(), point))
            for transform in guide.transforms:
                value = transform(value)
            yield value
    else:
        to_support = biject_to(given)
        real = type(given).__name__ == "_Real"
        for point in _FAR + (_FARTHER if real else ()):
            unconstrained = torch.full(shape or (2,) * to_support.domain.event_dim, point, dtype=torch.float64)
            yield to_support(unconstrained)


def _first_outside(wanted: Any, points: Iterator[Tensor]) -> float | None:
    """The first element that is finite and outside; None where there is none, or where it cannot be tried."""
    try:
        for point in points:
            bad = ~wanted.check(point)
            events = point.dim() - bad.dim()
            if events < 0:  # bounds that differ by row
                point, events = point.expand(bad.shape), 0
            elements = point.flatten(bad.dim(), -1) if events else point.unsqueeze(-1)
            bad = bad & elements.isfinite().all(-1)
            if bool(bad.any()):
                return float(elements[bad].flatten()[0])
    except (RuntimeError, IndexError, ValueError, NotImplementedError):
        return None
    return None


def _draws(ours: Any) -> list[Tensor]:
    """Values that the guide does draw as it stands, that of the run among them; none where it cannot be asked."""
    n = max(1, min(_DRAWS, _NUMBERS // max(ours["value"].numel(), 1)))
    try:
        with torch.no_grad():
            return [ours["value"], ours["fn"].sample((n,))]
    except Exception:  # the distribution may be the user's, and raise anything
        return []


def _reaches(verb: str, outside: float) -> str:
    return f"{verb} {outside:.4g}, which the model's distribution cannot have"


def _kinds(wanted: Any) -> str:
    kinds = ("continuous", "discrete") if wanted.is_discrete else ("discrete", "continuous")
    return f"draws {kinds[0]} values, but the model's distribution is {kinds[1]}"


def _finding(
    ours: Any, theirs: Any, given: Any, wanted: Any, what: str, fix: str, *, severity: Severity = "error"
) -> Finding:
    name, shape = ours["name"], tuple(ours["value"].shape)
    guide = family(ours["fn"]) + ("" if given is None else f", {range_of(given)}")
    message = (
        f"site {name!r}: the guide {what} (model: {family(theirs['fn'])}, {range_of(wanted)}; guide: {guide}; "
        f"shape {shape})"
    )
    if getattr(theirs["fn"], "has_enumerate_support", False):
        fix += ", or leave it out to have it summed out"
    return Finding("support", severity, name, message, fix)


def _fix(wanted: Any, *, moves: bool) -> str:
    kind = type(wanted).__name__
    if wanted.is_discrete:
        return "sample it from a discrete distribution on the model's values"
    if kind in ("_GreaterThan", "_GreaterThanEq"):
        return (
            "sample it from dist.LogNormal or dist.Gamma, or give a Delta's parameter constraint=constraints.positive"
        )
    if kind == "_Interval":
        low, high = bound(wanted, "lower_bound"), bound(wanted, "upper_bound")
        known = not moves and "…" not in low + high
        ends = f"constraints.interval({low}, {high})" if known else "constraints.interval(low, high)"
        beta = "dist.Beta, or from " if (low, high) == ("0", "1") else ""
        return (
            f"sample it from {beta}dist.TransformedDistribution(dist.Normal(…), torch.distributions.biject_to({ends}))"
            + ("" if known else ", with low and high as in the model")
        )
    if kind == "_Simplex":
        return "sample it from dist.Dirichlet, or give a Delta's parameter constraint=constraints.simplex"
    return "sample it from a distribution on the model's support, such as the model's own family"
