"""Annealed importance sampling: from a proposal to the joint through densities in between."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ingle.errors import OptionError
from ingle.evidence.hmc import Bridge, Metric, move
from ingle.evidence.memory import budget, cost_of
from ingle.evidence.proposal import Proposal
from ingle.evidence.resampling import systematic
from ingle.evidence.sampler import Sampler
from ingle.evidence.space import Space
from ingle.evidence.stream import Stream, Summary
from ingle.program import Program

__all__ = ["Annealed", "anneal", "refuse_discrete"]

_PILOT = 500  # points that find the temperatures
_CONDITIONAL = 0.95  # effective share of points from one temperature to the next, in the pilot
_SPREAD = 0.2  # variance of log weights to end with, if moves mixed perfectly
_MOST = 1_000  # temperatures
_LEAPS = 6
_TARGET = 0.8  # share of trajectories to accept
_BATCHES = 20
_FAR = 1e300  # nats, in place of infinity
_TRAINED = 3.0  # with its gradient, a density holds this many times the memory


@dataclass(frozen=True)
class Annealed:
    """What annealing from one or two starts found.

    Attributes:
        summary: of the weights of all points, its errors from independent batches.
        starts: log Z and its standard error from each start, by name.
        apart: by how many standard errors the starts differ; the largest over elements. NaN with one start.
        temperatures: from each start, by name.
    """

    summary: Summary
    starts: Mapping[str, tuple[float, float]]
    apart: float
    temperatures: Mapping[str, int]


@dataclass(frozen=True)
class _Stage:
    """One temperature of a schedule, found by the pilot: beta, the length of a leap, and the metric."""

    beta: Tensor
    step: Tensor
    metric: Metric


def refuse_discrete(program: Program, proposal: Proposal) -> None:
    """Raise `OptionError` where a latent that is drawn is discrete, which Hamiltonian moves cannot move."""
    discrete = [site.name for site in program.latents if site.name in proposal.latents and site.discrete]
    if discrete:
        raise OptionError(
            f"proposal='ais' moves continuous latents, and {', '.join(map(repr, discrete))} "
            f"{'is' if len(discrete) == 1 else 'are'} discrete; leave finite ones out of the guide, which sums them out"
        )


def anneal(sampler: Sampler, sources: list[Proposal], num_samples: int) -> Annealed:
    r"""The evidence by annealed importance sampling from each of several proposals, each with its share of the points.

        f_b(u) = q(u)^(1 - b) p(x, u)^b,   log w = sum_t (b_t - b_(t-1)) (log p(x, u_(t-1)) - log q(u_(t-1))),

    in unconstrained space, each point moved by a Hamiltonian trajectory that leaves f_b unchanged. Temperatures b,
    lengths of leaps and the metric come from a pilot run with resampling, in which each temperature keeps 95% of the
    points effective; between them the path is made finer until log weights would have a variance of about 0.2. Then all
    is held fixed, so the mean of the weights is unbiased. With elements, all of it is done for each by itself.

    Args:
        sampler: of the program.
        sources: where to start from; the first of two is the guide.
        num_samples: points in all.

    Raises:
        OptionError: fewer points than batches.

    References:
        Neal (2001), Annealed Importance Sampling.
        Zhou, Johansen and Aston (2016), Toward Automatic Model Comparison: An Adaptive Sequential Monte Carlo Approach
        (temperatures by the conditional effective sample size).
    """
    if num_samples < _BATCHES * len(sources):
        raise OptionError(
            f"proposal='ais' takes its error from {_BATCHES} independent batches of each of {len(sources)} "
            f"start{'s' if len(sources) > 1 else ''}, so num_samples must be at least {_BATCHES * len(sources)}, "
            f"got {num_samples}"
        )
    counts = [num_samples - num_samples // 2, num_samples // 2] if len(sources) == 2 else [num_samples]
    weights: dict[str, Tensor] = {}
    temperatures = {}
    for place, (source, count) in enumerate(zip(sources, counts, strict=True)):
        bridge, space = _bridge(sampler, source)
        schedule = _pilot(sampler, source, space, bridge, place)
        temperatures[source.name] = len(schedule)
        weights[source.name] = _run(sampler, source, space, bridge, schedule, count, place)
    return replace(_together(weights, num_samples), temperatures=temperatures)


def _together(weights: Mapping[str, Tensor], num_samples: int) -> Annealed:
    """One estimate from all starts, each counted by its effective sample size."""
    shapes = [part.shape[1:] for part in weights.values()]
    device = next(iter(weights.values())).device
    stream = Stream(shapes[0], num_samples, device, sources=len(weights))
    sizes = torch.stack([_share(part) * len(part) for part in weights.values()]).nan_to_num(nan=0.0)
    parts = (sizes.clamp(min=1.0) / sizes.clamp(min=1.0).sum(0)).log()
    found, ends, batches = {}, [], []
    for place, (name, part) in enumerate(weights.items()):
        log_z, se, means = _batched(part)
        stream.add(part + parts[place] + math.log(num_samples / len(part)), place)
        found[name] = (float(log_z.sum()), float(se.square().sum().sqrt()))
        ends.append((log_z, se))
        batches.append(means + parts[place])
    apart = math.nan
    if len(ends) == 2:
        (one, one_se), (two, two_se) = ends
        apart = float(((one - two).abs() / (one_se.square() + two_se.square()).sqrt()).max())
    se = _error(torch.stack(batches).logsumexp(0))  # of batch i from every start
    return Annealed(replace(stream.summary(), se=se.cpu().numpy()), found, apart, {})


def _bridge(sampler: Sampler, source: Proposal) -> tuple[Bridge, Space]:
    space = Space(sampler, source.latents, *sampler.first(source))
    start = None if source.name == "the prior" else source
    one = space.points(*sampler.first(source, 1))
    most = cost_of(lambda: space.densities(one, start)).most * _TRAINED
    bridge = Bridge(lambda points: space.densities(points, start), max(1, int(budget(sampler.runtime.device) // most)))
    if sampler.runtime.device.type == "cpu" and sampler.alone is None:
        beta = torch.full(sampler.elements.shape, 0.5, dtype=torch.float64)
        points = space.points(*sampler.first(source, _PILOT))
        if bridge.compile(lambda points: space.traced(points, start), points, beta):
            sampler.engine = "compiled"
    return bridge, space


def _drawn(sampler: Sampler, source: Proposal, space: Space, n: int, stream: int) -> Tensor:
    blocks = [space.points(values, len(log_q)) for values, log_q in sampler.blocks(source, n, stream=stream)]
    return torch.cat(blocks)


def _pilot(sampler: Sampler, source: Proposal, space: Space, bridge: Bridge, place: int) -> list[_Stage]:
    """Temperatures with what to move by at each, from a run that resamples its points."""
    state = bridge.at(_drawn(sampler, source, space, _PILOT, 10 + place))
    beta = torch.zeros(sampler.elements.shape, dtype=torch.float64, device=sampler.runtime.device)
    step = torch.full(beta.shape, space.size**-0.25, dtype=state.points.dtype, device=beta.device)
    stages: list[_Stage] = []
    lengths: list[Tensor] = []
    while bool((beta < 1).any()) and len(stages) < _MOST:
        difference = (state.joint - state.start).nan_to_num(nan=-_FAR, neginf=-_FAR, posinf=_FAR)
        following = _next(beta, difference)
        weights = (following - beta) * difference
        lengths.append(_variance(weights))
        state = state.chosen(systematic(weights))
        metric = Metric.of(state.points)
        beta = following
        for _ in range(2):
            state, accepted = move(bridge, state, beta, step, metric, _LEAPS)
            step = (step * (accepted - _TARGET).exp().to(step.dtype)).clamp(1e-4, 2.0)
        stages.append(_Stage(beta, step, metric))
    total = float(torch.stack(lengths).sum(0).max())
    finer = min(max(1, math.ceil(total / _SPREAD)), max(1, _MOST // len(stages)))
    return _refined(stages, finer)


def _refined(stages: list[_Stage], parts: int) -> list[_Stage]:
    """Each interval of a schedule cut into parts, moved by what was found at its end."""
    finer = []
    before = torch.zeros_like(stages[0].beta)
    for stage in stages:
        for part in range(1, parts):
            finer.append(replace(stage, beta=before + (stage.beta - before) * (part / parts)))
        finer.append(stage)
        before = stage.beta
    return finer


def _next(beta: Tensor, difference: Tensor) -> Tensor:
    """The farthest temperatures at which the conditional effective share is still as wanted, by bisection."""
    low, high = beta, torch.ones_like(beta)
    all_the_way = _share((high - beta) * difference) >= _CONDITIONAL
    for _ in range(40):
        middle = 0.5 * (low + high)
        enough = _share((middle - beta) * difference) >= _CONDITIONAL
        low, high = torch.where(enough, middle, low), torch.where(enough, high, middle)
    return torch.where(all_the_way, 1.0, torch.maximum(low, (beta + 1e-6).clamp(max=1.0)))


def _share(log_weights: Tensor) -> Tensor:
    """(mean w)^2 / mean w^2."""
    n = len(log_weights)
    return (2 * log_weights.logsumexp(0) - (2 * log_weights).logsumexp(0)).exp() / n


def _variance(log_weights: Tensor) -> Tensor:
    """Of the weights in units of their mean."""
    return 1 / _share(log_weights).clamp(min=1e-6) - 1


def _run(
    sampler: Sampler,
    source: Proposal,
    space: Space,
    bridge: Bridge,
    schedule: list[_Stage],
    n: int,
    place: int,
) -> Tensor:
    """Log weights of `n` points through a schedule that is held fixed, shape (n, *elements)."""
    state = bridge.at(_drawn(sampler, source, space, n, 20 + place))
    weights = torch.zeros_like(state.start)
    before = torch.zeros_like(schedule[0].beta)
    for stage in schedule:
        farther = stage.beta > before
        weights = weights + torch.where(farther, (stage.beta - before) * (state.joint - state.start), 0.0)
        before = stage.beta
        if stage is not schedule[-1]:
            state, _ = move(bridge, state, stage.beta, stage.step, stage.metric, _LEAPS)
    return weights


def _batched(weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log of the mean weight, its standard error, and the log means of independent batches, (batches, *elements)."""
    batches = torch.stack([part.logsumexp(0) - math.log(len(part)) for part in weights.tensor_split(_BATCHES)])
    return weights.logsumexp(0) - math.log(len(weights)), _error(batches), batches


def _error(batches: Tensor) -> Tensor:
    """The standard error of the log of a mean of batches."""
    relative = (batches - batches.amax(0)).exp()
    return relative.std(0) / math.sqrt(len(batches)) / relative.mean(0)
