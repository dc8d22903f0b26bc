"""Weights on the divergence of the guide from the prior: annealing, beta-VAE, free bits."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from ingle.errors import OptionError, ProgramError
from ingle.program import Memory, sample_nodes

__all__ = ["KL", "Anneal"]

_STEPS = "KL annealing: steps"


@dataclass(frozen=True)
class Anneal:
    """A factor that goes along a straight line from `start` to `end` in a number of steps, and then stays.

    A step is one call that differentiates; evaluating the loss is none.

    Args:
        steps: until `end` is reached, positive.
        start, end: finite, 0 or more.

    Raises:
        OptionError: for other numbers.

    References:
        Bowman, Vilnis, Vinyals, Dai, Jozefowicz and Bengio (2016), Generating Sentences from a Continuous Space.
    """

    steps: int
    start: float = 0.0
    end: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.steps, bool) or not isinstance(self.steps, int) or self.steps < 1:
            raise OptionError(f"Anneal: steps must be a positive integer, got {self.steps!r}")
        for name, value in (("start", self.start), ("end", self.end)):
            _not_negative(f"Anneal: {name}", value)

    def at(self, step: Tensor) -> Tensor:
        """The factor after some steps, a scalar of the default dtype."""
        share = (step / self.steps).clamp(max=1.0)
        return (self.start + (self.end - self.start) * share).to(torch.get_default_dtype())


Scale = float | Anneal | Mapping[str, float | Anneal]


@dataclass(frozen=True)
class KL:
    """What is done to log q(z_j) - log p(z_j) of each latent z_j of an ELBO.

    Attributes:
        scale: factors, a site's own before those of its plates.
        free_bits: in nats, for each latent and element of its plates: the least that it counts.

    References:
        Higgins, Matthey, Pal, Burgess, Glorot, Botvinick, Mohamed and Lerchner (2017), beta-VAE.
        Kingma, Salimans, Jozefowicz, Chen, Sutskever and Welling (2016), Improved Variational Inference with Inverse
        Autoregressive Flow, section 2.4 (free bits).
    """

    scale: Scale = 1.0
    free_bits: float | Mapping[str, float] = 0.0

    def __post_init__(self) -> None:
        for name, value in _entries("kl_scale", self.scale):
            if not isinstance(value, Anneal):
                _not_negative(name, value)
        for name, value in _entries("free_bits", self.free_bits):
            _not_negative(name, value)

    @property
    def plain(self) -> bool:
        """Whether it changes nothing."""
        return self.scale == 1.0 and self.free_bits == 0.0

    def weigh(self, model_trace: Any, guide_trace: Any, memory: Memory) -> Any:
        """Put the factors on the terms of two traces, in place.

        Returns:
            What the terms of the traces lack of the loss, in nats, without a gradient: the part that free bits fill.
        """
        missing: Any = 0.0
        for name, terms in self.latents(model_trace, guide_trace).items():
            factor, least = self.factor(name, terms, memory), self.least(name, terms)
            if least:
                count, scale = elements(terms[0]), _scalar_scale(name, terms[0])
                short = _divergence(terms, guide_trace).detach() < least * count
                missing = missing + torch.where(short, least * count * scale * factor, 0.0)
                factor = torch.where(short, 0.0, factor)
            for site in terms:
                _scale(site, factor)
        return missing

    def clamped(self, name: str, terms: list[Any], divergence: Any, memory: Memory) -> Any:
        """The divergence of one latent that was found by formula, a scalar with its scale, as it counts."""
        least = self.least(name, terms)
        if least:
            bits = least * elements(terms[0]) * _scalar_scale(name, terms[0])
            divergence = torch.as_tensor(divergence).clamp(min=bits)
        return self.factor(name, terms, memory) * divergence

    def factor(self, name: str, terms: list[Any], memory: Memory) -> Any:
        """What multiplies the divergence of one latent, a number or a scalar."""
        if not isinstance(self.scale, Mapping):
            return self._now(self.scale, memory)
        if name in self.scale:
            return self._now(self.scale[name], memory)
        factors = [self._now(self.scale[plate], memory) for plate in _plates(terms) if plate in self.scale]
        return math.prod(factors)

    def least(self, name: str, terms: list[Any]) -> float:
        """The nats that each element of one latent counts at least."""
        if not isinstance(self.free_bits, Mapping):
            return self.free_bits
        if name in self.free_bits:
            return self.free_bits[name]
        return max((self.free_bits[plate] for plate in _plates(terms) if plate in self.free_bits), default=0.0)

    def advance(self, memory: Memory) -> None:
        """A step was taken."""
        if any(isinstance(value, Anneal) for _, value in _entries("", self.scale)):
            with torch.no_grad():
                _steps(memory).add_(1.0)

    def check(self, model_trace: Any, guide_trace: Any) -> None:
        """Raises `ProgramError` where a name is none of the latents' nor of their plates'."""
        if not (isinstance(self.scale, Mapping) or isinstance(self.free_bits, Mapping)):
            return
        latents = self.latents(model_trace, guide_trace)
        known = [*latents, *dict.fromkeys(plate for terms in latents.values() for plate in _plates(terms))]
        for option, given in (("kl_scale", self.scale), ("free_bits", self.free_bits)):
            unknown = [name for name in given if name not in known] if isinstance(given, Mapping) else []
            if unknown:
                raise ProgramError(
                    f"{option} names {', '.join(map(repr, unknown))}, and the latents of the model and their plates "
                    f"are {', '.join(map(repr, known)) or 'none'}"
                )

    def _now(self, factor: float | Anneal, memory: Memory) -> Any:
        return factor.at(_steps(memory)) if isinstance(factor, Anneal) else factor

    def latents(self, model_trace: Any, guide_trace: Any) -> dict[str, list[Any]]:
        """The terms of each latent in both traces, the model's first; all in one where they cannot be told apart."""
        found = {
            site["name"]: [site, guide_trace.nodes[site["name"]]]
            for site in sample_nodes(model_trace)
            if not site["is_observed"] and site["name"] in guide_trace.nodes
        }
        for site in sample_nodes(guide_trace):
            if site["is_observed"] or site["name"] in found:
                continue
            latent = site["name"].removesuffix("_unconstrained")  # where an autoguide draws it
            if latent in found:
                found[latent].append(site)
            elif isinstance(self.scale, Mapping) or self.free_bits != 0.0:
                raise ProgramError(
                    f"kl_scale by name and free_bits want the divergence of each latent apart, and guide site "
                    f"{site['name']!r} is none of the model's latents; use one number for kl_scale, or a guide that "
                    "samples each latent by itself, such as 'normal'"
                )
            else:
                found[site["name"]] = [site]
        return found


