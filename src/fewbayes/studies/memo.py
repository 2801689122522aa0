"""A result kept beside what it follows from, so that it is found once and found again where that has changed.

What it follows from is told by content (settings, fingerprints, digests of files), never by time or path. Knows neither
trainings nor figures.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write, file_sha256, files_in
from fewbayes.files.decode import read_json


@dataclass(frozen=True)
class Kept:
    """The file of a memo."""

    made_of: Any
    found: Any


def recall(file: Path, made_of: Any) -> Any | None:
    """What was kept in `file` under the same `made_of`; None where there is nothing, or something else."""
    kept = _read(file)
    return kept.found if kept and kept.made_of == _plain(made_of) else None


def remember(file: Path, made_of: Any, find: Callable[[], Any]) -> Any:
    """What `find` finds, as JSON gives it back; it is called where `file` does not hold its answer for `made_of`."""
    if (found := recall(file, made_of)) is None:
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps({"made_of": made_of, "found": find()}) + "\n")
        found = recall(file, made_of)
    return found


def claim(file: Path, made_of: Mapping[str, Any]) -> None:
    """Write down what the folder of `file` is of. UserError where it is known to be of something else."""
    kept, asked = _read(file), _plain(made_of)
    known = kept.made_of if kept else None
    if not isinstance(known, dict):
        file.parent.mkdir(parents=True, exist_ok=True)
        atomic_write(file, json.dumps({"made_of": asked, "found": True}, indent=1) + "\n")
    elif other := [key for key in asked | known if known.get(key) != asked.get(key)]:
        raise UserError(
            f"{file.parent} holds results with {other[0]} {known.get(other[0])}, not {asked.get(other[0])}; give "
            "another output_dir"
        )


def content(*folders: Path) -> str:
    """A digest of the files in some folders, at any depth: it changes with a file's name or any of its bytes."""
    files = sorted((path.relative_to(f).as_posix(), path) for f in folders for path in files_in(f))
    return digest(f"{name} {file_sha256(path)}" for name, path in files)


def digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def rounded(value: Any, digits: int = 4) -> Any:
    """So many digits after the point, in whatever holds the numbers."""
    if isinstance(value, Mapping):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item, digits) for item in value]
    return round(value, digits) if isinstance(value, float) else value


def _read(file: Path) -> Kept | None:
    """None where there is no memo, or one that is torn or says not what it was made of."""
    try:
        return read_json(file, Kept) if file.exists() else None
    except UserError:
        return None


def _plain(value: Any) -> Any:
    """As JSON gives it back: lists for tuples, strings for keys."""
    return json.loads(json.dumps(value))
