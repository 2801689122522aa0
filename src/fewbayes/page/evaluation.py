"""Reads the rows of an evaluation, or of a study of methods, and turns them into estimates and comparisons.

An evaluation is a folder with metrics.jsonl in long form (and images.jsonl with a row per picture and metric); a study
has a study.json beside them, which names arms, subjects and how the pictures were sampled. What cannot be read is left
out and said in `notes`. Draws nothing, writes nothing, and never imports torch.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbayes.data.images import FORMATS
from fewbayes.errors import UserError
from fewbayes.metrics.statistics import FEWEST_SUBJECTS, Comparison, Estimate, Units, compare, holm, interval, reading

BAYES_SUFFIX = "-bayes"
ONE_ARM = "samples"
ALL = "all subjects"
STUDY = "study.json"
ALPHA = 0.05
POOLED = " (pooled)"
"""What is added to the name of a line whose numbers are over the pictures of all subjects together."""


@dataclass(frozen=True)
class Measure:
    """better: 1 where more is better, -1 where less is, 0 where neither is. says: what it measures, in a sentence."""

    key: str
    title: str
    better: int = 0
    digits: int = 3
    says: str = ""


FIVE = (
    Measure("clip_t", "Clip-T", 1, 3, "cosine of the picture and its prompt"),
    Measure("dino", "Dino", 1, 3, "cosine of sample and training image, all pairs, by a self-supervised encoder"),
    Measure("clip_i", "Clip-I", 1, 3, "the same by the image half of the text encoder's model"),
    Measure("lpips", "Lpips", 1, 3, "perceptual distance among the pictures of one prompt: more is more diverse"),
    Measure("clip_iqa", "Clip-IQA", 1, 3, "which of two sentences, of a good and of a bad photo, suits the picture"),
)
"""The metrics of the paper's tables, in its order."""
COMPANY = (
    Measure("clip_t_class", "Clip-T, no token", 1, 3, "Clip-T with the rare token left out of the prompt"),
    Measure("dinov2", "DINOv2", 1, 3, "as Dino, by its successor"),
    Measure("dino_nearest", "Dino, nearest", 0, 3, "Dino with the likest training image alone"),
    Measure("nearest_ncc", "Nearest training image", 0, 3, "correlation of pixels with the nearest one; 1 is a copy"),
    Measure("sscd", "SSCD", 0, 3, "likeness to the nearest training image by a detector of copies"),
    Measure("sscd_copies", "SSCD copies", -1, 3, "share of samples that this detector takes for copies"),
    Measure("vendi", "Vendi score", 0, 2, "effective number of different pictures among those of a prompt"),
    Measure("noise_ratio", "Relative noise", 0, 2, "noise over that of the base model's pictures of the same seeds"),
    Measure("drift", "Drift", -1, 3, "how far pictures of prompts without the rare token moved from the base model's"),
    Measure(
        "pres", "Leak", -1, 3, "Dino of pictures whose prompts lack the rare token: the subject where none was asked"
    ),
    Measure("black", "Black", -1, 3, "share of pictures that are black; they are counted, and not scored"),
)
LIKENESS = frozenset({"dino", "clip_i", "dinov2", "dino_nearest", "nearest_ncc", "sscd"})
"""Metrics of likeness to the training images: there, what these have among themselves is a ceiling."""
ROWS = {
    "real": "Real against real",
    "base": "Base model",
    "noise": "Pure noise",
    "copies": "Copies of the training images",
    "shuffled": "Samples of other subjects",
}
"""Rows beside the arms, by the `row` key of metrics.jsonl, with what a table calls them."""


@dataclass(frozen=True)
class Arm:
    """against: the arm that this one is compared with, at the same subject and seed."""

    name: str
    label: str
    against: str | None = None
    note: str = ""


