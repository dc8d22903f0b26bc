"""Parts of the posterior that the guide misses: short fits from over-dispersed starts, beside the guide's draws."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingle.evidence import psis
from ingle.program import Program, Site, repeat, sample_nodes
from ingle.runtime import Runtime
from ingle.trust.lbfgs import climb
from ingle.trust.log_joint import LogJoint, Refused
from ingle.trust.paths import Path, ascend, why_no_path

__all__ = ["Mode", "find_modes"]

_PATHS = 5
_DRAWS = 512  # of each path's Gaussian, for the mass around it
_SHARE = 0.03  # of the posterior, below which a mode is let be: it moves no mean by much
_STRAY = 0.1  # of the guide's draws, that are passed over
_NEAR = 8  # draws of the guide, the nearest to a mode, from which a way is looked for
_ALONG = 17  # points of a way
_BARRIER = 2.0  # nats below its lower end that a way must fall for its ends to lie in two modes
_PREDICTED = 600  # runs of the model on either side
_NUMBERS = 2**22  # that are predicted at a time
_TOPMOST = 100  # iterations to the top of a mode
_LEVEL = 0.05  # nats, by which the tops of two copies of one mode may differ
_UNLIKE = 2.5  # standard errors beyond the largest that chance would give


@dataclass(frozen=True)
class Mode:
    """A part of the posterior that lies beyond a valley of density, as seen from every draw of the guide.

    Attributes:
        share: of the posterior's mass that it has, of what was found.
        log_mass: log of the mass around it, in nats, by importance weights of the Gaussian's draws.
        elbo: of the Gaussian there, in nats.
        apart: the largest difference of its predictions from the guide's, in their sds; 0 where the prior alone
            tells the two apart.
        where: mean of each latent there, by name.
    """

    share: float
    log_mass: float
    elbo: float
    apart: float
    where: Mapping[str, Tensor]


def find_modes(
    program: Program, runtime: Runtime, drawn: Mapping[str, Tensor], log_mass: float
) -> tuple[list[Mode], int]:
    """The modes that the guide does not reach and that predict otherwise, the largest first.

    A mode counts where a Gaussian at it has a share of the mass; where the straight ways to it from the nearest
    draws of the guide all cross a valley; and where observed sites drawn anew differ from the guide's beyond noise, or
    its top is not as high as the guide's. So neither permuted labels nor mirrored signs count, as long as the prior
    does not tell them apart, nor a path that ended in a worse place.

    Args:
        program, runtime: of the fit, inside a scope of it.
        drawn: of the guide, shape (n, *site shape).
        log_mass: log of the mass that the guide's draws reach, in nats.

    Returns:
        The modes, and how many paths were looked at.

    Raises:
        Refused: there are no paths, and why.
    """
    why = why_no_path(program)
    if why is not None:
        raise Refused(why)
    density = LogJoint(program, runtime)
    points = density.points(drawn, len(next(iter(drawn.values()))))
    points = _inner(density, points[points.isfinite().all(-1)])
    looked = 0

    def worth(end: Tensor) -> bool:
        nonlocal looked
        looked += 1
        return len(points) > 0 and _parted(density, points, end, points.std(0))

    paths = ascend(program, runtime, _PATHS, overdispersed=True, worth=worth)
    far: list[tuple[Path, float]] = []
    # A path that ends far below cannot hold mass: its log joint at the top is that of a speck.
    for path in sorted(paths, key=lambda path: path.elbo, reverse=True):
        if path.elbo < log_mass - 20.0 - 0.5 * density.size:
            continue
        if not _parted(density, points, path.loc, path.scale):
            continue
        if any(not _valley(density, path.loc, other.loc.unsqueeze(0)) for other, _ in far):
            continue
        far.append((path, _mass(density, path)))
    total = math.exp(0.0) + sum(math.exp(min(50.0, mass - log_mass)) for _, mass in far)
    found = []
    for path, mass in far:
        share = math.exp(min(50.0, mass - log_mass)) / total
        if share < _SHARE:
            continue
        apart, unlike = _predicts_otherwise(program, drawn, path)
        if unlike or _lower_or_higher(density, points, path):
            where = {name: value.double().mean(0) for name, value in path.draws(_DRAWS).items()}
            found.append(Mode(share, mass, path.elbo, apart if unlike else 0.0, where))
    return sorted(found, key=lambda mode: -mode.share), looked


def _inner(density: LogJoint, points: Tensor) -> Tensor:
    """Draws of the guide but for the least likely: one that strayed into a valley does not bridge it."""
    if len(points) == 0:
        return points
    heights = density.value(points).nan_to_num(nan=-math.inf)
    return points[heights >= heights.quantile(_STRAY)]


def _parted(density: LogJoint, points: Tensor, loc: Tensor, units: Tensor) -> bool:
    """Whether a valley lies between a mode and each of the nearest draws of the guide, in units of each coordinate."""
    away = (points - loc) / units.clamp(min=1e-12)
    nearest = away.square().sum(-1).topk(min(_NEAR, len(points)), largest=False).indices
    return _valley(density, loc, points[nearest])


def _valley(density: LogJoint, loc: Tensor, others: Tensor) -> bool:
    """Whether the straight ways from one point to each of several all fall below both their ends."""
    share = torch.linspace(0.0, 1.0, _ALONG, dtype=loc.dtype, device=loc.device)[:, None, None]
    ways = loc + share * (others - loc)
    heights = density.value(ways.flatten(0, 1)).nan_to_num(nan=-math.inf).reshape(_ALONG, len(others))
    lower = torch.minimum(heights[0], heights[-1])
    return bool((heights.amin(0) < lower - _BARRIER).all())


def _mass(density: LogJoint, path: Path) -> float:
    """Log of the mean smoothed weight of draws of a path's Gaussian, in nats."""
    generator = torch.Generator("cpu").manual_seed(0)
    noise = torch.randn(_DRAWS, len(path.loc), generator=generator, dtype=torch.float64, device="cpu").to(path.loc)
    if path.factor.dim() == 2:
        points = path.loc + noise @ path.factor.mT
        spread = path.factor.diagonal().log().sum()
    else:
        points = path.loc + path.factor * noise
        spread = path.factor.log().sum()
    log_q = -0.5 * noise.square().sum(-1) - spread - 0.5 * len(path.loc) * math.log(2 * math.pi)
    weights = (density.value(points) - log_q).nan_to_num(nan=-math.inf)
    return smoothed_mean(weights)


