"""Importance sampling of one program: its proposals, the weights of their draws, and the sums."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ingle.errors import OptionError
from ingle.evidence.elements import resolve_per
from ingle.evidence.evidence import Evidence, from_summary
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
        sources: list[Proposal] = []
        counts: list[int] = []
        if proposal != "prior":
            sources.append(from_guide(program, elements, fixed, survey.masks))
        if proposal == "prior" or share > 0:
            sources.append(from_prior(program, elements, fixed))
        n = asked if sources[0].latents else 1  # nothing to draw, so one run tells all
        second = min(n, max(2, round(share * n)))  # two at least, since one has no error
        counts = [n] if len(sources) == 1 else [n - second, second]
        rest = refuse_shared(sampler, sources[0])
        name = " and ".join(
            source.name if len(sources) == 1 else f"{count / n:.0%} {source.name}"
            for source, count in zip(sources, counts, strict=True)
        )
        stream = Stream(elements.shape, n, runtime.device, sources=len(sources))
        for place, count in enumerate(counts):
            _weigh(stream, sampler, sources, counts, place, count)
        summary = stream.summary()
    notes = [*survey.notes]
    if any(source.name == "the prior" for source in sources):
        notes += drawn_wrongly(program, sources[-1].latents)
    if sampler.alone is not None:
        notes.append(f"draws went through the program one by one, which is slow: {sampler.alone}")
    return from_summary(
        summary,
        num_samples=asked,
        per=per,
        rest=rest,
        exact=not sources[0].latents,
        model=program.name,
        guide=program.recipe.description if guided else "none",
        proposal=name,
        starts={},
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
        dtype=runtime.dtype,
        device=runtime.device,
        seed=runtime.seed,
        data=survey.data,
    )


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


def _refuse_weightless(program: Program, *, guided: bool) -> None:
    why = why_no_evidence(program)
    if why is not None:
        raise OptionError(why)
    why = why_no_weights(program) if guided else None
    if why is not None:
        raise OptionError(f"the guide's draws have no importance weights: {why}")


def _weigh(
    stream: Stream, sampler: Sampler, sources: list[Proposal], counts: list[int], place: int, count: int
) -> None:
    """Add all draws of one source."""
    shares = torch.tensor(counts, dtype=torch.float64, device=sampler.runtime.device)
    shares = (shares / shares.sum()).log()
    mixed = len(sources) > 1
    for values, own in sampler.blocks(sources[place], count, stream=place):
        log_q = own + shares[place] if mixed else own
        for other, source in enumerate(sources):
            if other != place:
                log_q = torch.logaddexp(log_q, sampler.log_q(source, values, len(own)) + shares[other])
        stream.add(sampler.log_p(values, len(own)) - log_q, place)
