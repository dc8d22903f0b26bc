"""The public surface, the order of the rooms, and what the built wheel holds."""

from __future__ import annotations

import ast
import doctest
import importlib
import pkgutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pyro
import pytest

import ingle
from ingle import objectives

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src" / "ingle"

# From the first floor up; a room imports only from rooms before its own place.
ORDER = [
    "version", "errors", "options", "saved", "runtime", "data", "program", "objectives", "engine", "evidence", "trust",
    "results", "progress", "trained", "checkpoint", "training", "fitted", "fit", "calibration",
    "load", "svi", "__init__",
]  # fmt: skip

# Of the collection: what deep models are built from, which is no model.
PARTS = {"likelihoods.py", "networks.py"}


def test_public_names() -> None:
    assert sorted(ingle.__all__) == [
        "Calibration",
        "Check",
        "Comparison",
        "DataError",
        "ElboGap",
        "Evidence",
        "FileError",
        "Finding",
        "Fit",
        "GradientReport",
        "IngleError",
        "IngleWarning",
        "NonFiniteError",
        "OptionError",
        "ProgramError",
        "SVI",
        "TrainedModuleWarning",
        "__version__",
        "calibrate",
        "check",
        "compare",
        "elbo_gap",
        "fit",
        "gradient_report",
        "load",
        "log_evidence",
        "prior_predictive",
    ]
    assert all(hasattr(ingle, name) for name in ingle.__all__)
    assert sorted(name for name in objectives.__all__ if "ELBO" in name or name == "Anneal") == [
        "Anneal",
        "DReG_ELBO",
        "IWAE_ELBO",
        "RLOO_ELBO",
        "RenyiELBO",
        "STL_ELBO",
        "TraceEnum_ELBO",
        "TraceGraph_ELBO",
        "TraceMeanField_ELBO",
        "Trace_ELBO",
        "VIMCO_ELBO",
    ]


def imported(path: Path) -> set[str]:
    """The rooms of Ingle that a file imports when it is imported."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        names = []
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" if node.module == "ingle" else node.module for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        found |= {name.split(".")[1] for name in names if name.startswith("ingle.")}
    return found


def test_rooms_import_only_from_rooms_before_them() -> None:
    for path in SOURCE.rglob("*.py"):
        room = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        allowed = {*ORDER[: ORDER.index(room)], *([room] if path.parent != SOURCE else [])}
        assert imported(path) <= allowed, f"{path.relative_to(ROOT)} imports {imported(path) - allowed}"


def test_library_does_not_know_the_collection_and_the_collection_not_the_library() -> None:
    for path in SOURCE.rglob("*.py"):
        assert not imported(path) & {"models", "guides"}
    for folder in ("models", "guides"):
        for path in (ROOT / folder).glob("*.py"):
            assert imported(path) <= {"models", "guides"}, path


def test_models_and_guides_are_pairs() -> None:
    names = [{path.name for path in (ROOT / folder).glob("*.py")} for folder in ("models", "guides")]
    assert names[0] - PARTS == names[1]


def test_arviz_is_imported_in_one_file_only() -> None:
    users = [path.name for path in SOURCE.rglob("*.py") if "import arviz" in path.read_text()]
    assert users == ["export.py"]


def test_wheel_holds_every_file(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(tmp_path), str(ROOT)]
    subprocess.run([*command, "--disable-pip-version-check"], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    held = {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ingle/")}
    expected = {f"ingle/{path.relative_to(SOURCE).as_posix()}" for path in SOURCE.rglob("*.py")} | {"ingle/py.typed"}
    for folder in ("models", "guides"):
        expected |= {f"ingle/{folder}/{path.name}" for path in (ROOT / folder).glob("*.py")}
    assert held == expected


MODULES = [module.name for module in pkgutil.walk_packages(ingle.__path__, "ingle.")]


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name: str) -> None:
    with pyro.get_param_store().scope():
        assert doctest.testmod(importlib.import_module(name)).failed == 0
