"""Scopes for what is global in torch and Pyro: default dtype and device, random state, parameter store.

Whatever a fit does happens inside these scopes, and each puts back what it found, also after an exception and
after Ctrl-C. Nothing else in the library touches global state.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import torch

from ingle.errors import OptionError

__all__ = [
    "RandomState",
    "Runtime",
    "private_parameters",
    "resolve_device",
    "resolve_dtype",
    "resolve_seed",
    "validation",
]


def resolve_dtype(dtype: object) -> torch.dtype:
    """The floating dtype of a fit, of 16, 32 or 64 bits. Raises `OptionError` for anything else."""
    if dtype not in (torch.float32, torch.float64, torch.float16, torch.bfloat16) or not isinstance(dtype, torch.dtype):
        raise OptionError(f"dtype must be a floating torch dtype such as torch.float32, got {dtype!r}")
    return dtype


def resolve_device(device: str | torch.device | None, *, default: torch.device | None = None) -> torch.device:
    """The device of a fit, tried by putting a number on it. Raises `OptionError` where it is not there."""
    if device is None:
        return default if default is not None else torch.get_default_device()
    try:
        resolved = torch.empty(1, device=torch.device(device))
        float(resolved.sum())  # the meta device allocates, but holds no numbers
        return resolved.device
    except (RuntimeError, AssertionError, TypeError, NotImplementedError) as error:
        there = "cpu" + "".join(f", cuda:{i}" for i in range(torch.cuda.device_count()))
        raise OptionError(f"device {device!r} cannot be used on this machine, which has: {there}") from error


def resolve_seed(seed: object) -> int:
    """A seed that torch and numpy both take. Raises `OptionError` outside 0 to 2**32 - 1."""
    if isinstance(seed, bool) or not isinstance(seed, (int, np.integer)) or not 0 <= seed < 2**32:
        raise OptionError(f"seed must be an integer from 0 to 2**32 - 1, got {seed!r}")
    return int(seed)


@dataclass(frozen=True)
class RandomState:
    """The random states of torch (CPU and one CUDA device), numpy and Python, as one value."""

    torch_cpu: torch.Tensor
    torch_cuda: torch.Tensor | None
    numpy: Any
    python: Any
    device: torch.device

    @classmethod
    def capture(cls, device: torch.device) -> RandomState:
        """The states as they are now."""
        cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return cls(torch.get_rng_state(), cuda, np.random.get_state(), random.getstate(), device)

    def restore(self) -> None:
        """Put the states back."""
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None:
            torch.cuda.set_rng_state(self.torch_cuda, self.device)
        np.random.set_state(self.numpy)
        random.setstate(self.python)

    def plain(self) -> dict[str, Any]:
        """The states as tensors and numbers, for a file."""
        name, keys, *place = self.numpy
        version, words, gauss = self.python
        return {
            "torch_cpu": self.torch_cpu,
            "torch_cuda": self.torch_cuda,
            "numpy": (str(name), torch.from_numpy(keys.astype(np.int64)), *place),
            "python": (version, torch.tensor(words, dtype=torch.int64, device="cpu"), gauss),
        }

    @classmethod
    def from_plain(cls, state: dict[str, Any], device: torch.device) -> RandomState:
        """The states that `plain` gave."""
        name, keys, *place = state["numpy"]
        version, words, gauss = state["python"]
        return cls(
            torch_cpu=state["torch_cpu"],
            torch_cuda=state["torch_cuda"],
            numpy=(name, keys.numpy().astype(np.uint32), *place),
            python=(version, tuple(words.tolist()), gauss),
            device=device,
        )


@contextmanager
def private_parameters(state: dict[str, Any]) -> Iterator[None]:
    """Pyro's parameter store holds `state` inside, and what it held before outside.

    `state` is updated on the way out, also after an exception, which `ParamStoreDict.scope` does not do.
    """
    store = pyro.get_param_store()
    outside = store.get_state()
    store.clear()
    store.set_state(state)  # type: ignore[arg-type]
    try:
        yield
    finally:
        state.update(store.get_state())
        store.clear()
        store.set_state(outside)


@contextmanager
def validation(on: bool) -> Iterator[None]:
    """Pyro's and torch's checks of a program on or off inside, and each as it was outside.

    `pyro.validation_enabled` takes the four flags for one, and sets them all alike on the way out.
    """
    flags = ("validate_distributions_pyro", "validate_distributions_torch", "validate_infer", "validate_poutine")
    with pyro.settings.context(**dict.fromkeys(flags, on)):
        yield


def empty_parameters() -> dict[str, Any]:
    """The state of a parameter store that holds nothing."""
    return {"params": {}, "constraints": {}}


@dataclass
class Runtime:
    """Where and how a fit runs: its dtype, device and seed, and its own parameters."""

    dtype: torch.dtype
    device: torch.device
    seed: int
    parameters: dict[str, Any] = field(default_factory=empty_parameters)

    @classmethod
    def resolved(
        cls, dtype: object, device: str | torch.device | None, seed: object, *, default: torch.device | None
    ) -> Runtime:
        """From the options of a call; `default` is the device of its data. Raises `OptionError`."""
        return cls(resolve_dtype(dtype), resolve_device(device, default=default), resolve_seed(seed))

    @contextmanager
    def numerics(self, *, forget: bool = False) -> Iterator[None]:
        """The fit's parameters, default dtype and default device inside; the user's outside.

        Args:
            forget: what is done inside to Pyro's parameter store is not done to the fit's.
        """
        outside = torch.get_default_dtype()
        with ExitStack() as stack:
            stack.callback(torch.set_default_dtype, outside)
            stack.enter_context(private_parameters(_copied(self.parameters) if forget else self.parameters))
            torch.set_default_dtype(self.dtype)
            if self.device != torch.get_default_device():
                stack.enter_context(self.device)  # a function mode, which slows every call: only where needed
            yield

    @contextmanager
    def scope(self, seed: int | None = None) -> Iterator[None]:
        """Everything of the fit inside; everything of the user's, untouched, outside.

        Beside `numerics`, the random states start from a seed, gradients are recorded, and validation is off;
        whoever wants a checked run turns it on around that run.

        Args:
            seed: of the random states inside; the fit's own where None.
        """
        outside = RandomState.capture(self.device)
        with ExitStack() as stack:
            stack.callback(outside.restore)
            stack.enter_context(self.numerics())
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.enable_grad())
            stack.enter_context(validation(False))
            self.reseed(seed)
            yield

    @contextmanager
    def trial(self) -> Iterator[None]:
        """Inside a scope: parameters made within are forgotten on the way out."""
        with private_parameters(_copied(pyro.get_param_store().get_state())):
            yield

    def reseed(self, seed: int | None = None) -> None:
        """Start the random states again, inside a scope; those of other CUDA devices are left alone."""
        start = self.seed if seed is None else seed
        torch.default_generator.manual_seed(start)
        if self.device.type == "cuda":
            torch.cuda.init()
            torch.cuda.default_generators[self.device.index or 0].manual_seed(start)
        np.random.seed(start)
        random.seed(start)


def _copied(state: Any) -> dict[str, Any]:
    return {"params": dict(state["params"]), "constraints": dict(state["constraints"])}
