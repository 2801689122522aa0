"""What removes the corruption stage: Bayesian weights, a lower rate, averages, a pull to the start, dropout, more
sampler steps, or a learned rare token? Same pictures, timesteps, noise and sampling seeds in every arm.

Averaged weights, the mean of the last checkpoints and more sampler steps are measured in every arm, on the same
trainings. Written are `remedies.json` with every number, tables, curves, and for each subject a strip of samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.metrics.statistics import Estimate, differences, finite, interval, reading
from fewbayes.page.look import FAINT, colours, empty, save, style
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.studies import study
from fewbayes.studies.course import (
    MEASURES,
    PROMPT_FREE,
    WEIGHED,
    WEIGHTS,
    Along,
    at_same,
    counted,
    measures,
    share_compared,
    subjects_of,
    weighed,
)
from fewbayes.studies.flags import asked
from fewbayes.studies.followed import CHECKPOINTS, FollowedFlags, follow, trainings
from fewbayes.studies.grid import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "remedies"
QUESTION = (
    "In a regime with a corruption stage that lasts: what shortens it, what softens it, and is it more than what a "
    "lower rate or averaged weights give?"
)
STDS = {"full": (0.01, 0.03, 0.1), "lora": (0.01, 0.1, 0.3, 1.0)}
"""Standard deviations by method, the paper's first. Full: of trained weights that spread by 0.03 to 0.07 themselves;
LoRA: of up matrices that begin at zero."""
FIXED = {"full": 0.03, "lora": 0.3}
PULLS = {"full": (10.0,), "lora": (10.0, 40.0)}


def arms(rate: float, method: str) -> dict[str, Arm]:
    """The first is what the others are compared with."""

    def arm(name: str, label: str, note: str, **changes: Any) -> Arm:
        return Arm(name, label, {"learning_rate": rate} | changes, note)

    def bayesian(std: float) -> Arm:
        note = f"standard deviation {std:g}, learned elementwise, no divergence in the loss"
        return arm(f"bayes-{std:g}", f"Bayesian, {std:g}", note, bayes=True, weight_std=std)

    def pulled(weight: float) -> Arm:
        note = f"each step takes {weight:g} x rate of the distance to the initial weights away"
        return arm(f"l2-{weight:g}", f"Pull to the start, {weight:g}", note, l2_init_weight=weight)

    std, slow = FIXED[method], rate / 4
    noise: dict[str, Any] = {"bayes": True, "weight_std": std}
    fixed = noise | {"weight_std_learn": "fixed"}
    if method == "full":
        relative = {"bayes": True, "weight_std": 0.3, "weight_std_mode": "relative"}
        note = "standard deviation 0.3 of each weight matrix's own spread, learned elementwise"
        last = arm("relative", "Bayesian, 0.3 of the spread", note, **relative)
    else:  # up matrices of a LoRA have no spread to be relative to
        token = {"train_rare_token": True, "text_encoder_lr": 4 * rate}
        last = arm("token", "Rare token learned", f"its embedding trained too, at {4 * rate:g}", **token)
    chosen = [
        arm("plain", "Plain", f"AdamW at {rate:g}"),
        *map(bayesian, STDS[method]),
        arm("fixed", f"Fixed noise, {std:g}", "as Bayesian, the deviations not learned", **fixed),
        arm("slow", "Plain, quarter rate", f"AdamW at {slow:g}", learning_rate=slow),
        arm("slow-bayes", f"Bayesian, {std:g}, quarter rate", "both", learning_rate=slow, **noise),
        *map(pulled, PULLS[method]),
        arm("caption-dropout", "Caption dropout", "one example in ten under the empty caption", caption_dropout=0.1),
        arm("dropout", "Dropout", "noise on activations: the denoiser's dropout layers at 0.1", dropout=0.1),
        last,
    ]
    return {arm.name: arm for arm in chosen}


@dataclass(frozen=True, kw_only=True)
class RemediesFlags(FollowedFlags):
    output_dir: Path = Path("runs/remedies")
    method: str = setting("full", choices=("full", "lora"))
    """Of the training that the others are changes of."""
    arms: tuple[str, ...] = setting((), several=True, value="ARM")
    """All without it; a wrong one is answered with the list."""
    fewer_seeds: tuple[str, ...] = setting((), several=True, value="ARM=N")
    """Arms with the first N seeds only."""
    num_images: int = setting(2, at_least=2)
    """Samples per prompt and checkpoint; diversity is between them."""
    monitor_steps: int = setting(0, at_least=0)
    """The stage monitor looks every so many steps, 0 for never."""
    sampler: str | None = None
    """Of the samples. None: the model's usual one."""
    guidance_scale: float = setting(7.5, at_least=0)
    """Of the samples."""
    shown: tuple[str, ...] = setting((), several=True, value="ARM")
    """The arms in the pictures; without it a few of each kind."""


