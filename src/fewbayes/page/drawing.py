"""What every drawing of the pages shares: colours by name, one look, and figures as inline SVG.

Colours are names that the page's style sheet fills in, so one drawing serves light and dark; labels of arms stay out of
the drawings (the page writes the legends). Knows neither curves nor scores.
"""

import html
import io
import re
from typing import Any

from matplotlib.figure import Figure

PALETTE = 6
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDTH = 5.0
# Stand-ins that no drawing would use by chance; `inline` turns them into the page's colours.
INK, FAINT, STAGE, EMA = "#0b0001", "#0b0002", "#0b0003", "#0b0004"
ARMS = tuple(f"#0b00{0x10 + i:02x}" for i in range(PALETTE))
_VARIABLES = {INK: "ink", FAINT: "faint", STAGE: "stage", EMA: "ema"} | {
    colour: f"arm-{i}" for i, colour in enumerate(ARMS)
}
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
    "text.color": INK,
    "xtick.color": FAINT,
    "ytick.color": FAINT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "ytick.major.size": 0,
    "xtick.major.size": 3,
}


def marker_glyph(arm: int) -> str:
    """The arm's marker as a character, for the legends of the page."""
    return "●■▲◆▼✚"[arm % PALETTE]


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
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    view = re.search(r'viewBox="[^"]*"', svg)
    assert view is not None
    body = re.sub(r"\n\s*", "\n", svg[svg.index(">") + 1 :].strip())
    return f'<svg {view[0]} role="img" aria-label="{html.escape(label)}">{body}'
