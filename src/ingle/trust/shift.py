"""How far the guide's means and sds lie from those of the posterior, coordinate by coordinate, with errors.

Means are to be within 0.3 posterior sd (`MEAN`) and sds within 30% (`SD`): then intervals cover nearly what they say.
Shifts are held against that as they are estimated: with errors of 0.01 to 0.03 the band in which chance decides is
narrow, and the largest of 50 shifts that are all 0.1 stays well below 0.3.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ingle.evidence import Elements
from ingle.program import Site

__all__ = ["MEAN", "SD", "Shifts", "by_chains", "by_weights", "near_limits", "off_limits", "row_axes"]

Array = NDArray[np.float64]
Comparison = Literal["weights", "chains"]

MEAN, SD = 0.3, 0.3
_FIXED = 1e-6  # of its size, an sd below which a coordinate is a number that nothing moves
_BLOCK = 2**22  # numbers that are looked at together


@dataclass(frozen=True, eq=False)
class Shifts:
    """Of every scalar coordinate of the latents, as the model has them (constrained), float64, shape (coordinates,).

    Attributes:
        sites: name and shape of each latent, in the order of the coordinates.
        by: "weights" (smoothed importance weights) or "chains" (Hamiltonian chains begun at the guide's draws).
        row: of which element of the plate that weights are taken by; 0 where all share one weight.
        guide_mean, guide_sd: of the guide's draws.
        mean, sd: as corrected.
        shift: (guide_mean - mean) / sd.
        shift_se: its standard error.
        ratio: guide_sd / sd.
        ratio_se: its standard error.
        drift: between the halves of the chains, as `shift` is; 0 for weights.
        drift_se: its standard error.
        held: correlation of where chains ended with where they began; 0 for weights.
        rows: the numbers of the rows that were looked at, where not all of them were.
        axes: which axis of each latent they lie along, then.

        Where a coordinate does not vary, as an element of a Cholesky factor that is zero, `shift` is 0 and `ratio` 1.
    """

    sites: tuple[tuple[str, tuple[int, ...]], ...]
    by: Comparison
    row: NDArray[np.int64]
    guide_mean: Array
    guide_sd: Array
    mean: Array
    sd: Array
    shift: Array
    shift_se: Array
    ratio: Array
    ratio_se: Array
    drift: Array
    drift_se: Array
    held: Array
    rows: NDArray[np.int64] | None = field(default=None, kw_only=True)
    axes: tuple[int, ...] = field(default=(), kw_only=True)

    def __len__(self) -> int:
        return len(self.shift)

    def name(self, place: int) -> str:
        """What a coordinate is called: "mu", "eta[3]"."""
        for number, (site, shape) in enumerate(self.sites):
            size = math.prod(shape)
            if place < size:
                index = [int(each) for each in np.unravel_index(place, shape)]
                if self.rows is not None:
                    index[self.axes[number]] = int(self.rows[index[self.axes[number]]])
                return f"{site}[{', '.join(map(str, index))}]" if shape else site
            place -= size
        raise IndexError(place)

    def names(self) -> list[str]:
        """Of all coordinates."""
        return [self.name(place) for place in range(len(self))]


def by_weights(sites: Sequence[Site], elements: Elements, values: Mapping[str, Tensor], log_weights: Tensor) -> Shifts:
    r"""Shifts to the guide's own draws, weighted.

        m = sum_s w_s x_s,  v = sum_s w_s (x_s - m)^2,  shift = (mean(x) - m) / sqrt(v),  ratio = sd(x) / sqrt(v),

    with standard errors by the delta method, from the influence of each draw on both sides at once: the same draws
    give the guide's mean and the corrected one, so most of their noise goes out of the difference.

    Args:
        sites: the latents.
        elements: that have weights of their own.
        values: draws by site, shape (S, *site shape).
        log_weights: smoothed and normalised, shape (S, *elements).
    """
    weights = log_weights.exp()

    def one(site: Site, part: slice) -> list[Tensor]:
        x = _flat(values[site.name], 1)[:, part].to(torch.float64)
        w = _along(weights, site, values, elements).flatten(1)
        w = w[:, part] if w.shape[1] > 1 else w
        n = len(x)
        mean_q, mean_p = x.mean(0), (w * x).sum(0)
        from_q, from_p = x - mean_q, x - mean_p
        var_q, var_p = from_q.square().mean(0), (w * from_p.square()).sum(0)
        moves = var_q.sqrt() > _FIXED * (mean_q.abs() + 1e-30)
        sd_p = torch.where(moves, var_p, 1.0).clamp(min=1e-300).sqrt()
        shift, ratio = (mean_q - mean_p) / sd_p, var_q.sqrt() / sd_p
        spread_p = n * w * (from_p.square() / sd_p.square() - 1.0) / 2
        of_shift = (from_q - n * w * from_p) / sd_p - shift * spread_p
        of_ratio = ratio * ((from_q.square() / var_q.clamp(min=1e-300) - 1.0) / 2 - spread_p)
        zero = torch.zeros_like(shift)
        return [
            mean_q, var_q.sqrt(), mean_p, var_p.sqrt(),
            torch.where(moves, shift, 0.0), torch.where(moves, of_shift.square().mean(0).div(n).sqrt(), 0.0),
            torch.where(moves, ratio, 1.0), torch.where(moves, of_ratio.square().mean(0).div(n).sqrt(), 0.0),
            zero, zero, zero,
        ]  # fmt: skip

    return _together(sites, elements, values, "weights", one)


def by_chains(
    sites: Sequence[Site],
    elements: Elements,
    values: Mapping[str, Tensor],
    moved: Mapping[str, Tensor],
    began: Mapping[str, Tensor],
) -> Shifts:
    """Shifts to where chains that began at draws of the guide have gone.

    Chains are independent of each other, so errors come from the spread of their own averages, however slowly each of
    them moves.

    Args:
        sites: the latents.
        elements: that are accepted by themselves.
        values: draws of the guide, shape (S, *site shape).
        moved: positions of the chains, shape (positions, chains, *site shape).
        began: where the chains began, shape (chains, *site shape).
    """
    positions = len(next(iter(moved.values())))

    def one(site: Site, part: slice) -> list[Tensor]:
        x = _flat(values[site.name], 1)[:, part].to(torch.float64)
        y = _flat(moved[site.name], 2)[:, :, part].to(torch.float64)
        start = _flat(began[site.name], 1)[:, part].to(torch.float64)
        chains = y.shape[1]
        mean_q, mean_p = x.mean(0), y.mean((0, 1))
        from_q, from_p = x - mean_q, y - mean_p
        var_q, var_p = from_q.square().mean(0), from_p.square().mean((0, 1))
        moves = var_q.sqrt() > _FIXED * (mean_q.abs() + 1e-30)
        sd_p = torch.where(moves, var_p, 1.0).clamp(min=1e-300).sqrt()
        shift, ratio = (mean_q - mean_p) / sd_p, var_q.sqrt() / sd_p
        spread_q = (from_q.square() / var_q.clamp(min=1e-300) - 1.0) / 2
        spread_p = (from_p.square().mean(0) / sd_p.square() - 1.0) / 2
        shift_var = from_q.square().mean(0) / len(x) / sd_p.square() + _of_mean(
            from_p.mean(0) / sd_p + shift * spread_p, chains
        )
        ratio_var = ratio.square() * (_of_mean(spread_q, len(x)) + _of_mean(spread_p, chains))
        half = positions // 2
        apart = (y[:half].mean(0) - y[-half:].mean(0)) / sd_p if half else torch.zeros_like(start)
        last = y[-1]
        held = _correlation(start, last)
        return [
            mean_q, var_q.sqrt(), mean_p, var_p.sqrt(),
            torch.where(moves, shift, 0.0), torch.where(moves, shift_var.sqrt(), 0.0),
            torch.where(moves, ratio, 1.0), torch.where(moves, ratio_var.sqrt(), 0.0),
            torch.where(moves, apart.mean(0), 0.0), torch.where(moves, _of_mean(apart, chains).sqrt(), 0.0),
            torch.where(moves, held, 0.0),
        ]  # fmt: skip

    return _together(sites, elements, values, "chains", one)


def off_limits(shifts: Shifts) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which means, and which sds, are off, shape (coordinates,) each."""
    mean: NDArray[np.bool_] = np.abs(shifts.shift) > MEAN
    sd: NDArray[np.bool_] = np.abs(shifts.ratio - 1.0) > SD
    return mean, sd


def near_limits(shifts: Shifts, *, elements_of: int) -> NDArray[np.bool_]:
    """Of each set of weights, whether some shift is near its limit on the good side, shape (elements_of,)."""
    worst = np.zeros(elements_of)
    np.maximum.at(worst, shifts.row, np.maximum(np.abs(shifts.shift) / MEAN, np.abs(shifts.ratio - 1.0) / SD))
    return (worst > 0.5) & (worst <= 1.0)


def row_axes(sites: Sequence[Site], elements: Elements) -> tuple[int, ...]:
    """Where the plate of the elements lies in the values of each site, counted from the left."""
    return tuple(len(site.value_shape) + _axis(site, elements) for site in sites)


def _together(
    sites: Sequence[Site], elements: Elements, values: Mapping[str, Tensor], by: Comparison, one: Any
) -> Shifts:
    columns = [torch.cat(parts).cpu().numpy() for parts in zip(*_blocks(sites, values, one), strict=True)]
    rows = [_rows(site, values, elements) for site in sites]
    shapes = tuple((site.name, _shape(site, values)) for site in sites)
    return Shifts(shapes, by, np.concatenate(rows), *columns)


def _blocks(sites: Sequence[Site], values: Mapping[str, Tensor], one: Any) -> Iterator[list[Tensor]]:
    for site in sites:
        size = math.prod(_shape(site, values))
        width = max(1, _BLOCK // len(values[site.name]))
        for start in range(0, size, width):
            yield one(site, slice(start, start + width))


def _shape(site: Site, values: Mapping[str, Tensor]) -> tuple[int, ...]:
    """Of one draw, with all rows of every plate; that of the site may be of a minibatch."""
    return tuple(values[site.name].shape[1:])


def _along(weights: Tensor, site: Site, values: Mapping[str, Tensor], elements: Elements) -> Tensor:
    """Weights of shape (S, *elements) for the values of a site, shape (S, *site shape) or (S, 1)."""
    if elements.plate is None:
        return weights.unsqueeze(1)
    whole = _shape(site, values)
    shape = [1] * len(whole)
    shape[_axis(site, elements)] = -1
    return weights.reshape(len(weights), *shape).expand(len(weights), *whole)


def _rows(site: Site, values: Mapping[str, Tensor], elements: Elements) -> NDArray[np.int64]:
    whole = _shape(site, values)
    if elements.plate is None:
        return np.zeros(math.prod(whole), dtype=np.int64)
    shape = [1] * len(whole)
    shape[_axis(site, elements)] = elements.size
    return np.broadcast_to(np.arange(elements.size).reshape(shape), whole).reshape(-1).astype(np.int64)


def _axis(site: Site, elements: Elements) -> int:
    """Where the plate of the elements lies in the values of a site, counted from the right."""
    dim = next(plate.dim for plate in site.plates if plate.name == elements.plate)
    return int(dim or 0) - len(site.event_shape)


def _flat(value: Tensor, kept: int) -> Tensor:
    return value.reshape(*value.shape[:kept], -1)


def _of_mean(each: Tensor, n: int) -> Tensor:
    """The variance of the mean over the first axis."""
    return each.var(0) / n if n > 1 else torch.full_like(each[0], torch.nan)


def _correlation(one: Tensor, two: Tensor) -> Tensor:
    one, two = one - one.mean(0), two - two.mean(0)
    below = (one.square().sum(0) * two.square().sum(0)).sqrt()
    return torch.where(below > 0, (one * two).sum(0) / below.clamp(min=1e-300), 0.0)
