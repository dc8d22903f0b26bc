"""Every place that model and guide can read, found by following what their code names and what they hold.

Nothing of the user's runs: attributes are read from `vars` and slots, code from its instructions. An attribute counts
only if some code that is reached names it, so that a list of losses which the script keeps on the model's instance is
no business of the program; where code reaches attributes by computed names (`getattr`), all of them count.

Libraries are not followed. Of an instance of a library's class count the attributes that its constructor takes, as
`Dropout.p`, `ScaleMessenger.scale`, `AutoNormal.init_loc_fn`: what else such an instance holds is its own working
state. Of a library's function count the functions and containers that it closes over, as those that a decorator wraps.
"""

from __future__ import annotations

import array
import contextvars
import functools
import operator
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro.poutine.messenger import Messenger

from ingle.program.libraries import (
    BAGS,
    CREATION,
    attributes,
    codes,
    implicit,
    of_a_library,
    settings,
    working_state,
)
from ingle.program.mentions import Line, Mentions, read_mentions
from ingle.program.modules import is_library
from ingle.program.naming import Path, home_of, root_of, title_of
from ingle.program.place import PLAIN, Kind, Place, is_plain

__all__ = ["LONGEST", "Holder", "Reach", "Unseen"]

LONGEST = 256  # containers with more elements are watched by identity and length alone
MOST = 10_000  # places; once there are as many, every container is as if it were too long

_CONTAINERS = (list, tuple, dict, set, frozenset, deque, types.MappingProxyType)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_RANDOM = (random.Random, np.random.Generator, np.random.RandomState, np.random.BitGenerator, torch.Generator)
_BY_NAME = (getattr, vars, operator.attrgetter, operator.methodcaller)
_CODE = (property, functools.cached_property, staticmethod, classmethod)


@dataclass(frozen=True)
class Unseen:
    """Something that a program holds and that cannot be watched, or not in full.

    Attributes:
        name: as that of a `Place`.
        why: in words.
        place: the thing itself.
    """

    name: str
    why: str
    place: Place

    def __str__(self) -> str:
        return f"{self.name}: {self.why}"


@dataclass(eq=False)
class Holder:
    """An instance, a class, a function or a Python module, with those of its attributes that count.

    Attributes:
        place: itself.
        held: its `vars`, nothing for an instance that has slots alone.
        path: how it was reached.
        kind: of the places that its attributes are.
        slots: the descriptors of its slots.
        always, never: names that count, and that do not, whatever code names.
        closed: no other name than those of `always` counts.
        ours: where code reaches attributes by computed names, all of them count.
        own: ids of the code of its methods.
        taken: names of the attributes that are places.
        wanted: names that would count, were there such an attribute; None for every name.
    """

    place: Place
    held: Mapping[str, Any]
    path: Path
    kind: Kind = "item"
    slots: Mapping[str, Any] = field(default_factory=dict)
    always: frozenset[str] = frozenset()
    never: frozenset[str] = frozenset()
    closed: bool = False
    ours: bool = True
    own: frozenset[int] = frozenset()
    taken: set[str] = field(default_factory=set)
    wanted: frozenset[str] | None = frozenset()

    def appeared(self) -> list[Place]:
        """Attributes that count and that came after the walk."""
        wanted = self.held.keys() if self.wanted is None else self.wanted & self.held.keys()
        return [self.at(name) for name in sorted(wanted - self.taken - self.never)]

    def at(self, name: str, line: Line | None = None) -> Place:
        """The place of one of its attributes."""
        path = self.path.step(f".{name}", line)
        if name in self.slots and name not in self.held:
            return Place("slot", self.place.holder, self.slots[name], str(path), path.line)
        holder = self.place.holder if self.kind == "class" else self.held
        return Place(self.kind, holder, name, str(path), path.line)


