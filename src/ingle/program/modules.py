"""The torch modules behind a model and a guide."""

from __future__ import annotations

import functools
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

import torch

__all__ = ["at_rest", "buffers_kept", "buffers_of", "find_modules", "is_library", "modules_kept"]

_CONTAINERS = (list, tuple, dict, set, frozenset)
_OF_TORCH = frozenset(vars(torch.nn.Module()))  # attributes of every module: children, parameters, buffers, hooks
_LIBRARIES = ("matplotlib", "numpy", "pandas", "pyro", "scipy", "sklearn", "torch")


def find_modules(*programs: object) -> tuple[torch.nn.Module, ...]:
    """Modules that the programs are, are methods of, hold as attributes, close over, or name among their globals.

    Those in lists, tuples, dicts and sets too, and those named in a namespace that is no library (`networks.encoder`).
    """
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
        waiting.extend(_behind(thing))
    return tuple(found.values())


def _behind(thing: object) -> Iterable[object]:
    """What a thing can reach in one step: only modules, containers and further callables are followed."""
    reached: list[object] = []
    if isinstance(thing, torch.nn.Module):
        parts = [vars(part) for part in thing.modules()]
        reached = [value for part in parts for name, value in part.items() if name not in _OF_TORCH]
    elif isinstance(thing, dict):
        reached = list(thing.values())
    elif isinstance(thing, (set, frozenset)):
        reached = sorted(thing, key=_told)
    elif isinstance(thing, _CONTAINERS):
        reached = list(thing)
    elif isinstance(thing, functools.partial):
        reached = [thing.func, *thing.args, *thing.keywords.values()]
    elif isinstance(thing, types.MethodType):
        reached = [thing.__self__, thing.__func__, *_held(thing.__self__)]
    elif isinstance(thing, types.FunctionType):
        names = _names(thing.__code__)
        reached = [cell.cell_contents for cell in thing.__closure__ or () if _filled(cell)]
        reached += [thing.__globals__[name] for name in names if name in thing.__globals__]
        reached = _through_namespaces(reached, names)
        reached = [value for value in reached if not _of_a_library(value)]
    elif callable(thing):
        reached = _held(thing)
    return [value for value in reached if isinstance(value, (torch.nn.Module, *_CONTAINERS)) or callable(value)]


def _held(thing: object) -> list[object]:
    """The attributes of an instance."""
    plain = not isinstance(thing, (type, torch.nn.Module, types.ModuleType)) and hasattr(thing, "__dict__")
    return list(vars(thing).values()) if plain else []


def _names(code: types.CodeType) -> list[str]:
    """The global names and attributes in a function, and in what is defined inside it."""
    inner = [name for part in code.co_consts if isinstance(part, types.CodeType) for name in _names(part)]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _through_namespaces(reached: list[object], names: Iterable[str]) -> list[object]:
    """The same with what the names mean in a Python module, `net` in `package.networks.net`, in the place of that."""
    through: list[object] = []
    waiting, seen = reached[::-1], set()
    while waiting:
        value = waiting.pop()
        if not isinstance(value, types.ModuleType):
            through.append(value)
        elif id(value) not in seen and not is_library(value.__name__):
            seen.add(id(value))
            waiting.extend(vars(value)[name] for name in names if name in vars(value))
    return through


def _told(value: object) -> str:
    """An order for what is in a set that is the same in every process, as far as its modules differ."""
    return f"{type(value).__qualname__} {value if isinstance(value, torch.nn.Module) else ''}"


def _filled(cell: types.CellType) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a name that the enclosing function has not bound yet
        return False


def _of_a_library(value: object) -> bool:
    """Functions and classes of libraries hold nothing of the user's."""
    home = getattr(value, "__module__", None) or ""
    return isinstance(value, (type, types.FunctionType)) and is_library(home)


def is_library(name: str) -> bool:
    """Whether a Python module of this name is a library's, where nothing of the user's is to be found."""
    home = name.split(".")[0]
    return home in _LIBRARIES or home in sys.stdlib_module_names


def buffers_of(modules: Iterable[torch.nn.Module]) -> list[torch.Tensor]:
    """The buffers of modules, each once."""
    return list({id(buffer): buffer for module in modules for buffer in module.buffers()}.values())


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
                try:
                    part.get_buffer(name).copy_(before)  # by name, since .to() puts another tensor in its place
                except RuntimeError:  # a program run for many points at once has put a batch in its place
                    setattr(part, name, before)


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


@contextmanager
def at_rest(modules: Iterable[torch.nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode, as for predictions: no dropout, running statistics used and not renewed."""
    modules = list(modules)
    parts = list({id(part): part for module in modules for part in module.modules()}.values())
    before = [part.training for part in parts]
    with buffers_kept(modules):
        try:
            for part in parts:
                part.training = False
            yield
        finally:
            for part, training in zip(parts, before, strict=True):
                part.training = training
