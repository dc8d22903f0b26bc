"""Importance sampling of one program: its proposals, the weights of their draws, and the sums."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ingle.errors import OptionError
from ingle.evidence.annealed import anneal, refuse_discrete
from ingle.evidence.elements import resolve_per
from ingle.evidence.evidence import Evidence, from_summary
from ingle.evidence.labels import EveryOrder, Labels, read_labels
from ingle.evidence.proposal import Proposal, drawn_by_guide, drawn_wrongly, from_guide, from_prior, left_out
from ingle.evidence.refuse import refuse_shared, why_no_evidence, why_no_weights
from ingle.evidence.sampler import Chunk, Sampler, resolve_chunk
from ingle.evidence.stream import Stream
from ingle.evidence.survey import Survey
from ingle.options import positive_integer
from ingle.program import Program
from ingle.runtime import Runtime

__all__ = ["ProposalName", "estimate"]

ProposalName = Literal["guide", "prior", "ais"]

_MOST_DEFENSIVE = 0.5


def estimate(
    program: Program,
    runtime: Runtime,
    *,
    num_samples: int,
    per: str | None,
    proposal: ProposalName,
    defensive: float,
    given: Mapping[str, Any] | None,
    chunk: Chunk,
    guided: bool = True,
) -> Evidence:
    """The evidence of a program as it is now, inside a scope of its runtime; see `log_evidence` for the options.

    Args:
        guided: whether its guide is more than the prior.
    """
    asked = positive_integer("num_samples", num_samples)
    if proposal not in get_args(ProposalName):
        names = ", ".join(map(repr, get_args(ProposalName)))
        raise OptionError(f"proposal must be one of {names}, got {proposal!r}")
    share = _share(defensive, proposal)
    largest = resolve_chunk(chunk)
    began = time.perf_counter()
    with torch.no_grad(), program.at_rest():
        fixed = resolve_given(given, program, runtime)
        from_it = proposal == "guide" or (proposal == "ais" and guided)
        _refuse_weightless(program, guided=from_it)
        elements = (
            resolve_per(per, program, left_out(program, fixed), drawn_by_guide(program))
            if from_it
            else resolve_per(per, program, fixed)
        )
        sampler = Sampler(program, runtime, elements, fixed, largest)
        survey = Survey(sampler)
        labels = Labels({}, 1) if proposal == "prior" else read_labels(survey.nodes, given=fixed, per=per)
        sources: list[Proposal] = []
        missing: list[str] = []
        if proposal != "prior" and guided:
            guide = from_guide(program, elements, fixed, survey.masks)
            try:
                sources.append(EveryOrder(guide, labels, annealed=proposal == "ais") if labels else guide)
            except OptionError as error:
                if proposal != "ais":
                    raise
                missing.append(f"AIS did not start from the guide: {error}")
        if proposal != "guide" or share > 0:
            sources.append(from_prior(program, elements, fixed))
        if proposal == "ais":
            sources, others = _startable(sampler, sources)
            missing += others
        n = asked if sources[0].latents else 1  # nothing to draw, so one run tells all
        rest = refuse_shared(sampler, sources[0])
        in_all = isinstance(sources[0], EveryOrder)
        if in_all:
            labels.check(sampler, *sampler.first(sources[0]))
        anneal_them = proposal == "ais" and sources[0].latents
        told = (_annealed if anneal_them else _mixed)(sampler, sources, n, share)
    if "steps" in told:
        missing.append(f"temperatures: {told.pop('steps')}")
    notes = [*survey.notes, *([labels.told] if in_all else []), *missing]
    if any(source.name == "the prior" for source in sources):
        notes += drawn_wrongly(program, sources[-1].latents)
    if sampler.alone is not None:
        notes.append(f"draws went through the program one by one, which is slow: {sampler.alone}")
    return from_summary(
        num_samples=asked,
        per=per,
        rest=rest,
        exact=not sources[0].latents,
        model=program.name,
        guide=program.recipe.description if guided else "none",
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
        dtype=runtime.dtype,
        device=runtime.device,
        seed=runtime.seed,
        engine=sampler.engine,
        data=survey.data,
        **told,
    )


def _mixed(sampler: Sampler, sources: list[Proposal], n: int, share: float) -> dict[str, Any]:
    """By importance sampling."""
    second = min(n, max(2, round(share * n)))  # two at least, since one has no error
    counts = [n] if len(sources) == 1 else [n - second, second]
    stream = Stream(sampler.elements.shape, n, sampler.runtime.device, sources=len(sources))
    for place in range(len(sources)):
        _weigh(stream, sampler, sources, counts, place)
    name = " and ".join(
        source.name if len(sources) == 1 else f"{count / n:.0%} {source.name}"
        for source, count in zip(sources, counts, strict=True)
    )
    return {"summary": stream.summary(), "proposal": name}


def _annealed(sampler: Sampler, sources: list[Proposal], n: int, share: float) -> dict[str, Any]:
    """By annealed importance sampling."""
    found = anneal(sampler, sources, n)
    steps = " and ".join(f"{count} from {name}" for name, count in found.temperatures.items())
    return {
        "summary": found.summary,
        "proposal": f"AIS from {' and '.join(found.temperatures)}",
        "starts": found.starts,
        "apart": found.apart,
        "steps": steps,
    }


def resolve_given(given: Mapping[str, Any] | None, program: Program, runtime: Runtime) -> dict[str, Tensor]:
    """Values of latents in the dtype and on the device of the program.

    Raises:
        OptionError: names that are no latents, or values of another shape.
    """
    if given is None:
        return {}
    if not isinstance(given, Mapping):
        raise OptionError(f"given must be a mapping from latents to values, got {given!r}")
    latents = {site.name: site for site in program.latents}
    found = {}
    for name, value in given.items():
        if name in program.enumerated:
            raise OptionError(f"given names {name!r}, which is summed out and so cannot be held at a value")
        if name not in latents:
            there = ", ".join(repr(other) for other in latents if other not in program.enumerated) or "none"
            raise OptionError(f"given names {name!r}, which is no latent of the model; there are {there}")
        try:
            tensor = torch.as_tensor(value, device=runtime.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise OptionError(f"given[{name!r}] must be a number, an array or a tensor, got {value!r}") from error
        tensor = tensor.to(runtime.dtype) if tensor.is_floating_point() or not latents[name].discrete else tensor
        if tuple(tensor.shape) != latents[name].value_shape:
            raise OptionError(
                f"given[{name!r}] has shape {tuple(tensor.shape)}, but latent {name!r} has {latents[name].value_shape}"
            )
        if tensor.isnan().any():
            raise OptionError(f"given[{name!r}] holds NaN")
        found[name] = tensor.detach()
    return found


def _share(defensive: object, proposal: str) -> float:
    if isinstance(defensive, bool) or not isinstance(defensive, (int, float)) or not 0 <= defensive <= _MOST_DEFENSIVE:
        raise OptionError(f"defensive must be a share from 0 to {_MOST_DEFENSIVE}, got {defensive!r}")
    if defensive > 0 and proposal != "guide":
        raise OptionError(f"defensive mixes the prior into the guide, and proposal={proposal!r} does not draw from it")
    return float(defensive)


def _startable(sampler: Sampler, sources: list[Proposal]) -> tuple[list[Proposal], list[str]]:
    """The proposals that annealing can start from, and what to say of the others.

    Raises:
        OptionError: there is none.
    """
    refuse_discrete(sampler.program, sources[0])
    usable, missing = [], []
    for source in sources:
        try:
            sampler.log_q(source, *sampler.first(source))
            usable.append(source)
        except OptionError as error:
            last = error
            missing.append(f"AIS did not start from {source.name}: {error}")
    if not usable:
        raise last
    return usable, missing


def _refuse_weightless(program: Program, *, guided: bool) -> None:
    why = why_no_evidence(program)
    if why is not None:
        raise OptionError(why)
    why = why_no_weights(program) if guided else None
    if why is not None:
        raise OptionError(f"the guide's draws have no importance weights: {why}")


def _weigh(stream: Stream, sampler: Sampler, sources: list[Proposal], counts: list[int], place: int) -> None:
    """Add all draws of one source, weighed against the mixture of all."""
    shares = torch.tensor(counts, dtype=torch.float64, device=sampler.runtime.device)
    shares = (shares / shares.sum()).log()
    for values, own in sampler.blocks(sources[place], counts[place], stream=place):
        n = len(own)
        sampler.compile(values, counts[place])
        terms = [
            (own if other == place else sampler.log_q(source, values, n)) + shares[other]
            for other, source in enumerate(sources)
        ]
        stream.add(sampler.log_p(values, n) - torch.stack(terms).logsumexp(0), place)
