"""Optimise local distributions datum by datum, and weigh what they draw."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ingle.evidence.elements import Elements
from ingle.evidence.local import Local
from ingle.evidence.memory import budget, cost_of
from ingle.evidence.proposal import Proposal
from ingle.evidence.sampler import Sampler
from ingle.evidence.stream import Stream, Summary

__all__ = ["PARTICLES", "refine", "weigh"]

PARTICLES = 8  # draws for each gradient
_RATE = 0.1  # of Adam in unconstrained space, at the first step; a half-cosine brings it to zero
_STREAM = 2  # of random numbers, other than the guide's own
_AT_REST = 0.5  # of the way that Adam's steps could go in the last quarter: one that goes further is under way


def refine(local: Local, sampler: Sampler, elements: Elements, masks: Mapping[str, Tensor], steps: int) -> float:
    """Move the free parameters of each datum up its own ELBO, the model's parameters fixed.

    Gradients are pathwise, with the score left out (sticking the landing), so that they have no noise where the family
    holds the posterior. Nothing but the free parameters moves.

    Args:
        local: the distributions.
        sampler: that runs the model.
        elements: of the plate of the data.
        masks: what hides elements of a latent, by name.
        steps: of Adam.

    Returns:
        The share of free parameters that were still under way in the last quarter of the steps: they went more than
        half as far as all steps in one direction would have.

    References:
        Roeder, Wu and Duvenaud (2017), Sticking the Landing.
    """
    leaves = local.leaves
    adam = torch.optim.Adam(leaves, lr=_RATE)
    sampler.runtime.reseed()
    before, way = [leaf.detach().clone() for leaf in leaves], 0.0
    with torch.enable_grad():
        one = local.draws()
        run = _difference(local.proposal(elements, masks), sampler)
        chunk = max(1, min(PARTICLES, budget(sampler.runtime.device) // cost_of(lambda: run(one)).most))
        for step in range(steps):
            adam.param_groups[0]["lr"] = rate = _RATE * 0.5 * (1 + math.cos(math.pi * step / steps))
            if step == steps - steps // 4:
                before, way = [leaf.detach().clone() for leaf in leaves], 0.0
            way += rate
            run = _difference(local.proposal(elements, masks), sampler)
            gradients = [torch.zeros_like(leaf) for leaf in leaves]
            for start in range(0, PARTICLES, chunk):
                count = min(chunk, PARTICLES - start)
                drawn = [local.draws() for _ in range(count)]
                values = {name: torch.stack([draw[name] for draw in drawn]) for name in one}
                with sampler.program.explained("model"):
                    elbo = sampler.each("refine", run, count, chunk=count, given=values)["difference"].sum() / PARTICLES
                found = torch.autograd.grad(-elbo, leaves, allow_unused=True)
                for place, gradient in enumerate(found):
                    if gradient is not None:
                        gradients[place] += gradient
            for leaf, gradient in zip(leaves, gradients, strict=True):
                leaf.grad = gradient.nan_to_num(0.0, 0.0, 0.0)  # a datum whose draws left the model's support waits
            adam.step()
    moved = [(leaf.detach() - start).abs() > _AT_REST * way for leaf, start in zip(leaves, before, strict=True)]
    return float(torch.cat([part.reshape(-1) for part in moved]).double().mean())


def weigh(proposal: Proposal, sampler: Sampler, elements: Elements, num_samples: int) -> Summary:
    """Sums over fresh draws of a proposal."""
    stream = Stream(elements.shape, num_samples, sampler.runtime.device)
    with torch.no_grad():
        for values, log_q in sampler.blocks(proposal, num_samples, stream=_STREAM):
            stream.add(sampler.log_p(values, len(log_q)) - log_q)
    return stream.summary()


def _difference(proposal: Proposal, sampler: Sampler) -> Any:
    """From one draw to its log weights."""

    def run(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {"difference": sampler.joint(values)["log_p"] - proposal.density(values)}

    return run
