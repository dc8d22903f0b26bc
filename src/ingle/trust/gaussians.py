"""Gaussians from a point and a curvature there, and how well each stands for a log joint."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ingle.trust.log_joint import LogJoint

__all__ = ["Gaussians", "elbos", "improve", "of_precision", "polish"]

_LENGTHS = (1.0, 0.5, 0.25, 1 / 16, 1 / 64, 1 / 1024)  # of a Newton step, tried together
_RATE, _HALVES = 0.5, 5  # of a step towards a mean curvature, and how often it is halved
_AT_REST = 1e-12  # nats that a Newton step promises
_FLAT = 1e-15  # of the largest eigenvalue, after rows and columns are brought to one scale


@dataclass(frozen=True)
class Gaussians:
    """Several of them, float64.

    Attributes:
        loc: shape (n, D).
        factor: lower Cholesky factors of the covariances, shape (n, D, D); or sds, shape (n, D).
        scale: sds of the best product of normals for the same curvature, 1 / sqrt(diag(precision)), shape (n, D).
    """

    loc: Tensor
    factor: Tensor
    scale: Tensor

    def __len__(self) -> int:
        return len(self.loc)

    def __getitem__(self, places: Tensor) -> Gaussians:
        return Gaussians(self.loc[places], self.factor[places], self.scale[places])

    def joined(self, others: Gaussians) -> Gaussians:
        """These and others."""
        return Gaussians(
            torch.cat([self.loc, others.loc]),
            torch.cat([self.factor, others.factor]),
            torch.cat([self.scale, others.scale]),
        )


def of_precision(loc: Tensor, precision: Tensor) -> tuple[Gaussians, Tensor]:
    """Gaussians of given means and precisions, and which of the precisions are positive definite.

    Args:
        loc: shape (n, D).
        precision: shape (n, D, D), or its diagonal, shape (n, D).
    """
    if precision.dim() == 2:
        good = (precision > 0).all(-1) & precision.isfinite().all(-1)
        sd = torch.where(good.unsqueeze(-1), precision, 1.0).rsqrt()
        return Gaussians(loc, sd, sd), good
    diagonal = precision.diagonal(dim1=-2, dim2=-1)
    good = (diagonal > 0).all(-1) & precision.isfinite().flatten(1).all(-1)
    sd = torch.where(good.unsqueeze(-1), diagonal, 1.0).rsqrt()
    even = torch.where(good[:, None, None], precision, 0.0) * sd.unsqueeze(-1) * sd.unsqueeze(-2)
    even = torch.where(good[:, None, None], even, torch.eye(loc.shape[-1]).to(even))
    # With precision = U U', U upper triangular, the covariance's Cholesky factor is the inverse of U'.
    lower, info = torch.linalg.cholesky_ex(even.flip(-1, -2))
    upper = lower.flip(-1, -2)
    good = good & (info == 0)
    eye = torch.eye(loc.shape[-1]).to(even).expand_as(even)
    upper = torch.where(good[:, None, None], upper, eye)
    factor = sd.unsqueeze(-1) * torch.linalg.solve_triangular(upper.mT, eye, upper=False)
    good = good & factor.isfinite().flatten(1).all(-1)
    return Gaussians(loc, factor, sd), good


@torch.no_grad()
def elbos(density: LogJoint, given: Gaussians, noise: Tensor, *, product: bool) -> tuple[Tensor, Tensor]:
    """The ELBO of each, and its standard error, in nats, shape (n,), all from the same noise.

    Args:
        density: the log joint.
        given: the Gaussians.
        noise: standard normals, shape (draws, D); the second half is minus the first.
        product: of the products of normals, in place of the Gaussians with all correlations.
    """
    factor = given.scale if product else given.factor
    if factor.dim() == 2:
        away = factor * noise.unsqueeze(1)
        volume = factor.log().sum(-1)
    else:
        away = torch.einsum("nij,kj->kni", factor, noise)
        volume = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    points = given.loc + away
    values = density.value(points.flatten(0, 1)).reshape(len(noise), len(given))
    # Less log q of the very draws, so that nothing is left to chance where the Gaussian is the posterior.
    weights = values + 0.5 * noise.square().sum(-1, keepdim=True)
    half = len(noise) // 2
    pairs = (weights[:half] + weights[half:]) / 2
    mean = pairs.mean(0) + volume + 0.5 * points.shape[-1] * math.log(2 * math.pi)
    return mean.nan_to_num(nan=-math.inf, posinf=-math.inf), pairs.std(0) / math.sqrt(half)


@torch.no_grad()
def polish(density: LogJoint, points: Tensor, *, most: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Newton's steps from several points, curvature taken without its sign, each as long as goes up furthest.

    Args:
        density: the log joint.
        points: shape (n, D).
        most: steps.

    Returns:
        All points on the way, the first included, one after the other; their log joints, shape (points,); the means
        of the Gaussians there, one more step on; and minus the Hessians, shape (points, D, D).
    """
    value, gradient = density.with_gradient(points)
    found: list[tuple[Tensor, ...]] = []
    for turn in range(most + 1):
        curvature = -density.hessian(points)
        step, promised = _newton(gradient, curvature)
        found.append((points, value, points + step, curvature))
        if turn == most or not bool((promised > _AT_REST).any()):
            break
        lengths = torch.tensor(_LENGTHS).to(points)
        trials = (points + lengths[:, None, None] * step).flatten(0, 1)
        values, gradients = density.with_gradient(trials)
        values, gradients = values.reshape(len(lengths), -1), gradients.reshape(len(lengths), *points.shape)
        fine = values.isfinite() & gradients.isfinite().all(-1)
        best = torch.where(fine, values, -torch.inf).argmax(0)
        place = torch.arange(len(points), device=points.device)
        # Where rounding hides a rise the full step is right all the same, near enough to a peak.
        level = fine[0] & (values[0] >= values[best, place] - 1e-9 * (1 + value.abs()))
        best = torch.where(level, 0, best)
        higher = fine[best, place] & (values[best, place] >= value - 1e-9 * (1 + value.abs()))
        points = torch.where(higher.unsqueeze(-1), trials.reshape(len(lengths), *points.shape)[best, place], points)
        value = torch.where(higher, values[best, place], value)
        gradient = torch.where(higher.unsqueeze(-1), gradients[best, place], gradient)
        if not bool(higher.any()):
            break
    return tuple(torch.cat(part) for part in zip(*found, strict=True))  # type: ignore[return-value]


