"""Steps of `ingle.SVI`, on Pyro's own store, optimiser and random state: when to take one by a graph, and by which."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.infer
import torch

from ingle.engine import internals
from ingle.engine.arguments import Arguments
from ingle.engine.graph import Using
from ingle.engine.making import Maker, NotYet
from ingle.engine.recording import Untraceable
from ingle.engine.stepped import Stepped
from ingle.errors import IngleWarning, warn

__all__ = ["Stepper"]

_WORTH = 20_000  # statements that ran eagerly before a graph is made
_LOOK = 50  # steps after which the statements are counted
_AGAIN = 3  # eager steps with arguments of one kind before there is a graph for them too
_GRAPHS = 8  # one for each shape of the arguments, and for each value of what cannot be an input
_WAITS = 4  # eager steps in a row that were to make a graph possible


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
        self._maker = Maker(svi, loss)
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
        if self._maker.follow(arguments, last, self._graphs):
            self._graphs.clear()
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
        self._current = None
        self._graphs.clear()
        self._maker.forget()

    def _due(self, arguments: Arguments) -> bool:
        if self._compile_at is None:
            if self._taken <= _LOOK:
                return False
            try:
                statements = self._maker.statements(arguments)
            except NotYet:
                return False
            self._compile_at = max(_LOOK, _WORTH // max(1, statements))
        if self._taken <= self._compile_at:
            return False
        if not self._graphs or self._at_once:
            return True
        key = arguments.key(self._maker.numbers)
        self._seen[key] = self._seen.get(key, 0) + 1
        if len(self._seen) > 1_000:
            self._seen.clear()
        return self._seen.get(key, 0) > _AGAIN

    def _made_for(self, arguments: Arguments) -> Stepped | None:
        """A graph for these arguments, with numbers as inputs where that can be; None where it is too early."""
        refused = arguments.refused()
        if refused is not None:
            raise Untraceable(refused)
        while True:
            try:
                stepped = self._maker.make(arguments, self._engine())
                self._waits = 0
                break
            except NotYet as reason:
                self._waits += 1
                if self._waits > _WAITS:
                    raise Untraceable(str(reason)) from reason
                return None
            except Untraceable:
                # What is computed from numbers may need them on the host: as constants they may do.
                if not self._maker.settle():
                    raise
        self._made += 1
        self._graphs.append(stepped)
        return stepped

    def _engine(self) -> Using:
        """What is to run a graph; a warning where that is not what it should be."""
        if self.using != "inductor" or internals.compiler() is not None:
            return self.using
        if self._at_once:
            raise Untraceable(internals.NO_COMPILER)
        if not self._made:
            warn(internals.NO_COMPILER, IngleWarning)
        return "graph"
