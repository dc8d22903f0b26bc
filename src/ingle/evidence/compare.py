"""`compare`: the evidences of several models side by side, and what they say together."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ingle.errors import OptionError
from ingle.evidence.evidence import Evidence, digits, error
from ingle.evidence.picture import draw
from ingle.evidence.same_data import refuse_other_data
from ingle.evidence.words import improper, notes, power, sentence

if TYPE_CHECKING:
    import os

__all__ = ["Comparison", "ModelRow", "compare"]


@dataclass(frozen=True)
class ModelRow:
    """One model among several.

    Attributes:
        name: in the comparison.
        rank: 0 for the largest evidence.
        log_z, se: log evidence and its standard error, in nats.
        log_z_diff: how far it lies below the best, in nats; 0 for the best.
        dse: standard error of that difference, from draws that are independent, in nats.
        prior: probability of the model beforehand.
        weight: probability of the model given the data, among those compared; 0 where the evidence is not finite.
        warning: the estimate is doubtful, unreliable or not known to be reliable, not finite, or of an improper prior.
        pointwise_diff: of each element, its log evidence under the best less that under this one, in nats, shape
            (elements,), where both were estimated element by element on the same plate; None otherwise.
        evidence: the estimate itself.
    """

    name: str
    rank: int
    log_z: float
    se: float
    log_z_diff: float
    dse: float
    prior: float
    weight: float
    warning: bool
    pointwise_diff: NDArray[np.float64] | None
    evidence: Evidence

    @property
    def bayes_factor(self) -> float:
        """Of this model against the best, exp(-log_z_diff), at most 1; 0 where that is below what a float holds."""
        return math.exp(-self.log_z_diff)


@dataclass(frozen=True, repr=False)
class Comparison:
    """Evidences side by side, best first; prints as a table with what it says in words.

    Attributes:
        rows: one for each model, the largest evidence first.
        sentence: what they say.
        notes: what else should be known.
    """

    rows: tuple[ModelRow, ...]
    sentence: str
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> ModelRow:
        """The row of a model."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(f"{name!r}; there are {', '.join(repr(row.name) for row in self.rows)}")

    def to_dataframe(self) -> Any:
        """One line for each model, indexed by name, columns named as those of `az.compare` where they are the same."""
        import pandas as pd

        lines = {
            row.name: {
                "rank": row.rank,
                "log_z": row.log_z,
                "log_z_diff": row.log_z_diff,
                "bayes_factor": row.bayes_factor,
                "prior": row.prior,
                "weight": row.weight,
                "se": row.se,
                "dse": row.dse,
                "khat": row.evidence.khat,
                "num_samples": row.evidence.num_samples,
                "verdict": row.evidence.verdict,
                "warning": row.warning,
                "model": row.evidence.model,
                "guide": row.evidence.guide,
                "proposal": row.evidence.proposal,
            }
            for row in self.rows
        }
        return pd.DataFrame.from_dict(lines, orient="index")

    def plot(self, ax: Any = None, path: str | os.PathLike[str] | None = None) -> Any:
        """Draw the log evidences as distances from the best, with bars of 1.96 standard errors of each estimate.

        Those with a warning are drawn open, with dashed bars.

        Args:
            ax: axes of matplotlib to draw on; None makes a figure.
            path: a file to write the figure to, such as "evidence.png".

        Returns:
            The axes.

        Raises:
            ImportError: matplotlib is not there.
        """
        return draw(self.rows, ax=ax, path=path)

    def __repr__(self) -> str:
        informed = len({row.prior for row in self.rows}) > 1
        proposals, guides, models = (
            {getattr(row.evidence, name) for row in self.rows} for name in ("proposal", "guide", "model")
        )
        columns: dict[str, list[str]] = {
            "": [row.name for row in self.rows],
            "rank": [str(row.rank) for row in self.rows],
            "log Z": [f"{row.log_z:,.{digits(row.se)}f}" for row in self.rows],
            "se": [error(row.se) for row in self.rows],
            "below best": [_below(row) for row in self.rows],
            "dse": [error(row.dse) if row.rank else "" for row in self.rows],
            "Bayes factor": [power(-row.log_z_diff) for row in self.rows],
            **({"prior": [f"{row.prior:.3g}" for row in self.rows]} if informed else {}),
            "weight": [f"{row.weight:.3f}" for row in self.rows],
            "k-hat": ["" if math.isnan(row.evidence.khat) else f"{row.evidence.khat:.2f}" for row in self.rows],
            "draws": [f"{row.evidence.num_samples:,}" for row in self.rows],
            "verdict": [row.evidence.verdict for row in self.rows],
            **({"proposal": [row.evidence.proposal for row in self.rows]} if len(proposals) > 1 else {}),
            **({"guide": [row.evidence.guide for row in self.rows]} if len(guides) > 1 and len(models) == 1 else {}),
        }
        left = ("", "verdict", "proposal", "guide")
        table = []
        for place in range(-1, len(self.rows)):
            cells = []
            for head, column in columns.items():
                width = max(map(len, (head, *column)))
                cell = head if place < 0 else column[place]
                cells.append(cell.ljust(width) if head in left else cell.rjust(width))
            table.append("  ".join(cells).rstrip())
        of = f"{len(self.rows)} {'evidence' if len(self.rows) == 1 else 'evidences'}"
        head = f"{of} of the same data, in nats, {'prior as given' if informed else 'all equally probable beforehand'}"
        return "\n".join([head, "", *table, "", self.sentence, *(f"note: {note}" for note in self.notes)])


