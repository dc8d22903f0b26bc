"""From a model, a guide and data to a `Program`, or to what is wrong with them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro import poutine
from pyro.infer import autoguide
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.guide import GuideMessenger

from ingle.data import Data
from ingle.errors import IngleError, OptionError
from ingle.program.distributions import range_of
from ingle.program.explain import argument_names, check_call, explained, refused_by_itself
from ingle.program.finding import Finding, as_error, errors_among
from ingle.program.guides import GuideRecipe, resolve_guide
from ingle.program.handlers import Leaves, ProbeRows, Rows
from ingle.program.match import batch_size_findings, match_sites, module_findings
from ingle.program.modules import find_modules
from ingle.program.nodes import sample_nodes
from ingle.program.origins import reached
from ingle.program.program import Program
from ingle.program.refused import argument_finding, elsewhere_finding
from ingle.program.sites import Site, read_sites
from ingle.program.supports import bounds_may_move, support_finding
from ingle.program.typical import typical_value
from ingle.program.values import value_findings
from ingle.runtime import Runtime, validation

__all__ = ["Examination", "build_program", "examine"]


@dataclass
class Examination:
    """What one run of a model and one of its guide showed.

    Attributes:
        findings: what is wrong.
        model_sites, guide_sites: as far as the runs went.
        program: where both could be run.
    """

    findings: list[Finding] = field(default_factory=list)
    model_sites: tuple[Site, ...] = ()
    guide_sites: tuple[Site, ...] = ()
    program: Program | None = None

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Errors inside that are told as findings are kept as such; others pass."""
        try:
            yield
        except IngleError as error:
            if not error.findings:
                raise
            first, *rest = error.findings
            cause = error.__cause__ if isinstance(error.__cause__, Exception) else None
            self.findings += [replace(first, cause=cause), *rest]

    def add(self, *findings: Finding) -> None:
        """Keep findings about sites where no error is known so far: a fault is told once."""
        known = {finding.site for finding in errors_among(self.findings) if finding.site is not None}
        self.findings += [finding for finding in findings if finding.site not in known]


def build_program(
    model: Callable[..., Any],
    guide: object,
    data: Data,
    *,
    batch_size: Mapping[str, int],
    runtime: Runtime,
    tolerated: Collection[str] = (),
) -> Program:
    """Run the model once, resolve the guide, run it once, and hold the two against each other.

    Runs inside a scope of `runtime`. Parameters that an automatic guide makes here are forgotten; `set_guide`
    makes the guide that is trained.

    Args:
        model, guide, data, batch_size, runtime: of the program.
        tolerated: kinds of findings that are none here, "support" or "nothing to train".

    Raises:
        DataError: the data do not fit the call of the model or the guide.
        OptionError: the guide or the batch size cannot be used with this model.
        ProgramError: model or guide raised, or they do not belong together.
    """
    examination = examine(model, guide, data, batch_size=batch_size, runtime=runtime, tolerated=tolerated)
    errors = errors_among(examination.findings)
    if errors or examination.program is None:
        raise as_error(*errors)
    return examination.program


