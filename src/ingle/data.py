"""What the user hands over, turned into arguments of the model; and the rows of each minibatch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingle.errors import DataError, OptionError
from ingle.options import positive_integer

__all__ = ["Data", "Minibatches", "batch_shapes", "read"]

_INDEX_KINDS = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_))

_HINTS = {
    "UST": "; labels become numbers by pandas.factorize",
    "Mm": "; times become numbers by (t - t.min()) / numpy.timedelta64(1, 'D')",
    "O": "; labels become numbers by pandas.factorize, and a missing value or rows of different length are no number",
}


@dataclass(frozen=True)
class Data:
    """The arguments of model and guide, by position and by name.

    Attributes:
        args: by position.
        kwargs: by name.
        names: what the model calls the arguments by position, where that is known.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    names: tuple[str, ...] = ()

    def items(self) -> Iterator[tuple[str, Any]]:
        """Each argument with a name to call it by in a message."""
        for position, value in enumerate(self.args):
            yield self.names[position] if self.names else f"argument {position}", value
        yield from self.kwargs.items()

    def device(self) -> torch.device | None:
        """The device of the first tensor; None where there is no tensor."""
        return next((value.device for _, value in self.items() if isinstance(value, Tensor)), None)

    def to(self, dtype: torch.dtype, device: torch.device) -> Data:
        """Copies: floating tensors in `dtype`, every tensor on `device`; integers and booleans keep their kind.

        Raises:
            DataError: a tensor is on the meta device.
        """
        empty = next((name for name, value in self.items() if isinstance(value, Tensor) and value.is_meta), None)
        if empty is not None:
            raise DataError(f"{empty} is a tensor on the meta device, which holds no numbers: give one that holds them")

        def move(value: Any) -> Any:
            if not isinstance(value, Tensor):
                return value
            kind = dtype if value.is_floating_point() else value.dtype
            return value.detach().to(device=device, dtype=kind, copy=True)

        return Data(tuple(map(move, self.args)), {name: move(value) for name, value in self.kwargs.items()})

    def describe(self) -> str:
        """Every argument with its shape and dtype, for a message."""
        return ", ".join(f"{name} {_describe(value)}" for name, value in self.items()) or "no arguments"


def read(data: object) -> Data:
    """Arguments from a mapping (by name), a tuple (by position) or one tensor or array.

    NumPy arrays and columns of pandas become tensors. Small integer kinds become int64, because torch takes
    only that, int32 and bool as an index, and would read uint8 as a mask; pass a tensor to keep such a kind.
    Python numbers, strings, None and anything that is not an array pass untouched.

    Raises:
        DataError: for anything else, an empty mapping, keys that are no names, or arrays without numbers.
    """
    if isinstance(data, Mapping):
        if not data:
            raise DataError("data is an empty mapping; a model that takes no arguments is fitted with data=()")
        for name in data:
            if not isinstance(name, str) or not name.isidentifier():
                raise DataError(f"data is passed by keyword, so every key must be a name; {name!r} is not")
        return Data((), {name: _tensor(value, f"data[{name!r}]") for name, value in data.items()})
    if isinstance(data, tuple):
        return Data(tuple(_tensor(value, f"data[{i}]") for i, value in enumerate(data)), {})
    if _is_table(data):
        raise DataError(
            "data is a table, and its columns could be one argument or several: pass a mapping such as "
            '{"x": table["x"], "y": table["y"]}, or table.to_numpy() for one array'
        )
    if _is_array(data):
        return Data((_tensor(data, "data"),), {})
    raise DataError(
        f"data must be a mapping (passed by name), a tuple (passed by position) or one tensor or array, "
        f"got {type(data).__name__}"
    )


def _is_array(value: object) -> bool:
    return isinstance(value, Tensor) or (hasattr(value, "__array__") and not isinstance(value, np.generic))


def _is_table(value: object) -> bool:
    return _is_array(value) and hasattr(value, "columns")


