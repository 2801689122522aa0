"""x_t = 0, a picture free of noise, denoised in one step: what Fig. 3 and 11 share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fewbayes.diffusion.process import level_of_step
from fewbayes.metrics.pixels import normalised_cross_correlation
from fewbayes.models import Family
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.studies.paper.denoise import encoded, keep, one_step
from fewbayes.studies.paper.drawing import CHANGED, Shown, Told, at_guidance, bounds, canvas, pictures, state
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, counts, each_way, follow, ranged, settings


def blanks(ask: Ask, wanted: Sequence[int], t: int) -> dict[str, Any]:
    """Rows for each subject and number of training images: the pretrained and the fine-tuned model's answers."""
    kinds = [(subject, count) for subject in ask.subjects for count in counts(subject, wanted)]
    tasks = [
        Task(ask, subject, settings(ask, subject, count, seed), ask.course, look, (t,))
        for subject, count in kinds
        for seed in range(ask.seeds)
    ]
    found, notes = follow(tasks, ask.workers)
    rows = []
    for subject, count in kinds:
        of_seeds = [looks for task, looks in found if task.subject is subject and len(task.references) == count]
        rows += [
            {"subject": subject.name, "images": count if step else 0, "trained_on": count, "step": step}
            | each_way([seed[step] for seed in of_seeds], _over_seeds)
            for step in (ask.course if of_seeds else ())
        ]
    return {"t": t, "rows": rows, "notes": notes}


def look(family: Family, task: Task, step: int) -> dict[str, Any]:
    (t,) = task.known
    latents, prompt = encoded(family, task.references), task.ask.prompt(task.subject)
    at = (level_of_step(t),)
    asked = ProbeSettings(levels=at, blank_levels=at)
    reading = Prober(family, latents, [prompt] * len(latents), settings=asked).read({"blank"}).blank
    assert reading is not None
    blank = torch.zeros_like(latents[:1])
    answer = family.decode_latents(one_step(family, blank, reading.t[0], prompt))[0]
    decoded = family.decode_latents(blank)[0]
    nearest = np.asarray(task.references[reading.nearest[0]])
    return {
        "similarity": list(reading.similarity[0]),
        "scale": reading.scale[0],
        "contrast": reading.contrast[0],
        "pixel_correlation": normalised_cross_correlation(answer, nearest),
        "answer": keep(task.ask.folder, task.picture(step, "answer"), answer),
        "nearest": keep(task.ask.folder, task.picture(step, "nearest"), nearest),
        "blank": keep(task.ask.folder, "blank", decoded),
    }


def _over_seeds(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pictures are those of the first seed."""
    return found[0] | {
        "similarity": ranged([max(one["similarity"]) for one in found], "seeds"),
        **{key: fmean(one[key] for one in found) for key in ("scale", "contrast", "pixel_correlation")},
    }


def draw(told: Told, folder: Path) -> Figure:
    """A row per subject: the blank, the pretrained model's answer, then those along each fine-tuning and the image
    that the last one is nearest to; below it the same with guidance."""
    subjects = list(dict.fromkeys(row["subject"] for row in told["rows"]))
    lines = []
    for name in subjects:
        its = [row for row in told["rows"] if row["subject"] == name]
        lines.append((name, _shown(its, folder)))
        if "guided" in its[0]:
            lines.append((at_guidance(told), _shown([row | row["guided"] for row in its], folder)))
    figure = canvas(told, seen(told), 1.7 + 1.6 * len(lines))
    pictures(figure, lines)
    return figure


def _shown(rows: Sequence[Told], folder: Path) -> list[Shown]:
    """One subject's pictures. r: correlation of latents with the nearest image."""

    def answer(row: Told, title: str) -> Shown:
        return folder / row["answer"], title, f"r = {bounds(row['similarity'])}"

    shown = [(folder / rows[0]["blank"], "x_t = 0", ""), answer(rows[0], "pretrained")]
    for many in sorted({row["images"] for row in rows} - {0}):
        tuned = [row for row in rows if row["images"] == many]
        name = f"{many} image{'s' * (many > 1)}"
        shown += [answer(row, f"{name}\n{state(row['step'])}") for row in tuned]
        shown.append((folder / tuned[-1]["nearest"], "nearest of\n" + name, ""))
    return shown


def seen(told: Told) -> str:
    rows, last = told["rows"], max(row["step"] for row in told["rows"])
    before, after, said = _change(rows, last)
    said = (
        f"correlation with the nearest training image {before:.2f} before and {after:.2f} after {last} iterations "
        f"(latents); contrast of the answer {said} of a training image's."
    )
    if "guided" in rows[0]:
        first, then, contrast = _change([row | row["guided"] for row in rows], last)
        said += f" With guidance: {first:.2f} and {then:.2f}; contrast {contrast}."
    return said if after - before >= CHANGED else f"fine-tuning does not make x_t = 0 a training image: {said}"


def _change(rows: Sequence[Told], last: int) -> tuple[float, float, str]:
    """Mean correlation before and after, and both contrasts in words."""
    before, after = ([row for row in rows if row["step"] == step] for step in (0, last))
    contrast = " and ".join(f"{fmean(row['contrast'] for row in part):.2f}" for part in (before, after))
    means = [fmean(row["similarity"]["mean"] for row in part) for part in (before, after)]
    return means[0], means[1], contrast
