"""The paper's figures, one file and one command each.

A figure is a file `figN.py` in this folder, and is known by being there. The first line of its docstring is its title
and its help; besides it holds

    CONSTANTS                what its numbers depend on beside the settings that can be asked for
    run(ask) -> found        brings every run that it needs to its end; numbers and names of small pictures
    draw(told, folder)       the picture of figN.json and of the small pictures in its folder

`make.py` runs and draws it:

    OUT/figN.json, figN.png     ours, the paper's where recovered, and what they were made with
    OUT/pictures/               the pictures of the figure
    OUT/runs/, OUT/<subject>/   the trainings and the photographs they saw
    OUT/looks/                  what was found of each training at its milestones, so that it is found once
"""

from __future__ import annotations

import ast
from pathlib import Path


def figures() -> dict[str, str]:
    """The title of every figure by its name, in the paper's order; read off the files, which are not imported."""
    files = [file for place in __path__ for file in Path(place).glob("fig*.py")]
    files.sort(key=lambda file: int(file.stem.removeprefix("fig")))
    told = {file.stem: ast.get_docstring(ast.parse(file.read_text("utf-8"))) or "" for file in files}
    return {name: text.partition("\n")[0].rstrip(".") for name, text in told.items()}
