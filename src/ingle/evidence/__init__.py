"""The evidence: importance weights, streamed, and what they say of log p(x)."""

from ingle.evidence.compare import Comparison, compare
from ingle.evidence.estimate import ProposalName, estimate
from ingle.evidence.evidence import Evidence, Pointwise
from ingle.evidence.gap import ElboGap, PointwiseGap, elbo_gap, gap_of
from ingle.evidence.log_evidence import log_evidence
from ingle.evidence.psis import khat_threshold, psis
from ingle.evidence.refuse import why_no_weights
from ingle.evidence.resampling import systematic
from ingle.evidence.sampler import Chunk

__all__ = [
    "Chunk",
    "Comparison",
    "ElboGap",
    "Evidence",
    "Pointwise",
    "PointwiseGap",
    "ProposalName",
    "compare",
    "elbo_gap",
    "estimate",
    "gap_of",
    "khat_threshold",
    "log_evidence",
    "psis",
    "systematic",
    "why_no_weights",
]
