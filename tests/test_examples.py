"""Every example runs, and writes what it says it writes."""

from __future__ import annotations

import argparse
import gzip
import runpy
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pytest
import torch

EXAMPLES = Path(__file__).parents[1] / "examples"
WRITES = {
    "amortisation.py": ["amortisation.png"],
    "bayesian_neural_network.py": ["bayesian_neural_network_bands.png", "bayesian_neural_network_calibration.png"],
    "calibrate.py": ["calibrate.png"],
    "coin.py": ["coin.png"],
    "custom_model.py": [
        "custom_model.fit",
        "custom_model.nc",
        "custom_model_predicted.png",
        "custom_model_prior.png",
        "custom_model_replicated.png",
    ],
    "diffusion.py": ["diffusion.png", "diffusion_digits.png"],
    "elbo.py": ["elbo.png"],
    "estimators.py": ["estimators.png"],
    "evidence.py": ["evidence.png"],
    "factor_analysis.py": ["factor_analysis.png"],
    "hierarchical.py": [
        "hierarchical_action.png",
        "hierarchical_shrinkage.png",
        "hierarchical_slopes.png",
        "hierarchical_uranium.png",
    ],
    "hierarchical_vae.py": ["hierarchical_vae_samples.png", "hierarchical_vae_training.png"],
    "image_completion.py": ["image_completion.png"],
    "mixture.py": ["mixture.png", "mixture_evidence.png"],
    "mnist.py": ["mnist_images.png", "mnist_nll.png"],
    "quickstart.py": [
        f"{fit}{ending}"
        for fit in ("eight_schools", "radon")
        for ending in (".nc", "_loss.png", "_forest.png", "_predictive.png", "_prior.png")
    ],
    "regression.py": ["regression_coefficients.png", "regression_lines.png"],
    "verdict.py": ["verdict.png"],
    "vae.py": ["vae_grid.png", "vae_images.png", "vae_walks.png"],
    "vi_versus_nuts.py": ["vi_versus_nuts_schools.png"],
}
SAYS = {
    "calibrate.py": "Calibration of line",  # of many fits, and the card of none
    "mnist.py": "test NLL after 2 of 2 epochs",  # a loop of its own, which ends in no fit
}


def test_every_example_is_listed() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(WRITES)


def test_code_of_the_readme_can_be_pasted(tmp_path: Path) -> None:
    blocks = [part.split("```")[0] for part in (EXAMPLES.parent / "README.md").read_text().split("```python\n")[1:]]
    script = "".join(blocks) + "print(drawn['y'].shape)"
    command = [sys.executable, "-W", "error::UserWarning", "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Fit of model" in done.stdout
    assert "theta[7]" in done.stdout
    assert "RLOO_ELBO(4)" in done.stdout
    assert "nothing found" in done.stdout
    assert "torch.Size([1000, 2])" in done.stdout


@pytest.mark.parametrize("name", WRITES)
def test_example_runs(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a script is run, but in this process, which has imported already what all of them import."""
    dtype = torch.get_default_dtype()
    monkeypatch.setattr(sys, "argv", [name, "--smoke", "--out", str(tmp_path)])
    with pyro.get_param_store().scope(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the deprecations between other packages
        warnings.simplefilter("error", UserWarning)
        warnings.simplefilter("error", RuntimeWarning)
        try:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        finally:
            torch.set_default_dtype(dtype)  # a script may set it
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(WRITES[name])
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())
    assert SAYS.get(name, "Fit of") in capsys.readouterr().out


def of_mnist(tmp_path: Path, **changed: Any) -> argparse.Namespace:
    given: dict[str, Any] = {
        "data": None,
        "smoke": True,
        "device": "cpu",
        "particles": 2,
        "epochs": 2,
        "minutes": 9.0,
        "batch": 100,
    }
    return argparse.Namespace(**{**given, "checkpoint": tmp_path / "run.pt", **changed})


def test_a_run_on_mnist_goes_on_where_its_checkpoint_stands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """To the same bits as a run that was never broken off."""
    script = runpy.run_path(str(EXAMPLES / "mnist.py"))
    options = of_mnist(tmp_path)
    weights = []
    with pyro.get_param_store().scope():
        train, test = script["load"](options)
        for broken_off in (False, True):
            run = script["Run"](train, options)
            run.pass_over()
            run.epoch = 1
            if broken_off:
                run.save()
                run = script["Run"](train, options)
                run.restore()
            run.train(test)
            weights.append(run.model.state_dict() | {f"guide {name}": w for name, w in run.guide.state_dict().items()})
        again = script["Run"](train, options)
        again.restore()
        assert again.epoch == 2
        assert len(again.history) == 1
        options.particles = 5
        with pytest.raises(SystemExit, match="--particles 2"):
            again.restore()
    assert "going on after 1 epochs" in capsys.readouterr().out
    for name, weight in weights[0].items():
        torch.testing.assert_close(weights[1][name], weight, atol=0, rtol=0)


def test_mnist_is_read_from_either_kind_of_file(tmp_path: Path) -> None:
    load = runpy.run_path(str(EXAMPLES / "mnist.py"))["load"]
    pixels = np.random.default_rng(0).integers(0, 256, (5, 28, 28), dtype=np.uint8)
    head = np.array([2051, 5, 28, 28], dtype=">i4").tobytes()
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(gzip.compress(head + pixels.tobytes()))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(head + pixels[::-1].tobytes())
    np.savez(tmp_path / "mnist.npz", x_train=pixels, x_test=pixels[::-1])
    for path in (tmp_path, tmp_path / "mnist.npz"):
        train, test = load(of_mnist(tmp_path, data=path))
        torch.testing.assert_close(train, torch.tensor(pixels / 255.0, dtype=torch.float32))
        torch.testing.assert_close(test, train.flip(0))
    np.savez(tmp_path / "other.npz", images=pixels)
    with pytest.raises(SystemExit, match="none of x_train, train_images, valid_images, but images"):
        load(of_mnist(tmp_path, data=tmp_path / "other.npz"))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x08\x01" + bytes(20))
    with pytest.raises(SystemExit, match="begins with 2049 and not with 2051"):
        load(of_mnist(tmp_path, data=tmp_path))
