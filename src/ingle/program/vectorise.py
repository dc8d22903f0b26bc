"""Many independent runs of one program at once, each as if it ran alone."""

from __future__ import annotations

import math
import random
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import torch
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.ops.einsum import torch_log
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["apart", "is_out_of_memory", "repeat", "together"]

_Tree = Mapping[str, Any]  # of tensors, or of names to tensors

_DATA: Any = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_SAMPLERS = tuple(str(Path(str(module.__file__)).parent) for module in (torch.distributions, pyro.distributions))


def repeat(
    run: Callable[[Any], _Tree],
    times: int,
    *,
    chunk: int,
    given: _Tree | None = None,
    alone: Callable[[str], None] | None = None,
) -> Any:
    """Run `run` `times` times with independent noise and stack what it returns, first axis `times`.

    All runs of a chunk go through the program together under `torch.vmap`, where every tensor has the shape that
    it has in a single run, so that `mu[county]` indexes counties and not draws. A program that vmap cannot take
    (numbers read from tensors, in-place updates, noise of numpy's global stream) is run once for each draw. Noise
    from a generator of the program's own, as `numpy.random.default_rng()` makes one, is the same for a whole chunk.

    Args:
        run: from one element of `given` to tensors by name, or by name of names.
        times: how many runs.
        chunk: how many of them together.
        given: what each run starts from, tensors with first axis `times`.
        alone: told, in words, why the runs are taken one by one, where they are.
    """
    inputs = {} if given is None else given
    outside = _python_noise()
    try:
        with warnings.catch_warnings(), _FunctionalNoise(), _DirichletByGamma():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # slower, still right
            numbers = torch.arange(times)
            stacked = _mapped(lambda _, one: run(one), numbers, inputs, randomness="different", chunk_size=chunk)
        if _python_noise() == outside:
            return stacked
        why = "numbers from numpy's or Python's own generator"
    except Exception as error:  # whatever stopped vmap, the plain loop decides whether the program itself is at fault
        if is_out_of_memory(error):
            raise
        why = f"{type(error).__name__}: {error}".split("\n")[0]
    if alone is not None:
        alone(why)
    return _stacked([run(_at(place, inputs)) for place in range(times)])


def together(run: Callable[[Any], Any], given: _Tree) -> Any:
    """`run` at all elements of `given` at once, which draw no noise, or whatever error `torch.vmap` raises."""
    with _FunctionalNoise():
        return _mapped(run, given)


def apart(run: Callable[[Any], Any], given: _Tree) -> Any:
    """`run` at all elements of `given` at once, each with its own noise, gradients too, or an error of `torch.vmap`."""
    with warnings.catch_warnings(), _FunctionalNoise(), _batched_logs():
        warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)  # slower, still right
        return _mapped(run, given, randomness="different")


def _mapped(run: Callable[..., Any], *given: Any, **options: Any) -> Any:
    """`torch.vmap`; where that refuses to write into a new tensor, once more with ones that it can write into."""
    try:
        return torch.vmap(run, **options)(*given)
    except RuntimeError as error:
        if "vmap: inplace" not in str(error):
            raise

    def writable(*one: Any) -> Any:
        with _BatchedMakers(torch.zeros_like(_leaf(one[0]).reshape(-1)[:1].sum())):
            return run(*one)

    return torch.vmap(writable, **options)(*given)


def _leaf(tree: Any) -> Tensor:
    while isinstance(tree, Mapping):
        tree = next(iter(tree.values()))
    leaf: Tensor = tree
    return leaf


class _BatchedMakers(TorchFunctionMode):
    """Under vmap, gives new tensors of constants an axis of runs, so that a program may write each run's values there.

    Args:
        zero: a zero of each run.
    """

    def __init__(self, zero: Tensor) -> None:
        super().__init__()
        self._zero = zero

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        if func not in _MAKERS or made.requires_grad:
            return made
        return made + self._zero.to(made.dtype) if made.dtype != torch.bool else made ^ self._zero.to(torch.bool)


@contextmanager
def _batched_logs() -> Iterator[None]:
    """Inside, Pyro's sums over discrete latents take logarithms that vmap can take."""
    sums: Any = torch_log
    before = sums.safe_log
    sums.safe_log = _SafeLog.apply
    try:
        yield
    finally:
        sums.safe_log = before


