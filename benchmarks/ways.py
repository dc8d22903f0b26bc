"""The ways to take a step, each with one interface, run by `worker.py` in a process of its own.

`start(steps)` is all that a user's first call does, from arrays to the losses of the first steps: building guide and
optimiser, tracing, compiling. `go(steps)` takes more steps and tells the seconds of the steady state:

- pyro: `svi.step` in a loop, validation on as Pyro has it by default; `pyro-unchecked` has it off.
- numpyro: one call of a jitted `lax.scan` over `svi.update`, compiled beforehand for its number of steps, with the
  losses brought to the host.
- ingle-eager, ingle: what `Fit.seconds` grows by in `Fit.resume`, which is the whole loop of a fit, the losses to the
  host, the check that they are finite, and the copy of the state that a broken step would go back to. Compiling is not
  in it, nor is putting the state back before the first step, which a fit does once.
- ingle-svi: `ingle.SVI.step` in a loop, a float each, as in an existing script.
- torch, torch-compiled: the autoencoder by hand, without Pyro, a float a step; the other cases have none.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import numpy as np

from benchmarks.cases import LEARNING_RATE, Case

__all__ = ["BY_HAND", "WAYS", "Way"]


class Way(Protocol):
    """One library on one case."""

    engine: str

    def start(self, steps: int) -> list[float]:
        """Everything up to the losses of the first steps."""

    def go(self, steps: int) -> tuple[float, list[float]]:
        """Seconds of more steps in the steady state, and their losses."""

    def device_memory(self) -> int | None:
        """Most bytes held on the device so far; None on the CPU."""


class _Torch:
    def __init__(self, name: str, case: Case, device: str) -> None:
        from benchmarks.pyro_cases import pair, tensors

        self.name, self.case, self.device = name, case, device
        self.pair: Callable[[], Any] = functools.partial(pair, name, case, device)
        self.tensors: Callable[[], Any] = functools.partial(tensors, case.data, device)

    def device_memory(self) -> int | None:
        import torch

        return None if self.device == "cpu" else torch.cuda.max_memory_allocated()


class PyroSVI(_Torch):
    """`pyro.infer.SVI`."""

    engine = "pyro.infer.SVI"
    validate = True

    def start(self, steps: int) -> list[float]:
        import pyro
        import pyro.infer
        import pyro.optim

        pyro.set_rng_seed(0)
        if not self.validate:
            pyro.enable_validation(False)
        with self._scope():
            model, guide = self.pair()
            if self.case.summed:
                model = pyro.infer.config_enumerate(model)
                loss: Any = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1)
            else:
                loss = pyro.infer.Trace_ELBO()
            self.svi = self._svi(model, guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss)
            self.data = self.tensors()
        return self.go(steps)[1]

    def go(self, steps: int) -> tuple[float, list[float]]:
        step, data, losses = self.svi.step, self.data, []
        with self._scope():
            began = time.perf_counter()
            for _ in range(steps):
                losses.append(step(**data))
            return time.perf_counter() - began, losses

    def _svi(self, *args: Any) -> Any:
        import pyro.infer

        return pyro.infer.SVI(*args)

    def _scope(self) -> AbstractContextManager[Any]:
        """A default device is a function mode, which would slow Pyro on the CPU for nothing."""
        import torch

        return nullcontext() if self.device == "cpu" else torch.device(self.device)


class PyroUnchecked(PyroSVI):
    """`pyro.infer.SVI` with its validation off."""

    validate = False


class IngleSVI(PyroSVI):
    """`ingle.SVI`, compiled."""

    engine = "ingle.SVI"

    def _svi(self, *args: Any) -> Any:
        import ingle

        return ingle.SVI(*args, compile="full")


class IngleFit(_Torch):
    """`ingle.fit`, compiled; the objective is the one that it chooses."""

    engine = ""
    compile = "full"

    def start(self, steps: int) -> list[float]:
        import torch

        import ingle

        model, guide = self.pair()
        self.fit = ingle.fit(
            model,
            guide,
            self.tensors(),
            optim=functools.partial(torch.optim.Adam, lr=LEARNING_RATE),
            steps=steps,
            compile=self.compile,
            progress=False,
        )
        wanted = "TraceEnum_ELBO" if self.case.summed else "Trace_ELBO"
        if self.fit.objective != wanted:
            raise RuntimeError(f"{self.name}: the fit chose {self.fit.objective}, the others have {wanted}")
        self.engine = self.fit.engine
        return [float(loss) for loss in self.fit.losses]

    def go(self, steps: int) -> tuple[float, list[float]]:
        before, self.fit = self.fit, self.fit.resume(steps)
        return self.fit.seconds - before.seconds, [float(loss) for loss in self.fit.losses[before.steps :]]


class IngleEager(IngleFit):
    """`ingle.fit`, eager."""

    compile = "off"


class Torch(_Torch):
    """Networks, loss and optimiser by hand."""

    engine = "a loop in torch"
    compile = False

    def start(self, steps: int) -> list[float]:
        import torch

        from benchmarks.torch_cases import HandWritten

        torch.manual_seed(0)
        self.loop = HandWritten(self.case, self.device, compiled=self.compile)
        self.x = self.tensors()["x"]
        return self.go(steps)[1]

    def go(self, steps: int) -> tuple[float, list[float]]:
        began = time.perf_counter()
        losses = [self.loop.step(self.x) for _ in range(steps)]
        return time.perf_counter() - began, losses


class TorchCompiled(Torch):
    """The same by torch.compile."""

    engine = "torch.compile"
    compile = True


class NumPyro:
    """NumPyro's SVI, compiled by XLA."""

    engine = "lax.scan over svi.update"

    def __init__(self, name: str, case: Case, device: str) -> None:
        self.name, self.case, self.device = name, case, device
        self._compiled: dict[int, Any] = {}

    def start(self, steps: int) -> list[float]:
        import jax
        import numpyro
        from jax import lax
        from numpyro.infer import SVI, Trace_ELBO

        from benchmarks.numpyro_cases import pair

        kinds = {device.platform for device in jax.devices()}
        if self.device != "cpu" and kinds == {"cpu"}:
            raise ImportError("JAX sees no such device")
        model, guide = pair(self.name, self.case)
        svi = SVI(model, guide, numpyro.optim.Adam(LEARNING_RATE), Trace_ELBO())
        # Arguments of the compiled call, since XLA would fold constants for minutes where they are large.
        self.data = {name: jax.numpy.asarray(array) for name, array in self.case.data.items()}
        self.state = svi.init(jax.random.PRNGKey(0), **self.data)

        def run(state: Any, data: Any, *, length: int) -> Any:
            return lax.scan(lambda now, _: svi.update(now, **data), state, None, length=length)

        self._jit = jax.jit(run, static_argnames="length", donate_argnums=0)
        return self.go(steps)[1]

    def go(self, steps: int) -> tuple[float, list[float]]:
        import jax

        if steps not in self._compiled:
            self._compiled[steps] = self._jit.lower(self.state, self.data, length=steps).compile()
        run = self._compiled[steps]
        began = time.perf_counter()
        self.state, losses = run(self.state, self.data)
        jax.block_until_ready(self.state)
        host = np.asarray(losses)
        return time.perf_counter() - began, host.tolist()

    def device_memory(self) -> int | None:
        import jax

        stats = None if self.device == "cpu" else jax.devices()[0].memory_stats()
        return None if stats is None else int(stats["peak_bytes_in_use"])


# What is imported before the first call, timed apart; and whether what is compiled is kept on disk.
WAYS: dict[str, tuple[type[Any], tuple[str, ...], bool]] = {
    "pyro": (PyroSVI, ("torch", "pyro.infer.autoguide", "pyro.optim"), False),
    "pyro-unchecked": (PyroUnchecked, ("torch", "pyro.infer.autoguide", "pyro.optim"), False),
    "numpyro": (NumPyro, ("jax", "numpyro", "numpyro.infer.autoguide"), False),
    "ingle-eager": (IngleEager, ("ingle",), False),
    "ingle": (IngleFit, ("ingle",), True),
    "ingle-svi": (IngleSVI, ("ingle",), True),
    "torch": (Torch, ("torch",), False),
    "torch-compiled": (TorchCompiled, ("torch",), True),
}
# Written for one case alone.
BY_HAND = {"torch": "vae", "torch-compiled": "vae"}
