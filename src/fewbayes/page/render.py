"""A `Page` as one HTML file: one template, one style sheet, one script for every kind of page.

The file carries all it needs and makes no request; its script runs only under its own hash. Only a page that is served
while a run goes on may ask its own server whether there is something new.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fewbayes.files.atomic import atomic_write
from fewbayes.page.look import glyph, style_sheet
from fewbayes.page.parts import Page, Sheet

TEMPLATES = Path(__file__).parent / "templates"
ABSENT = "\N{EN DASH}"


def write_page(page: Page, folder: Path, output: Path | None = None) -> Path:
    """Into `folder` as report.html, or as `output`; the file."""
    output = Path(output) if output else Path(folder) / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(output, render(page))
    return output


def render(page: Page, *, version: str = "") -> str:
    """version: of a page that is served live; the page asks its server for a newer one."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    style, script = ((TEMPLATES / name).read_text("utf-8") for name in ("page.css", "page.js"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return environment.get_template("page.html.j2").render(
        page=page,
        version=version,
        style=Markup(style + style_sheet(page.arms) + _choices(page.sheet)),
        script=Markup(script),
        policy=Markup(
            f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
            + ("connect-src 'self'; " if version else "")
            + "base-uri 'none'; form-action 'none'"
        ),
        glyphs=[glyph(i) for i in range(page.arms)],
    )


def _choices(sheet: Sheet | None) -> str:
    """Which panel is shown, without a script; without :has() all are."""
    if sheet is None or len(sheet.panels) < 2:
        return ""
    shown = [
        "".join(["html", *(f":has(#choice-{i}-{place}:checked)" for i, place in enumerate(panel.at))])
        + f" #panel-{n}{{display:block}}"
        for n, panel in enumerate(sheet.panels)
    ]
    return "\n".join(["", "@supports selector(:has(a)){.panel{display:none}", *shown, "}"])


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None:
        return ABSENT
    value = round(value, digits) + 0.0  # no minus zero
    text = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


def counted(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"


def seed_name(seed: object, place: int) -> str:
    """Of a picture; seeds from a million on are numbers that nobody reads, so it goes by its place."""
    return f"seed {seed}" if isinstance(seed, int) and abs(seed) < 10**6 else f"picture {place + 1}"


def flat(value: Any, prefix: str = "") -> dict[str, str]:
    """Nested settings as `outer.inner: text`."""
    if isinstance(value, dict) and value:
        items = [(f"{prefix}.{key}" if prefix else str(key), item) for key, item in value.items()]
        return {key: text for name, item in items for key, text in flat(item, name).items()}
    if isinstance(value, list) and any(isinstance(item, dict | list) for item in value):
        return flat({str(i): item for i, item in enumerate(value)}, prefix)
    if isinstance(value, list):
        return {prefix: ", ".join(map(str, value))}
    return {prefix: ABSENT if value is None else str(value)} if prefix else {}
