"""Puts the numbers and pictures of an evaluation, or of a study of methods, on one self-contained page.

Knows nothing of encoders or training: everything comes from files that `evaluation.py` read. The page makes no
request, opens from file://, and says all it says without JavaScript.
"""

from pathlib import Path
from typing import Any

from markupsafe import Markup

from fewbayes.page.cases import RULE
from fewbayes.page.dots import dot_plots
from fewbayes.page.evaluation import COMPANY, FIVE, Evaluation, Table, read_evaluation, verdict
from fewbayes.page.gallery import Gallery, make_gallery
from fewbayes.page.nearest import SAID
from fewbayes.page.render import flat, page_of
from fewbayes.page.score_table import about_test, heads, probability, tables_of, write_tables
from fewbayes.runs.folder import atomic_write

MODES = {"sound": "All pairs, nothing dropped", "paper": "As the authors average, quirks included"}
# Parts of study.json that the page says elsewhere.
SAID_ELSEWHERE = {"arms", "subjects", "title", "question"}


def write_evaluation_report(folder: Path, output: Path | None = None) -> Path:
    """Write `report.html` (default: into `folder`) and table.md, .tex, .csv and .json beside it; the page's path."""
    evaluation = read_evaluation(Path(folder))
    output = Path(output) if output else Path(folder) / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    write_tables(evaluation, output.with_name("table"))
    atomic_write(output, render_evaluation(evaluation))
    return output


def render_evaluation(evaluation: Evaluation) -> str:
    tables = tables_of(evaluation)
    first = tables[0] if tables else None
    gallery = make_gallery(evaluation)
    return page_of(
        "evaluation.html.j2",
        _choice_rules(gallery),
        arms=max((len(table.differences) for table in tables), default=0),
        evaluation=evaluation,
        tables=[_shown(table) for table in tables],
        verdict=verdict(first) if first else [],
        dots=[Markup(svg) for svg in dot_plots(first)] if first else [],
        compared=first.differences if first else [],
        gallery=gallery,
        rule=RULE,
        nearest_said=SAID,
        definitions=[m for m in (*FIVE, *COMPANY) if any(m in table.measures for table in tables)],
        encoders=_encoders(evaluation, tables),
        absent=_absent(evaluation),
        facts=flat({key: value for key, value in evaluation.facts.items() if key not in SAID_ELSEWHERE}),
    )


def _shown(table: Table) -> dict[str, Any]:
    own = any(m in FIVE for m in table.measures)
    return {
        "table": table,
        "heads": heads(table),
        "title": ("The paper's five metrics" if own else "Beside them") + f": {MODES[table.mode].lower()}",
        "open": own,
        "test": about_test(table),
        "probability": probability,
    }


def _encoders(evaluation: Evaluation, tables: list[Table]) -> dict[str, list[str]]:
    """The columns that each encoder made, by its own name."""
    found: dict[str, list[str]] = {}
    for table in tables:
        for m in table.measures:
            column = m.title if len(evaluation.modes) == 1 else f"{m.title} ({table.mode})"
            found.setdefault(evaluation.encoder(table.mode, m.key) or "none needed", []).append(column)
    return found


def _absent(evaluation: Evaluation) -> dict[str, list[str]]:
    """Metrics without a value by the reason."""
    found: dict[str, list[str]] = {}
    for metric, reason in evaluation.absent.items():
        found.setdefault(reason, []).append(metric)
    return found


def _choice_rules(gallery: Gallery) -> str:
    """Which panel is shown; without :has() all are."""
    shown = [
        f"html:has(#subject-{panel.subject}:checked):has(#arm-{panel.arm}:checked) "
        f"#panel-{panel.subject}-{panel.arm}{{display:block}}"
        for panel in gallery.panels
    ]
    return "\n".join(["", "@supports selector(:has(a)){.panel{display:none}", *shown, "}"])
