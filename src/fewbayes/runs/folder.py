"""A run folder: settings, manifest, append-only metrics and checkpoints that survive a kill at any moment.

Four rules make it safe. A file or folder is written under a staging name (`.tmp-...`), flushed to the disk and then
renamed, so under its own name it is whole or absent. A checkpoint carries the SHA-256 of each of its files in
`trainer_state.json`, written last, so damage that happens later is noticed. An older checkpoint is removed only after a
newer one stands. Each row of metrics or stages is one appended write, and a torn last row is cut off at the next start.

It does not know what is trained, what a setting means, or what lies inside a checkpoint; standard library only.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import importlib.metadata
import itertools
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, Literal

from fewbayes.errors import UserError

if sys.platform != "win32":
    import fcntl

CONFIG, MANIFEST, METRICS, STATE = "config.yaml", "manifest.json", "metrics.jsonl", "trainer_state.json"
STAGES, BEST, BEST_STATE = "stages.jsonl", "best", "best.json"
STAGING = ".tmp-"
LOCK = ".lock"
PACKAGES = ("fewbayes", "torch", "diffusers", "transformers", "peft", "accelerate", "safetensors", "numpy", "pillow")
_APPENDED = (METRICS, STAGES)
_OURS = frozenset(
    {CONFIG, MANIFEST, METRICS, STAGES, BEST, LOCK, "reference", "samples", "posterior.json", "report.html"}
)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_serial = itertools.count()


class RunError(UserError):
    """A run folder that cannot be used as asked; the message names the folder and the way out."""


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: every file of it agrees with its recorded hash."""

    step: int
    path: Path
    state: dict[str, Any]
    """What the writer of the checkpoint asked to be kept beside the files."""


# --- writing so that a name is whole or absent ------------------------------------------------------------------------


def atomic_write(path: str | os.PathLike[str], content: bytes | str) -> None:
    """Writes a file so that at any moment, power cuts included, `path` holds all of the old or all of the new content.

    Text is written as UTF-8. A failure (full disk, kill) leaves the old file as it was.
    """
    path = Path(path)
    staging = _staging(path)
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
    _sync_folder(path.parent)


def new_folder(path: str | os.PathLike[str]) -> Path:
    """The path of a folder that `atomic_folder` can make, links followed; RunError for what is in use or not empty."""
    found = Path(os.path.realpath(path))
    if found in (here := Path.cwd().resolve(), *here.parents) or os.path.ismount(found):
        raise RunError(f"output_dir {path} is in use and cannot be replaced as a whole; give a new folder inside it")
    if found.exists() and (not found.is_dir() or any(found.iterdir())):
        raise RunError(f"output_dir {path} is not an empty folder; give a new one")
    return found


