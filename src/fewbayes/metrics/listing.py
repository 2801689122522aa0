"""Prompts and seeds beside pictures, as our samples, other programs and the paper's authors write them.

Knows no pictures: whether a file that a listing names is there, and is one, is looked at elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal

from fewbayes.errors import UserError
from fewbayes.files.decode import read_json, read_json_lines

LISTINGS = ("samples.json", "samples.jsonl", "metadata.jsonl")
Kind = Literal["subject", "class", "unrelated"]
"""What a prompt asks for: the subject, another thing of its class, or something else."""
CURE = 'a row is {"file": ..., "prompt": ..., "seed": ...}; mend the listing or move it away'


@dataclass(frozen=True)
class Listed:
    """A row of a listing. file_name, text: other programs' names of file and prompt. source: the model that made it."""

    file: str = ""
    prompt: str | None = None
    seed: int | None = None
    kind: Kind | None = None
    weights: str | None = None
    source: str | None = None
    file_name: str = ""
    text: str | None = None


@dataclass(frozen=True)
class Instance:
    """An entry of the metadata of the authors' evaluator."""

    data_dir: str
    instance_prompt: str


def read_listing(folder: Path) -> list[Listed]:
    """Rows of the pictures in a folder; those of one kind of weights may lie in the listing of the folder above."""
    for place, below in ((folder, ""), (folder.parent, folder.name + "/")):
        for path in (place / name for name in LISTINGS):
            if path.is_file():
                rows = [row for row in _rows(path) if row.file.startswith(below)]
                if below:
                    rows = [replace(row, file=row.file.removeprefix(below), weights=None) for row in rows]
                if rows:
                    return rows
    return []


def _rows(path: Path) -> Sequence[Listed]:
    rows = (
        read_json(path, list[Listed], cure=CURE) if path.suffix == ".json" else read_json_lines(path, Listed, cure=CURE)
    )
    found = []
    for number, row in enumerate(rows, start=1):
        if not (file := row.file or row.file_name):
            raise UserError(f"{path}, row {number}: file is missing; {CURE}")
        found.append(replace(row, file=PurePosixPath(file).as_posix(), prompt=row.prompt or row.text))
    return found


def read_prompts(path: Path) -> dict[str, str]:
    """Prompts by folder from the authors' metadata: {key: {"data_dir": "dog-1", "instance_prompt": "a qwe dog"}}."""
    cure = 'it holds {"1": {"data_dir": "dog-1", "instance_prompt": "a qwe dog in the snow"}, ...}'
    return {entry.data_dir: entry.instance_prompt for entry in read_json(path, dict[str, Instance], cure=cure).values()}
