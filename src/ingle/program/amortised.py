"""Whether a guide can serve rows that it has not seen."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.guide import GuideMessenger
from torch import Tensor

from ingle.program.modules import buffers_kept
from ingle.program.program import Program
from ingle.program.sites import Plate

__all__ = ["amortised"]


def amortised(program: Program, latents: Sequence[str], plates: Collection[str]) -> bool:
    """Whether none of the guide's parameters has a row for each of a plate's, at the named latents.

    A parameter of the plate's length may be a row for each datum or chance, such as the width of a network. It is a
    row for each where the first datum's latents move with its first row alone and the last one's with its last.
    An automatic guide holds a value for each latent, so it never is amortised.

    Args:
        program: the fitted one, inside a scope of its runtime.
        latents: names of sites inside the plates.
        plates: names of the plates.
    """
    if isinstance(poutine.unwrap(program.guide), GuideMessenger):
        return False
    automatic = (part for module in program.modules() for part in module.modules() if isinstance(part, AutoGuide))
    if any(set(getattr(part.prototype_trace, "nodes", ())) & set(latents) for part in automatic):
        return False
    inside = {
        (site.name, plate)
        for site in program.model_sites
        if site.name in latents
        for plate in site.plates
        if plate.name in plates and plate.dim is not None
    }
    leaves = list(program.sides()[1].values())
    with torch.enable_grad(), buffers_kept(program.modules()), program.explained("guide"):
        trace: Any = program.trace_guide()
        return not any(
            _row_for_each(_rows(trace.nodes[name], plate), leaf, plate.full_size)
            for name, plate in inside
            if name in trace.nodes
            for leaf in leaves
            if plate.full_size in leaf.shape
        )


def _rows(node: Any, plate: Plate) -> Tensor:
    """For each row of a plate a number that moves with all that the guide's site has for it, shape (N,)."""
    value, log_prob = node["value"], node["fn"].log_prob(node["value"].detach())
    dim = plate.dim or 0
    total = torch.zeros(plate.full_size, dtype=torch.get_default_dtype())
    for part, place in ((log_prob, dim), (value, dim - node["fn"].event_dim)):
        if part.dim() >= -place and part.shape[place] == plate.full_size and part.requires_grad:
            total = total + part.movedim(place, 0).reshape(plate.full_size, -1).sum(-1)
    return total


def _row_for_each(rows: Tensor, leaf: Tensor, size: int) -> bool:
    if not rows.requires_grad:
        return True  # how the site comes by its rows cannot be told
    moved = [torch.autograd.grad(rows[place], leaf, retain_graph=True, allow_unused=True)[0] for place in (0, size - 1)]
    if any(gradient is None for gradient in moved):
        return False
    return any(
        all(
            gradient.movedim(dim, 0).reshape(size, -1).ne(0).any(-1).nonzero().reshape(-1).tolist() == [place]
            for gradient, place in zip(moved, (0, size - 1), strict=True)
        )
        for dim, length in enumerate(leaf.shape)
        if length == size
    )
