"""Reads the files of an evaluation, or of a study of several.

An evaluation is a folder with metrics.jsonl, a row for each number, and images.jsonl, a row for each picture and
metric; a study has a study.json beside them, which names arms and subjects and says how the pictures were sampled. What
cannot be read is left out, and said in `notes`. Computes nothing, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

from fewbayes.data.images import FORMATS
from fewbayes.errors import UserError
from fewbayes.files.decode import each_row, read_json
from fewbayes.metrics.layout import FACTS, IMAGES, METRICS, PictureRow, Row
from fewbayes.metrics.statistics import Units, grouped

Kind = TypeVar("Kind", Row, PictureRow)

BAYES_SUFFIX = "-bayes"
ONE_ARM = "samples"
ALL = "all subjects"
STUDY = "study.json"
POOLED = " (pooled)"
"""What is added to the name of a line whose numbers are over the pictures of all subjects together."""


@dataclass(frozen=True)
class Arm:
    """against: the arm that this one is compared with, at the same subject and seed."""

    name: str
    label: str
    against: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A sample with its own scores. nearest: name of the training image of the highest correlation of pixels."""

    file: Path
    subject: str
    arm: str
    seed: int
    prompt: str
    scores: Mapping[str, float]
    nearest: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """units: of each mode, of each metric, of each line: an arm, or an extra row ("real", "base", ...). encoders: the
    names of those that made a metric in a mode. absent: metrics that have no number anywhere, with the reason that was
    given. pooled: the number of subjects whose pictures are together in the lines that are pooled."""

    folder: Path
    title: str
    question: str
    arms: tuple[Arm, ...]
    subjects: tuple[str, ...]
    units: Mapping[str, Mapping[str, Mapping[str, Units]]]
    encoders: Mapping[tuple[str, str], tuple[str, ...]]
    pictures: tuple[Picture, ...]
    references: Mapping[str, tuple[Path, ...]]
    facts: Mapping[str, Any]
    absent: Mapping[str, str]
    pooled: int = 0
    notes: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(mode for mode in ("sound", "paper") if mode in self.units)

    def encoder(self, mode: str, metric: str) -> str:
        """The encoder's own name, " and " between several; empty for what needs none."""
        return " and ".join(self.encoders.get((mode, metric), ()))


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds rows of an evaluation rather than those of a training, which have steps."""
    if (folder / STUDY).is_file():
        return True
    first = islice(filter(None, each_row(folder / METRICS, dict[str, Any])), 5)
    return any({"metric", "mode"} <= row.keys() and "step" not in row for row in first)


def read_evaluation(folder: Path) -> Evaluation:
    """An evaluation or a study; a UserError where there is neither."""
    folder = Path(folder)
    if not is_evaluation(folder):
        raise UserError(f"{folder} holds no evaluation (rows of metric, value and mode in metrics.jsonl)")
    facts = _facts(folder)
    everything, torn = _rows(folder / METRICS, Row)
    images, torn_images = _rows(folder / IMAGES, PictureRow)
    rows, nameless = _named(everything)
    units = _units(rows)
    subjects = tuple(sorted({str(row.subject) for row in rows if row.value is not None and not _pooled(row)}))
    pictures = tuple(_pictures(_place(folder, str(facts.get("pictures") or "")), _named(images)[0]))
    lost = [picture.file for picture in pictures if not picture.file.is_file()]
    notes = [
        f"{torn} torn rows of metrics.jsonl left out." if torn else "",
        *_said(facts),
        f"{nameless} rows that name no subject, among others that do, left out." if nameless else "",
        *_mixed(rows),
        f"{torn_images} torn rows of images.jsonl left out." if torn_images else "",
        f"{len(lost)} of {len(pictures)} pictures could not be opened, {lost[0]} for one." if lost else "",
    ]
    return Evaluation(
        folder=folder,
        title=str(facts.get("title") or f"Evaluation of {Path(str(facts.get('source') or folder.resolve())).name}"),
        question=str(facts.get("question") or ""),
        arms=_arms(rows, facts),
        subjects=subjects,
        units=units,
        encoders=_encoders(rows),
        pictures=pictures,
        references=_references(folder, facts, subjects),
        facts=facts,
        absent=_absent(everything, units),
        pooled=len({picture.subject for picture in pictures} | set(subjects)),
        notes=tuple(note for note in notes if note),
    )


# --- rows -------------------------------------------------------------------------------------------------------------


def _rows(path: Path, kind: type[Kind]) -> tuple[list[Kind], int]:
    """Every row but the means over subjects, which are made here, with intervals; and how many are torn."""
    found = list(each_row(path, kind))
    rows = [row for row in found if row and not (isinstance(row, Row) and row.average == "macro")]
    return rows, found.count(None)


def _line(row: Row | PictureRow) -> str:
    """Of the table: an arm by its name, or an extra row by its kind."""
    return (row.arm or ONE_ARM) if _of_arm(row) else str(row.row)


def _of_arm(row: Row | PictureRow) -> bool:
    return row.row in (None, "samples")


def _pooled(row: Row | PictureRow) -> bool:
    """Over the pictures of all subjects together, which is no subject of its own."""
    return isinstance(row, Row) and row.average == "micro"


def _named(rows: Sequence[Kind]) -> tuple[list[Kind], int]:
    """Rows with the subject that they are of, and how many numbers lack one.

    Where no row names any, all are of one subject; where one is named, the others are of that one; where several are,
    rows without a name are of none of them.
    """
    known = {row.subject for row in rows if row.subject}
    alone = None if len(known) > 1 else next(iter(known), "subject")
    rows = [replace(row, subject=row.subject or (ALL if _pooled(row) else alone)) for row in rows]
    return [row for row in rows if row.subject], sum(not row.subject and row.value is not None for row in rows)


def _units(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, dict[tuple[str, int], float | None]]]]:
    """mode -> metric -> line -> (subject, seed) -> value; the last of equal keys stands."""
    units: dict[str, dict[str, dict[str, dict[tuple[str, int], float | None]]]] = {}
    for row in rows:
        lines = units.setdefault(row.mode, {}).setdefault(row.metric, {})
        lines.setdefault(_line(row) + POOLED * _pooled(row), {})[str(row.subject), row.seed or 0] = row.value
    return units


def _encoders(rows: Iterable[Row]) -> dict[tuple[str, str], tuple[str, ...]]:
    found = grouped(((row.mode, row.metric), str(row.encoder)) for row in rows if row.encoder and row.value is not None)
    return {key: tuple(dict.fromkeys(names)) for key, names in found.items()}


def _mixed(rows: Iterable[Row]) -> list[str]:
    """Columns whose numbers come from several encoders, or several weights under one name, and do not compare."""
    made = (row for row in rows if row.encoder and row.value is not None)
    found = grouped(((row.metric, row.mode), (str(row.encoder_sha256 or row.encoder), row.encoder)) for row in made)
    return [
        f"DO NOT COMPARE the numbers of {metric} ({mode} mode): they come from {len(dict(marks))} encoders, "
        f"{', '.join(f'{name} ({mark[:12]})' for mark, name in sorted(dict(marks).items()))}."
        for (metric, mode), marks in found.items()
        if len(dict(marks)) > 1
    ]


def _absent(rows: Iterable[Row], units: Mapping[str, Mapping[str, Mapping[str, Units]]]) -> dict[str, str]:
    """Metrics without a number in any mode, with the first reason found."""
    known = {
        metric
        for metrics in units.values()
        for metric, lines in metrics.items()
        if any(map(has_number, lines.values()))
    }
    reasons: dict[str, str] = {}
    for row in rows:
        if row.metric not in known:
            reasons.setdefault(row.metric, row.reason or "no reason was given")
    return reasons


def has_number(units: Units) -> bool:
    return any(value is not None for value in units.values())


# --- the rest ---------------------------------------------------------------------------------------------------------


def _facts(folder: Path) -> dict[str, Any]:
    """study.json, or the evaluation's own account of itself."""
    for name in (STUDY, FACTS, "manifest.json"):
        try:
            return read_json(folder / name, dict[str, Any])
        except UserError:
            continue
    return {}


