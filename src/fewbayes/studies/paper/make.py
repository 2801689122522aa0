"""A figure of the paper from its command to its picture: runs made or found again, numbers kept, drawn from these."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.page.look import save, style
from fewbayes.runs.provenance import environment
from fewbayes.studies.memo import claim, rounded
from fewbayes.studies.paper import figures
from fewbayes.studies.paper.options import Ask, parse

DOTS = 120
"""Per inch."""


def make(name: str, arguments: Sequence[str]) -> list[Path]:
    """`fewbayes experiment <figure>`: the picture."""
    return [draw_figure(run_figure(name, arguments))]


def run_figure(name: str, arguments: Sequence[str]) -> Path:
    """The figure's folder, whole; the same call continues after an interruption.

    Finished trainings, looks and scored samples are kept and not made again. Repeated are what follows from them in no
    time (strips, intervals, the result file), and a training whose numbers ran away: it is tried again from its last
    checkpoint, and left out of the result if it fails again.
    """
    known = figures()
    if name not in known:
        raise UserError(f"{name!r} is not a figure; there are {', '.join(known)}")
    ask, figure = parse(name, known[name], arguments), _module(name)
    facts = {**ask.facts(), "constants": figure.CONSTANTS}
    claim(ask.folder / "asked.json", facts)
    return _write(ask, known[name], facts, figure.run(ask))


def draw_figure(folder: Path) -> Path:
    """The figure of a folder as figN.png in it."""
    files = [file for file in sorted(folder.glob("fig*.json")) if file.stem in figures()]
    if len(files) != 1:
        raise UserError(f"{folder} holds {len(files)} of fig1.json, fig2.json ...; it must hold one of them")
    told, target = read_json(files[0], dict[str, Any]), files[0].with_suffix(".png")
    with style():
        return save(_module(target.stem).draw(told, folder), target, dots=DOTS)


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


def _module(name: str) -> Any:
    return import_module(f"fewbayes.studies.paper.{name}")