def elements(site: Any) -> Any:
    """How many elements of its plates a site has, those behind a mask not counted."""
    mask, log_prob = site["mask"], site["log_prob"]
    if isinstance(mask, Tensor):
        return mask.expand(log_prob.shape).sum().clamp(min=1)
    return max(1, log_prob.numel())


def _divergence(terms: list[Any], guide_trace: Any) -> Any:
    """What one draw says of log q - log p for a latent, masked, without its scale, summed."""
    total: Any = 0.0
    for site in terms:
        value = scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]).sum()
        total = total + value if guide_trace.nodes.get(site["name"]) is site else total - value
    return total


def _scale(site: Any, factor: Any) -> None:
    if isinstance(factor, (int, float)) and factor == 1.0:
        return
    site["log_prob"] = site["log_prob"] * factor
    site["log_prob_sum"] = site["log_prob_sum"] * factor
    if "score_parts" in site:
        parts = site["score_parts"]
        pathwise = parts.entropy_term is parts.log_prob
        entropy = site["log_prob"] if pathwise else parts.entropy_term * factor
        site["score_parts"] = ScoreParts(site["log_prob"], parts.score_function, entropy)


def _scalar_scale(name: str, site: Any) -> Any:
    scale = site["scale"]
    if isinstance(scale, Tensor) and scale.dim():
        raise ProgramError(f"free_bits want one poutine.scale for all of latent {name!r}, and it has one for each row")
    return scale


def _plates(terms: list[Any]) -> list[str]:
    return list(dict.fromkeys(frame.name for site in terms for frame in site["cond_indep_stack"]))


def _steps(memory: Memory) -> Tensor:
    return memory.recall(_STEPS, lambda: torch.zeros((), dtype=torch.float64))


def _entries(name: str, given: Any) -> list[tuple[str, Any]]:
    if isinstance(given, Mapping):
        return [(f"{name}[{key!r}]", value) for key, value in given.items()]
    return [(name, given)]


def _not_negative(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value) or value < 0:
        raise OptionError(f"{name} must be a finite number, 0 or more, got {value!r}")
