"""What an objective remembers from step to step: tensors, so that engines and checkpoints keep them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

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

    def capture(self) -> dict[str, Tensor]:
        """Copies, by name."""
        return {name: tensor.clone() for name, tensor in self.named_buffers()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Remember what was captured, in the tensors that are there, and nothing else."""
        for name in [name for name in self._buffers if name not in state]:
            del self._buffers[name]
        for name, value in state.items():
            self.recall(name, lambda value=value: value.to(torch.get_default_device(), copy=True)).copy_(value)  # type: ignore[misc]
