"""Noise as an input: random operations of torch written as functions of standard normals and uniforms given beforehand.

A captured graph that draws its own noise can draw the same noise at every replay, and nobody can feed it what another
engine drew. Here the noise of a step is one vector of normals and one of uniforms; every engine that is handed the same
vectors gives the same losses. What has no such form (gamma, Dirichlet, Poisson and binomial draws, permutations) keeps
drawing from torch's global generator, in the order of the program.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ingle.errors import ProgramError

__all__ = ["BatchDraws", "Draws", "GivenDraws", "Noise", "OwnDraws"]

aten = torch.ops.aten


class Draws:
    """Where the mode takes its numbers from: two streams, each counted.

    Attributes:
        normals, uniforms: how many numbers were taken from each stream.
        calls: each time that numbers were taken: the stream's name and how many.
    """

    def __init__(self) -> None:
        self.normals = 0
        self.uniforms = 0
        self.calls: list[tuple[str, int]] = []

    def normal(self, count: int) -> Tensor:
        """The next `count` standard normals, shape (count,)."""
        start, self.normals = self.normals, self.normals + count
        self.calls.append(("normal", count))
        return self._normal(start, count)

    def uniform(self, count: int) -> Tensor:
        """The next `count` numbers from [0, 1), shape (count,)."""
        start, self.uniforms = self.uniforms, self.uniforms + count
        self.calls.append(("uniform", count))
        return self._uniform(start, count)

    def _normal(self, start: int, count: int) -> Tensor:
        raise NotImplementedError

    def _uniform(self, start: int, count: int) -> Tensor:
        raise NotImplementedError


class OwnDraws(Draws):
    """Fresh numbers from torch's global generator, to find out how many a step takes."""

    def _normal(self, start: int, count: int) -> Tensor:
        return torch.randn(count)

    def _uniform(self, start: int, count: int) -> Tensor:
        return torch.rand(count)


class GivenDraws(Draws):
    """Numbers from two vectors.

    Args:
        normals, uniforms: shapes (number of normals,) and (number of uniforms,).
    """

    def __init__(self, normals: Tensor, uniforms: Tensor) -> None:
        super().__init__()
        self._given = {"normals": normals, "uniforms": uniforms}

    def _normal(self, start: int, count: int) -> Tensor:
        return self._part("normals", start, count)

    def _uniform(self, start: int, count: int) -> Tensor:
        return self._part("uniforms", start, count)

    def _part(self, stream: str, start: int, count: int) -> Tensor:
        given = self._given[stream]
        if start + count > len(given):
            raise ProgramError(
                f"a step drew more than {len(given)} {stream}, which is how many it drew before: its shapes or sites "
                "change from step to step"
            )
        return given[start : start + count]


