"""Families of models with references, by which it is judged whether Ingle can tell that a fit worked.

Each seed of a family has new data, scales and correlations. References are exact where the posterior is conjugate,
Gaussian given one to three hyperparameters, or has so few latents that a grid covers it; the others take long NUTS
(`benchmarks/trust/`), and some of those are kept in tests/trust/references.json.

Thresholds may be tuned on the families of `TUNED`, every second one by name, and are reported on those of `HELD_OUT`.
"""

from __future__ import annotations

from trust.families import counts, hierarchical, regression, shapes
from trust.families.case import Case, Family, Moments

__all__ = ["FAMILIES", "HELD_OUT", "TUNED", "Case", "Family", "Moments", "make"]

FAMILIES: dict[str, Family] = {
    **regression.FAMILIES,
    **hierarchical.FAMILIES,
    **counts.FAMILIES,
    **shapes.FAMILIES,
}
TUNED = tuple(sorted(FAMILIES))[::2]
HELD_OUT = tuple(sorted(FAMILIES))[1::2]


def make(family: str, seed: int) -> Case:
    """The case of a family and a seed."""
    return FAMILIES[family].case(family, seed)
