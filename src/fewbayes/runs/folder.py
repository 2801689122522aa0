"""A run folder: settings, manifest, append-only metrics and checkpoints that survive a kill at any moment.

Four rules make it safe. What is written is whole or absent under its own name (`files/atomic.py`). A checkpoint carries
the hashes of its files (`checkpoints.py`). An older checkpoint is removed only after a newer one stands. Each row of
metrics or stages is one appended write, and a torn last row is cut off at the next start.

It does not know what is trained, what a setting means, or what lies inside a checkpoint.
"""

from __future__ import annotations

import errno
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from fewbayes.errors import UserError
from fewbayes.files.atomic import (
    STAGING,
    alive,
    append_line,
    atomic_folder,
    atomic_write,
    explaining_full_disk,
    replace_folder,
    retire,
    staging_name,
    standing,
    sweep,
    sync_file,
    sync_folder,
    sync_tree,
)
from fewbayes.files.decode import plain_json, plain_json_lines, typed
from fewbayes.runs.checkpoints import Checkpoint, is_whole, looks_whole, seal_checkpoint, verify_checkpoint
from fewbayes.runs.layout import (
    APPENDED,
    BEST,
    BEST_STATE,
    CONFIG,
    LOCK,
    MANIFEST,
    METRICS,
    OURS,
    SAMPLES,
    STAGES,
    Best,
    Manifest,
    Row,
    StageRow,
    Start,
    checkpoint_folders,
    read_best,
    read_manifest,
)
from fewbayes.runs.provenance import now

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")


def read_metrics(path: str | os.PathLike[str]) -> list[Row]:
    """The rows of a metrics file in the order of writing; a torn last line, which a kill may leave, is not a row."""
    return _rows(Path(path), Row)


