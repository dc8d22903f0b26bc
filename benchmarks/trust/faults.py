"""Fits that are broken on purpose: does the verdict say so?

Each fault runs over families and seeds until 100 of its fits are wrong by the reference; those that the fault left
right are counted apart. "Needed" is the fewest steps of Adam at 0.01, doubled from 50, after which the fit is right.
"""

from __future__ import annotations

import functools
import itertools
import json
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuideList, AutoMultivariateNormal, AutoNormal
from trust.families import FAMILIES, Case, make
from trust.families.errors import errors, is_right

import ingle
from benchmarks.trust import CACHE
from benchmarks.trust.fits import GUIDES, fit_case, load_reference, moments
from benchmarks.trust.results import Record, Results, run_all

__all__ = ["FAULTS", "PART", "run"]

PART = "faults"
RATE = 0.01
LADDER = tuple(50 * 2**k for k in range(9))
_EAGER = 400  # steps that are as quick without compiling

Guide = Any
Plan = tuple[Guide, dict[str, Any]]


@dataclass(frozen=True)
class Fault:
    """One way to break a fit.

    Attributes:
        families: that it can break.
        guides: variants to take in turn.
        plan: guide and options of a case, given the variant and the case's reference; None where it does not apply.
    """

    families: tuple[str, ...]
    guides: tuple[str, ...]
    plan: Callable[[Case, str, Any], Plan | None]


class Narrow(AutoNormal):
    """Mean field whose scales are fixed: buffers `fixed_` and the name of the latent."""

    def _get_loc_and_scale(self, name: str) -> tuple[torch.Tensor, torch.Tensor]:
        loc, scale = super()._get_loc_and_scale(name)
        return loc, getattr(self, f"fixed_{name}").to(loc) + 0.0 * scale


def narrow(case: Case, guide: str, reference: Any) -> Plan:
    """Scales at a third of the best mean field's."""
    sds, start, made = torch.tensor(reference["best"]["normal"]["sd"]) / 3, 0, Narrow(_visible(case))
    for name in case.latents:
        shape = torch.as_tensor(reference["moments"][name]["mean"]).shape
        free = torch.Size([shape[0] - 1]) if name == "part" else shape  # shares add up to one
        sd = sds[start : start + free.numel()].reshape(free)
        made.register_buffer(f"fixed_{name}", sd)
        start += free.numel()
    return made, {}


def apart(case: Case, guide: str, reference: Any) -> Plan:
    """All but the first latent in one multivariate normal, the first by itself."""
    first, model = case.latents[0], _visible(case)
    made = AutoGuideList(model)
    made.append(AutoNormal(poutine.block(model, expose=[first])))
    made.append(AutoMultivariateNormal(poutine.block(model, hide=[first])))
    return made, {}


def one_mode(case: Case, guide: str, reference: Any) -> Plan:
    """Nothing is done: a Gaussian has one mode."""
    return guide, {}


