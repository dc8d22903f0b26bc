"""What a program is, in plain values, so that a file can tell its own program and data from others."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from pyro.distributions import constraints
from torch import Tensor

from ingle.data import Data
from ingle.program.program import Program
from ingle.program.sites import Site
from ingle.program.state import Values

__all__ = ["changed_arguments", "describe", "difference", "digests"]

_SHOWN = 5  # names in a message


def describe(program: Program, values: Values) -> dict[str, Any]:
    """Guide, sites, parameters and buffers as the first run showed them. Runs inside a scope of the fit."""
    stored: Any = pyro.get_param_store().get_state()["constraints"]
    declared = {**program.model_leaves.constraints, **program.guide_leaves.constraints}
    return {
        "guide": program.recipe.description,
        "model sites": {site.name: _site(site) for site in program.model_sites},
        "guide sites": {site.name: _site(site) for site in program.guide_sites},
        "parameters": {
            name: f"of shape {tuple(leaf.shape)}, {_constraint(_told(stored, declared, name))}"
            for name, leaf in program.leaves().items()
        },
        **{kind: {name: f"of shape {shape}" for name, shape in of.items()} for kind, of in values.shapes().items()},
    }


def difference(ours: Mapping[str, Any], file: Mapping[str, Any]) -> str | None:
    """How another program shows, the telling thing first, in words; None where the two are the same."""
    for what, role in (("model sites", "model"), ("guide", "guide"), ("guide sites", "guide")):
        told = _difference(what, role, ours[what], file[what])
        if told is not None:
            return told
    for what, label in (("parameters", "parameters"), ("buffers", "buffers"), ("fixed", "untrained parameters")):
        told = _difference(label, "program", ours[what], file[what])
        if told is not None:
            return told
    return None


def digests(data: Data) -> dict[str, str]:
    """SHA-256 of each argument by name: kind, shape and content, the same on every device.

    Of an argument that is no tensor, number, string or container of these, only the class is told apart.
    """
    return {name: _digest(value) for name, value in data.items()}


def changed_arguments(ours: Mapping[str, str], file: Mapping[str, str]) -> list[str]:
    """Names of the arguments that are not the same in both."""
    return [name for name in {**file, **ours} if ours.get(name) != file.get(name)]


def _difference(what: str, role: str, ours: Any, file: Any) -> str | None:
    if not isinstance(ours, Mapping):
        return None if ours == file else f"the {what} is {ours}, in the file {file}"
    if set(ours) != set(file):
        return f"the {role} has {_names(what, ours)}, the file {_names(what, file)}"
    name = next((name for name in ours if ours[name] != file[name]), None)
    one = what.removesuffix("s")
    return None if name is None else f"{one} {name!r} is {ours[name]}, in the file {file[name]}"


def _names(what: str, of: Mapping[str, Any]) -> str:
    what = what.split()[-1]
    if not of:
        return f"no {what}"
    shown = ", ".join(repr(name) for name in list(of)[:_SHOWN])
    return f"{what} {shown}" + (f" and {len(of) - _SHOWN} more" if len(of) > _SHOWN else "")


def _site(site: Site) -> str:
    return f"{site.kind}, {site.distribution} of shape {(*site.batch_shape, *site.event_shape)}"


def _told(stored: Mapping[str, Any], declared: Mapping[str, Any], name: str) -> Any:
    """The constraint that holds: a statement need not repeat the one that the store knows."""
    return stored.get(name, declared[name]) if declared[name] is constraints.real else declared[name]


def _constraint(constraint: Any) -> str:
    """The class of a constraint with its bounds; tensors among them as numbers, whatever their device."""
    kind = type(constraint).__name__.strip("_")
    if hasattr(constraint, "base_constraint"):
        return f"{kind} {_constraint(constraint.base_constraint)}"
    bounds = {name: value for name, value in vars(constraint).items() if name.endswith("_bound")}
    told = [f"{name} {float(value):.6g}" for name, value in bounds.items() if torch.as_tensor(value).numel() == 1]
    return " ".join([kind, *told])


def _digest(value: Any) -> str:
    code = hashlib.sha256()
    _feed(code, value)
    return code.hexdigest()


def _feed(code: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        code.update(f"tensor {value.dtype} {tuple(value.shape)}".encode())
        dense = value.detach().to("cpu")
        dense = (dense if dense.layout is torch.strided else dense.to_dense()).resolve_conj().resolve_neg()
        code.update(dense.contiguous().reshape(-1).view(torch.uint8).numpy())
    elif value is None or isinstance(value, (bool, int, float, complex, str, bytes)):
        code.update(f"{type(value).__name__} {value!r}".encode())
    elif isinstance(value, Mapping):
        code.update(f"mapping of {len(value)}".encode())
        for key, part in value.items():
            _feed(code, key)
            _feed(code, part)
    elif isinstance(value, (list, tuple)):
        code.update(f"sequence of {len(value)}".encode())
        for part in value:
            _feed(code, part)
    else:
        code.update(f"{type(value).__module__}.{type(value).__qualname__}".encode())
