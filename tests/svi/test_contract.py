"""The contract of the class: signatures, attributes, errors, gradients, and what it leaves alone."""

from __future__ import annotations

import inspect
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pyro
import pyro.infer
import pyro.optim
import pytest
import torch
from svi.parity import DATA, SVI, adam, assert_same, normal_guide, normal_model, normal_svi, play, train_normal

import ingle


@pytest.mark.parametrize("method", ["__init__", "step", "evaluate_loss", "run"])
def test_signatures(method: str) -> None:
    ours, theirs = (inspect.signature(getattr(svi, method)).parameters for svi in (ingle.SVI, pyro.infer.SVI))
    told = [[(each.name, each.kind, each.default) for each in signature.values()] for signature in (ours, theirs)]
    own = [("compile", inspect.Parameter.KEYWORD_ONLY, "auto")] if method == "__init__" else []
    assert [each for each in told[0] if each not in own] == told[1]


def test_attributes() -> None:
    def script(svi: SVI) -> list[Any]:
        optim, elbo = adam(), pyro.infer.Trace_ELBO()
        fit = svi(normal_model, normal_guide, optim, elbo, num_chains=2)
        assert fit.model is normal_model
        assert fit.guide is normal_guide
        assert fit.optim is optim
        assert fit.loss == elbo.loss
        assert fit.loss_and_grads == elbo.loss_and_grads
        # The deprecated EmpiricalMarginal and TracePredictive ask for it.
        assert isinstance(fit, pyro.infer.TracePosterior)
        return [fit.num_samples, fit.num_steps, fit.num_chains]

    assert assert_same(script)["returned"] == [0, 0, 2]


def test_subclass() -> None:
    def script(svi: SVI) -> list[Any]:
        class Halved(svi):  # type: ignore[misc, valid-type]
            def step(self, *args: Any, **kwargs: Any) -> float:
                return super().step(*args, **kwargs) / 2

        return train_normal(Halved)

    assert_same(script)


def test_gradients_zeroed() -> None:
    left = assert_same(lambda svi: [normal_svi(svi).step(DATA)])
    assert all(torch.equal(grad, torch.zeros_like(grad)) for grad in left["gradients"].values())


def test_evaluate_loss_moves_nothing() -> None:
    def script(svi: SVI) -> list[Any]:
        fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(num_particles=2))
        return [fit.evaluate_loss(DATA), fit.evaluate_loss(DATA)]

    left = assert_same(script)
    assert left["values"]["noise"] == 1.5
    assert set(left["gradients"].values()) == {None}


def test_run() -> None:
    def script(svi: SVI) -> list[Any]:
        with pytest.warns(FutureWarning) as made:
            fit = svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(), num_samples=6, num_steps=3)
        with pytest.warns(FutureWarning) as ran:
            posterior = fit.run(DATA)
        assert posterior is fit
        return [
            [str(warning.message) for warning in [*made, *ran]],
            [trace.nodes["z"]["value"].detach() for trace in posterior.exec_traces],
            posterior.log_weights,
            pyro.infer.EmpiricalMarginal(posterior, sites="z").mean.detach(),
        ]

    said = assert_same(script)["returned"][0]
    assert len(said) == 3


FAULTS: dict[str, Callable[[SVI], Any]] = {
    "missing loss": lambda svi: svi(normal_model, normal_guide, adam()),  # type: ignore[call-arg]
    "unknown argument": lambda svi: svi(normal_model, normal_guide, adam(), pyro.infer.Trace_ELBO(), stride=2),
    "wrong data": lambda svi: normal_svi(svi).step(DATA, DATA),
    "run without samples": lambda svi: normal_svi(svi).run(DATA),
    "optimiser of torch": lambda svi: normal_svi(svi, torch.optim.Adam([torch.zeros(1, requires_grad=True)])),
    "several optimisers": lambda svi: normal_svi(svi, pyro.optim.multi.PyroMultiOptimizer(adam())),
    "arguments not a dict": lambda svi: normal_svi(svi, pyro.optim.Adam(lambda name: 0.1)).step(DATA),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
def test_same_error(fault: Callable[[SVI], Any]) -> None:
    def script(svi: SVI) -> list[Any]:
        with pytest.raises(Exception) as raised:  # noqa: PT011
            fault(svi)
        return [raised.type, str(raised.value)]

    assert_same(script)


def surroundings() -> dict[str, Any]:
    """What the fixture of the suite does not look at, and the settings, which a test may hold changed."""
    return {
        "settings": pyro.settings.get(),
        "anomaly": torch.is_anomaly_enabled(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "precision": torch.get_float32_matmul_precision(),
        "numpy": np.geterr(),
        "warnings": list(warnings.filters),
    }


def test_leaves_the_surroundings() -> None:
    with pyro.validation_enabled(False):
        before = surroundings()
        play(train_normal, ingle.SVI)
        with pytest.raises(TypeError):
            normal_svi(ingle.SVI).step(DATA, DATA)
        assert surroundings() == before


def test_import_leaves_pyro() -> None:
    code = """
import pyro, pyro.infer, torch
def look():
    inference = {name: vars(pyro.infer)[name] for name in pyro.infer.__all__}
    return pyro.settings.get(), dict(vars(pyro.infer.SVI)), inference, torch.get_default_dtype()
before, state = look(), torch.get_rng_state()
import ingle
ingle.SVI
assert look() == before
assert torch.equal(torch.get_rng_state(), state)
assert not pyro.get_param_store()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
