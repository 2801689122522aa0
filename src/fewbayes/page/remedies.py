"""The comparison of remedies as tables and a picture: every arm, raw and averaged, and what each gives beyond plain.

Reads the file of `fewbayes experiment remedies` and the samples beside it. The unit is a training, a (subject, seed).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbayes.metrics.statistics import Estimate, bootstrap, compare, finite, reading
from fewbayes.page.trajectories import (
    MEASURES,
    PROMPT_FREE,
    SHARES,
    WEIGHED,
    WEIGHTS,
    Along,
    at_same,
    measures,
    share_compared,
    weighed,
)
from fewbayes.runs.folder import atomic_write

Arm = tuple[str, str]
"""An arm's name and whose weights: raw, ema, or the mean of the last checkpoints, or with more sampler steps."""
EXTRA = {"mean_of_last": "mean of the last 5 checkpoints", "more_steps": "raw, four times the sampler's steps"}
CONTROLS = ("plain", "slow", "l2-10", "l2-40", "token")
"""What Bayesian training is held against beyond plain training of the same weights."""
FAR = {"corruption": "corruption score", "fidelity": "Dino", "quality": "quality"}
"""What arms are compared in where they have come equally far."""
CONTRASTED = ("usable", "corrupted", "best", "fidelity", "quality", "diversity")


