"""How everything that is drawn looks: one palette with a colour for every arm, one style, SVG for pages and PNG files.

A drawing uses plain colours. In the SVG of a page they become names that the page's style sheet fills in, so that one
drawing serves light and dark. Knows neither curves nor scores.
"""

from __future__ import annotations

import colorsys
import html
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK, FAINT, STAGE, EMA = "#1c1e21", "#b9bdc3", "#e8a100", "#5d6470"
NAMED = {INK: "ink", FAINT: "faint", STAGE: "stage", EMA: "ema"}
CHOSEN = (
    ("#0072b2", "#56b4e9"),
    ("#d55e00", "#ff8f4a"),
    ("#00875f", "#35c99b"),
    ("#b5518a", "#e79bc6"),
    ("#8a6d00", "#e2c14a"),
    ("#2f8fc4", "#9ad0f5"),
)
"""The first colours, (on light, on dark): told apart by readers who do not see red or green, too."""
GOLDEN = 0.61803398875
"""Hues that go on by this share of the circle never meet one another."""
GLYPHS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼", "P": "✚"}
"""Markers, and the same as characters for the legends of pages."""
MOST = 256
"""Colours that pages name; there are more for files."""
WIDTH = 5.0
"""Of a page's drawing, in inches."""
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fewbayes",
    "text.parse_math": False,
    "font.size": 9,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": FAINT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "legend.edgecolor": "none",
    "legend.framealpha": 0.85,
    "legend.fontsize": 8,
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
}


@cache
def colour(index: int, dark: bool = False) -> str:
    """Of the arm with this index, as #rrggbb: no two arms share one, however many there are."""
    if index < len(CHOSEN):
        return CHOSEN[index][dark]
    more = index - len(CHOSEN)
    lightness = (0.30, 0.45, 0.38)[more % 3] + 0.3 * dark
    red, green, blue = colorsys.hls_to_rgb((0.02 + more * GOLDEN) % 1, lightness, 0.6)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"


def colours(count: int) -> list[str]:
    """The first `count` colours of the palette."""
    return [colour(i) for i in range(count)]


def marker(index: int) -> str:
    """Of the arm with this index, for matplotlib; from the seventh on they come again, in other colours."""
    return list(GLYPHS)[index % len(GLYPHS)]


def glyph(index: int) -> str:
    """The arm's marker as a character."""
    return GLYPHS[marker(index)]


def style_sheet(arms: int) -> str:
    """CSS with a variable `--arm-<i>` for each of so many arms, on light and on dark."""
    light, dark = ("".join(f"--arm-{i}:{colour(i, dark)};" for i in range(arms)) for dark in (False, True))
    return f":root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}"


@contextmanager
def style() -> Iterator[None]:
    """Whatever is drawn within has the one style."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def empty(width: float, height: float) -> Figure:
    """A figure of so many inches, whose parts make room for one another."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Figure, file: Path, dots: int = 110) -> Path:
    """The figure as a PNG on white, the same bytes whenever it is drawn. dots: per inch."""
    figure.savefig(file, dpi=dots, facecolor="white", metadata={"Software": None})
    return file


def inline(figure: Figure, name: str, label: str) -> str:
    """The figure as an <svg> element: sized by the page, coloured by it, with ids of its own and no addresses."""
    buffer = io.StringIO()
    figure.savefig(
        buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type"))
    )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style[^>]*>.*?</style>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r' id="(w-(?:raw|ema))"', r' class="\1"', svg)
    svg = re.sub(r' id="(?:figure|axes|patch|line2d|text|matplotlib\.axis|xtick|ytick|\w+Collection)_\d+"', "", svg)
    svg = re.sub(r' id="([^"]+)"', rf' id="{name}-\1"', svg)
    svg = re.sub(r'(?:xlink:)?href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r"'DejaVu Sans'[^;\"]*", "var(--sans)", svg)
    svg = re.sub(r"#[0-9a-f]{6}\b", lambda found: _variables().get(found[0], found[0]), svg)
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :].strip())
    return f'<svg {view[0]} role="img" aria-label="{html.escape(label)}">{body}'


@cache
def _variables() -> dict[str, str]:
    named = NAMED | {colour(i): f"arm-{i}" for i in range(MOST)}
    return {code: f"var(--{name})" for code, name in named.items()}