def examine(
    model: Callable[..., Any],
    guide: object,
    data: Data,
    *,
    batch_size: Mapping[str, int],
    runtime: Runtime,
    tolerated: Collection[str] = (),
) -> Examination:
    """What `build_program` does, with all that it finds wrong; it raises for a wrong call alone.

    Raises:
        OptionError: model or guide is nothing that could be called.
    """
    if not callable(model) or isinstance(model, type):
        raise OptionError(f"model must be a callable with Pyro statements, got {model!r}")
    it = Examination(list(module_findings(model, guide)))
    with it.noting():
        data = check_call("model", model, data)
    if it.findings:
        return it
    for module in find_modules(model, guide):
        module.to(dtype=runtime.dtype, device=runtime.device)

    model_leaves, guide_leaves = (Leaves(runtime.dtype, runtime.device) for _ in range(2))
    probe, typical = ProbeRows(batch_size), InitMessenger(typical_value)
    tracer: Any = poutine.trace(model_leaves(model))

    def run_model() -> Any:
        with torch.no_grad(), probe, typical:
            return tracer.get_trace(*data.args, **data.kwargs)

    trace = _run(it, "model", run_model, data, batch_size, runtime.device)
    if trace is None:
        it.model_sites = read_sites(tracer.trace)
        return it
    it.model_sites = sites = read_sites(trace)
    it.add(*batch_size_findings(sites, tuple(probe.sizes), batch_size))
    if not (batch_size and it.findings):  # rows that are not taken give other shapes everywhere
        found = value_findings("model", trace, data, runtime.dtype, batched=tuple(batch_size))
        moving = _moving_supports(trace, found, run_model)
        it.add(*_parameter_findings(model_leaves), *(finding for finding in found if finding.site not in moving))

    recipe: GuideRecipe | None = None
    with it.noting():
        recipe = resolve_guide(guide, model, sites, tuple(batch_size))
    if recipe is None:
        return it
    rows = Rows()
    rows.rows = {name: torch.arange(size) for name, size in batch_size.items()}
    program = Program(
        model=model,
        guide=lambda *args, **kwargs: None,
        recipe=recipe,
        data=data,
        rows=Rows(),
        probe=rows,
        batch_sizes={name: (probe.sizes[name], size) for name, size in batch_size.items() if name in probe.sizes},
        model_sites=sites,
        guide_sites=(),
        enumerated=(),
        model_leaves=model_leaves,
        guide_leaves=guide_leaves,
    )
    with runtime.trial():
        follows = bool(errors_among(it.findings)) and _runs_the_model(guide)
        _examine_guide(it, program, trace, runtime, follows=follows)
    guide_leaves.keep(())
    if not program.latents and not model_leaves.by_name and not errors_among(it.findings):
        message = "the model has no latent sample site and no parameter, so there is nothing to fit: " + (
            ", ".join(f"{site.name!r} is {site.kind}" for site in sites) or "it has no sample statement at all"
        )
        it.add(Finding("nothing to train", "error", None, message))
    it.findings = [finding for finding in it.findings if finding.kind not in tolerated]
    if not errors_among(it.findings):
        with it.noting():
            _sum_out(program)
        it.program = program
    return it


def _run(
    it: Examination,
    role: str,
    once: Callable[[], Any],
    data: Data,
    batch_size: Mapping[str, int],
    device: torch.device,
) -> Any | None:
    """A trace, with validation; where that refuses something, one without, which may go further; None without one."""
    before = len(it.findings)
    batched = tuple(batch_size)
    with it.noting(), validation(True), explained(role, data, batched=batched):
        return once()
    raised = it.findings[before]
    # Of the rows that were asked for; or the program said what is wrong, and all that follows is the same again.
    if raised.error is OptionError or (raised.kind == "raised" and refused_by_itself(raised.cause)):
        return None
    try:
        with validation(False), explained(role, data, batched=batched):
            trace = once()
    except IngleError as error:
        # What was refused is the fault; where the run ends without the refusal is the site that it reaches.
        site = next((finding.site for finding in error.findings), None)
        it.findings[before:] = [replace(finding, site=finding.site or site) for finding in it.findings[before:]]
        return None
    if raised.kind == "device":
        it.findings[before] = elsewhere_finding(raised, trace, device)
        return None
    if raised.kind in ("argument", "not finite"):
        it.findings[before] = argument_finding(raised, trace)
    return trace


def _examine_guide(it: Examination, program: Program, model_trace: Any, runtime: Runtime, *, follows: bool) -> None:
    """Run the guide and match the two; a guide that runs a model with faults is not blamed for them."""
    data, batch_size = program.data, {name: batch for name, (_, batch) in program.batch_sizes.items()}
    of_guide = Examination()

    def run_guide() -> Any:
        program.guide = program.recipe.make(None)
        check_call("guide", program.guide, data)
        with torch.no_grad(), program.probe:
            return program.trace_guide()

    trace = _run(of_guide, "guide", run_guide, data, batch_size, runtime.device)
    bad = _parameter_findings(program.guide_leaves)
    if bad:  # whatever else it did is what such a parameter does
        of_guide.findings = list(bad)
    elif trace is not None and not of_guide.findings:
        of_guide.add(*value_findings("guide", trace, data, runtime.dtype, batched=tuple(batch_size)))
    if not follows:
        it.add(*of_guide.findings)
    if trace is None:
        return
    it.guide_sites = program.guide_sites = read_sites(trace)
    it.add(*match_sites(it.model_sites, it.guide_sites, arguments=argument_names(program.model, data)))
    it.add(*_support_findings(program, model_trace, trace))


