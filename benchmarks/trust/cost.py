"""Model evaluations of the default beside those of a hand-tuned Adam that reaches the same ELBO."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.trust import ROOT
from benchmarks.trust.results import Results
from benchmarks.trust.use import PART as USE

__all__ = ["PART", "run"]

PART = "cost"


def run(results: Results, families: Sequence[str], seeds: Sequence[int]) -> None:
    """A search for each default fit of these seeds that is not there yet."""
    asked = []
    for record in results.part(USE):
        key = f"{PART}/{record['family']}/{record['seed']}/{record['guide']}"
        wanted = record["family"] in families and record["seed"] in seeds and not record.get("raised", True)
        if wanted and key not in results.records:
            names = ("family", "seed", "guide", "elbo", "evaluations")
            asked.append({"key": key, "part": PART, **{name: record[name] for name in names}})
    if not asked:
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "asked.jsonl"
        file.write_text("".join(json.dumps(line) + "\n" for line in asked))
        command = [sys.executable, "-m", "benchmarks.trust.cosine", str(file)]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                record = json.loads(line)
                results.add(record)
                print(f"{record['key']}: {record['evaluations']} beside {record['steps']}", flush=True)
        if process.returncode:
            raise RuntimeError("the search for hand-tuned runs failed")
