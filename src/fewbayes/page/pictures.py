"""Which sample pictures a page embeds, and in what form, so that the page stays small enough to send.

Pillow only. Pictures stay lossless PNG; those wider than `LARGEST` are reduced and the page says so.
"""

import base64
import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image

from fewbayes.page.read import NOISE, SIMILARITY, Arm, Experiment, Run
from fewbayes.page.summary import WEIGHT_NAMES, run_stages

LARGEST = 256
BUDGET = 5_000_000
FEWEST_STEPS = 7


@dataclass(frozen=True)
class Picture:
    """A picture ready for an <img>: `width` and `height` are its own pixels as embedded."""

    uri: str
    width: int
    height: int
    reduced_from: tuple[int, int] | None


@dataclass(frozen=True)
class Cell:
    """One picture of the strip with its own scores, where the sampler recorded them."""

    step: int
    picture: Picture | None
    similarity: float | None
    noise: float | None
    in_stage: bool


@dataclass(frozen=True)
class Row:
    arm: Arm
    index: int
    weights: str
    weights_name: str
    cells: list[Cell]


@dataclass(frozen=True)
class Panel:
    """One film strip: every arm at one training seed, one of its sample pictures."""

    seed: int
    picture: int
    rows: list[Row]


@dataclass(frozen=True)
class Strip:
    """All film strips of a page, with what was left out to keep the page small."""

    seeds: list[str]
    pictures: list[str]
    steps: list[int]
    panels: list[Panel]
    notes: list[str]


def embed(path: Path) -> Picture | None:
    """None when the file is not a readable picture: a killed training may leave half of one."""
    try:
        status = path.stat()
    except OSError:
        return None
    return _embed(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4096)
def _embed(path: Path, *_version: int) -> Picture | None:
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None
    size = image.size
    if max(size) > LARGEST:
        image.thumbnail((LARGEST, LARGEST), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/png;base64,{data}", *image.size, reduced_from=size if size != image.size else None)


def film_strip(experiment: Experiment, budget: int = BUDGET) -> Strip:
    """Strips for as many seeds and pictures as `budget` bytes hold; first pictures go, then steps, then seeds."""
    seeds = _seed_keys(experiment)
    most = max((len(files) for run in experiment.runs for files in run.pictures.values()), default=0)
    steps = sorted({step for run in experiment.runs for step, _ in run.pictures})
    kept_seeds, kept_pictures, kept_steps = seeds, most, steps

    def size() -> int:
        panels = [(seed, n) for seed in kept_seeds for n in range(kept_pictures)]
        return sum(_panel_bytes(experiment, seed, n, kept_steps) for seed, n in panels)

    while kept_pictures > 1 and size() > budget:
        kept_pictures -= 1
    while len(kept_steps) > FEWEST_STEPS and size() > budget:
        kept_steps = _spread(steps, len(kept_steps) - 1)
    while len(kept_seeds) > 1 and size() > budget:
        kept_seeds = kept_seeds[:-1]
    while len(kept_steps) > 2 and size() > budget:
        kept_steps = _spread(steps, len(kept_steps) - 1)
    notes = [
        f"shown: {kept} of {whole} {what}"
        for kept, whole, what in (
            (kept_pictures, most, "pictures per checkpoint"),
            (len(kept_steps), len(steps), "checkpoints"),
            (len(kept_seeds), len(seeds), "training seeds"),
        )
        if kept < whole
    ]
    return Strip(
        seeds=[f"seed {seed}" if not isinstance(seed, tuple) else f"run {seed[0] + 1}" for seed in kept_seeds],
        pictures=[_picture_name(experiment, n) for n in range(kept_pictures)],
        steps=kept_steps,
        panels=[
            Panel(i, n, _rows(experiment, seed, n, kept_steps))
            for i, seed in enumerate(kept_seeds)
            for n in range(kept_pictures)
        ],
        notes=notes,
    )


def _seed_keys(experiment: Experiment) -> list:
    """Seeds that pair the arms; positions instead, as (position,), where runs do not tell their seeds apart."""
    seeds = [[run.seed for run in arm.runs] for arm in experiment.arms]
    if any(None in row or len(set(row)) < len(row) for row in seeds):
        return [(i,) for i in range(max(len(row) for row in seeds))]
    return sorted({seed for row in seeds for seed in row if seed is not None})


def _run_of(arm: Arm, key: object) -> Run | None:
    if isinstance(key, tuple):
        return arm.runs[key[0]] if key[0] < len(arm.runs) else None
    return next((run for run in arm.runs if run.seed == key), None)


def _spread(steps: list[int], count: int) -> list[int]:
    """First, last and evenly between."""
    chosen = {round(i * (len(steps) - 1) / (count - 1)) for i in range(count)}
    return [steps[i] for i in sorted(chosen)]


def _file(run: Run | None, step: int, weights: str, n: int) -> Path | None:
    files = run.pictures.get((step, weights), []) if run else []
    return files[n] if n < len(files) else None


def _panel_bytes(experiment: Experiment, key: object, n: int, steps: list[int]) -> int:
    files = [
        _file(_run_of(arm, key), step, weights, n)
        for arm in experiment.arms
        for weights in WEIGHT_NAMES
        for step in steps
    ]
    return sum(len(picture.uri) for file in files if file and (picture := embed(file)))


def _rows(experiment: Experiment, key: object, n: int, steps: list[int]) -> list[Row]:
    rows = []
    for index, arm in enumerate(experiment.arms):
        run = _run_of(arm, key)
        for weights, name in WEIGHT_NAMES.items():
            if arm.has(weights):
                stages = run_stages(run, weights) if run else []
                cells = [_cell(run, step, weights, n, stages) for step in steps]
                rows.append(Row(arm, index, weights, name, cells))
    return rows


def _cell(run: Run | None, step: int, weights: str, n: int, stages: list[tuple[int, int]]) -> Cell:
    file = _file(run, step, weights, n)
    if run is None:
        return Cell(step, None, None, None, False)
    recorded = run.samples.get(file, {}) if file else {}
    return Cell(
        step,
        embed(file) if file else None,
        _score(recorded.get(SIMILARITY)),
        _score(recorded.get(NOISE)),
        any(first <= step <= last for first, last in stages),
    )


def _score(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def _picture_name(experiment: Experiment, n: int) -> str:
    """The sample's number and, where recorded, its prompt."""
    files = (files[n] for run in experiment.runs for files in run.pictures.values() if n < len(files))
    rows = (run.samples[file] for file in files for run in experiment.runs if file in run.samples)
    prompt = next((str(row["prompt"]) for row in rows if row.get("prompt")), "")
    return f"{n + 1}: {prompt}" if prompt else str(n + 1)
