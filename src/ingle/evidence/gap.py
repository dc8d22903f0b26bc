"""`elbo_gap`: how far the ELBO of a fit lies below log p(x), and what that is made of."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ingle.errors import OptionError
from ingle.evidence.elements import Elements, resolve_per
from ingle.evidence.estimate import estimate
from ingle.evidence.evidence import Evidence, Verdict, digits, error, from_summary
from ingle.evidence.local import Unsplit, free
from ingle.evidence.refine import refine, weigh
from ingle.evidence.sampler import Sampler
from ingle.evidence.survey import Survey
from ingle.options import positive_integer
from ingle.program import Program
from ingle.runtime import Runtime

__all__ = ["ElboGap", "PointwiseGap", "elbo_gap", "gap_of"]

Array = NDArray[np.float64]

_STEPS = 500  # of refinement where the user names no number
_UNDER_WAY = 0.01  # of the refined parameters that may not have come to rest
_WIDTH = 1.96  # standard errors that a gap has to be larger than
_TRUST: tuple[Verdict, ...] = ("exact", "reliable", "costly", "doubtful", "unknown", "unreliable")


@dataclass(frozen=True)
class PointwiseGap:
    """The gaps of each element of a plate, in nats, arrays of shape (elements,); NaN where they were not split.

    Attributes:
        log_z, log_z_se: log p(x_i) and its standard error.
        elbo, elbo_se: of the guide, and its standard error.
        gap, gap_se: log_z - elbo and its standard error.
        refined_elbo, refined_elbo_se: with the parameters of the element refined.
        approximation, approximation_se: log_z - refined_elbo and its standard error.
        amortisation, amortisation_se: refined_elbo - elbo and its standard error.
    """

    log_z: Array
    log_z_se: Array
    elbo: Array
    elbo_se: Array
    gap: Array
    gap_se: Array
    refined_elbo: Array
    refined_elbo_se: Array
    approximation: Array
    approximation_se: Array
    amortisation: Array
    amortisation_se: Array


@dataclass(frozen=True, repr=False)
class ElboGap:
    """The distance of an ELBO from the log evidence; prints as a card.

    Attributes:
        log_z, log_z_se: log p(x) and its standard error, in nats, from draws of the guide or of the refined guide,
            whichever can be trusted further.
        elbo, elbo_se: of the guide, all rows, in nats, and its standard error.
        gap, gap_se: log_z - elbo = KL(q || posterior), in nats, and its standard error.
        refined_elbo, refined_elbo_se: the best ELBO of the guide's family, as found by refining; NaN without a split.
        approximation, approximation_se: log_z - refined_elbo, what the family cannot reach; NaN without a split.
        amortisation, amortisation_se: refined_elbo - elbo, what the encoder lost; NaN without a split.
        verdict: how far log_z can be trusted, as of `Evidence`.
        unsplit: why the gap was not split in two, in words; empty where it was.
        sentence: all of it in words.
        per: the plate whose elements were taken one by one; None for one weight a draw.
        steps: of refinement, for each element; 0 without a split.
        evidence: from draws of the guide.
        refined: from draws of the refined guide; None without a split.
        pointwise: the same for each element; None without `per`.
        notes: what else should be known.
        seconds: of wall-clock time.
    """

    log_z: float
    log_z_se: float
    elbo: float
    elbo_se: float
    gap: float
    gap_se: float
    refined_elbo: float
    refined_elbo_se: float
    approximation: float
    approximation_se: float
    amortisation: float
    amortisation_se: float
    verdict: Verdict
    unsplit: str
    sentence: str
    per: str | None
    steps: int
    evidence: Evidence
    refined: Evidence | None
    pointwise: PointwiseGap | None
    notes: tuple[str, ...]
    seconds: float

    def __repr__(self) -> str:
        source = self.evidence if self.refined is None or self.log_z == self.evidence.log_z else self.refined
        rows = "" if self.pointwise is None else f", summed over {len(self.pointwise.gap):,} elements of {self.per!r}"
        lines = [
            f"ELBO gap of {self.evidence.model}",
            f"  log Z       {_told(self.log_z, self.log_z_se)}, {self.verdict}, from draws of {source.proposal}{rows}",
            f"  ELBO        {_told(self.elbo, self.elbo_se)}",
            f"  gap         {_told(self.gap, self.gap_se)} = KL(q || posterior)",
        ]
        if self.unsplit:
            lines.append(f"  not split   {self.unsplit}")
        else:
            lines += [
                f"    family    {_told(self.approximation, self.approximation_se)} (approximation gap), log Z less the "
                f"ELBO {_told(self.refined_elbo, self.refined_elbo_se)} after {self.steps:,} steps for each element",
                f"    encoder   {_told(self.amortisation, self.amortisation_se)} (amortisation gap)",
            ]
        lines.append(f"  in words    {self.sentence}")
        lines += [f"  note        {note}" for note in self.notes]
        evidence = self.evidence
        lines.append(
            f"  ran         {self.seconds:.1f} s, {evidence.num_samples:,} draws, "
            f"{str(evidence.dtype).removeprefix('torch.')} on {evidence.device}, seed {evidence.seed}; guide "
            f"{evidence.guide}"
        )
        return "\n".join(lines)


def elbo_gap(
    fit: Any,
    num_samples: int = 10_000,
    *,
    per: str | None = None,
    refine: int | None = None,
    seed: int | None = None,
) -> ElboGap:
    r"""Estimate what the ELBO of a fit lacks to log p(x), and how much of it is the encoder's.

        log Z - ELBO(q) = KL(q || p(z | x)) = (log Z - ELBO(q*)) + (ELBO(q*) - ELBO(q)),

    where q* is the best of the guide's family for each datum: what the family cannot reach (approximation gap), and
    what a network that serves all data loses (amortisation gap). For q* the distributions that the guide gives its
    local latents are freed of the network, and the parameters of each datum refined by themselves, those of the model
    fixed. The second part is what the steps found, so that it is at least this on average. All ELBOs and log Z are
    taken from fresh draws, so that a part may come out below zero by its error.

    Args:
        fit: a `Fit`; its parameters stay as they are.
        num_samples: draws for log Z and for each ELBO.
        per: the plate of the data, whose elements share no latent. None takes the plate that holds all latents where
            there is one, and else one weight a draw for all data.
        refine: steps of refinement; 0 for none, None for 500. Only a guide that is amortised over the plate is refined,
            whose local latents are drawn independently of each other from distributions with pathwise gradients;
            `unsplit` says why another was not.
        seed: of the draws; None gives the same estimate at every call.

    Returns:
        An `ElboGap`: log Z, ELBO, gap and its parts in nats, each with its standard error; `pointwise` arrays.

    Raises:
        OptionError: what is no `Fit`, a value that an option cannot take, or a guide without importance weights.
        ProgramError: model or guide raised.

    References:
        Cremer, Li and Duvenaud (2018), Inference Suboptimality in Variational Autoencoders.

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y):
        ...     with pyro.plate("data", len(y)):
        ...         z = pyro.sample("z", dist.Normal(0.0, 1.0))
        ...         pyro.sample("y", dist.Normal(z, 1.0), obs=y)
        >>> def guide(y):
        ...     slope = pyro.param("slope", torch.tensor(0.1))  # 0.5 is the posterior's
        ...     scale = pyro.param("scale", torch.tensor(0.5**0.5))
        ...     with pyro.plate("data", len(y)):
        ...         pyro.sample("z", dist.Normal(slope * y, scale))
        >>> fit = ingle.fit(model, guide, torch.tensor([0.5, -1.0, 2.0]), steps=1)
        >>> gap = ingle.elbo_gap(fit, num_samples=1_000, refine=200)
        >>> gap.amortisation > 100 * abs(gap.approximation)
        True
    """
    method = getattr(fit, "elbo_gap", None)
    if not callable(method):
        raise OptionError(f"elbo_gap takes a Fit, as ingle.fit gives it, got {type(fit).__name__}")
    return method(num_samples, per=per, refine=refine, seed=seed)  # type: ignore[no-any-return]


def gap_of(program: Program, runtime: Runtime, *, num_samples: int, per: str | None, refine: int | None) -> ElboGap:
    """The gap of a program as it is now, inside a scope of its runtime; see `elbo_gap` for the options."""
    steps = _STEPS if refine is None else refine
    if steps != 0 or isinstance(steps, bool):
        steps = positive_integer("refine", steps)
    began = time.perf_counter()
    evidence = _evidence(program, runtime, num_samples, per)
    refined, under_way = None, 0.0
    unsplit = _excuse(evidence, steps)
    if not unsplit:
        try:
            refined, under_way = _refined(program, runtime, evidence, steps)
            if not math.isfinite(refined.elbo):
                raise Unsplit("some draws of the refined guide have no weight, so that its ELBO is not finite")
        except Unsplit as reason:
            unsplit, refined, under_way = str(reason), None, 0.0
    return _result(evidence, refined, unsplit, steps, under_way, began)


def _evidence(program: Program, runtime: Runtime, num_samples: int, per: str | None) -> Evidence:
    """From draws of the guide, element by element where that can be."""
    tried = [per] if per is not None else [*_plates(program), None]
    for place, plate in enumerate(tried):
        try:
            return estimate(
                program,
                runtime,
                num_samples=num_samples,
                per=plate,
                proposal="guide",
                defensive=0.0,
                given=None,
                chunk="auto",
            )
        except OptionError:  # its elements share something
            if place == len(tried) - 1:
                raise
    raise AssertionError  # not reached: the last try returns or raises


def _plates(program: Program) -> list[str]:
    """The plates around every latent, the largest first."""
    inside = [
        {plate.name: plate.full_size for plate in site.plates if plate.dim is not None} for site in program.latents
    ]
    if not inside:
        return []
    common = set.intersection(*(set(plates) for plates in inside))
    return sorted(common, key=lambda name: -inside[0][name])


def _excuse(evidence: Evidence, steps: int) -> str:
    """Why there is nothing to refine, as far as the evidence tells."""
    if steps == 0:
        return "refine=0"
    if evidence.verdict == "exact":
        return "there is nothing to split"
    if evidence.per is None:
        return "no plate holds all latents, row by row"
    if not math.isfinite(evidence.elbo):
        return "the ELBO of the guide is not finite: some of its draws have no weight"
    return ""


def _refined(program: Program, runtime: Runtime, guided: Evidence, steps: int) -> tuple[Evidence, float]:
    """The evidence from draws of the refined guide, and the share of parameters that were not at rest in the end."""
    began = time.perf_counter()
    elements: Elements = resolve_per(guided.per, program, ())
    local = free(program, elements)
    with program.at_rest():
        sampler = Sampler(program, runtime, elements, {}, None)
        with torch.no_grad():
            masks = Survey(sampler).masks
        under_way = refine(local, sampler, elements, masks, steps)
        proposal = local.proposal(elements, masks)
        summary = weigh(proposal, sampler, elements, guided.num_samples)
    pointwise = guided.pointwise
    rest = 0.0 if pointwise is None else guided.log_z - float(pointwise.log_z.sum())
    refined = from_summary(
        summary,
        num_samples=guided.num_samples,
        per=guided.per,
        rest=rest,
        exact=False,
        model=guided.model,
        guide=guided.guide,
        proposal=proposal.name,
        starts={},
        notes=guided.notes,
        seconds=time.perf_counter() - began,
        dtype=guided.dtype,
        device=guided.device,
        seed=guided.seed,
        engine=sampler.engine,
        data=guided.data,
    )
    return refined, under_way


def _result(
    evidence: Evidence, refined: Evidence | None, unsplit: str, steps: int, under_way: float, began: float
) -> ElboGap:
    better = refined is not None and _worth(refined) > _worth(evidence)
    best = refined if better and refined is not None else evidence
    numbers = _numbers(evidence, refined, better=better)
    pointwise = None
    if evidence.pointwise is not None:
        elements = _numbers(evidence.pointwise, None if refined is None else refined.pointwise, better=better)
        blank = np.full_like(evidence.pointwise.log_z, math.nan)
        pointwise = PointwiseGap(**{name: blank if np.ndim(x) == 0 else x for name, x in elements.items()})
    notes = list(evidence.notes)
    if under_way > _UNDER_WAY:
        notes.append(
            f"{under_way:.0%} of the refined parameters were still under way when their steps ended: take "
            f"refine={4 * steps}"
        )
    if refined is not None and numbers["amortisation"] < -_WIDTH * numbers["amortisation_se"]:
        notes.append("refining made the ELBO worse, so it did not find the best of the family: take more steps")
    return ElboGap(
        **numbers,
        verdict=best.verdict,
        unsplit=unsplit,
        sentence=_sentence(numbers, best, split=refined is not None),
        per=evidence.per,
        steps=0 if refined is None else steps,
        evidence=evidence,
        refined=refined,
        pointwise=pointwise,
        notes=tuple(notes),
        seconds=time.perf_counter() - began,
    )


def _worth(evidence: Evidence) -> tuple[float, ...]:
    """By which of two estimates of one log Z is chosen: not by which is larger, for that would lift it."""
    points = evidence.pointwise
    heavy = 0 if points is None else int((points.khat > evidence.khat_threshold).sum())
    return -_TRUST.index(evidence.verdict), -heavy, evidence.ess


def _numbers(ours: Any, theirs: Any, *, better: bool) -> dict[str, Any]:
    """Gaps and their errors, from two evidences or from their elements; estimates of other draws are independent."""
    best = theirs if better else ours
    found = {
        "log_z": best.log_z,
        "log_z_se": best.se,
        "elbo": ours.elbo,
        "elbo_se": ours.elbo_se,
        "gap": best.log_z - ours.elbo,
        "gap_se": _both(best.se, ours.elbo_se) if better else ours.gap_se,
    }
    names = ("refined_elbo", "approximation", "amortisation")
    if theirs is None:
        return {**found, **{f"{name}{end}": math.nan for name in names for end in ("", "_se")}}
    return {
        **found,
        "refined_elbo": theirs.elbo,
        "refined_elbo_se": theirs.elbo_se,
        "approximation": best.log_z - theirs.elbo,
        "approximation_se": theirs.gap_se if better else _both(best.se, theirs.elbo_se),
        "amortisation": theirs.elbo - ours.elbo,
        "amortisation_se": _both(theirs.elbo_se, ours.elbo_se),
    }


def _both(one: Any, other: Any) -> Any:
    return (one**2 + other**2) ** 0.5


def _sentence(numbers: dict[str, float], best: Evidence, *, split: bool) -> str:
    gap, se = numbers["gap"], numbers["gap_se"]
    if not math.isfinite(gap):
        return "The gap is not finite, since some draws of the guide have no weight: see the evidence."
    if best.verdict == "exact" and not split:
        return "The guide is the posterior: nothing is left."
    size = 1 if best.pointwise is None else len(best.pointwise.log_z)
    each = "" if best.per is None else f", {gap / size:.3g} for each element of {best.per!r}"
    if best.verdict in ("doubtful", "unreliable", "unknown"):
        said = (
            f"The gap is {error(gap)} nats or more{each}: log Z is {best.verdict}, and where its draws miss something "
            "it comes out too low"
        )
    elif gap <= _WIDTH * se:
        said = f"The gap is within its error: {best.num_samples:,} draws cannot tell the guide from the posterior"
    else:
        said = f"The fit leaves {error(gap)} nats between the guide and the posterior{each}"
    if not split or gap <= _WIDTH * se:
        return f"{said}."
    share = min(max(numbers["amortisation"] / gap, 0.0), 1.0)
    if share > 0.5:
        cure = "more steps or a larger encoder would lessen it"
    else:
        cure = "a richer family, such as full covariances or a flow, would lessen it"
    return f"{said}; {share:.0%} of it is the encoder's and {1 - share:.0%} the family's: {cure}."


def _told(value: float, se: float) -> str:
    return f"{value:,.{min(digits(se), 6)}f} ± {error(se)}"
