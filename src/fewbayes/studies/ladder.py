"""Jitter or path: is a fall of likeness the noise of single gradients, or on the way of the mean weights, more so as
models grow? Sizes of one recipe, rates in units of Stable Diffusion's own step, batches of 1 and 8, raw and averaged.

A subject has one training image, and the likeness is the correlation of the pictures with it, which holds for
photographs too; Dino's likeness stands beside it for drawn subjects.

    OUT/ladder.json                     all trainings; what table and picture are made of
    OUT/<subject>/<arm>-seed<k>/        a training, its pictures and its curves
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import inf
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.metrics.pixels import image_similarity
from fewbayes.metrics.statistics import Estimate, differences, interval
from fewbayes.models import inspect_model
from fewbayes.page.look import colours, save, style
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import REFERENCE, sample_folders
from fewbayes.settings.config import TrainConfig
from fewbayes.studies import study
from fewbayes.studies.course import WEIGHTS
from fewbayes.studies.flags import StudyFlags, asked
from fewbayes.studies.followed import gather, named, settings_of
from fewbayes.studies.grid import Arm, Training, grid, run, taught, train
from fewbayes.studies.memo import remember, rounded
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import drawn, encoders_of, open_pictures, pixels
from fewbayes.world.scenes import ALL_SUBJECTS

NAME = "ladder"
STEP = 5e-6 * 23040
"""The recommended rate of Stable Diffusion 1.5 times its largest fan-in, 3 x 3 x 2,560: a model's own step is this over
its own largest fan-in, with which the change of an answer by a step of Adam grows."""
CELLS = ((1.0, 1, 1), (6.0, 1, None), (20.0, 1, None), (20.0, 8, 1))
"""(factor of that step, batch, how many of the seeds; None for all)."""
EVERY, PICTURES, DECAY = 50, 4, 0.98
"""Steps between looks; pictures of a look; decay of the averages."""
NOTHING, LEAST_DIP, REMOVED, KEPT = 0.03, 0.05, 0.7, 0.3
"""A slope per doubling that counts as none; the least raw dip whose removal is asked; the share removed from which on
it is jitter, and below which it is not."""


@dataclass(frozen=True, kw_only=True)
class LadderFlags(StudyFlags):
    output_dir: Path = Path("runs/ladder")
    sisters: tuple[str, ...] = setting((), several=True, value="MODEL")
    """Other sizes of the model (recipes/ladder.py makes one)."""
    seeds: int = setting(2, at_least=1)
    steps: int = setting(400, at_least=EVERY)
    """Of each training."""
    num_inference_steps: int = setting(8, at_least=1)
    redraw: Path | None = None
    """A kept file of results, whose table and picture are made again; nothing is trained."""


@study(
    "ladder", "jitter or path: whether the averaged weights dip more in larger models; rates in Stable Diffusion's step"
)
def run_ladder(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its table and its picture."""
    flags = asked(LadderFlags, arguments, NAME, __doc__)
    file = flags.redraw or gather(
        flags.output_dir / f"{NAME}.json",
        {"settings": {"steps": flags.steps, "every": EVERY, "sampler_steps": flags.num_inference_steps}},
        run(cells(flags), looked_at, flags.workers),
    )
    told = read_json(file, dict[str, Any])
    atomic_write(file.with_suffix(".md"), tables(told))
    with style():
        return [file, file.with_suffix(".md"), save(draw(told), file.with_suffix(".png"))]


def cells(flags: LadderFlags) -> list[Training]:
    """Batches of one first, which cost least, and seed by seed: what is there can be compared whenever it stops."""
    places = {flags.output_dir / s.name: s.first(1) for s in flags.study_subjects()}
    arms: dict[str, tuple[Arm, int]] = {}
    for model in (flags.model, *flags.sisters):
        weights, fan_in = _size(model)
        for factor, batch, seeds in CELLS:
            name = f"{weights / 1e6:.2f}M-x{factor:g}-b{batch}"
            changes = {"model": model, "learning_rate": factor * STEP / fan_in, "train_batch_size": batch}
            arms[name] = Arm(name, f"{weights / 1e6:.2f} M, {factor:g} x", changes), seeds or flags.seeds
    every = grid(places, lambda s: _settings(flags, s), [arm for arm, _ in arms.values()], range(flags.seeds))
    made = [cell for cell in every if cell.seed < arms[cell.arm.name][1]]
    return sorted(made, key=lambda cell: cell.config.train_batch_size)


def _settings(flags: LadderFlags, subject: StudySubject) -> TrainConfig:
    return taught(
        subject,
        model=flags.model,
        max_train_steps=flags.steps,
        use_ema=True,
        ema_decay=DECAY,
        checkpointing_steps=0,
        validation_steps=EVERY,
        monitor_steps=EVERY,
        num_validation_images=PICTURES,
        num_inference_steps=flags.num_inference_steps,
    )


@cache
def _size(model: str) -> tuple[int, int]:
    """Weights of the denoiser, and the largest number of inputs that one of its outputs has."""
    from fewbayes.models import load_family

    weights = list(load_family(model).denoiser.parameters())
    return sum(w.numel() for w in weights), max(w[0].numel() for w in weights if w.dim() > 1)


