"""The Python module that Inductor writes for one step, turned into one C++ function that takes many.

Inductor's module allocates buffers and calls kernels, one after the other. Where it does nothing else, the same calls
are put inside a C++ loop over memory that is allocated once: a step then costs its arithmetic, and neither Python nor
an allocator is met on the way.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from typing import Any

import torch

__all__ = ["Loop", "NotALoop", "as_loop"]


Address = tuple[str, int]


class NotALoop(Exception):
    """The module does something that a plain C++ loop cannot, such as calling a matrix product of torch's."""


@dataclass(frozen=True)
class Loop:
    """A loop over the kernels of a step.

    Attributes:
        source: C++ with `const char* ingle_loop(int64_t steps, void** memory)`, which returns what went wrong, if
            anything did; `memory` has inputs, then buffers.
        inputs: how many there are.
        buffers: shape, stride and dtype of each.
    """

    source: str
    inputs: int
    buffers: tuple[tuple[tuple[int, ...], tuple[int, ...], torch.dtype], ...]


def as_loop(module: str) -> Loop:
    """Read the text of Inductor's module.

    Raises:
        NotALoop: it holds a statement that is neither an allocation nor a call of one of its own kernels.
    """
    tree = ast.parse(module)
    kernels = dict(_kernels(tree))
    inputs: list[str] = []
    buffers: dict[str, tuple[tuple[int, ...], tuple[int, ...], torch.dtype]] = {}
    same: dict[str, Address] = {}
    calls: list[tuple[str, list[Address]]] = []
    for statement in _call(tree).body:
        match statement:
            case ast.Assign(targets=[ast.Tuple(elts=names)], value=ast.Name(id="args")):
                inputs = [_name(name) for name in names]
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Call(func=ast.Name(id="empty_strided_cpu"), args=[*sizes, dtype])
            ):
                shape, stride = (tuple(ast.literal_eval(size)) for size in sizes)
                buffers[name] = shape, stride, _dtype(dtype)
            case ast.Assign(
                targets=[ast.Name(id=name)], value=ast.Name() | ast.Call(func=ast.Name(id="reinterpret_tensor")) as part
            ):
                same[name] = _address(part, same)
            case ast.Expr(value=ast.Call(func=ast.Name(id=kernel), args=arguments)) if kernel in kernels:
                calls.append((kernel, [_address(argument, same) for argument in arguments]))
            case ast.Expr(value=ast.Call(func=ast.Name(id="assert_size_stride" | "assert_alignment"))):
                pass
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Name(id="args"), attr="clear"))) | ast.Delete():
                pass
            case ast.Return(value=ast.Tuple(elts=[])):
                pass
            case _:
                raise NotALoop(ast.unparse(statement))
    return Loop(_source(kernels, [*inputs, *buffers], calls), len(inputs), tuple(buffers.values()))


def _kernels(tree: ast.Module) -> list[tuple[str, tuple[list[str], str]]]:
    """Name, C++ types of the arguments, and C++ source of each kernel."""
    found = []
    for statement in tree.body:
        match statement:
            case ast.Assign(
                targets=[ast.Name(id=name)],
                value=ast.Call(func=ast.Attribute(attr="cpp_pybinding"), args=[types, source, *_]),
            ):
                found.append((name, (ast.literal_eval(types), ast.literal_eval(source))))
    return found


def _call(tree: ast.Module) -> ast.FunctionDef:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "call":
            return node
    raise NotALoop("there is no function `call`")


def _address(node: ast.expr, same: dict[str, Address]) -> Address:
    """The memory that an expression means, and how many elements into it."""
    match node:
        case ast.Name(id=name):
            return same.get(name, (name, 0))
        case ast.Call(func=ast.Name(id="reinterpret_tensor"), args=[base, _, _, ast.Constant(value=int(offset))]):
            name, before = _address(base, same)
            return name, before + offset
    raise NotALoop(ast.unparse(node))


def _name(node: ast.expr) -> str:
    if not isinstance(node, ast.Name):
        raise NotALoop(ast.unparse(node))
    return node.id


def _dtype(node: ast.expr) -> torch.dtype:
    found: Any = getattr(torch, ast.unparse(node).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise NotALoop(ast.unparse(node))
    return found


_HEAD = re.compile(r'extern\s+"C"\s+(?:__attribute__\S+\s+)?void\s+kernel\s*\(')


def _source(
    kernels: dict[str, tuple[list[str], str]], memory: list[str], calls: list[tuple[str, list[Address]]]
) -> str:
    parts = []
    for name, (_, source) in kernels.items():
        renamed, count = _HEAD.subn(f"static void {name}(", source)
        if count != 1:
            raise NotALoop(f"the head of {name} is not what it was")
        parts.append(renamed)
    places = {name: place for place, name in enumerate(memory)}
    lines = []
    for name, arguments in calls:
        types = kernels[name][0]
        if len(types) != len(arguments) or any(base not in places for base, _ in arguments):
            raise NotALoop(f"the arguments of {name} are not all memory")
        cast = (
            f"static_cast<{kind}>(memory[{places[base]}])" + (f" + {offset}" if offset else "")
            for kind, (base, offset) in zip(types, arguments, strict=True)
        )
        lines.append(f"        {name}({', '.join(cast)});")
    body = "\n".join(lines)
    parts.append(
        "#include <stdexcept>\n#include <string>\n"
        "static thread_local std::string ingle_error;\n"
        'extern "C" const char* ingle_loop(int64_t steps, void** memory) {\n'
        "    try {\n"
        f"    for (int64_t step = 0; step < steps; ++step) {{\n{body}\n    }}\n"
        "    } catch (const std::exception& error) {\n"  # else an index out of bounds ends the process
        "        ingle_error = error.what();\n        return ingle_error.c_str();\n    }\n"
        "    return nullptr;\n}\n"
    )
    return "\n".join(parts)