@study("remedies", "what removes the corruption stage: Bayesian weights, lower rates, averages, and other controls")
def run_remedies(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its tables and its pictures."""
    flags = asked(RemediesFlags, arguments, NAME, __doc__)
    file = flags.redraw or _train(replace(flags, seeds=1, steps=20) if flags.quick else flags)
    told = read_json(file, dict[str, Any])
    atomic_write(file.with_suffix(".md"), tables(told))
    known = {arm["name"]: arm for arm in told["arms"]}
    return [file, file.with_suffix(".md"), *draw(told, file, _named(flags.shown, known) or shown(told))]


def _train(flags: RemediesFlags) -> Path:
    subjects = flags.study_subjects()
    base = flags.settings(
        use_ema=True,
        checkpointing_steps=flags.steps // CHECKPOINTS,
        num_validation_images=flags.num_images,
        sampler=flags.sampler,
        guidance_scale=flags.guidance_scale,
        monitor_steps=flags.monitor_steps,
    )
    known = arms(flags.learning_rate, flags.method)
    chosen = [known[name] for name in _named(list(dict.fromkeys(flags.arms or known)), known)]
    grid = trainings(flags.output_dir, base, subjects, chosen, range(flags.seeds))
    fewer = dict(_arm_and_number(text, known) for text in flags.fewer_seeds)
    cells = [cell for cell in grid if cell.seed < fewer.get(cell.arm.name, flags.seeds)]
    facts = {"title": "What removes the corruption stage", "question": QUESTION, "settings": base, "against": "plain"}
    return follow(cells, flags, NAME, facts)


def _named(names: Sequence[str], known: Mapping[str, Any]) -> Sequence[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is not among the arms {', '.join(known)}")
    return names


def _arm_and_number(text: str, known: Mapping[str, Arm]) -> tuple[str, int]:
    arm, _, number = text.rpartition("=")
    if not number.isdecimal():
        raise UserError(f"--fewer_seeds {text!r} is not ARM=N, as in dropout=2")
    return _named([arm], known)[0], int(number)


# --- numbers ----------------------------------------------------------------------------------------------------------

Weighted = tuple[str, str]
"""An arm's name and whose weights: raw, ema, or the mean of the last checkpoints, or with more sampler steps."""
Units = dict[tuple[str, int], dict[str, Any]]
"""What was measured of each training."""
EXTRA = {"mean_of_last": "mean of the last 5 checkpoints", "more_steps": "raw, four times the sampler's steps"}
KINDS = WEIGHTS | EXTRA
FAR = {"corruption": "corruption score", "fidelity": "Dino", "quality": "quality"}
"""What arms are compared in where they have come equally far."""
CONTROLS = ("plain", "slow", "l2-10", "l2-40", "token")
"""What Bayesian training is held against beyond plain training of the same weights."""
CONTRASTED = ("usable", "corrupted", "best", "fidelity", "quality", "diversity")
SHARE, ANY = (0.0, 1.0), (-inf, inf)
"""Where an interval must end: a share is between none and all."""


def by_arm(study: Mapping[str, Any]) -> dict[Weighted, Units]:
    """Measures of every training, by arm and weights; WEIGHED stand beside those of raw weights."""
    table: dict[Weighted, Units] = {}
    for cell in study["cells"]:
        found: dict[str, dict[str, Any]] = {weights: {**measures(cell, weights)} for weights in WEIGHTS}
        found["raw"] |= weighed(cell)
        found |= {kind: {name: cell[kind][name] for name in PROMPT_FREE} for kind in EXTRA if kind in cell}
        for kind, values in found.items():
            table.setdefault((cell["arm"], kind), {})[cell["subject"], cell["seed"]] = values
    return table


def levels(found: Units) -> dict[str, Estimate]:
    """Macro means with intervals of whatever was measured."""
    shares = {name for name, (column, _) in MEASURES.items() if column.percent}
    return {
        name: interval({unit: values[name] for unit, values in found.items()}, within=SHARE if name in shares else ANY)
        for name in next(iter(found.values()))
    }


def leads(treated: Units, control: Units) -> dict[str, Value]:
    """Treated less control, paired by subject and seed; then the pairs on the better side of zero, ties as half."""
    rows = {}
    for name in CONTRASTED:
        mine, its = ({unit: values[name] for unit, values in found.items()} for found in (treated, control))
        less, better = differences(mine, its), MEASURES[name][1]
        gains = [better * value for value in finite(less).values()]
        wins = sum(gain > 0 for gain in gains) + sum(gain == 0 for gain in gains) / 2
        rows[name] = Value(interval(less), sign=True, after=f"; {wins:g} of {len(gains)}")
    return rows


def equally_far(along: Along, study: Mapping[str, Any], control: str = "plain") -> dict[str, dict[str, Estimate]]:
    """By arm, the lead in FAR over the control where that had come equally far.

    "compared": the share of checkpoints that had a counterpart. Only trainings whose way was measured.
    """
    plain = {(c["subject"], c["seed"]): c for c in study["cells"] if c["arm"] == control}
    found: dict[str, dict[str, dict[tuple[str, int], float | None]]] = {}
    for cell in study["cells"]:
        unit = (cell["subject"], cell["seed"])
        if cell["arm"] != control and unit in plain:
            rows = found.setdefault(cell["arm"], {name: {} for name in (*FAR, "compared")})
            for name in FAR:
                rows[name][unit] = at_same(along, cell, plain[unit], name)
            rows["compared"][unit] = share_compared(along, cell, plain[unit])
    return {
        arm: {name: interval(units, within=SHARE if name == "compared" else ANY) for name, units in rows.items()}
        for arm, rows in found.items()
    }


# --- words ------------------------------------------------------------------------------------------------------------


def tables(study: Mapping[str, Any]) -> str:
    """The tables in words and Markdown."""
    table, labels = by_arm(study), {arm["name"]: arm["label"] for arm in study["arms"]}
    units = sorted({(cell["subject"], cell["seed"]) for cell in study["cells"]})
    subjects = sorted({subject for subject, _ in units})
    counts = {
        arm: counted(study, its, "arm") for arm in labels if (its := [c for c in study["cells"] if c["arm"] == arm])
    }
    notes = [f"- {arm['label']}: {arm['note']}" for arm in study["arms"]]
    columns = {name: column for name, (column, _) in MEASURES.items()}

    def shown(arms: Sequence[Weighted], columns: Mapping[str, Column]) -> str:
        rows: list[list[Entry]] = []
        for arm, kind in arms:
            values = levels(table[arm, kind])
            rows.append([labels[arm], KINDS[kind], counts[arm], *(values.get(name) for name in columns)])
        return _table(["arm", "weights", "trainings"], list(columns.values()), rows)

    parts = [
        f"{len(study['cells'])} trainings: {len(labels)} arms on {', '.join(subjects)}, "
        f"up to {len({seed for _, seed in units})} seeds. {reading(len(subjects), len(units))} "
        "A difference is followed by the pairs of trainings on the better side of zero, ties as half.",
        "\n".join(notes),
        *_incomplete(study, labels),
        "## Levels\n\nMacro means over subjects, with 95 % intervals where there are several trainings. The last loss "
        "is of the means of the raw weights on the training images, relative to telling nothing, at the same draws "
        "in every arm: the lower, the better they are fitted.\n\n"
        + shown([arm for arm in table if arm[1] in WEIGHTS], columns | WEIGHED),
        "## At the last checkpoint, other weights and more sampler steps\n\n"
        + shown(
            [(arm, kind) for arm in labels for kind in KINDS if (arm, kind) in table],
            {name: columns[name] for name in PROMPT_FREE},
        ),
        "## Against plain training, raw weights\n\n" + _against(table, labels, [("plain", "raw")], table),
        "## Bayesian training against the other remedies\n\n" + _bayesian(table, labels),
        "## At the same distance from the initial weights\n\nLead over plain training that has gone as far, over the "
        "checkpoints that are not farther out than plain training ever was.\n\n"
        + _equally_far("displacement", study, labels),
        "## At the same loss on the training images\n\nLead over plain training whose loss has fallen as far, over the "
        "checkpoints that are not better fitted than plain training ever was; of the trainings whose loss was measured "
        "at every checkpoint.\n\n" + _equally_far("losses", study, labels),
    ]
    return "\n\n".join(parts) + "\n"


def _incomplete(study: Mapping[str, Any], labels: Mapping[str, str]) -> list[str]:
    """A paragraph on arms with fewer trainings than others, and one on trainings that failed, where there are any."""
    lost = study.get("failed", ())
    begun = Counter(cell["arm"] for cell in (*study["cells"], *lost))
    most = max(begun.values())
    fewer = "; ".join(f"{labels[arm]} {count}" for arm, count in begun.items() if count < most)
    said = (
        f"Begun with fewer than {most} trainings: {fewer}. Levels of these are of fewer seeds than the others'; "
        "differences are between trainings of the same subject and seed."
    )
    failed = [f"- {labels[c['arm']]} on {c['subject']}, seed {c['seed']}: {c['failed']}" for c in lost]
    return [said] * bool(fewer) + ["Failed, and in no number below:\n\n" + "\n".join(failed)] * bool(failed)


def _against(
    table: Mapping[Weighted, Units],
    labels: Mapping[str, str],
    controls: Sequence[Weighted],
    treated: Iterable[Weighted],
) -> str:
    treated, rows = list(treated), list[list[Entry]]()
    for control in controls:
        for arm in treated:
            if arm != control and arm in table and control in table and arm[1] in WEIGHTS:
                found = leads(table[arm], table[control])
                words = " less ".join(f"{labels[name]}, {WEIGHTS[weights]}" for name, weights in (arm, control))
                rows.append([words, str(max(value.found.units for value in found.values())), *found.values()])
    return _table(["difference", "trainings"], [MEASURES[name][0] for name in CONTRASTED], rows)


def _bayesian(table: Mapping[Weighted, Units], labels: Mapping[str, str]) -> str:
    """Each standard deviation, so that none is picked after the fact; averaged against averaged."""
    arms = [arm for arm in labels if arm.startswith(("bayes", "fixed", "relative", "slow-bayes"))]
    pieces = [
        _against(table, labels, [(c, w) for c in CONTROLS if (c, w) != ("plain", "raw")], [(arm, w) for arm in arms])
        for w in WEIGHTS
    ]
    crossed = _against(table, labels, [("plain", "ema")], [(arm, "raw") for arm in arms])
    return "\n\n".join(piece for piece in (*pieces, crossed) if piece)


def _equally_far(along: Along, study: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    rows: list[list[Entry]] = [
        [
            labels[arm],
            str(found["corruption"].units),
            *(Value(found[name], sign=True) for name in FAR),
            found["compared"],
        ]
        for arm, found in equally_far(along, study).items()
        if found["corruption"].units
    ]
    shown = [*map(Column, FAR.values()), Column("checkpoints compared, %", 0, percent=True)]
    return _table(["arm", "trainings"], shown, rows) or "Not measured."


def _table(heads: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[Entry]]) -> str:
    return markdown(Table([*map(Column, heads), *columns], rows)) if rows else ""


# --- pictures ---------------------------------------------------------------------------------------------------------

SHOWN = {
    "full": ("plain", "bayes-0.01", "bayes-0.03", "slow", "slow-bayes", "l2-10"),
    "lora": ("plain", "bayes-0.1", "bayes-0.3", "slow", "l2-40", "token"),
}
"""The arms of a picture, of those that were trained; all that were where none of these is among them."""
DRAWN = {"corruption": "corruption score", "fidelity": "fidelity, Dino", "quality": "quality, P(good)"}


def shown(study: Mapping[str, Any]) -> list[str]:
    known = [arm["name"] for arm in study["arms"]]
    return [arm for arm in SHOWN[study["settings"]["method"]] if arm in known] or known


def curves(study: Mapping[str, Any], arms: Sequence[str]) -> Figure:
    """DRAWN over the steps: a column per subject, a line per arm, averaged weights dashed."""
    labels, subjects = {arm["name"]: arm["label"] for arm in study["arms"]}, subjects_of(study)
    figure = empty(2.9 * len(subjects), 2.4 * len(DRAWN) + 0.6)
    axes = figure.subplots(len(DRAWN), len(subjects), sharex=True, sharey="row", squeeze=False)
    for row, (name, words) in zip(axes, DRAWN.items(), strict=True):
        row[0].set_ylabel(words)
        for axis, subject in zip(row, subjects, strict=True):
            cells = [cell for cell in study["cells"] if cell["subject"] == subject]
            for arm, colour in zip(arms, colours(len(arms)), strict=True):
                chosen = [cell for cell in cells if cell["arm"] == arm]
                for weights, line in (("raw", "-"), ("ema", "--")):
                    _curve(axis, chosen, weights, name, colour, line, labels.get(arm))
            if name in cells[0]["training"]:
                axis.axhline(cells[0]["training"][name], color=FAINT, lw=0.8, ls=":")
    for axis, subject in zip(axes[0], subjects, strict=True):
        axis.set_title(subject.replace("_", " "))
    for axis in axes[-1]:
        axis.set_xlabel("training steps")
    lines = {line.get_label(): line for axis in axes.flat for line in axis.get_lines() if line.get_label()[0] != "_"}
    figure.legend(lines.values(), lines, loc="outside lower center", ncols=min(len(arms), 6), frameon=False)
    return figure


def _curve(axis: Any, cells: Sequence[Any], weights: str, name: str, colour: str, line: str, label: str | None) -> None:
    """The mean over seeds, and for raw weights the range of the seeds."""
    if not cells or not cells[0][weights]:
        return
    steps = [row["step"] for row in cells[0][weights]]
    values = np.array([[row[name] for row in cell[weights]] for cell in cells])
    raw = weights == "raw"
    axis.plot(steps, values.mean(0), line, color=colour, lw=1.6 if raw else 1.0, label=label if raw else None)
    if raw:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.10, lw=0)


