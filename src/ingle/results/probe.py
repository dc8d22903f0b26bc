"""A checked run of a model that observes nothing, before many are made without checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from pyro import poutine
from pyro.infer.autoguide.initialization import InitMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_site_shape

from ingle.program import Site, Unobserve, read_sites, typical_value
from ingle.runtime import validation

__all__ = ["probed"]


def probed(model: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Site, ...]:
    """The sites of a model at typical values, nothing observed; raises what Pyro's checks of it raise."""
    with validation(True), InitMessenger(typical_value):
        trace: Any = prune_subsample_sites(poutine.trace(Unobserve()(model)).get_trace(*args, **kwargs))
        trace.compute_log_prob()
        for node in trace.nodes.values():
            if node["type"] == "sample":
                check_site_shape(node, math.inf)  # type: ignore[arg-type]
    return read_sites(trace)
