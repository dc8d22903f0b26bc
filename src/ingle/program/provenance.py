"""Which values of a run were computed from the values of some of its sites."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from torch import Tensor

from ingle.program.distributions import layers

__all__ = ["reached"]


@contextmanager
def reached(names: Collection[str]) -> Iterator[Callable[[Any], frozenset[str]]]:
    """Runs inside carry marks of the named sites.

    Yields:
        A function from a tensor, or a distribution, to the names of the sites that it was computed from.
    """
    with _Marks(names):
        yield _origin


def _origin(thing: Any) -> frozenset[str]:
    if isinstance(thing, Tensor):
        return frozenset(get_provenance(thing))
    held = (value for layer in layers(thing) for value in vars(layer).values() if isinstance(value, Tensor))
    return frozenset().union(*(get_provenance(value) for value in held))


class _Marks(Messenger):
    def __init__(self, names: Collection[str]) -> None:
        super().__init__()
        self.names = frozenset(names)

    def _pyro_post_sample(self, msg: Any) -> None:
        if msg["name"] in self.names:
            msg["value"] = track_provenance(msg["value"], frozenset({msg["name"]}))
