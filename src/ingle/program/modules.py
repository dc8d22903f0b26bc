"""The torch modules behind a model and a guide."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["buffers_kept", "find_modules", "modules_kept"]

_LIBRARIES = ("matplotlib", "numpy", "pandas", "pyro", "scipy", "sklearn", "torch")


def find_modules(*programs: object) -> tuple[torch.nn.Module, ...]:
    """Modules that the programs are, are methods of, hold as attributes, close over, or name among their globals."""
    found: dict[int, torch.nn.Module] = {}
    seen: set[int] = set()
    waiting = list(programs)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.nn.Module):
            found[id(thing)] = thing
        else:
            waiting.extend(_behind(thing))
    return tuple(found.values())


def _behind(thing: object) -> Iterable[object]:
    """What a callable can reach in one step: only modules and further callables are followed."""
    reached: list[object] = []
    if isinstance(thing, functools.partial):
        reached = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, types.MethodType):
        reached = [thing.__self__, thing.__func__]
    elif isinstance(thing, types.FunctionType):
        reached = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        reached += [thing.__globals__[name] for name in thing.__code__.co_names if name in thing.__globals__]
        reached = [value for value in reached if not _of_a_library(value)]
    elif callable(thing) and not isinstance(thing, type) and hasattr(thing, "__dict__"):
        reached = list(vars(thing).values())
    return [value for value in reached if isinstance(value, torch.nn.Module) or callable(value)]


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that the enclosing function has not bound yet
        return False


def _of_a_library(value: object) -> bool:
    """Functions and classes of libraries hold nothing of the user's."""
    home = (getattr(value, "__module__", None) or "").split(".")[0]
    return isinstance(value, (type, types.FunctionType)) and (home in _LIBRARIES or home in sys.stdlib_module_names)


@contextmanager
def buffers_kept(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Buffers such as running statistics are afterwards what they were."""
    kept = [
        (part, name, buffer.clone())
        for module in modules
        for part in module.modules()
        for name, buffer in part.named_buffers(recurse=False)
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for part, name, before in kept:
                part.get_buffer(name).copy_(before)  # by name, since .to() puts another tensor in its place


@contextmanager
def modules_kept(modules: Iterable[torch.nn.Module]) -> Iterator[ExitStack]:
    """Modules are afterwards what they were: dtype, device, buffers, and attributes that a run set or filled.

    Values of parameters are not copied, since nothing inside trains them. `pop_all` of what is given lets the modules
    stay as they are by then.
    """
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    with ExitStack() as stack:
        for part in parts:
            stack.callback(_put_back(part))
        yield stack


def _put_back(part: torch.nn.Module) -> Callable[[], None]:
    """A function that makes one module, its children apart, what it is now."""
    attributes = dict(vars(part))
    filled = [(held, held.copy()) for held in attributes.values() if isinstance(held, (dict, list, set))]
    tensors = [
        (parameter, parameter.data, parameter.requires_grad)
        for parameter in part.parameters(recurse=False)
        if parameter is not None
    ]
    buffers = [(buffer, buffer.clone()) for buffer in part.buffers(recurse=False)]

    def put_back() -> None:
        for held, before in filled:
            held.clear()
            held.extend(before) if isinstance(held, list) else held.update(before)
        vars(part).clear()
        vars(part).update(attributes)
        with torch.no_grad():
            for parameter, data, requires_grad in tensors:
                parameter.data = data
                parameter.requires_grad_(requires_grad)
            for buffer, value in buffers:
                buffer.copy_(value)

    return put_back
