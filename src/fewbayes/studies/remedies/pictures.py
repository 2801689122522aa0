"""The pictures of the comparison of remedies: curves over the steps, and strips of samples along training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from fewbayes.page.look import FAINT, colours, empty, save, style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    subjects = list(dict.fromkeys(cell["subject"] for cell in study["cells"]))
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
        for subject in dict.fromkeys(cell["subject"] for cell in study["cells"]):
            if found := strips(study, file.parent, subject, arms):
                drawn.append(save(found, file.with_name(f"{file.stem}_{subject}.png"), dots=72))
    return drawn
