"""A few runs of a whole program, the model at what the guide draws, for what one run of each does not show."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask

from ingle.errors import IngleError
from ingle.program.finding import Finding, Severity
from ingle.program.nodes import bad_share, inputs, sample_nodes, site_log_prob
from ingle.program.program import Program, set_guide
from ingle.program.sites import Site
from ingle.runtime import Runtime

__all__ = ["rehearse"]

_RUNS = 3


def rehearse(program: Program, runtime: Runtime) -> tuple[Finding, ...]:
    """What is wrong, or looks wrong, in a program whose sites match. Runs inside a scope of `runtime`."""
    findings = [*_observed(program)]
    with runtime.trial():
        try:
            with program.explained("model or guide"):
                set_guide(program, check=False)
                first = _run(program)
                with torch.no_grad():
                    runs = [first, *(_run(program) for _ in range(_RUNS - 1))]
                findings += _not_finite(program, runs)
                findings += _training(program, first)
        except IngleError as error:
            return (*findings, *error.findings)
    for role, sites, place in (("guide", program.guide_sites, 0), ("model", program.model_sites, 1)):
        findings += _control_flow(role, sites, [run[place] for run in runs])
    return tuple(findings)


def _run(program: Program) -> tuple[Any, Any]:
    """The guide, and the model at what it drew."""
    data = program.data
    with program.probe:
        guide = program.trace_guide()
        replayed = poutine.replay(program.observing_model, trace=guide)
        return guide, poutine.trace(replayed).get_trace(*data.args, **data.kwargs)


def _observed(program: Program) -> list[Finding]:
    """A model without data, or with data that it may have forgotten to observe."""
    findings = []
    given = {name: value for name, value in program.data.items() if isinstance(value, torch.Tensor)}
    for site in program.latents:
        if site.name in given and tuple(given[site.name].shape) == site.value_shape:
            message = (
                f"site {site.name!r} {site.value_shape} is latent, though the data hold a value of that name and shape"
            )
            fix = f"observe it, pyro.sample({site.name!r}, …, obs={site.name}), or give the argument another name"
            findings.append(Finding("observed site", "warning", site.name, message, fix))
    if not any(site.kind == "observed" for site in program.model_sites):
        message = "the model observes nothing, so its posterior is its prior"
        fix = "pass the data to a sample statement as obs=; an argument that is left at None observes nothing"
        findings.append(Finding("nothing observed", "warning", None, message, fix))
    return findings


def _control_flow(role: str, sites: Sequence[Site], runs: Sequence[Any]) -> list[Finding]:
    """Sites that some runs have and others do not."""
    names = [{site.name for site in sites}, *({node["name"] for node in sample_nodes(run)} for run in runs)]
    changing = sorted(set().union(*names) - set.intersection(*names))
    if not changing:
        return []
    message = (
        f"the {role} has {', '.join(map(repr, changing[:5]))}{', …' if len(changing) > 5 else ''} in some runs only"
    )
    fix = (
        "sample the site in every run and choose by its value, with torch.where or poutine.mask; a guide that follows "
        "such branches has to be written by hand"
    )
    return [Finding("control flow", "warning", changing[0], message, fix)]


def _not_finite(program: Program, runs: Sequence[tuple[Any, Any]]) -> list[Finding]:
    """The first site whose log_prob is not finite at a draw of the guide."""
    found: dict[tuple[str, str], list[str]] = {}
    for run in runs:
        for role, trace in zip(("guide", "model"), run, strict=True):
            # A state that is summed out may be impossible where one draw of it lands.
            impossible = bool(program.enumerated) and role == "model"
            shares = ((node["name"], _share(node, impossible=impossible)) for node in sample_nodes(trace))
            share = next(((name, share) for name, share in shares if share is not None), None)
            if share is not None:
                found.setdefault((role, share[0]), []).append(share[1])
                break
    if not found:
        return []
    (role, name), told = max(found.items(), key=lambda item: len(item[1]))
    times = sum(map(len, found.values()))
    # Where the start is chosen among several, one that is not finite is passed over.
    severity: Severity = "error" if times == len(runs) and not program.recipe.takes_start else "warning"
    message = (
        f"site {name!r} of the {role} has a log_prob that is not finite at {times} of {len(runs)} draws of the guide: "
        f"{told[0]}"
    )
    fix = (
        "start the guide where the model is finite, nearer its prior and on its support; keep a scale away from zero "
        "and a rate from overflow; or try dtype=torch.float64"
    )
    return [Finding("not finite", severity, name, message, fix)]


def _share(node: Any, *, impossible: bool) -> str | None:
    """How much of a log_prob is not finite, and what goes into it that is not; None where all of it is finite."""
    with torch.no_grad():
        log_prob = scale_and_mask(site_log_prob(node), mask=node["mask"])
        share = bad_share(log_prob[~log_prob.isneginf()] if impossible else log_prob)
        if share is None:
            return None
        bad = next((f"; {name} holds {bad}" for name, value in inputs(node) if (bad := bad_share(value))), "")
    return share + bad


def _training(program: Program, run: tuple[Any, Any]) -> list[Finding]:
    """Nothing that a fit could move, or a module that it would not."""
    leaves = {id(leaf) for leaf in program.leaves().values()}
    outside = {
        id(parameter): (module, name, parameter)
        for module in program.modules()
        for name, parameter in module.named_parameters()
        if parameter.requires_grad and id(parameter) not in leaves
    }
    findings = []
    # Only then is the gradient worth its memory.
    total: Any = sum(site_log_prob(node).sum() for trace in run for node in sample_nodes(trace)) if outside else None
    if isinstance(total, torch.Tensor) and total.requires_grad:
        held = list(outside.values())
        gradients = torch.autograd.grad(total, [parameter for _, _, parameter in held], allow_unused=True)
        used = [part for part, gradient in zip(held, gradients, strict=True) if gradient is not None]
        if used:
            module, name, _ = used[0]
            kind = type(module).__name__
            message = (
                f"the loss depends on {len(used)} parameter{'s' if len(used) > 1 else ''} of a module {kind}, {name!r} "
                "first, that Pyro does not know and a fit would not train"
            )
            fix = (
                f"register the module where it is used, pyro.module({kind.lower()!r}, {kind.lower()}), or freeze it "
                "with .requires_grad_(False)"
            )
            findings.append(Finding("untrained", "warning", None, message, fix))
    latents = [site.name for site in program.latents if site.name not in program.enumerated]
    if not leaves and latents and not findings:
        message = f"neither model nor guide has a parameter, so nothing would be trained for {', '.join(latents)}"
        fix = "make what the guide should learn a pyro.param, or register its module with pyro.module"
        findings.append(Finding("nothing to train", "warning", None, message, fix))
    return findings
