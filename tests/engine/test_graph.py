"""Graphs written down for people to read."""

from __future__ import annotations

from pathlib import Path

import pytest
from engine.cells import CELLS
from engine.engines import engine_of


def test_graphs_are_left_in_the_folder_that_was_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INGLE_GRAPHS", str(tmp_path / "graphs"))
    with engine_of(**CELLS["normal"]()) as engine:
        engine.advance(10)
    written = {file.name: file.read_text() for file in (tmp_path / "graphs").iterdir()}
    assert sorted(written) == ["1-compiled.txt", "1-recorded.txt"]
    assert "torch.ops.aten" in written["1-recorded.txt"]
    # In the second nothing writes in place but the copies into the inputs, at the end.
    operations = [
        line.split("torch.ops.")[1] for line in written["1-compiled.txt"].splitlines() if "torch.ops." in line
    ]
    in_place = [operation.split("(")[0].split(".")[1].endswith("_") for operation in operations]
    assert any(in_place)
    assert in_place == sorted(in_place)
