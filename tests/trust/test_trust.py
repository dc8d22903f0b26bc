"""How often verdicts are wrong: a small part of the suite that `python -m benchmarks.trust` runs in full.

Each case is the first seed of its family. What the whole suite asks for is 90% `ok` among right fits, at most 5% wrong
ones among those called `ok`, and 95% of faults told. Of a few fits as many may miss as those rates allow, so that a
library that just meets them fails a test at most once in a hundred runs.
"""

from __future__ import annotations

import functools
import json
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from scipy.stats import binom
from trust.families import FAMILIES, Case, make
from trust.families.errors import errors, is_right

import ingle

NUTS: dict[str, Any] = json.loads((Path(__file__).parent / "references.json").read_text())
GUIDES = ("multivariate_normal", "normal")
FEW = ("autoregression", "poisson", "scaled", "two modes")
STILL = functools.partial(torch.optim.SGD, lr=1e-9)


def reference(case: Case) -> dict[str, Any]:
    exact = case.exact()
    if exact is None:
        found: dict[str, Any] = NUTS[case.family][str(case.seed)]["moments"]
        return found
    return {name: {"mean": mean, "sd": sd} for name, (mean, sd) in exact.items()}


def off(fit: ingle.Fit, case: Case) -> tuple[float, float]:
    """Errors of means and sds; 20,000 draws know them to 0.01."""
    draws = fit.draws(20_000)
    found = {
        name: {"mean": draws[name].double().mean(0).numpy(), "sd": draws[name].double().std(0).numpy()}
        for name in case.latents
    }
    return errors(found, reference(case))


def allowed(of: int, rate: float) -> int:
    """How many of so many may miss, each by a chance: more come once in a hundred."""
    return int(binom.isf(0.01, of, rate)) if of else 0


def tell(tasks: Iterable[tuple[str, str]]) -> tuple[list[str], list[str], list[str], list[str]]:
    """Untuned fits: those right and called `ok`, right and not, wrong and called `ok`, wrong and told."""
    sorted_out: tuple[list[str], list[str], list[str], list[str]] = ([], [], [], [])
    for family, guide in tasks:
        case = make(family, 0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ingle.IngleWarning)
            fit = ingle.fit(case.model, guide, case.data, compile="off", progress=False)
        verdict, (mean, sd) = fit.verdict, off(fit, case)
        assert verdict.status in ("ok", "doubtful", "failed")
        assert verdict.reasons
        assert verdict.advice or verdict.status == "ok"
        place = 2 * (not is_right(mean, sd)) + (verdict.status != "ok")
        sorted_out[place].append(
            f"{family}, {guide}: {verdict.status}, off by {mean:.2f}, {sd:.2f}: {verdict.reasons[0]}"
        )
    return sorted_out


def test_untuned_fits_are_told_apart() -> None:
    """Both named guides in turn over four families. None that is called `ok` may be wrong here."""
    tasks = [(family, GUIDES[place % 2]) for place, family in enumerate(FEW)]
    good, lost, comfort, told = tell(tasks)
    assert not comfort
    assert len(lost) <= allowed(len(good) + len(lost), 0.1), lost
    assert len(good) >= 2
    assert len(told) >= 1


@pytest.mark.long
def test_untuned_fits_of_every_family_are_told_apart() -> None:
    good, lost, comfort, told = tell((family, guide) for family in FAMILIES for guide in GUIDES)
    assert len(comfort) <= allowed(len(good) + len(comfort), 0.05), comfort
    assert len(lost) <= allowed(len(good) + len(lost), 0.1), lost
    assert len(told) >= 5


def narrow(case: Case) -> Callable[..., None]:
    """Independent normals at the posterior's means, log-normals for what is positive, with a third of its sds."""
    exact = reference(case)

    def guide(**_: Any) -> None:
        shift = pyro.param("shift", torch.tensor(0.0))
        for name in case.latents:
            mean, sd = (torch.as_tensor(np.asarray(exact[name][key]), dtype=torch.float32) for key in ("mean", "sd"))
            if name in ("sigma", "tau"):
                spread = torch.log1p((sd / mean) ** 2)
                pyro.sample(name, dist.LogNormal(shift + mean.log() - spread / 2, spread.sqrt() / 3))
            else:
                pyro.sample(name, dist.Normal(shift + mean, sd / 3).to_event(mean.dim()))

    return guide


@pytest.mark.parametrize("family", ["normal", "linear", "scaled", "autoregression"])
def test_scales_at_a_third_are_told(family: str) -> None:
    case = make(family, 0)
    fit = ingle.fit(case.model, narrow(case), case.data, optim=STILL, steps=100, compile="off")
    assert off(fit, case)[1] > 0.6
    assert fit.verdict.status != "ok"
    assert "too small" in "".join(fit.verdict.reasons)


@pytest.mark.parametrize("family", ["normal", "linear", "scaled"])
def test_a_tenth_of_the_steps_is_told(family: str) -> None:
    """Pyro's own start and Adam at 0.01 need some thousands of steps."""
    case = make(family, 0)
    adam = functools.partial(torch.optim.Adam, lr=0.01)
    fit = ingle.fit(case.model, AutoNormal, case.data, optim=adam, steps=150, compile="off")
    assert not is_right(*off(fit, case))
    assert fit.verdict.status != "ok"
    assert "fit.resume()" in fit.verdict.advice[0]


def test_missed_modes_are_told() -> None:
    """A Gaussian has one mode; where the data leave two that are well apart it is wrong, and right where they meet."""
    told, missed, wrongly = 0, [], []
    for seed in range(5):
        case = make("two modes", seed)
        fit = ingle.fit(case.model, "normal", case.data, steps=150, compile="off")
        if is_right(*off(fit, case)):
            wrongly += [seed] if fit.verdict.modes else []
        elif fit.verdict.status == "ok":
            missed.append(seed)
        else:
            told += 1
    assert not wrongly
    assert told >= 2
    assert len(missed) <= allowed(told + len(missed), 0.05), missed
