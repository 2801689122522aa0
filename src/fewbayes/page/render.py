"""What the pages share: templates, style and script of one make, numbers and settings as text.

A page carries all it needs and makes no request; its script runs only under its own hash.
"""

import base64
import hashlib
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

from fewbayes.page.look import glyph, style_sheet

TEMPLATES = Path(__file__).parent / "templates"
ABSENT = "\N{EN DASH}"


def page_of(template: str, rules: str, *, arms: int = 1, **content: Any) -> str:
    """The page of a template; `rules` are added to the style sheet, and a colour for each of so many arms."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["number"] = number
    script = (TEMPLATES / "report.js").read_text("utf-8")
    return environment.get_template(template).render(
        style=Markup((TEMPLATES / "report.css").read_text("utf-8") + style_sheet(arms) + rules),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        glyphs=[glyph(i) for i in range(arms)],
        **content,
    )


def number(value: float | None, digits: int = 2, sign: bool = False) -> str:
    if value is None:
        return ABSENT
    value = round(value, digits) + 0.0  # no minus zero
    text = f"{value:+.{digits}f}" if sign and value else f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}")


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
