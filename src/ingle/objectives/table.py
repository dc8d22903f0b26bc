"""How large a table the sum over discrete latents takes, noticed while it grows."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ingle.errors import ProgramError

__all__ = ["TableWatch"]

_COMBINATIONS = 2**22  # of values of latents, in one tensor
_SHARE = 1 / 16  # of the memory of the device, for one tensor with more than a few combinations
_FEW = 2**6


class TableWatch(Messenger):
    """Stops a run whose enumeration puts too many combinations of values into one tensor.

    Enumerated latents take dimensions left of all plates. Each operation at most multiplies a tensor by another, so
    what is too large is met while it is still small enough to be made.

    Args:
        max_plate_nesting: how many batch dimensions the plates take.

    Raises:
        ProgramError: with the sites and the size.
    """

    def __init__(self, max_plate_nesting: int) -> None:
        super().__init__()
        self._nesting = max_plate_nesting
        self._latents: dict[int, tuple[str, int]] = {}  # by dimension
        self._sizes = _Sizes(self)

    def __enter__(self) -> Any:
        self._sizes.__enter__()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> Any:
        self._sizes.__exit__(*reason)
        return super().__exit__(*reason)

    def _pyro_post_sample(self, msg: Any) -> None:
        dim = msg["infer"].get("_enumerate_dim")
        if dim is not None and isinstance(msg["value"], Tensor):
            event = len(getattr(msg["fn"], "event_shape", ()))
            size = msg["value"].shape[dim - event] if msg["value"].dim() >= event - dim else 1
            self._latents[dim] = (msg["name"], int(size))

    def look(self, tensor: Tensor) -> None:
        """Raises `ProgramError` where a tensor has too many combinations."""
        if tensor.numel() < _COMBINATIONS or not self._latents:
            return
        # Its last dimensions are plates and events; how many of these it has is not known, so its first ones count.
        left = [size for size in tensor.shape[: max(0, tensor.dim() - self._nesting)] if size > 1]
        combinations = math.prod(left) if len(left) > 1 else 1
        known = math.prod(size for _, size in self._latents.values())
        combinations = min(combinations, known)
        large = combinations >= _FEW and tensor.nbytes > _SHARE * _memory(tensor.device)
        if combinations >= _COMBINATIONS or large:
            names = [name for name, _ in self._latents.values()]
            sizes = " x ".join(str(size) for _, size in self._latents.values())
            told = sizes if len(names) <= 6 else f"{len(names)} latents"
            raise ProgramError(
                f"summing out {', '.join(names[:6])}{', …' if len(names) > 6 else ''} takes a table of at least "
                f"{known:,} combinations ({told}), of which a tensor of shape {tuple(tensor.shape)} was met: sample "
                "them in the guide, for RLOO_ELBO, or put latents that do not depend on each other in a plate"
            )


def _memory(device: torch.device) -> float:
    """Bytes that a device has in all."""
    if device.type == "cuda":
        return float(torch.cuda.get_device_properties(device).total_memory)
    try:
        return float(os.sysconf("SC_PAGE_SIZE")) * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):  # not every system tells
        return math.inf


class _Sizes(TorchDispatchMode):
    def __init__(self, watch: TableWatch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._watch = watch

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self._watch.look(result)
        return result
