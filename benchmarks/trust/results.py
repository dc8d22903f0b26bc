"""What was run, one JSON object a line, so that a run that was broken off goes on."""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

__all__ = ["Record", "Results", "run_all"]

Record = dict[str, Any]


class Results:
    """Records in a file, each under its key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.records: dict[str, Record] = {}
        if path.exists():
            for line in path.read_text().splitlines():
                if line.endswith("}"):  # the last line of a run that was killed may be half of one
                    record = json.loads(line)
                    self.records[record["key"]] = record

    def add(self, record: Record) -> None:
        self.records[record["key"]] = record
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")

    def part(self, name: str) -> list[Record]:
        return [record for record in self.records.values() if record["part"] == name]


def run_all(work: Callable[[Any], Record], tasks: Iterable[Any], results: Results, processes: int) -> None:
    """Run tasks `(key, …)` that are not in the results yet, each process on one thread; records come as they end."""
    left = [task for task in tasks if task[0] not in results.records]
    if not left:
        return
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    if processes == 1:
        found: Any = map(work, left)
        _collect(found, len(left), results)
        return
    # A process is replaced now and then: every compiled step stays loaded.
    with multiprocessing.get_context("spawn").Pool(processes, maxtasksperchild=40) as pool:
        _collect(pool.imap_unordered(work, left), len(left), results)


def _collect(found: Iterable[Record], count: int, results: Results) -> None:
    for place, record in enumerate(found, 1):
        results.add(record)
        words = [f"{value:.2f}" for value in (record["mean_error"], record["sd_error"]) if value is not None]
        print(f"{place}/{count} {record['key']}: {record.get('status')}, off by {', '.join(words)}", flush=True)