def compare(entries: Mapping[str, Any], *, prior: Mapping[str, float] | None = None) -> Comparison:
    r"""Hold the evidences of several models of the same data side by side, best first.

        B_k = exp(log Z_k - log Z_best),   weight_k = prior_k Z_k / sum_j prior_j Z_j,

    a Bayes factor against the best, and the probability of a model given the data, among those compared, all in
    logs. The error of a difference takes the draws of the two estimates as independent, se^2 = se_k^2 + se_best^2;
    with `per` both are sums over elements, and so are the difference and the square of its error.

    One model by several proposals can be compared too: the estimates should then agree within their errors.

    Args:
        entries: by name an `Evidence`, or a `Fit`, which is asked for `fit.log_evidence()`.
        prior: by name how probable each model was beforehand, to a common factor; None for all alike.

    Returns:
        A `Comparison`, which prints as a table; `to_dataframe()` and `plot()` give it in other forms.

    Raises:
        OptionError: no entries, an entry that is neither, evidences of different data (told by count, mean and mean
            square of what was observed), or a prior that names other models, is negative, or is zero for all.

    References:
        Kass and Raftery (1995), Bayes Factors.
        Kumar, Carroll, Hartikainen and Martin (2019), ArviZ, a unified library for exploratory analysis of Bayesian
        models in Python (the form of the table).

    Example:
        >>> import pyro, pyro.distributions as dist, torch, ingle
        >>> def model(y, sd):
        ...     mu = pyro.sample("mu", dist.Normal(0.0, sd))
        ...     pyro.sample("y", dist.Normal(mu, 1.0), obs=y)
        >>> y = torch.tensor(0.8)
        >>> narrow, wide = (
        ...     ingle.log_evidence(model, None, {"y": y, "sd": sd}, proposal="prior", num_samples=2_000)
        ...     for sd in (1.0, 10.0)
        ... )
        >>> [row.name for row in ingle.compare({"wide": wide, "narrow": narrow}).rows]
        ['narrow', 'wide']
    """
    asked = _checked(entries)
    beforehand = _prior(prior, asked)
    evidences = {name: _evidence(name, entry) for name, entry in asked.items()}
    untold = refuse_other_data(evidences)
    names = sorted(evidences, key=lambda name: _place(evidences[name].log_z))
    weights = _weights({name: evidences[name].log_z for name in names}, beforehand)
    best = evidences[names[0]]
    rows = tuple(
        ModelRow(
            name=name,
            rank=rank,
            log_z=evidences[name].log_z,
            se=evidences[name].se,
            log_z_diff=best.log_z - evidences[name].log_z if rank else 0.0,
            dse=math.hypot(best.se, evidences[name].se) if rank else 0.0,
            prior=beforehand[name],
            weight=weights[name],
            warning=_doubtful(evidences[name]),
            pointwise_diff=_pointwise(best, evidences[name]),
            evidence=evidences[name],
        )
        for rank, name in enumerate(names)
    )
    return Comparison(rows, sentence(rows), notes(rows, untold))


