"""Every call of torch that is not public: recording by make_fx, functionalising, Inductor, its C++ builder.

Tested on torch 2.11 and 2.13. Where a version of torch changes one of these, this file alone changes.
"""

from __future__ import annotations

import ctypes
import getpass
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
from pyro.poutine.runtime import _PYRO_STACK
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

__all__ = [
    "NO_COMPILER",
    "cache_folder",
    "compiler",
    "default_device",
    "functional",
    "inductor",
    "kernels",
    "load",
    "record",
    "undisturbed",
    "unhashable",
    "unrecorded",
]

NO_COMPILER = "no C++ compiler was found (g++, clang++ or the one that CXX names), so the steps are not compiled"


@contextmanager
def _quiet() -> Iterator[None]:
    """What Inductor remarks on itself, and torch on the parts of its own that it imports, is not for users of a fit."""
    loggers = [logging.getLogger(name) for name in ("torch._inductor", "torch.utils.cpp_extension")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)


def record(step: Callable[..., Any], inputs: Sequence[Tensor]) -> GraphModule:
    """Run `step(*inputs)` once, on the tensors themselves, and return every aten operation that ran as a graph.

    Inputs are known by the identity of the tensor object, so each must be an object of its own. A tensor that is read
    and is no input becomes an attribute of the graph.
    """
    if len({id(tensor) for tensor in inputs}) != len(inputs):
        raise RuntimeError("the same tensor is two inputs of a graph, which would take them for one")
    return make_fx(step, tracing_mode="real")(*inputs)


@contextmanager
def unrecorded() -> Iterator[None]:
    """What runs inside is not recorded."""
    with disable_proxy_modes_tracing():
        yield


@contextmanager
def unhashable(tensors: Sequence[Tensor], error: Exception) -> Iterator[None]:
    """Looking up one of these tensors in a set or a dict raises `error`: the number that it stands for may be there."""
    ids = {id(tensor) for tensor in tensors}
    before = torch.Tensor.__hash__

    def guarded(tensor: Tensor) -> int:
        if id(tensor) in ids:
            raise error
        return id(tensor)

    torch.Tensor.__hash__ = guarded  # type: ignore[method-assign]
    try:
        yield
    finally:
        torch.Tensor.__hash__ = before  # type: ignore[method-assign]


def undisturbed() -> bool:
    """Nothing around this call changes what torch's or Pyro's statements do: no handler, no mode, no autocast."""
    return (
        not _PYRO_STACK
        and torch.is_grad_enabled()
        and not torch.is_inference_mode_enabled()
        and torch._C._len_torch_function_stack() == (default_device() is not None)
        and torch._C._len_torch_dispatch_stack() == 0
        and not torch.is_autocast_enabled("cpu")
        and not torch.is_autocast_enabled("cuda")
        and not torch.is_anomaly_enabled()
    )


def default_device() -> object:
    """What `torch.set_default_device` keeps, one function mode; None where it was not called. Cheaper than to ask."""
    return getattr(torch._GLOBAL_DEVICE_CONTEXT, "device_context", None)


@_quiet()
def functional(
    graph: GraphModule, inputs: Sequence[Tensor], *, decompose: Mapping[Any, Callable[..., Any]] | None
) -> GraphModule:
    """The same graph without mutation, but for a `copy_` into each changed input at its end.

    Args:
        graph: of aten operations, with `inputs` as its inputs; it returns nothing.
        inputs: their shapes count, their numbers do not.
        decompose: into the operations that Inductor lowers, by its own rules and by these, which may decline; None
            leaves operations as they are.
    """
    from torch._subclasses import FakeTensorMode

    table = None
    if decompose is not None:
        from torch._inductor.decomposition import select_decomp_table

        table = {**select_decomp_table(), **decompose}

    def run(*arguments: Tensor) -> tuple[()]:
        with torch.no_grad():
            graph(*arguments)
        return ()

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor.detach()) for tensor in inputs]
    with mode:
        return make_fx(
            torch.func.functionalize(run, remove="mutations"),
            decomposition_table=table,
            tracing_mode="real",
        )(*fakes)


class _Written(Exception):
    """Inductor has written its code, and need not compile it."""


# Elements for each thread from which on it pays to wake one. A loop over kernels alone is over before another thread
# has come; where torch's own matrix products run as well, threads are awake anyway.
_ALONE, _AMONG_OTHERS = 2**18, 2**14


@_quiet()
def kernels(graph: GraphModule, inputs: Sequence[Tensor]) -> str:
    """The Python module that Inductor writes for a functional graph, with its C++ kernels, as text.

    Args:
        graph, inputs: as in `functional`.
    """
    from torch._inductor.graph import GraphLowering

    written: list[str] = []

    def keep(code: str) -> None:
        written.append(code)
        raise _Written

    before = GraphLowering.save_output_code
    GraphLowering.save_output_code = staticmethod(keep)
    try:
        _compile(graph, inputs, {"fx_graph_cache": False, "cpp.min_chunk_size": _ALONE})
    except Exception:  # ours comes out wrapped, in another class for each version of torch
        if not written:
            raise
    finally:
        GraphLowering.save_output_code = before
    return written[0]


@_quiet()
def inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[[list[Tensor]], Any]:
    """A functional graph compiled by Inductor: a function of the list of inputs, which it empties."""
    return _compile(graph, inputs, {"cpp.min_chunk_size": _AMONG_OTHERS})


def _compile(graph: GraphModule, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> Callable[[list[Tensor]], Any]:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    own = torch.fx.Graph()  # Inductor rewrites what it is given
    own.output(own.graph_copy(graph.graph, {}))
    graph = GraphModule(graph, own)
    for node in graph.graph.nodes:
        node.meta.clear()
    with _trusting(), config.patch({"fallback_random": True, "cpp_wrapper": False, **options}):
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(tensor.detach()) for tensor in inputs]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
        with V.set_fake_mode(mode), tracing(TracingContext(mode)), torch.no_grad():
            return compile_fx_inner(graph, fakes)


@_quiet()
def load(source: str) -> tuple[ctypes.CDLL, str]:
    """C++ source compiled as Inductor compiles its kernels, or taken from its cache on disk, with the file it is in."""
    from torch._inductor.codecache import CppCodeCache

    with _trusting():
        library = CppCodeCache.load(source)
    return library, library._name


def _trusting() -> AbstractContextManager[Any]:
    """Inside, Inductor takes the processor's word for its vector instructions, and compiles no program to try each."""
    from torch._inductor import config

    tried: dict[str, Any] = {"cpp.vec_isa_ok": True if config.cpp.vec_isa_ok is None else config.cpp.vec_isa_ok}
    trusting: AbstractContextManager[Any] = config.patch(tried)
    return trusting


def cache_folder() -> Path:
    """Where Inductor keeps what it has compiled, without importing it, which takes seconds."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def compiler() -> str | None:
    """The C++ compiler that Inductor would call; None where there is none."""
    named = os.environ.get("CXX")
    return next(
        (found for name in (named, "g++", "clang++", "c++", "cl") if name and (found := shutil.which(name))), None
    )
