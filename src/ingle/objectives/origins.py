"""Which draws of the guide each term of a run was computed from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro.distributions
import pyro.util
import torch
from pyro.ops.provenance import ProvenanceTensor, get_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.overrides import TorchFunctionMode

__all__ = ["Origins", "marked", "origins", "samples", "score_sampled"]

_NONE: frozenset[str] = frozenset()


class Origins(Messenger):
    """Marks draws inside, and follows the marks through the arithmetic and through Python's own decisions.

    `if k > 0:` on a draw brings no number into what comes after it, but decides what that is. So whatever is sampled
    after a draw was read on the host counts as computed from it; likewise after it was written into another tensor.

    Args:
        marked: from a sample message to whether its draw is to be followed.

    References:
        Wingate, Goodman, Stuhlmüller and Siskind (2011), Nonstandard Interpretations of Probabilistic Programs for
        Efficient Inference.
    """

    def __init__(self, marked: Callable[[Any], bool]) -> None:
        super().__init__()
        self._marked = marked
        self._copies = _Copies(self)
        self.decided = self._names = _NONE

    def __enter__(self) -> Any:
        self.decided = self._names = _NONE
        _ACTIVE.append(self)
        self._copies.__enter__()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> Any:
        self._copies.__exit__(*reason)
        _ACTIVE.remove(self)
        return super().__exit__(*reason)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        names = self.decided
        msg["decided_by"] = names
        if not msg["is_observed"]:
            if self._marked(msg):
                self._names |= {msg["name"]}
                names = names | {msg["name"]}
            msg["value"] = marked(msg["value"], names)

    def decide(self, marks: frozenset[str]) -> None:
        """What comes next may depend on draws of these marks."""
        self.decided |= marks & self._names


def origins(site: Any) -> frozenset[str]:
    """The names of the marked draws that a term of a trace was computed from, with its `log_prob_sum` there."""
    computed: frozenset[str] = get_provenance(site["log_prob_sum"])
    return computed.union(site.get("decided_by", ()))


def score_sampled(msg: Any) -> bool:
    """Whether a site's draws have no pathwise gradient, so that only the score function has one."""
    return not getattr(msg["fn"], "has_rsample", False)


def samples(trace: Any) -> list[Any]:
    """The sample sites of a trace, in order, without those by which plates draw their rows."""
    return [site for site in trace.nodes.values() if site["type"] == "sample" and not site_is_subsample(site)]


def marked(value: Any, names: frozenset[str]) -> Any:
    """A draw with marks beside those that it has."""
    if not isinstance(value, Tensor):
        return value
    if isinstance(value, ProvenanceTensor):
        return _Marked(value._t, value._provenance | names)
    return _Marked(value, names)


class _Marked(ProvenanceTensor):
    """A tensor with marks that its results have too: Pyro's, in a tenth of the time."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        marks, plain = _NONE, []
        options: Any = {}
        for part in args:
            if type(part) is _Marked:
                plain.append(part._t)
                marks = marks | part._provenance if marks else part._provenance
            elif isinstance(part, _NESTED):
                value, more = _plain(part)
                plain.append(value)
                marks = marks | more
            else:
                plain.append(part)
        if kwargs:
            options, more = _plain(dict(kwargs))
            marks = marks | more
        result = func(*plain, **options)
        if _ACTIVE and (func in _READS or _writes(func, args, options, marks)):
            _decide(marks)
        return _with(result, marks)


def _plain(tree: Any) -> tuple[Any, frozenset[str]]:
    """Arguments without marks, and the marks."""
    if isinstance(tree, ProvenanceTensor):
        return tree._t, tree._provenance
    if isinstance(tree, (list, tuple)):
        parts = [_plain(part) if isinstance(part, _NESTED) else (part, _NONE) for part in tree]
        values = [value for value, _ in parts]
        plain = tuple(values) if type(tree) is tuple else values if type(tree) is list else tree
        return plain, _NONE.union(*(marks for _, marks in parts))
    if isinstance(tree, dict):
        values, marks = _plain(list(tree.values()))
        return dict(zip(tree, values, strict=True)), marks
    return tree, _NONE


def _with(result: Any, marks: frozenset[str]) -> Any:
    if isinstance(result, Tensor):
        return marked(result, marks)
    if isinstance(result, (list, tuple)) and any(isinstance(part, _NESTED) for part in result):
        return type(result)([_with(part, marks) for part in result])
    return result


def _writes(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], marks: frozenset[str]) -> bool:
    """Whether marked numbers are put into a tensor that has not their marks, and that Python holds as it is."""
    name = getattr(func, "__name__", "")
    if name == "__setitem__" or (name.endswith("_") and not name.endswith("__")):
        return bool(args) and not marks <= get_provenance(args[0])
    return kwargs.get("out") is not None


def _decide(marks: frozenset[str]) -> None:
    """Python has seen numbers with these marks, and whoever runs now may decide by them."""
    if not marks:
        return
    frame: Any = sys._getframe(1)
    while frame.f_code.co_name == "__torch_function__" or frame.f_code.co_filename == torch.overrides.__file__:
        frame = frame.f_back
    if not frame.f_code.co_filename.startswith(_CHECKS):
        for run in _ACTIVE:
            run.decide(marks)


class _Copies(TorchFunctionMode):
    """Notes tensors that are made from numbers of marked ones, whose marks stay behind."""

    def __init__(self, run: Origins) -> None:
        super().__init__()
        self._run = run

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _COPIES:
            _decide(_plain([args, dict(kwargs or {})])[1])
        return func(*args, **(kwargs or {}))


_ACTIVE: list[Origins] = []
_NESTED = (Tensor, list, tuple, dict)
_COPIES = {torch.tensor, torch.as_tensor, torch.asarray, torch.Tensor.new_tensor}
_READS = {
    torch.Tensor.item,
    torch.Tensor.tolist,
    torch.Tensor.numpy,
    torch.Tensor.__array__,
    torch.Tensor.__bool__,
    torch.Tensor.__int__,
    torch.Tensor.__float__,
    torch.Tensor.__index__,
    torch.Tensor.__complex__,
    torch.Tensor.__contains__,
    torch.Tensor.__format__,
    torch.Tensor.is_nonzero,
    torch.Tensor.equal,
    torch.Tensor.allclose,
    torch.equal,
    torch.allclose,
    torch.is_nonzero,
}

# Distributions read what they check, and decide nothing by it.
_CHECKS = (
    *(str(Path(str(module.__file__)).parent) for module in (torch.distributions, pyro.distributions)),
    str(pyro.util.__file__),
)
