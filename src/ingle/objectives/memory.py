"""What an objective remembers from step to step: tensors, so that engines and checkpoints keep them."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Memory"]


class Memory(torch.nn.Module):
    """Named tensors as buffers, which engines take for inputs and checkpoints write down, as those of any module."""

    def recall(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The tensor of a name, to be changed in place; `make` gives the first one."""
        key = name.replace(".", "/")  # torch wants no dots in the names of buffers
        if key not in self._buffers:
            self.register_buffer(key, make())
        return self.get_buffer(key)
