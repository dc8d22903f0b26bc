"""Which importance weights a program has: one a draw, or one a draw for each element of a plate."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingle.errors import OptionError
from ingle.program import Program, Site

__all__ = ["Elements", "resolve_per"]


@dataclass(frozen=True)
class Elements:
    """Where the elements lie that have a weight of their own.

    Attributes:
        plate: the name of their plate; None where all data share one weight.
        dim: its batch dimension, negative.
        size: how many there are.
    """

    plate: str | None = None
    dim: int = 0
    size: int = 1

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the weights of one draw: () or (size,)."""
        return () if self.plate is None else (self.size,)

    def has(self, frames: Collection[Any]) -> bool:
        """Whether a term in these plates is one of the elements' own."""
        return self.plate is None or any(frame.name == self.plate for frame in frames)

    def summed(self, value: Tensor, frames: Collection[Any]) -> Tensor:
        """A log density of batch shape, in these plates, summed over all but this one, float64, of `shape`."""
        if self.plate is None:
            return value.sum(dtype=torch.float64)
        at: int = next(frame.dim for frame in frames if frame.name == self.plate)  # guide and model may differ in it
        if value.dim() < -at or value.shape[at] != self.size:
            shape = [1] * max(0, -at - value.dim()) + [*value.shape]
            shape[at] = self.size
            value = value.expand(shape)
        others = [dim for dim in range(-value.dim(), 0) if dim != at]
        return value.sum(others, dtype=torch.float64) if others else value.to(torch.float64)


def resolve_per(
    per: str | None, program: Program, left_out: Collection[str], drawn_by_guide: Collection[Site] = ()
) -> Elements:
    """The elements that `per` asks for.

    Args:
        per: the name of their plate.
        program: with all rows of every plate.
        left_out: latents that are given, and sites of the guide that do not count with them.
        drawn_by_guide: the sites of the guide, where it is drawn from.

    Raises:
        OptionError: a plate that is not there or is looped over, or latents that its elements share.
    """
    if per is None:
        return Elements()
    plates = {plate.name: plate for site in program.model_sites for plate in site.plates}
    if not isinstance(per, str) or per not in plates:
        there = ", ".join(map(repr, plates)) or "none"
        raise OptionError(f"per must name a plate of the model, got {per!r}; its plates: {there}")
    plate = plates[per]
    if plate.dim is None:
        raise OptionError(f"per={per!r}: the model loops over that plate; write `with pyro.plate({per!r}, …):`")
    shared = [
        site.name
        for site in program.latents
        if site.name not in left_out and all(plate.name != per for plate in site.plates)
    ]
    drawn = [
        site.name
        for site in drawn_by_guide
        if site.kind in ("latent", "auxiliary")
        and site.name not in left_out
        and all(plate.name != per for plate in site.plates)
    ]
    if shared:
        named = ", ".join(map(repr, shared))
        known = ", ".join(f"{name!r}: …" for name in shared)
        raise OptionError(
            f"per={per!r}: {named} {'lies' if len(shared) == 1 else 'lie'} outside of plate {per!r}, so its elements "
            "share a latent and have no evidence each of its own. Leave per out for the evidence of all data"
            + ("" if set(shared) & set(program.enumerated) else f", or fix what they share: given={{{known}}}")
        )
    if drawn:
        raise OptionError(
            f"per={per!r}: the guide draws {', '.join(map(repr, drawn))} outside of plate {per!r}, for all elements "
            "together, so their weights cannot be told apart. Use a guide that draws them inside the plate, such as "
            "'normal'"
        )
    return Elements(per, plate.dim, plate.full_size)
