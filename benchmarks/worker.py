"""One way on one case in a process of its own, told what to do over a pipe, a line of JSON each way.

Torch and JAX in one process would share its cores and its peak of memory; apart, each has its own settings, and only
the one that is asked works.
"""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

__all__ = ["BrokenError", "NotRunError", "Worker"]

ROOT = Path(__file__).parents[1]


class NotRunError(Exception):
    """The way does not run here, for a reason that it gives."""


class BrokenError(Exception):
    """The way should have run, and broke."""


class Worker:
    """A process that holds one way on one case; `close` ends it.

    Args:
        way, case: their names.
        device: "cpu" or "cuda".
        threads: cores that the process may use.
        cache: folder for what Inductor keeps on disk.
    """

    def __init__(self, way: str, case: str, *, device: str, threads: int, cache: Path) -> None:
        self.name = f"{way} on {case}"
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed by `close`)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.worker", way, case, device, str(threads)],
            cwd=ROOT,
            env=os.environ | _settings(device, threads, cache),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        self._commands: Any = self._process.stdin
        self._answers: Any = self._process.stdout

    def ask(self, verb: str, steps: int = 0, *, losses: bool = False) -> dict[str, Any]:
        """The answer to one command.

        Raises:
            NotRunError: the library is not installed, or refuses.
            BrokenError: anything else went wrong.
        """
        try:
            self._commands.write(json.dumps({"verb": verb, "steps": steps, "losses": losses}) + "\n")
            self._commands.flush()
            line = self._answers.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._log.seek(0)
            raise BrokenError(f"{self.name}: the process ended\n{self._log.read()[-4_000:]}")
        answer: dict[str, Any] = json.loads(line)
        if "not run" in answer:
            raise NotRunError(answer["not run"])
        if "broken" in answer:
            raise BrokenError(f"{self.name}: {answer['broken']}")
        return answer

    def close(self) -> None:
        """End the process."""
        try:
            self._commands.close()
            self._process.wait(timeout=20)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._answers.close()
        self._log.close()


def _settings(device: str, threads: int, cache: Path) -> dict[str, str]:
    count, many = str(threads), str(threads > 1).lower()
    return {
        "OMP_NUM_THREADS": count,
        "MKL_NUM_THREADS": count,
        "OPENBLAS_NUM_THREADS": count,
        "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_cpu_multi_thread_eigen={many}".strip(),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",  # else the peak on a GPU is what JAX reserves
        "JAX_PLATFORMS": "cpu" if device == "cpu" else "",
        "TORCHINDUCTOR_CACHE_DIR": str(cache),
        "TRITON_CACHE_DIR": str(cache / "triton"),
    }


def main() -> None:
    way_name, case_name, device, threads = sys.argv[1:]
    # What libraries print must not come between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-int(threads) :])
    held: dict[str, Any] = {}
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = _answer(held, way_name, case_name, device, int(threads), command)
        except Exception as error:
            kind = "not run" if _refusal(error, command["verb"]) else "broken"
            told = f"{type(error).__name__}: {error}" if kind == "not run" else traceback.format_exc()
            answer = {kind: told}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _answer(held: dict[str, Any], way: str, case: str, device: str, threads: int, command: Any) -> dict[str, Any]:
    from benchmarks.cases import CASES
    from benchmarks.ways import WAYS

    build, modules, _ = WAYS[way]
    if command["verb"] == "import":
        began = time.perf_counter()
        for module in modules:
            importlib.import_module(module)
        seconds = time.perf_counter() - began
        if "torch" in sys.modules:
            sys.modules["torch"].set_num_threads(threads)
        held["way"] = build(case, CASES[case](), device)
        return {"seconds": seconds}
    if command["verb"] == "start":
        began = time.perf_counter()
        losses = held["way"].start(command["steps"])
        return {"seconds": time.perf_counter() - began, "losses": losses, "engine": held["way"].engine}
    if command["verb"] == "go":
        seconds, losses = held["way"].go(command["steps"])
        return {"seconds": seconds, "losses": losses if command["losses"] else []}
    if command["verb"] == "memory":
        return {"host": _peak(), "device": held["way"].device_memory()}
    raise ValueError(f"no command {command['verb']!r}")


def _peak() -> int:
    """Most bytes that this process held in memory so far."""
    try:  # ru_maxrss of a child begins with what its parent held when it started it
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _refusal(error: Exception, verb: str) -> bool:
    """Whether the way says that it does not run here, which is no fault of it."""
    if verb in ("import", "start") and isinstance(error, ImportError):
        return True
    if verb != "start":
        return False
    ingle: Any = sys.modules.get("ingle")
    refused = ingle is not None and isinstance(error, (ingle.OptionError, ingle.ProgramError))
    return refused or (isinstance(error, TypeError) and "unexpected keyword argument 'compile'" in str(error))


if __name__ == "__main__":
    main()
