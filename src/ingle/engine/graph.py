"""A step as one compiled graph: recorded, simplified, compiled, and run many times in place."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.fx import GraphModule

from ingle.engine import internals
from ingle.engine.cudagraph import captured
from ingle.engine.decompositions import DECOMPOSITIONS
from ingle.engine.library import looped
from ingle.engine.loop import NotALoop
from ingle.engine.recording import Inputs, Recording, Untraceable, record
from ingle.engine.simplify import simplify

__all__ = ["Source", "StepGraph", "Update", "Using"]

Using = Literal["inductor", "graph"]


class Update(Protocol):
    """How a step ends: what the gradients do."""

    @property
    def leaves(self) -> list[Tensor]:
        """The parameters that it moves."""

    @property
    def state(self) -> list[Tensor]:
        """What it changes in place beside them."""

    @property
    def width(self) -> int:
        """How many numbers it wants for each step."""

    def update(self, gradients: Sequence[Tensor | None], state: Sequence[Tensor], numbers: Tensor) -> None:
        """Move the leaves, by tensor operations alone."""


@dataclass(frozen=True)
class Source:
    """What a graph is recorded from.

    Attributes:
        particles: from the rows of minibatches to loss and surrogate of each particle, as objectives give them.
        update: how the step ends.
        buffers: what the program itself changes in place.
        data: what it reads, by name.
        rows: of minibatches that come from outside, how many a plate takes.
        normals, uniforms: how many numbers of each a step draws.
        capacity: how many steps the matrices of noise and numbers hold.
        foldable: the data stay what they are.
        dtype, device: of noise and losses.
        followed: leaves whose values after each step are kept, all of one dtype.
    """

    particles: Callable[[Mapping[str, Tensor]], Iterable[tuple[Any, Any]]]
    update: Update
    buffers: Sequence[Tensor]
    data: Mapping[str, Tensor]
    rows: Mapping[str, int]
    normals: int
    uniforms: int
    capacity: int
    foldable: bool
    dtype: torch.dtype
    device: torch.device
    lifted: Sequence[Tensor] = field(default=())
    followed: Sequence[Tensor] = field(default=())


class StepGraph:
    """Takes steps by running a graph in place.

    Attributes:
        normals, uniforms: the noise of the steps, shapes (capacity, number of normals), (capacity, number of uniforms).
        numbers: what the update wants for each step, shape (capacity, width), float64.
        rows: of minibatches, int64, shapes (capacity, rows).
        losses: shape (capacity,); a step writes its own.
        points: the leaves that are followed, shape (capacity, numbers); a step writes them as it leaves them.
        buffers: what the program itself changes in place.
        recording: what the graph was made from.
        nodes: how many operations a step has.
        how: which code runs it: "loop" of C++, "inductor", "CUDA graph" or "graph".
    """

    def __init__(self, source: Source, using: Using) -> None:
        self._source = source
        self.buffers = list(source.buffers)
        make: dict[str, Any] = {"device": source.device}
        capacity = source.capacity
        self.normals = torch.zeros(capacity, source.normals, dtype=source.dtype, **make)
        self.uniforms = torch.zeros(capacity, source.uniforms, dtype=source.dtype, **make)
        self.numbers = torch.zeros(capacity, source.update.width, dtype=torch.float64, **make)
        self.rows = {
            name: torch.zeros(capacity, count, dtype=torch.int64, **make) for name, count in source.rows.items()
        }
        self.losses = torch.zeros(capacity, dtype=source.dtype, **make)
        self.points = torch.zeros(
            capacity if source.followed else 0,
            sum(leaf.numel() for leaf in source.followed),
            dtype=source.followed[0].dtype if source.followed else source.dtype,
            **make,
        )
        self.place = torch.zeros(1, dtype=torch.int64, **make)
        self.recording, self.functional, self._kept = self._record(using)
        self._bound: list[Tensor] = []
        self._layouts: list[Any] = []
        self._slots: list[int | None] | None = None  # of the data among what is bound
        self.bind()
        self.nodes = sum(node.op == "call_function" for node in self.functional.graph.nodes)
        if os.environ.get("INGLE_GRAPHS"):
            _write_down(Path(os.environ["INGLE_GRAPHS"]), self.recording.graph, self.functional)
        self.how, self._call = _compiled(self.functional, self._bound, using)

    def run(self, steps: int) -> None:
        """Take `steps` steps with the tensors of the last `bind`, from row `place` of the matrices on."""
        with torch.no_grad():
            self._call(self._bound, steps)

    def bind(self, data: Sequence[Tensor] | None = None) -> None:
        """Take the tensors that are there now: loading a state puts others in the place of an optimiser's.

        Args:
            data: in the place of those of the source, in their order.

        Raises:
            Untraceable: one has another shape, dtype or device than the graph was made for.
        """
        inputs = self._inputs(data)
        inputs += self.recording.constants
        tensors = [inputs[kept] if isinstance(kept, int) else kept for kept in self._kept]
        if len(tensors) == len(self._bound) and all(map(operator.is_, tensors, self._bound)):
            return
        layouts = [(tensor.shape, tensor.stride(), tensor.dtype, tensor.device) for tensor in tensors]
        if self._layouts and layouts != self._layouts:
            raise Untraceable("a tensor that it reads has another shape, dtype or device than before")
        self._bound, self._layouts = tensors, layouts

    def exchange(self, data: Sequence[Tensor]) -> None:
        """Take other data, of layouts that the caller knows to be those of the source's: `bind` without its checks."""
        if self._slots is None:
            first = len(self._inputs()) - len(self._source.data)
            at = {kept: slot for slot, kept in enumerate(self._kept) if isinstance(kept, int)}
            self._slots = [at.get(first + place) for place in range(len(self._source.data))]
        for slot, tensor in zip(self._slots, data, strict=True):
            if slot is not None:
                self._bound[slot] = tensor

    def _record(self, using: Using) -> tuple[Recording, GraphModule, list[int | Tensor]]:
        source = self._source
        inputs = Inputs(
            changed=tuple(self._changes()),
            varying=(self.normals, self.uniforms, self.numbers, *self.rows.values(), *source.lifted),
            fixed=source.data,
            normals=self.normals,
            uniforms=self.uniforms,
            place=self.place,
        )
        recording = record(lambda: self._step(inputs), inputs)
        tensors = [*inputs.all, *recording.constants]
        functional = internals.functional(
            recording.graph, tensors, decompose=DECOMPOSITIONS if using == "inductor" else None
        )
        stays = [False] * (len(inputs.changed) + len(inputs.varying))
        stays += [source.foldable or recording.pinned] * len(source.data) + [True] * len(recording.constants)
        return recording, functional, simplify(functional, [tensor.detach() for tensor in tensors], stays)

    def _step(self, inputs: Inputs) -> None:
        source = self._source
        total: Any = 0.0
        objective: Any = 0.0
        for loss, surrogate in source.particles({name: inputs.row(matrix) for name, matrix in self.rows.items()}):
            total, objective = total + loss, objective + surrogate
        leaves = source.update.leaves
        gradients: Sequence[Tensor | None] = [None] * len(leaves)
        if getattr(objective, "requires_grad", False):
            gradients = torch.autograd.grad(objective, leaves, allow_unused=True)
        with torch.no_grad():
            source.update.update(gradients, source.update.state, inputs.row(self.numbers))
            if not isinstance(total, Tensor):
                total = torch.full((), float(total), dtype=source.dtype, device=source.device)
            self.losses.index_put_((self.place,), total.detach().to(source.dtype).reshape(1))
            if source.followed:
                point = torch.cat([leaf.detach().reshape(-1) for leaf in source.followed])
                self.points.index_put_((self.place,), point.unsqueeze(0))
            self.place.add_(1)

    def _changes(self) -> list[Tensor]:
        source = self._source
        points = [self.points] if source.followed else []
        return [*source.update.leaves, *source.update.state, *source.buffers, self.place, self.losses, *points]

    def _inputs(self, data: Sequence[Tensor] | None = None) -> list[Tensor]:
        source = self._source
        return [
            *self._changes(),
            self.normals,
            self.uniforms,
            self.numbers,
            *self.rows.values(),
            *source.lifted,
            *(source.data.values() if data is None else data),
        ]


