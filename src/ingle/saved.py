"""The file of a fit: plain values and tensors, written whole or not at all, read without unpickling anything."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import stat
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ingle.errors import FileError, OptionError
from ingle.version import __version__

__all__ = ["Stamp", "check_writable", "plain", "read", "resolve_path", "stamp", "write"]

Stamp = tuple[int, int, int]  # inode, time of the last change in ns, size in bytes

FORMAT = "ingle fit"
VERSION = 1  # grows when an older Ingle could not read the file

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.EROFS)
_PARTS: dict[str, Any] = {
    "about": {
        "seed": int, "dtype": str, "device": str, "batch_size": dict, "objective": str,
        "objective options": str, "objective reason": str,
        "particles": int, "optimiser": str, "optimiser described": str, "engine": str,
        "engine notes": tuple,
    },
    "program": {
        "guide": str, "model sites": dict, "guide sites": dict, "parameters": dict, "buffers": dict, "fixed": dict,
    },
    "data": dict,
    "values": {"leaves": dict, "buffers": dict, "memory": dict, "others": dict, "fixed": dict},
    "optimisers": {"taken": int, "sides": dict},
    "random": {"torch_cpu": Tensor, "torch_cuda": (Tensor, type(None)), "numpy": tuple, "python": tuple},
    "rows": {"orders": dict, "places": dict, "generators": dict},
    "rule": {
        "looked": int, "begun": bool, "level": int, "wait": int, "steps": int, "seconds": float, "error": float,
        "before": (Tensor, type(None)), "average": (dict, type(None)), "plateau": dict, "trail": dict,
    },
    "losses": Tensor,
    "seconds": float,
    "stopped": str,
    "reason": str,
}  # fmt: skip
_DTYPES = ("float16", "bfloat16", "float32", "float64")


def resolve_path(name: str, path: object) -> Path:
    """The path of a file, absolute, links followed. Raises `OptionError` for what is no path."""
    try:
        given = os.fspath(path)  # type: ignore[call-overload]
    except TypeError:
        given = None
    if not isinstance(given, str) or not given or "\0" in given:
        raise OptionError(f"{name} must be the path of a file, as a string or pathlib.Path, got {path!r}")
    return Path(os.path.realpath(given))


def stamp(path: Path) -> Stamp | None:
    """What tells a file from every other that was ever there; None where there is no file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def write(path: Path, content: Mapping[str, Any], *, before: Callable[[Stamp], None] = lambda ours: None) -> Stamp:
    """Write a file at once: whatever happens, `path` holds all of the old content or all of the new.

    Args:
        path: of the file.
        content: for `read` to give back.
        before: called with the stamp of the new file just before it is put in place; may raise `FileError`.

    Returns:
        The stamp of the new file.

    Raises:
        FileError: it cannot be written; what was there is whole.
    """
    buffer = io.BytesIO()
    about = {"format": FORMAT, "version": VERSION, "ingle": __version__, "torch": str(torch.__version__)}
    with _checksums():
        torch.save({**about, **content}, buffer)
    with buffer.getbuffer() as view:  # let go of at once: a view that is left in a traceback crashes Python 3.12's gc
        return _replace(path, view, before=before)


def check_writable(path: Path) -> None:
    """Find out before the work whether `path` can be written, without touching what is there.

    Also removes what a killed process left half written beside it.

    Raises:
        FileError: it cannot be written.
    """
    with _told(path):
        for stray in path.parent.iterdir():
            ours = re.fullmatch(rf"\.{re.escape(path.name)}\.([0-9]+)-[0-9a-f]{{8}}\.tmp", stray.name)
            if ours is not None and not _lives(int(ours[1])):
                stray.unlink(missing_ok=True)
    _replace(path, b"trial", keep=False)


