"""How many draws go through a program together."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["Cost", "budget", "cost_of"]

_ON_HOST = 2**26  # bytes; beyond the processor's caches nothing is gained
_OF_FREE = 0.5  # of the memory that a device has left


def budget(device: torch.device) -> int:
    """How many bytes a chunk of draws may take on a device."""
    if device.type != "cuda":
        return _ON_HOST
    return int(torch.cuda.mem_get_info(device)[0] * _OF_FREE)


@dataclass(frozen=True)
class Cost:
    """Of one run, in bytes of tensors.

    Attributes:
        most: that are held at a time.
        written: in all.
    """

    most: int
    written: int


def cost_of(run: Callable[[], Any]) -> Cost:
    """What a run makes."""
    with _Live() as live:
        result = run()
    del result
    return Cost(max(1, live.most), live.written)


class _Live(TorchDispatchMode):
    """Counts the storage of new tensors for as long as one of them is there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.most = self.written = 0
        self._held: dict[int, int] = {}

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, Tensor) and tensor.device.type != "meta":
                self._note(tensor)
        return result

    def _note(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in self._held:
            self.written += size
            self.now += size
            self.most = max(self.most, self.now)
        self._held[key] = self._held.get(key, 0) + 1
        weakref.finalize(tensor, self._let_go, key, size)

    def _let_go(self, key: int, size: int) -> None:
        self._held[key] -= 1
        if not self._held[key]:
            del self._held[key]
            self.now -= size