def _support_findings(program: Program, model_trace: Any, guide_trace: Any) -> Iterator[Finding]:
    """Where the guide draws what the model cannot have, at latents of the same shape in both."""
    shapes = {site.name: site.value_shape for site in program.latents}
    replayed: Any = None
    for ours in sample_nodes(guide_trace):
        name = ours["name"]
        if shapes.get(name) != tuple(ours["value"].shape) or ours["is_observed"]:
            continue
        finding = support_finding(ours, model_trace.nodes[name])
        if finding is not None and bounds_may_move(model_trace.nodes[name]["fn"]):
            # Bounds computed from other latents are compared at what the guide drew for those.
            try:
                with torch.no_grad(), program.probe:
                    replayed = replayed or poutine.trace(poutine.replay(program.model, trace=guide_trace)).get_trace(
                        *program.data.args, **program.data.kwargs
                    )
                theirs = replayed.nodes[name]["fn"]
                moves = range_of(theirs.support) != range_of(model_trace.nodes[name]["fn"].support)
                finding = support_finding(ours, replayed.nodes[name], moves=moves)
            except Exception:  # a run that raises says nothing of the supports
                finding = None
        if finding is not None:
            yield finding


def _moving_supports(trace: Any, found: tuple[Finding, ...], run: Callable[[], Any]) -> frozenset[str]:
    """Sites whose observed value lies outside a support that depends on a latent: elsewhere it may lie inside."""
    names = [
        finding.site
        for finding in found
        if finding.kind == "outside support" and finding.site and bounds_may_move(trace.nodes[finding.site]["fn"])
    ]
    if not names:
        return frozenset()
    latents = frozenset(node["name"] for node in sample_nodes(trace) if not node["is_observed"])
    try:
        with reached(latents) as draws:
            again = run()
        return frozenset(name for name in names if draws.behind(again.nodes[name]))
    except Exception:  # a run that raises says nothing of the supports
        return frozenset()


def _parameter_findings(leaves: Leaves) -> tuple[Finding, ...]:
    findings = []
    for name, leaf in leaves.by_name.items():
        bad = ~leaf.detach().isfinite()
        if not bool(bad.any()):
            continue
        word = "NaN" if bool(leaf.isnan().any()) else "infinity"
        share = word if leaf.numel() == 1 else f"{word} in {int(bad.sum())} of {leaf.numel()} elements"
        message = f"parameter {name!r} ({share}) is not finite before the first step"
        fix = "start it from a number; an automatic guide takes one by init_loc_fn=init_to_median"
        findings.append(Finding("parameter", "error", None, message, fix))
    return tuple(findings)


def _runs_the_model(guide: object) -> bool:
    """Whether a guide is made by running the model."""
    made: Any = guide.func if isinstance(guide, functools.partial) else guide
    kinds = (autoguide.AutoGuide, GuideMessenger)
    return isinstance(made, (str, *kinds)) or (isinstance(made, type) and issubclass(made, kinds))


def _sum_out(program: Program) -> None:
    """Mark the discrete latents that the guide leaves out, to be summed over."""
    given = {site.name for site in program.guide_sites}
    program.enumerated = tuple(site.name for site in program.latents if site.name not in given)
    if not program.enumerated:
        return
    if program.recipe.finish is not None:
        message = (
            f"guide {program.recipe.description} takes the curvature of the log joint, which does not sum out "
            f"{', '.join(program.enumerated)}"
        )
        fix = "use 'normal' or 'multivariate_normal'"
        raise as_error(Finding("unreachable", "error", program.enumerated[0], message, fix, OptionError))
    names = frozenset(program.enumerated)
    program.model = poutine.infer_config(
        program.model, config_fn=lambda site: {"enumerate": "parallel"} if site["name"] in names else {}
    )
    program.hidden = _downstream_of_enumerated(program)


def _downstream_of_enumerated(program: Program) -> frozenset[str]:
    data, typical, names = program.data, InitMessenger(typical_value), frozenset(program.enumerated)
    with torch.no_grad(), program.probe, typical, reached(names) as draws, program.explained("model"):
        trace: Any = poutine.trace(program.model).get_trace(*data.args, **data.kwargs)
    return frozenset(
        site.name
        for site in program.model_sites
        if site.kind == "deterministic" and draws.behind(trace.nodes[site.name])
    )
