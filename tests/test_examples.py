"""Every example runs, and writes what it says it writes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[1] / "examples"
WRITES = {
    "amortisation.py": ["amortisation.png"],
    "bayesian_neural_network.py": ["bayesian_neural_network_bands.png", "bayesian_neural_network_calibration.png"],
    "coin.py": ["coin.png"],
    "custom_model.py": [
        "custom_model.fit",
        "custom_model.nc",
        "custom_model_predicted.png",
        "custom_model_prior.png",
        "custom_model_replicated.png",
    ],
    "digits.py": ["digits.png"],
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
    "mixture.py": ["mixture.png", "mixture_evidence.png"],
    "quickstart.py": [
        f"{fit}{ending}"
        for fit in ("eight_schools", "radon")
        for ending in (".nc", "_loss.png", "_forest.png", "_predictive.png", "_prior.png")
    ],
    "regression.py": ["regression_coefficients.png", "regression_lines.png"],
    "vi_versus_nuts.py": ["vi_versus_nuts_schools.png"],
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
def test_example_runs(name: str, tmp_path: Path) -> None:
    quiet = ("-W", "error::UserWarning", "-W", "error::RuntimeWarning")  # not the deprecations between other packages
    command = [sys.executable, *quiet, str(EXAMPLES / name), "--smoke"]
    done = subprocess.run([*command, "--out", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(WRITES[name])
    assert all(path.stat().st_size > 5_000 for path in tmp_path.iterdir())
    assert "Fit of" in done.stdout
