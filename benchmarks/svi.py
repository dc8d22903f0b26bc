"""A step of SVI in Pyro, NumPyro, Ingle and by hand, side by side on the machine that it runs on, as a Markdown table.

Run: python -m benchmarks.svi [--cases radon vae] [--ways pyro numpyro ingle] [--threads 1] [--device cuda]
     python -m benchmarks.svi --check        only whether all ways optimise the same thing

The cases are in `cases.py`, and what a step of each way takes in, in `ways.py`. NumPyro comes with `pip install
.[bench]`; without it its rows say so. Each way on each case has a process of its own, with as many cores and threads
as `--threads` says. For a case, in this order:

1. First call: seconds of the first 50 steps in a fresh process, all that comes before them included, imports apart.
   "Cold" has an empty folder for what Inductor keeps on disk, "warm" is the same again in a second process. The other
   ways keep nothing on disk, and have one figure. The peak of memory is that of the process, up to the check's end.
2. Check: all start from the same parameters and take the same number of steps, so their losses must agree within
   their noise, and the noise must be fresh at every step, which a graph that has it frozen in would not.
3. Rounds: the ways take turns, so that whatever else the machine does meets them all. A round is of about
   `--seconds`: the number of steps is found by trying, and one round is thrown away.
   Figures are medians over rounds with the lowest and highest; how many times as fast, the median over rounds of the
   ratio within the round. On a machine that others use too, two threads that wait for each other lose most of their
   time: use `--threads 1` there.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import math
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.agree import disagreement, repeated_noise
from benchmarks.cases import CASES
from benchmarks.ways import BY_HAND, WAYS
from benchmarks.worker import BrokenError, NotRunError, Worker

FIRST = 50
CHECKED = 2_000
DEFAULT_WAYS = ("pyro", "numpyro", "torch", "torch-compiled", "ingle-eager", "ingle", "ingle-svi")
TITLES = {
    "pyro": "pyro.infer.SVI",
    "pyro-unchecked": "pyro.infer.SVI, validation off",
    "numpyro": "NumPyro, compiled",
    "ingle-eager": "ingle.fit, eager",
    "ingle": "ingle.fit, compiled",
    "ingle-svi": "ingle.SVI.step, compiled",
    "torch": "torch by hand",
    "torch-compiled": "torch by hand, torch.compile",
}


@dataclass
class Row:
    """What was measured of one way on one case; seconds, bytes, microseconds a step by round."""

    case: str
    way: str
    engine: str = ""
    imports: float | None = None
    cold: float | None = None
    warm: float | None = None
    memory: int | None = None
    device_memory: int | None = None
    steps: int = 0
    microseconds: list[float] = field(default_factory=list)
    not_run: str = ""
    broken: bool = False


def opened(row: Row, cache: Path, options: argparse.Namespace) -> tuple[Worker, list[float]]:
    """A worker after its first call, and the losses of that."""
    worker = Worker(row.way, row.case, device=options.device, threads=options.threads, cache=cache)
    try:
        row.imports = worker.ask("import")["seconds"]
        answer = worker.ask("start", FIRST)
    except BaseException:
        worker.close()
        raise
    row.warm, row.engine = answer["seconds"], answer["engine"]
    return worker, answer["losses"]


def started(row: Row, stack: contextlib.ExitStack, options: argparse.Namespace) -> tuple[Worker, list[float]]:
    """A worker whose first call was timed, cold before warm where the way keeps something on disk."""
    cache = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    keeps = WAYS[row.way][2]
    if keeps and not (options.check or options.no_cold):
        opened(row, cache, options)[0].close()
        row.cold = row.warm
    worker, losses = opened(row, cache, options)
    stack.callback(worker.close)
    if not keeps:
        row.cold = row.warm
    return worker, losses


def round_steps(way: str, worker: Worker, seconds: float, total: int) -> int:
    """How many steps take about so long, 1, 2 or 5 times a power of ten; a round of them was taken once.

    Where Ingle compiled, all steps so far, `total` before, are then a multiple of them: an engine that takes many steps
    in a call takes the same calls in every round.
    """
    steps = FIRST
    while True:
        for _ in range(2):  # the first may have to compile, for so many steps
            taken = worker.ask("go", steps)["seconds"]
            total += steps
        wanted = min(seconds / taken, 100.0) * steps
        power = 10 ** int(math.log10(wanted))
        better = min((digit * power for digit in (1, 2, 5, 10)), key=lambda n: abs(math.log(n / wanted)))
        if better <= steps:
            break
        steps = better
    if total % steps and WAYS[way][2]:  # another number of steps would cost NumPyro another compilation
        worker.ask("go", steps - total % steps)
    worker.ask("go", steps)
    return steps


def run_case(name: str, options: argparse.Namespace) -> list[Row]:
    """All ways on one case."""
    rows = [Row(name, way) for way in options.ways if BY_HAND.get(way, name) == name]
    checked = min(options.check_steps, CASES[name]().checked)
    with contextlib.ExitStack() as stack:
        held: dict[str, tuple[Row, Worker]] = {}
        losses: dict[str, list[float]] = {}
        for row in rows:
            with guarded(row):
                worker, losses[row.way] = started(row, stack, options)
                losses[row.way] += worker.ask("go", checked - FIRST, losses=True)["losses"]
                memory = worker.ask("memory")
                row.memory, row.device_memory = memory["host"], memory["device"]
                held[row.way] = row, worker
        wrong = [f"{way}: {told}" for way in held if (told := repeated_noise(losses[way]))]
        wrong += disagreement({way: losses[way] for way in held})
        for told in wrong:
            print(f"{name}: {told}", file=sys.stderr)
        if wrong:
            raise SystemExit(f"{name}: the ways do not optimise the same thing, so nothing is timed")
        if options.check:
            half = checked // 2
            told = ", ".join(f"{way} {-statistics.fmean(losses[way][half:]):,.2f}" for way in held)
            print(f"{name}: mean ELBO of steps {half:,} to {checked:,} agrees: {told}", flush=True)
            return rows
        for row, worker in list(held.values()):
            with guarded(row):
                row.steps = round_steps(row.way, worker, options.seconds, checked)
        for turn in range(options.rounds):
            order = list(held.values())
            for row, worker in order[turn % max(len(order), 1) :] + order[: turn % max(len(order), 1)]:
                if not row.not_run:
                    with guarded(row):
                        row.microseconds.append(1e6 * worker.ask("go", row.steps)["seconds"] / row.steps)
    return rows


@contextlib.contextmanager
def guarded(row: Row) -> Any:
    """A way that does not run leaves a note in its row; one that breaks is also told at once, and at the exit."""
    try:
        yield
    except NotRunError as error:
        missing = str(error).startswith("ModuleNotFoundError") and row.way == "numpyro"
        row.not_run = "not installed" if missing else str(error)
    except BrokenError as error:
        row.not_run, row.broken = "it broke, see standard error", True
        print(error, file=sys.stderr, flush=True)


def lines(rows: list[Row], notes: list[str]) -> list[str]:
    """The rows of one case in Markdown; why one was not run is added to `notes`."""
    by_way = {row.way: row for row in rows}
    found = []
    for row in rows:
        head = f"| {CASES[row.case]().title} | {TITLES[row.way]} "
        if row.not_run == "not installed":
            found.append(head + "| not installed | | | | | | | |")
        elif row.not_run:
            if row.not_run not in notes:
                notes.append(row.not_run)
            found.append(head + f"| not run ({notes.index(row.not_run) + 1}) | | | | | | | |")
        else:
            times = row.microseconds
            pace = f"{figure(statistics.median(times))} ({figure(min(times))} to {figure(max(times))})"
            memory = f"{row.memory / 2**20:,.0f}" if row.memory else ""
            memory += f", device {row.device_memory / 2**20:,.0f}" if row.device_memory else ""
            cells = [
                pace,
                faster(row, by_way.get("pyro")),
                faster(row, by_way.get("numpyro")),
                faster(row, by_way.get("torch-compiled")),
                "not run" if row.cold is None else f"{row.cold:.1f}",
                f"{row.warm:.1f}" if WAYS[row.way][2] else "same",
                f"{row.imports:.1f}",
                memory,
            ]
            found.append(f"{head}| {' | '.join(cells)} |")
    return found


def faster(row: Row, other: Row | None) -> str:
    """How many times as fast as another way; empty where that did not run."""
    if other is None or len(other.microseconds) != len(row.microseconds):
        return ""
    return figure(statistics.median(b / a for a, b in zip(row.microseconds, other.microseconds, strict=True)))


def figure(value: float) -> str:
    """A number at three digits or more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def about(options: argparse.Namespace) -> dict[str, Any]:
    """Where and with what this runs."""
    versions = {}
    for package in ("ingle", "torch", "pyro-ppl", "numpyro", "jax"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[package] = metadata.version(package)
    return {
        "date": datetime.date.today().isoformat(),
        "python": platform.python_version(),
        "versions": versions,
        "device": device_name(options.device),
        "cores": os.cpu_count(),
        "threads": options.threads,
        "rounds": options.rounds,
        "seconds": options.seconds,
        "load": os.getloadavg()[0],
    }


def device_name(device: str) -> str:
    if device == "cpu":
        return "CPU"
    # Asked in a process of its own, since this one is to hold neither torch nor the device.
    script = "import torch; print(torch.cuda.get_device_name())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"no {device} device: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(DEFAULT_WAYS))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=1.0, help="of a round, about")
    parser.add_argument("--threads", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--check", action="store_true", help="only check that all ways optimise the same thing")
    parser.add_argument("--check-steps", type=int, help=f"at most {CHECKED:,} with --check, 200 before timings")
    parser.add_argument("--no-cold", action="store_true", help="leave out first calls with an empty cache")
    parser.add_argument("--json", type=Path, help="also write all figures here, after every case")
    options = parser.parse_args()
    options.check_steps = options.check_steps or (CHECKED if options.check else 200)
    if options.check_steps < 2 * FIRST or options.rounds < 1 or options.threads < 1:
        parser.error(f"--check-steps must be {2 * FIRST} or more, --rounds and --threads 1 or more")
    return options


def main() -> None:
    options = parsed()
    where = about(options)
    if not options.check:
        versions = ", ".join(f"{package} {version}" for package, version in where["versions"].items())
        print(
            f"{where['date']}, {where['device']}, {where['cores']} cores, {options.threads} thread(s), load "
            f"{where['load']:.1f} at the start, Python {where['python']}, {versions}; {options.rounds} rounds of about "
            f"{options.seconds:g} s, Adam at 1e-3.\n"
        )
        print(
            "| case | way | µs a step: median (range) | times as fast as Pyro | as NumPyro | as torch.compile | "
            f"first {FIRST} steps, s: cold | warm | imports, s | peak MiB |\n{'| --- ' * 10}|",
            flush=True,
        )
    notes: list[str] = []
    rows: list[Row] = []
    for name in options.cases:
        rows += (found := run_case(name, options))
        if options.check:
            for row in found:
                if row.not_run:
                    print(f"{name}: {row.way} not run: {row.not_run}")
        else:
            print("\n".join(lines(found, notes)), flush=True)
        if options.json:
            options.json.write_text(json.dumps({**where, "rows": [asdict(row) for row in rows]}, indent=1) + "\n")
    if notes:
        print("\nNot run:")
    for place, note in enumerate(notes, 1):
        print(f"{place}. {note}")
    if any(row.broken for row in rows):
        raise SystemExit("something broke: see above")


if __name__ == "__main__":
    main()
