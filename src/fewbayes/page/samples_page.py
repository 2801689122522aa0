"""The page of a folder of samples: a grid over whatever differs between them, models, strength, guidance or prompts.

Reads the folder's samples.json and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from pathlib import Path

from fewbayes.page.parts import Column, Fold, Page, Panel, Row, Sheet, Shot, Verdict
from fewbayes.page.pictures import embed, fit, weigh
from fewbayes.page.render import counted
from fewbayes.runs.layout import CONFIG, LISTING, SampleRow, read_listing

AXES = {"source": "model", "strength": "strength", "guidance": "guidance", "prompt": "prompt", "seed": "seed"}
"""Fields that pictures can differ in, with what a page calls them. The first that does is laid along columns, the next
along rows; the others have a chooser each."""
ALSO = ("base", "sampler", "steps", "negative_prompt")
WIDE = 8
"""Columns of a grid that has one axis only."""


def is_samples(folder: Path) -> bool:
    return (folder / LISTING).is_file() and not (folder / CONFIG).is_file()


def samples_page(folder: Path) -> Page:
    rows = read_listing(folder)
    values = {axis: list(dict.fromkeys(_value(row, axis) for row in rows)) for axis in AXES}
    same = {name: found[0] for axis, name in AXES.items() if len(found := values[axis]) == 1 and found[0]}
    told = " \N{MULTIPLICATION SIGN} ".join(f"{len(values[a])} {AXES[a]}s" for a in AXES if len(values[a]) > 1)
    pictures = counted(len(rows), "picture")
    runs = {(Path(name).parent if len(values["source"]) > 1 else Path(name)).name for name in values["source"]}
    also = {name: sorted({str(value) for row in rows if (value := getattr(row, name)) is not None}) for name in ALSO}
    made = {"model": ", ".join(values["source"])} | {name: ", ".join(found) for name, found in also.items() if found}
    return Page(
        title=f"Samples of {runs.pop()}" if len(runs) == 1 else "Samples",
        verdict=Verdict(f"{pictures}: {told}" if told else pictures, [same["prompt"]] if "prompt" in same else []),
        chips=[f"{name} {value}" for name, value in same.items() if name in ("strength", "guidance")],
        sheet=_grid(folder, rows, values),
        folds=[Fold("How they were made", [("facts", made)])],
    )


def _grid(folder: Path, rows: Sequence[SampleRow], values: dict[str, list[str]]) -> Sheet:
    at = {tuple(_value(row, axis) for axis in AXES): row for row in rows}
    side = fit(lambda side: weigh((folder / row.file for row in rows), side))
    across, *rest = [axis for axis in AXES if len(values[axis]) > 1] or ["seed"]
    down, others = rest[0] if rest else None, rest[1:]

    def shot(where: dict[str, str]) -> Shot | None:
        row = at.get(tuple(where.get(axis, values[axis][0]) for axis in AXES))
        picture = embed(folder / row.file, side) if row else None
        if row is None or picture is None:
            return None
        label = ", ".join(_titled(axis, _value(row, axis)) for axis in (across, *rest))
        return Shot(picture, label, more="; ".join(filter(None, (row.prompt, f"seed {row.seed}", row.file))))

    panels = []
    for place in product(*(range(len(values[axis])) for axis in others)):
        fixed = {axis: values[axis][i] for axis, i in zip(others, place, strict=True)}
        columns = values[across]
        if down:
            lines = [(_titled(down, below), fixed | {down: below}, columns) for below in values[down]]
        else:
            lines = [("", fixed, columns[i : i + WIDE]) for i in range(0, len(columns), WIDE)]
            columns = columns[:WIDE]
        titles = [_titled(across, each) if len(lines) == 1 or down else "" for each in columns]
        made = [
            Row(title, [*(shot(where | {across: each}) for each in its), *[None] * (len(columns) - len(its))])
            for title, where, its in lines
        ]
        panels.append(Panel(place, [Column(title) for title in titles], made))
    choosers = [
        (AXES[axis], [_titled(axis, value).removeprefix(f"{axis} ") for value in values[axis]]) for axis in others
    ]
    return Sheet(panels, choosers, along=AXES[across])


def _value(row: SampleRow, axis: str) -> str:
    value = getattr(row, axis)
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _titled(axis: str, value: str) -> str:
    """Models by the last part of their path, numbers with what they are."""
    if axis == "source":
        return Path(value).name.replace("checkpoint-", "step ")
    return value if axis == "prompt" else f"{axis} {value}"
