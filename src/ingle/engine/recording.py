"""One step run under recording: what of it may become a graph, what the graph reads, and why not where it cannot be."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ingle.engine import internals
from ingle.engine.noise import GivenDraws, Noise
from ingle.errors import IngleError
from ingle.program.handlers import Watch
from ingle.program.operations import tensors, written

__all__ = ["Inputs", "Recording", "Untraceable", "lift_constants", "record", "users_line"]

aten = torch.ops.aten


class Untraceable(Exception):
    """A program that cannot become a graph, and why, in words that can follow "because"."""


@dataclass(frozen=True)
class Inputs:
    """The tensors that a step reads and that may differ from one run of its graph to the next.

    Attributes:
        changed: what a step changes in place: leaves, optimiser state, buffers, counters.
        varying: what differs from step to step but is not changed: noise, numbers, rows of minibatches.
        fixed: what stays: the data, by name.
        normals, uniforms: rows of noise, among `varying`, one row a step.
        place: which row is this step's, among `changed`, int64, shape (1,).
    """

    changed: tuple[Tensor, ...]
    varying: tuple[Tensor, ...]
    fixed: Mapping[str, Tensor]
    normals: Tensor
    uniforms: Tensor
    place: Tensor

    @property
    def all(self) -> list[Tensor]:
        """In the order of the graph's inputs."""
        return [*self.changed, *self.varying, *self.fixed.values()]

    def row(self, matrix: Tensor) -> Tensor:
        """This step's row of a matrix."""
        return matrix[self.place][0]


@dataclass(frozen=True)
class Recording:
    """A step as a graph of aten operations, mutation included.

    Attributes:
        graph: its inputs are `Inputs.all`, then `constants`; it returns nothing.
        constants: tensors that it read and that are no input.
        held: those of them that were there before the run, with where they were read, in words.
        pinned: the run read numbers of the data on the host, so the graph is of these data alone.
    """

    graph: GraphModule
    constants: list[Tensor]
    held: list[tuple[Tensor, str]]
    pinned: bool


def record(step: Callable[[], None], inputs: Inputs) -> Recording:
    """Run one step and record it; whoever calls puts back what it changed.

    Raises:
        Untraceable: the step reads on the host what differs from step to step, writes to its data, or raises.
    """
    watch = Watch()
    recorder = _Recorder(inputs)

    def run(*_: Tensor) -> tuple[()]:
        with ExitStack() as stack:
            stack.enter_context(recorder)
            stack.enter_context(Noise(GivenDraws(inputs.row(inputs.normals), inputs.row(inputs.uniforms))))
            stack.enter_context(_HostReads(recorder))
            stack.enter_context(watch)
            step()
        return ()

    try:
        graph = internals.record(run, inputs.all)
    except Untraceable as error:
        raise Untraceable(f"{error}{_near(watch)}") from error
    except IngleError as error:
        raise Untraceable(str(error)) from error
    except Exception as error:  # the program is the user's, and what it calls may object to being recorded in any way
        told = str(error).strip().splitlines()[0] if str(error).strip() else ""
        line = _line_of(error)
        raise Untraceable(
            f"{type(error).__name__} was raised{f' at {line}' if line else ''}: {told[:200]}{_near(watch)}"
        ) from error
    constants = lift_constants(graph, len(inputs.all))
    return Recording(
        graph=graph,
        constants=constants,
        held=list(recorder.held.values()),
        pinned=recorder.pinned,
    )


def lift_constants(graph: GraphModule, count: int) -> list[Tensor]:
    """Make attributes of the graph its last inputs, and return them in order."""
    graph.graph.eliminate_dead_code()
    places: dict[str, Any] = {}
    constants: list[Tensor] = []
    last = [node for node in graph.graph.nodes if node.op == "placeholder"][count - 1]
    for node in [node for node in graph.graph.nodes if node.op == "get_attr"]:
        name = str(node.target)
        if name not in places:
            with graph.graph.inserting_after(last):
                last = places[name] = graph.graph.placeholder(f"constant_{len(constants)}")
            constants.append(getattr(graph, name).detach())
        node.replace_all_uses_with(places[name])
        graph.graph.erase_node(node)
    graph.recompile()
    return constants


def _near(watch: Watch) -> str:
    if watch.entered is not None:
        return f", in the statement of site {watch.entered!r}"
    return f", after site {watch.last!r}" if watch.last is not None else ""


