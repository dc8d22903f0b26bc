"""Hamiltonian moves of many points at once, each element accepted by itself."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from ingle.engine import CompiledFunction, Untraceable

__all__ = ["Bridge", "Metric", "State", "move"]

Densities = Callable[[Tensor], tuple[Tensor, Tensor]]

_DENSE = 100  # the most numbers an element may have for all their covariances to be used


@dataclass
class State:
    """Points and what is known there.

    Attributes:
        points: shape (n, *elements, D).
        start, joint: log densities at both ends of the bridge, shape (n, *elements), float64.
    """

    points: Tensor
    start: Tensor
    joint: Tensor

    def log_density(self, beta: Tensor) -> Tensor:
        """Between the two, beta of shape (*elements): (1 - beta) start + beta joint."""
        return torch.where(beta == 0, self.start, torch.where(beta == 1, self.joint, self._between(beta)))

    def _between(self, beta: Tensor) -> Tensor:
        return self.start + beta * (self.joint - self.start)

    def chosen(self, places: Tensor) -> State:
        """Other points for each element, places of shape (n, *elements)."""
        index = places.unsqueeze(-1).expand(self.points.shape)
        return State(self.points.gather(0, index), self.start.gather(0, places), self.joint.gather(0, places))


class Bridge:
    """The two densities.

    Args:
        densities: from points to their logs at the start and at the end.
        chunk: how many points to take together.
    """

    def __init__(self, densities: Densities, chunk: int) -> None:
        self._densities = densities
        self._chunk = chunk
        self._compiled: CompiledFunction | None = None

    def at(self, points: Tensor) -> State:
        """The densities at points."""
        with torch.no_grad():
            parts = [self._densities(part) for part in points.split(self._chunk)]
        return State(points, torch.cat([one for one, _ in parts]), torch.cat([two for _, two in parts]))

    def with_gradient(self, points: Tensor, beta: Tensor) -> tuple[State, Tensor]:
        """The same, and the gradient of the density between, of the shape of the points."""
        parts = [self._at_once(part, beta) for part in points.split(self._chunk)]
        together = torch.cat(parts)
        state = State(points, together[..., 0], together[..., 1])
        return state, together[..., 2:].to(points.dtype)

    def _at_once(self, points: Tensor, beta: Tensor) -> Tensor:
        if self._compiled is None:
            return _graded(self._densities, points, beta)
        missing = self._chunk - len(points)
        filled = torch.cat([points, points[-1:].expand(missing, *points.shape[1:])]) if missing else points
        return self._compiled(filled.contiguous(), beta)[: len(points)]

    def compile(self, densities: Densities, points: Tensor, beta: Tensor) -> bool:
        """Compile the gradient, for chunks of as many points as there are here; whether that could be done.

        Args:
            densities: the same, without a way out where they cannot be recorded.
            points: shape (n, *elements, D).
            beta: shape (*elements).
        """
        self._chunk = min(self._chunk, len(points))
        part = points[: self._chunk].contiguous()
        with suppress(Untraceable):
            compiled = CompiledFunction(lambda *inputs: _graded(densities, *inputs), [part, beta.clone()])
            expected = _graded(self._densities, part, beta)
            if torch.allclose(compiled(part, beta), expected, rtol=1e-3, atol=1e-3, equal_nan=True):
                self._compiled = compiled
        return self._compiled is not None


def _graded(densities: Densities, points: Tensor, beta: Tensor) -> Tensor:
    """Both log densities and the gradient of the one between, shape (n, *elements, 2 + D), float64."""
    leaf = points.detach().requires_grad_()
    with torch.enable_grad():
        state = State(leaf, *densities(leaf))
        (gradient,) = torch.autograd.grad(state.log_density(beta).sum(), leaf)
    ends = torch.stack([state.start.detach(), state.joint.detach()], -1)
    return torch.cat([ends, gradient.detach().to(torch.float64)], -1)


@dataclass(frozen=True)
class Metric:
    """How far to go in each direction, from the spread of points.

    Attributes:
        root: of their covariance, lower triangular of shape (*elements, D, D), or standard deviations (*elements, D).
    """

    root: Tensor

    @classmethod
    def of(cls, points: Tensor) -> Metric:
        """Of points of shape (n, *elements, D), drawn a little towards their variances."""
        n, size = len(points), points.shape[-1]
        centred = (points - points.mean(0)).double()
        variance = centred.square().mean(0).clamp(min=1e-20)
        if size > _DENSE or n < 2 * size:
            return cls(variance.sqrt().to(points.dtype))
        cross = torch.einsum("n...i,n...j->...ij", centred, centred) / n
        weight = n / (n + 5.0 + size)
        shrunk = weight * cross + (1 - weight) * torch.diag_embed(variance)
        root, failed = torch.linalg.cholesky_ex(shrunk)
        if bool(failed.any()):
            return cls(variance.sqrt().to(points.dtype))
        return cls(root.to(points.dtype))

    def times(self, vector: Tensor) -> Tensor:
        """The root times vectors of shape (n, *elements, D)."""
        if self._diagonal(vector):
            return self.root * vector
        return torch.einsum("...ij,n...j->n...i", self.root, vector)

    def transposed(self, vector: Tensor) -> Tensor:
        """The transposed root times vectors."""
        if self._diagonal(vector):
            return self.root * vector
        return torch.einsum("...ji,n...j->n...i", self.root, vector)

    def _diagonal(self, vector: Tensor) -> bool:
        return self.root.dim() == vector.dim() - 1


def move(bridge: Bridge, state: State, beta: Tensor, step: Tensor, metric: Metric, steps: int) -> tuple[State, Tensor]:
    """One Hamiltonian trajectory from each point, accepted or not, which leaves the density between unchanged.

    Args:
        bridge: its two ends.
        state: where the points are.
        beta: how far along the bridge, shape (*elements).
        step: length of a leap, shape (*elements), in units of the metric.
        metric: of the momenta.
        steps: leaps.

    Returns:
        The points after it, and the mean probability of accepting, shape (*elements).

    References:
        Duane, Kennedy, Pendleton and Roweth (1987), Hybrid Monte Carlo.
        Neal (2011), MCMC Using Hamiltonian Dynamics.
    """
    points = state.points
    leap = (step * torch.empty_like(step).uniform_(0.8, 1.2)).unsqueeze(-1)  # so that no trajectory is a period
    momentum = torch.randn_like(points)
    energy = state.log_density(beta) - 0.5 * momentum.double().square().sum(-1)
    _, gradient = bridge.with_gradient(points, beta)
    momentum = momentum + 0.5 * leap * metric.transposed(gradient)
    for place in range(steps):
        points = points + leap * metric.times(momentum)
        there, gradient = bridge.with_gradient(points, beta)
        momentum = momentum + (leap if place < steps - 1 else 0.5 * leap) * metric.transposed(gradient)
    change = there.log_density(beta) - 0.5 * momentum.double().square().sum(-1) - energy
    change = change.nan_to_num(nan=-torch.inf, posinf=-torch.inf)
    taken = torch.rand_like(change).log() < change
    after = State(
        torch.where(taken.unsqueeze(-1), points, state.points),
        torch.where(taken, there.start, state.start),
        torch.where(taken, there.joint, state.joint),
    )
    return after, change.clamp(max=0.0).exp().mean(0)