def smoothed_mean(log_weights: Tensor) -> float:
    """Log of the mean of weights whose largest are smoothed, in nats."""
    if bool((log_weights == -math.inf).all()):
        return -math.inf
    smoothed, _ = psis(log_weights)
    body = log_weights.argsort()[len(log_weights) // 2]  # smoothing changes none but the largest
    shift = float(log_weights[body] - smoothed[body])
    return shift - math.log(len(log_weights))


def _predicts_otherwise(program: Program, drawn: Mapping[str, Tensor], path: Path) -> tuple[float, bool]:
    """The largest difference of predicted means or sds, in sds, and whether it is more than chance gives.

    Of z scores that are standard normal, as many as there are numbers, the largest is about sqrt(2 log(numbers)).
    """
    names = _data_sites(program)
    if not names:
        return math.nan, True  # nothing to predict, so that a mirror image cannot be told
    sizes = sum(math.prod(site.value_shape) for site in program.model_sites if site.name in names)
    n = max(50, min(_PREDICTED, len(next(iter(drawn.values()))), _NUMBERS // max(1, sizes)))
    ours = _predicted(program, {name: value[:n] for name, value in drawn.items()}, n, names)
    theirs = _predicted(program, path.draws(n), n, names)
    one, two = (torch.cat([side[name].reshape(n, -1).double() for name in names], 1) for side in (ours, theirs))
    both = torch.cat([one, two])
    scale = both.std(0).clamp(min=1e-12)
    away = (both - both.mean(0)) / scale
    largest, most = 0.0, 0.0
    for feature in (away, away.square()):
        difference = feature[:n].mean(0) - feature[n:].mean(0)
        error = (feature[:n].var(0) / n + feature[n:].var(0) / n).clamp(min=1e-12).sqrt()
        most = max(most, float((difference / error).abs().max()))
        if feature is away:
            largest = float(difference.abs().max())
    return largest, most > math.sqrt(2 * math.log(4 * away.shape[1])) + _UNLIKE


def _lower_or_higher(density: LogJoint, points: Tensor, path: Path) -> bool:
    """Whether the top of a mode is not as high as that of the guide's: copies by a symmetry are, to the last digit."""
    home = points[density.value(points).nan_to_num(nan=-math.inf).argmax()]
    tops = climb(density, torch.stack([home, path.mode]), most=_TOPMOST, tolerance=1e-6).values[-1]
    return abs(float(tops[0] - tops[1])) > _LEVEL


def _data_sites(program: Program) -> list[str]:
    sites: list[Site] = [site for site in program.model_sites if site.kind == "observed" and not program.partial(site)]
    return [site.name for site in sites if site.distribution not in ("Unit", "Delta")]


def _predicted(program: Program, latents: Mapping[str, Tensor], n: int, names: Sequence[str]) -> Mapping[str, Tensor]:
    def run(given: Any) -> dict[str, Tensor]:
        trace = program.trace_model(given, anew=True)
        return {node["name"]: node["value"] for node in sample_nodes(trace) if node["name"] in names}

    sizes = sum(math.prod(site.value_shape) for site in program.model_sites)
    with torch.no_grad(), program.at_rest(), program.explained("model"):
        found: Mapping[str, Tensor] = repeat(
            run, n, chunk=max(1, min(n, _NUMBERS // max(1, sizes))), given=dict(latents)
        )
    return found