@dataclass(frozen=True)
class Picture:
    """A sample with its own scores. nearest: name of the training image of the highest correlation of pixels, where
    the evaluation says so."""

    file: Path
    subject: str
    arm: str
    seed: int
    prompt: str
    scores: Mapping[str, float]
    nearest: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """units: of each mode, of each metric, of each arm or extra row ("real", "base", ...)."""

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
    """Metrics that have no number anywhere, with the reason that was given."""
    pooled: int = 0
    """Number of subjects whose pictures are together in the lines that are pooled."""
    notes: tuple[str, ...] = ()

    @property
    def modes(self) -> tuple[str, ...]:
        return tuple(mode for mode in ("sound", "paper") if mode in self.units)

    def measured(self, mode: str, measures: Sequence[Measure]) -> list[Measure]:
        """Those of the measures that any line has a number for."""
        known = self.units[mode]
        return [
            m for m in measures if any(v is not None for line in known.get(m.key, {}).values() for v in line.values())
        ]

    def encoder(self, mode: str, metric: str) -> str:
        """The encoder's own name, " and " between several; empty for what needs none."""
        return " and ".join(self.encoders.get((mode, metric), ()))


@dataclass(frozen=True)
class Line:
    """A row of the table: an arm, or an extra row of ROWS."""

    name: str
    label: str
    kind: str
    cells: Mapping[str, Estimate]


@dataclass(frozen=True)
class Difference:
    """`treated` less `control` in every metric; `holm` is p adjusted over the metrics of this row."""

    treated: Arm
    control: Arm
    cells: Mapping[str, Comparison]
    holm: Mapping[str, float | None]
    per_subject: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)


@dataclass(frozen=True)
class Table:
    mode: str
    measures: list[Measure]
    lines: list[Line]
    differences: list[Difference]
    caption: str


# reading


def is_evaluation(folder: Path) -> bool:
    """Whether a folder holds rows of an evaluation rather than those of a training, which have steps."""
    if (folder / STUDY).is_file():
        return True
    return any(
        "metric" in row and "mode" in row and "step" not in row for row in _rows(folder / "metrics.jsonl")[0][:5]
    )


def read_evaluation(folder: Path) -> Evaluation:
    """An evaluation or a study; a UserError where there is neither."""
    folder = Path(folder)
    if not is_evaluation(folder):
        raise UserError(f"{folder} holds no evaluation (rows of metric, value and mode in metrics.jsonl)")
    rows, torn = _rows(folder / "metrics.jsonl")
    rows = [row for row in rows if row.get("average") != "macro"]  # made here, with intervals
    facts = _facts(folder)
    notes = [f"{torn} torn rows of metrics.jsonl left out."] if torn else []
    notes += _said(facts)
    everything = rows
    rows, nameless = _named(rows)
    notes += [f"{nameless} rows that name no subject, among others that do, left out."] if nameless else []
    notes += _mixed(rows)
    of_one = [row for row in rows if row.get("value") is not None and not _pooled(row)]
    subjects = tuple(sorted({row["subject"] for row in of_one}))
    arms = _arms(rows, facts)
    units = _units(rows)
    pictures = tuple(_pictures(folder, facts, notes))
    notes += _not_there(pictures)
    return Evaluation(
        folder=folder,
        title=str(facts.get("title") or f"Evaluation of {folder.resolve().name}"),
        question=str(facts.get("question") or ""),
        arms=arms,
        subjects=subjects,
        units=units,
        encoders=_encoders(rows),
        pictures=pictures,
        references=_references(folder, facts, subjects),
        facts=facts,
        pooled=len({picture.subject for picture in pictures} | set(subjects)),
        absent=_absent(everything, units),
        notes=tuple(notes),
    )


def _rows(path: Path) -> tuple[list[dict[str, Any]], int]:
    """Rows that are objects with a metric, and how many lines are not."""
    found, torn = [], 0
    for line in path.read_text("utf-8", errors="replace").splitlines() if path.is_file() else []:
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if isinstance(row, dict) and isinstance(row.get("metric"), str):
            found.append(row)
        else:
            torn += bool(line.strip())
    return found, torn


def _facts(folder: Path) -> dict[str, Any]:
    """study.json, or the evaluation's own account of itself."""
    for name in (STUDY, "evaluation.json", "manifest.json"):
        try:
            found = json.loads((folder / name).read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict):
            return found
    return {}


def _said(facts: Mapping[str, Any]) -> list[str]:
    """What the evaluation or the study says that one should know."""
    counts, missing = facts.get("counts") or {}, facts.get("missing") or []
    bad = {name: n for name, n in counts.items() if name.startswith(("black", "unreadable")) and n}
    return [
        *map(str, facts.get("notes") or []),
        *(f"{name}: {n}, counted and not scored." for name, n in bad.items()),
        *([f"trainings that did not come to their end: {', '.join(missing)}."] if missing else []),
    ]


