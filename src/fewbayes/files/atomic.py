"""Files and folders that are whole or absent under their own name, however their writer ends.

A file or folder is written under a staging name (`.tmp-...`), flushed to the disk and then renamed. A staging name says
who writes under it, so what a killed writer left is known and swept by the next one. Knows nothing of what the files
hold; standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import glob
import hashlib
import itertools
import os
import platform
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from fewbayes.errors import UserError

STAGING = ".tmp-"
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_serial = itertools.count()


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file so that at any moment, power cuts included, `path` holds all of the old or all of the new content.

    Text is written as UTF-8. A failure (full disk, kill) leaves the old file as it was.
    """
    path = Path(path)
    sweep(path.parent, path.name)
    staging = staging_name(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        with open(staging, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(staging, path)
    except BaseException:
        staging.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def new_folder(path: str | os.PathLike[str]) -> Path:
    """The path of a folder that `atomic_folder` can make, links followed; UserError for what is in use or not empty."""
    found = Path(os.path.realpath(path))
    if found in (here := Path.cwd().resolve(), *here.parents) or os.path.ismount(found):
        raise UserError(f"output_dir {path} is in use and cannot be replaced as a whole; give a new folder inside it")
    if found.exists() and (not found.is_dir() or any(found.iterdir())):
        raise UserError(f"output_dir {path} is not an empty folder; give a new one")
    return found


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill, which becomes `path` when the block ends well and vanishes when it does not.

    A folder that stood at `path` is replaced: in one move on Linux and macOS, so that the old or the new one stands
    there at any moment; elsewhere, and on file systems that cannot, neither does between two renames. A link at `path`
    stays, and the folder that it leads to is replaced. new: whatever `new_folder` refuses is refused, at the beginning
    and, as it may have come since, at the end; what a killed writer of the same name left is swept.
    """
    path = new_folder(path) if new else Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    if new:
        sweep(path.parent, path.name)
    staging = staging_name(path)
    staging.mkdir()
    try:
        yield staging
        sync_tree(staging)
        replace_folder(staging, new_folder(path) if new else path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    sync_folder(path.parent)


def replace_folder(staging: Path, path: Path) -> None:
    if not path.exists():
        os.replace(staging, path)
        return
    if _exchanged(staging, path):
        remove(staging)  # the old one
        return
    old = staging_name(path)
    os.replace(path, old)
    try:
        os.replace(staging, path)
    except BaseException:
        os.replace(old, path)
        raise
    remove(old)


def _exchanged(a: Path, b: Path) -> bool:
    """Give two folders each other's name in one move, where the system has one; False where nothing was done."""
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 as well
    names = os.fsencode(a.absolute()), os.fsencode(b.absolute())
    if sys.platform == "linux" and (rename := getattr(ctypes.CDLL(None), "renameat2", None)):
        return rename(here, names[0], here, names[1], swap) == 0
    if sys.platform == "darwin" and (rename := getattr(ctypes.CDLL(None), "renamex_np", None)):
        return rename(*names, swap) == 0
    return False


def remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def retire(path: Path, name: str = "") -> None:
    """Removes a folder (or file) in two moves, so that a kill in between leaves litter to be swept, no half folder.

    name: of the litter, where its own would say that it is to be put back.
    """
    litter = staging_name(path.with_name(name or path.name))
    os.replace(path, litter)
    sync_folder(path.parent)
    remove(litter)


def sync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # some network file systems sync no folders
            raise
    finally:
        os.close(descriptor)


def sync_file(path: Path) -> None:
    with open(path, "rb+" if sys.platform == "win32" else "rb") as file:
        os.fsync(file.fileno())


def files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def size_of(folder: Path) -> int:
    """Bytes of all files in a folder; what links lead to is counted where it lies."""
    return sum(file.stat().st_size for file in files_in(folder) if not file.is_symlink())


def standing(path: Path) -> Path:
    """The path itself if it is there, else the nearest folder above it that is."""
    return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())


def sync_tree(folder: Path) -> None:
    for file in files_in(folder):
        sync_file(file)
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        sync_folder(inner)


def append_line(path: Path, line: bytes) -> None:
    """One write; when the disk fills up within the line, none of it stays."""
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    try:
        begin = os.fstat(descriptor).st_size
        if os.write(descriptor, line) < len(line):
            os.ftruncate(descriptor, begin)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


# --- staging names, and whether their writer still lives --------------------------------------------------------------


def staging_name(path: Path) -> Path:
    return path.parent / f"{STAGING}{_process(os.getpid())}-{next(_serial)}-{path.name}"


@cache
def _host() -> str:
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _process(pid: int) -> str:
    return f"{_host()}-{pid}-{_birth(pid)}"


def _birth(pid: int) -> str:
    """When process `pid` began, in clock ticks since boot: a pid alone is soon used again, in containers at once."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    except OSError:
        return "0"


def alive(staging_name: str) -> bool:
    """Whether the writer of a staging name still runs on this machine; writers elsewhere are excluded by the lock."""
    parts = staging_name.removeprefix(STAGING).split("-")
    if len(parts) < 4 or parts[0] != _host() or not parts[1].isdigit():
        return False
    pid = int(parts[1])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass  # it lives, and is not ours
    return parts[2] == _birth(pid)


def sweep(folder: Path, named: str | None = None) -> None:
    """Removes what dead writers left in a folder under staging names.

    named: only what was to get this name, and only of this machine: in a shared folder another machine may be writing
    now. Without it the folder is to be locked by whoever calls.
    """
    pattern = f"{STAGING}*" if named is None else f"{STAGING}{_host()}-*-{glob.escape(named)}"
    for litter in folder.glob(pattern):
        if not alive(litter.name):
            with contextlib.suppress(FileNotFoundError):  # another process sweeps as well
                remove(litter)


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def explaining_full_disk(doing: str) -> Iterator[None]:
    """Says a full disk as such, also where a library wraps it in an error of its own; other errors pass."""
    try:
        yield
    except Exception as error:
        text = str(error)
        numbers = [error.errno] if isinstance(error, OSError) else [n for n in _NO_ROOM if os.strerror(n) in text]
        number = next((number for number in numbers if number in _NO_ROOM), None)
        if number is None:
            raise
        advice = "Free some space, then give the same command to continue"
        raise OSError(number, f"{doing}: {os.strerror(number)}. {advice}") from error
