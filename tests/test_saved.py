"""The file: what is no file of a fit is told apart, nothing in it is run, and a write that fails leaves the old one."""

from __future__ import annotations

import errno
import os
import pickle
import stat
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

import ingle
from ingle import saved

Y = torch.linspace(-1.0, 2.0, 10)


def model(y: Tensor) -> None:
    mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(mu, 1.0), obs=y)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ingle.fit(model, "normal", Y, steps=5).save(tmp_path / "fit")
    return tmp_path / "fit"


def load(path: Path) -> ingle.Fit:
    return ingle.load(path, model, "normal", Y)


class Malicious:
    """Touches a file when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> Any:
        return Path.touch, (self.target,)


def foreign(kind: str, path: Path, marker: Path) -> None:
    if kind == "text":
        path.write_text("losses: 1, 2, 3\n")
    elif kind == "nothing":
        path.write_bytes(b"")
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Malicious(marker)))
    elif kind == "pickle by torch":
        torch.save(Malicious(marker), path)
    elif kind == "malicious in a fit":
        torch.save({**saved.read(path), "data": Malicious(marker)}, path)
    elif kind == "dict by torch":
        torch.save({"weight": torch.ones(3)}, path)
    elif kind == "old format of torch":
        torch.save({"weight": torch.ones(3)}, path, _use_new_zipfile_serialization=False)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("a.txt", "text")
    elif kind == "part missing":
        torch.save({name: part for name, part in saved.read(path).items() if name != "rule"}, path)


FOREIGN = {
    "text": "is not a file of a fit",
    "nothing": "is empty",
    "pickle": "is not a file of a fit",
    "pickle by torch": "no file of a fit, and nothing was read from it",
    "malicious in a fit": "no file of a fit, and nothing was read from it",
    "dict by torch": "was written by torch.save, but is not a file of a fit",
    "old format of torch": "is not a file of a fit",
    "zip": "no file of a fit",
    "part missing": "is damaged: it has no rule",
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_foreign_files_are_told_apart_and_not_run(kind: str, path: Path, tmp_path: Path) -> None:
    marker = tmp_path / "executed"
    foreign(kind, path, marker)
    with pytest.raises(ingle.FileError, match=rf"fit .*{FOREIGN[kind]}"):
        load(path)
    before = path.read_bytes()
    with pytest.raises(ingle.FileError, match=FOREIGN[kind]):
        ingle.fit(model, "normal", Y, steps=5, checkpoint=path)
    assert path.read_bytes() == before
    assert not marker.exists()


def test_marker_of_the_test_above_is_made_by_pickle(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Malicious(tmp_path / "executed")))
    assert (tmp_path / "executed").exists()


def test_cut_short_anywhere(path: Path) -> None:
    whole = path.read_bytes()
    for length in (1, 2, 30, len(whole) // 4, len(whole) // 2, len(whole) - 1_000, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(ingle.FileError, match=r"cut short, damaged|is not a file of a fit"):
            load(path)


def test_a_tensor_that_is_marked_as_a_folder_is_found(path: Path) -> None:
    """Outside of all checksums, and torch would take whatever is in memory for its content."""
    whole = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        place = archive.start_dir
        entry = next(entry for entry in archive.infolist() if "/data/" in entry.filename)
    while whole[place + 46 : place + 46 + len(entry.filename)].decode(errors="replace") != entry.filename:
        place = whole.index(b"PK\x01\x02", place + 4)
    whole[place + 38] ^= 0x10
    path.write_bytes(whole)
    with pytest.raises(ingle.FileError, match="damaged"):
        load(path)


def test_a_changed_byte_is_found(path: Path) -> None:
    """Every byte matters or is padding: what loads is the fit."""
    whole, fit = path.read_bytes(), load(path)
    found = 0
    for place in range(0, len(whole), len(whole) // 60):
        changed = bytearray(whole)
        changed[place] ^= 0x55
        path.write_bytes(changed)
        try:
            loaded = load(path)
        except ingle.FileError:
            found += 1
            continue
        assert np.array_equal(loaded.losses, fit.losses)
        assert torch.equal(loaded.draws(3)["mu"], fit.draws(3)["mu"])
    assert found > 20


def test_checksums_are_written_where_the_user_turned_them_off(path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        load(path).save(path)
        load(path)
        assert torch.serialization.get_crc32_options() is False
    finally:
        torch.serialization.set_crc32_options(True)


def without(part: str, key: str | None = None, **other: Any) -> Any:
    """Damages the content of a file: a key is gone, or is something else."""

    def damage(content: dict[str, Any]) -> None:
        held = content if key is None else content[part]
        held.update(other) if other else held.pop(part if key is None else key)

    return damage


DAMAGED = {
    "no version": (without("version"), "it has no version"),
    "version in words": (without("", version="one"), "it has no version"),
    "no dtype": (without("about", "dtype"), "its about has no 'dtype'"),
    "other keys": (without("", about={"colour": "red"}), "its about has no 'seed'"),
    "odd dtype": (without("about", "", dtype="int3"), "in dtype 'int3' with seed 0"),
    "odd seed": (without("about", "", seed=-1), "with seed -1"),
    "seed in words": (without("about", "", seed="zero"), "'seed' of its about is of str"),
    "no sites": (without("program", "guide sites"), "its program has no 'guide sites'"),
    "no parameter": (without("values", "", leaves={}), r"no value of parameter 'AutoNormal\.shift'"),
    "no generators": (without("rows", "generators"), "its rows has no 'generators'"),
    "no level": (without("rule", "level"), "its rule has no 'level'"),
    "no sides": (without("optimisers", "sides"), "its optimisers has no 'sides'"),
    "losses in rows": (without("", losses=torch.zeros(2, 3)), r"its losses have shape \(2, 3\)"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_content_of_another_kind_is_damaged(kind: str, path: Path) -> None:
    damage, said = DAMAGED[kind]
    content = saved.read(path)
    damage(content)
    torch.save(content, path)
    with pytest.raises(ingle.FileError, match=rf"fit is damaged: .*{said}"):
        load(path)
    with pytest.raises(ingle.FileError, match=rf"fit is damaged: .*{said}"):
        ingle.fit(model, "normal", Y, steps=9, checkpoint=path)


def test_newer_format(path: Path) -> None:
    torch.save({**saved.read(path), "version": saved.VERSION + 1, "ingle": "9.0"}, path)
    with pytest.raises(ingle.FileError, match=r"has format 2, written by Ingle 9\.0.*install a newer one"):
        load(path)


def test_no_file_and_a_folder(tmp_path: Path) -> None:
    with pytest.raises(ingle.FileError, match=r"there is no file .*missing"):
        load(tmp_path / "missing")
    with pytest.raises(ingle.FileError, match="is a folder: give the name of a file in it"):
        load(tmp_path)
    fit = ingle.fit(model, "normal", Y, steps=3)
    with pytest.raises(ingle.FileError, match="is a folder: give the name of a file in it"):
        fit.save(tmp_path)
    with pytest.raises(ingle.FileError, match=r"there is no folder .*missing; make it first"):
        fit.save(tmp_path / "missing" / "fit")
    with pytest.raises(ingle.FileError, match="is a device or a pipe, not a file"):
        fit.save("/dev/null")
    with pytest.raises(ingle.OptionError, match="path must be the path of a file"):
        fit.save(None)  # type: ignore[arg-type]
    assert list(tmp_path.iterdir()) == []


def test_file_error_is_an_oserror_that_pickles(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="there is no file") as caught:
        load(tmp_path / "missing")
    assert isinstance(caught.value, ingle.FileError)
    assert isinstance(caught.value.__cause__, FileNotFoundError)
    copy = pickle.loads(pickle.dumps(ingle.FileError("no", step=3)))
    assert (str(copy), copy.step, copy.fit) == ("no", 3, None)


WRITE = """
import os, resource, sys
from pathlib import Path
import pyro
import torch
from ingle import FileError, saved
path, how = Path(sys.argv[1]), sys.argv[2]
content = saved.read(path)
if how == "full":
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
elif os.getuid() == 0:
    os.setgid(65534), os.setuid(65534)
