"""A function of tensors recorded once and compiled, for what is called many times on inputs of one layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ingle.engine import internals
from ingle.engine.decompositions import DECOMPOSITIONS
from ingle.engine.recording import Untraceable, lift_constants
from ingle.engine.simplify import simplify

__all__ = ["CompiledFunction"]


class CompiledFunction:
    """`run`, without gradients, as one graph compiled by Inductor.

    What it reads beside its inputs is taken to stay as it is: parameters, data, modules at rest.

    Args:
        run: from tensors to one tensor. It draws no random numbers, and Python reads no number of its inputs, as under
            `torch.vmap` it cannot.
        inputs: of the shapes that it will be called with.

    Raises:
        Untraceable: it cannot become a graph, in words.
    """

    def __init__(self, run: Callable[..., Tensor], inputs: Sequence[Tensor]) -> None:
        if internals.compiler() is None and inputs[0].device.type == "cpu":
            raise Untraceable(internals.NO_COMPILER)
        with torch.no_grad():
            try:
                self._result = torch.empty_like(run(*inputs))
                self._compile(run, [*inputs, self._result])
            except Untraceable:
                raise
            except Exception as error:  # the program is the user's, and what it calls may object in any way
                raise Untraceable(f"{type(error).__name__}: {error}".split("\n")[0]) from error

    def _compile(self, run: Callable[..., Tensor], given: list[Tensor]) -> None:
        def write(*tensors: Tensor) -> tuple[()]:
            tensors[-1].copy_(run(*tensors[:-1]))
            return ()

        graph = internals.record(write, given)
        for node in graph.graph.nodes:
            if torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ()):
                raise Untraceable(f"it draws random numbers by {node.target}")
        self._constants = lift_constants(graph, len(given))
        tensors = [*given, *self._constants]
        functional = internals.functional(graph, tensors, decompose=DECOMPOSITIONS)
        self._kept = simplify(functional, tensors, [False] * len(given) + [True] * len(self._constants))
        bound = [tensors[kept] if isinstance(kept, int) else kept for kept in self._kept]
        self._function = internals.inductor(functional, bound)

    def __call__(self, *inputs: Tensor) -> Tensor:
        """The result for inputs of the same shapes, strides and dtypes, in a tensor of its own."""
        tensors = [*inputs, self._result, *self._constants]
        with torch.no_grad():
            self._function([tensors[kept] if isinstance(kept, int) else kept for kept in self._kept])
        return self._result.clone()