def read(path: Path) -> dict[str, Any]:
    """The content of a file that `write` wrote, every tensor on the CPU.

    Raises:
        FileError: it cannot be read, is not one of Ingle's, is damaged, or of a newer format.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError as error:
        raise FileError(f"there is no file {path}") from error
    except IsADirectoryError as error:
        raise FileError(f"{path} is a folder: give the name of a file in it") from error
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}") from error
    if not raw.startswith(b"PK"):
        raise FileError(f"{path} {'is not a file of a fit' if raw else 'is empty'}: Fit.save writes one")
    try:
        with zipfile.ZipFile(io.BytesIO(raw)) as archive:
            if archive.testzip() is not None:  # torch.load does not look at the checksums
                raise zipfile.BadZipFile("a checksum is wrong")
            if any(entry.external_attr for entry in archive.infolist()):  # torch reads nothing of a marked folder
                raise zipfile.BadZipFile("an entry is marked as something else than a file")
        content = torch.load(io.BytesIO(raw), map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # what torch raises depends on where the file is broken
        raise FileError(
            f"{path} is cut short, damaged, or no file of a fit, and nothing was read from it: take another copy"
        ) from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise FileError(f"{path} was written by torch.save, but is not a file of a fit: Fit.save writes one")
    version = content.get("version")
    if type(version) is int and version > VERSION:
        raise FileError(
            f"{path} has format {version}, written by Ingle {content.get('ingle')}; this is Ingle {__version__}, which "
            f"reads formats up to {VERSION}: install a newer one"
        )
    told = "it has no version" if type(version) is not int else _damage(content)
    if told is not None:
        raise FileError(f"{path} is damaged: {told}. Take another copy, or fit anew")
    return content


def _damage(content: Mapping[str, Any]) -> str | None:
    """What is missing in the content of a file, or of another kind than `write` was given, in words."""
    for part, kinds in _PARTS.items():
        if not isinstance(content.get(part), dict if isinstance(kinds, dict) else kinds):
            return f"it has no {part}"
        for key, kind in kinds.items() if isinstance(kinds, dict) else ():
            if key not in content[part]:
                return f"its {part} has no {key!r}"
            if not isinstance(content[part][key], kind):
                return f"{key!r} of its {part} is of {type(content[part][key]).__name__}"
    about, program, values = content["about"], content["program"], content["values"]
    if about["dtype"] not in _DTYPES or not 0 <= about["seed"] < 2**32:
        return f"it tells of a fit in dtype {about['dtype']!r} with seed {about['seed']}"
    for described, held in (("parameters", "leaves"), ("fixed", "fixed")):
        lost = [name for name in program[described] if not isinstance(values[held].get(name), Tensor)]
        if lost:
            return f"it has no value of parameter {lost[0]!r}"
    if content["losses"].dim() != 1:
        return f"its losses have shape {tuple(content['losses'].shape)}"
    return None


def plain(value: Any, where: str) -> Any:
    """A copy of `value` that a file can hold: numbers, strings, None, containers of them, tensors on the CPU.

    Args:
        value: to be copied.
        where: what it is, for the message.

    Raises:
        OptionError: something else is in it.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, (np.float64, np.integer, np.bool_)):
        return value.item()
    if kind in (Tensor, torch.nn.Parameter):
        return value.detach().to("cpu", copy=True)
    if kind in (dict, OrderedDict, Counter):
        return kind({_key(key, where): plain(part, f"{where}[{key!r}]") for key, part in value.items()})
    if kind in (list, tuple):
        return kind(plain(part, f"{where}[{place}]") for place, part in enumerate(value))
    raise OptionError(
        f"{where} is of {kind.__module__}.{kind.__qualname__}, which a file cannot hold: only numbers, strings, lists, "
        "dicts and tensors are written, so that nothing is unpickled. Fit without checkpoint=, or with another "
        "optimiser or schedule"
    )


def _key(key: Any, where: str) -> Any:
    if type(key) not in (bool, int, float, str):
        plain(key, f"a key of {where}")
    return key


def _replace(
    path: Path, content: Any, *, keep: bool = True, before: Callable[[Stamp], None] = lambda ours: None
) -> Stamp:
    """Write beside `path`, then put it in the place of `path`, or, without `keep`, remove it again."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    with _told(path):
        if path.is_dir():
            raise FileError(f"{path} is a folder: give the name of a file in it")
        if path.exists() and not path.is_file():
            raise FileError(f"{path} is a device or a pipe, not a file")
        try:
            with open(beside, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            found = beside.stat()
            ours = found.st_ino, found.st_mtime_ns, found.st_size
            if keep:
                before(ours)
                with suppress(OSError):  # the new file is as open to others as the old one was
                    os.chmod(beside, stat.S_IMODE(path.stat().st_mode))
                os.replace(beside, path)
        finally:
            beside.unlink(missing_ok=True)
    with suppress(OSError):  # not every system lets a folder be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return ours


def _lives(pid: int) -> bool:
    """Whether another process has this number. What this one writes is whole before it looks."""
    if pid == os.getpid() or os.name == "nt":  # on Windows os.kill would end it, and no open file is removed
        return False
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except (OSError, OverflowError):
        return False
    return True


@contextmanager
def _checksums() -> Iterator[None]:
    """torch.save writes checksums inside, whatever the user has set."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(True)
    try:
        yield
    finally:
        torch.serialization.set_crc32_options(before)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Errors of the system in writing, told in words."""
    try:
        yield
    except FileError:
        raise
    except OSError as error:
        if error.errno == errno.ENOENT and path.parent.is_dir():
            why = (
                f"what was written vanished from folder {path.parent} ({error.strerror}); keep others out and try again"
            )
        elif error.errno == errno.ENOENT:
            why = f"there is no folder {path.parent}; make it first"
        elif error.errno in _FORBIDDEN:
            why = f"no permission to write in folder {path.parent} ({error.strerror})"
        elif error.errno in _FULL:
            why = f"the disk is full, or a limit is reached ({error.strerror}); free some space or take another folder"
        else:
            why = str(error.strerror)
        raise FileError(f"{path} cannot be written: {why}") from error
