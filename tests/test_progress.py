"""The progress bar: what it shows, and when it is quiet."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.mark.parametrize("progress", [None, False])
def test_quiet_without_a_terminal_or_when_told(progress: bool | None, capfd: pytest.CaptureFixture[str]) -> None:
    ingle.fit(model, "normal", torch.zeros(3), steps=60, progress=progress)
    assert capfd.readouterr() == ("", "")


def test_bar_shows_elbo_steps_and_time_left(capfd: pytest.CaptureFixture[str]) -> None:
    ingle.fit(model, "normal", torch.zeros(3), steps=120, progress=True)
    shown = capfd.readouterr().err
    assert "120/120" in shown
    assert "ELBO -" in shown
    assert "steps/s" in shown


def test_bar_of_a_resumed_fit_counts_all_steps(capfd: pytest.CaptureFixture[str]) -> None:
    fit = ingle.fit(model, "normal", torch.zeros(3), steps=60, progress=True)
    capfd.readouterr()
    fit.resume(30)
    shown = capfd.readouterr().err
    assert " 60/90" in shown
    assert " 90/90" in shown