def _pooled(row: Mapping[str, Any]) -> bool:
    """Whether a value is over the pictures of all subjects together, which is no subject of its own."""
    return row.get("average") == "micro"


def _named(rows: Iterable[Mapping[str, Any]]) -> tuple[list[dict[str, Any]], int]:
    """Rows with the subject that they are of, and how many numbers lack one.

    Where no row names any, all are of one subject; where one is named, the others are of that one; where several are,
    rows without a name are of none of them.
    """
    rows = list(rows)
    known = {str(row["subject"]) for row in rows if row.get("subject")}
    alone = "subject" if not known else next(iter(known)) if len(known) == 1 else None
    found, nameless = [], 0
    for row in rows:
        if name := row.get("subject") or (ALL if _pooled(row) else alone):
            found.append({**row, "subject": str(name)})
        else:
            nameless += row.get("value") is not None
    return found, nameless


def _mixed(rows: Iterable[Mapping[str, Any]]) -> list[str]:
    """Columns whose numbers come from several encoders, or several weights under one name, and do not compare."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for row in rows:
        if row.get("encoder") and row.get("value") is not None:
            mark = str(row.get("encoder_sha256") or row["encoder"])
            found.setdefault((row["metric"], str(row.get("mode") or "sound")), {})[mark] = str(row["encoder"])
    return [
        f"DO NOT COMPARE the numbers of {metric} ({mode} mode): they come from {len(marks)} encoders, "
        f"{', '.join(f'{name} ({mark[:12]})' for mark, name in sorted(marks.items()))}."
        for (metric, mode), marks in found.items()
        if len(marks) > 1
    ]


def _line(row: Mapping[str, Any]) -> str:
    """Which line of the table a row belongs to: an arm by its name, an extra row by its kind."""
    kind = str(row.get("row") or "samples")
    return str(row.get("arm") or ONE_ARM) if kind == "samples" else kind


def _arms(rows: Iterable[Mapping[str, Any]], facts: Mapping[str, Any]) -> tuple[Arm, ...]:
    """As study.json lists them; else by name, each `x-bayes` against its `x`."""
    listed = facts.get("arms")
    if isinstance(listed, list):
        return tuple(
            Arm(str(arm["name"]), str(arm.get("label") or arm["name"]), arm.get("against"), str(arm.get("note") or ""))
            for arm in listed
        )
    names = list(dict.fromkeys(_line(row) for row in rows if str(row.get("row") or "samples") == "samples"))
    plain = {name: name.removesuffix(BAYES_SUFFIX) for name in names if name.endswith(BAYES_SUFFIX)}
    return tuple(Arm(name, "Samples" if name == ONE_ARM else name, _known(plain.get(name), names)) for name in names)


def _known(name: str | None, names: Sequence[str]) -> str | None:
    return name if name in names else None


def _units(rows: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, dict[tuple[str, int], float | None]]]]:
    """mode -> metric -> line -> (subject, seed) -> value; the last of equal keys stands."""
    units: dict[str, dict[str, dict[str, dict[tuple[str, int], float | None]]]] = {}
    for row in rows:
        value = row.get("value")
        into = units.setdefault(str(row.get("mode") or "sound"), {}).setdefault(row["metric"], {})
        key = (str(row["subject"]), int(row.get("seed") or 0))
        into.setdefault(_line(row) + POOLED * _pooled(row), {})[key] = (
            float(value) if isinstance(value, int | float) else None
        )
    return units


def _encoders(rows: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], tuple[str, ...]]:
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row.get("encoder") and row.get("value") is not None:
            found.setdefault((str(row.get("mode") or "sound"), row["metric"]), {})[str(row["encoder"])] = None
    return {key: tuple(names) for key, names in found.items()}


def _absent(rows: Iterable[Mapping[str, Any]], units: Mapping) -> dict[str, str]:
    """Metrics without a number in any mode, with the first reason found."""
    known = {
        metric
        for metrics in units.values()
        for metric, lines in metrics.items()
        if any(value is not None for line in lines.values() for value in line.values())
    }
    reasons: dict[str, str] = {}
    for row in rows:
        if row["metric"] not in known:
            reasons.setdefault(row["metric"], str(row.get("reason") or "no reason was given"))
    return reasons


def _pictures(folder: Path, facts: Mapping[str, Any], notes: list[str]) -> list[Picture]:
    """One Picture a file, its scores gathered from its rows. Files of a study are named from its folder, those of an
    evaluation from the folder that it scored."""
    root = _place(folder, str(facts.get("pictures") or ""))
    rows, torn = _rows(folder / "images.jsonl")
    rows, _ = _named(row for row in rows if row["metric"] != "unreadable")
    if torn:
        notes.append(f"{torn} torn rows of images.jsonl left out.")
    gathered: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        if not row.get("file"):
            continue
        key = (row["subject"], _line(row), int(row.get("seed") or 0), str(row["file"]))
        entry = gathered.setdefault(key, {"prompt": "", "scores": {}, "nearest": None})
        entry["prompt"] = str(row.get("prompt") or entry["prompt"])
        if row["metric"] == "nearest_ncc":
            entry["nearest"] = row.get("reference")
        if isinstance(row.get("value"), int | float):
            entry["scores"][row["metric"]] = float(row["value"])
    return [
        Picture(root / file, subject, arm, seed, entry["prompt"], entry["scores"], entry["nearest"])
        for (subject, arm, seed, file), entry in sorted(gathered.items())
    ]


def _not_there(pictures: Sequence[Picture]) -> list[str]:
    lost = [picture.file for picture in pictures if not picture.file.is_file()]
    return [f"{len(lost)} of {len(pictures)} pictures could not be opened, {lost[0]} for one."] if lost else []


def _references(folder: Path, facts: Mapping[str, Any], subjects: Sequence[str]) -> dict[str, tuple[Path, ...]]:
    """The training images of each subject, where study.json or the evaluation says that they lie."""
    listed = facts.get("subjects")
    if isinstance(listed, list):
        return {str(s["name"]): _images(folder, str(s["references"])) for s in listed if s.get("references")}
    where = facts.get("reference_dir")
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


# numbers


def make_table(evaluation: Evaluation, mode: str, measures: Sequence[Measure] = FIVE) -> Table:
    """Estimates of every line, differences of every arm that is compared with another."""
    units = evaluation.units[mode]
    shown = evaluation.measured(mode, measures)
    named = dict.fromkeys(ROWS, "row") | {arm.name: "arm" for arm in evaluation.arms}
    present = {line for m in shown for line in units[m.key]}
    labels = ROWS | {arm.name: arm.label for arm in evaluation.arms}
    labels |= {
        f"{name}{POOLED}": f"{label}, pooled over {_count(evaluation.pooled, 'subject')}"
        for name, label in labels.items()
    }
    order = [*(name for name in ROWS if name != "real"), *(arm.name for arm in evaluation.arms), "real"]
    extra = sorted(present - named.keys())
    lines = [
        Line(
            name,
            labels.get(name, name),
            named.get(name, "row"),
            {m.key: interval(units[m.key].get(name, {})) for m in shown},
        )
        for name in [*order[:-1], *extra, "real"]
        if name in present
    ]
    return Table(mode, shown, lines, _differences(evaluation, units, shown), caption(evaluation, mode, shown))


def _differences(
    evaluation: Evaluation, units: Mapping[str, Mapping[str, Units]], shown: Sequence[Measure]
) -> list[Difference]:
    by_name = {arm.name: arm for arm in evaluation.arms}
    found = []
    for arm in evaluation.arms:
        control = by_name.get(arm.against or "")
        if control is None:
            continue
        cells = {
            m.key: compare(units[m.key].get(arm.name, {}), units[m.key].get(control.name, {}), better=m.better or 1)
            for m in shown
        }
        per_subject = {m.key: _per_subject(units[m.key], arm.name, control.name) for m in shown}
        adjusted = holm({key: cell.p for key, cell in cells.items()})
        found.append(Difference(arm, control, cells, adjusted, per_subject))
    return found


def _per_subject(lines: Mapping[str, Units], treated: str, control: str) -> dict[str, Estimate]:
    """Each subject's mean difference with the interval over its own seeds."""
    ours, theirs = lines.get(treated, {}), lines.get(control, {})
    subjects = sorted({subject for subject, _ in ours.keys() & theirs.keys()})

    def of(units: Units, subject: str) -> dict[tuple[str, int], float | None]:
        return {key: value for key, value in units.items() if key[0] == subject}

    return {subject: compare(of(ours, subject), of(theirs, subject)).difference for subject in subjects}


