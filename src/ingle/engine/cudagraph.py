"""Whole steps captured as CUDA graphs: a step costs a GPU the launches of its kernels, and a replay launches all."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["captured"]

_UNROLLED = 20  # steps in one CUDA graph
_WARM = 2  # runs before a capture, so that what is made at the first run is there


def captured(run: Callable[[list[Tensor]], object], changed: Sequence[int]) -> Callable[[list[Tensor], int], None]:
    """A function of the tensors and a number of steps, which replays captures of `run`.

    A capture holds addresses, so it is made anew where a tensor lies elsewhere than before.

    Args:
        run: takes one step on CUDA tensors, in place, without reading anything on the host.
        changed: the places of the tensors that it changes.
    """
    replays: dict[int, torch.cuda.CUDAGraph] = {}
    addresses: list[int] = []

    def call(tensors: list[Tensor], steps: int) -> None:
        nonlocal addresses
        now = [tensor.data_ptr() for tensor in tensors]
        if now != addresses:
            replays.clear()
            addresses = now
        while steps:
            unrolled = _UNROLLED if steps >= _UNROLLED else 1
            if unrolled not in replays:
                replays[unrolled] = _capture(run, tensors, [tensors[place] for place in changed], unrolled)
            replays[unrolled].replay()
            steps -= unrolled

    return call


def _capture(
    run: Callable[[list[Tensor]], object], tensors: list[Tensor], changed: list[Tensor], steps: int
) -> torch.cuda.CUDAGraph:
    """Capture some steps; the tensors and the random state are afterwards what they were."""
    device = tensors[0].device
    before = [tensor.clone() for tensor in changed]
    random = torch.cuda.get_rng_state(device)
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for _ in range(_WARM):
            run(list(tensors))
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        for _ in range(steps):
            run(list(tensors))
    for tensor, value in zip(changed, before, strict=True):
        tensor.copy_(value)
    torch.cuda.set_rng_state(random, device)
    return graph