def short(case: Case, guide: str, reference: Any) -> Plan | None:
    """A tenth of the steps needed."""
    steps = needed(case, guide, reference)
    return None if steps is None else _adam(guide, RATE, max(1, steps // 10))


def fast(case: Case, guide: str, reference: Any) -> Plan | None:
    """A learning rate a hundred times too large."""
    steps = needed(case, guide, reference)
    return None if steps is None else _adam(guide, 100 * RATE, max(steps, 500))


def slow(case: Case, guide: str, reference: Any) -> Plan | None:
    """A learning rate a hundred times too small."""
    steps = needed(case, guide, reference)
    return None if steps is None else _adam(guide, RATE / 100, steps)


def needed(case: Case, guide: str, reference: Any) -> int | None:
    """The fewest steps of the ladder after which the fit is right; None where none are enough. Kept on disk."""
    file = CACHE / "needed" / f"{case.family}-{case.seed}-{guide}.json"
    if not file.exists():
        found = _needed(case, guide, reference)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(found))
    kept: int | None = json.loads(file.read_text())
    return kept


def _needed(case: Case, guide: str, reference: Any) -> int | None:
    fit = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for before, steps in zip((0, *LADDER), LADDER, strict=False):
            if fit is None:
                fit = ingle.fit(
                    case.model,
                    _resolved(guide),
                    case.data,
                    optim=functools.partial(torch.optim.Adam, lr=RATE),
                    steps=steps,
                    compile="full",
                    progress=False,
                )
            else:
                fit = fit.resume(steps - before)
            if is_right(*errors(moments(fit, case.latents), reference["moments"])):
                return steps
    return None


_CLASSES = {"AutoNormal": AutoNormal, "AutoMultivariateNormal": AutoMultivariateNormal}
_ALL = tuple(sorted(FAMILIES))
_ANY_GUIDE = (*GUIDES, *_CLASSES)  # by name, with the start that Ingle finds, and by class, with Pyro's
FAULTS: dict[str, Fault] = {
    "a tenth of the steps": Fault(_ALL, _ANY_GUIDE, short),
    "learning rate x 100": Fault(_ALL, _ANY_GUIDE, fast),
    "learning rate / 100": Fault(_ALL, _ANY_GUIDE, slow),
    "scales at a third": Fault(_ALL, ("Narrow",), narrow),
    "a correlated pair missed": Fault(
        ("linear", "scaled", "autoregression", "robust", "logistic", "poisson", "ordered"), ("apart",), apart
    ),
    "a mode missed": Fault(("two modes",), GUIDES, one_mode),
}


def run(
    results: Results,
    families: Sequence[str],
    seeds: Sequence[int],
    processes: int,
    *,
    prepare: Callable[[list[str], int], None],
    names: Sequence[str] = tuple(FAULTS),
    enough: int = 100,
) -> None:
    """Fits of each fault, a round of families and guides at a time, until enough of them are wrong.

    Args:
        results, families, seeds, processes: of the run.
        names: of the faults.
        prepare: makes the references of families for the seeds below a number.
        enough: wrong fits of each fault.
    """
    for name, fault in FAULTS.items():
        if name not in names:
            continue
        chosen = [family for family in fault.families if family in families]
        for number, seed in enumerate(seeds):
            if sum(harmful(record) for record in results.part(PART) if record["fault"] == name) >= enough:
                break
            # By name and by class in turn where there are many, so that all families come before any comes often.
            tasks = [
                (f"{PART}/{name}/{family}/{seed}/{guide}", name, family, seed, guide)
                for place, (family, guide) in enumerate(itertools.product(chosen, fault.guides))
                if len(fault.guides) < 3 or (place % len(fault.guides) - number - place // len(fault.guides)) % 4 == 0
            ]
            prepare(chosen, seed + 1)
            run_all(one, tasks, results, processes)


def harmful(record: Record) -> bool:
    """The fault made the fit wrong, or broke it off with an error."""
    if record["status"] in ("no reference", "not applicable"):
        return False
    return bool(record["raised"]) or not is_right(record["mean_error"], record["sd_error"])


def one(task: tuple[Any, ...]) -> Record:
    key, name, family, seed, guide = task
    about = {"key": key, "part": PART, "fault": name, "family": family, "seed": seed, "guide": guide}
    nothing = {"mean_error": None, "sd_error": None}
    reference = load_reference(family, seed)
    if reference["kind"] == "none":
        return {**about, "status": "no reference", **nothing}
    case = make(family, seed)
    try:
        plan = FAULTS[name].plan(case, guide, reference)
    except ingle.IngleError as error:
        return {**about, "status": "not applicable", "reasons": [str(error)], **nothing}
    if plan is None:
        return {**about, "status": "not applicable", "reasons": ["never right by Adam at 0.01"], **nothing}
    made, options = plan
    return {**about, **fit_case(case, made, reference["moments"], **{"compile": "full", **options})}


def _adam(guide: str, rate: float, steps: int) -> Plan:
    options = {"optim": functools.partial(torch.optim.Adam, lr=rate), "steps": steps}
    return _resolved(guide), {**options, "compile": "off" if steps <= _EAGER else "full"}


def _resolved(guide: str) -> Any:
    return _CLASSES.get(guide, guide)


def _visible(case: Case) -> Callable[..., Any]:
    """The model without the latents that are summed out."""
    return poutine.block(case.model, hide=["upper"]) if case.family == "mixture" else case.model  # type: ignore[no-any-return]
