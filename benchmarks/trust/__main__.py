"""The whole suite, from one command; what is done is kept, so that a run that was broken off goes on.

    python -m benchmarks.trust [--seeds N] [--families …] [--part use faults cost calibrate] [--out FILE] [--tables]

References come first (NumPyro: the extra `bench`), then the parts, then the tables in Markdown.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

from trust.families import FAMILIES

from benchmarks.trust import CACHE, ROOT, calibrated, cost, faults, use
from benchmarks.trust.results import Results
from benchmarks.trust.tables import tables

PARTS = ("use", "faults", "cost", "calibrate")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trust", description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=12, help="cases of each family")
    parser.add_argument("--fault-seeds", type=int, default=60, help="the most that a fault may take of each family")
    parser.add_argument(
        "--faults", nargs="*", default=list(faults.FAULTS), choices=list(faults.FAULTS), metavar="fault"
    )
    parser.add_argument("--cost-seeds", type=int, default=2, help="cases of each family whose cost is compared")
    parser.add_argument("--families", nargs="*", default=list(FAMILIES), choices=list(FAMILIES), metavar="family")
    parser.add_argument("--part", nargs="*", default=list(PARTS), choices=PARTS)
    parser.add_argument("--out", type=Path, default=CACHE / "results.jsonl", help="records, one a line")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--compile", default="full", choices=("auto", "off", "full"), help="of the default fits")
    parser.add_argument("--tables", action="store_true", help="only print the tables of what there is")
    options = parser.parse_args()
    results = Results(options.out)
    # Before torch and JAX are loaded by the processes that work.
    os.environ.update(OMP_NUM_THREADS="1", MKL_NUM_THREADS="1", TORCHINDUCTOR_COMPILE_THREADS="1")
    seeds, part = range(options.seeds), [] if options.tables else options.part
    if "use" in part:
        references(options.families, options.seeds)
        use.run(results, options.families, seeds, options.processes, options.compile)
    if "cost" in part:
        cost.run(results, options.families, range(options.cost_seeds))
    if "faults" in part:
        fault_seeds, names = range(options.fault_seeds), options.faults
        faults.run(results, options.families, fault_seeds, options.processes, prepare=references, names=names)
    if "calibrate" in part:
        calibrated.run(results, options.processes)
    print(tables(results))


def references(families: list[str], seeds: int) -> None:
    """Those that are not there yet, in a process of JAX's own."""
    missing = [
        family
        for family in families
        if not all((CACHE / "references" / f"{family}-{seed}.json").exists() for seed in range(seeds))
    ]
    if missing:
        command = [sys.executable, "-m", "benchmarks.trust.references", "--families", *missing]
        subprocess.run([*command, "--seeds", *map(str, range(seeds))], cwd=ROOT, check=True)


if __name__ == "__main__":
    main()
