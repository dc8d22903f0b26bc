"""The file that a running fit keeps of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ingle import saved
from ingle.errors import FileError, IngleWarning, warn

__all__ = ["Checkpoint"]

SECONDS = 60.0  # between two writes


class Checkpoint:
    """Writes a fit to `path`: soon after its start, every minute, and at its end."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._written: float | None = None
        self._warned = False

    def check(self) -> None:
        """Raises `FileError` where the path cannot be written."""
        saved.check_writable(self.path)

    def keep(self, content: Callable[[], dict[str, Any]]) -> None:
        """Write if it is time to; a write that fails warns, once, and the next one is tried a minute later."""
        if self._written is not None and time.monotonic() - self._written < SECONDS:
            return
        try:
            saved.write(self.path, content())
        except FileError as error:
            if not self._warned:
                warn(f"{error}. The fit goes on, and tries again every minute and at its end", IngleWarning)
            self._warned = True
        self._written = time.monotonic()

    def last(self, content: dict[str, Any]) -> None:
        """Write the end of a fit. Raises `FileError`."""
        saved.write(self.path, content)