@torch.no_grad()
def improve(
    density: LogJoint, loc: Tensor, precision: Tensor, noise: Tensor, *, product: bool
) -> tuple[Tensor, Tensor]:
    """Move Gaussians up their ELBOs by Newton's steps of the mean gradient and the mean Hessian of their own draws.

        precision += rate (-E[H] - precision),   loc += rate precision^-1 E[g]

    Args:
        density: the log joint.
        loc: means, shape (n, D).
        precision: shape (n, D, D).
        noise: standard normals, shape (turns, draws, D); each turn takes its own.
        product: draw from products of normals, in place of the Gaussians with all correlations.

    Returns:
        The means and precisions of all turns, one after the other, shapes (turns n, D) and (turns n, D, D).

    References:
        Khan and Lin (2017), Conjugate-Computation Variational Inference (natural gradients).
        Opper and Archambeau (2009), The Variational Gaussian Approximation Revisited (both gradients).
    """
    found = []
    for drawn in noise:
        given, sound = of_precision(loc, precision)
        if not bool(sound.any()):
            break
        factor = torch.diag_embed(given.scale) if product else given.factor
        points = loc.unsqueeze(1) + torch.einsum("nij,kj->nki", factor, drawn)
        flat = points.flatten(0, 1)
        _, gradient = density.with_gradient(flat)
        hessian = density.hessian(flat).reshape(*points.shape, -1)
        gradient = gradient.reshape(points.shape)
        fine = hessian.isfinite().flatten(2).all(-1) & gradient.isfinite().all(-1)
        count = fine.sum(1).clamp(min=1)
        gradient = torch.where(fine.unsqueeze(-1), gradient, 0.0).sum(1) / count.unsqueeze(-1)
        curvature = -torch.where(fine[..., None, None], hessian, 0.0).sum(1) / count[:, None, None]
        rate = torch.full_like(gradient[:, :1], _RATE)
        for _ in range(_HALVES):
            wanted = (1 - rate.unsqueeze(-1)) * precision + rate.unsqueeze(-1) * curvature
            trial, good = of_precision(loc, wanted)
            good = good & fine.any(1)
            if bool(good.all()):
                break
            rate = torch.where(good.unsqueeze(-1), rate, rate / 2)
        moved = (trial.factor @ (trial.factor.mT @ gradient.unsqueeze(-1))).squeeze(-1)
        loc = torch.where(good.unsqueeze(-1), loc + rate * moved, loc)
        precision = torch.where(good[:, None, None], wanted, precision)
        found.append((loc, precision))
    if not found:
        return loc, precision
    return torch.cat([one for one, _ in found]), torch.cat([two for _, two in found])


def _newton(gradient: Tensor, curvature: Tensor) -> tuple[Tensor, Tensor]:
    """A step upwards, and the rise that it promises."""
    sound = curvature.isfinite().flatten(1).all(-1) & gradient.isfinite().all(-1)
    curvature = torch.where(sound[:, None, None], curvature, torch.eye(gradient.shape[-1]).to(curvature))
    gradient = torch.where(sound.unsqueeze(-1), gradient, 0.0)
    sd = curvature.diagonal(dim1=-2, dim2=-1).abs().clamp(min=1e-300).rsqrt()
    sd = sd.clamp(max=1e6 * sd.min(-1, keepdim=True).values.clamp(min=1e-12, max=1e12) * 1e6)
    even = curvature * sd.unsqueeze(-1) * sd.unsqueeze(-2)
    values, vectors = torch.linalg.eigh(even)
    size = values.abs()
    size = size.clamp(min=_FLAT * size.max(-1, keepdim=True).values.clamp(min=1e-300))
    along = (vectors.mT @ (sd * gradient).unsqueeze(-1)).squeeze(-1)
    step = sd * (vectors @ (along / size).unsqueeze(-1)).squeeze(-1)
    return step, (along.square() / size).sum(-1) / 2
