"""Paths up the log joint, and the best Gaussian along each: where a guide by name starts, and in which units."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ingle.evidence import why_no_evidence
from ingle.program import Program
from ingle.runtime import RandomState, Runtime
from ingle.trust.gaussians import Gaussians, elbos, improve, of_precision, polish
from ingle.trust.lbfgs import Trail, climb, precision
from ingle.trust.log_joint import LogJoint, Refused

__all__ = ["Path", "ascend", "why_no_path"]

DENSE = 256  # numbers, up to which all correlations are kept
LARGEST = 2_000  # numbers, beyond which there is no path
NUM_DRAWS = 16  # of the prior, to start from the best

_STREAM = 7_331  # of random numbers, other than the fit's
_ITERATIONS = 25
_LOOKS = 6  # points of a path whose Gaussian is tried
_DRAWS = 16  # of each Gaussian
_FINALISTS, _DRAWS_AGAIN = 3, 64  # of each path, and draws of these
_NEWTON = 5
_PREFERRED = 0.1  # nats
_EXACT = 1e-3  # nats of standard error, below which a Gaussian is the posterior
_TURNS, _MEANS, _COPIES = 6, 16, 256  # of mean Hessians: how many, draws of each, columns of all of them
_SMALL = 32  # numbers, up to which twice as many
_TOLERANCE = 1e-3  # nats
_ALONE = 32  # numbers, beyond which a program that goes point by point is too slow
_WORK = 2**34  # bytes that Newton's steps may write, and mean Hessians as much again
_TWICE = 8  # a density with its second derivatives writes about so many times as much as alone
_CHEAP = 2**22  # bytes that all paths together write, up to which four times as many points cost hardly more
_ALL_ROWS = 2**25  # bytes of one run with all rows, beyond which a fit in minibatches does not look at them

MEAN_FIELD = ("normal", "delta")
PEAKS = ("delta", "laplace")  # guides that go for the highest point
_KINDS = ("L-BFGS", "Laplace", "mean Hessian")


@dataclass(frozen=True)
class Path:
    """One path, and the Gaussian of the guide's family that stands best for the posterior, of all along it.

    Attributes:
        loc: its mean in unconstrained space, shape (D,), float64.
        factor: lower Cholesky factor of the covariance that the curvature there tells, shape (D, D); sds, shape (D,),
            beyond 256 numbers or where correlations are not known.
        scale: sds of a guide without correlations for that curvature, shape (D,).
        mode: the highest point of the path, shape (D,).
        height: the log joint there, in nats.
        elbo, se: of the Gaussian of the guide's family, and its standard error, in nats.
        kind: of the curvature: "L-BFGS" as the path has seen it, "Laplace" as it is at one point, "mean Hessian" of the
            Gaussian's own draws.
        evaluations: of the gradient, of all paths at once.
        ended: why the path ended.
    """

    loc: Tensor
    factor: Tensor
    scale: Tensor
    mode: Tensor
    height: float
    elbo: float
    se: float
    kind: str
    evaluations: int
    ended: str
    _density: LogJoint = field(repr=False)
    _product: bool = field(repr=False, default=False)

    def draws(self, n: int, *, seed: int = 0) -> dict[str, Tensor]:
        """Draws of the Gaussian of the guide's family, as latents of the model, by name, shape (n, *site shape)."""
        noise = _noise(n, len(self.loc), seed).to(self.loc)
        factor = self.scale if self._product else self.factor
        away = factor * noise if factor.dim() == 1 else noise @ factor.mT
        return self._density.values(self.loc + away)

    def at_loc(self) -> dict[str, Tensor]:
        """The latents of the model at `loc`, by name."""
        return {name: value[0] for name, value in self._density.values(self.loc.unsqueeze(0)).items()}

    def at_mode(self) -> dict[str, Tensor]:
        """The latents of the model at `mode`, by name."""
        return {name: value[0] for name, value in self._density.values(self.mode.unsqueeze(0)).items()}


def why_no_path(program: Program) -> str | None:
    """Why there is no path for a program, in words; None where there may be one."""
    local = sorted(
        {
            plate.name
            for site in program.latents
            for plate in site.plates
            if plate.name in program.batch_sizes and site.name not in program.enumerated
        }
    )
    if local:
        return f"there are latents inside plate {local[0]!r}, which is drawn in minibatches"
    if program.model_leaves.by_name:
        return f"the model has parameters of its own, such as {next(iter(program.model_leaves.by_name))!r}"
    if why_no_evidence(program) is not None:
        return "a plate draws its rows by itself"
    discrete = [site.name for site in program.latents if site.discrete and site.name not in program.enumerated]
    return f"{discrete[0]!r} is discrete" if discrete else None


