"""Trial runs of a program that leave no trace: what a run changes is put back."""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyro
import torch
from torch import Tensor

from ingle.program import GONE, Change, Place, Places
from ingle.runtime import RandomState

__all__ = ["undone"]

_SMALL = 2**18  # entries of a tensor that is copied in case the program writes to it


@contextmanager
def undone(places: Places, tensors: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the program may be run; afterwards random states, parameters, tensors and Python values are as before.

    Of Python values those that can be set again are, and lists that grew are cut; the rest stays, as the model left it.

    Args:
        places: that the program reads.
        tensors: that a run may change in place, beside small ones that it reads.
    """
    store: Any = pyro.get_param_store()
    registers = [(register, dict(register)) for register in (store._params, store._param_to_name, store._constraints)]
    held = {id(tensor): tensor for tensor in tensors}
    device = next((tensor.device for tensor in held.values() if tensor.device.type != "cpu"), torch.device("cpu"))
    held |= {id(place.value()): place.value() for place in places if _copied(place)}
    before = [(tensor, _version(tensor), tensor.detach().clone()) for tensor in held.values()]
    generators = [(generator, _state(generator)) for generator in places.generators]
    snapshot = places.snapshot(full=True)
    state = RandomState.capture(device)
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, version, value in before:
                # Batch normalisation writes to its running means without a word to their versions.
                if _version(tensor) != version or not torch.equal(tensor, value):
                    tensor.copy_(value)
        for generator, was in generators:
            _restore(generator, was)
        for change in snapshot.changes():
            _put_back(change)
        for register, was in registers:
            if len(register) != len(was) or any(register[key] is not was.get(key) for key in register):
                register.clear()
                register.update(was)
        state.restore()


def _copied(place: Place) -> bool:
    value = place.value()
    return isinstance(value, Tensor) and value.layout == torch.strided and 0 < value.numel() <= _SMALL


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


def _put_back(change: Change) -> None:
    place = change.place
    if change.kind == "value" and change.before is not GONE and place.settable:
        place.put(change.before)
    elif change.kind == "contents" and type(place.holder) is list and isinstance(change.before, int):
        del place.holder[change.before :]


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    if isinstance(generator, np.random.BitGenerator):
        return generator.state
    return generator.getstate() if isinstance(generator, random.Random) else generator.get_state()


def _restore(generator: Any, state: Any) -> None:
    with suppress(AttributeError):
        if isinstance(generator, np.random.Generator):
            generator.bit_generator.state = state
        elif isinstance(generator, np.random.BitGenerator):
            generator.state = state
        elif isinstance(generator, random.Random):
            generator.setstate(state)
        else:
            generator.set_state(state)
