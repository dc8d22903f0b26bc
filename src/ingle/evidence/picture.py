"""The picture of a comparison of evidences. matplotlib is imported here, when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ingle.evidence.evidence import digits, error

if TYPE_CHECKING:
    import os

    from ingle.evidence.compare import ModelRow

__all__ = ["draw"]

_BARS = 1.96  # standard errors on either side
_LONGEST = 32  # characters of a name


def draw(rows: Sequence[ModelRow], *, ax: Any, path: str | os.PathLike[str] | None) -> Any:
    """Log evidences below the best, one line each, the best on top; see `Comparison.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError(
            "the picture needs matplotlib, which is not here: pip install matplotlib; to_dataframe() gives the numbers"
        ) from missing
    if ax is None:
        size = (7.5, 1.3 + 0.36 * len(rows))
        if path is None:  # a figure that a notebook shows by itself
            from matplotlib import pyplot

            figure = pyplot.figure(figsize=size, layout="constrained")
        else:
            figure = Figure(figsize=size, layout="constrained")
        ax = figure.add_subplot()
    best = rows[0].log_z
    values = []
    for place, row in enumerate(rows):
        value = row.log_z - best
        if not math.isfinite(value):
            values.append("no finite estimate")
            continue
        values.append(f"{row.log_z:,.{min(digits(row.se), 3)}f} ± {error(row.se)}")
        _, _, bars = ax.errorbar(
            value,
            place,
            xerr=0.0 if math.isnan(row.se) else _BARS * row.se,
            fmt="o",
            color="C1" if row.warning else "C0",
            markersize=7,
            markeredgewidth=1.5,
            markerfacecolor="white" if row.warning else "C0",
            capsize=4,
            zorder=3,
        )
        for bar in bars:
            bar.set_linestyle("--" if row.warning else "-")
    ax.axvline(0.0, color="0.6", linewidth=1, linestyle=":", zorder=1)
    ax.set_yticks(range(len(rows)), [_short(row.name) for row in rows])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="x", color="0.92", zorder=0)
    ax.set_axisbelow(True)
    ax.locator_params(axis="x", nbins=5)
    open_too = "\nopen: with a warning" if any(row.warning for row in rows) else ""
    ax.set_xlabel(f"log evidence less the best, in nats, ± {_BARS} standard errors{open_too}")
    right = ax.twinx()
    right.set_ylim(ax.get_ylim())
    right.set_yticks(range(len(rows)), values)
    right.tick_params(length=0)
    right.text(1.02, 1.0, "log Z", transform=right.transAxes, va="bottom")
    for side in (ax, right):
        for edge in ("top", "left", "right"):
            side.spines[edge].set_visible(False)
    ax.tick_params(axis="y", length=0)
    if path is not None:
        ax.figure.savefig(path, dpi=150)
    return ax


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…"