def _said(facts: Mapping[str, Any]) -> list[str]:
    """What the evaluation or the study says that one should know."""
    counts = facts.get("counts")
    bad = {
        name: n
        for name, n in (counts.items() if isinstance(counts, dict) else ())
        if name.startswith(("black", "unreadable")) and n
    }
    missing = _listed(facts, "missing")
    partial = "This evaluation is partial: writing it was cut off. Give its command again."
    return [
        *([partial] if facts.get("partial") else []),
        *map(str, _listed(facts, "notes")),
        *(f"{name}: {n}, counted and not scored." for name, n in bad.items()),
        *([f"trainings that did not come to their end: {', '.join(map(str, missing))}."] if missing else []),
    ]


def _listed(facts: Mapping[str, Any], key: str) -> list[Any]:
    found = facts.get(key)
    return found if isinstance(found, list) else []


def _named_tables(facts: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    """The arms or subjects that study.json lists; what has no name is left out."""
    return [each for each in _listed(facts, key) if isinstance(each, dict) and isinstance(each.get("name"), str)]


def _arms(rows: Iterable[Row], facts: Mapping[str, Any]) -> tuple[Arm, ...]:
    """As study.json lists them; else by name, each `x-bayes` against its `x`."""
    if listed := _named_tables(facts, "arms"):
        return tuple(
            Arm(
                a["name"],
                str(a.get("label") or a["name"]),
                str(a.get("against") or "") or None,
                str(a.get("note") or ""),
            )
            for a in listed
        )
    names = list(dict.fromkeys(_line(row) for row in rows if _of_arm(row)))
    plain = {name: name.removesuffix(BAYES_SUFFIX) for name in names if name.endswith(BAYES_SUFFIX)}
    against = {name: control for name, control in plain.items() if control in names}
    return tuple(Arm(name, "Samples" if name == ONE_ARM else name, against.get(name)) for name in names)


def _pictures(root: Path, rows: Iterable[PictureRow]) -> Iterable[Picture]:
    """One Picture a file, its scores gathered from its rows. Files of a study are named from its folder, those of an
    evaluation from the folder that it scored."""
    kept = (row for row in rows if row.file and row.metric != "unreadable")
    gathered = grouped(((str(row.subject), _line(row), row.seed or 0, row.file), row) for row in kept)
    for (subject, arm, seed, file), its in sorted(gathered.items()):
        scores = {row.metric: row.value for row in its if row.value is not None}
        prompt = next((row.prompt for row in its if row.prompt), "")
        nearest = next((row.reference for row in its if row.metric == "nearest_ncc"), None)
        yield Picture(root / file, subject, arm, seed, prompt, scores, nearest)


def _references(folder: Path, facts: Mapping[str, Any], subjects: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The training images of each subject, where study.json or the evaluation says that they lie."""
    listed, where = _named_tables(facts, "subjects"), facts.get("reference_dir")
    if listed:
        return {s["name"]: _images(folder, str(s["references"])) for s in listed if s.get("references")}
    if not isinstance(where, str):
        return {}
    return {name: _images(folder, f"{where}/{name}") or _images(folder, where) for name in subjects}


def _images(folder: Path, where: str) -> tuple[Path, ...]:
    """The pictures of a folder, in the order of their names."""
    place = _place(folder, where)
    return tuple(sorted(p for p in place.iterdir() if p.suffix.lower() in FORMATS)) if place.is_dir() else ()


def _place(folder: Path, where: str) -> Path:
    """A folder that an evaluation names from its own place or from where it was made, which lies above it as a rule."""
    around = [folder, *folder.resolve().parents, Path()]
    return next((above / where for above in around if (above / where).is_dir()), Path(where))
