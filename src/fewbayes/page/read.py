"""Reads run folders and the `experiment.json` that groups them into arms.

Tolerant of what a running, killed or failed training leaves behind: what cannot be read is skipped and said in
`notes`. Writes nothing, knows nothing of pages, and never imports torch.
"""

import contextlib
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import numpy as np

from fewbayes.errors import UserError
from fewbayes.files.decode import Count, each_row, plain_json, read_json, read_yaml, typed
from fewbayes.page.judging import judge
from fewbayes.runs.layout import (
    BEST,
    REFERENCE,
    STAGES,
    Manifest,
    Row,
    SampleRow,
    read_best,
    read_listing,
    sample_folders,
)
from fewbayes.stage.monitor import Stage

WEIGHTS = ("raw", "ema")
SIMILARITY = "image_similarity"
NOISE = "haar_noise"
CORRUPTION = "corruption"


@dataclass(frozen=True)
class Curve:
    """One metric of one run: rising steps and their finite values."""

    steps: np.ndarray
    values: np.ndarray

    def __bool__(self) -> bool:
        return len(self.steps) > 0

    def at(self, step: int) -> float | None:
        found = np.flatnonzero(self.steps == step)
        return float(self.values[found[0]]) if len(found) else None


EMPTY = Curve(np.array([], dtype=int), np.array([]))


@dataclass(frozen=True)
class Look:
    """A row of stages.jsonl: what the stage monitor said. seen: of this look alone; stage: with those before it."""

    step: Count
    stage: Stage
    seen: Stage | None = None
    scores: dict[str, float | None] = field(default_factory=dict)
    cause: str | None = None
    evidence: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Run:
    """One training. `pictures` is keyed by (step, "raw" | "ema"); `samples` tells of each picture file what the
    sampler recorded: prompt, seed, sampler, steps, guidance, and the picture's own scores. looks: what the stage
    monitor said of each step, by weights; of weights that it did not watch, what it says of their pictures. watched:
    whether it did look during training. best: the step that best/ holds."""

    name: str
    path: Path
    seed: int | None
    config: dict[str, Any]
    manifest: dict[str, Any]
    curves: dict[tuple[str, str], Curve]
    pictures: dict[tuple[int, str], list[Path]]
    samples: dict[Path, SampleRow]
    references: list[Path]
    looks: dict[str, list[Look]]
    watched: bool
    best: int | None
    notes: list[str] = field(default_factory=list)

    def curve(self, metric: str, weights: str = "raw") -> Curve:
        return self.curves.get((metric, weights), EMPTY)


@dataclass(frozen=True, eq=False)
class Arm:
    """Runs that differ in their seed only."""

    name: str
    label: str
    note: str
    runs: list[Run]

    def has(self, weights: str) -> bool:
        return any(key[1] == weights for run in self.runs for key in (*run.curves, *run.pictures))


@dataclass(frozen=True)
class Experiment:
    """What a report shows."""

    folder: Path
    title: str
    subject: str
    question: str
    summary: list[str]
    provenance: dict[str, Any]
    arms: list[Arm]
    notes: list[str]
    single: bool = False

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def several(self) -> bool:
        """Whether any arm was trained with several seeds."""
        return any(len(arm.runs) > 1 for arm in self.arms)

    @property
    def references(self) -> list[Path]:
        return next((run.references for run in self.runs if run.references), [])

    @property
    def weights(self) -> list[str]:
        return [weights for weights in WEIGHTS if any(arm.has(weights) for arm in self.arms)]


class ListedArm(TypedDict):
    """An arm of experiment.json; runs: their folders, seen from the experiment's."""

    name: NotRequired[str | None]
    label: NotRequired[str | None]
    note: NotRequired[str | None]
    runs: NotRequired[list[str] | None]


class Listed(TypedDict):
    """experiment.json."""

    arms: list[ListedArm]
    title: NotRequired[str | None]
    subject: NotRequired[str | None]
    question: NotRequired[str | None]
    summary: NotRequired[str | list[str] | None]
    provenance: NotRequired[dict[str, Any] | None]


