"""What ranks say of a guide, in words: too high or low, too narrow or wide."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from ingle.calibration.uniform import scores

if TYPE_CHECKING:
    from ingle.calibration.result import Calibration

__all__ = ["Quantity", "Verdict", "card", "read_quantities"]

Verdict = Literal[
    "calibrated", "biased", "too narrow", "too wide", "biased and too narrow", "biased and too wide", "skewed"
]
Floats = NDArray[np.float64]

LEVEL = 0.05  # probability that a calibrated run is told not to be
_LINES = 6  # quantities on a card
_NAME = 24  # letters of one


@dataclass(frozen=True)
class Quantity:
    """What the ranks of one quantity say.

    Attributes:
        name: of the site or quantity.
        verdict: "calibrated"; "biased", where its values are too high or too low on average; "too narrow" or "too
            wide"; both; or "skewed", where the ranks are not uniform and neither is the reason.
        words: the same with figures.
        p_value: the probability of ranks as far from uniform by chance, of the strongest of the tests (exact
            Kolmogorov-Smirnov, mean and variance of normal scores of the ranks, at each number and over all of them),
            the number of tests taken into account, and that of quantities by Holm's rule.
        ks: the smallest Kolmogorov-Smirnov p-value of its numbers, times their count.
        bias: mean of z over fits and numbers: how far the truth lies above the guide, in sds of the guide.
        bias_se: its standard error.
        spread: sd of z: how many times as large the sds of the guide should be.
        outside: in how many of 100 fits the truth lay outside the central half of the draws; 50 is right.
        index: the number of a vector or array that deviates most; None for a scalar.
        numbers: how many numbers it has.
    """

    name: str
    verdict: Verdict
    words: str
    p_value: float
    ks: float
    bias: float
    bias_se: float
    spread: float
    outside: float
    index: tuple[int, ...] | None
    numbers: int

    def line(self) -> dict[str, Any]:
        """The attributes by name."""
        return asdict(self)


@dataclass(frozen=True)
class _Tests:
    """p-values of one quantity, each with the number of its tests taken into account."""

    bias: float
    spread: float
    shape: float
    narrow: bool
    low: bool
    place: int  # the number that deviates most
    single: bool  # one number deviates more than all of them together

    @property
    def least(self) -> float:
        return min(1.0, self.bias, self.spread, self.shape)


def read_quantities(
    ranks: Mapping[str, NDArray[np.int64]], z: Mapping[str, Floats], p_values: Mapping[str, Floats], draws: int
) -> tuple[Quantity, ...]:
    """The verdict on each quantity, the worst first."""
    tests = {
        name: _tested(scores(rank, draws).reshape(len(rank), -1), p_values[name].reshape(-1))
        for name, rank in ranks.items()
        if rank.size
    }
    holm: dict[str, float] = {}
    largest = 0.0
    for place, name in enumerate(sorted(tests, key=lambda name: tests[name].least)):
        largest = max(largest, min(1.0, (len(tests) - place) * tests[name].least))
        holm[name] = largest
    found = [_quantity(name, tests[name], holm[name], ranks[name], z[name], p_values[name], draws) for name in holm]
    return tuple(sorted(found, key=lambda quantity: (quantity.p_value, quantity.name)))


def _tested(x: Floats, ks: Floats) -> _Tests:
    """Tests of normal scores, shape (n, D): of each number, and of all numbers of a fit together.

    Numbers of one fit hang together, and fits do not. So the mean over numbers is one value a fit, held against its own
    variance over fits; the mean square is a chi-square over as many degrees of freedom as its variance over fits shows.
    """
    n, numbers = x.shape
    centred = x - x.mean(0)
    bias = np.array([math.erfc(abs(value) * math.sqrt(n / 2)) for value in x.mean(0)])
    spread = np.array([_chi_square(float(value), n - 1) for value in (centred**2).sum(0)])
    each = 3 * numbers
    found = [float(part.min()) * each for part in (bias, spread, ks)]
    low, narrow = bool(x.mean() > 0), bool((centred**2).sum() > numbers * (n - 1))
    place = int(np.minimum(np.minimum(bias, spread), ks).argmin())
    single = False
    if numbers > 1:
        means, squares = x.mean(1), (centred**2).mean(1) * n / (n - 1)
        t = float(means.mean() / (means.std(ddof=1) / math.sqrt(n)))
        freedom = min(max(2 / max(float(squares.var(ddof=1)), 1e-12), 1.0), float(numbers))
        pooled = [_student(t, n - 1) * 2, _chi_square(float(squares.sum()) * freedom, n * freedom) * 2]
        single = min(found) < min(pooled)
        if single:
            low = bool(x[:, place].mean() > 0)
            narrow = bool((centred[:, place] ** 2).sum() > n - 1)
        found = [2 * min(found[0], pooled[0]), 2 * min(found[1], pooled[1]), 2 * found[2]]
    by_bias, by_spread, by_shape = (min(1.0, value) for value in found)
    return _Tests(by_bias, by_spread, by_shape, narrow=narrow, low=low, place=place, single=single)


def _chi_square(value: float, freedom: float) -> float:
    """Two-sided p-value."""
    half, over = torch.tensor(freedom / 2, dtype=torch.float64), torch.tensor(value / 2, dtype=torch.float64)
    below, above = float(torch.special.gammainc(half, over)), float(torch.special.gammaincc(half, over))
    return min(1.0, 2 * min(below, above))


def _student(t: float, freedom: int) -> float:
    """Two-sided p-value, by Wallace's normal approximation, good to a percent from 19 degrees of freedom on.

    References:
        Wallace (1959), Bounds on Normal Approximations to Student's and the Chi-Square Distributions.
    """
    normal = (8 * freedom + 1) / (8 * freedom + 3) * math.sqrt(freedom * math.log1p(t * t / freedom))
    return math.erfc(normal / math.sqrt(2))


def _quantity(
    name: str, tests: _Tests, p: float, ranks: NDArray[np.int64], z: Floats, ks: Floats, draws: int
) -> Quantity:
    flat, numbers = z.reshape(len(z), -1), max(1, math.prod(ranks.shape[1:]))
    share = (ranks.reshape(len(ranks), -1) + 0.5) / (draws + 1)
    away = (np.abs(share - 0.5) > 0.25).mean(0) * 100
    index = None if ranks.ndim == 1 else tuple(int(part) for part in np.unravel_index(tests.place, ranks.shape[1:]))
    told = slice(tests.place, tests.place + 1) if tests.single else slice(None)
    with np.errstate(invalid="ignore", over="ignore"):
        bias = float(flat[:, told].mean())
        bias_se = float(flat[:, told].mean(1).std(ddof=1) / math.sqrt(len(flat)))
        spread = float(np.sqrt(flat[:, told].var(0, ddof=1).mean()))
    outside = float(away[told].mean())
    verdict, words = _verdict(tests, p, bias, spread, outside, len(ranks))
    if verdict != "calibrated" and index is not None:
        where = ", ".join(map(str, index))
        words += f" (at [{where}])" if tests.single else f" (over all {numbers}; most at [{where}])"
    return Quantity(
        name=name,
        verdict=verdict,
        words=words,
        p_value=p,
        ks=float(min(1.0, ks.min() * numbers)),
        bias=bias,
        bias_se=bias_se,
        spread=spread,
        outside=outside,
        index=index,
        numbers=numbers,
    )


def _verdict(tests: _Tests, p: float, bias: float, spread: float, outside: float, n: int) -> tuple[Verdict, str]:
    if p > LEVEL:
        return "calibrated", "calibrated"
    parts, told = [], []
    if tests.bias <= LEVEL:
        parts.append("biased")
        told.append(
            f"biased: the guide's values are too {'low' if tests.low else 'high'} by {abs(bias):.2g} of its sds"
        )
    # Ranks that are nearly all at one end have no spread, whatever the guide's is: z must say the same.
    if tests.spread <= LEVEL and (spread > 1) == tests.narrow:
        parts.append("too narrow" if tests.narrow else "too wide")
        times = f"the truth falls outside its central 50% interval {outside * n / 100:.0f} times of {n}, "
        # Values that are too low or high miss the interval for that reason.
        told.append(f"{parts[-1]}: {'' if len(parts) > 1 else times}its sds are {_ratio(spread)}")
    if not parts:
        return "skewed", "skewed: the ranks are not uniform, though neither their mean nor their spread is off"
    verdict: Any = " and ".join(parts)
    return verdict, "; ".join(told)


def _ratio(spread: float) -> str:
    """Of the guide's sds against those that it should have."""
    if not (spread > 0 and math.isfinite(spread)):
        return "far off"
    return f"{1 / spread:.2g} {'times' if spread < 1 else 'of'} what is right"


