"""The map of the corruption stage as a table and a picture: a strip over the steps for every setting.

Reads the file of `fewbayes experiment map`. Numbers are means over seeds; the definitions are those of trajectories.py.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbayes.page.trajectories import corrupted, longest_stretch, measures
from fewbayes.runs.folder import atomic_write

COLUMNS = ("onset", "corrupted", "longest", "recovered", "deepest fall of Dino", "best Dino, uncorrupted", "last Dino")


def settings(study: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(axis, words, cells) for every setting, the regime itself first, then axis by axis."""
    cells = study["cells"]
    words = {arm["name"]: arm["label"] for arm in study["arms"]}
    most = {cell["subject"]: max(c["images"] for c in cells if c["subject"] == cell["subject"]) for cell in cells}

    def of(arm: str, images: int | None = None) -> list[Mapping[str, Any]]:
        return [c for c in cells if c["arm"] == arm and c["images"] == (images or most[c["subject"]])]

    rows = [("", words["centre"], of("centre"))]
    fewer = sorted({c["images"] for c in cells} - set(most.values()))
    rows += [("number of images", f"{n} image{'s' if n > 1 else ''}", of("centre", n)) for n in fewer]
    rows += [(axis, words[arm], of(arm)) for axis, arms in study["axes"].items() for arm in arms]
    return [row for row in rows if row[2]]


def summary(cell: Mapping[str, Any]) -> dict[str, float | None]:
    """Onset: the first step of the longest stretch of corrupted checkpoints; recovered: whether a later one is not.

    None where there is no stretch of two or more.
    """
    bad = corrupted(cell, "raw")
    steps = [row["step"] for row in cell["raw"][1:]]
    found = measures(cell, "raw")
    stretch = longest_stretch(bad)
    first, end = stretch or (0, 0)
    return {
        "onset": steps[first] if stretch else None,
        "corrupted": found["corrupted"],
        "longest": (end - first) / len(bad),
        "recovered": float(end < len(bad)) if stretch else None,
        "deepest fall of Dino": found["fall"],
        "best Dino, uncorrupted": found["best"],
        "last Dino": found["fidelity"],
    }


def markdown(study: Mapping[str, Any]) -> str:
    """A table for every subject, and which trainings failed."""
    subjects = list(dict.fromkeys(cell["subject"] for cell in study["cells"]))
    parts = []
    for subject in subjects:
        rows = []
        for axis, words, cells in settings(study):
            mine = [summary(cell) for cell in cells if cell["subject"] == subject]
            if mine:
                count = _trainings(study, [cell for cell in cells if cell["subject"] == subject])
                rows.append([axis, words, count, *(_shown([row[name] for row in mine], name) for name in COLUMNS)])
        lines = [["axis", "setting", "trainings", *COLUMNS], ["---"] * (3 + len(COLUMNS)), *rows]
        parts.append(f"## {subject}\n\n" + "\n".join("| " + " | ".join(row) + " |" for row in lines))
    labels = {arm["name"]: arm["label"] for arm in study["arms"]}
    lost = [
        f"- {f['subject']}, {f['images']} images, {labels[f['arm']]}, seed {f['seed']}: {f['failed']}"
        for f in study.get("failed", ())
    ]
    parts += ["## Failed trainings, in no number above\n\n" + "\n".join(lost)] if lost else []
    return "\n\n".join(parts) + "\n"


def _trainings(study: Mapping[str, Any], cells: Sequence[Mapping[str, Any]]) -> str:
    """How many trainings of one setting and subject the numbers are of, and of how many where some failed."""
    same = ("subject", "images", "arm")
    lost = sum(all(cell[key] == cells[0][key] for key in same) for cell in study.get("failed", ()))
    return f"{len(cells)} of {len(cells) + lost}" if lost else str(len(cells))


def _shown(values: Sequence[float | None], name: str) -> str:
    """The mean over seeds; onset and recovery are those of the seeds with a stage, and say how many these are."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    mean = float(np.mean(known))
    if name == "onset":
        return f"{mean:.0f}" + (f" ({len(known)} of {len(values)})" if len(known) < len(values) else "")
    if name == "recovered":
        return f"{sum(known):.0f} of {len(known)}" if len(values) > 1 else ("yes" if known[0] else "no")
    return f"{100 * mean:.0f} %" if name in ("corrupted", "longest") else f"{mean:.2f}"


def write(file: Path) -> Path:
    """The tables beside the results, as Markdown."""
    target = file.with_suffix(".md")
    atomic_write(target, markdown(json.loads(file.read_text(encoding="utf-8"))))
    return target


def draw(file: Path, picture: Path) -> Path:
    """A row per setting and a block per subject; colour: the corruption score."""
    from matplotlib.figure import Figure

    study = json.loads(file.read_text(encoding="utf-8"))
    rows = settings(study)
    subjects = list(dict.fromkeys(cell["subject"] for cell in study["cells"]))
    figure = Figure(figsize=(2.6 + 2.4 * len(subjects), 0.9 + 0.27 * len(rows)), layout="constrained")
    panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
    image = None
    for axis, subject in zip(panels, subjects, strict=True):
        strips = [_strip([c for c in cells if c["subject"] == subject]) for _, _, cells in rows]
        width = max(map(len, strips))
        values = np.array([[*strip, *[np.nan] * (width - len(strip))] for strip in strips])
        image = axis.imshow(values, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        steps = [row["step"] for row in study["cells"][0]["raw"]]
        axis.set_xticks(range(0, len(steps), 2), [str(step) for step in steps[::2]], fontsize=8)
        axis.set_title(subject.replace("_", " "), fontsize=10)
        axis.set_xlabel("training steps", fontsize=9)
        axis.spines[:].set_visible(False)
        for i in range(1, len(rows)):
            if rows[i][0] != rows[i - 1][0]:
                axis.axhline(i - 0.5, color="white", lw=3)
    panels[0].set_yticks(range(len(rows)), [words for _, words, _ in rows], fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6, pad=0.02)
    bar.set_label("corruption score; from 0.5 on it counts as corrupted", fontsize=9)
    figure.savefig(picture, dpi=110)
    return picture


def _strip(cells: Sequence[Mapping[str, Any]]) -> list[float]:
    """Mean over seeds."""
    return np.mean([[row["corruption"] for row in cell["raw"]] for cell in cells], axis=0).tolist() if cells else []
