"""Blank pictures by the pretrained model.

Is a blank among the pictures that it knows? It is asked for one, and given one to denoise.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fewbayes.diffusion.process import level_of_step
from fewbayes.metrics.pixels import haar_noise
from fewbayes.models import Family
from fewbayes.sample import sample_images
from fewbayes.seeds import generator
from fewbayes.studies.memo import remember
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.denoise import ddim, encoded, keep
from fewbayes.studies.paper.drawing import Told, bounds, canvas, parts, pictures
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import pretrained, ranged
from fewbayes.studies.trajectory import open_pictures, pixels
from fewbayes.world.pipelines import is_embedded

TINY_PROMPT = "a photo of a white ball in the snow"
"""The embedded model has seen no picture without an object and no word for one; nothing it can say is emptier."""
T = 100
STEPS = 5
"""What strength 0.1 leaves of 50 sampler steps."""
CONSTANTS = {"t": T, "steps": STEPS, "prompts": (TINY_PROMPT, paper.FIG10_PROMPT)}


def run(ask: Ask) -> dict[str, Any]:
    file = ask.folder / "looks" / "pretrained" / "blanks.json"
    said = [f'The prompt of the paper, "{paper.FIG10_PROMPT}", has no words that the embedded model knows.']
    rows = remember(file, {}, lambda: {"rows": _rows(ask)})  # of the model and settings that the folder is of
    return {"t": T, **rows, "paper": {"says": paper.FIG10}, "notes": said if is_embedded(ask.model) else []}


def _rows(ask: Ask) -> list[dict[str, Any]]:
    family, count = pretrained(ask.model), ask.usual.pictures
    prompt = TINY_PROMPT if is_embedded(ask.model) else paper.FIG10_PROMPT
    how = {"sampler": ask.sampler, "steps": ask.usual.sampler_steps, "guidance": ask.guidance}
    drawn = pixels(sample_images(family, [prompt] * count, range(count), **how))
    noisy, denoised = _blank(ask, family)
    real = [picture for subject in ask.subjects for picture in pixels(open_pictures(subject.photographs))]
    kinds = {
        "asked": (f'asked for "{prompt}"', drawn),
        "noisy": (f"blank with noise, t = {T}", noisy),
        "denoised": ("the same, denoised without a prompt", denoised),
        "photographs": ("photographs of subjects", real),
    }
    return [_row(ask, kind, label, pictures) for kind, (label, pictures) in kinds.items()]


def _row(ask: Ask, kind: str, label: str, pictures: Sequence[np.ndarray]) -> dict[str, Any]:
    """noise: of the finest details; contrast: all that differs from one colour, of which a blank has none."""
    contrast = [float(picture.std(axis=(0, 1)).mean()) for picture in pictures]
    files = [keep(ask.folder, f"{kind}-{i}", picture) for i, picture in enumerate(pictures[: ask.usual.pictures])]
    noise = [haar_noise(picture) for picture in pictures]
    return {
        "kind": kind,
        "label": label,
        "noise": ranged(noise, "pictures"),
        "contrast": ranged(contrast, "pictures"),
        "files": files,
    }


def _blank(ask: Ask, family: Family) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """x_100 = sqrt(1 - alpha_bar_100) eps: blank latents with noise; as pictures, before and after."""
    shape = encoded(family, open_pictures(ask.subjects[0].photographs)[:1]).shape[1:]
    draws = [torch.randn(shape, generator=generator(0, "figure 10", i)) for i in range(ask.usual.pictures)]
    times = [family.process.time_of(level_of_step(t)) for t in range(T, 0, -T // STEPS)]
    alpha_bar = float(family.process.alpha_bar(family.process.times(times[:1])))
    xt = (1 - alpha_bar) ** 0.5 * torch.stack(draws)
    denoised = ddim(family, xt, times, "")
    return list(family.decode_latents(xt)), list(family.decode_latents(denoised))


def draw(told: Told, folder: Path) -> Figure:
    most = max(len(row["files"]) for row in told["rows"])
    figure = canvas(told, seen(told), 1.5 + 1.75 * len(told["rows"]), tuned=False)
    for part, row in zip(parts(figure, [1] * len(told["rows"])), told["rows"], strict=True):
        said = f"noise {bounds(row['noise'], 1)}, standard deviation {bounds(row['contrast'], 1)} grey levels"
        part.suptitle(f"{row['label']}: {said}", fontsize=9, x=0.01, ha="left")
        pictures(part, [("", [(folder / file, "", "") for file in row["files"]])], most)
    return figure


def seen(told: Told) -> str:
    by = {row["kind"]: row for row in told["rows"]}
    noisy, left = (by[kind]["contrast"]["mean"] for kind in ("noisy", "denoised"))
    said = (
        f"denoising takes the blank's standard deviation from {noisy:.1f} to {left:.1f} grey levels; the picture asked "
        f"for has noise {by['asked']['noise']['mean']:.1f}, photographs {by['photographs']['noise']['mean']:.1f}."
    )
    return said if left <= noisy / 10 else f"the denoised blank keeps {left / noisy:.0%} of what was put on it: {said}"