class Reach:
    """One walk from model and guide. What it found lies in its attributes.

    Attributes:
        places: what holds a value, in the order of the walk.
        holders: whose attributes were looked through.
        containers: whose length matters.
        functions: whose code was read.
        tensors, arrays, generators: each under the first name that it was found by; generators of random numbers.
        unseen: what cannot be watched.
        randomness: lines that name a generator of random numbers, by its name.
    """

    def __init__(self, programs: Iterable[object]) -> None:
        self.places: dict[Place, Path] = {}
        self.holders: list[Holder] = []
        self.containers: list[Place] = []
        self.functions: list[Place] = []
        self.tensors: list[Place] = []
        self.arrays: list[Place] = []
        self.generators: list[Place] = []
        self.unseen: list[Unseen] = []
        self.randomness: dict[str, Line] = {}
        self._names: dict[str, list[tuple[int, Line]]] = {"__call__": [], "forward": []}
        self._reflective = False
        self._seen: dict[int, object] = {}  # the things too, so that no other takes their ids
        self._classes: dict[int, type] = {}
        self._created: dict[int, type] = {}
        programs = tuple(programs)
        homes = {home_of(program) for program in programs}
        self._ours = {home.partition(".")[0] for home in homes if not is_library(home)} - {"ingle"}
        self._waiting: deque[tuple[Any, Path]] = deque((program, root_of(program)) for program in programs)
        while self._waiting:
            while self._waiting:
                self._visit(*self._waiting.popleft())
            for holder in list(self.holders):  # code that came since may name more of their attributes
                self._look_through(holder)
        for holder in self.holders:
            holder.wanted = self._wanted(holder)

    def _visit(self, thing: Any, path: Path) -> None:
        kind = type(thing)
        if kind in PLAIN or id(thing) in self._seen:
            return
        self._seen[id(thing)] = thing
        place = Place("thing", thing, None, str(path), path.line)
        if issubclass(kind, torch.Tensor):
            self.tensors.append(place)
        elif issubclass(kind, (np.ndarray, array.array, bytearray)):
            self.arrays.append(place)
        elif issubclass(kind, _RANDOM):
            self.generators.append(place)
        elif kind is types.FunctionType:
            self._function(thing, path, place)
        elif kind is types.MethodType:
            self._waiting += [(thing.__self__, root_of(thing.__self__)), (thing.__func__, path)]
        elif kind in _BY_NAME or any(thing is function for function in _BY_NAME):
            self._reflective = True
        elif kind is types.BuiltinMethodType:  # such as the append of a list, held by name
            self._waiting.append((thing.__self__, path.step(".__self__")))
        elif issubclass(kind, functools.partial):
            self._partial(thing, path)
        elif issubclass(kind, type):
            self._class(thing, created=True)
        elif issubclass(kind, types.ModuleType):
            if not is_library(thing.__name__):  # of an installed package too, whose functions are not followed
                always = frozenset({"__getattr__"})  # what is asked for names that are not there
                never = frozenset(name for name in vars(thing) if name.startswith("__")) - always
                ours = not self._foreign(thing.__name__)
                self._hold(Holder(place, vars(thing), Path("", thing.__name__), always=always, never=never, ours=ours))
        elif issubclass(kind, _CODE):
            self._waiting += [(getattr(thing, name, None), path) for name in ("fget", "fset", "func", "__func__")]
        elif issubclass(kind, functools._lru_cache_wrapper):
            self._waiting.append((thing.__wrapped__, path))
        elif issubclass(kind, contextvars.ContextVar):
            self._put("context", thing, None, path.step(".get()"))
        elif issubclass(kind, weakref.ref):
            self._waiting.append((thing(), path.step("()")))
        elif kind in (weakref.ProxyType, weakref.CallableProxyType, memoryview):
            self.unseen.append(Unseen(str(path), f"a {kind.__name__}, through which nothing is seen", place))
        elif issubclass(kind, _CONTAINERS):
            self._container(thing, path, place)
            self._instance(thing, path, place)
        else:
            self._instance(thing, path, place)

    def _foreign(self, home: object) -> bool:
        """Whether a module is a library's. The package of the model or the guide is not, if it is installed too."""
        return of_a_library(home) and not (isinstance(home, str) and home.partition(".")[0] in self._ours)

    def _put(self, kind: Kind, holder: Any, key: Any, path: Path) -> None:
        """A place was reached; what it holds is followed."""
        place = Place(kind, holder, key, str(path), path.line)
        value = place.value()
        if not (issubclass(type(value), types.ModuleType) and is_library(value.__name__)):
            self.places.setdefault(place, path)
            self._waiting.append((value, path))

    def _function(self, function: types.FunctionType, path: Path, place: Place) -> None:
        code, owner, names = function.__code__, title_of(function), function.__globals__
        cells = dict(zip(code.co_freevars, function.__closure__ or (), strict=True))
        home = names.get("__name__")
        # A doctest has the name of the module that it is run for, and globals of its own.
        if getattr(sys.modules.get(home or ""), "__dict__", None) is names and self._foreign(home):
            for name, cell in cells.items():
                self._waiting.append((Place("cell", cell, None, "").value(), Path("closure", name, owner)))
            return
        here = (code.co_filename, code.co_firstlineno)
        mentions = read_mentions(code)
        self.functions.append(Place("thing", function, None, owner, here))
        self._note(code, mentions, created=function.__name__ in CREATION)
        loaded = dict.fromkeys(names, here) if mentions.all_globals else mentions.loaded
        for name, line in {**loaded, **mentions.written}.items():
            if name in mentions.written or (name in names and not name.startswith("__")):
                self._put("item", names, name, Path("global", name, owner, line))
        for name, cell in cells.items():
            if name == "__class__":  # for super(): no sign that an instance is made
                self._class(Place("cell", cell, None, "").value(), created=False)
            else:
                self._put("cell", cell, None, Path("closure", name, owner, mentions.free.get(name)))
        for module in _imported(mentions, names.get("__package__")):
            self._waiting.append((module, path))
        self._defaults(function, owner, here)
        if vars(function):
            self._hold(Holder(place, vars(function), Path("", owner), never=frozenset({"__wrapped__"})))
            self._waiting.append((vars(function).get("__wrapped__"), path))

    def _defaults(self, function: types.FunctionType, owner: str, here: Line) -> None:
        code, defaults = function.__code__, function.__defaults__ or ()
        names = code.co_varnames[code.co_argcount - len(defaults) : code.co_argcount]
        for index, name in enumerate(names):
            self._put("default", function, index, Path("default", name, owner, here))
        for name in function.__kwdefaults__ or {}:
            self._put("item", function.__kwdefaults__, name, Path("default", name, owner, here))

    def _note(self, code: types.CodeType, mentions: Mentions, *, created: bool) -> None:
        """Attribute names of a function. Those that a constructor sets count only if something else reads them."""
        for name, line in {
            **mentions.imports,
            **({} if created else mentions.assigned),
            **mentions.attributes,
        }.items():
            self._names.setdefault(name, []).append((id(code), line))
        for name, line in {**mentions.loaded, **mentions.attributes}.items():
            if name in ("np", "numpy", "random"):
                self.randomness.setdefault(name, line)
        self._reflective |= mentions.reflective

    def _partial(self, thing: functools.partial[Any], path: Path) -> None:
        owner = title_of(thing)
        self._waiting.append((thing.func, path))
        for index, value in enumerate(thing.args):  # they cannot be replaced, so they are no places
            self._waiting.append((value, Path("argument", str(index), owner)))
        for name in thing.keywords:
            self._put("item", thing.keywords, name, Path("argument", name, owner))

    def _instance(self, thing: Any, path: Path, place: Place) -> None:
        cls = type(thing)
        users = any(not self._foreign(base.__module__) for base in cls.__mro__)
        if hasattr(cls, "__next__") and not users:
            self.unseen.append(Unseen(str(path), "an iterator, whose position cannot be seen", place))
            return
        if issubclass(cls, torch.jit.ScriptModule):
            self.unseen.append(Unseen(str(path), "a module of TorchScript", place))
        if issubclass(cls, Messenger):
            path = Path("", cls.__name__)
        held = attributes(thing)
        module = held is not None and issubclass(cls, torch.nn.Module)
        never = working_state(cls, held or {})
        always = settings(cls) - never
        if module:
            always |= {"training"}
            self._module(held or {}, path)
        elif issubclass(cls, torch.distributions.Distribution):
            always |= (held or {}).keys() - {"_batch_shape", "_event_shape", "_validate_args"}
        slots: dict[str, Any] = {}
        own: frozenset[int] = frozenset()
        if users:
            self._class(cls, created=False)
            for base in cls.__mro__:
                own |= {id(code) for code in codes(base)}
                found = {name: slot for name, slot in vars(base).items() if type(slot) is types.MemberDescriptorType}
                slots = {**found, **slots}
        if held is not None or slots:
            closed = not (users or module or issubclass(cls, BAGS))
            attrs = {} if held is None else held
            self._hold(Holder(place, attrs, path, "item", slots, always, never, closed, own=own))

    def _class(self, cls: Any, *, created: bool) -> None:
        """A class of the user's and its bases: attributes that code names, methods that code or a library calls."""
        if not issubclass(type(cls), type):
            return
        protocol = {name for base in cls.__mro__ if self._foreign(base.__module__) for name in vars(base)}
        for base in cls.__mro__:
            if self._foreign(base.__module__):
                continue
            path = Path("", base.__name__)
            if created and id(base) not in self._created:
                self._created[id(base)] = base
                self._waiting += [(vars(base)[name], path) for name in CREATION if name in vars(base)]
            if id(base) not in self._classes:
                self._classes[id(base)] = base
                always = frozenset(implicit(base, protocol))
                never = frozenset(name for name in vars(base) if name.startswith("__")) - always
                own = frozenset(id(code) for code in codes(base))
                place = Place("thing", base, None, str(path))
                self._hold(Holder(place, vars(base), path, "class", {}, always, never, own=own))

    def _module(self, held: Mapping[str, Any], path: Path) -> None:
        """Of a torch module: its children, parameters and buffers by identity, its hooks, and the priors of Pyro's."""
        for name in ("_modules", "_parameters", "_buffers", *_HOOKS, "_pyro_samples"):
            parts: Any = held.get(name)
            if not issubclass(type(parts), dict):  # one of TorchScript's
                continue
            for key in dict.keys(parts):
                self._put("item", parts, key, path.step(f".{name}[{key}]" if name in _HOOKS else f".{key}"))
            if name != "_pyro_samples":
                self.containers.append(Place("thing", parts, None, str(path.step(f".{name}"))))

    def _hold(self, holder: Holder) -> None:
        self.holders.append(holder)
        self._look_through(holder)

    def _wanted(self, holder: Holder) -> frozenset[str] | None:
        if holder.closed:
            return holder.always
        return None if self._reflective and holder.ours else holder.always | self._names.keys()

    def _look_through(self, holder: Holder) -> None:
        wanted = self._wanted(holder)
        for name in dict.fromkeys([*holder.held, *holder.slots]):
            if name in holder.taken or name in holder.never or not (wanted is None or name in wanted):
                continue
            holder.taken.add(name)
            place = holder.at(name, self._line(name, holder.own))
            if not issubclass(type(place.value()), (types.MemberDescriptorType, types.GetSetDescriptorType)):
                self._put(place.kind, place.holder, place.key, holder.path.step(f".{name}", place.line))

    def _line(self, name: str, own: frozenset[int]) -> Line | None:
        """Where code names an attribute first: a method of its own class, if one does."""
        mentions = self._names.get(name, [])
        return next((line for code, line in mentions if code in own), mentions[0][1] if mentions else None)

    def _container(self, thing: Any, path: Path, place: Place) -> None:
        base = next(base for base in _CONTAINERS if issubclass(type(thing), base))
        length = base.__len__(thing)
        fixed = base in (tuple, frozenset)
        if not fixed:
            self.containers.append(place)
        if length > LONGEST or len(self.places) > MOST:
            if not (fixed and all(type(part) in PLAIN for part in base.__iter__(thing))):
                self.unseen.append(Unseen(str(path), f"only the number of its {length} elements is watched", place))
        elif base in (dict, types.MappingProxyType):
            for key, value in list(base.items(thing)):
                if is_plain(key):
                    self._put("item", thing, key, path.step(f"[{key!r}]"))
                else:
                    self._waiting += [(key, path.step("[…]")), (value, path.step("[…]"))]
        elif base in (list, deque):
            for index in range(length):
                self._put("item", thing, index, path.step(f"[{index}]"))
        else:
            for index, part in enumerate(base.__iter__(thing)):
                self._waiting.append((part, path.step(f"[{index}]" if base is tuple else "[…]")))


def _imported(mentions: Mentions, package: object) -> Iterator[types.ModuleType]:
    """Modules that a function imports while it runs, relative names too."""
    parents = package.split(".") if isinstance(package, str) and package else []
    around = [".".join(parents[:depth]) for depth in range(len(parents), 0, -1)]
    for name in mentions.imports:
        for full in [name, *(f"{parent}.{name}" if name else parent for parent in around)]:
            if full in sys.modules:
                yield sys.modules[full]
                break
