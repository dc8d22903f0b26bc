"""Steps of `ingle.SVI`, on Pyro's own store, optimiser and random state: when to take one by a graph, and by which."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, ClassVar

import pyro
import pyro.infer
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
from ingle.errors import IngleError, IngleWarning, warn
from ingle.objectives import Estimator, exactly_ours
from ingle.program import Place, Places, buffers_of, find_modules
from ingle.runtime import validation

__all__ = ["Stepper"]

_WORTH = 20_000  # statements that ran eagerly before a graph is made
_LOOK = 50  # steps after which the statements are counted
_AGAIN = 3  # eager steps with arguments of one kind before there is a graph for them too
_GRAPHS = 8  # one for each shape of the arguments, and for each value of what cannot be an input
_WAITS = 4  # eager steps in a row that were to make a graph possible
_NOISE = 2**18  # numbers in the matrices of noise


class Stepper:
    """Takes steps by graphs, one step a call.

    Noise is drawn from torch's global generator, in the order in which the program draws it.

    Args:
        svi: whose model, guide, optimiser and loss it takes, as they are at each step.
        loss: an ELBO, whose attributes are looked at before each step.
        eager: takes a step as Pyro would.
        at_once: compile at the third step, without counting.
    """

    using: ClassVar[Using] = "inductor"

    def __init__(self, svi: pyro.infer.SVI, loss: Any, eager: Callable[..., Any], *, at_once: bool) -> None:
        self._svi: Any = svi
        self._loss, self._eager, self._at_once = loss, eager, at_once
        self._memory = [loss.memory] if isinstance(loss, Estimator) else []
        self._loss_and_grads = self._svi.loss_and_grads
        self._parts: Any = None
        self._taken = 0
        self._compile_at: int | None = 2 if at_once else None
        self._seen: dict[Any, int] = {}
        self._made = self._waits = 0
        self._full = False
        self._last: Arguments | None = None
        self._current: Stepped | None = None
        self._graphs: list[Stepped] = []
        self._numbers: set[int] = set()  # inputs in the place of arguments
        self._places: dict[Place, None] = {}  # inputs in the place of numbers elsewhere
        self._tensors: dict[Place, None] = {}  # places whose tensors are inputs
        self._watched: dict[int, Tensor] = {}  # tensors that change in place and are inputs
        self._never: set[Any] = set()
        self._observer: Observer | None = None
        self._others: list[object] = []  # that it watches beside model and guide
        self._told = ""

    def step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Take one step and return its loss as a number.

        Raises:
            Untraceable: it has to run eagerly, as all after it; nothing has been done yet.
        """
        if not internals.undisturbed():
            return self._eager(*args, **kwargs)
        svi, last, stepped = self._svi, self._last, self._current
        arguments = self._last = Arguments(args, kwargs, last)
        numerics = torch.get_default_dtype(), internals.default_device()
        parts = svi.model, svi.guide, svi.optim, svi.loss_and_grads, *numerics, vars(self._loss)
        if stepped is None or parts != self._parts or stepped.fresh(arguments) is not None:
            stepped = self._current = self._other(arguments, last, parts)
        if stepped is None or not stepped.gradients_clean():
            return self._eager(*args, **kwargs)
        return stepped.run(arguments)

    def _other(self, arguments: Arguments, last: Arguments | None, parts: tuple[Any, ...]) -> Stepped | None:
        """The graph for a step that the last one's does not fit; None where the step is Pyro's."""
        self._taken += 1
        if parts != self._parts:
            *same, attributes = parts
            self._parts = (*same, dict(attributes))
            self._forget()
        if self._svi.loss_and_grads != self._loss_and_grads:
            return None
        self._follow(arguments, last)
        for stepped in self._graphs:
            told = stepped.fresh(arguments)
            if told is None:
                return stepped
            self._told = arguments.told(last) or told
        if not self._due(arguments) or self._full:
            return None
        if self._made >= _GRAPHS:
            if self._at_once:
                raise Untraceable(f"it would take more than {_GRAPHS} graphs: {self._told}")
            self._full = True
            warn(
                f"this step of SVI, and others after it, are Pyro's own, which is slower: it would take more than "
                f"{_GRAPHS} graphs: {self._told}",
                IngleWarning,
            )
            return None
        return self._made_for(arguments)

    def _forget(self) -> None:
        """Nothing that is known holds any more: another program, optimiser or loss is there."""
        self._observer, self._current = None, None
        self._graphs.clear()
        self._places.clear()
        self._tensors.clear()
        self._watched.clear()

    def _due(self, arguments: Arguments) -> bool:
        if self._compile_at is None:
            if self._taken <= _LOOK:
                return False
            try:
                statements = len(self._observe(arguments, 1)[0].statements)
            except _NotYet:
                return False
            self._compile_at = max(_LOOK, _WORTH // max(1, statements))
        if self._taken <= self._compile_at:
            return False
        if not self._graphs or self._at_once:
            return True
        key = arguments.key(self._numbers)
        self._seen[key] = self._seen.get(key, 0) + 1
        if len(self._seen) > 1_000:
            self._seen.clear()
        return self._seen.get(key, 0) > _AGAIN

    def _follow(self, arguments: Arguments, last: Arguments | None) -> None:
        """What changed and can be an input becomes one; graphs with it as a constant are dropped."""
        numbers = {place for place in arguments.changed(last) if place not in self._never} - self._numbers
        watched: dict[int, Tensor] = {}
        places: dict[Place, None] = {}
        tensors: dict[Place, None] = {}
        observer = self._observer
        if observer is not None and self._graphs:
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
            for stepped in self._graphs:
                watched |= {id(tensor): tensor for tensor in stepped.moved()}
        places = {place: None for place in places if place not in self._places}
        tensors = {place: None for place in tensors if place not in self._tensors}
        watched = {key: tensor for key, tensor in watched.items() if key not in self._watched}
        if numbers or places or tensors or watched:
            self._numbers |= numbers
            self._places |= places
            self._tensors |= tensors
            self._watched |= watched
            self._graphs.clear()
            if watched:
                self._observer = None  # the next one leaves them out

    def _made_for(self, arguments: Arguments) -> Stepped | None:
        """A graph for these arguments, with numbers as inputs where that can be; None where it is too early."""
        refused = arguments.refused()
        if refused is not None:
            raise Untraceable(refused)
        while True:
            try:
                stepped = self._compile(arguments)
                self._waits = 0
                break
            except _NotYet as reason:
                self._waits += 1
                if self._waits > _WAITS:
                    raise Untraceable(str(reason)) from reason
                return None
            except Untraceable:
                if not (self._numbers or self._places):
                    raise
                # What is computed from them may need them on the host: as constants they may do.
                self._never |= self._numbers | set(self._places)
                self._numbers.clear()
                self._places.clear()
        self._made += 1
        self._graphs.append(stepped)
        return stepped

    def _compile(self, arguments: Arguments) -> Stepped:
        using = self.using
        if using == "inductor" and internals.compiler() is None:
            told = internals.NO_COMPILER
            if self._at_once:
                raise Untraceable(told)
            if not self._made:
                warn(told, IngleWarning)
            using = "graph"
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
        numbers = {place: torch.tensor(float(arguments.leaves[place]), **number) for place in self._numbers}
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
        key = arguments.key(frozenset(self._numbers))
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
                raise _NotYet("it makes new parameters from step to step")
            parameters.update(found)

        with self._trial(observer.places, self._buffers(arguments)):
            try:
                with torch.no_grad():
                    guide: Any = poutine.trace(self._svi.guide).get_trace(*args, **kwargs)
                told = objective.untraceable(guide)
                if told is not None:
                    raise Untraceable(told)
                seen = observer.observe(run, times)
            except (Untraceable, _NotYet, IngleError):
                raise
            except Exception as error:  # Pyro's own step will say it better, to whom it concerns
                raise _NotYet(f"{type(error).__name__} was raised: {error}") from error
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


class _NotYet(Exception):
    """A graph cannot be made before another eager step, and why."""


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
