"""`Evidence`: an estimate of log p(x), and how far to trust it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ingle.evidence.psis import draws_for, khat_threshold, tail_length
from ingle.evidence.stream import Summary

__all__ = ["Evidence", "Pointwise", "Verdict", "digits", "error", "from_summary"]

Verdict = Literal["exact", "reliable", "costly", "doubtful", "unreliable", "unknown"]

_FEWEST = 100  # draws below which k-hat is not given, and effective draws below which an error bar is no error bar
_COSTLY = 0.05  # effective draws of those drawn
_SOME = 0.01  # of elements, that may be beyond trust in a total that is not
_FINITE = 0.5  # k-hat from which a variance is infinite
_MANY = 0.05  # of elements, that may be so
_APART = 4.0  # standard errors between two starts that tell of a fault
_ROUNDING = 32  # units of rounding by which weights may differ that are the same


@dataclass(frozen=True)
class Pointwise:
    """Estimates for each element of a plate, arrays of shape (elements,).

    Attributes:
        log_z: log p(x_i), in nats.
        se: its standard error.
        ess: effective sample size.
        khat: shape of the tail of the weights.
        elbo: mean log weight, in nats, and `elbo_se`, its standard error.
        gap_se: standard error of log_z - elbo.
        zero, nan, infinite: how many of the weights are so.
    """

    log_z: NDArray[np.float64]
    se: NDArray[np.float64]
    ess: NDArray[np.float64]
    khat: NDArray[np.float64]
    elbo: NDArray[np.float64]
    elbo_se: NDArray[np.float64]
    gap_se: NDArray[np.float64]
    zero: NDArray[np.int64]
    nan: NDArray[np.int64]
    infinite: NDArray[np.int64]


@dataclass(frozen=True, repr=False)
class Evidence:
    """An estimate of log p(x) from weighted draws; prints as a card.

    Attributes:
        log_z: the estimate, the log of the mean of the raw weights, in nats; with `per`, the sum over elements.
        se: its standard error by the delta method, in nats. For AIS, from independent batches.
        bias: of second order, of the log of a mean: -se^2 / 2, summed over elements; not taken off `log_z`.
        ess: effective sample size, (sum w)^2 / sum w^2; the least of all elements.
        khat: shape of the tail of the weights, the largest of all elements; NaN where it is not given, see `reason`.
        khat_threshold: the most at which this many draws can be trusted.
        num_samples: draws.
        verdict: "exact" (nothing was estimated), "reliable", "costly" (right, by few of the draws), "doubtful" (near,
            but the error may be larger than it says), "unreliable", or "unknown" (too few draws to tell).
        reason: the same in a sentence, with what to do.
        elbo: mean log weight, in nats, and `elbo_se`, its standard error; a bound from below on average.
        gap_se: standard error of log_z - elbo, smaller than both since the same draws gave them.
        zero, nan, infinite: how many weights, of all elements, are zero, NaN (counted as zero) or infinite.
        needed: draws that the k-hat asks for; NaN where there is none.
        model: name.
        guide: description.
        proposal: where the draws came from.
        per: the plate whose elements were estimated one by one; None for one weight a draw.
        pointwise: its elements; None without `per`.
        starts: for AIS, the estimates from each start by name, as (log_z, se); empty otherwise.
        notes: what else should be known.
        seconds: of wall-clock time.
        dtype, device, seed, engine: what ran.
        data: of each observed site how many numbers it has, their mean and their mean square.
    """

    log_z: float
    se: float
    bias: float
    ess: float
    khat: float
    khat_threshold: float
    num_samples: int
    verdict: Verdict
    reason: str
    elbo: float
    elbo_se: float
    gap_se: float
    zero: int
    nan: int
    infinite: int
    needed: float
    model: str
    guide: str
    proposal: str
    per: str | None
    pointwise: Pointwise | None
    starts: Mapping[str, tuple[float, float]]
    notes: tuple[str, ...]
    seconds: float
    dtype: torch.dtype
    device: torch.device
    seed: int
    engine: str
    data: Mapping[str, tuple[int, float, float]] = field(default_factory=dict)

    @property
    def _has_error(self) -> bool:
        return math.isfinite(self.log_z) and math.isfinite(self.se)

    def __repr__(self) -> str:
        exact = self.verdict == "exact"
        rows = "" if self.pointwise is None else f", summed over {len(self.pointwise.log_z):,} elements of {self.per!r}"
        value = f"{self.log_z:,.{6 if exact else digits(self.se)}f}"
        told = " nats, exactly" if exact else f" ± {error(self.se)} nats (standard error)"
        lines = [
            f"Evidence of {self.model}",
            f"  log Z       {value}{told if exact or self._has_error else ' nats'}{rows}",
        ]
        if not exact:
            of = f" (k-hat asks for {_count(self.needed)})" if self.needed > self.num_samples else ""
            worst = "" if self.pointwise is None else ", at the worst element"
            tail = f"{self.khat:.2f}, trusted below {self.khat_threshold:.2f}"
            if math.isnan(self.khat):
                even = self.num_samples >= _FEWEST and self.verdict in ("reliable", "costly")
                tail = "not given" + (": the largest weights are all equal, so they have no tail" if even else "")
            lines += [
                f"  draws       {self.num_samples:,} from {self.proposal}{of}",
                f"  ESS         {self.ess:,.0f}{worst}",
                f"  k-hat       {tail}{worst if not math.isnan(self.khat) else ''}",
            ]
            if self._has_error:
                lines[1] += f", bias {self.bias:.1g}"
        for name, (log_z, se) in self.starts.items():
            lines.append(f"  from        {name}: {log_z:,.{digits(se)}f} ± {error(se)}")
        odd = [
            f"{count:,} {name}"
            for name, count in {"zero": self.zero, "NaN": self.nan, "infinite": self.infinite}.items()
            if count
        ]
        if odd:
            total = self.num_samples * (1 if self.pointwise is None else len(self.pointwise.log_z))
            lines.append(f"  weights     {', '.join(odd)} of {total:,}")
        lines.append(f"  {self.verdict:<11} {self.reason}")
        lines += [f"  note        {note}" for note in self.notes]
        dtype = str(self.dtype).removeprefix("torch.")
        ran = f"{self.seconds:.1f} s, {self.engine}, {dtype} on {self.device}, seed {self.seed}; guide {self.guide}"
        lines.append(f"  ran         {ran}")
        return "\n".join(lines)


def from_summary(
    summary: Summary,
    *,
    num_samples: int,
    per: str | None,
    rest: float,
    exact: bool,
    starts: Mapping[str, tuple[float, float]] | None = None,
    apart: float = math.nan,
    **told: Any,
) -> Evidence:
    """The result of sums over draws.

    Args:
        summary: of the weights.
        num_samples: draws.
        per: the plate whose elements have weights of their own.
        rest: log densities that belong to no element, in nats.
        exact: nothing had to be drawn.
        starts: of AIS.
        apart: by how many standard errors they differ.
        **told: the other attributes.
    """
    pointwise = None
    if per is not None:
        names = ("log_z", "se", "ess", "khat", "elbo", "elbo_se", "gap_se", "zero", "nan", "infinite")
        pointwise = Pointwise(**{name: getattr(summary, name) for name in names})
    with np.errstate(invalid="ignore"):
        khats = summary.khat[~np.isnan(summary.khat)]
        log_z, elbo = float(summary.log_z.sum()) + rest, float(summary.elbo.sum()) + rest
        se, elbo_se, gap_se = (float(np.sqrt((x**2).sum())) for x in (summary.se, summary.elbo_se, summary.gap_se))
    khat = float(khats.max()) if khats.size else math.nan
    ess = float(summary.ess.min()) if summary.ess.size else math.nan
    threshold = khat_threshold(num_samples)
    rounding = _ROUNDING * torch.finfo(told["dtype"]).eps
    verdict, reason = judged(summary, num_samples, threshold, proposal=str(told["proposal"]), rounding=rounding)
    if exact and not (summary.nan.any() or summary.infinite.any()):
        verdict, reason = "exact", "nothing was drawn: the model has no latents, or all are given or summed out"
        se = elbo_se = gap_se = 0.0
        summary = replace(summary, se=np.zeros_like(summary.se))
        if log_z == -math.inf:
            reason = "nothing was drawn: the data are impossible under the model"
    elif not math.isfinite(rest):
        verdict = "unreliable"
        reason = f"no: what the model says outside of plate {per!r} has log density {rest}; check the data and `given`"
    elif apart > _APART:
        verdict = "unreliable"
        reason = (
            f"no: the estimates from the two starts are {apart:.1f} standard errors apart, so at least one of them has "
            "not been everywhere; the higher is nearer as a rule. Take more draws, or a better guide"
        )
    return Evidence(
        log_z=log_z,
        se=se,
        bias=-0.5 * float((summary.se**2).sum()),
        ess=ess,
        khat=khat,
        khat_threshold=threshold,
        num_samples=num_samples,
        verdict=verdict,
        reason=reason,
        elbo=elbo,
        elbo_se=elbo_se,
        gap_se=gap_se,
        zero=int(summary.zero.sum()),
        nan=int(summary.nan.sum()),
        infinite=int(summary.infinite.sum()),
        needed=draws_for(khat),
        per=per,
        pointwise=pointwise,
        starts={name: (value + rest, error) for name, (value, error) in (starts or {}).items()},
        **told,
    )


def judged(
    summary: Summary, num_samples: int, threshold: float, *, proposal: str, rounding: float
) -> tuple[Verdict, str]:
    """How far to trust sums over draws, and the sentence that says it.

    Args:
        summary: the sums.
        num_samples: draws.
        threshold: the most k-hat at which they can be trusted.
        proposal: where they came from.
        rounding: relative spread of log weights that is none.
    """
    none = summary.log_z == -np.inf
    of = f" for {int(none.sum()):,} of {none.size:,} elements" if none.size > 1 else ""
    if summary.infinite.any():
        return "unreliable", (
            "no: the model's density is infinite at some draws, so their weights are infinite and so is the estimate; "
            "look for a scale that can be zero, or a pyro.factor that adds infinity"
        )
    if summary.nan.any():
        return "unreliable", (
            "no: weights that are NaN were counted as zero, so the estimate lacks whatever they hold; look for a "
            "log or a division in the model that fails at a draw of the proposal"
        )
    if none.any():
        return "unreliable", (
            f"no: every weight is zero{of}. The model holds no draw possible with these data: either the data are "
            f"impossible under the model, or {proposal} misses where they are possible"
        )
    if np.all(summary.se * np.sqrt(num_samples) < rounding * (1 + np.abs(summary.log_z))):
        return "exact", "every weight is the same up to rounding: the proposal is the posterior"
    if num_samples < _FEWEST:
        return "unknown", (
            f"not known: k-hat is fitted to the tail of at least {_FEWEST} draws, and there are {num_samples}; take "
            "num_samples=1_000 or more"
        )
    ess, khat = summary.ess, summary.khat
    heavy, thin = khat > threshold, ess < _FEWEST
    bad = heavy | thin
    if bad.mean() > _SOME:
        return "unreliable", _doubts(summary, bad, heavy, num_samples, threshold, proposal)
    few = (
        f" but for {int(bad.sum()):,} of {bad.size:,} elements, see pointwise.khat and pointwise.ess"
        if bad.any()
        else ""
    )
    noise = (1 + _FINITE) / math.sqrt(tail_length(num_samples))  # the standard error of a k-hat of that size
    if (khat > _FINITE + noise).mean() > _MANY:
        return "doubtful", (
            f"near{few}, but with k-hat above {_FINITE} the weights may have no finite variance: the estimate is too "
            "low more often than too high, by more than the standard error says. More draws narrow it down; a guide "
            "with heavier tails, defensive=0.1 or proposal='ais' mend it"
        )
    least = ess[~bad].min()
    if least < _COSTLY * num_samples:
        return "costly", (
            f"reliable{few}, but dear: the weights of {num_samples:,} draws are worth {least:,.0f} even ones; a guide "
            "nearer to the posterior gives the same error with fewer draws"
        )
    return "reliable", (
        f"yes{few}: the tail of the weights is short enough for the standard error to hold. Draws that miss a region "
        "altogether cannot show it; defensive=0.1 looks there"
        if "prior" not in proposal
        else f"yes{few}: the tail of the weights is short enough for the standard error to hold"
    )


def _doubts(
    summary: Summary, bad: NDArray[Any], heavy: NDArray[Any], num_samples: int, threshold: float, proposal: str
) -> str:
    share = "" if bad.size == 1 else f" for {int(bad.sum()):,} of {bad.size:,} elements"
    khats = summary.khat[~np.isnan(summary.khat)]
    worst = float(khats.max()) if khats.size else math.nan
    needed = draws_for(worst)
    cure = "fit a guide of a wider family or with heavier tails, try defensive=0.1, or use proposal='ais'"
    if proposal == "the prior":
        cure = "use a fitted guide as the proposal, or proposal='ais'"
    elif "prior" in proposal:
        cure = "fit a guide that covers more of the posterior, another mode perhaps, or use proposal='ais'"
    if heavy.any():
        more = f"take num_samples={_count(needed)}, or " if num_samples < needed <= 100 * num_samples else ""
        return (
            f"no{share}: k-hat {worst:.2f} is above {threshold:.2f}, so a few draws hold most of the weight and others "
            f"like them were not seen; {more}{cure}"
        )
    return (
        f"no{share}: the weights are worth {float(summary.ess.min()):,.0f} even ones, too few for a standard error; "
        f"take more draws, {cure}"
    )


def _count(draws: float) -> str:
    if not math.isfinite(draws):
        return "more than any number"
    return f"{math.ceil(draws):,}" if draws < 1e7 else f"{draws:.0e}"


def digits(se: float) -> int:
    """Decimals that an error of this size leaves meaning in."""
    if not math.isfinite(se) or se <= 0:
        return 6
    return min(max(1 - math.floor(math.log10(se)), 0), 9)


def error(se: float) -> str:
    """A standard error with two digits that mean something."""
    return f"{se:.2g}" if not se >= 100 else f"{se:,.0f}"
