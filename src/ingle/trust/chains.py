"""Many short Hamiltonian chains from draws of the guide, which tell where the posterior lies around them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingle.evidence import Metric, Sampler, Space, budget, cost_of
from ingle.program import together

__all__ = ["Chains", "run_chains"]

_TARGET = 0.8  # share of trajectories to accept
_WARM = 0.4  # of the budget, in which lengths of leaps and the metric follow the chains
_FIRST = 5  # trajectories of the warm-up at least
_LENGTH = 1.6  # of a trajectory in sds of the chains: a quarter of a period of a normal density
_POOLED = 3  # trajectories whose ends tell the metric
_LEAPS = (2, 16)  # of a trajectory
_POSITIONS = (8, 24)  # of each chain that are kept: at least, at most
_TRAINED = 3  # with its gradient a density takes about so many times the memory


@dataclass(frozen=True)
class Chains:
    """Where chains have been, once their metric was fixed.

    Attributes:
        values: positions by latent, as the model has them, shape (positions, chains, *site shape).
        evaluations: of the gradient, of all chains at once.
        accepted: mean probability of accepting a trajectory; of the worst element.
        finished: at least eight positions came within the budget.
    """

    values: Mapping[str, Tensor]
    evaluations: int
    accepted: float
    finished: bool


def run_chains(sampler: Sampler, space: Space, starts: Tensor, most: int) -> Chains:
    """Move all chains together, in the metric of where they are, until each has been at enough places.

    While they warm up the metric is that of the chains at each trajectory, so that it grows with them where the guide
    is too narrow or misses a correlation. Then all is held fixed.

    Args:
        sampler: of the program.
        space: of its latents.
        starts: draws of the guide, shape (chains, *elements, D), unconstrained.
        most: evaluations of the gradient.

    References:
        Neal (2011), MCMC Using Hamiltonian Dynamics.
        Hoffman and Sountsov (2022), Tuning-Free Generalized Hamiltonian Monte Carlo (a metric from many chains).
    """
    target = _Target(sampler, space)
    state = target(starts)
    step = torch.full(starts.shape[1:-1], starts.shape[-1] ** -0.25, dtype=starts.dtype, device=starts.device)
    leaps = _leaps(step)
    turn = 0
    recent = [state[0]]
    while turn < _FIRST or target.spent + leaps <= _WARM * most:
        metric = Metric.of(torch.cat(recent))
        state, accepted = _move(target, state, step, metric, leaps)
        recent = [*recent, state[0]][-_POOLED:]
        step = (step * (accepted - _TARGET).exp().to(step.dtype)).clamp(1e-4, 2.0)
        leaps = _leaps(step)
        turn += 1
        if target.spent > 2 * most:
            break
    metric = Metric.of(torch.cat(recent))
    positions: list[Tensor] = []
    rates: list[Tensor] = []
    while len(positions) < _POSITIONS[1] and (target.spent + leaps <= most or not positions):
        state, accepted = _move(target, state, step, metric, leaps)
        positions.append(state[0])
        rates.append(accepted)
    points = torch.stack(positions)
    flat = points.flatten(0, 1)
    with torch.no_grad(), sampler.program.explained("model"):
        found = together(space.values, flat)  # type: ignore[arg-type]
    values = {name: value.unflatten(0, points.shape[:2]) for name, value in found.items()}
    return Chains(values, target.spent, float(torch.stack(rates).mean(0).min()), len(positions) >= _POSITIONS[0])


_State = tuple[Tensor, Tensor, Tensor]  # points, log densities, gradients


class _Target:
    """The log joint and its gradient at points, unconstrained."""

    def __init__(self, sampler: Sampler, space: Space) -> None:
        self._program, self._space, self._device = sampler.program, space, sampler.runtime.device
        self._chunk: int | None = None
        self.spent = 0

    def __call__(self, points: Tensor) -> _State:
        self.spent += 1
        with self._program.explained("model"):
            if self._chunk is None:
                most = cost_of(lambda: self._space.joint(points[0])).most * _TRAINED
                self._chunk = max(1, budget(self._device) // most)
            parts = [self._graded(part) for part in points.split(self._chunk)]
        values, gradients = (torch.cat(part) for part in zip(*parts, strict=True))
        return points, values.nan_to_num(nan=-math.inf), gradients.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)

    def _graded(self, points: Tensor) -> tuple[Tensor, Tensor]:
        run: Any = self._space.joint
        with torch.enable_grad():
            leaf = points.detach().requires_grad_()
            value: Tensor = together(run, leaf)  # type: ignore[arg-type]
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient


def _move(target: _Target, state: _State, step: Tensor, metric: Metric, leaps: int) -> tuple[_State, Tensor]:
    """One trajectory of every chain, each element accepted by itself; the mean probability of accepting."""
    points, value, gradient = state
    leap = (step * torch.empty_like(step).uniform_(0.8, 1.2)).unsqueeze(-1)
    momentum = torch.randn_like(points)
    energy = value - 0.5 * momentum.double().square().sum(-1)
    momentum = momentum + 0.5 * leap * metric.transposed(gradient)
    there = state
    for place in range(leaps):
        there = target(there[0] + leap * metric.times(momentum))
        momentum = momentum + (leap if place < leaps - 1 else 0.5 * leap) * metric.transposed(there[2])
    change = there[1] - 0.5 * momentum.double().square().sum(-1) - energy
    change = change.nan_to_num(nan=-math.inf)
    taken = torch.rand_like(change).log() < change
    along = taken.unsqueeze(-1)
    after = (
        torch.where(along, there[0], points),
        torch.where(taken, there[1], value),
        torch.where(along, there[2], gradient),
    )
    return after, change.clamp(max=0.0).exp().mean(0)


def _leaps(step: Tensor) -> int:
    return max(_LEAPS[0], min(_LEAPS[1], math.ceil(_LENGTH / float(step.median()))))