def _checked(entries: object) -> dict[str, Any]:
    if not isinstance(entries, Mapping):
        raise OptionError(f"compare takes a mapping from names to evidences or fits, got {type(entries).__name__}")
    if not entries:
        raise OptionError("there is nothing to compare: give evidences or fits by name")
    for name, entry in entries.items():
        if not isinstance(name, str):
            raise OptionError(f"names of models must be strings, got {name!r}")
        if not isinstance(entry, Evidence) and not callable(getattr(entry, "log_evidence", None)):
            raise OptionError(
                f"{name!r} must be an Evidence, as ingle.log_evidence gives it, or a Fit, got {type(entry).__name__}"
            )
    return dict(entries)


def _evidence(name: str, entry: Any) -> Evidence:
    if isinstance(entry, Evidence):
        return entry
    try:
        found = entry.log_evidence()
    except OptionError as refusal:
        raise OptionError(f"the evidence of {name!r}: {refusal}") from refusal
    if not isinstance(found, Evidence):
        raise OptionError(f"{name!r}: its log_evidence() gave {type(found).__name__} and no Evidence")
    return found


def _prior(prior: object, names: Mapping[str, Any]) -> dict[str, float]:
    """Probabilities that sum to one."""
    if prior is None:
        return dict.fromkeys(names, 1.0 / len(names))
    if not isinstance(prior, Mapping):
        raise OptionError(f"prior must be a mapping from names of models to weights, got {prior!r}")
    for what, some in (("names", set(prior) - set(names)), ("lacks", set(names) - set(prior))):
        if some:
            there = ", ".join(map(repr, names))
            raise OptionError(f"prior {what} {', '.join(sorted(map(repr, some)))}; the models are {there}")
    values = {}
    for name in names:
        value = prior[name]
        real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
        if not real or not math.isfinite(value) or value < 0:
            raise OptionError(f"prior[{name!r}] must be a number of 0 or more, got {value!r}")
        values[name] = float(value)
    largest = max(values.values())
    if largest == 0:
        raise OptionError("prior is zero for every model")
    total = math.fsum(value / largest for value in values.values())  # relative first, for numbers near the largest
    return {name: value / largest / total for name, value in values.items()}


def _place(log_z: float) -> tuple[int, float]:
    """Largest first, then those of zero, then those that are no number."""
    if math.isfinite(log_z):
        return 0, -log_z
    return (1, 0.0) if log_z == -math.inf else (2, 0.0)


def _weights(log_z: Mapping[str, float], prior: Mapping[str, float]) -> dict[str, float]:
    """Posterior probabilities; NaN for all where no model has any."""
    logs = {
        name: value + math.log(prior[name]) for name, value in log_z.items() if math.isfinite(value) and prior[name] > 0
    }
    if not logs:
        return dict.fromkeys(log_z, math.nan)
    top = max(logs.values())
    total = math.fsum(math.exp(value - top) for value in logs.values())
    return {name: math.exp(logs[name] - top) / total if name in logs else 0.0 for name in log_z}


def _doubtful(evidence: Evidence) -> bool:
    return (
        evidence.verdict in ("doubtful", "unreliable", "unknown")
        or not math.isfinite(evidence.log_z)
        or bool(improper(evidence))
    )


def _pointwise(best: Evidence, evidence: Evidence) -> NDArray[np.float64] | None:
    ours, theirs = best.pointwise, evidence.pointwise
    if ours is None or theirs is None or best.per != evidence.per or len(ours.log_z) != len(theirs.log_z):
        return None
    with np.errstate(invalid="ignore"):
        return ours.log_z - theirs.log_z


def _below(row: ModelRow) -> str:
    if row.rank == 0:
        return "0"
    return f"{row.log_z_diff:,.{min(digits(row.dse), 6)}f}" if math.isfinite(row.log_z_diff) else f"{row.log_z_diff}"
