"""What a comparison of evidences says, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingle.evidence.evidence import Evidence, digits, error

if TYPE_CHECKING:
    from ingle.evidence.compare import ModelRow

__all__ = ["improper", "notes", "power", "sentence"]

_WIDTH = 1.96  # standard errors on either side, beyond which a difference is taken for one


def sentence(rows: Sequence[ModelRow]) -> str:
    """Which model, how many times more probable, and whether to believe it."""
    best, *others = rows
    finite = [row for row in others if math.isfinite(row.log_z)]
    if not math.isfinite(best.log_z):
        parts = ["No model has a finite evidence: see the evidence of each for the reason."]
    elif not others:
        parts = [f"{best.name!r} is alone: there is nothing to compare it with."]
    elif not finite:
        parts = [f"{best.name!r} alone has a finite evidence."]
    else:
        parts = [_first(best, finite[0])]
    top = max(rows, key=lambda row: -1.0 if math.isnan(row.weight) else row.weight)
    if top is not best and top.weight > best.weight:
        parts.append(f"With the prior as given {top.name!r} is the most probable, with weight {top.weight:.3f}.")
    doubted = [row.name for row in rows if row.warning]
    if doubted:
        named = ", ".join(map(repr, doubted))
        parts.append(
            f"Do not rely on {named}: {'its evidence comes' if len(doubted) == 1 else 'their evidences come'} with a "
            f"warning, see comparison[{doubted[0]!r}].evidence."
        )
    return " ".join(parts)


def _first(best: ModelRow, second: ModelRow) -> str:
    lead, dse = second.log_z_diff, second.dse
    times = f"{power(lead)} times as probable under {best.name!r} as under {second.name!r}, the next"
    apart = f"{lead:,.{digits(dse)}f} ± {error(dse)} nats"
    if math.isnan(dse):
        return f"The data are {times}; the error of that is not known."
    if lead > _WIDTH * dse:
        return f"The data are {times}: {apart}, more than {_WIDTH} standard errors."
    if lead == 0:
        return f"{best.name!r} and {second.name!r} have the same evidence."
    return (
        f"The data are {times}, but {apart} is less than {_WIDTH} standard errors: these draws cannot tell the two "
        "apart, more might."
    )


def notes(rows: Sequence[ModelRow], untold: Sequence[str]) -> tuple[str, ...]:
    """What else should be known of a comparison.

    Args:
        rows: best first.
        untold: names of those that do not tell what they observed.
    """
    found = []
    for row in rows:
        if math.isnan(row.log_z) or row.log_z == math.inf:
            found.append(
                f"the evidence of {row.name!r} is {row.log_z}, so it has no weight and takes no part in the rest"
            )
        elif row.log_z == -math.inf:
            found.append(f"the evidence of {row.name!r} is zero: every weight was, and so is that of the model")
        found += [f"{row.name!r}: {note}" for note in improper(row.evidence)]
    if untold and len(rows) > 1:
        found.append(
            f"what {', '.join(map(repr, untold))} observed is not known, as where pyro.factor holds the likelihood, so "
            "that it is the same was not seen"
        )
    ways = {row.evidence.proposal for row in rows}
    finite = [row for row in rows if math.isfinite(row.log_z)]
    if len({row.evidence.model for row in rows}) == 1 and len(ways) > 1 and len(finite) > 1:
        apart = [row.name for row in finite[1:] if row.log_z_diff > _WIDTH * row.dse]
        found.append(
            f"all are of {rows[0].evidence.model}; where that is one and the same model they should agree within their "
            "errors, and "
            + (
                f"{', '.join(map(repr, apart))} {'does' if len(apart) == 1 else 'do'} not agree with {finite[0].name!r}"
                if apart
                else "they do"
            )
        )
    return tuple(found)


def improper(evidence: Evidence) -> list[str]:
    """The notes that say that a prior is improper."""
    return [note for note in evidence.notes if "improper" in note]


def power(nats: float) -> str:
    """The exponential of a number, that may be more or less than a float holds."""
    if not math.isfinite(nats):
        return "0" if nats == -math.inf else "inf" if nats > 0 else "nan"
    if abs(nats) < 9:
        value = math.exp(nats)
        return f"{value:,.0f}" if value >= 1_000 else f"{value:.3g}"
    exponent = math.floor(nats / math.log(10))
    mantissa = round(math.exp(nats - exponent * math.log(10)), 1)
    if mantissa >= 10:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.1f}e{exponent:+d}".replace("e+", "e")
