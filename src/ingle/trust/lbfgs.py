"""L-BFGS on several paths at once: one evaluation advances all of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ingle.trust.log_joint import LogJoint

__all__ = ["Trail", "climb", "precision"]

HISTORY = 12  # pairs of steps and of changes in the gradient
_ENOUGH = 1e-4  # of the rise that the slope promises, for a step to be taken
_LENGTHS = (1.0, 0.4, 0.1, 0.01)  # of a step, all tried together: what runs many points costs little more than one
_SHORT = (0.2, 1e-3, 1e-5, 1e-7)  # where none of these goes up
_FIRST = tuple(0.25**k for k in range(12))  # of the first step, whose scale is not known


@dataclass(frozen=True)
class Trail:
    """Where paths went: float64, first axis the iterations, then the paths.

    Attributes:
        points, gradients: shape (iterations, paths, D).
        values: log joint, shape (iterations, paths), in nats.
        diagonal: of the first guess of the inverse Hessian at each point, shape (iterations, paths, D).
        steps, changes: of the point and of minus the gradient into each point, shape (iterations, paths, D); zero where
            they told nothing of the curvature.
        ended: why, by path.
    """

    points: Tensor
    gradients: Tensor
    values: Tensor
    diagonal: Tensor
    steps: Tensor
    changes: Tensor
    ended: tuple[str, ...]

    def of(self, paths: Sequence[int]) -> Trail:
        """Some of the paths alone."""
        chosen = list(paths)
        return Trail(
            points=self.points[:, chosen],
            gradients=self.gradients[:, chosen],
            values=self.values[:, chosen],
            diagonal=self.diagonal[:, chosen],
            steps=self.steps[:, chosen],
            changes=self.changes[:, chosen],
            ended=tuple(self.ended[path] for path in chosen),
        )


@torch.no_grad()
def climb(density: LogJoint, starts: Tensor, *, most: int, tolerance: float, cheap: bool = True) -> Trail:
    """Go up the log joint from several points.

    Args:
        density: of the points.
        starts: shape (paths, D), where it is finite.
        most: iterations.
        cheap: whether several lengths of each step may be tried at once.
        tolerance: a path ends where the model of L-BFGS promises a rise below this, in nats, twice in a row.

    References:
        Liu and Nocedal (1989), On the Limited Memory BFGS Method.
        Gilbert and Lemaréchal (1989), Some Numerical Experiments with Variable-Storage Quasi-Newton Algorithms (the
        diagonal of the first guess).
    """
    point, lengths = starts, _LENGTHS if cheap else (_LENGTHS[0], _LENGTHS[2])
    value, gradient = density.with_gradient(point)
    diagonal = (1.0 / gradient.norm(dim=-1, keepdim=True).clamp(min=1.0)).expand_as(point)
    none = torch.zeros_like(point)
    kept = [(point, gradient, value, diagonal, none, none)]
    quiet = torch.zeros(len(point), dtype=torch.int64, device=point.device)
    ended = ["iterations"] * len(point)
    open_ = gradient.isfinite().all(-1)
    for turn in range(most):
        direction = _two_loops(gradient, diagonal, [one[4] for one in kept[1:]], [one[5] for one in kept[1:]])
        slope = (direction * gradient).sum(-1)
        wrong = ~(slope > 0) | ~direction.isfinite().all(-1)
        direction = torch.where(wrong.unsqueeze(-1), diagonal * gradient, direction)
        slope = torch.where(wrong, (direction * gradient).sum(-1), slope)
        quiet = torch.where(slope / 2 < tolerance, quiet + 1, 0)
        done = open_ & (quiet > (1 if turn else 0))
        open_ = open_ & ~done
        for place in done.nonzero().flatten().tolist():
            ended[place] = "converged"
        if not bool(open_.any()):
            break
        along = direction * open_.unsqueeze(-1)
        new = _step(density, point, value, along, slope, lengths if turn else _FIRST)
        if turn and bool((open_ & ~new[3]).all()):
            new = _step(density, point, value, along, slope, _SHORT)
        stuck = open_ & ~new[3]
        for place in stuck.nonzero().flatten().tolist():
            ended[place] = "no step upwards"
        open_ = open_ & new[3]
        taken = open_.unsqueeze(-1)
        step = torch.where(taken, new[0] - point, 0.0)
        change = torch.where(taken, gradient - new[2], 0.0)
        point = torch.where(taken, new[0], point)
        value, gradient = torch.where(open_, new[1], value), torch.where(taken, new[2], gradient)
        curved = (step * change).sum(-1, keepdim=True) > 1e-12 * change.square().sum(-1, keepdim=True)
        step, change = torch.where(curved, step, 0.0), torch.where(curved, change, 0.0)
        diagonal = torch.where(curved, _rescaled(diagonal, step, change), diagonal)
        kept.append((point, gradient, value, diagonal, step, change))
        if not bool(open_.any()):
            break
    points, gradients, values, diagonals, steps, changes = (torch.stack(part) for part in zip(*kept, strict=True))
    return Trail(points, gradients, values, diagonals, steps, changes, tuple(ended))


def precision(trail: Trail, turn: Tensor, path: Tensor, *, dense: bool) -> Tensor:
    """The Hessian of minus the log joint that a path has seen on its way to a point.

        B = B0 - W M^-1 W',  W = [B0 S, Y],  M = [[S' B0 S, L], [L', -D]]

    Args:
        trail: of the paths.
        turn, path: which points, shape (n,).
        dense: all of it, shape (n, D, D), or its diagonal, shape (n, D).

    References:
        Byrd, Nocedal and Schnabel (1994), Representations of Quasi-Newton Matrices (theorem 2.3).
    """
    back = torch.arange(HISTORY - 1, -1, -1, device=turn.device)
    at = turn.unsqueeze(-1) - back  # (n, history), the last step last
    there = (at > 0).unsqueeze(-1)
    at, which = at.clamp(min=0), path.unsqueeze(-1)
    steps = torch.where(there, trail.steps[at, which], 0.0)
    changes = torch.where(there, trail.changes[at, which], 0.0)
    first = 1.0 / trail.diagonal[turn, path]
    scaled = steps * first.unsqueeze(-2)
    products = steps @ changes.mT
    empty = (steps.square().sum(-1) == 0).to(first)
    upper = torch.cat([steps @ scaled.mT + torch.diag_embed(empty), products.tril(-1)], -1)
    lower = torch.cat([products.tril(-1).mT, -torch.diag_embed(products.diagonal(dim1=-2, dim2=-1) + empty)], -1)
    middle = torch.cat([upper, lower], -2)
    wings = torch.cat([scaled, changes], -2)  # (n, 2 history, D)
    found: Tensor = torch.linalg.solve_ex(middle, wings).result
    if dense:
        whole: Tensor = torch.diag_embed(first) - wings.mT @ found
        return whole
    diagonal: Tensor = first - (wings * found).sum(-2)
    return diagonal


def _step(
    density: LogJoint, point: Tensor, value: Tensor, direction: Tensor, slope: Tensor, lengths: tuple[float, ...]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The highest of several points along each direction, with value and gradient, and whether it is high enough."""
    length = torch.tensor(lengths).to(point)
    trials = point + length[:, None, None] * direction
    values, gradients = density.with_gradient(trials.flatten(0, 1))
    values, gradients = values.reshape(len(length), -1), gradients.reshape(trials.shape)
    fine = values.isfinite() & gradients.isfinite().all(-1) & (values >= value + _ENOUGH * length[:, None] * slope)
    best = torch.where(fine, values, -torch.inf).argmax(0)
    here = torch.arange(len(point), device=point.device)
    return trials[best, here], values[best, here], gradients[best, here], fine.any(0)


def _two_loops(gradient: Tensor, diagonal: Tensor, steps: list[Tensor], changes: list[Tensor]) -> Tensor:
    """The inverse Hessian of L-BFGS times the gradient."""
    pairs = list(zip(steps, changes, strict=True))[-HISTORY:]
    weights = [1.0 / product.where(product > 0, torch.inf) for s, y in pairs for product in [(s * y).sum(-1)]]
    parts = []
    direction = gradient
    for (step, change), weight in zip(reversed(pairs), reversed(weights), strict=True):
        part = weight * (step * direction).sum(-1)
        parts.append(part)
        direction = direction - part.unsqueeze(-1) * change
    direction = diagonal * direction
    for (step, change), weight, part in zip(pairs, weights, reversed(parts), strict=True):
        direction = direction + (part - weight * (change * direction).sum(-1)).unsqueeze(-1) * step
    return direction


def _rescaled(diagonal: Tensor, step: Tensor, change: Tensor) -> Tensor:
    """The diagonal that goes with one more pair."""
    a = (change.square() * diagonal).sum(-1, keepdim=True)
    b = (change * step).sum(-1, keepdim=True)
    c = (step.square() / diagonal).sum(-1, keepdim=True)
    return 1.0 / (a / (b * diagonal) + change.square() / b - a * (step / diagonal).square() / (b * c))
