"""The evidence: importance weights, streamed, and what they say of log p(x)."""

from ingle.evidence.compare import Comparison, compare
from ingle.evidence.elements import Elements, resolve_per
from ingle.evidence.estimate import ProposalName, estimate
from ingle.evidence.evidence import Evidence, Pointwise
from ingle.evidence.gap import ElboGap, PointwiseGap, elbo_gap, gap_of
from ingle.evidence.hmc import Metric
from ingle.evidence.joint import uncounted
from ingle.evidence.log_evidence import log_evidence
from ingle.evidence.memory import Cost, budget, cost_of
from ingle.evidence.proposal import Proposal, drawn_by_guide, from_guide
from ingle.evidence.psis import khat_threshold, psis
from ingle.evidence.refuse import point_masses, refuse_shared, why_no_evidence, why_no_weights
from ingle.evidence.resampling import systematic
from ingle.evidence.sampler import Chunk, Sampler
from ingle.evidence.space import Space
from ingle.evidence.survey import Survey

__all__ = [
    "Chunk",
    "Comparison",
    "Cost",
    "ElboGap",
    "Elements",
    "Evidence",
    "Metric",
    "Pointwise",
    "PointwiseGap",
    "Proposal",
    "ProposalName",
    "Sampler",
    "Space",
    "Survey",
    "budget",
    "compare",
    "cost_of",
    "drawn_by_guide",
    "elbo_gap",
    "estimate",
    "from_guide",
    "gap_of",
    "khat_threshold",
    "log_evidence",
    "point_masses",
    "psis",
    "refuse_shared",
    "resolve_per",
    "systematic",
    "uncounted",
    "why_no_evidence",
    "why_no_weights",
]
