"""Every call of torch that is not public: recording by make_fx, functionalising, Inductor, its C++ builder.

Tested on torch 2.11 and 2.13. Where a version of torch changes one of these, this file alone changes.
"""

from __future__ import annotations

import copy
import ctypes
import getpass
import logging
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing, make_fx

__all__ = ["cache_folder", "compiler", "functional", "inductor", "kernels", "load", "record", "unrecorded"]


@contextmanager
def _quiet() -> Iterator[None]:
    """Inductor's remarks, and what torch warns of in its own code, are not for the users of a fit."""
    logger = logging.getLogger("torch._inductor")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


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


@_quiet()
def functional(graph: GraphModule, inputs: Sequence[Tensor], *, decompose: bool) -> GraphModule:
    """The same graph without mutation, but for a `copy_` into each changed input at its end.

    Args:
        graph: of aten operations, with `inputs` as its inputs; it returns nothing.
        inputs: their shapes count, their numbers do not.
        decompose: into the operations that Inductor lowers.
    """
    from torch._inductor.decomposition import select_decomp_table
    from torch._subclasses import FakeTensorMode

    def run(*arguments: Tensor) -> tuple[()]:
        with torch.no_grad():
            graph(*arguments)
        return ()

    mode = FakeTensorMode()
    fakes = [mode.from_tensor(tensor.detach()) for tensor in inputs]
    with mode:
        return make_fx(
            torch.func.functionalize(run, remove="mutations"),
            decomposition_table=select_decomp_table() if decompose else None,
            tracing_mode="real",
        )(*fakes)


class _Written(Exception):
    """Inductor has written its code, and need not compile it."""


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
        _compile(graph, inputs, {"fx_graph_cache": False})
    except Exception:  # ours comes out wrapped, in another class for each version of torch
        if not written:
            raise
    finally:
        GraphLowering.save_output_code = before
    return written[0]


@_quiet()
def inductor(graph: GraphModule, inputs: Sequence[Tensor]) -> Callable[[list[Tensor]], Any]:
    """A functional graph compiled by Inductor: a function of the list of inputs, which it empties."""
    return _compile(graph, inputs, {})


def _compile(graph: GraphModule, inputs: Sequence[Tensor], options: Mapping[str, Any]) -> Callable[[list[Tensor]], Any]:
    from torch._guards import TracingContext, tracing
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner
    from torch._inductor.virtualized import V
    from torch._subclasses import FakeTensorMode
    from torch.fx.passes.fake_tensor_prop import FakeTensorProp

    graph = copy.deepcopy(graph)  # Inductor rewrites it, and a second compilation wants it whole
    for node in graph.graph.nodes:
        node.meta.clear()
    with config.patch({"fallback_random": True, "cpp_wrapper": False, **options}):
        mode = FakeTensorMode()
        fakes = [mode.from_tensor(tensor.detach()) for tensor in inputs]
        FakeTensorProp(graph, mode).propagate_dont_convert_inputs(*fakes)
        with V.set_fake_mode(mode), tracing(TracingContext(mode)), torch.no_grad():
            return compile_fx_inner(graph, fakes)


@_quiet()
def load(source: str) -> tuple[ctypes.CDLL, str]:
    """C++ source compiled as Inductor compiles its kernels, or taken from its cache on disk, with the file it is in."""
    from torch._inductor.codecache import CppCodeCache

    library = CppCodeCache.load(source)
    return library, library._name


def cache_folder() -> Path:
    """Where Inductor keeps what it has compiled, without importing it, which takes seconds."""
    named = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    return Path(named) if named else Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"


def compiler() -> str | None:
    """The C++ compiler that Inductor would call; None where there is none."""
    named = os.environ.get("CXX")
    return next((found for name in (named, "g++", "clang++", "c++", "cl") if name and (found := shutil.which(name))), None)
