"""One recorded step of `ingle.SVI`: whether it is still the program's, and how it is run with the least of Python."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
import torch
from pyro.util import warn_if_nan
from torch import Tensor

from ingle.engine.arguments import Arguments, layout
from ingle.engine.graph import StepGraph
from ingle.engine.observer import Observation
from ingle.engine.pyro_updates import PyroGradients, PyroUpdates
from ingle.program import Place, Snapshot

__all__ = ["Stepped"]


class Stepped:
    """A graph, what feeds it, and what it was made from.

    Args:
        graph: of one step.
        updates: how the step ends.
        seen: the draws of a step, in order.
        snapshot: what the program read from outside its arguments, without what is an input.
        key: of the arguments.
        arguments: that it was recorded with.
        numbers, places: inputs in the place of numbers, by argument, by place.
        tensors: places whose tensors are inputs.
        watched: tensors that are inputs and may change in place.
        parameters: those of the program, by name.
    """

    def __init__(
        self,
        graph: StepGraph,
        updates: PyroUpdates | PyroGradients,
        seen: Observation,
        snapshot: Snapshot,
        key: Any,
        arguments: Arguments,
        numbers: Mapping[int, Tensor],
        places: Mapping[Place, Tensor],
        tensors: Sequence[Place],
        watched: Sequence[Tensor],
        parameters: Mapping[str, Tensor],
    ) -> None:
        self.graph, self.updates, self.key = graph, updates, key
        self._snapshot = snapshot
        self._numbers, self._places = list(numbers.items()), list(places.items())
        self._lifted = frozenset(numbers)
        self._opaque = arguments.others()  # kept, so that nothing else takes their ids
        self._outside = [(place, layout(place.value())) for place in tensors]
        self._watched = list(watched)
        known = {id(tensor) for tensor in watched}
        held = [tensor for tensor, _ in graph.recording.held if id(tensor) not in known]
        self._held, self._held_state = held, [_memory(tensor) for tensor in held]
        self._store: Any = pyro.get_param_store()
        stored = {name: leaf for name, leaf in parameters.items() if self._store._params.get(name) is leaf}
        self._names, self._stored = list(stored), list(stored.values())
        self._leaves = list(updates.leaves)
        self._changed = [*self._leaves, *graph.buffers]
        self._take_gradients()
        self._pinned: list[tuple[Tensor, Any]] | None = None
        if graph.recording.pinned:
            read = [arguments.leaves[place] for place in arguments.tensors]
            read += [*self._watched, *(place.value() for place in tensors)]
            self._pinned = [(tensor, _memory(tensor)) for tensor in read]
        self._streams = _streams(graph, seen)
        self._draws: list[list[Any]] = [[] for _ in range(len(graph.losses))]
        self._losses = graph.losses.numpy() if graph.losses.device.type == "cpu" else graph.losses
        self._place: Any = graph.place.numpy() if graph.place.device.type == "cpu" else graph.place
        self._row = self._planned = 0
        self._fed: list[Tensor] = []

    def fresh(self, arguments: Arguments) -> str | None:
        """None where all that the graph takes for given is as it was; else what is not, in words."""
        if arguments.key(self._lifted) != self.key:
            return "the arguments are others"
        if not all(map(operator.is_, map(self._store._params.get, self._names), self._stored)):
            return "a parameter has been put in the place of another"
        if self._held and list(map(_memory, self._held)) != self._held_state:
            return self._moved()
        changes = self._snapshot.changes()
        if changes:
            return str(changes[0])
        if any(layout(place.value()) != was for place, was in self._outside if isinstance(place.value(), Tensor)):
            return "a tensor that it reads has another layout"
        if not self.updates.hold():
            return "the optimiser has changed"
        if self._pinned is not None:
            read = [arguments.leaves[place] for place in arguments.tensors]
            read += [*self._watched, *(place.value() for place, _ in self._outside)]
            if any(a is not b or _memory(a) != was for a, (b, was) in zip(read, self._pinned, strict=True)):
                return "it reads numbers of its data in Python, and the data changed"
        return None

    def gradients_clean(self) -> bool:
        """No gradient waits in the parameters, to which Pyro would add this step's."""
        if all(map(operator.is_, map(_grad, self._leaves), self._grads)) and self._grad_versions == [
            grad._version for grad in self._some
        ]:
            return True
        if any(leaf.grad is not None and bool(leaf.grad.any()) for leaf in self._leaves):
            return False
        for leaf, had in zip(self._leaves, self._grads, strict=True):
            if leaf.grad is None and had is not None:
                leaf.grad = torch.zeros_like(leaf)  # as Pyro leaves it after a step
        self._take_gradients()
        return True

    def _take_gradients(self) -> None:
        self._grads = [leaf.grad for leaf in self._leaves]
        self._some = [grad for grad in self._grads if grad is not None]
        self._grad_versions = [grad._version for grad in self._some]

    def moved(self) -> list[Tensor]:
        """The tensors that it holds as constants and that were changed in place."""
        pairs = zip(self._held, self._held_state, strict=True)
        return [tensor for tensor, was in pairs if _memory(tensor) != was]

    def _moved(self) -> str:
        moved = {id(tensor) for tensor in self.moved()}
        told = [told for tensor, told in self.graph.recording.held if id(tensor) in moved]
        return f"{told[0]} was changed in place"

    def run(self, arguments: Arguments) -> float:
        """Take one step; its loss."""
        graph, row = self.graph, self._row
        for place, tensor in self._numbers:
            tensor.fill_(arguments.leaves[place])
        for held, tensor in self._places:
            tensor.fill_(held.value())
        leaves = arguments.leaves
        fed = [leaves[place] for place in arguments.tensors]
        if self._outside:
            fed += [place.value() for place, _ in self._outside]
        if len(fed) != len(self._fed) or not all(map(operator.is_, fed, self._fed)):
            graph.exchange([*fed, *self._watched])
            self._fed = fed
        updates = self.updates
        if row >= self._planned or updates.restarted:
            numbers = updates.rows(len(graph.losses))
            self._planned = len(numbers)
            graph.numbers[: self._planned].copy_(numbers)
            row = 0
        draws = self._draws[row]
        if not draws:
            draws = self._draws[row] = [
                matrix[row, start : start + count].normal_ if normal else matrix[row, start : start + count].uniform_
                for matrix, start, count, normal in self._streams
            ]
        for draw in draws:
            draw()
        self._place[0] = row  # the graph has moved it on, unless it was interrupted
        graph.run(1)
        self._row = row + 1
        updates.done()
        torch.autograd.graph.increment_version(self._changed)
        if type(updates) is PyroGradients:
            self._take_gradients()
        loss = float(self._losses[row])
        if loss != loss:
            warn_if_nan(torch.tensor(loss), "loss")  # as Pyro does
        return loss


def _streams(graph: StepGraph, seen: Observation) -> list[tuple[Tensor, int, int, bool]]:
    """Where in the matrices of noise each draw goes: which, from where, how many, and whether they are normals."""
    at = {"normal": 0, "uniform": 0}
    found = []
    for stream, count in seen.draws:
        normal = stream == "normal"
        if count:
            found.append((graph.normals if normal else graph.uniforms, at[stream], count, normal))
        at[stream] += count
    return found


def _memory(tensor: Tensor) -> tuple[int, int]:
    return tensor._version, tensor.data_ptr()


_grad = operator.attrgetter("grad")
