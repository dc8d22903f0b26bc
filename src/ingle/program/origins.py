"""Which draws of a run each of its sites was computed from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import pyro.distributions
import pyro.util
import torch
from pyro.infer.autoguide import initialization
from pyro.poutine import scale_messenger
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakIdKeyDictionary

from ingle.program.distributions import made_of
from ingle.program.nodes import sample_nodes
from ingle.program.operations import tensors, written

__all__ = ["Origins", "origins", "reached"]

_NONE: frozenset[str] = frozenset()


class Origins(Messenger):
    """Marks draws inside, and follows the marks through every operation and through Python's own decisions.

    `if k > 0:` on a draw brings no number into what comes after it, but decides what that is. So whatever is sampled
    after a draw was read on the host counts as computed from it; likewise where a draw gives a tensor its shape.

    Marks are kept beside the tensors, which stay what they are: a flow still knows its own draws.

    Args:
        marked: from a sample message to whether its draw is to be followed.

    References:
        Wingate, Goodman, Stuhlmüller and Siskind (2011), Nonstandard Interpretations of Probabilistic Programs for
        Efficient Inference.
    """

    def __init__(self, marked: Callable[[Any], bool]) -> None:
        super().__init__()
        self._marked = marked
        self._decided = _NONE
        self._marks = WeakIdKeyDictionary()
        self._modes = (_Operations(self), _Reads(self))

    def __enter__(self) -> Any:
        for mode in self._modes:
            mode.__enter__()  # type: ignore[no-untyped-call]
        return super().__enter__()

    def __exit__(self, *reason: Any) -> Any:
        try:
            return super().__exit__(*reason)
        finally:
            for mode in reversed(self._modes):
                mode.__exit__(*reason)  # type: ignore[no-untyped-call]

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        msg["decided_by"] = self._decided
        if msg["is_observed"]:
            return
        if self._marked(msg):
            msg["decided_by"] = self._decided | {msg["name"]}
        if isinstance(msg["value"], Tensor):
            self.mark(msg["value"], msg["decided_by"])  # not what it is a view of: other draws may be, too

    def of(self, given: Iterable[Any]) -> frozenset[str]:
        """The marks of tensors."""
        found = _NONE
        for tensor in given:
            found |= self._marks.get(tensor, _NONE)
            if tensor._base is not None:
                found |= self._marks.get(tensor._base, _NONE)
        return found

    def mark(self, tensor: Tensor, names: frozenset[str]) -> None:
        """Add marks to a tensor."""
        self._marks[tensor] = self._marks.get(tensor, _NONE) | names

    def write(self, tensor: Tensor, names: frozenset[str]) -> None:
        """Add marks to a tensor that was written to, and to what it is a view of."""
        self.mark(tensor, names)
        if tensor._base is not None:
            self.mark(tensor._base, names)

    def decide(self, seen: Iterable[Any]) -> None:
        """Python has seen numbers of tensors, and what comes next may depend on them."""
        names = self.of(seen)
        if names and not names <= self._decided and not _checking():
            self._decided |= names

    def computed(self, site: Any) -> frozenset[str]:
        """The marked draws that numbers of a site come from: of its distribution, its value or its mask."""
        return self.of(made_of([site["fn"], site["value"], site["mask"]]))

    def behind(self, site: Any) -> frozenset[str]:
        """The marked draws that numbers of a site come from, and those that Python had read before it."""
        return self.computed(site) | _decided(site)

    def note(self, *traces: Any) -> None:
        """Write into each sample site, its log_prob computed inside, what that was computed from."""
        for trace in traces:
            for site in sample_nodes(trace):
                site["origins"] = self.of(tensors(site["log_prob"])) | _decided(site)


def reached(names: Collection[str]) -> Origins:
    """A handler that follows the draws of the named sites; ask it what is behind a site of a run inside."""
    followed = frozenset(names)
    return Origins(lambda site: site["name"] in followed)


def origins(site: Any) -> frozenset[str]:
    """The marked draws that a term of a trace was computed from, as `Origins.note` wrote them into it."""
    noted: frozenset[str] = site["origins"]
    return noted


def _decided(site: Any) -> frozenset[str]:
    found: frozenset[str] = site.get("decided_by", _NONE)
    return found


class _Operations(TorchDispatchMode):
    """Results have the marks of what they are computed from."""

    def __init__(self, run: Origins) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._run = run

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        run, kwargs = self._run, kwargs or {}
        given = tensors((args, kwargs))
        names = run.of(given)
        result = func(*args, **kwargs)
        if names:
            for tensor in tensors(result):
                run.mark(tensor, names)
            for tensor in written(func, args, kwargs):
                run.write(tensor, names)
            if _by_values(func, args):
                run.decide(given)
        return result


def _by_values(func: Any, args: tuple[Any, ...]) -> bool:
    """Whether numbers reach Python, or the shape of a result."""
    if torch.Tag.data_dependent_output in func.tags or torch.Tag.dynamic_output_shape in func.tags:
        indices = args[1] if func is torch.ops.aten.index.Tensor else ()
        return not indices or any(index is not None and index.dtype in (torch.bool, torch.uint8) for index in indices)
    return False


class _Reads(TorchFunctionMode):
    """Reads of numbers that no operation shows, and the one view that is none."""

    def __init__(self, run: Origins) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        if func in _READS:
            self._run.decide(tensors((args, kwargs or {})))
        elif func is _DATA:
            self._run.mark(result, self._run.of(args))
        return result


_DATA: Any = torch.Tensor.data.__get__  # type: ignore[attr-defined]
_READS = {
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.data_ptr,
    torch.Tensor.new_tensor,
    torch.tensor,  # copies the numbers of tensors in a list
    torch.as_tensor,
    torch.asarray,
}


# Distributions read what they check, scales are checked, first values are tried: none of it decides for the program.
_CHECKS = (
    *(str(Path(str(module.__file__)).parent) for module in (torch.distributions, pyro.distributions)),
    *(str(module.__file__) for module in (pyro.util, initialization, scale_messenger)),
)
_TORCH = str(Path(str(torch.__file__)).parent)


def _checking() -> bool:
    """Whether Pyro reads by itself, and not the program."""
    frame: Any = sys._getframe(2)
    while frame is not None:
        file, name = frame.f_code.co_filename, frame.f_code.co_name
        if file.startswith(_CHECKS):
            return True
        if not (file.startswith(_TORCH) or name in ("__torch_function__", "__torch_dispatch__")):
            return False
        frame = frame.f_back
    return False
