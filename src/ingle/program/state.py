"""The numbers that a program holds: captured, put back, and moved to a file and back."""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from pyro.ops.provenance import detach_provenance
from torch import Tensor

from ingle.program.program import Program

__all__ = ["Values"]


class Values:
    """Parameters of a program, buffers of its modules, what its objective remembers, and what else is in Pyro's store.

    Works where the fit's parameter store is Pyro's. A state that a program keeps in Python of its own is not here.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self._modules = program.modules()
        trained = {id(leaf) for leaf in program.leaves().values()}
        self._fixed = {
            f"{place}.{name}": parameter
            for place, module in enumerate(self._modules)
            for name, parameter in module.named_parameters()
            if id(parameter) not in trained
        }

    def capture(self) -> dict[str, Any]:
        """Copies of all that a step may change: "leaves", "buffers", "memory", and "others" of the store."""
        return {
            "leaves": {name: leaf.detach().clone() for name, leaf in self._program.leaves().items()},
            "buffers": {name: buffer.clone() for name, buffer in self._buffers().items()},
            "memory": self._program.memory.capture(),
            "others": {name: value.detach().clone() for name, value in self._others().items()},
        }

    @torch.no_grad()
    def restore(self, state: dict[str, Any]) -> None:
        """Go back to a captured state; a parameter that came after it is forgotten."""
        program, store = self._program, pyro.get_param_store()
        for leaf in program.leaves().values():
            leaf.grad = None
        if set(program.leaves()) != set(state["leaves"]):
            program.keep_leaves(state["leaves"])
        for name, leaf in program.leaves().items():
            leaf.copy_(state["leaves"][name])
        for name, buffer in self._buffers().items():
            if name in state["buffers"]:
                buffer.copy_(state["buffers"][name])
        program.memory.restore(state["memory"])
        for name in self._others():
            del store[name]
        for name, value in state["others"].items():
            store.setdefault(name, value.to(torch.get_default_device(), copy=True))

    def to_file(self, state: dict[str, Any]) -> dict[str, Any]:
        """A captured state together with the parameters of modules that nothing trains."""
        return {**state, "fixed": self._fixed}

    @torch.no_grad()
    def from_file(self, state: dict[str, Any]) -> None:
        """Put back what `to_file` gave; `difference` has found nothing."""
        self.restore(state)
        for name, parameter in self._fixed.items():
            parameter.copy_(state["fixed"][name])

    def overwritten(self, state: dict[str, Any]) -> dict[str, Tensor]:
        """The leaves that `from_file` would change, by name."""
        return {
            name: leaf
            for name, leaf in self._program.leaves().items()
            if not torch.equal(leaf.detach().cpu(), state["leaves"][name].cpu())
        }

    def shapes(self) -> dict[str, dict[str, tuple[int, ...]]]:
        """Shapes of the buffers, and of the parameters of modules that nothing trains."""
        return {
            "buffers": {name: tuple(buffer.shape) for name, buffer in self._buffers().items()},
            "fixed": {name: tuple(parameter.shape) for name, parameter in self._fixed.items()},
        }

    def _buffers(self) -> dict[str, Tensor]:
        """Read anew at each call, since a module may put another tensor in the place of a buffer."""
        modules = enumerate(self._modules)
        return {f"{place}.{name}": buffer for place, module in modules for name, buffer in module.named_buffers()}

    def _others(self) -> dict[str, Tensor]:
        """What is in the store beside the leaves, such as a baseline that the objective keeps; real numbers only."""
        ours = {id(leaf) for leaf in self._program.leaves().values()}
        held: Any = pyro.get_param_store().get_state()
        return {
            name: detach_provenance(value)
            for name, value in held["params"].items()
            if id(value) not in ours and held["constraints"][name] is constraints.real
        }