def ascend(
    program: Program,
    runtime: Runtime,
    num_paths: int,
    *,
    overdispersed: bool = False,
    worth: Callable[[Tensor], bool] | None = None,
) -> list[Path]:
    """Go up the log joint of all continuous latents, unconstrained, by L-BFGS on several paths at once.

    Along each path every point has a Gaussian, by the curvature that L-BFGS has seen (Pathfinder); where the program
    allows, Newton's steps go on from the best, with exact Hessians. The Gaussian with the best ELBO is kept: where the
    density has no peak, as in centred hierarchies, that is not at the end. Works inside a scope of the fit, whose
    random state and parameters it leaves as they were.

    Args:
        program: of the fit; a guide by name tells the family.
        runtime: of the fit.
        num_paths: how many; twice as many where they are over-dispersed and cost nearly nothing.
        overdispersed: start the paths from draws of the prior that lie apart, and not from the best of many.
        worth: whether the end of a path, shape (D,), is worth a Gaussian; None for all of them.

    Returns:
        A `Path` for each start from which there was one, the best first unless overdispersed.

    Raises:
        Refused: there is no path, and why, in words.

    References:
        Zhang, Carpenter, Gelman and Vehtari (2022), Pathfinder: Parallel Quasi-Newton Variational Inference.
        Nocedal and Wright (2006), Numerical Optimization (chapters 3 and 7).
    """
    why = why_no_path(program)
    if why is not None:
        raise Refused(why)
    with _own_stream(runtime), runtime.trial():
        density = LogJoint(program, runtime, volume=program.recipe.name != "delta")
        _check_size(program, density)
        together = density.alone is None
        if not overdispersed and (density.bytes > _CHEAP or not together):
            num_paths = min(num_paths, 2)
        starts = _starts(density, num_paths, overdispersed)
        fine = together and density.size <= DENSE and _hessians(density) >= 2
        tolerance = _TOLERANCE if fine else _TOLERANCE**2
        cheap = density.bytes * len(starts) <= _CHEAP
        trail = climb(density, starts, most=_ITERATIONS, tolerance=tolerance, cheap=cheap)
        if worth is not None:
            trail = trail.of([path for path, end in enumerate(trail.points[-1]) if worth(end)])
            if not trail.ended:
                return []
        paths = _Found(program, density, trail, fine, each=overdispersed).paths()
    if not paths:
        raise Refused("no path had a finite ELBO")
    if overdispersed:
        return paths
    peak = program.recipe.name in PEAKS
    return sorted(paths, key=lambda path: path.height if peak else _worth(path), reverse=True)


