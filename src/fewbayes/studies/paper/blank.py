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
from fewbayes.studies.paper.drawing import CHANGED, Shown, Told, bounds, canvas, pictures, state
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, counts, follow, settings


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
            | _over_seeds([seed[step] for seed in of_seeds])
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
    name = f"{task.name}-step-{step}"
    return {
        "similarity": list(reading.similarity[0]),
        "scale": reading.scale[0],
        "contrast": reading.contrast[0],
        "pixel_correlation": normalised_cross_correlation(answer, nearest),
        "answer": keep(task.ask.folder, f"{name}-answer", answer),
        "nearest": keep(task.ask.folder, f"{name}-nearest", nearest),
        "blank": keep(task.ask.folder, "blank", decoded),
    }


def _over_seeds(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Pictures are those of the first seed."""
    best = [max(one["similarity"]) for one in found]
    return found[0] | {
        "similarity": {"mean": fmean(best), "low": min(best), "high": max(best), "seeds": len(best)},
        "scale": fmean(one["scale"] for one in found),
        "contrast": fmean(one["contrast"] for one in found),
        "pixel_correlation": fmean(one["pixel_correlation"] for one in found),
    }


def draw(told: Told, folder: Path) -> Figure:
    """A row per subject: the blank, the pretrained model's answer, then those along each fine-tuning and the image
    that the last one is nearest to."""
    subjects = list(dict.fromkeys(row["subject"] for row in told["rows"]))
    figure = canvas(told, seen(told), 1.7 + 1.6 * len(subjects))
    pictures(
        figure,
        [(name, _shown([row for row in told["rows"] if row["subject"] == name], folder)) for name in subjects],
    )
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
    rows = told["rows"]
    last = max(row["step"] for row in rows)
    before, after = (fmean(row["similarity"]["mean"] for row in rows if row["step"] == step) for step in (0, last))
    contrast, tuned = (fmean(row["contrast"] for row in rows if row["step"] == step) for step in (0, last))
    said = (
        f"correlation with the nearest training image {before:.2f} before and {after:.2f} after {last} iterations "
        f"(latents); contrast of the answer {contrast:.2f} and {tuned:.2f} of a training image's."
    )
    return said if after - before >= CHANGED else f"fine-tuning does not make x_t = 0 a training image: {said}"