def extent(evaluation: Evaluation, mode: str) -> tuple[int, int]:
    """Number of subjects and of trainings (subject, seed) that any arm was measured on."""
    arms = {arm.name for arm in evaluation.arms}
    keys = {
        key
        for lines in evaluation.units[mode].values()
        for name, units in lines.items()
        if name in arms
        for key, value in units.items()
        if value is not None
    }
    return len({subject for subject, _ in keys}), len(keys)


def caption(evaluation: Evaluation, mode: str, shown: Sequence[Measure]) -> str:
    """What was measured, by which encoders under their own names, over how many trainings."""
    by: dict[str, list[str]] = {}
    for m in shown:
        by.setdefault(evaluation.encoder(mode, m.key) or "no encoder", []).append(m.title)
    encoders = "; ".join(f"{', '.join(titles)} by {name}" for name, titles in by.items())
    own = any(name.startswith("fewbayes-") for m in shown for name in evaluation.encoders.get((mode, m.key), ()))
    units_of = evaluation.units[mode]
    subjects, units = extent(evaluation, mode)
    how = "all pairs, nothing dropped silently"
    if mode == "paper":
        how = "the authors' averaging, quirks included"
    if mode == "paper" and subjects > 1:
        how = "the authors' averaging within each subject, quirks included; macro over subjects"
    mean = (
        f"Macro mean over {_count(subjects, 'subject')}, with its 95 % interval. {reading(subjects, units)}"
        if subjects
        else f"One number over the pictures of {_count(evaluation.pooled, 'subject')} together."
    )
    real = [
        m.title
        for m in shown
        if m.key in LIKENESS and any(name.startswith("real") for name in _with_number(m, units_of))
    ]
    return (
        " ".join(
            [
                f"{encoders} ({mode} mode: {how}).",
                "The encoders called fewbayes- were trained on the embedded world: their numbers compare with one "
                "another and with no published table."
                if own
                else "",
                mean,
                f"Real against real is a ceiling in {', '.join(real)}, and none in other columns." if real else "",
            ]
        )
        .replace("  ", " ")
        .rstrip()
    )


