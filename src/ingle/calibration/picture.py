"""The picture of a calibration. matplotlib is imported here, when it is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ingle.calibration.uniform import band

if TYPE_CHECKING:
    import os

    from ingle.calibration.result import Calibration
    from ingle.calibration.words import Quantity

__all__ = ["draw"]

_PANELS = 12
_ACROSS = 3
_LINES = 50  # numbers of one quantity that are drawn


def draw(
    it: Calibration, quantities: Sequence[Quantity], *, coverage: float, ax: Any, path: str | os.PathLike[str] | None
) -> Any:
    """ECDFs of ranks less the uniform one, a panel for each quantity; see `Calibration.plot`."""
    try:
        from matplotlib.figure import Figure
    except ImportError as missing:
        raise ImportError(
            "the picture needs matplotlib, which is not here: pip install matplotlib; to_dataframe() gives the numbers"
        ) from missing
    quantities = quantities[: 1 if ax is not None else _PANELS]
    across = min(_ACROSS, len(quantities))
    down = math.ceil(len(quantities) / across)
    size = (1.0 + 3.0 * across, 0.6 + 2.3 * down)
    if ax is not None:
        figure = ax.figure
    elif path is None:  # a figure that a notebook shows by itself
        from matplotlib import pyplot

        figure = pyplot.figure(figsize=size, layout="constrained")
    else:
        figure = Figure(figsize=size, layout="constrained")
    axes = [ax] if ax is not None else figure.subplots(down, across, squeeze=False, sharex=True).reshape(-1)
    n = it.fits - len(it.failed)
    share = np.arange(1, it.draws + 2) / (it.draws + 1)
    low, high = band(n, it.draws, coverage)
    for axis, quantity in zip(axes, quantities, strict=False):
        axis.fill_between(share, low / n - share, high / n - share, color="0.9", step="post", lw=0)
        axis.axhline(0.0, color="0.6", lw=1)
        ranks = it.ranks[quantity.name].reshape(n, -1)
        worst = (
            0
            if quantity.index is None
            else int(np.ravel_multi_index(quantity.index, it.ranks[quantity.name].shape[1:]))
        )
        places = list(dict.fromkeys([*range(min(ranks.shape[1], _LINES)), worst]))
        places.sort(key=lambda place: place == worst)
        for place in places:
            counts = np.bincount(ranks[:, place], minlength=it.draws + 1).cumsum()
            leaves = bool(((counts < low) | (counts > high)).any())
            alone = len(places) == 1 or place == worst
            axis.step(
                share,
                counts / n - share,
                where="post",
                color="C3" if leaves else "C0",
                lw=1.4 if alone else 0.7,
                alpha=1.0 if alone else 0.6,
            )
        axis.set_title(f"{quantity.name}: {quantity.verdict}", fontsize="medium")
        most = max(np.abs(axis.get_ylim()))
        axis.set_ylim(-most, most)
        axis.set_xlim(0, 1)
        for edge in ("top", "right"):
            axis.spines[edge].set_visible(False)
    for axis in axes[len(quantities) :]:
        axis.set_visible(False)
    if ax is None:
        figure.supxlabel("rank of the truth among the draws, as a share", fontsize="medium")
        figure.supylabel("ECDF less uniform", fontsize="medium")
    if path is not None:
        figure.savefig(path, dpi=120)
    return figure
