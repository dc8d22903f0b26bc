"""Objectives: each is a `pyro.infer.ELBO`, so it also works in `pyro.infer.SVI`."""

from ingle.objectives.choose import Choice, choose, exactly_ours, ours
from ingle.objectives.dreg import DReG_ELBO
from ingle.objectives.estimator import Estimator
from ingle.objectives.iwae import IWAE_ELBO
from ingle.objectives.kl import Anneal
from ingle.objectives.renyi import RenyiELBO
from ingle.objectives.rloo import RLOO_ELBO
from ingle.objectives.stl import STL_ELBO
from ingle.objectives.trace import Trace_ELBO
from ingle.objectives.trace_enum import TraceEnum_ELBO
from ingle.objectives.trace_graph import TraceGraph_ELBO
from ingle.objectives.trace_mean_field import TraceMeanField_ELBO
from ingle.objectives.vimco import VIMCO_ELBO

__all__ = [
    "IWAE_ELBO",
    "RLOO_ELBO",
    "STL_ELBO",
    "VIMCO_ELBO",
    "Anneal",
    "Choice",
    "DReG_ELBO",
    "Estimator",
    "RenyiELBO",
    "TraceEnum_ELBO",
    "TraceGraph_ELBO",
    "TraceMeanField_ELBO",
    "Trace_ELBO",
    "choose",
    "exactly_ours",
    "ours",
]
