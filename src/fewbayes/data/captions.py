"""Captions of training images, under all the names that trainers give them.

| file                        | from                        | holds                                               |
|-----------------------------|-----------------------------|-----------------------------------------------------|
| metadata.jsonl              | Hugging Face's imagefolder  | rows of {"file_name": ..., "text": ...}             |
| metadata.csv                | the same                    | columns file_name and text                          |
| metadata.json, meta_cap.json| kohya's sd-scripts          | {"00.jpg": {"caption": ...}}, or the name alone     |
| 00.txt, 00.caption, 00.cap, 00.jpg.txt | nearly everyone  | the caption of 00.jpg                               |

The first that names an image is used, in this order. Knows no pixels and no prompts.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.files.decode import MOST_BYTES, parse_json, read_text, typed

METADATA = "metadata.jsonl"
TABLES = (METADATA, "metadata.csv", "metadata.json", "meta_cap.json")
ENDINGS = (".txt", ".caption", ".cap")


def is_caption(path: Path, stems: set[str], names: set[str]) -> bool:
    """Whether a file is a caption of one of these pictures (stems and whole names), or a table of captions."""
    return path.name in TABLES or (path.suffix.lower() in ENDINGS and path.stem in stems | names)


class Captions:
    """Captions by file name; `problems` are to be mended, `remarks` to be known."""

    def __init__(self, folder: Path, pictures: Sequence[Path]):
        self.problems: list[str] = []
        self.remarks: list[str] = []
        self._by_name: dict[str, str] = {}
        self._source: dict[str, str] = {}
        names = {path.name: path.name for path in pictures} | {path.stem: path.name for path in pictures}
        for table in TABLES:
            if (folder / table).is_file():
                self._add_table(folder / table, names)
        for path in pictures:
            beside = [path.with_suffix(ending) for ending in ENDINGS]
            beside += [path.with_name(path.name + ending) for ending in ENDINGS]
            for file in beside:
                if file.is_file():
                    self._add_file(path.name, file)

    def of(self, path: Path) -> str | None:
        return self._by_name.get(path.name)

    def notes(self, images: Sequence[tuple[str, str | None]]) -> list[str]:
        """images: names with their captions."""
        without = [name for name, caption in images if caption is None]
        if 0 < len(without) < len(images):
            self.remarks.append(f"no caption, so the instance prompt is used: {few(without)}")
        if len(without) < len(images):
            self.remarks.append(f"captions for {len(images) - len(without)} of {len(images)} images")
        return self.remarks

    def _add(self, name: str, text: str, source: str) -> None:
        if self._by_name.setdefault(name, text) != text:
            self.remarks.append(f"{source} differs from {self._source[name]}, which is used")
        self._source.setdefault(name, source)

    def _text(self, path: Path) -> str | None:
        try:
            return read_text(path, MOST_BYTES)
        except UserError as error:
            self.problems.append(str(error))
            return None

    def _add_file(self, name: str, file: Path) -> None:
        text = self._text(file)
        if text is None:
            return
        if text.strip():
            self._add(name, text.strip(), file.name)
        else:
            self.remarks.append(f"{file.name} is empty and no caption")

    def _add_table(self, path: Path, names: dict[str, str]) -> None:
        text = self._text(path)
        if text is None:
            return
        rows = {".jsonl": _json_lines, ".csv": _csv_rows, ".json": _json_table}[path.suffix](text)
        seen: set[str] = set()
        missing = []
        for where, row in rows:
            if row is None or row[0] in seen:
                wrong = "the file is named before" if row else _WANTED[path.suffix]
                self.problems.append(f"{path.name}{where}: {wrong}")
                continue
            seen.add(row[0])
            name = names.get(Path(row[0]).name if path.suffix == ".json" else row[0])
            if name is None:
                missing.append(row[0])
            else:
                self._add(name, row[1], path.name)
        if missing and path.suffix != ".json":  # kohya's tables name the pictures of several folders
            self.problems.append(
                f"{path.name} names what is not there: {few(sorted(missing))}; mend or remove these rows"
            )


_WANTED = {
    ".jsonl": 'it must be {"file_name": "00.jpg", "text": "a photo of ..."}',
    ".csv": "it must have the columns file_name and text, and both in each row",
    ".json": 'it must be {"00.jpg": {"caption": "a photo of ..."}}',
}
Rows = list[tuple[str, "tuple[str, str] | None"]]


@dataclass(frozen=True)
class Caption:
    """A row of metadata.jsonl or metadata.csv, of which other programs write and read more."""

    file_name: str
    text: str


@dataclass(frozen=True)
class Entry:
    """What kohya's tables say of a picture."""

    caption: str | None = None
    tags: str | None = None


def _pair(name: str, text: str) -> tuple[str, str] | None:
    return (name, text) if text.strip() else None


def _json_lines(text: str) -> Rows:
    rows: Rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = typed(parse_json(line, METADATA), Caption, METADATA)
        except UserError:
            row = None
        rows.append((f", line {number}", row and _pair(row.file_name, row.text)))
    return rows


def _csv_rows(text: str) -> Rows:
    try:
        table = list(csv.DictReader(io.StringIO(text)))
    except csv.Error:
        return [("", None)]
    return [
        (f", line {number}", _pair(row.get("file_name") or "", row.get("text") or ""))
        for number, row in enumerate(table, start=2)
    ]


def _json_table(text: str) -> Rows:
    try:
        table = typed(parse_json(text, "the table"), dict[str, Entry], "the table")
    except UserError:
        return [("", None)]
    captions = [(name, entry.caption or entry.tags) for name, entry in table.items()]
    return [(f", {name}", _pair(name, caption)) for name, caption in captions if caption is not None]


def few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