@contextmanager
def atomic_folder(path: str | os.PathLike[str], *, new: bool = False) -> Iterator[Path]:
    """Yields an empty folder to fill, which becomes `path` when the block ends well and vanishes when it does not.

    A folder that stood at `path` is replaced: in one move on Linux and macOS, so that the old or the new one stands
    there at any moment; elsewhere, and on file systems that cannot, neither does between two renames. A link at `path`
    stays, and the folder that it leads to is replaced. new: whatever `new_folder` refuses is refused, at the beginning
    and, as it may have come since, at the end.
    """
    path = new_folder(path) if new else Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = _staging(path)
    staging.mkdir()
    try:
        yield staging
        _sync_tree(staging)
        _replace_folder(staging, new_folder(path) if new else path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise
    _sync_folder(path.parent)


def _replace_folder(staging: Path, path: Path) -> None:
    if not path.exists():
        os.replace(staging, path)
        return
    if _exchanged(staging, path):
        _remove(staging)  # the old one
        return
    old = _staging(path)
    os.replace(path, old)
    try:
        os.replace(staging, path)
    except BaseException:
        os.replace(old, path)
        raise
    _remove(old)


def _exchanged(a: Path, b: Path) -> bool:
    """Give two folders each other's name in one move, where the system has one; False where nothing was done."""
    here, swap = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of Linux; RENAME_SWAP of macOS is 2 as well
    names = os.fsencode(a.absolute()), os.fsencode(b.absolute())
    if sys.platform == "linux" and (rename := getattr(ctypes.CDLL(None), "renameat2", None)):
        return rename(here, names[0], here, names[1], swap) == 0
    if sys.platform == "darwin" and (rename := getattr(ctypes.CDLL(None), "renamex_np", None)):
        return rename(*names, swap) == 0
    return False


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _retire(path: Path, name: str = "") -> None:
    """Removes a folder (or file) in two moves, so that a kill in between leaves litter to be swept, no half folder.

    name: of the litter, where its own would say that it is to be put back.
    """
    litter = _staging(path.with_name(name or path.name))
    os.replace(path, litter)
    _sync_folder(path.parent)
    _remove(litter)


def _sync_folder(folder: Path) -> None:
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


def _sync_file(path: Path) -> None:
    with open(path, "rb+" if sys.platform == "win32" else "rb") as file:
        os.fsync(file.fileno())


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync_tree(folder: Path) -> None:
    for file in _files(folder):
        _sync_file(file)
    for inner in [*(path for path in folder.rglob("*") if path.is_dir()), folder]:
        _sync_folder(inner)


def _append(path: Path, line: bytes) -> None:
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


def _staging(path: Path) -> Path:
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


def _alive(staging_name: str) -> bool:
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


# --- reading ----------------------------------------------------------------------------------------------------------


def file_sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_metrics(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The rows of a metrics file in the order of writing; a torn last line, which a kill may leave, is not a row."""
    data = Path(path).read_bytes()
    whole, _, _torn = data.rpartition(b"\n")
    rows = []
    for number, line in enumerate(whole.splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError as error:
            raise RunError(
                f"{path}, line {number} is not JSON ({error}): the file was changed by hand or damaged"
            ) from error
    return rows


def read_manifest(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """The manifest of a run folder."""
    path = Path(folder) / MANIFEST
    try:
        manifest = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not a run folder: it holds no {MANIFEST}") from error
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}); restore it, or give another output_dir") from error
    if not isinstance(manifest, dict):
        raise RunError(f"{path} does not hold a manifest; give another output_dir")
    return manifest


def verify_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Reads every file of a checkpoint against its recorded hash; raises RunError naming the first that disagrees."""
    path = Path(path)
    state = _checkpoint_state(path)
    for name, recorded in state["files"].items():
        file = path / name
        if not file.is_file():
            raise RunError(f"{path}: {name} is missing")
        if file.stat().st_size != recorded["bytes"]:
            raise RunError(f"{path}: {name} has {file.stat().st_size} bytes, not {recorded['bytes']}")
        if file_sha256(file) != recorded["sha256"]:
            raise RunError(f"{path}: {name} has changed since it was written (its SHA-256 differs)")
    return Checkpoint(state["step"], path, state["state"])


def _checkpoint_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads((path / STATE).read_bytes())
        seal = state.pop("seal")
    except FileNotFoundError:
        raise RunError(f"{path}: {STATE}, which is written last, is missing") from None
    except (ValueError, KeyError, AttributeError, OSError) as error:
        raise RunError(f"{path}: {STATE} cannot be read ({error})") from error
    if seal != _seal(state):
        raise RunError(f"{path}: {STATE} has changed since it was written")
    return state


def _seal(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _looks_whole(path: Path) -> bool:
    """A quick look, sizes only: enough to decide what to remove, not what to load."""
    try:
        files = _checkpoint_state(path)["files"]
        return all((path / name).stat().st_size == recorded["bytes"] for name, recorded in files.items())
    except (RunError, OSError):
        return False


def _step_of(path: Path) -> int | None:
    match = re.fullmatch(r"checkpoint-(\d+)", path.name)
    return int(match[1]) if match and path.is_dir() else None


# --- where a run took place -------------------------------------------------------------------------------------------


def environment(gpu: str | None = None) -> dict[str, Any]:
    """Versions, commit and hardware for the manifest; the name of the GPU comes from whoever can ask for it."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: _version(name) for name in PACKAGES},
        "commit": _commit(),
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "gpu": gpu,
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The commit of the checkout this package runs from ("+changes" when edited); None when installed otherwise."""
    here = Path(__file__).resolve().parents[1]
    top = _git(here, "rev-parse", "--show-toplevel")
    if top is None or Path(top) / "src" / "fewbayes" != here:
        return None  # some other project's checkout around our installation
    head = _git(here, "rev-parse", "--verify", "HEAD")
    return head + "+changes" if head and _git(here, "status", "--porcelain", "--", ".") else head


def _git(folder: Path, *arguments: str) -> str | None:
    try:
        answer = subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return answer.stdout.strip() if answer.returncode == 0 else None


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


# --- the run folder ---------------------------------------------------------------------------------------------------


class RunFolder:
    """One training run on the disk. Only the process that trains opens it; anybody may read it.

    >>> run = RunFolder("OUT").open({"seed": 0}, {"seed": 0})                                       # doctest: +SKIP
    >>> checkpoint = run.newest_checkpoint()
    >>> run.resume_from(checkpoint.step if checkpoint else 0)
    """

    def __init__(self, path: str | os.PathLike[str], *, say: Callable[[str], None] | None = None):
        self.path = Path(path)
        self.say = say or (lambda message: print(message, file=sys.stderr))
        self.previous_status: str | None = None
        """The status found by `open`: None for a new folder, "done", "failed", or "running" after a kill."""
        self._lock: int | None = None

    @property
    def resumed(self) -> bool:
        """Whether `open` found this run begun already."""
        return self.previous_status is not None

    def open(
        self,
        config: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        *,
        config_text: str | None = None,
    ) -> RunFolder:
        """Begins the run, or continues it when `fingerprint` agrees with what the folder holds.

        `config` is everything set, `fingerprint` the part that must agree for a run to be continued. `config_text` is
        what config.yaml shall say (default: `config` as JSON, which is YAML too). A folder that holds another run, or
        anything else, is refused before anything in it is touched.
        """
        self.inspect(fingerprint)  # before anything is made
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._take_lock()
            manifest = self.inspect(fingerprint)  # the last holder of the lock may have written since
            self._sweep()
            self.previous_status = manifest.get("status")
            start = {"time": _now(), "command": sys.argv}
            manifest |= {"status": "running", "fingerprint": _plain(fingerprint), "ended": None, "error": None}
            manifest |= {"started": manifest.get("started") or start["time"]}
            manifest |= {"starts": [*manifest.get("starts", []), start]}
            self._write_manifest(manifest)
            atomic_write(self.path / CONFIG, config_text or json.dumps(_plain(config), indent=2) + "\n")
            self._mend_rows()
        except OSError as error:
            self.close()
            raise RunError(f"output_dir {self.path} cannot be written: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def inspect(self, fingerprint: Mapping[str, Any]) -> dict[str, Any]:
        """The manifest found, {} for a folder to be begun; raises for a folder that is not ours to write in.

        Touches nothing, so whatever else may be refused can be looked at between this and `open`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise RunError(f"output_dir {self.path} is a file; give a folder")
        if (self.path / MANIFEST).exists():
            manifest = read_manifest(self.path)
            self._must_agree(manifest.get("fingerprint", {}), _plain(fingerprint))
            return manifest
        standing = next(path for path in (self.path.absolute(), *self.path.absolute().parents) if path.exists())
        if not os.access(standing, os.W_OK | os.X_OK):
            raise RunError(f"output_dir {self.path} cannot be written: no permission in {standing}")
        strangers = self._strangers()
        if strangers:
            raise RunError(
                f"output_dir {self.path} is not empty and holds no run (found {', '.join(strangers[:5])}"
                f"{', ...' if len(strangers) > 5 else ''}); give a new or empty folder"
            )
        return {}

    def _strangers(self) -> list[str]:
        try:
            names = sorted(entry.name for entry in self.path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(f"output_dir {self.path} cannot be read: {error.strerror}") from error
        return [name for name in names if name != LOCK and not name.startswith(STAGING)]

    def _must_agree(self, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        differing = [key for key in sorted(found.keys() | asked.keys()) if found.get(key) != asked.get(key)]
        if differing:
            listed = "; ".join(
                f"{key}: {_short(found.get(key))} there, {_short(asked.get(key))} now" for key in differing
            )
            raise RunError(
                f"output_dir {self.path} holds another run ({listed}); give another output_dir, "
                "or the settings of that run to continue it"
            )

    def _take_lock(self) -> None:
        """One trainer per folder. The system frees the lock when the process ends, however it ends."""
        if sys.platform == "win32":
            return
        self._lock = os.open(self.path / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                raise RunError(
                    f"another process is training in {self.path}; wait for it, end it, or give another output_dir"
                ) from None
            # a file system without locks: go on as if alone

    def close(self) -> None:
        """Frees the folder for another process; nothing is lost when it is never called."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _sweep(self) -> None:
        """Removes what killed writers left under staging names; a best/ that was between two names is put back."""
        for litter in self.path.glob(f"{STAGING}*-{BEST}"):
            if (litter / BEST_STATE).is_file() and not (self.path / BEST).exists() and not _alive(litter.name):
                os.replace(litter, self.path / BEST)
        samples = self.path / "samples"
        for folder in [self.path, samples, *(samples.iterdir() if samples.is_dir() else ())]:
            if folder.is_dir() and not folder.name.startswith(STAGING):
                for litter in folder.glob(f"{STAGING}*"):
                    if not _alive(litter.name):
                        _remove(litter)

    # manifest

    @property
    def manifest(self) -> dict[str, Any]:
        return read_manifest(self.path)

    def manifest_update(self, **values: Any) -> None:
        """Sets top-level keys of the manifest, leaving the others."""
        self._write_manifest(self.manifest | _plain(values))

    def _write_manifest(self, manifest: Mapping[str, Any]) -> None:
        atomic_write(self.path / MANIFEST, json.dumps(manifest, indent=2) + "\n")

    def finish(self, status: Literal["done", "failed"] = "done", **values: Any) -> None:
        """Records how and when the run ended, and frees the folder."""
        self.manifest_update(status=status, ended=_now(), **values)
        self.close()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of its own into the folder; numbers that are not finite become null."""
        assert name in _OURS, name
        atomic_write(self.path / name, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")

    # metrics

    def log(self, step: int, metric: str, value: float | None, **keys: Any) -> None:
        """Appends one row; a value that is not finite is written as null, which JSON has a name for."""
        row = _plain({"step": int(step), "metric": metric, "value": None if value is None else float(value)} | keys)
        line = (json.dumps(row, allow_nan=False) + "\n").encode()
        with _explaining_full_disk(f"could not write a row to {self.path / METRICS}"):
            _append(self.path / METRICS, line)

    def metrics(self) -> list[dict[str, Any]]:
        """All rows so far."""
        path = self.path / METRICS
        return read_metrics(path) if path.exists() else []

    # stages

    def log_stage(self, judgement: Mapping[str, Any]) -> None:
        """Appends one judgement of the stage monitor, which names its step."""
        line = (json.dumps(_plain(judgement), allow_nan=False) + "\n").encode()
        with _explaining_full_disk(f"could not write a row to {self.path / STAGES}"):
            _append(self.path / STAGES, line)

    def write_best(self, writer: Callable[[Path], object], told: Mapping[str, Any]) -> None:
        """Has `writer(folder)` export a model into `best`, with `told` in best.json; until then the old one stands."""
        explained = _explaining_full_disk(f"could not write {self.path / BEST}; the one before is untouched")
        with explained, atomic_folder(self.path / BEST) as folder:
            writer(folder)
            (folder / BEST_STATE).write_text(json.dumps(_plain(told), indent=2) + "\n")

    def stages(self) -> list[dict[str, Any]]:
        """All judgements so far."""
        path = self.path / STAGES
        return read_metrics(path) if path.exists() else []

    def best(self) -> dict[str, Any] | None:
        """What best.json says, its `step` first of all; None without a best/ that says it."""
        try:
            told = json.loads((self.path / BEST / BEST_STATE).read_bytes())
        except (OSError, ValueError):
            return None
        return told if isinstance(told, dict) and isinstance(told.get("step"), int) else None

    def drop_best(self) -> None:
        """Removes best/. A kill in between leaves litter that is not put back, as half of it may be gone."""
        _retire(self.path / BEST, "dropped")

    # rows of metrics and stages

    def resume_from(self, step: int) -> None:
        """Drops the rows after `step`, of each file in one move: they will be made again. Rows of `step` itself stay,
        so what belongs to a step is to be logged before its checkpoint is written."""
        for path in self._appended():
            rows = read_metrics(path)
            kept = [row for row in rows if row["step"] <= step]
            if len(kept) < len(rows):
                atomic_write(path, "".join(json.dumps(row) + "\n" for row in kept))

    def _mend_rows(self) -> None:
        """Cuts off a torn last row, which the next append would otherwise glue itself to."""
        for path in self._appended():
            data = path.read_bytes()
            if data and not data.endswith(b"\n"):
                atomic_write(path, data[: data.rfind(b"\n") + 1])

    def _appended(self) -> list[Path]:
        return [path for name in _APPENDED if (path := self.path / name).exists()]

    # samples

    def sample_folder(self, step: int) -> Path:
        """Where the samples of a step lie; fill it by `atomic_folder`."""
        return self.path / "samples" / f"step-{step:06d}"

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, whole or not, oldest first."""
        steps = {path: step for path in self.path.glob("checkpoint-*") if (step := _step_of(path)) is not None}
        return sorted(steps, key=lambda path: steps[path])

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint that is whole by the sizes of its files; a quick look."""
        return next((_step_of(path) for path in reversed(self.checkpoints()) if _looks_whole(path)), None)

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, every file of it read against its hash; torn ones are passed over and said."""
        for path in reversed(self.checkpoints()):
            try:
                return verify_checkpoint(path)
            except (RunError, OSError) as error:
                self.say(f"skipped a torn checkpoint, {error}")
        return None

    def write_checkpoint(
        self,
        step: int,
        writer: Callable[[Path], object],
        *,
        state: Mapping[str, Any] | None = None,
        total_limit: int | None = None,
    ) -> Path:
        """Has `writer(folder)` fill an empty staging folder, then seals it and makes it checkpoint-`step`.

        Whatever goes wrong before that last rename, older checkpoints stay and the staging folder goes. A whole
        checkpoint of the same step is kept as it is: what a step leaves behind is a function of the step. With
        `total_limit` older checkpoints are removed once the new one stands, torn ones not counted.
        """
        assert step >= 0, step
        assert total_limit is None or total_limit > 0, total_limit
        target = self.path / f"checkpoint-{step}"
        if not self._is_whole(target):
            with _explaining_full_disk(f"could not write {target}; older checkpoints are untouched"):
                self._stage_checkpoint(target, step, writer, state or {})
        if total_limit is not None:
            self._prune(step, total_limit)
        return target

    def _is_whole(self, path: Path) -> bool:
        try:
            return bool(verify_checkpoint(path))
        except (RunError, OSError):
            return False

    def _stage_checkpoint(self, target: Path, step: int, writer: Callable[[Path], object], state: Mapping) -> None:
        for path in self._appended():
            _sync_file(path)  # rows up to this step must not be younger than the checkpoint
        with atomic_folder(target) as staging:
            writer(staging)
            files = _files(staging)
            assert files, "a checkpoint without files"
            assert staging / STATE not in files, f"{STATE} is written here, not by the writer"
            recorded = {
                file.relative_to(staging).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
                for file in files
            }
            content = {"step": step, "time": _now(), "state": _plain(state), "files": recorded}
            (staging / STATE).write_text(json.dumps(content | {"seal": _seal(content)}, indent=2) + "\n")

    def _prune(self, step: int, total_limit: int) -> None:
        """Keeps the `total_limit` newest whole checkpoints up to `step`, that of `step` included."""
        kept = 0
        for path in reversed(self.checkpoints()):
            if (_step_of(path) or 0) > step:
                continue  # torn ones from before a restart, about to be written again
            if kept < total_limit and _looks_whole(path):
                kept += 1
            else:
                _retire(path)

    # the final pipeline

    def write_pipeline(self, writer: Callable[[Path], object], result: str = "model_index.json") -> None:
        """Has `writer(folder)` save a pipeline into a staging folder, then moves its parts into the run folder.

        result: the file whose presence says that the pipeline is there. The part that is or holds it goes first and
        comes last, so a folder that has it has all parts from one writing.
        """
        index = Path(result).parts[0]
        staging = _staging(self.path / "pipeline")
        try:
            with _explaining_full_disk(f"could not write the pipeline to {self.path}; checkpoints are untouched"):
                staging.mkdir()
                writer(staging)
                _sync_tree(staging)
                parts = sorted(staging.iterdir(), key=lambda part: part.name == index)
                clashes = [part.name for part in parts if part.name in _OURS or _step_of(part) is not None]
                assert not clashes, clashes
                if (self.path / index).exists():
                    _retire(self.path / index)
                for part in parts:
                    self._move_in(part)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _move_in(self, part: Path) -> None:
        target = self.path / part.name
        if part.is_dir():
            _replace_folder(part, target)
        else:
            os.replace(part, target)
        _sync_folder(self.path)


def _plain(value: Any) -> Any:
    """The value as JSON has it: paths as text, tuples as lists, numbers that are not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (str, bool, int)) or value is None:
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, Iterable):
        return [_plain(inner) for inner in value]
    raise TypeError(f"{value!r} ({type(value).__name__}) has no place in JSON")


def _short(value: Any) -> str:
    text = "nothing" if value is None else json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


@contextmanager
def _explaining_full_disk(doing: str) -> Iterator[None]:
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
