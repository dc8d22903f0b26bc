"""Where the parameters of a fit have been: points along its steps, thinned so that they stay few."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["Trail"]

_FIRST = 10  # steps between two points, at first
_MOST = 200  # points, above which every other one goes
_WHOLE = 2_000  # parameters up to which a point is all of them
_SKETCH = 64  # numbers of a point otherwise
_BLOCKS = 16  # means of all parameters, above which neighbours become one


class Trail:
    """Points of the parameters every few steps, since a learning rate began.

    Up to 2,000 parameters a point holds all of them. Above that it holds 64 sums of them with random signs, and means
    over blocks of steps hold the rest.

    Args:
        since: the step at which it begins.

    Attributes:
        every: steps between two points; doubled whenever there are 200 points.
    """

    def __init__(self, since: int = 0) -> None:
        self.since = since
        self.every = _FIRST
        self._points: list[Tensor] = []
        self._blocks: list[tuple[int, int, Tensor]] = []  # first step, number of points, their sum
        self._per_block = 1
        self._names: tuple[str, ...] = ()
        self._signs: Tensor | None = None

    def until(self, step: int) -> int:
        """Steps from `step` to the next point."""
        return self.every - (step - self.since) % self.every

    def note(self, step: int, leaves: Mapping[str, Tensor]) -> None:
        """Keep the parameters after `step` steps, where it is the turn of a point."""
        if leaves and step > self.since and not (step - self.since) % self.every:
            with torch.no_grad():
                self._add(step, torch.cat([_real(leaf.detach()).reshape(-1) for leaf in leaves.values()]), leaves)

    def extend(self, step: int, rows: Tensor, leaves: Mapping[str, Tensor]) -> None:
        """Keep some of the points after each of the steps that follow `step`, shape (steps, numbers)."""
        end, now = step + len(rows), max(step, self.since)
        now += self.until(now)
        while now <= end:
            every, room = self.every, _MOST - len(self._points)
            for row in rows[now - step - 1 :: every][:room].clone().unbind():
                self._add(now, row, leaves)
                now += every
            now += self.until(now - every) - every  # where there are too many points now, every other step

    def points(self) -> NDArray[np.float64]:
        """Points in the order of the steps, shape (points, numbers)."""
        if not self._points:
            return np.zeros((0, 0))
        found: NDArray[np.float64] = torch.stack(self._points).double().cpu().numpy()
        return found

    def averages(self, last: int, parts: int, leaves: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Means of the parameters over `parts` equal stretches of the last `last` points, unconstrained, by name."""
        if not self._blocks:
            rows = torch.stack(self._points[len(self._points) - last :]).double()
            size = len(rows) // parts
            rows = rows[len(rows) - size * parts :]
            return [_named(part.mean(0), leaves) for part in rows.split(size)]
        whole = [block for block in self._blocks if block[1] >= self._per_block]
        begins = self.since + self.every * (len(self._points) - last)
        within = [block for block in whole if block[0] > begins]
        within = within if len(within) >= parts else whole[-parts:] or self._blocks
        size = max(1, len(within) // parts)
        within = within[len(within) % size :]
        return [_named(_mean_of(within[place : place + size]), leaves) for place in range(0, len(within), size)][
            -parts:
        ]

    def capture(self) -> dict[str, Any]:
        """The state; nothing in it changes any more."""
        return {
            "since": self.since,
            "every": self.every,
            "points": list(self._points),
            "blocks": list(self._blocks),
            "per_block": self._per_block,
            "names": list(self._names),
        }

    def restore(self, state: Mapping[str, Any], device: torch.device) -> None:
        """Go back to a captured state, perhaps from a file."""
        self.since, self.every = state["since"], state["every"]
        self._points = [point.to(device) for point in state["points"]]
        self._blocks = [(first, count, total.to(device)) for first, count, total in state["blocks"]]
        self._per_block = state["per_block"]
        self._names, self._signs = tuple(state["names"]), None

    def _add(self, step: int, point: Tensor, leaves: Mapping[str, Tensor]) -> None:
        if self._names != tuple(leaves):  # a parameter that came late: what there is cannot be compared
            self._points, self._blocks, self._names, self._signs = [], [], tuple(leaves), None
        if len(point) <= _WHOLE:
            self._points.append(point)
        else:
            self._add_to_block(step, point)
            self._points.append(self._sketched(point))
        if len(self._points) >= _MOST:
            self._points = self._points[1::2]
            self.every *= 2
            self._per_block = max(1, self._per_block // 2)  # as many steps as before

    def _add_to_block(self, step: int, point: Tensor) -> None:
        if self._blocks and self._blocks[-1][1] < self._per_block:
            first, count, total = self._blocks[-1]
            self._blocks[-1] = first, count + 1, total + point
            return
        if len(self._blocks) == _BLOCKS:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [(one[0], one[1] + other[1], one[2] + other[2]) for one, other in pairs]
            self._per_block *= 2
        self._blocks.append((step, 1, point))

    def _sketched(self, point: Tensor) -> Tensor:
        if self._signs is None or len(self._signs) != len(point):
            generator = torch.Generator("cpu").manual_seed(0)
            signs = torch.randint(0, 2, (len(point),), generator=generator, device="cpu") * 2 - 1
            self._signs = signs.to(point)
        signed = torch.nn.functional.pad(point * self._signs, (0, -len(point) % _SKETCH))
        return signed.reshape(-1, _SKETCH).sum(0)


def _mean_of(blocks: list[tuple[int, int, Tensor]]) -> Tensor:
    total: Any = sum(block[2].double() / block[1] for block in blocks)
    mean: Tensor = total / len(blocks)
    return mean


def _named(flat: Tensor, leaves: Mapping[str, Tensor]) -> dict[str, Tensor]:
    found, start = {}, 0
    for name, leaf in leaves.items():
        size = _real(leaf).numel()
        part = flat[start : start + size]
        part = torch.view_as_complex(part.reshape(*leaf.shape, 2)) if leaf.is_complex() else part.reshape(leaf.shape)
        found[name] = part.to(leaf.dtype)
        start += size
    return found


def _real(leaf: Tensor) -> Tensor:
    return torch.view_as_real(leaf) if leaf.is_complex() else leaf