def strips(study: Mapping[str, Any], folder: Path, subject: str, arms: Sequence[str], seed: int = 0) -> Figure | None:
    """One sample along training, the same prompt and seed in every arm: raw weights, of the first arm averaged too.

    The samples are read from the run folders under `folder`. None where the first arm's are not there; other arms
    that are not there are left out.
    """
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    cells = {c["arm"]: c for c in study["cells"] if c["subject"] == subject and c["seed"] == seed}
    there = {arm: folder / subject / str(cells[arm]["images"]) / f"{arm}-seed{seed}" for arm in arms if arm in cells}
    there = {arm: run / "samples" for arm, run in there.items() if (run / "samples").is_dir()}
    if arms[0] not in there:
        return None
    first = cells[arms[0]]
    rows = [(arms[0], "raw"), *([(arms[0], "ema")] if first["ema"] else []), *((arm, "raw") for arm in [*there][1:])]
    steps = [row["step"] for row in first["raw"]]
    figure = empty(1.05 * len(steps) + 1.9, 1.08 * len(rows) + 0.3)
    axes = figure.subplots(len(rows), len(steps), squeeze=False)
    for line, (arm, weights) in zip(axes, rows, strict=True):
        for axis, step in zip(line, steps, strict=True):
            with Image.open(there[arm] / f"step-{step:06d}" / (weights if step else "raw") / "00.png") as image:
                axis.imshow(image.convert("RGB"))
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.spines[:].set_visible(False)
        words = labels[arm] if weights == "raw" else f"{labels[arm]}, averaged"
        line[0].set_ylabel(words.replace(", ", ",\n"), rotation=0, ha="right", va="center")
    for axis, step in zip(axes[0], steps, strict=True):
        axis.set_title(f"{step}" if step else "base", loc="center", fontweight="normal", fontsize=9)
    return figure


def draw(study: Mapping[str, Any], file: Path, arms: Sequence[str]) -> list[Path]:
    """Beside the results `file`: the curves, and the strips of every subject whose samples are still there."""
    with style():
        drawn = [save(curves(study, arms), file.with_suffix(".png"))]
        for subject in subjects_of(study):
            if found := strips(study, file.parent, subject, arms):
                drawn.append(save(found, file.with_name(f"{file.stem}_{subject}.png"), dots=72))
    return drawn
