"""Importance weights of a multi-sample bound: which terms share one, and for which elements of which plates."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from pyro.distributions.util import is_identically_zero, scale_and_mask
from torch import Tensor, stack

from ingle.errors import ProgramError
from ingle.objectives.scale import common_scale
from ingle.program import origins, sample_nodes

__all__ = ["Block", "Weights", "weigh"]

_PARTICLES = "num_particles_vectorized"  # the plate in which Pyro's ELBOs run all particles at once


@dataclass(frozen=True)
class Block:
    """Draws that share terms of log p - log q, and so one importance weight.

    Attributes:
        sites: of the guide's draws by name, one for each particle, or one for all of them.
        plates: around all of its terms; each of their elements has a weight of its own.
        scale: of all of its terms, N/B of those plates among it.
        log_p, log_q: without the scale, shapes (K, *batch), where batch has the plates in their dimensions and 1 in
            place of all others.
        score: log q of the draws without a pathwise gradient, of the same shape; 0 where there is none.
    """

    sites: dict[str, list[Any]]
    plates: tuple[str, ...]
    scale: Any
    log_p: Tensor
    log_q: Tensor
    score: Any

    @property
    def log_weight(self) -> Tensor:
        """The log weights, shape (K, *batch)."""
        return self.log_p - self.log_q


@dataclass(frozen=True)
class Weights:
    """The runs of all particles.

    Attributes:
        blocks: independent of each other given the parameters.
        constant: the terms that no draw has a say in, averaged over particles, a scalar with its scale.
    """

    blocks: tuple[Block, ...]
    constant: Any

    def told(self) -> str:
        """How many weights a particle has, in words."""
        parts = []
        for block in self.blocks:
            names = list(block.sites)
            told = f"{', '.join(names[:3])}{', …' if len(names) > 3 else ''}"
            plates = " and ".join(map(repr, block.plates))
            parts.append(f"each element of {plates} ({told})" if plates else f"all of {told}")
        return f"one bound for {'; one for '.join(parts)}" if parts else ""


@dataclass(frozen=True)
class _Term:
    """One sample statement in all particles."""

    name: str
    side: Literal["model", "guide"]
    sites: list[Any]
    origins: frozenset[str]
    frames: frozenset[Any]

    @property
    def scale(self) -> Any:
        return self.sites[0]["scale"]


def weigh(traces: Sequence[tuple[Any, Any]], num_particles: int, *, vectorized: bool) -> Weights:
    """The weights of all particles.

    Terms belong together where draws have a say in both, so that a bound is told for each element of the plates that
    are around all of them: sum over elements of log (1/K) sum_k w_k.

    Args:
        traces: of model and guide, with log_prob and marks of every draw of the guide; one pair for each particle, or
            one with all of them in its leftmost dimension.
        num_particles: K.
        vectorized: whether it is one.

    Raises:
        ProgramError: a weight would have to take the scale of subsampled rows inside its logarithm, or particles
            differ in their sites.
    """
    terms = [*_terms("model", [pair[0] for pair in traces]), *_terms("guide", [pair[1] for pair in traces])]
    latents = [term.name for term in terms if term.side == "guide" and not term.sites[0]["is_observed"]]
    terms = [_tied(term, terms, frozenset(latents)) for term in terms]
    shape = _Shape(num_particles, terms, vectorized=vectorized)
    groups = _groups(latents, terms)
    constant: Any = 0.0
    for term in terms:
        if term.origins.isdisjoint(latents):
            value = sum(site["log_prob_sum"] for site in term.sites) / num_particles
            constant = constant + value if term.side == "model" else constant - value
    return Weights(tuple(_block(names, terms, shape) for names in groups), constant)


class _Shape:
    """Where the dimensions of a term are."""

    def __init__(self, num_particles: int, terms: Sequence[_Term], *, vectorized: bool) -> None:
        self.num_particles = num_particles
        self.vectorized = vectorized
        ranks = [site["log_prob"].dim() for term in terms for site in term.sites]
        self.rank = max(ranks, default=0) - (1 if vectorized else 0)

    def summed(self, values: Sequence[Any], dims: frozenset[int]) -> Tensor:
        """Values of all particles, summed over all dimensions but the particles' and `dims`, shape (K, *batch)."""
        parts = [self._padded(value, dims) for value in values]
        if not self.vectorized:
            return stack(parts)
        return parts[0].expand(self.num_particles, *parts[0].shape[1:])

    def _padded(self, value: Tensor, dims: frozenset[int]) -> Tensor:
        rank = self.rank + 1 if self.vectorized else self.rank
        value = value.reshape((1,) * (rank - value.dim()) + tuple(value.shape))
        others = [dim for dim in range(-self.rank, 0) if dim not in dims]
        return value.sum(others, keepdim=True) if others else value


