"""Continuous latents as one vector of real numbers for each element, and the densities of such points."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ingle.evidence.elements import Elements
from ingle.evidence.proposal import Proposal
from ingle.evidence.sampler import Sampler
from ingle.program import to_support, together

__all__ = ["Space"]


class Space:
    """Draws of all latents as points of shape (n, *elements, D), unconstrained.

    Args:
        sampler: of the program.
        latents: names of those that a point is made of.
        values: `n` draws of them, which show the shapes.
        n: how many.

    Attributes:
        size: D, how many numbers an element has.
    """

    def __init__(self, sampler: Sampler, latents: Sequence[str], values: Mapping[str, Tensor], n: int) -> None:
        self._sampler = sampler
        self._names = tuple(latents)
        self._axes: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self.size = self.points(values, n).shape[-1]

    def points(self, values: Mapping[str, Tensor], n: int) -> Tensor:
        """Where draws of the latents lie, in the dtype of the program."""
        sampler = self._sampler

        def run(one: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with _Freed(one, sampler.elements) as freed:
                sampler.joint({})
            self._axes = freed.axes
            return freed.points

        with sampler.program.explained("model"):
            found = sampler.each("points", run, n, given=values, chunk=n)
        self._shapes = {name: tuple(found[name].shape[1:]) for name in self._names}
        return torch.cat([self._flat(name, found[name]) for name in self._names], -1)

    def densities(self, points: Tensor, start: Proposal | None) -> tuple[Tensor, Tensor]:
        """Log densities of points, of where annealing starts and of the joint, each (n, *elements), float64.

        Args:
            points: shape (n, *elements, D).
            start: a proposal; None is the prior.
        """
        sampler = self._sampler
        with sampler.program.explained("model"):
            found = sampler.each(
                "densities", self._of_one(start), len(points), given=self._named(points), chunk=len(points)
            )
        return found["start"], found["joint"]

    def traced(self, points: Tensor, start: Proposal | None) -> tuple[Tensor, Tensor]:
        """The same by `together` alone, which raises where it cannot, for a graph to be recorded from."""
        found = together(self._of_one(start), self._named(points))
        return found["start"], found["joint"]

    def joint(self, point: Tensor, *, volume: bool = True) -> Tensor:
        """The log joint at one point of shape (*elements, D), with gradients, of shape (*elements), float64.

        Args:
            point: unconstrained.
            volume: whether the density is that of the unconstrained latents, or of the latents as the model has them.
        """
        with _Held(self._one(point), self._sampler.elements) as held:
            log_p: Tensor = self._sampler.joint({})["log_p"]
        return log_p + held.volume if volume else log_p

    def values(self, point: Tensor) -> dict[str, Tensor]:
        """The latents of one point, as the model has them."""
        with _Held(self._one(point), self._sampler.elements) as held:
            self._sampler.joint({})
        return held.values

    def _one(self, point: Tensor) -> dict[str, Tensor]:
        return {name: value[0] for name, value in self._named(point.unsqueeze(0)).items()}

    def _of_one(self, start: Proposal | None) -> Callable[[Mapping[str, Tensor]], dict[str, Tensor]]:
        """From the unconstrained latents of one point to its densities."""
        sampler = self._sampler

        def run(one: Mapping[str, Tensor]) -> dict[str, Tensor]:
            with _Held(one, sampler.elements) as held:
                found = sampler.joint({})
                prior = found["prior"]
                if start is None and sampler.program.enumerated:  # parts of it are summed out with the data's terms
                    with _Unobserved():
                        prior = sampler.joint({})["log_p"]
            first = prior if start is None else start.density(held.values)
            return {"start": first + held.volume, "joint": found["log_p"] + held.volume}

        return run

    def _flat(self, name: str, value: Tensor) -> Tensor:
        """(n, *shape) as (n, *elements, numbers)."""
        elements = self._sampler.elements
        if elements.plate is None:
            return value.reshape(len(value), -1)
        return value.movedim(self._axes[name], 1).reshape(len(value), elements.size, -1)

    def _named(self, points: Tensor) -> dict[str, Tensor]:
        """Points as unconstrained values by name, shape (n, *shape)."""
        elements, found, start = self._sampler.elements, {}, 0
        for name in self._names:
            shape = list(self._shapes[name])
            numbers = torch.Size(shape).numel() // elements.size if elements.plate else torch.Size(shape).numel()
            part = points[..., start : start + numbers]
            start += numbers
            if elements.plate is None:
                found[name] = part.reshape(len(points), *shape)
            else:
                del shape[self._axes[name]]
                found[name] = part.reshape(len(points), elements.size, *shape).movedim(1, self._axes[name])
        return found


class _Freed(Messenger):
    """Gives latents their values, and notes where those lie unconstrained, and in which axis of them the elements."""

    def __init__(self, values: Mapping[str, Tensor], elements: Elements) -> None:
        super().__init__()
        self._values = values
        self._elements = elements
        self.points: dict[str, Tensor] = {}
        self.axes: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self._values and not msg["is_observed"]:
            transform = to_support(msg["fn"])
            msg["value"], msg["done"] = self._values[name], True
            self.points[name] = transform.inv(msg["value"])
            for frame in msg["cond_indep_stack"]:  # a plate may have another dimension around another latent
                if frame.name == self._elements.plate:
                    self.axes[name] = frame.dim - transform.domain.event_dim


class _Unobserved(Messenger):
    """Hides what is observed, which leaves the density of the latents alone."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"]:
            msg["mask"] = False


class _Held(Messenger):
    """Gives latents the values of unconstrained points, whatever other latents make of their support."""

    def __init__(self, points: Mapping[str, Tensor], elements: Elements) -> None:
        super().__init__()
        self._points = points
        self._elements = elements
        self.values: dict[str, Tensor] = {}
        self.volume = torch.zeros(elements.shape, dtype=torch.float64)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name not in self._points or msg["is_observed"]:
            return
        transform, point = to_support(msg["fn"]), self._points[name]
        msg["value"], msg["done"] = transform(point), True
        first = name not in self.values  # where latents are summed out the model may run more than once
        self.values[name] = msg["value"]
        if not first:
            return
        volume = transform.log_abs_det_jacobian(point, msg["value"])
        rank = msg["fn"].event_dim - (msg["value"].dim() - volume.dim())
        if rank > 0:
            volume = volume.flatten(-rank).sum(-1)
        self.volume = self.volume + self._elements.summed(volume, msg["cond_indep_stack"])
