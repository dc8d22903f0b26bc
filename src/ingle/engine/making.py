"""Graphs for steps of `ingle.SVI`, made from runs of its program without effect, and what in them is an input."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from ingle.engine import internals
from ingle.engine.arguments import Arguments, layout
from ingle.engine.graph import Source, StepGraph, Using
from ingle.engine.noise import GivenDraws, Noise
from ingle.engine.observer import Observation, Observer
from ingle.engine.pyro_updates import PyroGradients, PyroUpdates, Unsuited
from ingle.engine.recording import Untraceable
from ingle.engine.stepped import Stepped
from ingle.engine.undo import undone
from ingle.errors import IngleError
from ingle.objectives import Estimator, exactly_ours
from ingle.program import Place, Places, buffers_of, find_modules
from ingle.runtime import validation

__all__ = ["Maker", "NotYet"]

_NOISE = 2**18  # numbers in the matrices of noise


class NotYet(Exception):
    """A graph cannot be made before another eager step, and why."""


class Maker:
    """Makes graphs of one program, and remembers what changes between its steps, which is an input of those to come.

    Args:
        svi: whose model, guide and optimiser it takes, as they are each time.
        loss: an ELBO.

    Attributes:
        numbers: places among the arguments whose numbers are inputs.
    """

    def __init__(self, svi: Any, loss: Any) -> None:
        self._svi, self._loss = svi, loss
        self._memory = [loss.memory] if isinstance(loss, Estimator) else []
        self.numbers: set[int] = set()
        self._places: dict[Place, None] = {}  # inputs in the place of numbers elsewhere
        self._tensors: dict[Place, None] = {}  # places whose tensors are inputs
        self._watched: dict[int, Tensor] = {}  # tensors that change in place and are inputs
        self._never: set[Any] = set()
        self._observer: Observer | None = None
        self._others: list[object] = []  # that it watches beside model and guide

    def forget(self) -> None:
        """Another program, optimiser or loss is there."""
        self._observer = None
        self._places.clear()
        self._tensors.clear()
        self._watched.clear()

    def statements(self, arguments: Arguments) -> int:
        """How many sites and parameters one run has; raises `NotYet` where that cannot be told."""
        return len(self._observe(arguments, 1)[0].statements)

    def follow(self, arguments: Arguments, last: Arguments | None, graphs: Sequence[Stepped]) -> bool:
        """What changed and can be an input becomes one; whether anything did, which `graphs` have as a constant."""
        numbers = {place for place in arguments.changed(last) if place not in self._never} - self.numbers
        watched: dict[int, Tensor] = {}
        places: dict[Place, None] = {}
        tensors: dict[Place, None] = {}
        observer = self._observer
        if observer is not None and graphs:
            liftable = set(observer.numbers())
            for change in observer.changed():
                thing = change.place.holder
                if change.kind == "in place" and isinstance(thing, Tensor) and not thing.requires_grad:
                    watched[id(thing)] = thing
                if change.place in self._never or change.kind != "value":
                    continue
                if change.place in liftable and not isinstance(change.before, Tensor):
                    places[change.place] = None
                elif _alike(change.before, change.after) and change.place.settable:
                    tensors[change.place] = None
            for stepped in graphs:
                watched |= {id(tensor): tensor for tensor in stepped.moved()}
        places = {place: None for place in places if place not in self._places}
        tensors = {place: None for place in tensors if place not in self._tensors}
        watched = {key: tensor for key, tensor in watched.items() if key not in self._watched}
        self.numbers |= numbers
        self._places |= places
        self._tensors |= tensors
        self._watched |= watched
        if watched:
            self._observer = None  # the next one leaves them out
        return bool(numbers or places or tensors or watched)

    def settle(self) -> bool:
        """Numbers that are inputs become constants, one graph for each value; whether there are any."""
        numbers = self.numbers | set(self._places)
        self._never |= numbers
        self.numbers.clear()
        self._places.clear()
        return bool(numbers)

    def make(self, arguments: Arguments, using: Using) -> Stepped:
        """A graph for these arguments.

        Raises:
            NotYet: there may be one after another eager step.
            Untraceable: there is none.
        """
        seen, parameters = self._observe(arguments, 2)
        leaves = list({id(leaf): leaf for leaf in parameters.values()}.values())
        if not leaves:
            raise Untraceable("it has no parameters")
        optim = self._svi.optim
        updates: PyroUpdates | PyroGradients
        try:
            updates = PyroUpdates(optim, leaves)
        except Unsuited:
            updates = PyroGradients(optim, leaves)
        buffers = self._buffers(arguments)
        dtype = next((leaf.dtype for leaf in leaves if leaf.dtype == torch.float64), torch.get_default_dtype())
        device = leaves[0].device
        number: dict[str, Any] = {"dtype": dtype, "device": device}
        numbers = {place: torch.tensor(float(arguments.leaves[place]), **number) for place in self.numbers}
        places = {place: torch.tensor(float(place.value()), **number) for place in self._places}
        # Other objects on the same memory: what the program also reads from elsewhere is no input for that.
        handed = {place: arguments.leaves[place].detach() for place in arguments.tensors}
        tensors = {place: place.value().detach() for place in self._tensors}
        alias = {id(arguments.leaves[place]): tensor for place, tensor in handed.items()}
        twins = {place: alias[id(leaf)] for place, leaf in enumerate(arguments.leaves) if isinstance(leaf, Tensor)}
        args, kwargs = arguments.put({**twins, **numbers})
        lifted = [*numbers.values(), *places.values()]
        objective = exactly_ours(self._loss)
        model, guide = self._svi.model, self._svi.guide

        def particles(rows: Mapping[str, Tensor]) -> Iterator[tuple[Any, Any]]:
            yield from objective.particles(model, guide, *args, **kwargs)

        normals, uniforms = seen.drawn("normal"), seen.drawn("uniform")
        source = Source(
            particles=particles,
            update=updates,
            buffers=buffers,
            data={
                **{f"argument {place}": tensor for place, tensor in handed.items()},
                **{place.name: tensor for place, tensor in tensors.items()},
                **{f"watched {key}": tensor for key, tensor in self._watched.items()},
            },
            rows={},
            normals=normals,
            uniforms=uniforms,
            capacity=max(1, min(256, _NOISE // max(1, normals + uniforms))),
            foldable=False,
            dtype=dtype,
            device=device,
            lifted=lifted,
        )
        observer = self._watching(arguments)
        if lifted:
            whole = arguments.put(twins)
            with self._trial(observer.places, buffers), torch.no_grad():
                given = torch.randn(normals, **number), torch.rand(uniforms, **number)
                value = _value(objective.particles(model, guide, *whole[0], **whole[1]), *given)
            with self._trial(observer.places, buffers), observer.lifted(places), torch.no_grad():
                try:
                    other = _value(objective.particles(model, guide, *args, **kwargs), *given)
                except Exception as error:  # a tensor will not do where it wants a number
                    raise Untraceable(f"{type(error).__name__} was raised: {error}") from error
            if not torch.allclose(value, other, rtol=1e-3, atol=1e-5, equal_nan=True):
                raise Untraceable("it does something else with a number than with a tensor")
        read = Untraceable("a number that changes is looked up in a set or a dict")
        with (
            self._trial(observer.places, [*leaves, *updates.state, *buffers]),
            _put(tensors),
            observer.lifted(places),
            internals.unhashable(lifted, read),
        ):
            try:
                graph = StepGraph(source, using)
            except (Untraceable, IngleError):
                raise
            except Exception as error:  # whatever torch's compiler says, the program still runs without it
                raise Untraceable(f"torch could not compile it: {type(error).__name__}: {str(error)[:200]}") from error
            store: Any = pyro.get_param_store()
            if any(name in store and store._params[name] is not leaf for name, leaf in parameters.items()):
                raise Untraceable("it makes a new parameter at each run")
        updates.begin()
        snapshot = observer.mark(without=(*self._places, *self._tensors))
        key = arguments.key(frozenset(self.numbers))
        watched = list(self._watched.values())
        return Stepped(
            graph, updates, seen, snapshot, key, arguments, numbers, places, list(tensors), watched, parameters
        )

    def _watching(self, arguments: Arguments) -> Observer:
        """The observer of model, guide, and the objects that they are handed."""
        others = arguments.others()
        if self._observer is None or list(map(id, self._others)) != list(map(id, others)):
            ignored = [*self._leaves(), *self._buffers(arguments), *self._watched.values()]
            self._observer = Observer((self._svi.model, self._svi.guide, *others), lambda: ignored)
            self._others = others
        return self._observer

    def _observe(self, arguments: Arguments, times: int) -> tuple[Observation, dict[str, Tensor]]:
        """Runs without effect: what they have in common, and the unconstrained parameters by name."""
        observer = self._watching(arguments)
        for unseen in observer.places.unseen:
            if "an iterator" in unseen.why:
                raise Untraceable(str(unseen))
        args, kwargs = arguments.whole
        objective = exactly_ours(self._loss)
        parameters: dict[str, Tensor] = {}

        def run() -> None:
            with poutine.trace(param_only=True) as capture:
                for _ in objective.particles(self._svi.model, self._svi.guide, *args, **kwargs):
                    pass
            found = {name: _unconstrained(site) for name, site in capture.trace.nodes.items()}
            if any(leaf not in self._svi.optim.optim_objs for leaf in found.values()):
                raise NotYet("it makes new parameters from step to step")
            parameters.update(found)

        with self._trial(observer.places, self._buffers(arguments)):
            try:
                with torch.no_grad():
                    guide: Any = poutine.trace(self._svi.guide).get_trace(*args, **kwargs)
                told = objective.untraceable(guide)
                if told is not None:
                    raise Untraceable(told)
                seen = observer.observe(run, times)
            except (Untraceable, NotYet, IngleError):
                raise
            except Exception as error:  # Pyro's own step will say it better, to whom it concerns
                raise NotYet(f"{type(error).__name__} was raised: {error}") from error
        return seen, parameters

    @contextmanager
    def _trial(self, places: Places, tensors: list[Tensor]) -> Iterator[None]:
        """What runs inside has no effect, and says nothing: Pyro's own steps have said it."""
        with ExitStack() as stack:
            stack.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
            stack.enter_context(undone(places, tensors))
            stack.enter_context(validation(False))
            yield

    def _leaves(self) -> list[Tensor]:
        """The parameters that the optimiser has met."""
        return [leaf for leaf in self._svi.optim.optim_objs if isinstance(leaf, Tensor)]

    def _buffers(self, arguments: Arguments) -> list[Tensor]:
        return buffers_of([*find_modules(self._svi.model, self._svi.guide, *arguments.others()), *self._memory])


def _alike(before: object, after: object) -> bool:
    """Whether one tensor can be an input in the place of another."""
    return (
        isinstance(before, Tensor)
        and isinstance(after, Tensor)
        and before.layout == after.layout == torch.strided
        and layout(before) == layout(after)
        and not after.requires_grad
    )


def _value(particles: Iterable[tuple[Any, Any]], normals: Tensor, uniforms: Tensor) -> Tensor:
    """Loss and surrogate with given noise, float64, shape (2,)."""
    with Noise(GivenDraws(normals, uniforms)):
        parts = [torch.stack([torch.as_tensor(part, dtype=torch.float64) for part in both]) for both in particles]
    return torch.stack(parts).sum(0)


def _unconstrained(site: Any) -> Tensor:
    leaf: Tensor = site["value"].unconstrained()
    return leaf


@contextmanager
def _put(tensors: Mapping[Place, Tensor]) -> Iterator[None]:
    """Tensors are in their places inside, and what was there before outside."""
    before = [(place, place.value()) for place in tensors]
    try:
        for place, tensor in tensors.items():
            place.put(tensor)
        yield
    finally:
        for place, value in before:
            place.put(value)
