"""A local disturbance of x_t, denoised in one step.

x_t is a noised training image, the disturbance delta' of its middle, the denoisers those along a fine-tuning.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from fewbayes.diffusion.process import level_of_step
from fewbayes.models import Family
from fewbayes.seeds import generator
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.denoise import encoded, keep, one_step
from fewbayes.studies.paper.drawing import MARKED, Told, at_guidance, bounds, canvas, iterations, pictures, state
from fewbayes.studies.paper.options import Ask
from fewbayes.studies.paper.trained import Task, ranged, rows_along

T, EXAMPLES, STRENGTH, PATCH = 100, 8, 2.0, 0.3
"""Timestep as in the paper; noised pictures behind each number; of the disturbance: its standard deviation in units of
the noise's, and its side as a share of the picture's, neither of which the paper says."""
AMPLIFIED = 3
"""Differences are shown so many times larger."""
CONSTANTS = {"t": T, "examples": EXAMPLES, "strength": STRENGTH, "patch": PATCH, "amplified": AMPLIFIED}


def run(ask: Ask) -> dict[str, Any]:
    found = rows_along(ask, (0, *ask.moments), look, _over_runs)
    return {
        "t": T,
        "ceiling": found["rows"][0]["ceiling"],
        **found,
        "paper": {"says": paper.FIG5, "gain": paper.FIG5_GAIN},
    }


def look(family: Family, task: Task, step: int) -> dict[str, Any]:
    latents, prompt = encoded(family, task.references), task.ask.prompt(task.subject)
    asked = ProbeSettings(levels=(level_of_step(T),), examples=EXAMPLES, disturbance=STRENGTH, patch=PATCH)
    reading = Prober(family, latents, [prompt], settings=asked).read({"gain"}).gain
    assert reading is not None
    t = family.process.time_of(level_of_step(T))
    alpha_bar = float(family.process.alpha_bar(family.process.times([t])))
    xt, delta = _inputs(latents, alpha_bar)
    without, disturbed = (one_step(family, part, t, prompt) for part in (xt, xt + delta))
    told = {"relative": reading.relative[0], "gain": reading.relative[0] / alpha_bar, "ceiling": 1 / alpha_bar}
    return told | {"inside": reading.inside[0]} | _pictures(family, task, step, xt + delta, without, disturbed)


def _inputs(latents: torch.Tensor, alpha_bar: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A noised training image and the disturbance of its middle: the same for every model."""
    eps, delta = torch.randn(2, *latents[:1].shape, generator=generator(0, "figure 5", 0))
    height, width = latents.shape[2:]
    rows, columns = (
        slice(round((0.5 - PATCH / 2) * side), round((0.5 + PATCH / 2) * side)) for side in (height, width)
    )
    patch = torch.zeros_like(delta)
    patch[..., rows, columns] = 1
    noise_std = (1 - alpha_bar) ** 0.5
    return alpha_bar**0.5 * latents[:1] + noise_std * eps, STRENGTH * noise_std * delta * patch


def _pictures(
    family: Family, task: Task, step: int, given: torch.Tensor, without: torch.Tensor, disturbed: torch.Tensor
) -> dict[str, str]:
    pixels = [family.decode_latents(part)[0] for part in (given, without, disturbed)]
    difference = np.abs(pixels[2].astype(int) - pixels[1].astype(int)) * AMPLIFIED
    shown = [*pixels, np.clip(difference, 0, 255).astype(np.uint8)]
    kinds = zip(("given", "without", "answer", "difference"), shown, strict=True)
    return {key: keep(task.ask.folder, task.picture(step, key), value) for key, value in kinds}


def _over_runs(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Pictures are those of the first run."""
    return found[0] | {
        "gain": ranged([one["gain"] for one in found], "runs"),
        "relative": fmean(one["relative"] for one in found),
        "inside": fmean(one["inside"] for one in found),
    }


TITLES = {
    "given": "given: x_t + delta'",
    "without": "answer without delta'",
    "answer": "answer with delta'",
    "difference": f"difference, {AMPLIFIED} times",
}


def draw(told: Told, folder: Path) -> Figure:
    said = [f"gain: ||delta_t||^2 / ||delta'||^2; no model of one image exceeds 1 / alpha_bar = {told['ceiling']:.3f}"]
    said.append(f"without guidance. The paper prints {told['paper']['gain']:g} for 1,000 iterations.")
    figure = canvas(told, seen(told), 7.2 if "guided" in told["rows"][0] else 9.0, [" ".join(said)])
    rows = []
    for row in told["rows"]:
        shown = [(folder / row[key], title, _gain(row) * (key == "difference")) for key, title in TITLES.items()]
        if guided := row.get("guided"):
            shown += [
                (folder / guided[key], f"{title},\n{at_guidance(told)}", _gain(guided) * (key == "difference"))
                for key, title in list(TITLES.items())[2:]
            ]
        rows.append((state(row["step"]), [(file, title * (not rows), below) for file, title, below in shown]))
    pictures(figure, rows)
    return figure


def _gain(row: Told) -> str:
    return f"gain {bounds(row['gain'], 3)},\n{row['inside']:.0%} of it inside"


def seen(told: Told) -> str:
    first, *tuned = told["rows"]
    said = _most(first, tuned)
    if "guided" in first:
        said += f" With guidance: {_most(first['guided'], [row | row['guided'] for row in tuned])}"
    kept = max(row["gain"]["mean"] for row in tuned) >= MARKED * first["gain"]["mean"]
    return said if kept else f"fine-tuning does not keep the disturbance more than the pretrained model: {said}"


def _most(first: Told, tuned: Sequence[Told]) -> str:
    top = max(tuned, key=lambda row: row["gain"]["mean"])
    return (
        f"gain {bounds(first['gain'], 3)} pretrained, at most {bounds(top['gain'], 3)} fine-tuned, "
        f"after {iterations(top['step'])}."
    )
