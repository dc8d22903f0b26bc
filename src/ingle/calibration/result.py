"""`Calibration`: ranks of true values among draws, and what they say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ingle.calibration.picture import draw
from ingle.calibration.uniform import ks_p_value
from ingle.calibration.words import Quantity, card, read_quantities
from ingle.errors import OptionError

if TYPE_CHECKING:
    import os

__all__ = ["Calibration", "judged"]


@dataclass(frozen=True, repr=False, eq=False)
class Calibration:
    """What fits to data with known parameters said of these; prints as a card.

    Attributes:
        ranks: for each quantity the rank of its true value among the draws, 0, …, draws, int64, shape (n, *shape), of
            the n fits that came to their end. Ties are broken at random.
        z: (truth - mean) / sd over the draws, float64, shape (n, *shape): of a latent with bounds on the unbounded
            scale, log of a positive one. Mean 0 and sd 1 where the draws are the posterior's.
        p_values: of Kolmogorov and Smirnov's distance of the ranks from uniform, exact, shape (*shape).
        quantities: one for each name, with the verdict on it, the worst first.
        draws: L, of each guide.
        fits: how many were asked for.
        failed: the places of those that did not come to their end, whose data are left out.
        steps: of each fit.
        source: where parameters and data came from, in words.
        how: whether the fits ran together, in words.
        model, guide, seed: what ran.
        losses: the negative ELBO of each step in nats, shape (steps, n).
        seconds: of wall-clock time, all in all.
        notes: what else should be known.
    """

    ranks: dict[str, NDArray[np.int64]]
    z: dict[str, NDArray[np.float64]]
    p_values: dict[str, NDArray[np.float64]]
    quantities: tuple[Quantity, ...]
    draws: int
    fits: int
    failed: tuple[int, ...]
    steps: int
    source: str
    how: str
    model: str
    guide: str
    seed: int
    losses: NDArray[np.float64] = field(repr=False)
    seconds: float
    notes: tuple[str, ...]

    def __getitem__(self, name: str) -> Quantity:
        """The verdict on one quantity."""
        for quantity in self.quantities:
            if quantity.name == name:
                return quantity
        raise KeyError(f"{name!r}; there are {', '.join(repr(quantity.name) for quantity in self.quantities)}")

    @property
    def calibrated(self) -> bool:
        """Whether no quantity deviates by more than chance would in one run of twenty."""
        return all(quantity.verdict == "calibrated" for quantity in self.quantities)

    def table(self) -> list[dict[str, Any]]:
        """One line for each quantity, the worst first: see `Quantity`."""
        return [quantity.line() for quantity in self.quantities]

    def to_dataframe(self) -> Any:
        """The same, indexed by name."""
        import pandas as pd

        return pd.DataFrame(self.table()).set_index("name")

    def plot(
        self,
        names: str | Sequence[str] | None = None,
        *,
        coverage: float = 0.95,
        ax: Any = None,
        path: str | os.PathLike[str] | None = None,
    ) -> Any:
        """Draw how far the ECDF of the ranks is from uniform, in a band that it leaves by chance in one of twenty.

        Values of the guide that are too high give an arch above zero, too low below. Above zero first and then below is
        a guide too narrow, the other way round one too wide. Each number of a quantity is a line, red where it leaves
        the band; the one that deviates most is drawn strong.

        Args:
            names: of the quantities; None for all, the worst twelve.
            coverage: probability that all of one line stays within the band, between 0 and 1.
            ax: matplotlib axes to draw one quantity into.
            path: of a file to write; where None and without `ax` a figure is made by pyplot.

        Returns:
            The matplotlib figure.

        Raises:
            KeyError: there is no quantity of a name.
            OptionError: a coverage that is none, or several quantities for one `ax`.
            ImportError: matplotlib is not here.

        References:
            Säilynoja, Bürkner and Vehtari (2022), Graphical Test for Discrete Uniformity and its Applications in
            Goodness-of-Fit Evaluation and Multiple Sample Comparison.
        """
        if not 0 < coverage < 1:
            raise OptionError(f"coverage must be a probability between 0 and 1, got {coverage!r}")
        every = [quantity.name for quantity in self.quantities]
        chosen = every if names is None else [names] if isinstance(names, str) else list(names)
        if ax is not None and len(chosen) != 1:
            raise OptionError(f"ax takes one quantity, and names gives {len(chosen)}")
        return draw(self, [self[name] for name in chosen], coverage=coverage, ax=ax, path=path)

    def __repr__(self) -> str:
        return card(self)


def judged(
    drawn: Mapping[str, Tensor],
    true: Mapping[str, Tensor],
    *,
    to_the_line: Mapping[str, Any],
    seed: int,
    draws: int,
    about: Mapping[str, Any],
) -> Calibration:
    """A `Calibration` from draws, shape (n, L, *shape), and true values, shape (n, *shape).

    Args:
        drawn, true: by name of the quantity.
        to_the_line: maps to unbounded numbers, by name.
        seed: of how ties are broken.
        draws: L.
        about: what ran, and what came of it.
    """
    generator = np.random.default_rng(seed)
    ranks: dict[str, NDArray[np.int64]] = {}
    z: dict[str, NDArray[np.float64]] = {}
    for name, values in drawn.items():
        truth = true[name].unsqueeze(1).to(values.dtype)
        below = (values < truth).sum(1).cpu().numpy()
        equal = (values == truth).sum(1).cpu().numpy()
        ranks[name] = np.asarray(below + generator.integers(0, equal + 1), dtype=np.int64)
        z[name] = _z(values, truth, to_the_line.get(name))
    p_values = {name: _by_number(rank, draws) for name, rank in ranks.items()}
    given = dict(about)
    told = given.pop("told")
    if given["failed"]:
        given["notes"] = (*given["notes"], f"the first fit that failed said: {told}")
    rising = _rising(given["losses"])
    if rising:
        given["notes"] = (
            *given["notes"],
            f"the ELBO still rose at the end of {rising} of {given['losses'].shape[1]} fits: give them more steps",
        )
    return Calibration(
        ranks=ranks,
        z=z,
        p_values=p_values,
        quantities=read_quantities(ranks, z, p_values, draws),
        draws=draws,
        **given,
    )


def _z(values: Tensor, truth: Tensor, transform: Any) -> NDArray[np.float64]:
    if transform is not None:
        freed = transform(values), transform(truth)
        if all(bool(part.isfinite().all()) for part in freed):
            values, truth = freed
    values, truth = values.double(), truth.double()
    found: NDArray[np.float64] = ((truth[:, 0] - values.mean(1)) / values.std(1)).cpu().numpy()
    return found


def _by_number(ranks: NDArray[np.int64], draws: int) -> NDArray[np.float64]:
    flat = ranks.reshape(len(ranks), -1)
    found = np.array([ks_p_value(flat[:, place], draws) for place in range(flat.shape[1])])
    return found.reshape(ranks.shape[1:])


def _rising(losses: NDArray[np.float64]) -> int:
    """How many of the fits had a loss that still fell in the last fifth of the steps."""
    tail = losses[-(len(losses) // 5) :]
    parts = np.array_split(tail, 10)
    if len(tail) < 40:
        return 0
    means = np.stack([part.mean(0) for part in parts])
    place = np.arange(10) - 4.5
    slope = (place[:, None] * means).sum(0) / (place**2).sum()
    rest = means - means.mean(0) - place[:, None] * slope
    se = np.sqrt((rest**2).sum(0) / 8 / (place**2).sum())
    fall = -9 * slope
    return int(((fall > 0.1) & (fall > 9 * 4.5 * se)).sum())