class _SafeLog(torch.autograd.Function):
    """The logarithm as `pyro.ops.special.safe_log` has it, its gradient finite at 0."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor) -> Tensor:
        return x.log()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[0])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (x,) = ctx.saved_tensors
        return gradients[0] / x.clamp(min=torch.finfo(x.dtype).eps)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the host had no memory left."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def _at(place: int, tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {name: _at(place, branch) for name, branch in tree.items()}
    return tree[place]


def _stacked(trees: list[Any]) -> Any:
    if isinstance(trees[0], Mapping):
        return {name: _stacked([tree[name] for tree in trees]) for name in trees[0]}
    return torch.stack(trees)


def _python_noise() -> tuple[Any, ...]:
    """The random states that vmap does not see: it runs Python once for all draws of a chunk."""
    name, keys, *place = np.random.get_state()
    return name, np.asarray(keys).tobytes(), *place, random.getstate()


class _FunctionalNoise(TorchFunctionMode):
    """Under vmap, draws the noise of torch's and Pyro's samplers anew for each run.

    The samplers fill a fresh tensor in place and return it, which vmap refuses, because the tensor has no axis of
    runs; here the filled tensor is made by a call that has one. In-place noise anywhere else still reaches vmap.
    """

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == _DATA:
            return args[0].detach()  # Pyro's enumeration reads shapes through `.data`, which vmap refuses
        noise = _NOISE.get(func)
        if noise is None or not _caller().startswith(_SAMPLERS):
            return func(*args, **(kwargs or {}))
        return noise(*args, **(kwargs or {}))


def _caller() -> str:
    """The file that called a function of torch, modes that look on passed over."""
    frame: Any = sys._getframe(2)
    while frame.f_code.co_name == "__torch_function__":
        frame = frame.f_back
    return str(frame.f_code.co_filename)


class _DirichletByGamma(Messenger):
    """Draws Dirichlet and Beta sites as ratios of gammas, since vmap refuses the sampler that torch has for them."""

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        while isinstance(fn, (torch.distributions.Independent, MaskedDistribution)):
            fn = fn.base_dist
        if msg["value"] is not None or not isinstance(fn, (torch.distributions.Dirichlet, torch.distributions.Beta)):
            return
        if isinstance(fn, torch.distributions.Dirichlet):
            shares = _shares(fn.concentration)
        else:
            shares = _shares(torch.stack(torch.broadcast_tensors(fn.concentration1, fn.concentration0), -1))[..., 0]
        msg["value"], msg["done"] = shares, True


def _shares(concentration: Tensor) -> Tensor:
    """In logs, as Gamma(a) is Gamma(a + 1) U^(1/a), since gammas of a small concentration underflow all at once."""
    larger = torch.distributions.Gamma(concentration + 1, torch.ones_like(concentration)).sample()
    uniform = torch.rand_like(concentration).clamp(min=torch.finfo(concentration.dtype).tiny)
    return (larger.log() + uniform.log() / concentration).softmax(-1)


def _normal(like: Tensor, mean: float = 0.0, std: float = 1.0) -> Tensor:
    return torch.randn_like(like) * std + mean


def _uniform(like: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand_like(like) * (high - low) + low


def _exponential(like: Tensor, rate: float = 1.0) -> Tensor:
    return -torch.log1p(-torch.rand_like(like)) / rate


def _cauchy(like: Tensor, median: float = 0.0, sigma: float = 1.0) -> Tensor:
    return median + sigma * torch.tan(math.pi * (torch.rand_like(like) - 0.5))


def _normal_of(mean: Any, std: Any, *size: Any, **options: Any) -> Tensor:
    if size or options or not isinstance(mean, Tensor) or not isinstance(std, Tensor):
        return torch.normal(mean, std, *size, **options)
    return mean + std * torch.randn_like(mean + std)


_MAKERS = {
    torch.empty,
    torch.empty_like,
    torch.eye,
    torch.full,
    torch.full_like,
    torch.ones,
    torch.ones_like,
    torch.zeros,
    torch.zeros_like,
    torch.Tensor.new_empty,
    torch.Tensor.new_full,
    torch.Tensor.new_ones,
    torch.Tensor.new_zeros,
}
_NOISE: dict[Any, Callable[..., Tensor]] = {
    torch.normal: _normal_of,
    torch.Tensor.normal_: _normal,
    torch.Tensor.uniform_: _uniform,
    torch.Tensor.exponential_: _exponential,
    torch.Tensor.cauchy_: _cauchy,
}
