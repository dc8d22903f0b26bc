"""Latents whose labels a model does not tell apart, as the components of a mixture, and guides that hold one order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ingle.errors import OptionError, ProgramError
from ingle.evidence.proposal import Proposal
from ingle.evidence.sampler import Sampler

__all__ = ["EveryOrder", "Labels", "read_labels"]

_MOST = 7  # labels, of which there are 5,040 orders
_ANNEALED = 4  # labels in whose every order a gradient can be taken


@dataclass(frozen=True)
class Labels:
    """Which dimensions of which latents carry the labels.

    Attributes:
        dims: of each such latent the dimension of its value, negative.
        size: K, how many labels there are.
        values: discrete latents whose values are labels, as the assignments to components.
    """

    dims: Mapping[str, int]
    size: int
    values: frozenset[str] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is more than one order."""
        return self.size > 1

    @property
    def told(self) -> str:
        """For the notes of an evidence."""
        return (
            f"weighed against all {math.factorial(self.size):,} orders of the {self.size} exchangeable labels of "
            f"{', '.join(self.dims)}, of which the guide holds one or a few"
        )

    def reordered(self, values: Mapping[str, Tensor], order: Iterable[int]) -> dict[str, Tensor]:
        """Draws with their labels in another order."""
        places = torch.tensor(list(order))
        found = dict(values)
        for name, value in values.items():
            if name in self.dims:
                found[name] = value.index_select(self.dims[name], places.to(value.device))
            elif name in self.values:  # what was label places[j] is label j now
                found[name] = places.argsort().to(value.device)[value.long()].to(value.dtype)
        return found

    def check(self, sampler: Sampler, values: Mapping[str, Tensor], n: int) -> None:
        """See on `n` draws that the model does not tell labels apart.

        Raises:
            ProgramError: it does.
        """
        turned = self.reordered(values, [*range(1, self.size), 0])
        before, after = sampler.log_p(values, n), sampler.log_p(turned, n)
        if not torch.allclose(before, after, rtol=1e-4, atol=1e-3, equal_nan=True):
            raise ProgramError(
                f"{', '.join(map(repr, self.dims))} {'is' if len(self.dims) == 1 else 'are'} marked exchangeable, but "
                f"the log joint of the model changes when their labels do, from {float(before[0]):,.2f} to "
                f"{float(after[0]):,.2f}: mark every latent that has a value for each label, or none"
            )


class EveryOrder(Proposal):
    r"""A guide that holds one order of the labels, weighed against all of them: (1/K!) sum_pi q(pi(z)).

    The model gives every order the same density, so drawing from one order and weighing against all is drawing from
    all: the estimate is of the whole evidence, of which one order alone holds as little as one in K!.

    Args:
        guide: as it is.
        labels: of the model.
        annealed: whether gradients will be taken.

    Raises:
        OptionError: more labels than can be put in every order.

    References:
        Frühwirth-Schnatter (2004), Estimating Marginal Likelihoods for Mixture and Markov Switching Models Using Bridge
        Sampling Techniques.
    """

    def __init__(self, guide: Proposal, labels: Labels, *, annealed: bool = False) -> None:
        most = _ANNEALED if annealed else _MOST
        if labels.size > most:
            raise OptionError(
                f"{', '.join(map(repr, labels.dims))} have {labels.size} exchangeable labels, and "
                f"{math.factorial(labels.size):,} orders are too many to weigh the guide against"
                + ("" if annealed else f"; up to {most} labels can be done, or proposal='ais', or 'prior'")
            )
        self.name, self.latents = guide.name, guide.latents
        self._guide, self._labels = guide, labels

    def draw(self) -> dict[str, Any]:
        """One draw: `values` by name, and `log_q` of all orders together."""
        values = self._guide.draw()["values"]
        return {"values": values, "log_q": self.density(values)}

    def density(self, values: Mapping[str, Tensor]) -> Tensor:
        """The log density of values, all orders of which are alike."""
        orders = itertools.permutations(range(self._labels.size))
        terms = [self._guide.density(self._labels.reordered(values, order)) for order in orders]
        return torch.stack(terms).logsumexp(0) - math.log(len(terms))


def read_labels(nodes: Iterable[Any], *, given: Mapping[str, Tensor], per: str | None) -> Labels:
    """The labels of a run of a model, from `infer={"exchangeable": dim}` at its latents, or "value" for assignments.

    Raises:
        ProgramError: dimensions that are none, or of different sizes.
    """
    dims: dict[str, int] = {}
    sizes: dict[str, int] = {}
    labels: set[str] = set()
    for node in nodes:
        dim = node["infer"].get("exchangeable")
        if dim is None or node["is_observed"]:
            continue
        name, shape = node["name"], tuple(node["value"].shape)
        if dim == "value":
            labels.add(name)
            continue
        if isinstance(dim, bool) or not isinstance(dim, int) or not -len(shape) <= dim < 0:
            raise ProgramError(
                f"infer={{'exchangeable': {dim!r}}} at site {name!r} must be a negative dimension of its value, which "
                f"has shape {shape}, or 'value' where the values themselves are labels"
            )
        dims[name], sizes[name] = dim, shape[dim]
    if not dims or per is not None or (set(dims) | labels) & set(given):
        return Labels({}, 1)
    if len(set(sizes.values())) > 1:
        told = ", ".join(f"{size} at {name!r}" for name, size in sizes.items())
        raise ProgramError(f"sites marked exchangeable must have as many labels each, and have {told}")
    return Labels(dims, next(iter(sizes.values())), frozenset(labels))
