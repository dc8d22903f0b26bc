"""Which draws of the guide each term of a run was computed from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyro.distributions
import pyro.util
import torch
from pyro.ops.provenance import get_provenance, track_provenance
from pyro.poutine.messenger import Messenger
from pyro.poutine.util import site_is_subsample
from torch.overrides import TorchFunctionMode

__all__ = ["Origins", "origins", "samples", "score_sampled"]


class Origins(Messenger):
    """Marks draws inside, and follows the marks through the arithmetic and through Python's own decisions.

    `if k > 0:` on a draw brings no number into what comes after it, but decides what that is. So whatever is sampled
    after a draw was read on the host counts as computed from it.

    Args:
        marked: from a sample message to whether its draw is to be followed.

    References:
        Wingate, Goodman, Stuhlmüller and Siskind (2011), Nonstandard Interpretations of Probabilistic Programs for
        Efficient Inference.
    """

    def __init__(self, marked: Callable[[Any], bool]) -> None:
        super().__init__()
        self._marked = marked
        self._reads = _Reads()

    def __enter__(self) -> Any:
        self._reads.names = frozenset()
        self._reads.__enter__()
        return super().__enter__()

    def __exit__(self, *reason: Any) -> Any:
        self._reads.__exit__(*reason)
        return super().__exit__(*reason)

    def _pyro_post_sample(self, msg: Any) -> None:
        if site_is_subsample(msg):
            return
        names = self._reads.names
        msg["decided_by"] = names
        if not msg["is_observed"]:
            marks = names | {msg["name"]} if self._marked(msg) else names
            msg["value"] = track_provenance(msg["value"], marks)


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


class _Reads(TorchFunctionMode):
    """Notes whose numbers reach Python."""

    names: frozenset[str] = frozenset()

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func in _READS:
            names = get_provenance([args, dict(kwargs or {})])
            if names and not sys._getframe(1).f_code.co_filename.startswith(_CHECKS):
                self.names |= names
        return func(*args, **(kwargs or {}))


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
    torch.Tensor.new_tensor,
    torch.equal,
    torch.allclose,
    torch.is_nonzero,
    torch.tensor,  # copies the numbers of tensors in a list, and their marks stay behind
    torch.as_tensor,
    torch.asarray,
}

# Distributions read what they check, and decide nothing by it.
_CHECKS = (
    *(str(Path(str(module.__file__)).parent) for module in (torch.distributions, pyro.distributions)),
    str(pyro.util.__file__),
)
