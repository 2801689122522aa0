"""Studies: grids of trainings that differ in a few settings, read, tabled and drawn in the file of their name.

A study is a module of this package with a function under `@study(name, about)`; `studies()` finds them all, so that a
new one touches no other file.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

Run = Callable[[Sequence[str]], Iterable[Path]]
"""From the arguments of a command to the files it wrote."""


@dataclass(frozen=True)
class Study:
    """about: one line for the list of studies."""

    name: str
    about: str
    run: Run


_known: dict[str, Study] = {}


def study(name: str, about: str) -> Callable[[Run], Run]:
    """Makes a function the study `fewbayes experiment <name>`."""

    def register(run: Run) -> Run:
        assert name not in _known or _known[name].run.__module__ == run.__module__, f"two studies are called {name}"
        _known[name] = Study(name, about, run)
        return run

    return register


def studies() -> dict[str, Study]:
    """All studies by name, those of a file together."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return dict(_known)
