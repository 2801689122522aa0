"""The paper's figures, one file and one command each.

A figure is a file `figN.py` in this folder, and is known by being there. The first line of its docstring is its title
and its help; besides it holds

    CONSTANTS                what its numbers depend on beside the settings that can be asked for
    run(ask) -> found        brings every run that it needs to its end; numbers and names of small pictures
    draw(told, folder)       the picture of figN.json and of the small pictures in its folder

`run_figure` makes, and `draw_figure` draws:

    OUT/figN.json, figN.png     ours, the paper's where recovered, and what they were made with
    OUT/pictures/               the pictures of the figure
    OUT/runs/, OUT/<subject>/   the trainings and the photographs they saw
    OUT/looks/                  what was found of each training at its milestones, so that it is found once
"""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.page.look import save, style
from fewbayes.runs.folder import atomic_write, environment
from fewbayes.studies import study
from fewbayes.studies.memo import claim, rounded
from fewbayes.studies.paper.options import Ask, parse

DOTS = 120
"""Per inch."""


def figures() -> dict[str, str]:
    """The title of every figure by its name, in the paper's order; read off the files, which are not imported."""
    files = [file for place in __path__ for file in Path(place).glob("fig*.py")]
    told = {
        file.stem: ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "" for file in sorted(files, key=_number)
    }
    return {name: text.partition("\n")[0].rstrip(".") for name, text in told.items()}


def _number(file: Path) -> int:
    return int(file.stem.removeprefix("fig"))


def run_figure(name: str, arguments: Sequence[str]) -> Path:
    """The figure's folder, whole; the same call continues after an interruption.

    Finished trainings, looks and scored samples are kept and not made again. Repeated are what follows from them in no
    time (strips, intervals, the result file), and a training whose numbers ran away: it is tried again from its last
    checkpoint, and left out of the result if it fails again.
    """
    known = figures()
    if name not in known:
        raise UserError(f"{name!r} is not a figure; there are {', '.join(known)}")
    ask, figure = parse(name, known[name], arguments), import_module(f"{__name__}.{name}")
    facts = {**ask.facts(), "constants": figure.CONSTANTS}
    claim(ask.folder / "asked.json", facts)
    return _write(ask, known[name], facts, figure.run(ask))


def draw_figure(folder: Path) -> Path:
    """The figure of a folder as figN.png in it."""
    files = [file for file in sorted(folder.glob("fig*.json")) if file.stem in figures()]
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} of fig1.json, fig2.json ...; it must hold one of them")
    told, target = json.loads(files[0].read_text("utf-8")), files[0].with_suffix(".png")
    with style():
        return save(import_module(f"{__name__}.{target.stem}").draw(told, folder), target, dots=DOTS)


def _write(ask: Ask, title: str, facts: dict[str, Any], found: dict[str, Any]) -> Path:
    """What was asked is told as it was; what was found, rounded."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    told = {
        "figure": ask.name,
        "title": title,
        "asked": facts | {"seeds": ask.seeds},
        **rounded(found),
        "provenance": {"command": ask.command, **environment(gpu)},
    }
    atomic_write(ask.folder / f"{ask.name}.json", json.dumps(told, indent=1) + "\n")
    return ask.folder


for _name, _title in figures().items():
    study(_name, _title)(lambda arguments, name=_name: [draw_figure(run_figure(name, arguments))])