def read_experiment(folder: Path) -> Experiment:
    """An experiment folder (with `experiment.json`) or a single run folder."""
    folder = Path(folder)
    if (folder / "experiment.json").is_file():
        return _read_grouped(folder)
    if _is_run(folder):
        return _read_single(folder)
    raise UserError(
        f"{folder} holds neither an experiment.json nor a run (config.yaml, manifest.json, metrics.jsonl); "
        "give the output folder of a training or of an experiment."
    )


def _is_run(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("metrics.jsonl", "manifest.json", "config.yaml"))


def _read_grouped(folder: Path) -> Experiment:
    listed = read_json(folder / "experiment.json", Listed, cure='it is not readable as {"arms": [...]}')
    notes: list[str] = []
    read = [_read_arm(folder, arm, notes) for arm in listed["arms"]]
    if not any(arm.runs for arm in read):
        raise UserError(f"{folder / 'experiment.json'} names no run folder that exists in {folder}.")
    summary = listed.get("summary") or []
    return Experiment(
        folder=folder,
        title=str(listed.get("title") or folder.name),
        subject=str(listed.get("subject") or ""),
        question=str(listed.get("question") or ""),
        summary=[str(line) for line in ([summary] if isinstance(summary, str) else summary)],
        provenance=_mapping(listed.get("provenance")),
        arms=read,
        notes=notes + _uneven(read),
    )


def _read_arm(folder: Path, arm: ListedArm, notes: list[str]) -> Arm:
    label = str(arm.get("label") or arm.get("name") or "arm")
    runs = []
    for name in arm.get("runs") or []:
        if _is_run(folder / str(name)):
            runs.append(read_run(folder / str(name), str(name)))
            notes.extend(runs[-1].notes)
        else:
            notes.append(f"{label}: run folder {name} is missing and left out.")
    return Arm(str(arm.get("name") or label), label, str(arm.get("note") or ""), runs)


def _read_single(folder: Path) -> Experiment:
    run = read_run(folder, folder.resolve().name)
    subject = Path(str(run.config.get("instance_data_dir") or folder.resolve().name)).name
    label = "Bayesian" if run.config.get("bayes") else "Plain"
    return Experiment(
        folder=folder,
        title=run.name,
        subject=subject,
        question=str(run.config.get("instance_prompt") or ""),
        summary=[],
        provenance={},
        arms=[Arm("run", label, "", [run])],
        notes=list(run.notes),
        single=True,
    )


def _uneven(arms: list[Arm]) -> list[str]:
    """Runs whose curve stops before the longest one: their numbers are of what they have."""
    last = {run.name: int(run.curve(SIMILARITY).steps[-1]) for arm in arms for run in arm.runs if run.curve(SIMILARITY)}
    furthest = max(last.values(), default=0)
    return [
        f"{name} stops at step {step}, the longest run at {furthest}; its numbers are of what it has, "
        "and the mean of its arm is drawn only as far as all its seeds go."
        for name, step in last.items()
        if step < furthest
    ]


def read_run(folder: Path, name: str | None = None) -> Run:
    """One run folder, whole or torn."""
    name = name or folder.name
    notes: list[str] = []
    config = _mapping(_load(folder / "config.yaml", name, notes))
    manifest = _mapping(_load(folder / "manifest.json", name, notes))
    status = manifest.get("status")
    if status not in (None, "done"):
        notes.append(f"{name}: the training is recorded as {status}, not as done.")
    curves = _read_curves(folder / "metrics.jsonl", name, notes)
    drawn = sample_folders(folder)
    pictures, references = _find_pictures(drawn), sorted((folder / REFERENCE).glob("*.png"))
    looks: dict[str, list[Look]] = {}
    for weights in WEIGHTS:
        if found := judge(pictures, references, weights):
            values = np.array([each.scores["corruption"] for each in found])
            curves[CORRUPTION, weights] = Curve(np.array([each.step for each in found]), values)
            looks[weights] = [
                Look(e.step, e.stage, e.seen, dict(e.scores), e.cause, e.evidence, e.options) for e in found
            ]
    rows = [replace(row, seen=row.seen or row.stage) for row in each_row(folder / STAGES, Look) if row]
    exported = "ema" if config.get("export_weights") == "ema" else "raw"
    if rows or config.get("monitor_steps"):  # one voice: where the monitor looks, nobody judges before it does
        looks[exported] = sorted(rows, key=lambda look: look.step)
    return Run(
        name=name,
        path=folder,
        seed=_seed(config, manifest, name),
        config=config,
        manifest=manifest,
        curves=curves,
        pictures=pictures,
        samples=_read_samples(drawn),
        references=references,
        looks=looks,
        watched=bool(rows),
        best=best.step if (best := read_best(folder / BEST)) else None,
        notes=notes,
    )


