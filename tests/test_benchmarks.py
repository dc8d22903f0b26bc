"""The benchmark compares like with like: the programs of its cases are the same model in Pyro and in NumPyro."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from typing import Any

import numpy as np
import pyro
import pytest
import torch
from pyro import poutine
from pyro.infer import Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta, init_to_value

from benchmarks import pyro_cases
from benchmarks.agree import disagreement, repeated_noise
from benchmarks.cases import CASES
from benchmarks.torch_cases import HandWritten
from benchmarks.worker import ROOT


def latents(name: str) -> dict[str, Any]:
    """A point: where the guide starts, and for the autoencoder any code."""
    return {"z": np.ones((256, 20), dtype=np.float32)} if name == "vae" else dict(CASES[name]().start)


@pytest.fixture(scope="session")
def theirs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """Log joint densities in NumPyro, from a process of its own: JAX's threads and warnings stay out of this one."""
    if importlib.util.find_spec("numpyro") is None:
        pytest.skip("NumPyro is not installed")
    points = tmp_path_factory.mktemp("points")
    for name in CASES:
        np.savez(points / name, **latents(name))
    script = """if True:
        import json, sys
        import numpy as np
        from benchmarks.cases import CASES
        from benchmarks.numpyro_cases import log_joint
        points = {name: dict(np.load(f"{sys.argv[1]}/{name}.npz")) for name in CASES}
        print(json.dumps({name: log_joint(name, CASES[name](), point) for name, point in points.items()}))
    """
    return json.loads(asked(script, str(points)))


def asked(script: str, *arguments: str) -> str:
    """What a script prints, run from the root of the repository."""
    done = subprocess.run([sys.executable, "-c", script, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", CASES)
def test_both_libraries_have_the_same_model(name: str, theirs: dict[str, float]) -> None:
    """The log joint density at one point, which for the autoencoder has the weights of the decoder in it."""
    case, point = CASES[name](), pyro_cases.tensors(latents(name), "cpu")
    model, _ = pyro_cases.pair(name, case, "cpu")
    continuous = poutine.block(model, hide=["component"]) if case.summed else model
    mass = AutoDelta(continuous, init_loc_fn=init_to_value(values=point))
    with pyro.get_param_store().scope():
        loss = TraceEnum_ELBO(max_plate_nesting=1, strict_enumeration_warning=case.summed).loss(
            config_enumerate(model), mass, **pyro_cases.tensors(case.data, "cpu")
        )
    assert -loss == pytest.approx(theirs[name], rel=1e-4)


def test_the_loop_by_hand_has_the_loss_of_the_pair() -> None:
    """Means of 40 draws from the same weights, within 5 standard errors: fails by chance once in a million times."""
    case = CASES["vae"]()
    model, guide = pyro_cases.pair("vae", case, "cpu")
    x = pyro_cases.tensors(case.data, "cpu")["x"]
    torch.manual_seed(0)
    with torch.no_grad(), pyro.get_param_store().scope():
        ours = torch.tensor([Trace_ELBO().loss(model, guide, x) for _ in range(40)])
        by_hand = torch.stack([HandWritten(case, "cpu", compiled=False).loss(x) for _ in range(40)])
    error = math.hypot(float(ours.std()), float(by_hand.std())) / math.sqrt(40)
    assert abs(float(ours.mean() - by_hand.mean())) < 5 * error


def test_losses_that_differ_and_noise_that_is_frozen_are_found() -> None:
    rng = np.random.default_rng(0)
    trend = 1_000 * np.exp(-np.arange(400) / 200) + 100
    series = [trend + 5 * rng.standard_gamma(2.0, 400) for _ in range(2)]
    assert not disagreement({"one": list(series[0]), "two": list(series[1])})
    assert disagreement({"one": list(series[0]), "two": list(series[1] + 10)})
    assert disagreement({"one": list(series[0]), "two": [math.nan] * 400})
    assert not repeated_noise(list(series[0]))
    assert "no noise" in repeated_noise([1.0] * 400)
    assert "50 steps" in repeated_noise(list(trend + np.tile(rng.standard_normal(50), 8)))
    assert "1 steps" in repeated_noise(list(trend + np.repeat(rng.standard_normal(200), 2)))


def test_the_process_that_asks_holds_neither_library() -> None:
    asked("import sys, benchmarks.svi; assert not {'torch', 'jax'} & set(sys.modules)")