def _rows(path: Path, kind: type[T]) -> list[T]:
    cure = "the file was changed by hand or damaged"
    rows = plain_json_lines(path, cure=cure, torn=True)
    for where, row in rows:
        typed(row, kind, where, cure=cure)  # as it is: keys that the schema does not name stay
    return [cast(T, row) for _, row in rows]


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
        self.also: Callable[[int, str, float | None, Mapping[str, Any]], None] | None = None
        """Told of every row of metrics too."""
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
            found = self.inspect(fingerprint)  # the last holder of the lock may have written since
            self._sweep()
            self.previous_status = found.status
            start = Start(now(), sys.argv)
            self.manifest_update(
                status="running",
                fingerprint=fingerprint,
                ended=None,
                error=None,
                started=found.started or start.time,
                starts=[asdict(one) for one in (*found.starts, start)],
            )
            atomic_write(self.path / CONFIG, config_text or json.dumps(_plain(config), indent=2) + "\n")
            self._mend_rows()
        except OSError as error:
            self.close()
            raise UserError(f"output_dir {self.path} cannot be written: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise
        return self

    def inspect(self, fingerprint: Mapping[str, Any]) -> Manifest:
        """The manifest found, an empty one for a folder to be begun; raises for a folder that is not ours to write in.

        Touches nothing, so whatever else may be refused can be looked at between this and `open`.
        """
        if self.path.exists() and not self.path.is_dir():
            raise UserError(f"output_dir {self.path} is a file; give a folder")
        if (self.path / MANIFEST).exists():
            manifest = read_manifest(self.path)
            self._must_agree(manifest.fingerprint, _plain(fingerprint))
            return manifest
        if not os.access(place := standing(self.path), os.W_OK | os.X_OK):
            raise UserError(f"output_dir {self.path} cannot be written: no permission in {place}")
        strangers = self._strangers()
        if strangers:
            raise UserError(
                f"output_dir {self.path} is not empty and holds no run (found {', '.join(strangers[:5])}"
                f"{', ...' if len(strangers) > 5 else ''}); give a new or empty folder"
            )
        return Manifest()

    def _strangers(self) -> list[str]:
        try:
            names = sorted(entry.name for entry in self.path.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise UserError(f"output_dir {self.path} cannot be read: {error.strerror}") from error
        return [name for name in names if name != LOCK and not name.startswith(STAGING)]

    def _must_agree(self, found: Mapping[str, Any], asked: Mapping[str, Any]) -> None:
        differing = [key for key in sorted(found.keys() | asked.keys()) if found.get(key) != asked.get(key)]
        if differing:
            listed = "; ".join(
                f"{key}: {_short(found.get(key))} there, {_short(asked.get(key))} now" for key in differing
            )
            raise UserError(
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
                raise UserError(
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
            if (litter / BEST_STATE).is_file() and not (self.path / BEST).exists() and not alive(litter.name):
                os.replace(litter, self.path / BEST)
        samples = self.path / SAMPLES
        for folder in [self.path, samples, *(samples.iterdir() if samples.is_dir() else ())]:
            if folder.is_dir() and not folder.name.startswith(STAGING):
                sweep(folder)

    # manifest

    @property
    def manifest(self) -> Manifest:
        return read_manifest(self.path)

    def manifest_update(self, **values: Any) -> None:
        """Sets top-level keys of the manifest, leaving the others, also those that no schema knows."""
        path = self.path / MANIFEST
        found = plain_json(path) if path.exists() else {}
        atomic_write(path, json.dumps(found | _plain(values), indent=2) + "\n")

    def finish(self, status: Literal["done", "failed"] = "done", **values: Any) -> None:
        """Records how and when the run ended, and frees the folder."""
        self.manifest_update(status=status, ended=now(), **values)
        self.close()

    def write_json(self, name: str, value: Any) -> None:
        """Writes a JSON file of its own into the folder; numbers that are not finite become null."""
        assert name in OURS, name
        atomic_write(self.path / name, json.dumps(_plain(value), indent=1, allow_nan=False) + "\n")

    # metrics

    def log(self, step: int, metric: str, value: float | None, **keys: Any) -> None:
        """Appends one row; a value that is not finite is written as null, which JSON has a name for."""
        row = _plain({"step": int(step), "metric": metric, "value": None if value is None else float(value)} | keys)
        self._append(METRICS, row)
        if self.also:
            self.also(step, metric, value, keys)

    def metrics(self) -> list[Row]:
        """All rows so far."""
        return self._read(METRICS, Row)

    # stages

    def log_stage(self, judgement: Mapping[str, Any]) -> None:
        """Appends one judgement of the stage monitor, which names its step."""
        self._append(STAGES, _plain(judgement))

    def _append(self, name: str, row: Any) -> None:
        with explaining_full_disk(f"could not write a row to {self.path / name}"):
            append_line(self.path / name, (json.dumps(row, allow_nan=False) + "\n").encode())

    def write_best(self, writer: Callable[[Path], object], told: Mapping[str, Any]) -> None:
        """Has `writer(folder)` export a model into `best`, with `told` in best.json; until then the old one stands."""
        explained = explaining_full_disk(f"could not write {self.path / BEST}; the one before is untouched")
        with explained, atomic_folder(self.path / BEST) as folder:
            writer(folder)
            (folder / BEST_STATE).write_text(json.dumps(_plain(told), indent=2) + "\n")
        if (aside := self.path / f"{BEST}-{told['step']}").exists():
            retire(aside, "dropped")  # what a step leaves behind is a function of the step

    def stages(self) -> list[StageRow]:
        """All judgements so far."""
        return self._read(STAGES, StageRow)

    def _read(self, name: str, kind: type[T]) -> list[T]:
        return _rows(self.path / name, kind) if (self.path / name).exists() else []

    def best(self) -> Best | None:
        """What best.json says; None without a best/ that says it."""
        return read_best(self.path / BEST)

    def set_best_aside(self, step: int) -> Path:
        """Renames the best/ of `step`, which lies beyond what the run goes on from; where it is now."""
        aside = self.path / f"{BEST}-{step}"
        if aside.exists():
            retire(self.path / BEST, "dropped")
        else:
            os.replace(self.path / BEST, aside)
            sync_folder(self.path)
        return aside

    # rows of metrics and stages

    def resume_from(self, step: int) -> None:
        """Drops the rows after `step`, of each file in one move: they will be made again. Rows of `step` itself stay,
        so what belongs to a step is to be logged before its checkpoint is written."""
        for path in self._appended():
            rows = _rows(path, StageRow)
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
        return [path for name in APPENDED if (path := self.path / name).exists()]

    # samples

    def sample_folder(self, step: int) -> Path:
        """Where the samples of a step lie; fill it by `atomic_folder`."""
        return self.path / SAMPLES / f"step-{step:06d}"

    # checkpoints

    def checkpoints(self) -> list[Path]:
        """The checkpoint folders, whole or not, oldest first."""
        return list(checkpoint_folders(self.path).values())

    def newest_step(self) -> int | None:
        """The step of the newest checkpoint that is whole by the sizes of its files; a quick look."""
        found = checkpoint_folders(self.path)
        return next((step for step in reversed(found) if looks_whole(found[step])), None)

    def on_disk(self) -> str:
        """What is there of a run that ends now, and what the same command does with it."""
        step = self.newest_step()
        if step is None:
            return "No checkpoint is saved yet: the same command begins again at step 0."
        return f"Saved in {self.path / f'checkpoint-{step}'}. Run the same command to continue from there."

    def newest_checkpoint(self) -> Checkpoint | None:
        """The newest whole checkpoint, every file of it read against its hash; torn ones are passed over and said."""
        for path in reversed(self.checkpoints()):
            try:
                return verify_checkpoint(path)
            except (UserError, OSError) as error:
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
        if not is_whole(target):
            with explaining_full_disk(f"could not write {target}; older checkpoints are untouched"):
                for path in self._appended():
                    sync_file(path)  # rows up to this step must not be younger than the checkpoint
                with atomic_folder(target) as staging:
                    writer(staging)
                    seal_checkpoint(staging, step, _plain(state or {}))
        if total_limit is not None:
            self._prune(step, total_limit)
        return target

    def _prune(self, step: int, total_limit: int) -> None:
        """Keeps the `total_limit` newest whole checkpoints up to `step`, that of `step` included."""
        kept = 0
        for its, path in reversed(checkpoint_folders(self.path).items()):
            if its > step:
                continue  # torn ones from before a restart, about to be written again
            if kept < total_limit and looks_whole(path):
                kept += 1
            else:
                retire(path)

    # the final pipeline

    def write_pipeline(self, writer: Callable[[Path], object], result: str = "model_index.json") -> None:
        """Has `writer(folder)` save a pipeline into a staging folder, then moves its parts into the run folder.

        result: the file whose presence says that the pipeline is there. The part that is or holds it goes first and
        comes last, so a folder that has it has all parts from one writing.
        """
        index = Path(result).parts[0]
        staging = staging_name(self.path / "pipeline")
        try:
            with explaining_full_disk(f"could not write the pipeline to {self.path}; checkpoints are untouched"):
                staging.mkdir()
                writer(staging)
                sync_tree(staging)
                parts = sorted(staging.iterdir(), key=lambda part: part.name == index)
                clashes = [name for part in parts if (name := part.name) in OURS or re.match(r"checkpoint-\d", name)]
                assert not clashes, clashes
                if (self.path / index).exists():
                    retire(self.path / index)
                for part in parts:
                    self._move_in(part)
        finally:
            shutil.rmtree(staging, ignore_errors=True)

    def _move_in(self, part: Path) -> None:
        (replace_folder if part.is_dir() else os.replace)(part, self.path / part.name)
        sync_folder(self.path)


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