for write in (lambda: saved.write(path, content), lambda: saved.check_writable(path)):
    try:
        write()
    except FileError as error:
        print(error)
"""


def write(path: Path, how: str) -> str:
    done = subprocess.run([sys.executable, "-c", WRITE, str(path), how], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_disk_that_is_full(path: Path) -> None:
    before = path.read_bytes()
    assert len(before) > 4_096
    assert f"{path} cannot be written: the disk is full, or a limit is reached" in write(path, "full")
    assert path.read_bytes() == before
    assert [name.name for name in path.parent.iterdir()] == ["fit"]


def test_folder_without_permission(path: Path) -> None:
    for folder in list(path.parents)[:3]:  # pytest's folders are closed to others
        folder.chmod(folder.stat().st_mode | 0o055)
    path.chmod(0o644)
    path.parent.chmod(0o555)
    before = path.read_bytes()
    try:
        told = write(path, "forbidden").splitlines()
    finally:
        path.parent.chmod(0o755)
    assert len(told) == 2
    assert all(f"no permission to write in folder {path.parent}" in line for line in told)
    assert path.read_bytes() == before


FAILED_WRITE = """
import gc, sys
from pathlib import Path
import pyro
import torch
from ingle import FileError, saved

def fail():
    try:
        saved.write(Path(sys.argv[1]), {"a": torch.zeros(3)})
    except FileError:
        print("refused", flush=True)

