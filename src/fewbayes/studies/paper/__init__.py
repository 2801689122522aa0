"""The paper's figures, one command each: `run_figure` brings every run that a figure needs to its end and writes the
numbers and small pictures that `fewbayes.page.figures.draw` makes the figure of.

    OUT/figN.json               ours, the paper's where recovered, and what they were made with
    OUT/pictures/               the pictures of the figure
    OUT/runs/, OUT/<subject>/   the trainings and the photographs they saw
    OUT/looks/                  what was found of each training at its milestones, so that it is found once

Knows which files there are; what a figure shows stands in the file of its name.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.page.figures import draw
from fewbayes.studies import study
from fewbayes.studies.paper.options import Ask, parse

FIGURES = {
    "fig1": "Image fidelity over iterations, one training image, plain and Bayesian",
    "fig2": "Image fidelity over iterations for several numbers of training images",
    "fig3": "x_t = 0 denoised in one step from pure noise's timestep",
    "fig4": "sigma_1 over iterations",
    "fig5": "A local disturbance of x_t, denoised in one step",
    "fig10": "Blank pictures by the pretrained model",
    "fig11": "x_t = 0 denoised in one step from t = 100, several subjects",
    "fig12": "x_t = k x' denoised in one step",
}


def run_figure(name: str, arguments: Sequence[str]) -> Path:
    """The figure's folder, whole; the same call continues after an interruption.

    Finished trainings, looks and scored samples are kept and not made again. Repeated are what follows from them in no
    time (strips, intervals, the result file), and a training whose numbers ran away: it is tried again from its last
    checkpoint, and left out of the result if it fails again.
    """
    if name not in FIGURES:
        raise UserError(f"{name!r} is not a figure; there are {', '.join(FIGURES)}")
    ask = parse(name, FIGURES[name], arguments)
    figure = importlib.import_module(f"{__name__}.{name}")
    facts = {**ask.facts(), "constants": figure.CONSTANTS}
    _claim(ask.folder, facts)
    return _write(ask, facts, figure.run(ask))


def _claim(folder: Path, facts: dict[str, Any]) -> None:
    """Remember what the folder is of; one of other settings, another model or other constants is refused."""
    file, told = folder / "asked.json", json.loads(json.dumps(facts))
    if file.is_file():
        found = json.loads(file.read_text())
        other = [key for key in told if found.get(key) != told[key]]
        if other:
            raise UserError(
                f"{folder} holds {found['figure']} with {other[0]} {found.get(other[0])}, not {told[other[0]]}; "
                "give another output_dir"
            )
        return
    from fewbayes.runs.folder import atomic_write

    folder.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(told, indent=1) + "\n")


def _write(ask: Ask, facts: dict[str, Any], found: dict[str, Any]) -> Path:
    """What was asked is told as it was; what was found, rounded."""
    from fewbayes.runs.folder import atomic_write, environment
    from fewbayes.studies.memo import rounded

    told = {
        "figure": ask.name,
        "title": FIGURES[ask.name],
        "asked": facts | {"seeds": ask.seeds},
        **rounded(found),
        "provenance": {"command": ask.command, **environment(_gpu())},
    }
    atomic_write(ask.folder / f"{ask.name}.json", json.dumps(told, indent=1) + "\n")
    return ask.folder


def _gpu() -> str | None:
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else None


for _name, _title in FIGURES.items():
    study(_name, _title)(lambda arguments, name=_name: [draw(run_figure(name, arguments))])
