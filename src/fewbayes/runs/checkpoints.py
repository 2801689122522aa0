"""Sealed checkpoints: a folder whose last file records the SHA-256 of all others, so that later damage is noticed.

Does not know what lies inside a checkpoint, nor which of several is to be kept.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.files.atomic import file_sha256, files_in
from fewbayes.files.decode import plain_json, typed
from fewbayes.runs.layout import STATE, TrainerState
from fewbayes.runs.provenance import now


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: every file of it agrees with its recorded hash."""

    step: int
    path: Path
    state: dict[str, Any]
    """What the writer of the checkpoint asked to be kept beside the files."""


def seal_checkpoint(folder: Path, step: int, state: Mapping[str, Any]) -> None:
    """Writes `trainer_state.json` over the files of a folder. state: what is kept beside them, as JSON has it."""
    files = files_in(folder)
    assert files, "a checkpoint without files"
    assert folder / STATE not in files, f"{STATE} is written here, not by the writer"
    recorded = {
        file.relative_to(folder).as_posix(): {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in files
    }
    content = {"step": step, "time": now(), "state": state, "files": recorded}
    (folder / STATE).write_text(json.dumps(content | {"seal": _seal(content)}, indent=2) + "\n")


def verify_checkpoint(path: str | Path) -> Checkpoint:
    """Reads every file of a checkpoint against its recorded hash; raises UserError naming the first that disagrees."""
    path = Path(path)
    state = _trainer_state(path)
    for name, recorded in state.files.items():
        file = path / name
        if not file.is_file():
            raise UserError(f"{path}: {name} is missing")
        if file.stat().st_size != recorded.bytes:
            raise UserError(f"{path}: {name} has {file.stat().st_size} bytes, not {recorded.bytes}")
        if file_sha256(file) != recorded.sha256:
            raise UserError(f"{path}: {name} has changed since it was written (its SHA-256 differs)")
    return Checkpoint(state.step, path, state.state)


def is_whole(path: Path) -> bool:
    """Whether every file agrees with its hash."""
    try:
        return bool(verify_checkpoint(path))
    except (UserError, OSError):
        return False


def looks_whole(path: Path) -> bool:
    """A quick look, sizes only: enough to decide what to remove, not what to load."""
    try:
        files = _trainer_state(path).files
        return all((path / name).stat().st_size == recorded.bytes for name, recorded in files.items())
    except (UserError, OSError):
        return False


def _trainer_state(path: Path) -> TrainerState:
    file = path / STATE
    if not file.exists():
        raise UserError(f"{path}: {STATE}, which is written last, is missing")
    content = plain_json(file)
    state = typed(content, TrainerState, str(file))
    if content.pop("seal") != _seal(content):
        raise UserError(f"{path}: {STATE} has changed since it was written")
    return state


def _seal(state: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()
