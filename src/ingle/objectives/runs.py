"""One run of a guide and of the model on its draws, with densities."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from pyro import poutine
from pyro.infer.util import is_validation_enabled
from pyro.poutine.guide import GuideMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_if_enumerated, check_model_guide_match, check_site_shape
from torch import Tensor

from ingle.program import Origins, sample_nodes

__all__ = ["marked_traces", "run_guide", "run_model", "weighed", "with_values"]


def marked_traces(
    marked: Callable[[Any], bool], max_plate_nesting: Any, model: Any, guide: Any, args: Any, kwargs: Any
) -> tuple[Any, Any]:
    """Traces of model and guide in which every term knows the marked draws behind it."""
    with Origins(marked) as run:
        messenger = poutine.unwrap(guide)
        if isinstance(messenger, GuideMessenger):  # it runs the model by itself
            guide(*args, **kwargs)
            model_trace, guide_trace = messenger.get_traces()
        else:
            guide_trace = run_guide(guide, args, kwargs)
            model_trace = run_model(model, guide_trace, args, kwargs)
        model_trace, guide_trace = weighed(model_trace, guide_trace, max_plate_nesting)
        run.note(model_trace, guide_trace)
    return model_trace, guide_trace


def run_guide(guide: Any, args: Any, kwargs: Any) -> Any:
    """A trace of the guide."""
    return poutine.trace(guide).get_trace(*args, **kwargs)


def run_model(model: Any, guide_trace: Any, args: Any, kwargs: Any) -> Any:
    """A trace of the model on the draws of a guide."""
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)


def weighed(model_trace: Any, guide_trace: Any, max_plate_nesting: Any) -> tuple[Any, Any]:
    """Both traces without the sites of subsampling, with log_prob and score parts, checked as Pyro checks them."""
    checked = is_validation_enabled()
    if checked:
        check_model_guide_match(model_trace, guide_trace, max_plate_nesting)
    model_trace, guide_trace = prune_subsample_sites(model_trace), prune_subsample_sites(guide_trace)
    model_trace.compute_log_prob()
    guide_trace.compute_score_parts()
    if checked:
        for site in (*sample_nodes(model_trace), *sample_nodes(guide_trace)):
            check_site_shape(site, max_plate_nesting)
        check_if_enumerated(guide_trace)
    return model_trace, guide_trace


def with_values(trace: Any, values: Mapping[str, Tensor]) -> Any:
    """A copy of a trace with other values at some of its sites, to be replayed."""
    other = poutine.Trace()
    for name, site in trace.nodes.items():
        other.add_node(name, **{**site, "value": values[name]} if name in values else site)
    return other
