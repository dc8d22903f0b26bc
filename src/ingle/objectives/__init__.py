"""Objectives: each is a `pyro.infer.ELBO`, so it also works in `pyro.infer.SVI`."""

from ingle.objectives.choose import Choice, choose, ours
from ingle.objectives.estimator import Estimator
from ingle.objectives.trace import Trace_ELBO
from ingle.objectives.trace_enum import TraceEnum_ELBO
from ingle.objectives.trace_graph import TraceGraph_ELBO
from ingle.objectives.trace_mean_field import TraceMeanField_ELBO

__all__ = [
    "Choice",
    "Estimator",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "choose",
    "ours",
]
