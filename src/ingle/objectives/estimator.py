"""What the objectives share: a loss and a surrogate for each particle, neither read before both are whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pyro.infer
from pyro.infer.util import is_validation_enabled
from pyro.util import warn_if_nan
from torch import Tensor

from ingle.errors import ProgramError
from ingle.options import positive_integer
from ingle.program import Memory, sample_nodes

__all__ = ["Estimator", "detached"]


class Estimator(pyro.infer.ELBO):
    """A bound on the evidence, told particle by particle, as tensors on the device.

    Goes before the class of Pyro's whose traces it takes; what comes after says what one pair of traces is worth.
    """

    as_pyro = False  # stands in for an object of Pyro's, and does as that would step by step

    def __init__(self, num_particles: int = 1, *args: Any, **options: Any) -> None:
        super().__init__(positive_integer("num_particles", num_particles), *args, **options)  # type: ignore[no-untyped-call]

    def particles(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """For each particle its share of the loss, in nats, and the surrogate to differentiate, both scalars.

        Args:
            model, guide: callables with Pyro statements.
            *args, **kwargs: of both.

        The shares add up to the loss. Differentiating one surrogate before asking for the next keeps one
        particle's graph in memory at a time. What the objective remembers moves on after the last.
        """
        yield from self._particles(model, guide, args, kwargs, moving=True)

    def _particles(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, moving: bool
    ) -> Iterator[tuple[Any, Any]]:
        for model_trace, guide_trace in self._traces(model, guide, args, kwargs):
            loss, surrogate = self._differentiable_loss_particle(model_trace, guide_trace)
            yield loss / self.num_particles, surrogate / self.num_particles

    def _traces(
        self, model: Any, guide: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Iterator[tuple[Any, Any]]:
        """Traces of model and guide, a pair for each particle, or one pair for all of them.

        Raises:
            ProgramError: particles that run together have mixed.
        """
        for pair in self._get_traces(model, guide, args, kwargs):
            if self.vectorize_particles and self.num_particles > 1:
                for role, trace in zip(("model", "guide"), pair, strict=True):
                    _refuse_mixed(role, trace, int(self.max_plate_nesting), self.num_particles)
            yield pair

    def _differentiable_loss_particle(self, model_trace: Any, guide_trace: Any) -> tuple[Any, Any]:
        """The loss of one pair of traces, without a gradient, and the surrogate whose gradient is taken."""
        raise NotImplementedError

    @property
    def is_elbo(self) -> bool:
        """Whether its expectation is the ELBO, and nothing more or less."""
        return True

    @property
    def options(self) -> dict[str, Any]:
        """What it was made with beside the number of particles, where that is not the default."""
        return {"vectorize_particles": True} if self.vectorize_particles and self.num_particles > 1 else {}

    @property
    def memory(self) -> Memory:
        """What it remembers from step to step."""
        memory: Memory = self.__dict__.setdefault("_memory", Memory())
        return memory

    def fresh(self) -> Estimator:
        """The same objective with nothing remembered."""
        other: Estimator = object.__new__(type(self))
        other.__dict__.update({name: value for name, value in vars(self).items() if name != "_memory"})
        return other

    def untraceable(self, guide_trace: Any) -> str | None:
        """Why a step cannot be recorded as one graph of tensors, in words; None where nothing is in the way.

        Args:
            guide_trace: one run of the guide, as a Pyro trace.
        """
        return None

    def told(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
        """Run once; what a reader of the fit should know of the bound for this pair, in words, empty for a plain one.

        Afterwards `memory` has all that it will have.

        Args:
            model, guide: callables with Pyro statements.
            *args, **kwargs: of both.

        Raises:
            ProgramError: it cannot serve the pair.
        """
        for _ in self._particles(model, guide, args, kwargs, moving=False):
            pass
        return ""

    def loss(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss as a number; nothing is remembered of it."""
        return _read(sum(loss for loss, _ in self._particles(model, guide, args, kwargs, moving=False)))

    def differentiable_loss(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> Any:
        """The loss as a scalar whose gradient is that of the surrogate."""
        total: Any = 0.0
        surrogate: Any = 0.0
        for loss, part in self.particles(model, guide, *args, **kwargs):
            total, surrogate = total + loss, surrogate + part
        if is_validation_enabled():
            warn_if_nan(surrogate, "loss")
        return total + (surrogate - detached(surrogate))

    def loss_and_grads(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> float:
        """The loss as a number; gradients are added to the parameters' `grad`."""
        total: Any = 0.0
        for loss, surrogate in self.particles(model, guide, *args, **kwargs):
            if getattr(surrogate, "requires_grad", False):
                surrogate.backward(retain_graph=self.retain_graph)
            total = total + loss
        return _read(total)


def _refuse_mixed(role: str, trace: Any, nesting: int, particles: int) -> None:
    for site in sample_nodes(trace):
        shape = tuple(site["log_prob"].shape)
        if len(shape) > nesting:
            raise ProgramError(
                f"site {site['name']!r} of the {role} has a log_prob of shape {shape} where {particles} particles run "
                f"together in dimension {-nesting}: some operation has mixed the particles, such as an index or a sum "
                "that counts dimensions from the left. Write it for dimensions in front of all plates (Vindex from "
                "pyro.ops.indexing, negative dims), or leave out vectorize_particles"
            )


def detached(value: Any) -> Any:
    """A tensor without its graph; a number as it is."""
    return value.detach() if isinstance(value, Tensor) else value


def _read(loss: Any) -> float:
    if is_validation_enabled() and isinstance(loss, Tensor):
        warn_if_nan(loss.detach(), "loss")
    return float(loss)