def looked_at(cell: Training) -> dict[str, Any]:
    """Trained, and its pictures compared with the training image; found again where nothing has changed."""
    model = cell.config.model
    made_of = {"settings": settings_of(cell.config), "model": inspect_model(model).fingerprint()}
    factor = cell.config.learning_rate * _size(model)[1] / STEP if cell.config.learning_rate else None
    about = named(cell) | {"weights": _size(model)[0], "factor": factor, "batch": cell.config.train_batch_size}
    return remember(cell.folder / f"{NAME}.json", made_of, lambda: rounded(about | _looks(cell)))


def _looks(cell: Training) -> dict[str, Any]:
    if failure := train(cell):
        return {"failed": failure}
    from fewbayes.metrics.scores import fidelity

    references = open_pictures(cell.folder / REFERENCE)
    dino = encoders_of("embedded")["dino"] if cell.subject.name in ALL_SUBJECTS else None
    jitter = {row["step"]: row["value"] for row in RunFolder(cell.folder).metrics() if row["metric"] == "jitter"}
    rows = []
    for step, folder in sample_folders(cell.folder).items():
        row: dict[str, Any] = {"step": step, "jitter": jitter.get(step)}
        for weights in WEIGHTS if step else ("raw",):  # before the first step both are one
            pictures, _ = drawn(folder, weights)
            row[weights] = {"correlation": image_similarity(pixels(pictures), pixels(references))}
            if dino:
                row[weights]["dino"] = fidelity(dino.images(pictures), dino.images(references)).mean
        rows.append({"ema": row["raw"]} | row)
    return {"rows": rows}


# --- what it says -----------------------------------------------------------------------------------------------------

Falls = Mapping[tuple[str, int], float]
"""A dip of each subject and seed."""


class Key(NamedTuple):
    """What trainings are compared in. weights: of the model."""

    weights: int
    factor: float
    batch: int


def dip(values: Sequence[float]) -> float:
    """The deepest fall from the highest value before it, 0 or more."""
    curve = np.asarray(values, dtype=float)
    return float((np.maximum.accumulate(curve) - curve).max())


def dips(told: Mapping[str, Any], weights: str, quantity: str = "correlation") -> dict[Key, Falls]:
    """Of every training whose curve is known, by what it is compared in."""
    found: dict[Key, dict[tuple[str, int], float]] = {}
    for cell in told["cells"]:
        if quantity in cell["rows"][0][weights]:
            fall = dip([row[weights][quantity] for row in cell["rows"]])
            found.setdefault(_key(cell), {})[cell["subject"], cell["seed"]] = fall
    return dict(sorted(found.items()))


def _key(cell: Mapping[str, Any]) -> Key:
    return Key(cell["weights"], round(cell["factor"], 3), cell["batch"])


def level(falls: Falls) -> Estimate:
    """Over subjects; no dip is below 0."""
    return interval(falls, within=(0, inf))


def slope(by_size: Mapping[int, Falls]) -> Estimate:
    """Of a number per doubling of the weights: least squares within each subject and seed that all sizes have."""
    doublings = np.log2(list(by_size))
    shared = set.intersection(*(set(units) for units in by_size.values()))
    if len(by_size) < 2:
        return Estimate(None, None, None, 0, 0)
    return interval(
        {unit: float(np.polyfit(doublings, [units[unit] for units in by_size.values()], 1)[0]) for unit in shared}
    )


def path(found: Estimate) -> str:
    """The registered word for a slope of averaged dips."""
    if found.mean is None or found.low is None or found.high is None:
        return "open"
    if abs(found.mean) < NOTHING:
        return "firm null" if found.low > -NOTHING and found.high < NOTHING else "null"
    return "grows" if found.low > 0 else "open"


@dataclass(frozen=True)
class Removal:
    """What a remedy takes away of a dip: the difference, and its share of the dip without it."""

    difference: Estimate
    share: float | None


def removal(before: Falls, after: Falls) -> Removal:
    """Over the trainings that both have."""
    both = before.keys() & after.keys()
    less, whole = interval(differences(before, after)), level({unit: before[unit] for unit in both}).mean
    return Removal(less, less.mean / whole if less.mean is not None and whole else None)


def cause(raw: Estimate, removals: Iterable[Removal]) -> str:
    """The registered word for a raw dip and what averaging and a larger batch take away of it."""
    if raw.mean is None or raw.mean < LEAST_DIP:
        return f"raw dip below {LEAST_DIP:g}"
    each = [(one.share or 0, one.difference.low or 0) for one in removals]
    if any(share < KEPT for share, _ in each):
        return "not jitter"
    return "jitter" if all(share >= REMOVED and low > 0 for share, low in each) else "in part"