def read(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8"))


def by_arm(study: Mapping[str, Any]) -> dict[Arm, dict[tuple[str, int], dict[str, Any]]]:
    """Measures of every training, by arm and weights; WEIGHED stand beside those of raw weights."""
    table: dict[Arm, dict[tuple[str, int], dict[str, Any]]] = {}
    for cell in study["cells"]:
        unit = (cell["subject"], cell["seed"])
        for weights in WEIGHTS:
            also = weighed(cell) if weights == "raw" else {}
            table.setdefault((cell["arm"], weights), {})[unit] = measures(cell, weights) | also
        for kind in EXTRA:
            if kind in cell:
                table.setdefault((cell["arm"], kind), {})[unit] = {name: cell[kind][name] for name in PROMPT_FREE}
    return table


def levels(found: Mapping[tuple[str, int], Mapping[str, Any]]) -> dict[str, Estimate]:
    """Macro means with intervals of whatever was measured."""
    names = next(iter(found.values()))
    return {name: bootstrap({unit: values[name] for unit, values in found.items()}) for name in names}


def leads(
    treated: Mapping[tuple[str, int], Mapping[str, Any]], control: Mapping[tuple[str, int], Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Treated less control, paired by subject and seed; wins: pairs on the better side."""
    rows = {}
    for name in MEASURES:
        if not all(name in values for values in (*treated.values(), *control.values())):
            continue
        mine, its = ({unit: values[name] for unit, values in found.items()} for found in (treated, control))
        found = compare(mine, its, better=MEASURES[name][2])
        paired = [MEASURES[name][2] * (mine[unit] - its[unit]) for unit in finite(mine) if unit in its]
        wins = sum(value > 0 for value in paired) + sum(value == 0 for value in paired) / 2
        rows[name] = {"difference": found.difference, "pairs": len(paired), "wins": wins}
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
            for name in FAR:
                lead = at_same(along, cell, plain[unit], name)
                found.setdefault(cell["arm"], {}).setdefault(name, {})[unit] = lead
            found[cell["arm"]].setdefault("compared", {})[unit] = share_compared(along, cell, plain[unit])
    return {arm: {name: bootstrap(units) for name, units in rows.items()} for arm, rows in found.items()}


def markdown(study: Mapping[str, Any]) -> str:
    """The tables in words and Markdown."""
    table, labels = by_arm(study), {arm["name"]: arm["label"] for arm in study["arms"]}
    units = sorted({(cell["subject"], cell["seed"]) for cell in study["cells"]})
    subjects = sorted({subject for subject, _ in units})
    counts = trainings(study)
    notes = [f"- {arm['label']}: {arm['note']}" for arm in study["arms"]]
    parts = [
        f"{len(study['cells'])} trainings: {len(labels)} arms on {', '.join(subjects)}, "
        f"up to {len({seed for _, seed in units})} seeds. {reading(len(subjects), len(units))} "
        "A difference is followed by the pairs of trainings on the better side of zero, ties as half.",
        "\n".join(notes),
        *_incomplete(study),
        "## Levels\n\nMacro means over subjects, with 95 % intervals where there are several trainings. The last loss "
        "is of the means of the raw weights on the training images, relative to telling nothing, at the same draws "
        "in every arm: the lower, the better they are fitted.\n\n" + _levels(table, counts, labels),
        "## At the last checkpoint, other weights and more sampler steps\n\n" + _extras(table, counts, labels),
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


def write(file: Path) -> Path:
    """The tables beside the results, as Markdown."""
    target = file.with_suffix(".md")
    atomic_write(target, markdown(read(file)))
    return target


def trainings(study: Mapping[str, Any]) -> dict[str, str]:
    """By arm, how many trainings its numbers are of; "n of N" where some of N failed."""
    counts = {}
    for arm in study["arms"]:
        done, lost = (sum(c["arm"] == arm["name"] for c in study.get(kind, ())) for kind in ("cells", "failed"))
        counts[arm["name"]] = f"{done} of {done + lost}" if lost else str(done)
    return counts


def _incomplete(study: Mapping[str, Any]) -> list[str]:
    """A paragraph on arms with fewer trainings than others, and one on trainings that failed, where there are any."""
    lost, labels = study.get("failed", ()), {arm["name"]: arm["label"] for arm in study["arms"]}
    begun = Counter(cell["arm"] for cell in (*study["cells"], *lost))
    most = max(begun.values())
    fewer = "; ".join(f"{labels[arm]} {count}" for arm, count in begun.items() if count < most)
    said = (
        f"Begun with fewer than {most} trainings: {fewer}. Levels of these are of fewer seeds than the others'; "
        "differences are between trainings of the same subject and seed."
    )
    failed = [f"- {labels[c['arm']]} on {c['subject']}, seed {c['seed']}: {c['failed']}" for c in lost]
    return [
        *([said] if fewer else []),
        *(["Failed, and in no number below:\n\n" + "\n".join(failed)] if failed else []),
    ]


def _levels(table: Mapping[Arm, Any], counts: Mapping[str, str], labels: Mapping[str, str]) -> str:
    heads = ["arm", "weights", "trainings", *(_head(name) for name in MEASURES), *WEIGHED.values()]
    rows = []
    for (arm, weights), found in table.items():
        if weights in WEIGHTS:
            values = levels(found)
            shown = [_shown(values[name], name) if name in values else "-" for name in (*MEASURES, *WEIGHED)]
            rows.append([labels[arm], WEIGHTS[weights], counts[arm], *shown])
    return _table(heads, rows)


def _extras(table: Mapping[Arm, Any], counts: Mapping[str, str], labels: Mapping[str, str]) -> str:
    heads = ["arm", "weights", "trainings", *(_head(name) for name in PROMPT_FREE)]
    kinds = WEIGHTS | EXTRA
    rows = []
    for arm in labels:
        for kind, words in kinds.items():
            if (arm, kind) in table:
                values = levels(table[arm, kind])
                rows.append([labels[arm], words, counts[arm], *(_shown(values[name], name) for name in PROMPT_FREE)])
    return _table(heads, rows)


def _against(
    table: Mapping[Arm, Any],
    labels: Mapping[str, str],
    controls: Sequence[Arm],
    treated: Sequence[Arm] | Mapping[Arm, Any],
) -> str:
    heads = ["difference", "trainings", *(_head(name) for name in CONTRASTED)]
    rows = []
    for control in controls:
        for arm in treated:
            if arm != control and arm in table and control in table and arm[1] in WEIGHTS:
                found = leads(table[arm], table[control])
                cells = [_lead(found[name], name) for name in CONTRASTED]
                pairs = str(max(found[name]["pairs"] for name in CONTRASTED))
                rows.append([f"{_named(arm, labels)} less {_named(control, labels)}", pairs, *cells])
    return _table(heads, rows)


def _bayesian(table: Mapping[Arm, Any], labels: Mapping[str, str]) -> str:
    """Each standard deviation, so that none is picked after the fact; averaged against averaged."""
    arms = [arm for arm in labels if arm.startswith(("bayes", "fixed", "relative", "slow-bayes"))]
    pieces = [
        _against(table, labels, [(c, w) for c in CONTROLS if (c, w) != ("plain", "raw")], [(arm, w) for arm in arms])
        for w in WEIGHTS
    ]
    crossed = _against(table, labels, [("plain", "ema")], [(arm, "raw") for arm in arms])
    return "\n\n".join(piece for piece in (*pieces, crossed) if piece)


def _equally_far(along: Along, study: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    rows = [
        [
            labels[arm],
            str(found["corruption"].units),
            *(_shown(found[name], name, signed=True) for name in FAR),
            _shown(found["compared"], "compared"),
        ]
        for arm, found in equally_far(along, study).items()
        if found["corruption"].units
    ]
    return _table(["arm", "trainings", *FAR.values(), "checkpoints compared, %"], rows) or "Not measured."


def _named(arm: Arm, labels: Mapping[str, str]) -> str:
    return f"{labels[arm[0]]}, {(WEIGHTS | EXTRA)[arm[1]]}"


def _head(name: str) -> str:
    words, unit, _ = MEASURES[name]
    return f"{words}, {unit}" if unit else words


def _shown(found: Estimate, name: str, *, signed: bool = False) -> str:
    if found.mean is None:
        return "-"
    many, digits = (100, 0) if name in (*SHARES, "compared") else (1, 2)
    sign = "+" if signed else ""
    mean = f"{many * found.mean:{sign}.{digits}f}"
    if found.low is None or found.high is None:
        return mean
    return f"{mean} ({many * found.low:.{digits}f} to {many * found.high:.{digits}f})"


def _lead(found: Mapping[str, Any], name: str) -> str:
    return f"{_shown(found['difference'], name, signed=True)}; {found['wins']:g} of {found['pairs']}"


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    if not rows:
        return ""
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


# --- pictures ---------------------------------------------------------------------------------------------------------

SHOWN = {
    "full": ("plain", "bayes-0.01", "bayes-0.03", "slow", "slow-bayes", "l2-10"),
    "lora": ("plain", "bayes-0.1", "bayes-0.3", "slow", "l2-40", "token"),
}
DRAWN = {"corruption": "corruption score", "fidelity": "fidelity, Dino", "quality": "quality, P(good)"}
COLOURS = ("#1f1f1f", "#8ecae6", "#1d6fb8", "#e07a1f", "#7d5ba6", "#2a9d5c")


def shown(study: Mapping[str, Any]) -> list[str]:
    """The arms that a picture has room for."""
    known = {arm["name"] for arm in study["arms"]}
    return [arm for arm in SHOWN[study["settings"]["method"]] if arm in known]


def draw_curves(file: Path, picture: Path, arms: Sequence[str] | None = None) -> Path:
    """DRAWN over the steps: a column per subject, a line per arm, averaged weights dashed."""
    from matplotlib.figure import Figure

    study = read(file)
    arms = arms or shown(study)
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    subjects = list(dict.fromkeys(cell["subject"] for cell in study["cells"]))
    figure = Figure(figsize=(2.9 * len(subjects), 2.4 * len(DRAWN) + 0.6), layout="constrained")
    axes = figure.subplots(len(DRAWN), len(subjects), sharex=True, sharey="row", squeeze=False)
    for row, (name, words) in zip(axes, DRAWN.items(), strict=True):
        row[0].set_ylabel(words)
        for axis, subject in zip(row, subjects, strict=True):
            cells = [cell for cell in study["cells"] if cell["subject"] == subject]
            for arm, colour in zip(arms, COLOURS, strict=False):
                chosen = [cell for cell in cells if cell["arm"] == arm]
                for weights, style in (("raw", "-"), ("ema", "--")):
                    _curve(axis, chosen, weights, name, colour, style, labels.get(arm))
            if name in cells[0]["training"]:
                axis.axhline(cells[0]["training"][name], color="#999999", lw=0.8, ls=":")
            axis.grid(axis="y", color="#dddddd", lw=0.6)
            axis.spines[["top", "right"]].set_visible(False)
    for axis, subject in zip(axes[0], subjects, strict=True):
        axis.set_title(subject.replace("_", " "), fontsize=10)
    for axis in axes[-1]:
        axis.set_xlabel("training steps")
    handles, words = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, words, loc="outside lower center", ncols=len(arms), frameon=False, fontsize=9)
    figure.savefig(picture, dpi=110)
    return picture


def _curve(
    axis: Any, cells: Sequence[Any], weights: str, name: str, colour: str, style: str, label: str | None
) -> None:
    """The mean over seeds, and for raw weights the range of the seeds."""
    if not cells or not cells[0][weights]:
        return
    steps = [row["step"] for row in cells[0][weights]]
    values = np.array([[row[name] for row in cell[weights]] for cell in cells])
    raw = weights == "raw"
    axis.plot(steps, values.mean(0), style, color=colour, lw=1.6 if raw else 1.0, label=label if raw else None)
    if raw:
        axis.fill_between(steps, values.min(0), values.max(0), color=colour, alpha=0.10, lw=0)


def draw_strips(file: Path, picture: Path, subject: str, *, arms: Sequence[str] | None = None, seed: int = 0) -> Path:
    """One sample along training, the same prompt and seed in every arm: raw weights, of plain averaged ones too."""
    from matplotlib.figure import Figure
    from PIL import Image

    study = read(file)
    arms = arms or shown(study)
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    cell = next(c for c in study["cells"] if c["subject"] == subject and c["arm"] == arms[0] and c["seed"] == seed)
    place = file.parent / subject / str(cell["images"])
    rows = [(arms[0], "raw"), (arms[0], "ema"), *((arm, "raw") for arm in arms[1:])]
    steps = [row["step"] for row in cell["raw"]]
    figure = Figure(figsize=(1.05 * len(steps) + 1.9, 1.08 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(steps), squeeze=False)
    for line, (arm, weights) in zip(axes, rows, strict=True):
        for axis, step in zip(line, steps, strict=True):
            kind = weights if step else "raw"
            with Image.open(place / f"{arm}-seed{seed}" / "samples" / f"step-{step:06d}" / kind / "00.png") as image:
                axis.imshow(image.convert("RGB"))
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        words = labels[arm] if weights == "raw" else f"{labels[arm]}, averaged"
        line[0].set_ylabel(words.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=9)
    for axis, step in zip(axes[0], steps, strict=True):
        axis.set_title("base" if not step else f"{step}", fontsize=9)
    figure.savefig(picture, dpi=72)
    return picture
