"""What a page is made of: a verdict, what to use, a contact sheet of pictures, and folds of words, tables and drawings.

Each kind of page is a function from the files of a folder to one `Page`; `render.py` makes HTML of it. All text is
escaped there. Knows nothing of any folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from fewbayes.page.pictures import Picture

Tone = Literal["good", "unclear", "corrupted", "memorised", "underfit", ""]
"""A stage, which colours verdicts and columns; "" where there is none."""


@dataclass(frozen=True)
class Verdict:
    """headline: one sentence. confidence: how sure it is, and how often it is wrong; "" where nothing was judged."""

    headline: str
    lines: Sequence[str] = ()
    tone: Tone = ""
    confidence: str = ""


@dataclass(frozen=True)
class Card:
    """What to do next. commands: (what for, the command)."""

    title: str
    note: str = ""
    commands: Sequence[tuple[str, str]] = ()
    points: Sequence[str] = ()


@dataclass(frozen=True)
class Shot:
    """A picture of the sheet. under: a few characters below it; more: told when it is enlarged. near: place of the
    nearest training image in the sheet's `training`, with their likeness."""

    picture: Picture
    label: str
    under: str = ""
    more: str = ""
    near: int | None = None
    likeness: float | None = None
    tone: Tone = ""


@dataclass(frozen=True)
class Column:
    title: str
    note: str = ""
    tone: Tone = ""
    chosen: bool = False


@dataclass(frozen=True)
class Row:
    """arm: the number of its colour, None for ink."""

    title: str
    shots: Sequence[Shot | None]
    note: str = ""
    arm: int | None = None


@dataclass(frozen=True)
class Panel:
    """One contact sheet; at: its place in each chooser."""

    at: tuple[int, ...]
    columns: Sequence[Column]
    rows: Sequence[Row]


@dataclass(frozen=True)
class Sheet:
    """choosers: (name, its values), of which one of each picks the panel that is shown. along: what a column is, where
    columns are steps of one thing and can be played; "" where they are not. training: the pictures that shots are
    near to."""

    panels: Sequence[Panel]
    choosers: Sequence[tuple[str, Sequence[str]]] = ()
    along: str = ""
    training: Sequence[Picture] = ()
    notes: Sequence[str] = ()

    @property
    def tones(self) -> list[str]:
        """Stages that pictures are marked with, whose colours have to be explained."""
        found = {shot.tone for panel in self.panels for row in panel.rows for shot in row.shots if shot}
        return [tone for tone in get_args(Tone) if tone and tone in found]


Block = tuple[Literal["text", "heading", "points", "facts", "table", "drawings", "legend"], object]
"""("text", str), ("heading", str), ("points", [str]), ("facts", {name: value}), ("table", Table), ("drawings", [str],
each an <svg>) or ("legend", [(arm, label, note)])."""


@dataclass(frozen=True)
class Fold:
    """A part of the page below its pictures; blocks without content are left out, and a fold without any."""

    title: str
    blocks: Sequence[Block]
    open: bool = False


@dataclass(frozen=True)
class Page:
    """arms: number of colours that the page names. living: whether it is of a run that goes on."""

    title: str
    verdict: Verdict
    chips: Sequence[str] = ()
    card: Card | None = None
    above: Sequence[Block] = ()
    sheet: Sheet | None = None
    folds: Sequence[Fold] = ()
    notes: Sequence[str] = ()
    arms: int = 0
    living: bool = False