def _write_down(folder: Path, recorded: GraphModule, functional: GraphModule) -> None:
    """Leave both graphs in a folder, numbered in the order in which they were made, for people to read."""
    folder.mkdir(parents=True, exist_ok=True)
    number = 1 + len(list(folder.glob("*-recorded.txt")))
    for name, graph in (("recorded", recorded), ("compiled", functional)):
        (folder / f"{number}-{name}.txt").write_text(graph.print_readable(print_output=False))


def _compiled(
    graph: GraphModule, tensors: list[Tensor], using: Using
) -> tuple[str, Callable[[list[Tensor], int], None]]:
    """What runs a graph: which code it is, and a function of the tensors and the number of steps."""
    if using == "graph":
        return "graph", _repeated(lambda tensors: graph(*tensors))
    kinds = {tensor.device.type for tensor in tensors}
    if kinds == {"cpu"}:
        with suppress(NotALoop):
            return "loop", looped(graph, tensors)
    function = internals.inductor(graph, tensors)
    if kinds == {"cuda"}:
        return "CUDA graph", captured(function, _changed(graph))
    return "inductor", _repeated(function)


def _repeated(run: Callable[[list[Tensor]], object]) -> Callable[[list[Tensor], int], None]:
    def call(tensors: list[Tensor], steps: int) -> None:
        for _ in range(steps):
            run(list(tensors))

    return call


def _changed(graph: GraphModule) -> list[int]:
    """The places of the inputs that a functional graph copies into at its end."""
    inputs = [node for node in graph.graph.nodes if node.op == "placeholder"]
    return [
        inputs.index(node.args[0])
        for node in graph.graph.nodes
        if node.target is torch.ops.aten.copy_.default and node.args[0] in inputs
    ]