def _mapping(value: object) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, dict) else {}


def _load(path: Path, run: str, notes: list[str]) -> object:
    if not path.is_file():
        notes.append(f"{run}: {path.name} is missing.")
        return None
    try:
        if path.suffix == ".yaml":
            return read_yaml(path, dict[str, Any])
        value = plain_json(path)
        typed(value, Manifest, str(path))  # as it is: the page shows all that a manifest says
        return value
    except UserError:
        notes.append(f"{run}: {path.name} is not readable.")
        return None


def _seed(config: dict[str, Any], manifest: dict[str, Any], name: str) -> int | None:
    for value in (config.get("seed"), manifest.get("seed")):
        if isinstance(value, int):
            return value
    found = re.search(r"seed[-_]?(\d+)", name)
    return int(found[1]) if found else None


def _read_curves(path: Path, run: str, notes: list[str]) -> dict[tuple[str, str], Curve]:
    """A later row replaces an earlier one of the same step; rows that are torn or not numbers are counted and left."""
    rows: dict[tuple[str, str], dict[int, float]] = {}
    torn = 0
    for row in each_row(path, Row):
        if row is None:
            torn += 1
            continue
        value = float("nan") if row["value"] is None else row["value"]
        rows.setdefault((row["metric"], row.get("weights") or "raw"), {})[row["step"]] = value
    if not rows:
        notes.append(f"{run}: no metrics were written.")
    if torn:
        notes.append(f"{run}: {torn} torn {'row' if torn == 1 else 'rows'} of metrics.jsonl left out.")
    for (metric, weights), values in rows.items():  # before the first step the averaged weights are the raw ones
        if weights == "ema" and 0 in (raw := rows.get((metric, "raw"), {})):
            values.setdefault(0, raw[0])
    return {key: curve for key, values in rows.items() if (curve := _finite(values, key, run, notes))}


def _finite(values: dict[int, float], key: tuple[str, str], run: str, notes: list[str]) -> Curve:
    steps = sorted(step for step, value in values.items() if np.isfinite(value))
    if len(steps) < len(values):
        notes.append(
            f"{run}: {len(values) - len(steps)} of {len(values)} values of {key[0]} ({key[1]}) are not finite."
        )
    return Curve(np.array(steps, dtype=int), np.array([values[step] for step in steps], dtype=float))


def _find_pictures(drawn: dict[int, Path]) -> dict[tuple[int, str], list[Path]]:
    pictures: dict[tuple[int, str], list[Path]] = {}
    for step, folder in drawn.items():
        for weights in WEIGHTS:
            if files := sorted((folder / weights).glob("*.png")):
                pictures[step, weights] = files
    if any(weights == "ema" for _, weights in pictures) and (0, "raw") in pictures:
        pictures.setdefault((0, "ema"), pictures[0, "raw"])
    return pictures


def _read_samples(drawn: dict[int, Path]) -> dict[Path, SampleRow]:
    """Rows of every samples.json by picture; a torn one is left out."""
    read: dict[Path, SampleRow] = {}
    for folder in drawn.values():
        with contextlib.suppress(UserError):
            read |= {folder / row.file: row for row in read_listing(folder)}
    return read
