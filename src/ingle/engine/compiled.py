"""The compiled engine: loss, gradient and update of a step as one graph, many steps in one call of it."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ingle.data import batch_shapes
from ingle.engine.blocks import NoiseBlocks
from ingle.engine.eager import EagerEngine
from ingle.engine.endings import Gradients, Moments
from ingle.engine.graph import Source, StepGraph, Using
from ingle.engine.noise import GivenDraws, Noise
from ingle.engine.observer import Observation, Observer
from ingle.engine.optimiser import Optimisers
from ingle.engine.protocol import Follower, State
from ingle.engine.recording import Untraceable
from ingle.engine.structure import Statement, difference
from ingle.engine.updates import Updates, updates_of
from ingle.errors import IngleError, IngleWarning, ProgramError, warn
from ingle.program import Program
from ingle.runtime import Runtime

__all__ = ["CompiledEngine"]

_FIRST = 4  # steps that run eagerly, whatever comes after
_RUNS = 2  # of the program, to be held against each other before it is recorded
_SHAPES = 4  # of minibatches, each with a graph of its own
_FOLLOWED = 2_000  # numbers, up to which the parameters are kept after each step
_RETRIES = 8  # graphs that may become stale

Shapes = tuple[tuple[str, int], ...]
Ending = Updates | Gradients | Moments


class CompiledEngine:
    """Takes its first steps eagerly, then records one and runs it as a graph.

    What Python does in a step happens once, while the step is recorded. So whatever model and guide read from outside
    their arguments is watched: where it changes, the step is recorded anew; where the program itself changes it, or
    where a step cannot be recorded, the engine goes on eagerly and says why. The first steps show whether the program
    keeps a state of its own, before anything runs it beside them: such a program never notices the engine.

    Args:
        program, objective, optimisers, runtime: of the fit.
        using: "inductor" compiles the graph, "graph" runs its operations one by one.
        required: raise where the engine would go on eagerly.

    Attributes:
        notes: what the card should say.
        call: how many steps one call of `advance` is meant for.
    """

    def __init__(
        self,
        program: Program,
        objective: Any,
        optimisers: Optimisers | Moments,
        runtime: Runtime,
        *,
        using: Using = "inductor",
        required: bool = False,
    ) -> None:
        self._program = program
        self._objective = objective
        self._optimisers = optimisers
        self._runtime = runtime
        self._using: Using = using
        self._required = required
        self._eager = EagerEngine(program, objective, optimisers, runtime, noise=self._noise)
        self._graphs: dict[Shapes, _Compiled] = {}
        self._blocks: dict[Shapes, NoiseBlocks] = {}
        self._observer = Observer(
            (program.model, program.guide), lambda: [*program.leaves().values(), *program.buffers()]
        )
        self._compiling = _most_common(program.batch_sizes)
        self._stale = 0
        self._calls = 0
        self._until: int | None = None  # the step from which on all are eager
        self._eager_seconds: list[float] = []
        self._seconds, self._taken = 0.0, 0
        self._first = max(_FIRST, optimisers.guide_steps)  # until each torch optimiser has its state
        self.why_eager: str | None = None

    call = 500

    @property
    def name(self) -> str:
        """What takes the next step."""
        return "compiled" if self.why_eager is None else "eager"

    @property
    def step(self) -> int:
        """How many steps were taken."""
        return self._eager.step

    @property
    def notes(self) -> list[str]:
        """What compiling gained, or why the steps ran eagerly."""
        if self.why_eager is not None:
            return [f"the steps ran eagerly: {self.why_eager}"]
        if not self._taken:
            return []
        pace = self._seconds / self._taken
        told = f"compiled steps took {_told(pace)} each"
        if self._eager_seconds:
            gain = statistics.median(self._eager_seconds) / pace
            told += f", {gain:,.{0 if gain >= 10 else 1}f} times the eager pace"
        return [told if self._using == "inductor" else f"{told}, operation by operation, as there is no C++ compiler"]

    def advance(self, steps: int, follower: Follower | None = None) -> Tensor:
        """Take `steps` steps and return their losses in nats, shape (steps,), dtype and device of the fit.

        Raises:
            ProgramError: compiled steps were required, and the program cannot be compiled.
        """
        parts: list[Tensor] = []
        while steps:
            graph = None
            if self.why_eager is None and self.step >= self._first:
                graph = self._ready()
            losses = self._advance_one(follower) if graph is None else self._run(graph, steps, follower)
            parts.append(losses)
            steps -= len(losses)
        return torch.cat(parts)

    def reference(self) -> EagerEngine:
        """An eager engine on the same program, which takes the same steps with the same noise."""
        return self._eager.reference()

    def capture(self) -> State:
        """The state before the next step, copied."""
        return self._eager.capture()

    def restore(self, state: State) -> None:
        """Go back to a captured state."""
        self._eager.restore(state)

    def _advance_one(self, follower: Follower | None) -> Tensor:
        if self.why_eager is not None or not 0 < self.step < _FIRST:
            return self._eager.advance(1, follower)
        losses: list[Tensor] = []

        def step() -> None:
            began = time.perf_counter()
            losses.append(self._eager.advance(1))
            self._eager_seconds.append(time.perf_counter() - began)

        tensors = {name: value for name, value in self._program.data.items() if isinstance(value, Tensor)}
        before = [tensor._version for tensor in tensors.values()]
        told = self._observer.own_state(step)
        for (name, tensor), version in zip(tensors.items(), before, strict=True):
            if tensor._version != version:
                told = told or f"the program changes its argument {name!r} in place"
        if told is not None:
            self._give_up(told)
        return losses[0]

    def _run(self, compiled: _Compiled, most: int, follower: Follower | None) -> Tensor:
        began = time.perf_counter()
        graph, batches = compiled.graph, self._eager.batches
        at = self.step % compiled.blocks.capacity
        if follower is not None and not len(graph.points):
            most = min(most, follower.until(self.step))
        steps = min(most, batches.steady(most), compiled.blocks.capacity - at)
        if not compiled.updates.whole:
            steps = 1
        compiled.fill(self.step)
        if graph.rows:
            drawn = [batches.next() for _ in range(steps)]
            for name, matrix in graph.rows.items():
                matrix[at : at + steps] = torch.stack([rows[name] for rows in drawn])
        graph.numbers[at : at + steps] = compiled.updates.plan(steps)
        graph.place.fill_(at)
        graph.run(steps)
        if isinstance(compiled.updates, Gradients):
            compiled.updates.hand_over()
            self._optimisers.step(*self._program.sides())
        losses = graph.losses[at : at + steps].clone()
        self._eager.step += steps
        if follower is not None and len(graph.points):
            follower.extend(self.step - steps, graph.points[at : at + steps], self._program.leaves())
        elif follower is not None:
            follower.note(self.step, self._program.leaves())
        self._seconds += time.perf_counter() - began
        self._taken += steps
        return losses

    def _ready(self) -> _Compiled | None:
        """The graph of the next step; None where it has to run eagerly."""
        shapes: Shapes = tuple(self._eager.batches.upcoming().items())
        try:
            self._check(shapes)
            compiled = self._graphs.get(shapes)
            if compiled is None:
                if self._compiling is not None and shapes not in self._compiling:
                    return None
                compiled = self._graphs[shapes] = self._compile(shapes)
            compiled.graph.bind()
            return compiled
        except Untraceable as error:
            self._give_up(str(error))
            return None

    def _give_up(self, reason: str) -> None:
        if self._required:
            raise ProgramError(f"compile='full': the step cannot be compiled: {reason}", step=self.step)
        self.why_eager, self._until = reason, self.step
        self._graphs.clear()
        warn(
            f"step {self.step} and all after it are taken one by one in Python, which gives the same fit more slowly, "
            f"since they cannot be compiled: {reason}",
            IngleWarning,
        )

    def _check(self, shapes: Shapes) -> None:
        """Drop graphs that are of another program than there is now.

        Raises:
            Untraceable: that happened too often, or a run of the program differs from the one that was recorded.
        """
        if not self._graphs:
            return
        told = self._changed()
        if told is not None:
            self._graphs.clear()
            self._stale += 1
            if self._stale > _RETRIES:
                raise Untraceable(f"{told}, and has changed before {_RETRIES} times")
            return
        self._calls += 1
        if self._calls & (self._calls - 1) == 0 and shapes in self._graphs:  # at call 1, 2, 4, 8, …
            told = difference(self._graphs[shapes].statements, self._observe(1).statements)
            if told is not None:
                raise Untraceable(told)

    def _changed(self) -> str | None:
        changes = self._observer.changed()
        if changes:
            return str(changes[0])
        for compiled in self._graphs.values():
            for tensor, version, told in compiled.held:
                if tensor._version != version:
                    return f"{told} was changed in place"
            if compiled.leaves != _identities(self._program):
                return "the program has other parameters than before"
            if not compiled.updates.hold():
                return "the optimiser has other options than before"
        return None

    def _compile(self, shapes: Shapes) -> _Compiled:
        """Record and compile the next step, and leave everything as it was.

        Raises:
            Untraceable: it cannot be.
        """
        program, runtime = self._program, self._runtime
        before = self.capture()
        try:
            with torch.no_grad(), program.probe:
                told = self._objective.untraceable(program.trace_guide())
            if told is not None:
                raise Untraceable(told)
            seen = self._observe(_RUNS)
            normals, uniforms = seen.drawn("normal"), seen.drawn("uniform")
            blocks = NoiseBlocks(runtime.seed, normals, uniforms, dtype=runtime.dtype, device=runtime.device)
            updates = self._ending()
            source = Source(
                particles=self._particles,
                update=updates,
                buffers=program.buffers(),
                data={name: value for name, value in program.data.items() if isinstance(value, Tensor)},
                rows=dict(shapes),
                normals=normals,
                uniforms=uniforms,
                capacity=blocks.capacity,
                foldable=True,
                dtype=runtime.dtype,
                device=runtime.device,
                followed=_followed(program) if updates.whole and not isinstance(updates, Moments) else (),
            )
            leaves = _identities(program)
            graph = self._graph(source)
            if _identities(program) != leaves:
                raise Untraceable("it makes a new parameter at each run")
            self._blocks[shapes] = blocks
            self._observer.mark(full=True)
            return _Compiled(graph, blocks, updates, seen.statements, leaves)
        finally:
            self.restore(before)

    def _ending(self) -> Ending:
        if isinstance(self._optimisers, Moments):
            return self._optimisers
        updates = updates_of(self._optimisers)
        return Gradients(self._program.leaves().values()) if isinstance(updates, str) else updates

    def _graph(self, source: Source) -> StepGraph:
        try:
            return StepGraph(source, self._using)
        except Untraceable:
            raise
        except Exception as error:  # a compiler may fail in any way, and the steps can always be taken without it
            raise Untraceable(f"{_head(error)} was raised while the step was compiled") from error

    def _particles(self, rows: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
        program = self._program
        program.rows.rows = dict(rows)
        model, guide, data = program.observing_model, program.observing_guide, program.data
        if not program.batch_sizes:
            yield from self._objective.particles(model, guide, *data.args, **data.kwargs)
            return
        with program.rows:
            yield from self._objective.particles(model, guide, *data.args, **data.kwargs)

    def _observe(self, times: int) -> Observation:
        """Run the next step without taking it, and hold the runs against each other.

        Raises:
            Untraceable: they differ, or the program keeps a state of its own.
        """
        state = self.capture()

        def run() -> None:
            self._eager.batches.restore(state.rows)
            self._eager.observe()

        try:
            return self._observer.observe(run, times)
        except (Untraceable, IngleError):
            raise
        except Exception as error:  # where it is no fault of the extra run, the step raises it too
            raise Untraceable(f"{_head(error)} was raised by a run that takes no step") from error
        finally:
            self.restore(state)

    @contextmanager
    def _noise(self, step: int, rows: Mapping[str, Tensor]) -> Iterator[None]:
        """The noise of a step for an eager run of it."""
        blocks = self._blocks.get(tuple((name, len(drawn)) for name, drawn in rows.items()))
        eager = self._until is not None and step >= self._until
        if blocks is None or step < self._first or eager:
            yield
            return
        with Noise(GivenDraws(*blocks.row(step))):
            yield


class _Compiled:
    """A graph with what it was made from, so as to see when it is stale."""

    def __init__(
        self,
        graph: StepGraph,
        blocks: NoiseBlocks,
        updates: Ending,
        statements: list[Statement],
        leaves: Any,
    ) -> None:
        self.graph = graph
        self.blocks = blocks
        self.updates = updates
        self.statements = statements
        self.leaves = leaves
        self.held = [(tensor, tensor._version, told) for tensor, told in graph.recording.held]
        self._block = -1

    def fill(self, step: int) -> None:
        """Have the noise of the block that a step is in."""
        block = step // self.blocks.capacity
        if block != self._block:
            self._block = -1  # so that after Ctrl-C on the way nobody takes it for filled
            self.blocks.fill(block, self.graph.normals, self.graph.uniforms)
            self._block = block


def _followed(program: Program) -> list[Tensor]:
    """The parameters where they are few enough to be kept after each step."""
    leaves = list(program.leaves().values())
    alike = all(leaf.dtype == leaves[0].dtype and not leaf.is_complex() for leaf in leaves)
    return leaves if alike and sum(leaf.numel() for leaf in leaves) <= _FOLLOWED else []


def _identities(program: Program) -> dict[str, int]:
    return {name: id(leaf) for name, leaf in program.leaves().items()}


def _most_common(batch_sizes: Mapping[str, tuple[int, int]]) -> frozenset[Shapes] | None:
    """The shapes of minibatches that get a graph, decided without looking at steps; None where there are few."""
    found = batch_shapes(batch_sizes)
    if len(found) <= _SHAPES:
        return None
    return frozenset(sorted(found, key=found.__getitem__, reverse=True)[:_SHAPES])


def _head(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}{f' ({lines[0][:200]})' if lines else ''}"


def _told(seconds: float) -> str:
    return f"{seconds * 1e6:,.1f} µs" if seconds < 1e-3 else f"{seconds * 1e3:,.1f} ms"
