"""Where a run that was refused went wrong, found in a run of the same program that refuses nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from ingle.program.distributions import layers, range_of
from ingle.program.finding import Finding, Kind
from ingle.program.nodes import inputs, outside, sample_nodes, share_of

__all__ = ["argument_finding", "elsewhere_finding"]


def argument_finding(raised: Finding, trace: Any) -> Finding:
    """A refusal of an argument of a distribution, with its site found in a run that refused nothing."""
    for node in sample_nodes(trace):
        for fn in layers(node["fn"]):
            for name, constraint in getattr(fn, "arg_constraints", {}).items():
                argument = vars(fn).get(name)
                if not isinstance(argument, Tensor) or constraints.is_dependent(constraint):
                    continue
                bad = outside(constraint, argument)
                if bad is None or not bool(bad.any()):
                    continue
                values = argument if bad.shape == argument.shape else argument.flatten(bad.dim(), -1)
                message = (
                    f"{raised.message}\n  at site {node['name']!r}: {name} of its {type(fn).__name__} should be "
                    f"{range_of(constraint)}, and is not {share_of(bad, values)}"
                )
                kind: Kind = "argument" if bool(argument.isfinite().all()) else "not finite"
                fix = raised.fix
                if kind == "not finite" and raised.kind != "not finite":
                    fix = "find what overflows or divides by zero before it, or start from smaller numbers"
                return replace(raised, kind=kind, site=node["name"], message=message, fix=fix)
    return raised


def elsewhere_finding(raised: Finding, trace: Any, device: torch.device) -> Finding:
    """A refusal of a tensor on another device, with the site found that the tensor reaches."""
    for node in sample_nodes(trace):
        for name, value in inputs(node):
            if value.device.type != device.type:
                message = (
                    f"{raised.message}\n  at site {node['name']!r}: {name} is on {value.device}, the fit on {device}"
                )
                return replace(raised, site=node["name"], message=message)
    return raised
