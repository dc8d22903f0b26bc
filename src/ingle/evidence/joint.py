"""The log joint of a model at draws of its latents, element by element."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from pyro.distributions.util import is_identically_zero, scale_and_mask
from torch import Tensor
from torch.distributions import constraints

from ingle.evidence.elements import Elements
from ingle.program import Program, layers, plain_constraint, sample_nodes

__all__ = ["Joint", "log_prob", "mask_of", "supported", "uncounted"]

_BOUNDED = (
    constraints._GreaterThan,
    constraints._GreaterThanEq,
    constraints._HalfOpenInterval,
    constraints._IntegerGreaterThan,
    constraints._IntegerInterval,
    constraints._IntegerLessThan,
    constraints._Interval,
    constraints._LessThan,
)


class Joint:
    """log p(x, z) of one draw, minus infinity where a latent lies outside of its support.

    A `poutine.scale` around data is a power of their likelihood and stays; one around latents serves a fit, and is left
    out. Latents that the program sums out are summed out. What a mask hides is not counted.

    Args:
        program: with all rows of every plate.
        elements: each with a joint of its own.
        given: latents held at a value, whose own density is not counted.
    """

    def __init__(self, program: Program, elements: Elements, given: Mapping[str, Tensor]) -> None:
        self.program = program
        self.elements = elements
        self.given = given

    def __call__(self, values: Mapping[str, Tensor]) -> dict[str, Any]:
        """Of one draw of the other latents.

        Returns:
            `log_p`, float64, of the shape of the elements; `prior`, the part of it that is of the latents that are
            drawn; and `rest`, the terms that are no element's own, scalar.
        """
        values = {**values, **self.given}
        log_p = torch.zeros(self.elements.shape, dtype=torch.float64)
        prior = torch.zeros(self.elements.shape, dtype=torch.float64)
        rest = torch.zeros((), dtype=torch.float64)
        if self.program.enumerated:
            whole = self.program.summed(values)
            nodes = whole.others
            for frames, term in whole.terms():
                if self.elements.has(frames):
                    log_p = log_p + self.elements.summed(term, frames)
                else:
                    rest = rest + term.sum(dtype=torch.float64)
        else:
            nodes = sample_nodes(self.program.trace_model(values))
        for node in nodes:
            if node["name"] in self.given:
                continue
            term = _weighed(node)
            if is_identically_zero(term):
                continue
            frames = node["cond_indep_stack"]
            if not self.elements.has(frames):
                rest = rest + term.sum(dtype=torch.float64)
            elif node["is_observed"]:
                log_p = log_p + self.elements.summed(term, frames)
            else:
                prior = prior + self.elements.summed(term, frames)
        # Where the prior has no density, whatever else the model says there, NaN often, counts for nothing.
        log_p = (log_p + prior).masked_fill(prior == -torch.inf, -torch.inf)
        return {"log_p": log_p, "prior": prior, "rest": rest}


def log_prob(node: Any, mask: Any = None) -> Any:
    """The log density of a site, batch shape, without its scale; 0 where a mask hides it."""
    value = node.get("unscaled_log_prob")
    if value is None:
        value = node["fn"].log_prob(node["value"], *node["args"], **node["kwargs"])
    return scale_and_mask(scale_and_mask(value, mask=node["mask"]), mask=mask)


def mask_of(node: Any) -> Any:
    """What hides elements of a site, in its batch shape; None where nothing does."""
    masks = [node["mask"], *(getattr(layer, "_mask", None) for layer in layers(node["fn"]))]
    found: Any = None
    for mask in masks:
        if mask is not None and mask is not True:
            found = torch.as_tensor(mask) if found is None else found & mask
    return found


def supported(node: Any, value: Any) -> Any:
    """The log density of a site, -inf where a value lies outside of bounds that its distribution does not look at."""
    support = getattr(node["fn"], "support", None)
    if not isinstance(plain_constraint(support), _BOUNDED):
        return value
    inside = support.check(node["value"])  # type: ignore[union-attr]
    mask = mask_of(node)
    if mask is not None:
        inside = inside | ~mask
    return torch.where(inside, value, -torch.inf)


def uncounted(nodes: Collection[Any]) -> dict[str, Any]:
    """The scales of sites whose scale is left out, by name."""
    return {
        node["name"]: scale
        for node in nodes
        if not node["is_observed"]
        for scale in [_user_scale(node)]
        if not (isinstance(scale, (int, float)) and scale == 1)
    }


def _weighed(node: Any) -> Any:
    if node["is_observed"]:
        value, scale = log_prob(node), _user_scale(node)
        return value if isinstance(scale, (int, float)) and scale == 1 else value * scale
    return supported(node, log_prob(node))


def _user_scale(node: Any) -> Any:
    """The scale of a site without N/B."""
    scale = node["scale"]
    for frame in node["cond_indep_stack"]:
        if frame.full_size is not None and frame.full_size != frame.size:
            scale = scale * frame.size / frame.full_size
    return scale
