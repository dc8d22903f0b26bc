"""Whether two evidences are of the same observed data, as far as sums over them tell."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch

from ingle.errors import OptionError
from ingle.evidence.evidence import Evidence

__all__ = ["refuse_other_data"]

Told = tuple[int, float, float]  # how many numbers, their mean, their mean square

_ROUNDING = 16  # units of rounding by which sums over the same data may differ, relative to their size


def refuse_other_data(evidences: Mapping[str, Evidence]) -> list[str]:
    """Raise where evidences are of different data; the names of those that do not tell theirs, as with `pyro.factor`.

    Sites may have other names, and one model may observe in several sites what another has in one. Count, mean and mean
    square are compared, up to rounding, so two standardised data sets of one size look the same.

    Raises:
        OptionError: the data of two differ.
    """
    known = {name: evidence for name, evidence in evidences.items() if evidence.data}
    for name, evidence in known.items():
        first_name, first = next(iter(known.items()))
        if not _same(first, evidence):
            raise OptionError(
                f"evidences of different data cannot be compared: {first_name!r} observes {_words(first.data)}, and "
                f"{name!r} {_words(evidence.data)}. Give all models the same values, on the same scale"
            )
    return [name for name in evidences if name not in known]


def _same(ours: Evidence, theirs: Evidence) -> bool:
    rounding = _ROUNDING * max(torch.finfo(evidence.dtype).eps for evidence in (ours, theirs))
    a, b = ([told for told in evidence.data.values() if told[0]] for evidence in (ours, theirs))
    if sorted(told[0] for told in a) != sorted(told[0] for told in b):  # cut into sites in another way
        a, b = [_pooled(a)], [_pooled(b)]
    left = list(b)
    for told in a:
        match = next((place for place, other in enumerate(left) if _close(told, other, rounding)), None)
        if match is None:
            return False
        left.pop(match)
    return not left


def _pooled(several: list[Told]) -> Told:
    n = sum(told[0] for told in several)
    return n, *(math.fsum(told[0] * told[place] for told in several) / max(n, 1) for place in (1, 2))  # type: ignore[return-value]


def _close(ours: Told, theirs: Told, rounding: float) -> bool:
    size = max(ours[2], theirs[2])
    return (
        ours[0] == theirs[0]
        and abs(ours[1] - theirs[1]) <= rounding * math.sqrt(size)
        and abs(ours[2] - theirs[2]) <= rounding * size
    )


def _words(data: Mapping[str, Told]) -> str:
    shown = [
        f"{site} ({n:,} numbers, mean {mean:.7g}, mean square {square:.7g})" for site, (n, mean, square) in data.items()
    ]
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")
