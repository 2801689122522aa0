"""Studies: grids of trainings that differ in a few settings, read, tabled and drawn in the file of their name.

A study is a module of this package with a function under `@study(name, about)`, a figure of the paper, which is a file
`paper/figN.py` whose docstring begins with its title, or a sweep, an entry of `sweeps/catalogue.py`. `studies()` reads
them off the files, so that a new one touches no other file, and listing them imports no study.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

Run = Callable[[Sequence[str]], Iterable[Path]]
"""From the arguments of a command to the files it wrote."""


@dataclass(frozen=True)
class Study:
    """about: one line for the list of studies; run: its module is imported when it is called."""

    name: str
    about: str
    run: Run


def study(name: str, about: str) -> Callable[[Run], Run]:
    """Marks a function as the study `fewbayes experiment <name>`. Both have to be written out: nobody runs the file."""
    assert name, about
    return lambda run: run


def studies() -> dict[str, Study]:
    """All studies by name, the paper's figures and tables first, in its order."""
    from fewbayes.studies.paper import figures
    from fewbayes.studies.sweeps.catalogue import titles

    found = [_made_by("paper", name, title) for name, title in figures().items()]
    found += [_made_by("sweeps", name, title) for name, title in titles().items()]
    found.sort(key=lambda one: _order(one.name))
    found += [one for place in __path__ for file in sorted(Path(place).glob("*.py")) for one in _marked(file)]
    names = [one.name for one in found]
    assert len(set(names)) == len(names), f"two studies have one name among {', '.join(names)}"
    return {one.name: one for one in found}


def _made_by(room: str, name: str, title: str) -> Study:
    return Study(name, title, lambda arguments: import_module(f"{__name__}.{room}.make").make(name, arguments))


def _order(name: str) -> tuple[bool, str, int, str]:
    """fig9a before fig9b before fig10, figures before tables, what the paper has not last."""
    numbered = re.fullmatch(r"(fig|table)(\d+)(\w*)", name)
    return (False, numbered[1], int(numbered[2]), numbered[3]) if numbered else (True, name, 0, "")


def _marked(file: Path) -> Iterator[Study]:
    for node in ast.parse(file.read_text("utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            for mark in node.decorator_list:
                if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == study.__name__:
                    name, about = (ast.literal_eval(argument) for argument in mark.args)
                    yield Study(name, about, _later(file.stem, node.name))


def _later(module: str, function: str) -> Run:
    return lambda arguments: getattr(import_module(f"{__name__}.{module}"), function)(arguments)
