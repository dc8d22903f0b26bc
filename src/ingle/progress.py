"""The progress bar of a fit: smoothed ELBO, steps a second, time left."""

from __future__ import annotations

from types import TracebackType

from tqdm import tqdm

__all__ = ["Progress"]

_SMOOTHING = 0.2  # weight of the newest call's mean


class Progress:
    """A tqdm bar on standard error.

    Args:
        steps: in all; None where the fit stops by itself, and the bar shows no time left.
        show: True or False; None shows it where standard error is a terminal.
        done: steps that an earlier run took.
    """

    def __init__(self, steps: int | None, show: bool | None, *, done: int = 0) -> None:
        hidden = None if show is None else not show
        self._bar = tqdm(total=steps, initial=done, disable=hidden, unit=" steps", dynamic_ncols=True)
        self._smoothed: float | None = None

    def advance(self, losses: list[float]) -> None:
        """Show that these losses, one a step, have come."""
        mean = sum(losses) / len(losses)
        previous = mean if self._smoothed is None else self._smoothed
        self._smoothed = (1 - _SMOOTHING) * previous + _SMOOTHING * mean
        self._bar.set_postfix_str(f"ELBO {-self._smoothed:,.2f}", refresh=False)
        self._bar.update(len(losses))

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()
