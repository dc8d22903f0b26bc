"""What of a library's classes and functions is the user's: settings, methods that it calls, instances' attributes."""

from __future__ import annotations

import argparse
import functools
import inspect
import sys
import threading
import types
from collections import UserDict, UserList, UserString
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import torch
from pyro.contrib.easyguide import EasyGuide
from pyro.infer.autoguide import AutoGuide
from pyro.poutine.messenger import Messenger

from ingle.program.modules import is_library

__all__ = [
    "BAGS",
    "CREATION",
    "asks_the_user",
    "attributes",
    "codes",
    "implicit",
    "of_a_library",
    "settings",
    "working_state",
]

CREATION: Final = ("__init__", "__new__", "__post_init__")
BAGS: Final = (types.SimpleNamespace, argparse.Namespace, threading.local)  # library classes, the user's attributes

# Neither run by a step, nor any business of it if a script's own code runs them.
_ELSEWHERE = {
    *CREATION, "__abstractmethods__", "__annotations__", "__class_getitem__", "__copy__", "__dataclass_fields__",
    "__dataclass_params__", "__deepcopy__", "__del__", "__dict__", "__doc__", "__format__", "__getnewargs__",
    "__getstate__", "__init_subclass__", "__match_args__", "__module__", "__orig_bases__", "__parameters__",
    "__reduce__", "__reduce_ex__", "__repr__", "__set_name__", "__setstate__", "__sizeof__", "__slots__", "__str__",
    "__weakref__",
}  # fmt: skip
_OF_TORCH = frozenset(vars(torch.nn.Module())) - {"training"}
# What Pyro's own classes make anew at every call.
_WORKING: Mapping[type, frozenset[str]] = {
    AutoGuide: frozenset({"_computing_median", "_prototype_frames", "master", "plates", "prototype_trace"}),
    EasyGuide: frozenset({"frames", "groups", "plates", "prototype_trace"}),
    Messenger: frozenset({"args_kwargs", "counter", "trace"}),
    torch.nn.Module: _OF_TORCH,
}


@functools.lru_cache(maxsize=4096)
def of_a_library(home: object) -> bool:
    """Whether a module of this name is a library's: an installed package, or one of Ingle's own rooms.

    Ingle's models and guides are as the user's, and so is a package that is installed in place (editable).
    """
    if not isinstance(home, str):
        return False
    if home.partition(".")[0] == "ingle":
        return not home.startswith(("ingle.models", "ingle.guides"))
    file = getattr(sys.modules.get(home.partition(".")[0]), "__file__", None) or ""
    return is_library(home) or not {"site-packages", "dist-packages"}.isdisjoint(Path(file).parts)


def attributes(thing: Any) -> dict[str, Any] | None:
    """`vars` of an instance, unless a class of the user's makes that up."""
    for base in type(thing).__mro__:
        if "__dict__" in vars(base):
            if type(vars(base)["__dict__"]) not in (types.GetSetDescriptorType, types.MemberDescriptorType):
                return None
            held = object.__getattribute__(thing, "__dict__")
            return held if issubclass(type(held), dict) else None
    return None


def asks_the_user(cls: type) -> bool:
    """Whether reading an attribute of an instance runs Python code in any case."""
    return any(type(vars(base).get("__getattribute__")) is types.FunctionType for base in cls.__mro__)


def settings(cls: type) -> frozenset[str]:
    """Attributes named as an argument of a library's constructor, with an underscore or without."""
    names = {name for base in cls.__mro__ if of_a_library(base.__module__) for name in _arguments(base)}
    inner = {"data"} if issubclass(cls, (UserDict, UserList, UserString)) else set()
    return frozenset(names | {f"_{name}" for name in names} | inner)


def implicit(cls: type, protocol: Collection[str]) -> Iterator[str]:
    """Methods that run without being named: operators, Pyro's, those that a library's base class has too."""
    for name, value in vars(cls).items():
        special = name.startswith("_pyro_") or (name.startswith("__") and name.endswith("__"))
        generated = type(value) is types.FunctionType and value.__code__.co_filename == "<string>"  # of a dataclass
        if name not in _ELSEWHERE and (name in protocol or (special and not generated)):
            yield name


def working_state(cls: type, held: Mapping[str, Any]) -> frozenset[str]:
    """Attributes that torch and Pyro keep for themselves."""
    of_pyro = (name for name in held if name.startswith("_pyro_")) if issubclass(cls, torch.nn.Module) else ()
    return frozenset(of_pyro).union(*(names for base, names in _WORKING.items() if issubclass(cls, base)))


def codes(cls: type) -> Iterator[types.CodeType]:
    """Code of the methods and properties of one class, its bases apart."""
    for value in vars(cls).values():
        if isinstance(value, property):
            value = value.fget
        elif isinstance(value, (classmethod, staticmethod)):
            value = value.__func__
        elif isinstance(value, functools.cached_property):
            value = value.func
        if type(value) is types.FunctionType:
            yield value.__code__


@functools.lru_cache(maxsize=2048)
def _arguments(cls: type) -> frozenset[str]:
    created = vars(cls).get("__init__")
    if type(created) is not types.FunctionType:
        return frozenset()
    code = created.__code__
    several = bool(code.co_flags & inspect.CO_VARARGS)  # as TensorDataset(*tensors)
    return frozenset(code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount + several])