fail()
gc.collect()
print("collected")
"""


def test_failed_write_leaves_nothing_that_breaks_the_collector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python 3.12 crashes where a view of the buffer is left in the traceback's cycle."""
    command = [sys.executable, "-c", FAILED_WRITE, str(tmp_path / "missing" / "fit")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout.split()) == (0, ["refused", "collected"]), done.stderr

    views: list[memoryview] = []
    monkeypatch.setattr(saved, "_replace", lambda path, content, **options: views.append(content))
    saved.write(tmp_path / "fit", {"a": torch.zeros(3)})
    with pytest.raises(ValueError, match="released"):
        len(views[0])


def ended() -> int:
    """The number of a process that is over."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_only_what_a_process_that_is_over_left_of_this_file_is_removed(tmp_path: Path) -> None:
    over, other = ended(), os.getppid()
    strays = [f".run.{over}-00ff00ff.tmp", f".run.{os.getpid()}-00ff00ff.tmp"]  # ours is of one that had our number
    kept = [
        f".run.{other}-00ff00ff.tmp",
        f".run.1.{over}-00ff00ff.tmp",
        ".run.notes.tmp",
        ".run.00ff00ff.tmp",
        f".run.{over}-00ff00ff.tmp.old",
        f".runs.{over}-00ff00ff.tmp",
    ]
    for name in [*strays, *kept]:
        (tmp_path / name).write_bytes(b"half")
    saved.check_writable(tmp_path / "run")
    assert sorted(name.name for name in tmp_path.iterdir()) == sorted(kept)


def test_folder_that_is_there_is_not_called_missing(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fit, replace = load(path), os.replace

    def taken(source: Any, target: Any) -> None:
        os.unlink(source)
        replace(source, target)

    monkeypatch.setattr(os, "replace", taken)
    with pytest.raises(ingle.FileError, match="what was written vanished from folder") as caught:
        fit.save(path)
    assert "there is no folder" not in str(caught.value)
    assert load(path).steps == 5


@pytest.mark.parametrize("broken", ["fsync", "replace", "interrupt"])
def test_write_that_breaks_leaves_the_old_file(broken: str, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before, fit = path.read_bytes(), ingle.fit(model, "normal", Y, steps=9)
    error: BaseException = KeyboardInterrupt() if broken == "interrupt" else OSError(errno.EIO, "Input/output error")

    def fail(*args: Any) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace" if broken == "interrupt" else broken, fail)
        with pytest.raises(KeyboardInterrupt if broken == "interrupt" else ingle.FileError):
            fit.save(path)
    assert path.read_bytes() == before
    assert [name.name for name in path.parent.iterdir()] == ["fit"]
    fit.save(path)
    assert load(path).steps == 9


def test_links_and_permissions_stay(path: Path) -> None:
    path.chmod(0o640)
    link = path.with_name("link")
    link.symlink_to(path)
    load(path).save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


def test_plain_says_where_something_else_is() -> None:
    given = {"a": [1, (2.0, None)], "b": {3: torch.ones(2)}, "c": np.float64(0.5), "d": torch.zeros(9)[:1]}
    copy = saved.plain(given, "it")
    assert type(copy["c"]) is float
    assert copy["d"].untyped_storage().nbytes() == 4  # not the nine that it is a view of
    with pytest.raises(ingle.OptionError, match=r"it\['b'\]\[1\] is of builtins\.function, which a file cannot hold"):
        saved.plain({"b": [1, lambda: 0]}, "it")
