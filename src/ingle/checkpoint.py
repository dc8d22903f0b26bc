"""The file that a running fit keeps of itself."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingle import saved
from ingle.errors import FileError, IngleWarning, warn

__all__ = ["Checkpoint"]

SECONDS = 60.0  # between two writes


class Checkpoint:
    """Writes a fit to `path`: soon after its start, every minute, and at its end.

    A file that this fit neither read nor wrote is refused and stays.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: float | None = None
        self._warned = False
        self._ours: tuple[saved.Stamp | None, ...] = ()  # files that may be replaced: read or written by this fit

    def read(self) -> dict[str, Any] | None:
        """What is there from before; None where there is no file. Raises `FileError`."""
        self._ours = (saved.stamp(self.path),)  # taken first: a file that comes in between is another's
        return saved.read(self.path) if os.path.exists(self.path) else None

    def check(self) -> None:
        """Raises `FileError` where the path cannot be written."""
        saved.check_writable(self.path)

    def keep(self, content: Callable[[], dict[str, Any]]) -> None:
        """Write if it is time to; a write that fails warns, once, and the next one is tried a minute later."""
        if self._written is not None and time.monotonic() - self._written < SECONDS:
            return
        try:
            self.last(content())
        except FileError as error:
            if not self._warned:
                warn(f"{error}. The fit goes on, and tries again every minute and at its end", IngleWarning)
            self._warned = True
        self._written = time.monotonic()

    def last(self, content: dict[str, Any]) -> None:
        """Write the end of a fit. Raises `FileError`."""
        saved.write(self.path, content, before=self._may_replace)

    def wrote(self, path: Path, stamp: saved.Stamp) -> None:
        """The fit was written by the user's word; where that is this file, it is known from then on."""
        if path == self.path:
            self._ours = (stamp,)

    def _may_replace(self, ours: saved.Stamp) -> None:
        there = saved.stamp(self.path)
        if there is not None and there not in self._ours:
            raise FileError(
                f"{self.path} was written by another fit since this one last read or wrote it, and it stays as it is: "
                "save this fit to another path by Fit.save, or delete the file"
            )
        self._ours = (there, ours)  # both: Ctrl-C may come before the new one is in place, or after
