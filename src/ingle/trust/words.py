"""What shifts and modes are called in words, and what to try next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ingle.program import Program
from ingle.trust.modes import Mode
from ingle.trust.shift import Shifts

__all__ = ["MORE_STEPS", "mean_off", "modes_missed", "point_masses_told", "sd_off", "wider"]

MORE_STEPS = "give it more steps: fit.resume(), or leave steps and optim out, so that it stops by itself"


def sd_off(shifts: Shifts, off: NDArray[np.bool_]) -> str:
    """The sd that is farthest off, of those that are."""
    place = int(np.where(off, np.abs(np.log(np.maximum(shifts.ratio, 1e-12))), -1.0).argmax())
    value, se = shifts.ratio[place], shifts.ratio_se[place]
    if value < 1:
        words = f"{100 * (1 - value):.0f} ± {100 * max(se, 0.01):.0f}% too small"
    elif value < 2:
        words = f"{100 * (value - 1):.0f} ± {100 * max(se, 0.01):.0f}% too large"
    else:
        words = f"{value:.1f} ± {max(se, 0.05):.1f} times the posterior's"
    return f"the sd of {shifts.name(place)!r} is {words}{_others(off)}"


def mean_off(shifts: Shifts, off: NDArray[np.bool_]) -> str:
    """The mean that is farthest off, of those that are."""
    place = int(np.where(off, np.abs(shifts.shift), -1.0).argmax())
    side = "high" if shifts.shift[place] > 0 else "low"
    words = f"{abs(shifts.shift[place]):.2f} ± {max(shifts.shift_se[place], 0.005):.2f} sd too {side}"
    return f"the mean of {shifts.name(place)!r} is {words}{_others(off)}"


def point_masses_told(names: Sequence[str]) -> str:
    """Latents that have no sd."""
    shown = ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
    return f"a point mass claims no uncertainty of {shown}: its sds are not the posterior's"


def modes_missed(found: Sequence[Mode], drawn: Mapping[str, Tensor]) -> str:
    """How many, how large, and where the largest lies."""
    share = sum(mode.share for mode in found)
    name, where = _farthest(found[0].where, drawn)
    several = f"{len(found)} modes are" if len(found) > 1 else "a mode is"
    held = f"with about {share:.0%} of the posterior ({name} near {where:.3g})"
    return f"{several} missed, {held}{', and predictions there differ' if found[0].apart > 0 else ''}"


def wider(program: Program, *, rows: bool = False) -> str:
    """A guide that reaches more posteriors than this one, or what to do where there is none.

    Args:
        program: of the fit.
        rows: whether its latents are all of single rows.
    """
    name = program.recipe.name
    if rows and name is None:
        return "a guide that tells each row more: a larger encoder, or correlations among the latents of a row"
    if name == "normal":
        return 'fit "multivariate_normal": "normal" has no correlations, and its sds shrink where there are some'
    if name in ("multivariate_normal", "low_rank", "laplace"):
        return 'fit "flow", or write the model so that its latents are less skewed and tied (non-centred, logs)'
    if name == "flow":
        return "write the model so that its latents are less skewed and tied (non-centred, logs), or run NUTS"
    return 'a guide with correlations and free scales for every latent, such as "multivariate_normal"'


def _others(off: NDArray[np.bool_]) -> str:
    count, of = int(off.sum()), len(off)
    return f" ({count:,} of {of:,} are off)" if of > 1 and count > 1 else ""


def _farthest(where: Mapping[str, Tensor], drawn: Mapping[str, Tensor]) -> tuple[str, float]:
    """The coordinate of a mode that lies farthest from the guide's draws, in their sds, and where it is."""
    best: tuple[float, str, float] = (-1.0, "", math.nan)
    for name, value in where.items():
        ours = drawn[name].double()
        away = ((value - ours.mean(0)).abs() / ours.std(0).clamp(min=1e-12)).reshape(-1)
        place = int(away.argmax())
        if float(away[place]) > best[0]:
            index = np.unravel_index(place, tuple(value.shape))
            label = f"{name}[{', '.join(str(int(each)) for each in index)}]" if value.dim() else name
            best = float(away[place]), repr(label), float(value.reshape(-1)[place])
    return best[1], best[2]
