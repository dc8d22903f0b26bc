"""The log joint of a program over its continuous latents, unconstrained, at many points at once, with derivatives."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from pyro.infer.autoguide.initialization import InitMessenger
from torch import Tensor

from ingle.errors import IngleError
from ingle.evidence import Cost, Elements, Sampler, Space, budget, cost_of
from ingle.program import Program, is_out_of_memory, prior_value, repeat, together
from ingle.runtime import Runtime

__all__ = ["LogJoint", "Refused"]

_TRAINED = 3  # with its gradient a density takes about so many times the memory
_WIDE = torch.float64


class Refused(Exception):
    """The log joint cannot be had at any point, in words."""


class LogJoint:
    """log p(x, u) of unconstrained latents u, discrete ones summed out, all rows of every plate used.

    It runs in float64 where the program lets it, whatever the dtype of the fit: curvatures of a badly scaled model are
    lost in less. Works inside a scope of the fit.

    Args:
        program: of the fit; it is left as it was.
        runtime: of the fit.
        volume: whether the density is that of u, or that of the latents as the model has them.

    Attributes:
        size: D, how many numbers a point has.
        evaluations: how many times all points together went through the model.
        gradients: how many of these were with a gradient.
        median: of the prior, shape (1, D), float64.
        alone: why points go through the program one by one, in words; None where they go together.
        bytes: that one point writes.

    Raises:
        Refused: no draw of the prior goes through the program.
    """

    def __init__(self, program: Program, runtime: Runtime, *, volume: bool = True) -> None:
        self._runtime = runtime
        self._volume = volume
        self.evaluations = self.gradients = 0
        self.alone: str | None = None
        told = "nothing was tried"
        for dtype in dict.fromkeys((_WIDE, runtime.dtype)):
            if dtype is _WIDE and runtime.device.type == "mps":
                continue
            self._begin(program, dtype)
            try:
                values = self._draws(prior_value("median"), 1)
                with self._inside():
                    self._space = Space(self._sampler, self._latents, values, 1)
                    point = self._space.points(values, 1)
                    self.median = point.to(_WIDE)
                    cost = self._cost(point[0])
                    self._chunk = max(1, budget(runtime.device) // (cost.most * _TRAINED))
                    self.size, self.bytes = self._space.size, cost.written
                    self._together(point)
                return
            except Exception as error:  # the program is the user's, and may raise anything
                told = f"{type(error).__name__}: {error}".split("\n")[0]
        if not hasattr(self, "size"):
            raise Refused(told)
        self.alone = told

    def _cost(self, point: Tensor) -> Cost:
        return cost_of(lambda: self._space.joint(point))

    def _begin(self, program: Program, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._wide = Runtime(dtype, self._runtime.device, self._runtime.seed)
        self._program = replace(program, data=program.data.to(dtype, self._runtime.device))
        self._latents = [site.name for site in program.latents if site.name not in program.enumerated]
        self._sampler = Sampler(self._program, self._wide, Elements(), {}, None)

    def prior(self, n: int) -> Tensor:
        """Draws of the prior, shape (n, D), float64; NaN where one cannot be had."""
        try:
            with self._inside():
                return self._space.points(self._draws(prior_value("draw"), n), n).to(_WIDE)
        except IngleError:
            return torch.full((n, self.size), torch.nan, dtype=_WIDE)

    def points(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        """Where `n` draws of the latents lie, shape (n, D), float64."""
        wide = {name: value.to(self.dtype) if value.is_floating_point() else value for name, value in values.items()}
        with self._inside():
            return self._space.points(wide, n).to(_WIDE)

    def value(self, points: Tensor) -> Tensor:
        """The log joint at points of shape (n, D), float64, shape (n,); NaN where the program raises."""
        with torch.no_grad():
            return self._each(points, lambda part: self._together(part), self._chunk * _TRAINED)

    def with_gradient(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """The same and its gradient, shape (n, D)."""
        self.gradients += 1
        found = self._each(points, self._graded, self._chunk)
        return found[:, 0], found[:, 1:]

    def hessian(self, points: Tensor) -> Tensor:
        """Second derivatives, shape (n, D, D), from one pass in which each point stands D times."""
        self.gradients += 1
        copies = points.repeat_interleave(self.size, 0)
        which = torch.arange(self.size, device=points.device).repeat(len(points))
        rows = self._each(torch.cat([copies, which.unsqueeze(-1).to(copies.dtype)], -1), self._rows, self._chunk)
        found = rows.reshape(len(points), self.size, self.size)
        return (found + found.mT) / 2

    def values(self, points: Tensor) -> dict[str, Tensor]:
        """The latents at points, as the model has them, by name, shape (n, *site shape), dtype of the fit."""
        with self._inside(), torch.no_grad():
            given = {"point": points.to(self.dtype)}
            found = repeat(lambda one: self._space.values(one["point"]), len(points), chunk=self._chunk, given=given)
        return {name: value.to(self._runtime.dtype) for name, value in found.items()}

    def _draws(self, choose: Callable[[Any], Tensor], n: int) -> dict[str, Tensor]:
        names = set(self._latents)

        def run(_: Any) -> dict[str, Tensor]:
            with InitMessenger(choose):
                trace = self._program.trace_model({})
            return {name: trace.nodes[name]["value"] for name in names}

        with self._inside(), torch.no_grad():
            found: dict[str, Tensor] = repeat(run, n, chunk=n)
        return found

    @contextmanager
    def _inside(self) -> Iterator[None]:
        with self._wide.numerics(), self._program.explained("model"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            yield

    def _each(self, points: Tensor, run: Callable[[Tensor], Tensor], chunk: int) -> Tensor:
        self.evaluations += 1
        with self._inside(), self._program.at_rest():
            while True:
                try:
                    return torch.cat([run(part).to(_WIDE) for part in points.to(self.dtype).split(max(1, chunk))])
                except (RuntimeError, MemoryError) as error:
                    if not is_out_of_memory(error) or chunk <= 1:
                        raise
                    chunk = chunk // 2

    def _together(self, points: Tensor) -> Tensor:
        def run(one: Mapping[str, Tensor]) -> Tensor:
            return self._space.joint(one["point"], volume=self._volume)

        if self.alone is None:
            found: Tensor = together(run, {"point": points})
            return found
        parts = []
        for point in points:
            try:
                with self._program.explained("model"):
                    parts.append(run({"point": point}))
            except IngleError:  # a point so far out that the program refuses it
                parts.append(point.sum() * torch.nan)
        return torch.stack(parts)

    def _graded(self, points: Tensor) -> Tensor:
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            value = self._together(points)
            (gradient,) = torch.autograd.grad(value.sum(), points, allow_unused=True, materialize_grads=True)
        return torch.cat([value.detach().unsqueeze(-1), gradient], -1)

    def _rows(self, told: Tensor) -> Tensor:
        which = told[:, -1:].long()
        with torch.enable_grad():
            points = told[:, :-1].detach().requires_grad_()
            value = self._together(points)
            (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=True)
            picked = gradient.gather(1, which).sum()
            (rows,) = torch.autograd.grad(picked, points, allow_unused=True, materialize_grads=True)
        return rows