class _Recorder(TorchDispatchMode):
    """Follows what differs from step to step through a run, and refuses what cannot be recorded.

    What is computed from data and constants alone is the same at every step; reading it on the host is no harm, nor
    indexing by a mask of it.
    """

    def __init__(self, inputs: Inputs) -> None:
        super().__init__()
        self.held: dict[int, tuple[Tensor, str]] = {}
        self.pinned = False
        self._varying = WeakIdKeyDictionary()
        self._of_data = WeakIdKeyDictionary()
        self._known = WeakIdKeyDictionary()
        self._fixed_memory: dict[int, str] = {}
        self._memory: list[Any] = []  # keeps the keys of `_fixed_memory` from being given to other tensors
        for tensor in (*inputs.changed, *inputs.varying):
            self._known[tensor] = self._varying[tensor] = True
        for name, tensor in inputs.fixed.items():
            self._known[tensor] = self._of_data[tensor] = True
            self._fix(tensor, f"its argument {name!r}")

    def varies(self, tensor: Tensor) -> bool:
        """Whether the tensor differs from step to step."""
        return tensor in self._varying

    def read(self, tensor: Tensor, how: str) -> None:
        """Note that numbers of a tensor reach Python; raises `Untraceable` where they differ from step to step."""
        if self.varies(tensor):
            line = users_line()
            raise Untraceable(f"{how} a tensor that differs from step to step{_at(line)}")
        if tensor in self._of_data:
            self.pinned = True

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        given = tensors((args, kwargs))
        if func not in _FRESH:
            for tensor in given:
                self._meet(tensor)
        if kwargs.get("generator") is not None:
            raise Untraceable(f"it draws from a generator of its own{_at(users_line())}")
        if any(tensor.layout != torch.strided for tensor in given):
            raise Untraceable(f"it computes with a sparse tensor{_at(users_line())}")
        if torch.Tag.data_dependent_output in func.tags:
            for tensor in given:
                self.read(tensor, ".item(), float() or an `if` on")
            with internals.unrecorded():
                return func(*args, **kwargs)
        if func in _INDEXED:
            args = self._indexed(args)
        elif torch.Tag.dynamic_output_shape in func.tags:
            return self._shaped_by_values(func, args, kwargs, given)
        for tensor in written(func, args, kwargs):
            told = self._fixed_memory.get(_memory(tensor))
            if told is not None:
                raise Untraceable(f"it changes {told} in place{_at(users_line())}")
        result = func(*args, **kwargs)
        self._follow(func, args, kwargs, given, result)
        return result

    def _meet(self, tensor: Tensor) -> None:
        if tensor in self._known:
            return
        self._known[tensor] = True
        self.held[id(tensor)] = tensor, f"a tensor of shape {tuple(tensor.shape)} read at {users_line() or 'unknown'}"
        self._fix(tensor, "a tensor from outside")

    def _fix(self, tensor: Tensor, told: str) -> None:
        if tensor.layout == torch.strided:
            self._memory.append(tensor.untyped_storage())
            self._fixed_memory[_memory(tensor)] = told

    def _follow(self, func: Any, args: Any, kwargs: Any, given: list[Tensor], result: Any) -> None:
        varying = torch.Tag.nondeterministic_seeded in func.tags or any(map(self.varies, given))
        of_data = any(tensor in self._of_data for tensor in given)
        for tensor in [*tensors(result), *written(func, args, kwargs)]:
            self._known[tensor] = True
            for part in (tensor, tensor._base):
                if varying and part is not None:
                    self._varying[part] = True
            if of_data:
                self._of_data[tensor] = True

    def _shaped_by_values(self, func: Any, args: Any, kwargs: Any, given: list[Tensor]) -> Any:
        for tensor in given:
            self.read(tensor, f"{func}, whose result has a shape that depends on its numbers, of")
        with internals.unrecorded():
            result = func(*args, **kwargs)
        self._follow(func, args, kwargs, given, result)
        return result

    def _indexed(self, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """A mask as an index has a result of its own shape; as a list of rows, one that stays."""
        indices: list[Any] = []
        for index in args[1]:
            if isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8):
                self.read(index, "indexing by a mask,")
                with internals.unrecorded():
                    parts = index.nonzero().unbind(1)
                for part in parts:
                    self._known[part] = True
                    if index in self._of_data:
                        self._of_data[part] = True
                indices.extend(parts)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])


_FRESH = {aten.lift_fresh.default, aten.lift_fresh_copy.default}
_INDEXED = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._unsafe_index.Tensor,
    aten._index_put_impl_.default,
}


class _HostReads(TorchFunctionMode):
    """Notices reads of numbers that no aten operation shows."""

    _READS: ClassVar = {
        torch.Tensor.numpy: ".numpy() of",
        torch.Tensor.tolist: ".tolist() of",
        torch.Tensor.__array__: "numpy.asarray() of",
        torch.Tensor.data_ptr: ".data_ptr() of",
    }

    def __init__(self, recorder: _Recorder) -> None:
        super().__init__()
        self._recorder = recorder

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        how = self._READS.get(func)
        if how is not None:
            self._recorder.read(args[0], how)
        elif func in _COPIED:
            # What is in a list is read where no mode looks; a tensor alone is copied likewise by torch.tensor.
            given = args[-1:] if args else (kwargs or {}).get("data", ())
            if func is torch.tensor or not all(isinstance(part, Tensor) for part in given):
                for tensor in tensors(given):
                    self._recorder.read(tensor, f"{func.__name__}()")
        elif func is torch.Tensor.data.__set__:  # type: ignore[attr-defined]
            raise Untraceable(f"it puts other memory behind a tensor{_at(users_line())}")
        return func(*args, **(kwargs or {}))


_COPIED = (torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata if tensor.layout == torch.strided else id(tensor)


def _at(line: str) -> str:
    return f", at {line}" if line else ""


_OURS = str(Path(__file__).parents[1])
_PAIRS = tuple(f"{_OURS}/{room}/" for room in ("models", "guides"))
_LIBRARIES = ("torch", "pyro", "contextlib", "functools", "opt_einsum", "numpy")


def users_line() -> str:
    """File and line of the user's code that is running, as "model.py:12"; empty where there is none."""
    frame: Any = sys._getframe(1)
    while frame is not None:
        if _of_user(frame):
            return f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


def _line_of(error: BaseException) -> str:
    """File and line of the user's code that an error came out of."""
    line, trace = "", error.__traceback__
    while trace is not None:
        if _of_user(trace.tb_frame):
            line = f"{Path(trace.tb_frame.f_code.co_filename).name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return line


def _of_user(frame: Any) -> bool:
    name, file = frame.f_globals.get("__name__", ""), frame.f_code.co_filename
    if file.startswith(_PAIRS) or name.startswith(("ingle.models.", "ingle.guides.")):
        return True
    return not (name.split(".")[0] in ("ingle", *_LIBRARIES) or file.startswith((_OURS, "<")))
