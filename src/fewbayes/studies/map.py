"""Where the corruption stage appears: one setting at a time is changed from a regime that has it.

Learning rate, number of images, rank and kind of method, guidance, sampler and its steps, and the optimizer; texture is
told by the subjects. Weights are the raw ones. The table has a row for every setting, with means over seeds; the
picture a strip over the steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.page.look import empty, save, style
from fewbayes.page.table import Column, Table, markdown
from fewbayes.stage.definition import longest
from fewbayes.studies import study
from fewbayes.studies.course import corrupted, counted, measures, subjects_of
from fewbayes.studies.flags import asked
from fewbayes.studies.followed import CHECKPOINTS, FollowedFlags, follow, trainings
from fewbayes.studies.grid import Arm

if TYPE_CHECKING:
    from matplotlib.figure import Figure

NAME = "map"
QUESTION = "Where does the corruption stage appear, and what moves its onset, its depth and its end?"
FEWER_IMAGES = (1, 2)
CENTRE = Arm("centre", "the regime itself", {})
IMAGES = "number of images"


def axes(rate: float, method: str) -> dict[str, list[Arm]]:
    """Settings by axis, each a change of the regime `CENTRE`."""
    lora, full = {"method": "lora", "rank": 16}, {"method": "full", "rank": 4}
    methods = {
        "full": [
            _arm("LoRA of rank 16, the same rate", **lora),
            _arm("LoRA of rank 16, rate 3 x", **lora, learning_rate=3 * rate),
            _arm("LoRA of rank 64, the same rate", **lora | {"rank": 64}),
            _arm("OFT, rate 3 x", method="oft", learning_rate=3 * rate),
        ],
        "lora": [
            _arm("LoRA of rank 4", rank=4),
            _arm("LoRA of rank 64", rank=64),
            _arm("full, a fifth of the rate", **full, learning_rate=rate / 5),
            _arm("OFT, the same rate", method="oft", rank=4),
        ],
    }
    return {
        "learning rate": [_arm(f"rate {factor:g} x", learning_rate=factor * rate) for factor in (0.1, 0.3, 0.6, 3)],
        "method and size": methods.get(method, []),
        "guidance": [
            *(_arm(f"guidance {scale:g}", guidance_scale=scale) for scale in (1.0, 3.0)),
            _arm("guidance 7.5 at t >= 300 alone", guidance_interval="0.83:"),
        ],
        "sampler": [
            _arm("DPM++, 25 steps", sampler="dpm++"),
            _arm("PNDM, 25 steps", sampler="pndm"),
            _arm("DDIM, 100 steps", num_inference_steps=100),
        ],
        "optimizer": [
            _arm("beta2 0.9", adam_beta2=0.9),
            _arm("batch of 2", train_batch_size=2),
            _arm("min-SNR 5", snr_gamma=5.0),
        ],
    }


def _arm(label: str, **changes: Any) -> Arm:
    name = "".join(letter if letter.isalnum() or letter in ".+" else "-" for letter in label.replace(",", ""))
    return Arm(name, label, changes)


ALL = "There are " + ", ".join((*axes(1, "full"), IMAGES))


@dataclass(frozen=True, kw_only=True)
class MapFlags(FollowedFlags):
    output_dir: Path = Path("runs/map")
    seeds: int = setting(1, at_least=1)
    steps: int = setting(800, at_least=CHECKPOINTS)
    axes: tuple[str, ...] = setting((), choices=(*axes(1, "full"), IMAGES), several=True, value="AXIS", more=f"{ALL}.")
    """What is changed; all without it."""


@study("map", "where the corruption stage appears: rate, images, rank, guidance, sampler, optimizer")
def run_map(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its table and its picture."""
    flags = asked(MapFlags, arguments, NAME, __doc__)
    file = flags.redraw or _train(replace(flags, seeds=1, steps=CHECKPOINTS) if flags.quick else flags)
    told = read_json(file, dict[str, Any])
    atomic_write(file.with_suffix(".md"), tables(told))
    with style():
        return [file, file.with_suffix(".md"), save(strips(told), file.with_suffix(".png"))]


def _train(flags: MapFlags) -> Path:
    subjects, seeds = flags.study_subjects(), range(flags.seeds)
    base = flags.settings(learning_rate=flags.learning_rate, checkpointing_steps=0, num_validation_images=2)
    wanted = flags.axes or (*axes(1, flags.method), IMAGES)
    grid = {axis: arms for axis, arms in axes(flags.learning_rate, flags.method).items() if axis in wanted}
    everywhere = [CENTRE, *(arm for arms in grid.values() for arm in arms)]
    cells = trainings(flags.output_dir, base, subjects, everywhere, seeds)
    if IMAGES in wanted:
        fewer = [s.first(count) for s in subjects for count in FEWER_IMAGES if count < len(s.files)]
        cells += trainings(flags.output_dir, base, fewer, [CENTRE], seeds)
    named = {axis: [arm.name for arm in arms] for axis, arms in grid.items()}
    facts = {"title": "Where the corruption stage appears", "question": QUESTION, "settings": base, "axes": named}
    return follow(cells, flags, NAME, facts)