def tables(told: Mapping[str, Any]) -> str:
    """All trainings by size, rate and batch; then the two registered rules."""
    raw, averaged = dips(told, "raw"), dips(told, "ema")
    dino = {weights: dips(told, weights, "dino") for weights in WEIGHTS}
    rows: list[list[Entry]] = []
    for key, units in raw.items():
        its = [cell for cell in told["cells"] if _key(cell) == key]
        last = [_mean(cell["rows"][-1][weights]["correlation"] for cell in its) for weights in WEIGHTS]
        noise = _mean(row["jitter"] for cell in its for row in cell["rows"] if row["jitter"] is not None)
        falls = [level(dino[weights][key]).mean if key in dino[weights] else None for weights in WEIGHTS]
        entries: list[Entry] = [level(units), level(averaged[key]), *last, noise, *falls]
        rows.append([_millions(key.weights), f"{key.factor:g}", str(key.batch), str(len(its)), *entries])
    heads = ("weights", "rate, in steps of SD 1.5", "batch", "trainings")
    numbers = ("raw dip", "averaged dip", "last correlation, raw", "averaged", "loss, raw over averaged")
    numbers += ("raw dip of Dino, drawn subjects", "averaged")
    parts = [
        "# Jitter or path: sizes of one recipe, rates in Stable Diffusion's own step",
        f"`{told['provenance']['command']}`",
        "Dip: the deepest fall of the pictures' correlation with the training image. 95 % intervals over subjects.",
        markdown(Table([*map(Column, heads), *(Column(name, 3) for name in numbers)], rows)),
        "## Path: slope of the dip per doubling of weights, batch 1",
    ]
    rows = []
    for factor in sorted({key.factor for key in raw if key.batch == 1}):
        both = [slope({k.weights: f for k, f in of.items() if k[1:] == (factor, 1)}) for of in (averaged, raw)]
        rows.append([f"{factor:g}", *(Value(one, sign=True) for one in both), path(both[0])])
    slopes = [Column("rate"), Column("averaged", 3), Column("raw", 3), Column("by the rule")]
    parts += [markdown(Table(slopes, rows)), "## Jitter: what takes the raw dip of batch 1 away"]
    rows, many = [], max(key.batch for key in raw)
    for key, before in [(key, falls) for key, falls in raw.items() if key.batch == 1]:
        larger = raw.get(key._replace(batch=many), {}) if many > 1 else {}
        found = [removal(before, averaged[key]), *([removal(before, larger)] if larger else [])]
        shown = [entry for one in found for entry in (Value(one.difference, sign=True), one.share)]
        shown += [None] * (4 - len(shown))
        words = cause(level(before), found) if larger else "open: no larger batch"
        rows.append([_millions(key.weights), f"{key.factor:g}", level(before), *shown, str(len(larger)), words])
    columns = [Column("weights"), Column("rate"), Column("raw dip", 3)]
    for words in ("averaging", "the larger batch"):
        columns += [Column(f"less by {words}", 3), Column("share, %", 0, percent=True)]
    columns += [Column("subjects with it"), Column("by the rule")]
    return "\n\n".join([*parts, markdown(Table(columns, rows))]) + "\n"


def _mean(values: Iterable[float]) -> float | None:
    return float(np.mean(found)) if (found := list(values)) else None


def _millions(weights: int) -> str:
    return f"{weights / 1e6:.2f} M"


def draw(told: Mapping[str, Any]) -> Figure:
    """A panel for each rate and size: the curve of every training, averaged weights bold, one colour a subject."""
    keys = sorted({_key(cell) for cell in told["cells"]})
    sizes = sorted({key.weights for key in keys})
    ways = sorted({(key.batch, key.factor) for key in keys})
    figure = Figure(figsize=(1.2 + 2.6 * len(ways), 0.9 + 2.3 * len(sizes)), layout="constrained")
    panels = figure.subplots(len(sizes), len(ways), sharex=True, sharey=True, squeeze=False)
    subjects = list(dict.fromkeys(cell["subject"] for cell in told["cells"]))
    colour = dict(zip(subjects, colours(len(subjects)), strict=True))
    for cell in told["cells"]:
        key, steps = _key(cell), [row["step"] for row in cell["rows"]]
        axes = panels[sizes.index(key.weights)][ways.index((key.batch, key.factor))]
        for weights, width in (("raw", 0.8), ("ema", 2.0)):
            values = [row[weights]["correlation"] for row in cell["rows"]]
            label = cell["subject"].replace("_", " ") if weights == "ema" else None
            axes.plot(steps, values, color=colour[cell["subject"]], label=label, linewidth=width)
    for column, (batch, factor) in zip(panels.T, ways, strict=True):
        next(axes for axes in column if axes.lines).set_title(
            f"{factor:g} x SD's step" + f", batch {batch}" * (batch > 1), fontsize=10
        )
    for axes, size in zip(panels[:, 0], sizes, strict=True):
        axes.set_ylabel(f"{_millions(size)}\ncorrelation", fontsize=9)
    for axes in panels[-1]:
        axes.set_xlabel("training steps, bold: averaged weights", fontsize=9)
    for axes in panels.flat:
        axes.set_visible(bool(axes.lines))
    known = dict(zip(*reversed(panels[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(known.values(), known.keys(), loc="outside lower center", ncols=len(known), frameon=False)
    return figure