def card(it: Calibration) -> str:
    """The calibration in at most 15 lines."""
    n = it.fits - len(it.failed)
    bad = [quantity for quantity in it.quantities if quantity.verdict != "calibrated"]
    lines = [
        f"Calibration of {it.model} by {it.guide}",
        f"  data        {it.fits:,} sets from {it.source}, seed {it.seed}",
        f"  fits        {it.how}; {it.steps:,} steps, {it.draws:,} draws each, {it.seconds:.1f} s",
    ]
    if it.failed:
        lines.append(
            f"  failed      {len(it.failed)} of {it.fits}, which are left out: the ranks say nothing of their like"
        )
    if bad:
        count = f"{len(bad)} of {len(it.quantities)} quantities {'deviates' if len(bad) == 1 else 'deviate'}"
        lines.append(f"  verdict     not calibrated: {count} by more than chance in 1 of 20 runs")
    else:
        lines.append(f"  verdict     nothing found: {n} ranks deviate no more than by chance")
    width = max(len(_short(quantity.name)) for quantity in it.quantities)
    shown = it.quantities[:_LINES] if len(it.quantities) <= _LINES else it.quantities[: _LINES - 1]
    lines += [f"    {_short(quantity.name):<{width}}  p {_p(quantity.p_value)}  {quantity.words}" for quantity in shown]
    if len(shown) < len(it.quantities):
        rest = it.quantities[len(shown) :]
        also = sum(quantity.verdict != "calibrated" for quantity in rest)
        lines.append(f"    … {len(rest)} more, {also} of them not calibrated: see table()")
    lines += [f"  note        {note}" for note in it.notes[: 13 - len(lines)]]
    own = it.source == "the model itself"
    if bad and own:
        lines.append(
            "  next        more steps; what stays is the guide's: try a richer one, such as 'multivariate_normal'"
        )
    elif bad:
        lines.append(
            "  next        more steps; then data in place of simulate=: what does not show there is the model's"
        )
    elif own:
        lines.append("  sees        faults of guide and fit, not of the model: give simulate= for those")
    return "\n".join(lines)


def _short(name: str) -> str:
    return name if len(name) <= _NAME else f"{name[: _NAME - 1]}…"


def _p(p: float) -> str:
    return "<0.001" if p < 0.001 else f"{p:.3f}"