class BatchDraws(Draws):
    """Numbers for several runs under `torch.vmap`, each from a row of its own, as `GivenDraws` of that row gives them.

    Under vmap an operation draws for all runs at once, those of the first run first.

    Args:
        normals, uniforms: shapes (runs, number of normals) and (runs, number of uniforms).
    """

    def __init__(self, normals: Tensor, uniforms: Tensor) -> None:
        super().__init__()
        self._given = {"normals": normals, "uniforms": uniforms}

    def _normal(self, start: int, count: int) -> Tensor:
        return self._part("normals", start, count)

    def _uniform(self, start: int, count: int) -> Tensor:
        return self._part("uniforms", start, count)

    def _part(self, stream: str, start: int, count: int) -> Tensor:
        given = self._given[stream]
        runs, width = given.shape
        if count % runs or start + count > runs * width:
            raise ProgramError(f"the runs do not draw {width} {stream} each, as one did alone")
        return given[:, start // runs : (start + count) // runs].reshape(-1)


class Noise(TorchDispatchMode):
    """Inside, random operations take their numbers from `draws`.

    Args:
        draws: where from.

    Attributes:
        left: names of random operations that drew from the global generator all the same.
    """

    def __init__(self, draws: Draws) -> None:
        super().__init__()
        self.draws = draws
        self.left: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        written = _TABLE.get(func)
        if written is not None and kwargs.get("generator") is None:
            value = written(self.draws, *args, **{name: kwargs[name] for name in kwargs if name != "generator"})
            if value is not NotImplemented:
                return value
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.left.append(str(func))
        return func(*args, **kwargs)


def _like(flat: Tensor, size: Sequence[int], dtype: torch.dtype | None, device: Any) -> Tensor:
    dtype = torch.get_default_dtype() if dtype is None else dtype
    return flat.reshape(list(size)).to(dtype=dtype, device=flat.device if device is None else device)


def _normal_fill(draws: Draws, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    z = draws.normal(x.numel()).reshape(x.shape).to(x.dtype)
    if std != 1.0:
        z = z * std
    if mean != 0.0:
        z = z + mean
    x.copy_(z)
    return x


def _normal_functional(draws: Draws, x: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return draws.normal(x.numel()).reshape(x.shape).to(x.dtype) * std + mean


def _normal_tensors(draws: Draws, mean: Any, std: Any = 1.0) -> Tensor:
    tensors = [value for value in (mean, std) if isinstance(value, Tensor)]
    shape = torch.broadcast_shapes(*(value.shape for value in tensors))
    z = draws.normal(math.prod(shape)).reshape(shape).to(tensors[0].dtype)
    drawn: Tensor = z * std + mean
    return drawn


def _normal_size(
    draws: Draws, mean: float, std: float, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any
) -> Tensor:
    return _like(draws.normal(math.prod(size)), size, dtype, device) * std + mean


def _randn(draws: Draws, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _like(draws.normal(math.prod(size)), size, dtype, device)


def _randn_like(draws: Draws, x: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _like(draws.normal(x.numel()), x.shape, dtype or x.dtype, device)


def _rand(draws: Draws, size: Sequence[int], *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _like(draws.uniform(math.prod(size)), size, dtype, device)


def _rand_like(draws: Draws, x: Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> Tensor:
    return _like(draws.uniform(x.numel()), x.shape, dtype or x.dtype, device)


def _uniform_fill(draws: Draws, x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    u = draws.uniform(x.numel()).reshape(x.shape).to(x.dtype)
    x.copy_(u if (low, high) == (0.0, 1.0) else u * (high - low) + low)
    return x


def _exponential_fill(draws: Draws, x: Tensor, rate: float = 1.0) -> Tensor:
    u = draws.uniform(x.numel()).reshape(x.shape).to(x.dtype)
    tiny = torch.finfo(x.dtype).eps / 2  # as torch does: never 0, so that its log is finite
    x.copy_(-torch.log1p(-u).clamp(max=-tiny) / rate)
    return x


def _bernoulli(draws: Draws, p: Tensor) -> Tensor:
    return (draws.uniform(p.numel()).reshape(p.shape) < p).to(p.dtype)


def _bernoulli_fill(draws: Draws, x: Tensor, p: Any = 0.5) -> Tensor:
    u = draws.uniform(x.numel()).reshape(x.shape)
    x.copy_((u < p).to(x.dtype))
    return x


def _bernoulli_p(draws: Draws, x: Tensor, p: float) -> Tensor:
    return (draws.uniform(x.numel()).reshape(x.shape) < p).to(x.dtype)


def _multinomial(draws: Draws, weights: Tensor, count: int, replacement: bool = False) -> Any:
    """By inverting the cumulative weights; a category without weight is never drawn."""
    if not (replacement or count == 1):
        return NotImplemented
    ends = weights.cumsum(-1)
    total = ends[..., -1:]
    u = draws.uniform(weights[..., 0].numel() * count).reshape(*weights.shape[:-1], count, 1).to(weights.dtype)
    ends, total = ends.unsqueeze(-2), total.unsqueeze(-2)
    drawn: Tensor = (ends <= u * total).sum(-1)
    return torch.minimum(drawn, (ends < total).sum(-1))  # u * total may round to the total


def _native_dropout(draws: Draws, x: Tensor, p: float, train: bool | None) -> Any:
    if train is False:
        return NotImplemented
    keep = draws.uniform(x.numel()).reshape(x.shape) >= p
    return x * keep * (0.0 if p == 1.0 else 1.0 / (1.0 - p)), keep


_EXACT = 2**20  # the most integers among which a float32 uniform chooses evenly enough


def _randint_low(
    draws: Draws, low: int, high: int, size: Sequence[int], *, dtype: Any = torch.int64, device: Any = None, **_: Any
) -> Any:
    if high - low > _EXACT:
        return NotImplemented
    u = draws.uniform(math.prod(size)).reshape(list(size))
    return ((u * (high - low)).floor().clamp(max=high - low - 1) + low).to(dtype=dtype or torch.int64)


def _randint(draws: Draws, high: int, size: Sequence[int], **kwargs: Any) -> Any:
    return _randint_low(draws, 0, high, size, **kwargs)


def _cauchy_fill(draws: Draws, x: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    u = draws.uniform(x.numel()).reshape(x.shape).to(x.dtype)
    x.copy_(torch.tan(math.pi * (u - 0.5)) * sigma + median)
    return x


def _log_normal_fill(draws: Draws, x: Tensor, mean: float = 1.0, std: float = 2.0) -> Tensor:
    x.copy_((draws.normal(x.numel()).reshape(x.shape).to(x.dtype) * std + mean).exp())
    return x


_TABLE: dict[Any, Callable[..., Any]] = {
    aten.normal_.default: _normal_fill,
    aten.normal_functional.default: _normal_functional,
    aten.normal.Tensor_Tensor: _normal_tensors,
    aten.normal.Tensor_float: _normal_tensors,
    aten.normal.float_Tensor: _normal_tensors,
    aten.normal.float_float: _normal_size,
    aten.randn.default: _randn,
    aten.randn.generator: _randn,
    aten.randn_like.default: _randn_like,
    aten.rand.default: _rand,
    aten.rand.generator: _rand,
    aten.rand_like.default: _rand_like,
    aten.uniform_.default: _uniform_fill,
    aten.exponential_.default: _exponential_fill,
    aten.bernoulli.default: _bernoulli,
    aten.bernoulli.p: _bernoulli_p,
    aten.bernoulli_.float: _bernoulli_fill,
    aten.bernoulli_.Tensor: _bernoulli_fill,
    aten.multinomial.default: _multinomial,
    aten.native_dropout.default: _native_dropout,
    aten.randint.default: _randint,
    aten.randint.low: _randint_low,
    aten.cauchy_.default: _cauchy_fill,
    aten.log_normal_.default: _log_normal_fill,
}
