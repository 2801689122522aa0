"""The page of a folder of samples: a grid over whatever differs between them, prompts, models, strength or guidance.

Reads the folder's samples.json and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from fewbayes.page.parts import Column, Fold, Page, Panel, Row, Sheet, Shot, Verdict, facts
from fewbayes.page.pictures import embed, fit, weigh
from fewbayes.page.render import flat, write_page
from fewbayes.runs.layout import CONFIG, LISTING, SampleRow, read_listing

PLURALS = {"source": "models", "strength": "strengths", "guidance": "guidances", "prompt": "prompts", "seed": "seeds"}
AXES = {"source": "model", "strength": "strength", "guidance": "guidance", "prompt": "prompt", "seed": "seed"}
"""Fields of a row that pictures can differ in, with what a page calls them. The first that does is laid along columns,
the next along rows; the others have a chooser each."""
WIDE = 8
"""Columns of a grid that has nothing but seeds."""


def is_samples(folder: Path) -> bool:
    return (folder / LISTING).is_file() and not (folder / CONFIG).is_file()


def write_samples_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`); the page's path."""
    return write_page(samples_page(Path(folder)), Path(folder), output)


def samples_page(folder: Path) -> Page:
    rows = read_listing(folder)
    values = {axis: list(dict.fromkeys(_value(row, axis) for row in rows)) for axis in AXES}
    differ = [axis for axis in AXES if len(values[axis]) > 1]
    same = {AXES[axis]: found[0] for axis, found in values.items() if len(found) == 1 and found[0]}
    told = " \N{MULTIPLICATION SIGN} ".join(f"{len(values[axis])} {PLURALS[axis]}" for axis in differ)
    counted = f"{len(rows)} picture{'s' * (len(rows) != 1)}"
    runs = {Path(source).parent.name if len(values["source"]) > 1 else _name(source) for source in values["source"]}
    return Page(
        title=f"Samples of {runs.pop()}" if len(runs) == 1 else "Samples",
        verdict=Verdict(f"{counted}: {told}" if told else counted, [same["prompt"]] if "prompt" in same else []),
        chips=[f"{name} {value}" for name, value in same.items() if name in ("strength", "guidance")],
        sheet=_grid(folder, rows, values, differ),
        folds=[Fold("How they were made", [facts({"model": ", ".join(values["source"]), **_shared(rows)})])],
    )


def _shared(rows: Sequence[SampleRow]) -> dict[str, str]:
    names = ("base", "sampler", "steps", "guidance", "strength", "negative_prompt", "weights")
    found = {name: {str(getattr(row, name)) for row in rows} for name in names}
    return flat({name: values.pop() for name, values in found.items() if len(values) == 1 and values != {"None"}})


def _grid(folder: Path, rows: Sequence[SampleRow], values: dict[str, list[str]], differ: Sequence[str]) -> Sheet:
    at = {tuple(_value(row, axis) for axis in AXES): row for row in rows}
    across = differ[0] if differ else "seed"
    down = differ[1] if len(differ) > 1 else ""
    others = list(differ[2:])
    side = fit(lambda side: weigh((folder / row.file for row in rows), side))

    def shot(**fixed: str) -> Shot | None:
        row = at.get(tuple(fixed.get(axis, values[axis][0]) for axis in AXES))
        picture = embed(folder / row.file, side) if row else None
        if row is None or picture is None:
            return None
        label = ", ".join(f"{AXES[axis]} {_name(_value(row, axis))}" for axis in (*differ, "seed")[: len(differ) or 1])
        return Shot(picture, label, more="; ".join(filter(None, (row.prompt, f"seed {row.seed}", row.file))))

    panels = []
    for place in _places([len(values[axis]) for axis in others]):
        fixed = {axis: values[axis][i] for axis, i in zip(others, place, strict=True)}
        if down:
            columns = [Column(_titled(across, value)) for value in values[across]]
            lines = [
                Row(_titled(down, below), [shot(**fixed, **{across: value, down: below}) for value in values[across]])
                for below in values[down]
            ]
        else:
            wide = values[across][:WIDE] if across == "seed" else values[across]
            columns = [
                Column(_titled(across, value) if len(values[across]) <= WIDE else str(i + 1))
                for i, value in enumerate(wide)
            ]
            parts = [values[across][i : i + len(wide)] for i in range(0, len(values[across]), len(wide))]
            lines = [
                Row(
                    "" if len(parts) == 1 else f"from {part[0]}",
                    [shot(**{across: v}) for v in part] + [None] * (len(wide) - len(part)),
                )
                for part in parts
            ]
        panels.append(Panel(place, columns, lines))
    choosers = [(AXES[axis], [_name(value) for value in values[axis]]) for axis in others]
    return Sheet(panels, choosers, along=AXES[across])


def _places(sizes: Sequence[int]) -> list[tuple[int, ...]]:
    places: list[tuple[int, ...]] = [()]
    for size in sizes:
        places = [(*place, i) for place in places for i in range(size)]
    return places


def _value(row: SampleRow, axis: str) -> str:
    value = getattr(row, axis)
    if axis in ("strength", "guidance"):
        return "" if value is None else f"{value:g}"
    return "" if value is None else str(value)


def _titled(axis: str, value: str) -> str:
    return f"{AXES[axis]} {value}" if axis in ("strength", "guidance", "seed") else _name(value)


def _name(value: str) -> str:
    """Of a model the last two parts of its path."""
    return "/".join(Path(value).parts[-2:]) if "/" in value and len(value) < 400 and " " not in value else value
