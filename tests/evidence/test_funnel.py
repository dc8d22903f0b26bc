"""Neal's funnel in ten dimensions, whose evidence is one: what each proposal says, and how far it warns."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch

import ingle

REST = 9


def funnel() -> None:
    """The funnel as a density over a wide normal prior, so that the prior is no help."""
    v = pyro.sample("v", dist.Normal(0.0, 5.0))
    x = pyro.sample("x", dist.Normal(torch.zeros(REST), 5.0).to_event(1))
    target = dist.Normal(0.0, 3.0).log_prob(v) + dist.Normal(torch.zeros(REST), (v / 2).exp()).log_prob(x).sum(-1)
    prior = dist.Normal(0.0, 5.0).log_prob(v) + dist.Normal(torch.zeros(REST), 5.0).log_prob(x).sum(-1)
    pyro.factor("funnel", target - prior)


@pytest.mark.long
@pytest.mark.parametrize("guide", ["normal", "multivariate_normal", "flow"])
def test_no_proposal_that_misses_the_neck_is_called_reliable(guide: Any) -> None:
    fit = ingle.fit(funnel, guide, (), steps=4_000)
    shares = (0.0,) if guide == "flow" else (0.0, 0.1)
    found = {f"{guide}, defensive={share}": fit.log_evidence(10_000, defensive=share) for share in shares}
    found["the prior"] = fit.log_evidence(10_000, proposal="prior")
    if guide == "normal":
        found["AIS"] = fit.log_evidence(10_000, proposal="ais")
    for name, evidence in found.items():
        print(f"{name}: {evidence.log_z:.2f} ± {evidence.se:.2g}, k-hat {evidence.khat:.2f}, {evidence.verdict}")
        missed = abs(evidence.log_z) > 4 * evidence.se
        assert not missed or evidence.verdict in ("doubtful", "unreliable")
        assert math.isfinite(evidence.log_z)
