"""What the values and the log_prob of each site say in one run: out of range, NaN, another shape or dtype."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import torch
from pyro.util import check_site_shape
from torch import Tensor

from ingle.data import Data
from ingle.program.distributions import family, layers, plain_constraint, range_of
from ingle.program.explain import told
from ingle.program.finding import Finding, Kind
from ingle.program.fixes import UNDECLARED
from ingle.program.nodes import inputs, outside, sample_nodes, share_of, site_log_prob

__all__ = ["value_findings"]

_LARGE = 10**7  # elements


def value_findings(
    role: str, trace: Any, data: Data, dtype: torch.dtype, *, batched: Collection[str] = ()
) -> tuple[Finding, ...]:
    """What is wrong with the values and log_probs of the sites of one run, at most one finding a site.

    Args:
        role: "model" or "guide".
        trace: of the run.
        data: the arguments of the program, for the messages.
        dtype: of the fit.
        batched: names of the plates whose rows come from outside.
    """
    findings = []
    promoted: list[Any] = []
    for node in sample_nodes(trace):
        found = (_observed(node) if _is_data(node) else None) or _too_large(role, node)
        if found is not None:
            findings.append(found)
            continue
        try:
            with torch.no_grad():
                log_prob = site_log_prob(node, check=True)
        except Exception as error:  # the distribution may be the user's, and raise anything
            place = f"in the log_prob of site {node['name']!r}"
            found = told(role, data, error, place=place, site=node["name"], batched=batched)
        else:
            found = _log_prob_shape(role, node, tuple(log_prob.shape)) or _repeated(node)
            if torch.promote_types(dtype, log_prob.dtype) != dtype:
                promoted.append((node, log_prob))
        if found is not None:
            findings.append(found)
    if promoted:
        findings.append(_promoted(role, promoted, dtype))
    return tuple(findings)


def _is_data(node: Any) -> bool:
    return bool(
        node["is_observed"]
        and isinstance(node["value"], Tensor)
        and not node["infer"].get("_deterministic")
        and type(node["fn"]).__name__ != "Unit"  # of pyro.factor
    )


def _observed(node: Any) -> Finding | None:
    """An observed value that its distribution cannot have, that is not finite, or that is repeated over an event."""
    fn, value, name = node["fn"], node["value"], node["name"]
    event = len(fn.event_shape)
    given = ((1,) * event + tuple(value.shape))[value.dim() :]  # its own event shape, an axis that it lacks as 1
    told_shape = f"value {tuple(value.shape)}, batch {tuple(fn.batch_shape)}, event {tuple(fn.event_shape)}"
    if value.numel() > 1 and any(ours == 1 < theirs for ours, theirs in zip(given, fn.event_shape, strict=False)):
        wanted = ", ".join(map(str, fn.event_shape))
        return Finding(
            "broadcast",
            "error",
            name,
            f"the value observed at site {name!r} does not have the event shape of its distribution, and would be "
            f"repeated to fill it, so that each datum counts more than once ({told_shape})",
            f"observe a value whose shape ends in ({wanted}), or give the distribution the data's columns",
        )
    if not _all_finite(value):
        kind: Kind = "not finite"
        bad = ~value.isfinite()
        word = "NaN, a missing value," if bool(value.isnan().any()) else "infinity"
        message = f"the value observed at site {name!r} holds {word} {share_of(bad, value)} ({told_shape})"
        fix = "leave it out, or observe the rest with obs_mask and any number in its place, torch.nan_to_num(y)"
    else:
        try:
            support = fn.support
        except (AttributeError, NotImplementedError):  # a distribution need not say what its support is
            return None
        beyond = None if _all_inside(support, value) else outside(support, value)
        if beyond is None:
            return None
        kind, bad = "outside support", beyond
        values = value if bad.shape == value.shape else value.flatten(bad.dim(), -1)
        message = (
            f"the value observed at site {name!r} lies outside the support of its {family(fn)}, which is "
            f"{range_of(fn.support)}, {share_of(bad, values)} ({told_shape})"
        )
        fix = "check the data, or take another family"
        if family(fn) == "Categorical":
            fix = "check the data: labels count from 0, and there are as many as the probabilities"
    return Finding(kind, "error", name, message, _behind_mask(node, bad) or fix, cause=_refusal(node))


def _all_finite(value: Tensor) -> bool:
    """Whether no element is NaN or infinite, without a tensor as large as the value where that is so."""
    if not value.is_floating_point() or bool(value.sum().isfinite()):
        return True
    return bool(value.isfinite().all())  # finite elements may have an infinite sum


def _all_inside(support: Any, value: Tensor) -> bool:
    """Whether every element of a finite value is inside, as far as that can be told."""
    constraint = plain_constraint(support)
    if type(constraint).__name__ == "_Real":
        return True
    try:
        return bool(constraint.check(value).all())
    except Exception:  # shapes that do not go together, which the log_prob tells better
        return True


def _behind_mask(node: Any, bad: Tensor) -> str | None:
    """The fix for bad values that a mask hides; None where one is in plain sight.

    A mask does not help: the gradient behind it is 0 times NaN, which is NaN, and Pyro's checks see the value.
    """
    masks = [(node["mask"], len(node["fn"].event_shape))]
    masks += [(getattr(fn, "_mask", None), len(fn.event_shape)) for fn in layers(node["fn"])]
    reduced = len(node["fn"].shape()) - bad.dim()  # event dimensions that the check of the support took away
    for mask, event in masks:
        if mask is None or mask is True:
            continue
        mask = torch.as_tensor(mask, device=bad.device).bool()
        try:
            bad = bad & mask.reshape(mask.shape + (1,) * max(event - reduced, 0))
        except RuntimeError:  # a mask of another shape, which is told where it is used
            return None
    if bool(bad.any()):
        return None
    return (
        "a mask does not hide such values from the gradient and from Pyro's checks: put any number of the support in "
        "their place, as in torch.where(mask, y, 1.0)"
    )


def _refusal(node: Any) -> Exception | None:
    """What Pyro would have raised."""
    try:
        site_log_prob(node, check=True)
    except Exception as error:
        return error
    return None


def _repeated(node: Any) -> Finding | None:
    """One observed value for all rows of a plate."""
    if not _is_data(node):
        return None
    fn, value = node["fn"], node["value"]
    for frame in node["cond_indep_stack"]:
        if frame.dim is None or frame.size == 1:
            continue
        place = frame.dim - len(fn.event_shape)
        if value.dim() >= -place and value.shape[place] != 1:
            continue
        return Finding(
            "broadcast",
            "warning",
            node["name"],
            f"the value observed at site {node['name']!r} has shape {tuple(value.shape)}, one for all {frame.size} "
            f"rows of plate {frame.name!r}, so that it counts {frame.size} times",
            f"observe a value of {frame.size} rows, or take the site out of the plate",
        )
    return None


def _too_large(role: str, node: Any) -> Finding | None:
    """A log_prob of N by N, told from the shapes where it would not fit into memory."""
    value, fn = node["value"], node["fn"]
    try:
        batch = value.shape[: value.dim() - len(fn.event_shape)]
        shape = tuple(torch.broadcast_shapes(batch, fn.batch_shape))
    except (AttributeError, RuntimeError):  # no tensor, or shapes that do not go together, which the log_prob tells
        return None
    return _log_prob_shape(role, node, shape) if math.prod(shape) > _LARGE else None


def _log_prob_shape(role: str, node: Any, shape: tuple[int, ...]) -> Finding | None:
    try:
        weighed: Any = {**node, "log_prob": torch.empty(()).expand(shape)}
        check_site_shape(weighed, max_plate_nesting=torch.iinfo(torch.int32).max)
    except ValueError as error:
        fn, value = node["fn"], node["value"]
        frames = [frame for frame in node["cond_indep_stack"] if frame.dim is not None]
        plates = ", ".join(f"{frame.name!r} {frame.size} (dim {frame.dim})" for frame in frames) or "none"
        fix = UNDECLARED
        if frames and tuple(value.shape) != tuple(fn.shape()):
            n = frames[0].size
            fix = (
                f"give value and distribution the same shape: where ({n}, 1) met ({n},), drop the axis of length 1 "
                "with .squeeze(-1)"
            )
        message = (
            f"site {node['name']!r} of the {role} has a log_prob of shape {shape}, which is not that "
            f"of its plates (plates: {plates}; value {tuple(value.shape)}, batch {tuple(fn.batch_shape)}, event "
            f"{tuple(fn.event_shape)})"
        )
        return Finding("log_prob shape", "error", node["name"], message, fix, cause=error)
    return None


def _promoted(role: str, found: list[Any], dtype: torch.dtype) -> Finding:
    node, log_prob = found[0]
    wide = [name for name, value in inputs(node) if torch.promote_types(dtype, value.dtype) != dtype]
    ours, theirs = (str(kind).removeprefix("torch.") for kind in (dtype, log_prob.dtype))
    more = f", and {len(found) - 1} sites after it" if len(found) > 1 else ""
    return Finding(
        "dtype",
        "warning",
        node["name"],
        f"site {node['name']!r} of the {role}{more} has a log_prob of {theirs} in a fit of {ours}"
        + (f": {', '.join(wide)} {'is' if len(wide) == 1 else 'are'} {theirs}" if wide else "")
        + f"; the loss becomes {theirs}, and slower",
        f"pass the tensor that the {role} closes over as data, or call .to(torch.get_default_dtype()) on it; or fit "
        f"with dtype=torch.{theirs}",
    )
