"""`Verdict`: whether a fit can be believed, why, and what to do next."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

import numpy as np
import torch

from ingle.trust.modes import Mode
from ingle.trust.shift import Shifts

__all__ = ["Status", "Verdict", "Worst"]

Status = Literal["ok", "doubtful", "failed"]

_WIDTH = 118


@dataclass(frozen=True)
class Worst:
    """The coordinate whose guide is farthest off.

    Attributes:
        name: of the coordinate: "tau", "eta[3]".
        value: how far: for means (guide - posterior) in posterior sds, for sds guide / posterior.
        se: its standard error.
    """

    name: str
    value: float
    se: float


@dataclass(frozen=True, repr=False)
class Verdict:
    """Whether a fit can be believed.

    Attributes:
        status: "ok", "doubtful" or "failed".
        reasons: why, in words, the weightiest first.
        advice: what to try next, in words; empty where nothing need be done.
        comparison: what the guide's means and sds were compared with: "weights" (its own draws, by smoothed importance
            weights), "chains" (Hamiltonian chains begun at its draws), or "none".
        shift_mean: the mean that is farthest off, in posterior sds; None where nothing was compared.
        shift_sd: the sd that is farthest off, as guide / posterior.
        share: of the coordinates, or of the rows of the plate `per` where there is one, whose mean is within 0.3 sd and
            whose sd within 30%; NaN where nothing was compared.
        per: the plate by whose rows weights were taken, for latents that are all of single rows; None otherwise.
        rows: how many rows of that plate were looked at, drawn at random, and how many there are, where all of them
            would have taken too long; None where all were looked at.
        elbo, elbo_se: at the fitted parameters and its standard error, from fresh draws, in nats; NaN where not known.
        khat, khat_threshold: of the importance weights, and below which they are believed; the median over rows.
        ess: effective sample size of the smoothed weights, of `num_samples` draws; the median over rows.
        num_samples: draws of the guide that were looked at.
        modes: parts of the posterior that the guide misses, the largest first.
        paths: how many short fits from over-dispersed starts looked for them; 0 where that was not done.
        rhat: split R-hat of the parameters over the fit's steadiest window; NaN where not known.
        mcse: Monte Carlo standard error of the averages there, in sds; NaN where not known.
        snr: signal to noise of one gradient at the fitted parameters, 0 at rest; NaN where not known.
        evaluations: of the model's gradient that the verdict took, many points at a time.
        not_looked: what was not looked at, and why.
    """

    status: Status
    reasons: tuple[str, ...]
    advice: tuple[str, ...]
    comparison: Literal["weights", "chains", "none"] = "none"
    shift_mean: Worst | None = None
    shift_sd: Worst | None = None
    share: float = math.nan
    per: str | None = None
    rows: tuple[int, int] | None = None
    elbo: float = math.nan
    elbo_se: float = math.nan
    khat: float = math.nan
    khat_threshold: float = math.nan
    ess: float = math.nan
    num_samples: int = 0
    modes: tuple[Mode, ...] = ()
    paths: int = 0
    rhat: float = math.nan
    mcse: float = math.nan
    snr: float = math.nan
    evaluations: int = 0
    not_looked: tuple[str, ...] = ()
    _shifts: Shifts | None = field(repr=False, compare=False, default=None)

    def to_dataframe(self) -> Any:
        """One row for each scalar coordinate of the latents, indexed by name.

        Returns:
            A DataFrame with columns guide_mean, guide_sd, mean, sd (as corrected), shift (of means, in corrected sds),
            shift_se, ratio (of sds, guide / corrected), ratio_se, and by ("weights" or "chains"). Empty where nothing
            was compared.
        """
        import pandas as pd

        columns = ("guide_mean", "guide_sd", "mean", "sd", "shift", "shift_se", "ratio", "ratio_se")
        shifts = self._shifts
        if shifts is None:
            return pd.DataFrame(columns=[*columns, "by"], index=pd.Index([], name="latent"))
        table = pd.DataFrame({name: getattr(shifts, name) for name in columns}, index=shifts.names())
        table["by"] = shifts.by
        table.index.name = "latent"
        return table

    @property
    def figures(self) -> tuple[tuple[str, str], ...]:
        """The main figures in words, each with what it is called, one for each line of a card."""
        lines = []
        if self.shift_mean is not None and self.shift_sd is not None:
            how = "chains" if self.comparison == "chains" else "weighted draws"
            mean, sd = self.shift_mean, self.shift_sd
            lines.append(("means", f"off by {abs(mean.value):.2f} ± {mean.se:.2f} sd at most ({mean.name}), by {how}"))
            lines.append(("sds", f"{sd.value:.2f} ± {sd.se:.2f} of the posterior's at the farthest ({sd.name})"))
        if self.per is not None and not math.isnan(self.share):
            some = "" if self.rows is None else f"{self.rows[0]:,} of {self.rows[1]:,} rows of "
            lines.append(("rows", f"{self.share:.0%} of {some}plate {self.per!r} within 0.3 sd and 30%"))
        if not math.isnan(self.elbo):
            lines.append(("ELBO", f"{self.elbo:,.2f} ± {self.elbo_se:.2g} nats at the fitted parameters"))
        if not math.isnan(self.khat):
            lines.append(("k-hat", f"{self.khat:.2f} (weights believed below {self.khat_threshold:.2f}), ESS "
                          f"{self.ess:,.0f} of {self.num_samples:,}"))  # fmt: skip
        if self.paths:
            told = f"{len(self.modes)} missed" if self.modes else "none missed"
            lines.append(("modes", f"{told}, by {self.paths} short fits from over-dispersed starts"))
        if not math.isnan(self.rhat):
            known = "" if math.isnan(self.mcse) else f", averages known to {self.mcse:.2f} sd"
            signal = "" if math.isnan(self.snr) else f", gradient's signal to noise {self.snr:.2f}"
            lines.append(("settled", f"R-hat {self.rhat:.2f} of the parameters{known}{signal}"))
        return tuple(lines)

    def __repr__(self) -> str:
        """A card of at most 15 lines."""
        head = [f"Verdict: {self.status}"]
        body = [f"  {name:<12}{told}" for name, told in self.figures]
        reasons = [f"  {'because' if not place else '':<12}{told}" for place, told in enumerate(self.reasons)]
        advice = [f"  {'try' if not place else '':<12}{told}" for place, told in enumerate(self.advice)]
        room = 15 - len(head) - len(body)
        advice = advice[: max(1, room - len(reasons))] if reasons else advice[:room]
        return "\n".join([*head, *reasons[: room - len(advice)], *advice, *body])

    def to_file(self) -> dict[str, Any]:
        """In plain values and tensors."""
        told: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, Worst):
                value = {"name": value.name, "value": value.value, "se": value.se}
            elif each.name == "modes":
                value = [{**vars(mode), "where": {k: v.cpu() for k, v in mode.where.items()}} for mode in value]
            elif isinstance(value, Shifts):
                value = {
                    part.name: torch.tensor(column) if isinstance(column, np.ndarray) else column
                    for part in fields(value)
                    for column in [getattr(value, part.name)]
                }
            told[each.name] = value
        return told

    @classmethod
    def from_file(cls, told: Mapping[str, Any]) -> Verdict:
        """What `to_file` told."""
        found = dict(told)
        for name in ("shift_mean", "shift_sd"):
            found[name] = None if found[name] is None else Worst(**found[name])
        found["modes"] = tuple(Mode(**mode) for mode in found["modes"])
        if found["_shifts"] is not None:
            columns: dict[str, Any] = {
                name: part.numpy() if isinstance(part, torch.Tensor) else part
                for name, part in found["_shifts"].items()
            }
            found["_shifts"] = Shifts(**columns)
        return cls(**found)
