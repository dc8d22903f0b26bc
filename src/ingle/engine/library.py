"""A graph of CPU kernels as a function of memory addresses, compiled once and kept on disk."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import platform
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule

from ingle.engine import internals
from ingle.engine.loop import Loop, as_loop

__all__ = ["looped"]

_FORMAT = 2


def looped(graph: GraphModule, tensors: list[Tensor]) -> Callable[[list[Tensor], int], None]:
    """A function of the tensors and a number of steps, which runs the graph that many times.

    Compiling takes seconds, so what came of it is kept beside Inductor's own files, under a digest of the graph, its
    tensors' layouts, the version of torch and the machine.

    Raises:
        NotALoop: the graph needs more than kernels of its own.
    """
    place = _place(graph, tensors)
    kept = _read(place)
    if kept is None:
        loop = as_loop(internals.kernels(graph, tensors))
        library, path = internals.load(loop.source)
        _write(place, loop, path)
        return _function(library, loop.inputs, loop.buffers)
    path, inputs, buffers = kept
    return _function(ctypes.CDLL(path), inputs, buffers)


def _function(library: ctypes.CDLL, inputs: int, layouts: Any) -> Callable[[list[Tensor], int], None]:
    run = library.ingle_loop
    run.restype, run.argtypes = ctypes.c_char_p, [ctypes.c_int64, ctypes.c_void_p]
    buffers = [torch.empty_strided(shape, stride, dtype=dtype, device="cpu") for shape, stride, dtype in layouts]
    memory = (ctypes.c_void_p * (inputs + len(buffers)))()

    def call(tensors: list[Tensor], steps: int) -> None:
        for slot, tensor in enumerate((*tensors, *buffers)):
            memory[slot] = tensor.data_ptr()
        error = run(steps, memory)
        if error is not None:
            raise IndexError(error.decode().partition("main.cpp:")[2] or error.decode())  # the one check of a kernel

    return call


def _place(graph: GraphModule, tensors: list[Tensor]) -> Path:
    parts = [
        str(_FORMAT),
        torch.__version__,
        platform.machine(),
        torch.backends.cpu.get_cpu_capability(),
        str(torch.get_num_threads()),
        graph.code,
        *(f"{tuple(tensor.shape)} {tensor.stride()} {tensor.dtype}" for tensor in tensors),
    ]
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()
    return internals.cache_folder() / "ingle" / f"{digest}.json"


def _read(place: Path) -> tuple[str, int, Any] | None:
    with suppress(OSError, ValueError, KeyError, AttributeError):
        kept = json.loads(place.read_text())
        if Path(kept["library"]).exists():
            buffers = [(shape, stride, getattr(torch, dtype)) for shape, stride, dtype in kept["buffers"]]
            return kept["library"], kept["inputs"], buffers
    return None


def _write(place: Path, loop: Loop, library: str) -> None:
    buffers = [(shape, stride, str(dtype).removeprefix("torch.")) for shape, stride, dtype in loop.buffers]
    with suppress(OSError):  # a folder that cannot be written to costs time, no more
        place.parent.mkdir(parents=True, exist_ok=True)
        beside = place.with_suffix(f".{os.getpid()}")
        beside.write_text(json.dumps({"library": library, "inputs": loop.inputs, "buffers": buffers}))
        beside.replace(place)
