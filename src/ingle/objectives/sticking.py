"""log q of a guide's draws without its direct gradient, so that only the path through the draws is left."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions.score_parts import ScoreParts
from pyro.distributions.util import scale_and_mask
from pyro.infer.util import is_validation_enabled
from torch import Tensor

from ingle.errors import ProgramError
from ingle.objectives.runs import run_model, with_values
from ingle.program import sample_nodes

__all__ = ["stick"]


def stick(guide: Any, given: Any, guide_trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Take the direct gradient of log q(z) out of a trace with score parts, in place; the values stay.

    The gradient of log q(z; phi) at z = z(phi) is one through z and one at fixed z. The second, the score, has
    expectation zero; it is that of log q at the detached draws, for which the guide runs once more.

    Args:
        guide: that the trace is of.
        given: the same before its subsampled rows were taken out, so that the second run has them too.
        guide_trace: with score parts.
        args, kwargs: of the guide.

    Raises:
        ProgramError: the second run gives another density, or none; noticed where Pyro's validation is on.
    """
    values = {
        name: site["value"].detach()
        for name, site in given.nodes.items()
        if site["type"] == "sample" and isinstance(site["value"], Tensor)
    }
    again = run_model(guide, with_values(given, values), args, kwargs)
    for site in sample_nodes(guide_trace):
        if site["is_observed"] or site["name"] not in again.nodes:
            continue
        direct = _log_prob(again.nodes[site["name"]])
        log_prob = site["unscaled_log_prob"]
        if is_validation_enabled() and not torch.allclose(direct, log_prob, rtol=1e-3, atol=1e-3, equal_nan=True):
            raise ProgramError(
                f"guide site {site['name']!r} has another density when the guide runs again on the same draws: the "
                "guide draws noise outside of its sample statements (dropout?), or keeps a state; use Trace_ELBO"
            )
        log_prob = site["unscaled_log_prob"] = log_prob - (direct - direct.detach())
        log_prob = scale_and_mask(log_prob, site["scale"], site["mask"])
        site["log_prob"], site["log_prob_sum"] = log_prob, log_prob.sum()
        site["score_parts"] = ScoreParts(log_prob, site["score_parts"].score_function, log_prob)


def _log_prob(site: Any) -> Tensor:
    fn = site["fn"]
    try:
        log_prob: Tensor = fn.log_prob(site["value"], *site["args"], **site["kwargs"])
    except (NotImplementedError, KeyError) as error:
        raise ProgramError(
            f"guide site {site['name']!r}: the density of its {type(fn).__name__} is known at its own draws alone, and "
            "is wanted at given values, for which a flow needs an inverse; use Trace_ELBO"
        ) from error
    return log_prob
