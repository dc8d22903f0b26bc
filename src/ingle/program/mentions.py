"""What a function's code names: globals, attributes, free variables, modules that it imports; each with its line."""

from __future__ import annotations

import dis
import types
from dataclasses import dataclass, field

__all__ = ["Line", "Mentions", "read_mentions"]

Line = tuple[str, int]  # file and number

# Functions that reach an attribute by a name that is no part of the code, and the attribute that holds all of them.
_REFLECTIVE_GLOBALS = {
    "asdict",
    "astuple",
    "attrgetter",
    "delattr",
    "dir",
    "getattr",
    "methodcaller",
    "setattr",
    "vars",
}
_REFLECTIVE_ATTRIBUTES = {"__dict__", "__getattribute__", "asdict", "astuple", "attrgetter", "methodcaller"}
_ALL_GLOBALS = {"eval", "exec", "globals", "locals"}


@dataclass
class Mentions:
    """The names in a function and in what is defined inside it, each with the first line that has it.

    Attributes:
        loaded: global names.
        written: global names that it sets or deletes; they need not be there yet.
        attributes: names after a dot that it reads.
        assigned: names after a dot that it sets or deletes.
        free: variables of the functions around it.
        imports: modules that it imports while it runs, and names that it takes from them.
        reflective: it reaches attributes by names that are not written in the code, as `getattr` does.
        all_globals: it reaches globals by such names.
    """

    loaded: dict[str, Line] = field(default_factory=dict)
    written: dict[str, Line] = field(default_factory=dict)
    attributes: dict[str, Line] = field(default_factory=dict)
    assigned: dict[str, Line] = field(default_factory=dict)
    free: dict[str, Line] = field(default_factory=dict)
    imports: dict[str, Line] = field(default_factory=dict)
    reflective: bool = False
    all_globals: bool = False


def read_mentions(code: types.CodeType) -> Mentions:
    """What the code names, read from its instructions, so that nothing is run and no source is needed."""
    found = Mentions()
    _read(code, found)
    names = found.loaded.keys()
    found.all_globals = bool(names & _ALL_GLOBALS)
    found.reflective |= found.all_globals or bool(
        names & _REFLECTIVE_GLOBALS or found.attributes.keys() & _REFLECTIVE_ATTRIBUTES
    )
    if "hasattr" in names:  # reads no value, but whether there is one
        for text, line in _strings(code).items():
            found.attributes.setdefault(text, line)
    return found


def _read(code: types.CodeType, found: Mentions) -> None:
    number = code.co_firstlineno
    for instruction in dis.get_instructions(code):
        if instruction.positions is not None and instruction.positions.lineno is not None:
            number = instruction.positions.lineno
        where = _kind(instruction, found)
        if where is not None:
            where.setdefault(instruction.argval, (code.co_filename, number))
        elif instruction.opname == "MATCH_CLASS":  # patterns name attributes in a constant, or by position
            found.reflective = True
    for part in code.co_consts:
        if isinstance(part, types.CodeType):
            _read(part, found)


def _kind(instruction: dis.Instruction, found: Mentions) -> dict[str, Line] | None:
    name = instruction.opname
    if instruction.opcode in dis.hasfree:
        return found.free
    if instruction.opcode not in dis.hasname:
        return None
    if "IMPORT" in name:
        return found.imports
    sets = name.startswith(("STORE", "DELETE"))
    if "GLOBAL" in name:
        return found.written if sets else found.loaded
    if "NAME" in name:  # of the body of a class, whose own names are set there and looked up among the globals too
        return None if sets else found.loaded
    return found.assigned if sets else found.attributes


def _strings(code: types.CodeType) -> dict[str, Line]:
    strings: dict[str, Line] = {}
    for part in code.co_consts:
        if isinstance(part, str) and part.isidentifier():
            strings[part] = (code.co_filename, code.co_firstlineno)
        elif isinstance(part, types.CodeType):
            strings |= _strings(part)
    return strings