def _with_number(measure: Measure, units: Mapping[str, Mapping[str, Units]]) -> list[str]:
    """The lines that have a number of a metric."""
    return [
        name for name, line in units.get(measure.key, {}).items() if any(value is not None for value in line.values())
    ]


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def verdict(table: Table) -> list[str]:
    """One line a comparison: which intervals lie off zero, of whom that speaks, and what is left of it after Holm's
    adjustment."""
    return [f"{row.treated.label} less {row.control.label}: {_told(row, table.measures)}." for row in table.differences]


def _told(row: Difference, measures: Sequence[Measure]) -> str:
    sides: dict[str, list[str]] = {"above": [], "below": [], "across": []}
    for m in measures:
        found = row.cells[m.key].difference
        if found.low is not None and found.high is not None:
            sides["above" if found.low > 0 else "below" if found.high < 0 else "across"].append(m.title)
    if not any(sides.values()):
        return "too few trainings for an interval"
    said = [f"interval {side} zero in {', '.join(titles)}" for side, titles in sides.items() if titles]
    return "; ".join([*said, _sure(row, measures)])


def _sure(row: Difference, measures: Sequence[Measure]) -> str:
    """What the tests add, and of whom they and the intervals speak."""
    subjects = max(cell.difference.subjects for cell in row.cells.values())
    if 1 < subjects < FEWEST_SUBJECTS:
        least = 2.0 ** (1 - subjects)
        return f"this speaks of these {subjects} subjects, over which no p can fall below {least:.2g}"
    sure = [m.title for m in measures if (p := row.holm[m.key]) is not None and p < ALPHA]
    said = f"p below {ALPHA} after Holm's adjustment in {', '.join(sure) or 'none of them'}"
    return said if subjects > 1 else f"{said}; this speaks of this one subject"