# --- the table --------------------------------------------------------------------------------------------------------

COLUMNS = ("onset", "corrupted", "longest", "recovered", "deepest fall of Dino", "best Dino, uncorrupted", "last Dino")


def rows_of(told: Mapping[str, Any]) -> list[tuple[str, str, list[Mapping[str, Any]]]]:
    """(axis, words, cells) for every setting, the regime itself first, then axis by axis."""
    cells = told["cells"]
    words = {arm["name"]: arm["label"] for arm in told["arms"]}
    most = {cell["subject"]: max(c["images"] for c in cells if c["subject"] == cell["subject"]) for cell in cells}

    def of(arm: str, images: int | None = None) -> list[Mapping[str, Any]]:
        return [c for c in cells if c["arm"] == arm and c["images"] == (images or most[c["subject"]])]

    rows = [("", words["centre"], of("centre"))]
    fewer = sorted({c["images"] for c in cells} - set(most.values()))
    rows += [("number of images", f"{n} image{'s' if n > 1 else ''}", of("centre", n)) for n in fewer]
    rows += [(axis, words[arm], of(arm)) for axis, arms in told["axes"].items() for arm in arms]
    return [row for row in rows if row[2]]


def summary(cell: Mapping[str, Any]) -> dict[str, float | None]:
    """Onset: the first step of the longest stretch of corrupted checkpoints; recovered: whether a later one is not.

    None where there is no stretch of two or more.
    """
    bad = corrupted(cell, "raw")
    steps = [row["step"] for row in cell["raw"][1:]]
    found = measures(cell, "raw")
    stretch = longest(bad)
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


def tables(told: Mapping[str, Any]) -> str:
    """A table for every subject, and which trainings failed."""
    parts = []
    for subject in subjects_of(told):
        rows = []
        for axis, words, cells in rows_of(told):
            if mine := [cell for cell in cells if cell["subject"] == subject]:
                found = [summary(cell) for cell in mine]
                shown = (_shown([row[name] for row in found], name) for name in COLUMNS)
                rows.append([axis, words, counted(told, mine, "subject", "images", "arm"), *shown])
        heads = [Column(name) for name in ("axis", "setting", "trainings", *COLUMNS)]
        parts.append(f"## {subject}\n\n{markdown(Table(heads, rows))}")
    labels = {arm["name"]: arm["label"] for arm in told["arms"]}
    lost = [
        f"- {f['subject']}, {f['images']} images, {labels[f['arm']]}, seed {f['seed']}: {f['failed']}"
        for f in told.get("failed", ())
    ]
    parts += ["## Failed trainings, in no number above\n\n" + "\n".join(lost)] if lost else []
    return "\n\n".join(parts) + "\n"


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


# --- the picture ------------------------------------------------------------------------------------------------------


def strips(told: Mapping[str, Any]) -> Figure:
    """A row per setting and a block per subject; colour: the corruption score, mean over seeds."""
    rows, subjects = rows_of(told), subjects_of(told)
    figure = empty(2.6 + 2.4 * len(subjects), 0.9 + 0.27 * len(rows))
    panels = figure.subplots(1, len(subjects), sharey=True, squeeze=False)[0]
    image = None
    steps = [row["step"] for row in told["cells"][0]["raw"]]
    for axis, subject in zip(panels, subjects, strict=True):
        values = np.full((len(rows), len(steps)), np.nan)
        for row, (_, _, cells) in zip(values, rows, strict=True):
            if mine := [[look["corruption"] for look in c["raw"]] for c in cells if c["subject"] == subject]:
                row[: len(mine[0])] = np.mean(mine, axis=0)
        image = axis.imshow(values, cmap="RdBu_r", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(0, len(steps), 2), [str(step) for step in steps[::2]], fontsize=8)
        axis.set_title(subject.replace("_", " "))
        axis.set_xlabel("training steps", fontsize=9)
        axis.spines[:].set_visible(False)
        axis.grid(visible=False)
        for i in range(1, len(rows)):
            if rows[i][0] != rows[i - 1][0]:
                axis.axhline(i - 0.5, color="white", lw=3)
    panels[0].set_yticks(range(len(rows)), [words for _, words, _ in rows], fontsize=9)
    assert image is not None
    bar = figure.colorbar(image, ax=list(panels), shrink=0.6, pad=0.02)
    bar.set_label("corruption score\n(0.5: corrupted)", fontsize=9)
    return figure