def _terms(side: Literal["model", "guide"], traces: Sequence[Any]) -> list[_Term]:
    named = [{site["name"]: site for site in sample_nodes(trace)} for trace in traces]
    first = named[0]
    for other in named[1:]:
        if list(other) != list(first):
            odd = next(iter(set(other) ^ set(first)), next(iter(first), ""))
            raise ProgramError(
                f"particles differ in the sites of the {side}, {odd!r} among them, so that their weights are of "
                "different terms; use TraceGraph_ELBO or Trace_ELBO, which take each particle by itself"
            )
    found = []
    for name in first:
        sites = [particle[name] for particle in named]
        marks: frozenset[str] = frozenset().union(*(origins(site) for site in sites))
        if side == "guide" and not first[name]["is_observed"]:
            marks |= {name}
        found.append(_Term(name, side, sites, marks, _frames(first[name])))
    return found


def _tied(term: _Term, terms: Sequence[_Term], latents: frozenset[str]) -> _Term:
    """A term of the guide that is seen to have a say in no other term may have one in all: then all share a weight."""
    scored = term.side == "guide" and not is_identically_zero(term.sites[0]["score_parts"].score_function)
    if term.side == "model" or (term.name not in latents and not scored):
        return term
    if term.name in latents and any(term.name in other.origins for other in terms if other.name != term.name):
        return term
    if term.name not in latents and not term.origins.isdisjoint(latents):
        return term
    return replace(term, origins=latents)


def _frames(site: Any) -> frozenset[Any]:
    return frozenset(frame for frame in site["cond_indep_stack"] if frame.name != _PARTICLES)


def _groups(latents: Sequence[str], terms: Sequence[_Term]) -> list[tuple[str, ...]]:
    """Latents that terms tie together, each group in the order of the guide."""
    group = {name: {name} for name in latents}
    for term in terms:
        tied = [name for name in latents if name in term.origins]
        if len(tied) > 1:
            together = set().union(*(group[name] for name in tied))
            for name in together:
                group[name] = together
    found = {id(names): names for names in group.values()}
    return [tuple(name for name in latents if name in names) for names in found.values()]


def _block(names: Sequence[str], terms: Iterable[_Term], shape: _Shape) -> Block:
    mine = [term for term in terms if not term.origins.isdisjoint(names)]
    common = frozenset.intersection(*(term.frames for term in mine))
    scale = _scale(mine, common)
    dims = frozenset(frame.dim for frame in common if frame.vectorized)

    def total(side: str, pick: Any) -> Any:
        values = [(term, [pick(site) for site in term.sites]) for term in mine if term.side == side]
        sums = [shape.summed(parts, dims) for _, parts in values if not all(map(is_identically_zero, parts))]
        return sum(sums[1:], sums[0]) if sums else None

    log_p, log_q = total("model", _unscaled), total("guide", _unscaled)
    score = total("guide", lambda site: site["score_parts"].score_function)
    if log_p is None:
        log_p = log_q.new_zeros(log_q.shape)
    plates = tuple(sorted(frame.name for frame in common))
    sites = {term.name: term.sites for term in mine if term.side == "guide" and term.name in names}
    return Block(sites, plates, scale, log_p, log_q, 0.0 if score is None else score)


def _unscaled(site: Any) -> Any:
    return scale_and_mask(site["unscaled_log_prob"], mask=site["mask"])


def _scale(terms: Sequence[_Term], common: frozenset[Any]) -> Any:
    for term in terms:
        for frame in term.frames - common:
            if frame.full_size is not None and frame.full_size > frame.size:
                outside = next(other.name for other in terms if frame not in other.frames)
                raise ProgramError(
                    f"the importance weight of {outside!r} has the terms of {term.name!r} in it, of which plate "
                    f"{frame.name!r} draws {frame.size:,} of {frame.full_size:,} rows: a weight of some rows is none "
                    f"of all, and multiplied by {frame.full_size / frame.size:g} its bound lies far from the evidence. "
                    f"Take all rows of {frame.name!r}, or an ELBO, which is a sum over rows: Trace_ELBO, or RLOO_ELBO "
                    "for sites without a pathwise gradient"
                )
    try:
        return common_scale([term.scale for term in terms], "terms of one importance weight")
    except ValueError as error:
        raise ProgramError(f"{error}: {', '.join(dict.fromkeys(term.name for term in terms))}") from error
