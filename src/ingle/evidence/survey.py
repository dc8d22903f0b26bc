"""What one run of a model shows that its evidence has to know."""

from __future__ import annotations

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ingle.evidence.joint import mask_of, samples, uncounted
from ingle.evidence.proposal import IMPROPER
from ingle.evidence.sampler import Sampler
from ingle.program import Given, is_data, typical_value

__all__ = ["Survey"]


class Survey:
    """One run of a model with its latents at typical values.

    Attributes:
        masks: what hides elements of a latent, in the batch shape, by name.
        data: of each observed site how many numbers it has, their mean and their sd.
        notes: what else a reader of the evidence should know, in words.
    """

    def __init__(self, sampler: Sampler) -> None:
        program = sampler.program
        with program.explained("model"), InitMessenger(typical_value), Given(sampler.joint.given):
            nodes = samples(program.trace_model({}))
        self.masks: dict[str, Tensor] = {}
        self.data: dict[str, tuple[int, float, float]] = {}
        self.notes: list[str] = []
        for node in nodes:
            mask = mask_of(node)
            if mask is not None and not node["is_observed"]:
                self.masks[node["name"]] = mask
            if is_data(node):
                self.data[node["name"]] = _told(node["value"], mask)
        improper = [site.name for site in program.latents if site.distribution in IMPROPER]
        if improper:
            self.notes.append(
                f"the prior of {', '.join(improper)} is improper, so log Z is known up to a constant only and says "
                "nothing beside another model's"
            )
        scaled = uncounted(nodes)
        if scaled:
            self.notes.append(f"poutine.scale around {', '.join(scaled)} is left out, since a density has none")


def _told(value: Tensor, mask: Tensor | None) -> tuple[int, float, float]:
    """How many numbers a site observes, their mean and their mean square."""
    numbers = value.detach().double()
    if mask is not None and mask.dtype == torch.bool:
        shown = mask.reshape(mask.shape + (1,) * (numbers.dim() - mask.dim())) if mask.dim() <= numbers.dim() else mask
        numbers = numbers[shown.expand(numbers.shape)] if shown.dim() == numbers.dim() else numbers
    if numbers.numel() == 0:
        return 0, 0.0, 0.0
    return numbers.numel(), float(numbers.mean()), float(numbers.square().mean())