def _tensor(value: Any, name: str) -> Any:
    if isinstance(value, Tensor) or not _is_array(value):
        return value
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise DataError(
            f"{name} is a masked array, and its mask would be lost: pass the values and the mask as two arguments, "
            "and give the mask to pyro.sample(…, obs_mask=mask)"
        )
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise DataError(f"{name} is a {type(value).__name__}, which makes no array: {error}") from error
    if array.dtype.kind not in "biufc":
        hint = next((hint for kinds, hint in _HINTS.items() if array.dtype.kind in kinds), "")
        raise DataError(f"{name} has dtype {array.dtype}, which holds no numbers that torch could take{hint}")
    if array.dtype.kind in "iu" and array.dtype not in _INDEX_KINDS:
        if array.size and array.max() > np.iinfo(np.int64).max:
            raise DataError(f"{name} holds integers past 2**63 - 1, the largest that torch takes")
        array = array.astype(np.int64)
    if array.dtype in (np.longdouble, np.clongdouble):
        array = array.astype(np.complex128 if array.dtype.kind == "c" else np.float64)
    array = array.astype(array.dtype.newbyteorder("="))  # a copy: ours is writable, and the user's stays theirs
    return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))


def _describe(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    return type(value).__name__


class Minibatches:
    """The rows of each named plate, step by step: every row once an epoch, the ragged last batch included.

    Args:
        sizes: for each plate its full size N and the batch size B.
        seed: of the order; each plate has a stream of its own, and none touches torch's global one.
        device: of the rows.
    """

    def __init__(self, sizes: Mapping[str, tuple[int, int]], *, seed: int, device: torch.device) -> None:
        self._sizes = dict(sizes)
        self._device = device
        self._orders: dict[str, Tensor] = {}
        self._places = dict.fromkeys(self._sizes, 0)
        self._generators = {
            name: torch.Generator().manual_seed(_stream(seed, place)) for place, name in enumerate(self._sizes)
        }

    def next(self) -> dict[str, Tensor]:
        """Rows for one step, int64, shape (B,) or shorter at the end of an epoch, for each plate."""
        return {name: self._next(name) for name in self._sizes}

    def upcoming(self) -> dict[str, int]:
        """How many rows the next step has, for each plate."""
        return {name: min(batch, full - self._places[name]) for name, (full, batch) in self._sizes.items()}

    def steady(self, most: int) -> int:
        """How many of the next `most` steps have as many rows as the next one has."""
        ahead = most
        for name, (full, batch) in self._sizes.items():
            left = full - self._places[name]
            if full % batch:  # the last batch of an epoch is shorter
                ahead = min(ahead, left // batch if left >= batch else 1)
        return max(1, ahead)

    def _next(self, name: str) -> Tensor:
        full, batch = self._sizes[name]
        place = self._places[name]
        if place == 0:
            order = torch.randperm(full, generator=self._generators[name], device="cpu")
            self._orders[name] = order.to(self._device)
        self._places[name] = 0 if place + batch >= full else place + batch
        return self._orders[name][place : place + batch]

    def capture(self) -> dict[str, Any]:
        """The place in each epoch, to be given back to `restore`."""
        return {
            "orders": dict(self._orders),
            "places": dict(self._places),
            "generators": {name: generator.get_state() for name, generator in self._generators.items()},
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from where `capture` was called."""
        self._orders = {name: order.to(self._device) for name, order in state["orders"].items()}
        self._places = dict(state["places"])
        for name, generator in self._generators.items():
            generator.set_state(state["generators"][name])


def batch_shapes(batch_sizes: Mapping[str, tuple[int, int]]) -> dict[tuple[tuple[str, int], ...], int]:
    """How many of the steps of all epochs together have which rows of each plate, the rest of an epoch included.

    Args:
        batch_sizes: for each plate its full size N and its batch size B.
    """
    plates: list[list[tuple[str, int, int]]] = []
    for name, (full, batch) in batch_sizes.items():
        whole, rest = divmod(full, batch)
        kinds = [(name, batch, whole)] if whole else []
        plates.append(kinds + ([(name, rest, 1)] if rest else []))
    return {
        tuple((name, rows) for name, rows, _ in chosen): math.prod(times for *_, times in chosen)
        for chosen in itertools.product(*plates)
    }


def _stream(seed: int, place: int) -> int:
    """A seed of its own for each plate and each fit, apart from the one of the noise."""
    return int(np.random.SeedSequence([seed, 1 + place]).generate_state(1, np.uint32)[0])


def resolve_batch_size(batch_size: object) -> dict[str, int]:
    """Plate names and positive sizes. Raises `OptionError` for anything else."""
    if batch_size is None:
        return {}
    if not isinstance(batch_size, Mapping):
        raise OptionError(f'batch_size names its plate, as in {{"data": 100}}; got {batch_size!r}')
    for name in batch_size:
        if not isinstance(name, str):
            raise OptionError(f"batch_size names its plates, got {name!r}")
    return {name: positive_integer(f"batch_size[{name!r}]", size) for name, size in batch_size.items()}