def _hessians(density: LogJoint) -> int:
    """How many Hessians are worth their cost."""
    return int(_WORK // (density.size * density.bytes * _TWICE))


def _worth(path: Path) -> float:
    return path.elbo + (0.0 if path.kind == _KINDS[0] else _PREFERRED)


class _Found:
    """The Gaussians along all paths, with their ELBOs.

    Args:
        program, density, trail: of the paths.
        fine: whether exact Hessians are worth their cost.
        each: whether every path is to have a Gaussian by exact Hessians, and not only the best.
    """

    def __init__(self, program: Program, density: LogJoint, trail: Trail, fine: bool, *, each: bool) -> None:
        self._density, self._trail, self._each = density, trail, each
        self._product = program.recipe.name in MEAN_FIELD
        self._peak = program.recipe.name in PEAKS
        turn, self._path = _looks(trail)
        loc = trail.points[turn, self._path]
        dense = density.size <= DENSE
        self._precision = precision(trail, turn, self._path, dense=dense)
        self._given, good = of_precision(loc, self._precision)
        self._kind = torch.zeros_like(self._path)
        cheap = density.bytes <= _CHEAP and density.alone is None
        self._draws, self._again = (_DRAWS, _DRAWS_AGAIN) if cheap else (_DRAWS // 2, _DRAWS_AGAIN // 4)
        self._elbo, self._se = self._elbos(self._given, good, self._draws, 1)
        self._mode, self._height = trail.points[-1], trail.values[-1]
        if fine:
            self._polish()
        self._settle()
        if fine and not self._peak:
            self._improve()

    def paths(self) -> list[Path]:
        """One for each start that led to a finite ELBO."""
        found = []
        for place, ended in enumerate(self._trail.ended):
            here = self._here(place)
            best = here[self._score()[here].argmax()]
            if bool(self._elbo[best].isfinite()):
                found.append(self._one(place, best, ended))
        return found

    def _one(self, place: int, best: Tensor, ended: str) -> Path:
        one = self._given[best.unsqueeze(0)]
        return Path(
            loc=one.loc[0],
            factor=self._factor(one, best),
            scale=one.scale[0],
            mode=self._mode[place],
            height=float(self._height[place]),
            elbo=float(self._elbo[best]),
            se=float(self._se[best]),
            kind=_KINDS[int(self._kind[best])],
            evaluations=self._density.gradients,
            ended=ended,
            _density=self._density,
            _product=self._product,
        )

    def _here(self, place: int) -> Tensor:
        return (self._path == place).nonzero().flatten()

    def _score(self) -> Tensor:
        """The ELBO, that of an exact curvature preferred among equals."""
        return self._elbo + _PREFERRED * (self._kind > 0).to(self._elbo)

    def _factor(self, one: Gaussians, best: Tensor) -> Tensor:
        """With correlations, unless these turn out to be nothing like the posterior's."""
        if not self._product or one.factor.dim() == 2 or bool(self._kind[best] > 0):
            return one.factor[0]
        noise = _noise(self._draws, self._density.size, 1).to(one.loc)
        elbo, _ = elbos(self._density, one, noise, product=False)
        near = float(elbo) > float(self._elbo[best]) - max(5.0, self._density.size)
        return one.factor[0] if near else one.scale[0]

    def _elbos(self, given: Gaussians, good: Tensor, draws: int, seed: int) -> tuple[Tensor, Tensor]:
        noise = _noise(draws, self._density.size, seed).to(given.loc)
        elbo, se = elbos(self._density, given, noise, product=self._product)
        return torch.where(good, elbo, -math.inf), se

    def _add(self, loc: Tensor, curvature: Tensor, path: Tensor, kind: int, draws: int, seed: int) -> None:
        given, good = of_precision(loc, curvature)
        elbo, se = self._elbos(given, good, draws, seed)
        self._given = self._given.joined(given)
        self._precision = torch.cat([self._precision, curvature])
        self._elbo, self._se = torch.cat([self._elbo, elbo]), torch.cat([self._se, se])
        self._path = torch.cat([self._path, path])
        self._kind = torch.cat([self._kind, torch.full_like(path, kind)])

    def _polish(self) -> None:
        """Add the Gaussians of Newton's steps from the ends of paths, and from the best Gaussians so far."""
        order = self._elbo.argsort(descending=True)
        best = [order[self._path[order] == place][0] for place in range(len(self._mode))]
        ends = list(range(len(best)))
        if not self._each:
            ends, best = [int(self._height.argmax())], [order[0]]
        at = torch.stack(best)
        at = at[self._elbo[at].isfinite()]
        points = torch.cat([self._mode[ends], self._given.loc[at]])
        most = max(0, _hessians(self._density) // len(points) - 1)
        which = torch.cat([torch.tensor(ends, device=at.device), self._path[at]])
        met, heights, means, curvature = polish(self._density, points, most=min(_NEWTON, most))
        which = which.repeat(len(met) // len(points))
        for point, height, place in zip(met, heights, which.tolist(), strict=True):
            if bool(height > self._height[place]):
                self._mode, self._height = self._mode.clone(), self._height.clone()
                self._mode[place], self._height[place] = point, height
        self._add(means, curvature, which, 1, self._draws, 1)

    def _settle(self) -> None:
        """Draw the best of each path again: the highest of many noisy ELBOs is the luckiest one."""
        kept = []
        for place in range(len(self._mode)):
            here = self._here(place)
            kept.append(here[self._elbo[here].argsort(descending=True)[:_FINALISTS]])
        finalists = torch.cat(kept)
        elbo, se = self._elbos(self._given[finalists], self._elbo[finalists].isfinite(), self._again, 2)
        self._elbo = torch.full_like(self._elbo, -math.inf).index_put((finalists,), elbo)
        self._se = self._se.index_put((finalists,), se)

    def _improve(self) -> None:
        """Add Gaussians whose curvature is the mean over their own draws, where that of a point is not enough."""
        score = self._score()
        best = [self._here(place)[score[self._here(place)].argmax()] for place in range(len(self._mode))]
        at = torch.stack(best if self._each or self._density.size <= _SMALL else [score.argmax()])
        at = at[self._elbo[at].isfinite() & (self._se[at] > _EXACT)]
        if len(at) == 0 or float(self._se[score.argmax()]) <= _EXACT:
            return
        worth = _hessians(self._density) // len(at) // (2 * _TURNS)
        if worth < 2:
            return
        draws = min(worth, max(4, min(_MEANS, 2 * _COPIES // self._density.size // len(at)))) // 2 * 2
        turns = _TURNS if self._density.size > _SMALL else 2 * _TURNS
        noise = torch.stack([_noise(draws, self._density.size, 3 + turn) for turn in range(turns)])
        loc, curvature = improve(
            self._density, self._given.loc[at], self._precision[at], noise.to(self._given.loc), product=self._product
        )
        self._add(loc, curvature, self._path[at].repeat(len(loc) // len(at)), 2, self._again, 2)


def _check_size(program: Program, density: LogJoint) -> None:
    if density.size > LARGEST:
        raise Refused(f"there are {density.size:,} numbers to find, more than {LARGEST:,}")
    if density.alone is not None and density.size > _ALONE:
        raise Refused(f"points go through the model one by one ({density.alone})")
    if program.batch_sizes and density.bytes > _ALL_ROWS:
        raise Refused("all rows at once are too many beside minibatches")


def _starts(density: LogJoint, num_paths: int, overdispersed: bool) -> Tensor:
    if overdispersed:
        num_paths = 2 * num_paths if density.bytes * 2 * num_paths <= _CHEAP else num_paths
        points = density.prior(8 * num_paths)
        points = _spread(points[density.value(points).isfinite()], num_paths)
    else:
        points = torch.cat([density.median, density.prior(NUM_DRAWS)])
        values = density.value(points)
        values = torch.where(values.isfinite(), values, -math.inf)
        order = values.argsort(descending=True)
        order = order[values[order].isfinite()]
        half = max(1, num_paths // 2)
        others = order[half:].sort().values  # the highest draws of a funnel all lie near its spike
        points = points[torch.cat([order[:half], others[: num_paths - half]])]
    if len(points) == 0:
        raise Refused("the log joint or its gradient is not finite at any draw of the prior")
    return points


def _spread(points: Tensor, num: int) -> Tensor:
    """Half of them as they come, and half as far as can be from all that were taken, in units of their sds."""
    if len(points) <= num:
        return points
    units = points.std(0).clamp(min=1e-12)
    taken = list(range(num - num // 2))
    nearest = torch.cdist(points / units, points[taken] / units).amin(1)
    for _ in range(num // 2):
        farthest = int(nearest.argmax())
        taken.append(farthest)
        nearest = torch.minimum(nearest, ((points - points[farthest]) / units).norm(dim=1))
    return points[taken]


def _looks(trail: Trail) -> tuple[Tensor, Tensor]:
    """Points of each path to try, by iteration and path: evenly many, the last among them."""
    turns, paths = [], []
    for path in range(trail.points.shape[1]):
        moved = (trail.steps[:, path].abs().sum(-1) > 0).nonzero().flatten().tolist() or [0]
        places = sorted({round(x) for x in np.linspace(0, len(moved) - 1, _LOOKS)})
        turns += [moved[place] for place in places]
        paths += [path] * len(places)
    device = trail.points.device
    return torch.tensor(turns, device=device), torch.tensor(paths, device=device)


def _noise(n: int, size: int, seed: int) -> Tensor:
    """Standard normals, shape (n, size), float64, the second half minus the first where n is even."""
    generator = torch.Generator(device="cpu").manual_seed(_STREAM + seed)
    half = torch.randn(n // 2 + n % 2, size, generator=generator, dtype=torch.float64, device="cpu")
    return torch.cat([half, -half])[:n]


@contextmanager
def _own_stream(runtime: Runtime) -> Iterator[None]:
    """Random numbers of its own inside; the state as it was outside."""
    before = RandomState.capture(runtime.device)
    try:
        runtime.reseed(int(np.random.SeedSequence([runtime.seed, _STREAM]).generate_state(1)[0]))
        yield
    finally:
        before.restore()
