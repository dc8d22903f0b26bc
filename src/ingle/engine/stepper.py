"""One step a call, on Pyro's own store and random state: what `ingle.SVI` compiles."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pyro
import pyro.infer
import torch
from pyro.optim import PyroOptim
from pyro.util import warn_if_nan
from torch import Tensor

from ingle.engine import internals
from ingle.engine.graph import Source, StepGraph
from ingle.engine.observer import Observation, Observer
from ingle.engine.pyro_updates import PyroUpdates
from ingle.engine.recording import Untraceable
from ingle.program import Place, find_modules
from ingle.runtime import RandomState, validation

__all__ = ["Stepper"]

_WORTH = 20_000  # statements that ran eagerly before a graph is made
_LOOK = 50  # steps after which the statements are counted
_GRAPHS = 8  # one for each shape of the arguments, and for each value of what cannot be an input

Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Stepper:
    """Takes steps by graphs, one step a call.

    Noise is drawn from torch's global generator, in the order in which the program draws it.

    Args:
        svi: whose model, guide and optimiser it takes, as they are at each step.
        objective: with `particles`.
        eager: takes a step as Pyro would.
        at_once: compile at the third step, without counting.
    """

    def __init__(self, svi: pyro.infer.SVI, objective: Any, eager: Callable[..., Any], *, at_once: bool) -> None:
        self._svi: Any = svi
        self._objective, self._eager = objective, eager
        self._parts = self._model, self._guide, self._optim
        self._taken = 0
        self._compile_at: int | None = 2 if at_once else None
        self._made = 0
        self._graphs: dict[Any, _Stepped] = {}
        self._lifted_arguments: set[int] = set()
        self._lifted_places: dict[Place, None] = {}
        self._never_lifted: set[Any] = set()
        self._observer: Observer | None = None
        self._last: list[Any] = []

    @property
    def _model(self) -> Any:
        return self._svi.model

    @property
    def _guide(self) -> Any:
        return self._svi.guide

    @property
    def _optim(self) -> PyroOptim:
        optim: PyroOptim = self._svi.optim
        return optim

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take one step and return its loss as a number.

        Raises:
            Untraceable: it has to run eagerly, as all after it; nothing has been done yet.
        """
        self._taken += 1
        if not self._due(args, kwargs):
            return self._eager(*args, **kwargs)
        arguments = _Arguments((args, kwargs))
        parts = self._model, self._guide, self._optim
        if any(map(operator.is_not, parts, self._parts)):
            self._parts, self._observer = parts, None
            self._graphs.clear()
        stepped = self._graph(arguments)
        return stepped.run(arguments)

    def _due(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        if self._compile_at is None and self._taken > _LOOK:
            statements = len(self._observe(_Arguments((args, kwargs)), 1).statements)
            self._compile_at = max(_LOOK, _WORTH // max(1, statements))
        return self._compile_at is not None and self._taken > self._compile_at

    def _graph(self, arguments: _Arguments) -> _Stepped:
        if self._observer is not None and self._graphs:
            self._follow_places()
        self._follow_arguments(arguments)
        key = arguments.key(self._lifted_arguments)
        stepped = self._graphs.get(key)
        if stepped is not None and not stepped.fresh():
            del self._graphs[key]
            stepped = None
        if stepped is None:
            self._made += 1
            if self._made > _GRAPHS:
                raise Untraceable(f"it would take more than {_GRAPHS} graphs: {arguments.told(self._last)}")
            stepped = self._graphs[key] = self._record(arguments)
        self._last = arguments.leaves
        return stepped

    def _follow_places(self) -> None:
        """Numbers outside the arguments that have changed become inputs; anything else makes the graphs stale."""
        assert_observer: Any = self._observer
        changes = assert_observer.changed()
        if not changes:
            return
        for change in changes:
            if change.place in assert_observer.numbers() and change.place not in self._never_lifted:
                self._lifted_places[change.place] = None
        self._graphs.clear()

    def _follow_arguments(self, arguments: _Arguments) -> None:
        """Floats among the arguments that have changed become inputs."""
        for place, (ours, theirs) in enumerate(zip(arguments.leaves, self._last, strict=False)):
            changed = type(ours) is float and type(theirs) is float and ours != theirs
            if changed and place not in self._never_lifted:
                self._lifted_arguments.add(place)

    def _record(self, arguments: _Arguments) -> _Stepped:
        """A graph for these arguments, with numbers as inputs where that can be."""
        while True:
            try:
                return self._compile(arguments)
            except Untraceable:
                if not (self._lifted_arguments or self._lifted_places):
                    raise
                # What is computed from them may need them on the host: as constants they may do.
                self._never_lifted |= self._lifted_arguments | set(self._lifted_places)
                self._lifted_arguments.clear()
                self._lifted_places.clear()

    def _compile(self, arguments: _Arguments) -> _Stepped:
        seen = self._observe(arguments, 2)
        leaves, buffers = self._leaves(), self._buffers()
        dtype = next((leaf.dtype for leaf in leaves if leaf.dtype == torch.float64), torch.get_default_dtype())
        device = leaves[0].device if leaves else torch.get_default_device()
        updates = PyroUpdates(self._optim, leaves)
        number: dict[str, Any] = {"dtype": dtype, "device": device}
        lifted = {place: torch.tensor(arguments.leaves[place], **number) for place in self._lifted_arguments}
        places = {place: torch.tensor(float(place.value()), **number) for place in self._lifted_places}
        args, kwargs = arguments.put(lifted)

        def particles(rows: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
            yield from self._objective.particles(self._model, self._guide, *args, **kwargs)

        source = Source(
            particles=particles,
            update=updates,
            buffers=buffers,
            data={f"argument {place}": tensor for place, tensor in arguments.tensors.items()},
            rows={},
            normals=seen.drawn("normal"),
            uniforms=seen.drawn("uniform"),
            capacity=1,
            foldable=False,
            dtype=dtype,
            device=device,
            lifted=[*lifted.values(), *places.values()],
        )
        with self._unchanged(leaves, updates.state, buffers):
            with self._places(places), validation(False):
                graph = StepGraph(source, "inductor" if internals.compiler() else "graph")
        if [id(leaf) for leaf in self._leaves()] != [id(leaf) for leaf in leaves]:
            raise Untraceable("it makes a new parameter at each run")
        if self._observer is not None:
            self._observer.mark(without=tuple(self._lifted_places))
        return _Stepped(graph, updates, seen, lifted, places, pyro.get_param_store())

    def _places(self, places: Mapping[Place, Tensor]) -> Any:
        return self._observer.lifted(places)  # type: ignore[union-attr]

    def _observe(self, arguments: _Arguments, times: int) -> Observation:
        if self._observer is None:
            self._observer = Observer((self._model, self._guide), lambda: [*self._leaves(), *self._buffers()])
        args, kwargs = arguments.whole

        def run() -> None:
            with self._unchanged(self._buffers()), validation(False):
                for _ in self._objective.particles(self._model, self._guide, *args, **kwargs):
                    pass

        return self._observer.observe(run, times)

    @contextmanager
    def _unchanged(self, *groups: list[Tensor]) -> Iterator[None]:
        """Tensors and random states are afterwards what they were."""
        tensors = [tensor for group in groups for tensor in group]
        before = [tensor.detach().clone() for tensor in tensors]
        device = next((tensor.device for tensor in tensors if tensor.device.type != "cpu"), torch.device("cpu"))
        state = RandomState.capture(device)
        try:
            yield
        finally:
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
            state.restore()

    def _leaves(self) -> list[Tensor]:
        """The parameters that the optimiser has met, in an order that stays."""
        return [leaf for leaf in self._optim.optim_objs if isinstance(leaf, Tensor)]

    def _buffers(self) -> list[Tensor]:
        found = {id(buffer): buffer for module in find_modules(self._model, self._guide) for buffer in module.buffers()}
        return list(found.values())


class _Arguments:
    """The arguments of one call, taken apart.

    Attributes:
        whole: args and kwargs.
        leaves: what they hold, one after the other, containers opened.
        tensors: by their place among the leaves, each object once.
    """

    def __init__(self, whole: Arguments) -> None:
        self.whole = whole
        self.leaves: list[Any] = []
        self._shape = self._open(whole)
        known: dict[int, int] = {}
        for place, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                known.setdefault(id(leaf), place)
        self.tensors: dict[int, Tensor] = {place: self.leaves[place] for place in known.values()}
        self._same = tuple(known[id(leaf)] for leaf in self.leaves if isinstance(leaf, Tensor))

    def _open(self, value: Any) -> Any:
        if type(value) in (list, tuple):
            return (type(value), *map(self._open, value))
        if type(value) is dict:
            return (dict, *((name, self._open(part)) for name, part in value.items()))
        self.leaves.append(value)
        return None

    def key(self, lifted: set[int]) -> Any:
        """What a graph for these arguments is found by."""
        parts = []
        for place, leaf in enumerate(self.leaves):
            if isinstance(leaf, Tensor):
                parts.append((leaf.shape, leaf.stride(), leaf.dtype, leaf.device, leaf.requires_grad))
            elif place in lifted:
                parts.append(float)
            elif type(leaf) in (int, float, bool, str, type(None)):
                parts.append((type(leaf), "nan" if leaf != leaf else leaf))
            else:
                parts.append(id(leaf))
        return self._shape, self._same, tuple(parts)

    def told(self, last: list[Any]) -> str:
        """Which leaf differs from the last call's."""
        for place, (ours, theirs) in enumerate(zip(self.leaves, last, strict=False)):
            if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
                if ours.shape != theirs.shape:
                    return f"a tensor among the arguments had shape {tuple(theirs.shape)}, now {tuple(ours.shape)}"
            elif ours is not theirs and ours != theirs:
                return f"argument {place} was {theirs!r}, now {ours!r}"
        return "what the program reads changes too often"

    def put(self, lifted: Mapping[int, Tensor]) -> Arguments:
        """The arguments with tensors in the place of some leaves."""
        leaves = iter([lifted.get(place, leaf) for place, leaf in enumerate(self.leaves)])

        def close(shape: Any) -> Any:
            if shape is None:
                return next(leaves)
            kind, *parts = shape
            if kind is dict:
                return {name: close(part) for name, part in parts}
            return kind([close(part) for part in parts])

        args, kwargs = close(self._shape)
        return args, kwargs


@dataclass
class _Stepped:
    """A graph and what feeds it."""

    graph: StepGraph
    updates: PyroUpdates
    seen: Observation
    lifted: dict[int, Tensor]
    places: dict[Place, Tensor]
    store: Any
    parts: list[tuple[Tensor, str]] = field(default_factory=list)
    held: list[tuple[Tensor, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        at = {"normal": 0, "uniform": 0}
        streams = {"normal": self.graph.normals, "uniform": self.graph.uniforms}
        for stream, count in self.seen.draws:
            if count:
                self.parts.append((streams[stream][0, at[stream] : at[stream] + count], stream))
            at[stream] += count
        self.held = [(tensor, tensor._version) for tensor, _ in self.graph.recording.held]
        named = dict(self.store.named_parameters())
        self._leaves = {name: leaf for name, leaf in named.items() if any(leaf is ours for ours in self.updates.leaves)}

    def fresh(self) -> bool:
        """What the graph was made from is still there."""
        there = self.store._params
        return (
            all(there.get(name) is leaf for name, leaf in self._leaves.items())
            and all(tensor._version == version for tensor, version in self.held)
            and self.updates.hold()
        )

    def run(self, arguments: _Arguments) -> float:
        """Take one step; its loss."""
        graph = self.graph
        for place, tensor in self.lifted.items():
            tensor.fill_(arguments.leaves[place])
        for held, tensor in self.places.items():
            tensor.fill_(held.value())
        graph.bind(list(arguments.tensors.values()))
        for part, stream in self.parts:
            part.normal_() if stream == "normal" else part.uniform_()
        graph.numbers.copy_(self.updates.plan(1))
        graph.place.zero_()
        graph.run(1)
        loss = graph.losses.item()
        return warn_if_nan(loss, "loss") if loss != loss else loss  # as Pyro does
