"""The modules that some fit of this process has trained."""

from __future__ import annotations

import weakref
from collections.abc import Mapping

import torch
from torch import Tensor

from ingle.errors import TrainedModuleWarning, warn

__all__ = ["note_trained", "warn_of_trained"]

# Module parameters by identity, with what keeps the identity honest: a weak reference to the parameter.
_trained: dict[int, weakref.ref[Tensor]] = {}


def warn_of_trained(leaves: Mapping[str, Tensor], what: str) -> None:
    """Warn where module parameters among `leaves` were trained by another fit and `what` is about to happen."""
    again = [name for name, leaf in leaves.items() if id(leaf) in _trained and _trained[id(leaf)]() is leaf]
    if again:
        warn(
            f"{len(again)} module parameters, {again[0]!r} first, were trained by another fit in this process and are "
            f"{what}; that fit's results change with them. Build the module anew for a fresh start",
            TrainedModuleWarning,
        )


def note_trained(leaves: Mapping[str, Tensor]) -> None:
    """Remember the module parameters among `leaves`."""
    for leaf in leaves.values():
        if isinstance(leaf, torch.nn.Parameter):
            key = id(leaf)
            _trained[key] = weakref.ref(leaf, lambda _, key=key: _trained.pop(key, None))  # type: ignore[misc]
