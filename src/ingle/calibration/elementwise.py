"""Whether an optimiser moves each number of a tensor by itself, so that many fits can share one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from pyro.optim import PyroOptim
from pyro.optim.adagrad_rmsprop import AdagradRMSProp
from pyro.optim.clipped_adam import ClippedAdam

__all__ = ["why_not_elementwise"]

_ELEMENTWISE = (
    AdagradRMSProp,
    ClippedAdam,
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)


def why_not_elementwise(optim: object) -> str | None:
    """Why one optimiser over the stacked parameters is not one for each fit, in words; None where it is.

    Args:
        optim: as `ingle.fit` takes it.
    """
    if optim is None:
        return None
    if isinstance(optim, Mapping):
        return "the model and the guide have optimisers of their own"
    if isinstance(optim, PyroOptim):
        kind = optim.pt_optim_constructor
        if not isinstance(optim.pt_optim_args, Mapping):
            return "the optimiser has options by name of the parameter"
        if (optim.pt_clip_args or {}).get("clip_norm") is not None if isinstance(optim.pt_clip_args, Mapping) else True:
            return "the optimiser clips the norm of gradients"
        return None if kind in _ELEMENTWISE else _told(kind)
    if not callable(optim):
        return None  # refused where optimisers are resolved
    try:
        made = optim([torch.nn.Parameter(torch.zeros(2))])
    except Exception:  # one that wants names, or an option that is wrong: the single fit knows
        return "the optimiser cannot be made for a parameter without a name"
    if type(made) not in _ELEMENTWISE:
        return _told(type(made))
    return None if len(made.param_groups) == 1 else "the optimiser has several groups of parameters"


def _told(kind: object) -> str:
    return f"{getattr(kind, '__name__', kind)} is not known to move each number by itself"
