"""The table of an evaluation as text: Markdown, LaTeX and CSV.

The captions name the encoders as they call themselves. Draws no page, computes nothing but rounding.
"""

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbayes.metrics.statistics import Comparison, Estimate
from fewbayes.page.evaluation import COMPANY, FIVE, Difference, Evaluation, Measure, Table, make_table
from fewbayes.runs.folder import atomic_write

ABSENT = "-"
_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


def write_tables(evaluation: Evaluation, output: Path) -> Path:
    """Write `<output>.md`, `.tex`, `.csv` and `.json`, every mode and the metrics beside the paper's in each."""
    tables = tables_of(evaluation)
    atomic_write(output.with_suffix(".md"), "\n\n".join(markdown(table) for table in tables) + "\n")
    atomic_write(output.with_suffix(".tex"), "\n\n".join(latex(table) for table in tables) + "\n")
    atomic_write(output.with_suffix(".csv"), comma_separated(evaluation, tables))
    atomic_write(output.with_suffix(".json"), json.dumps(plain(evaluation, tables), indent=1, allow_nan=False) + "\n")
    return output.with_suffix(".md")


def tables_of(evaluation: Evaluation) -> list[Table]:
    """The paper's five in each mode, then the company in each mode that has any of it."""
    found = [make_table(evaluation, mode, FIVE) for mode in evaluation.modes]
    found += [make_table(evaluation, mode, COMPANY) for mode in evaluation.modes]
    return [table for table in found if table.measures]


def number(value: float | None, digits: int, sign: bool = False) -> str:
    if value is None:
        return ABSENT
    value = round(value, digits) + 0.0  # no minus zero
    return f"{value:{'+' if sign else ''}.{digits}f}"


def probability(p: float | None) -> str:
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def estimate(found: Estimate, measure: Measure, sign: bool = False) -> str:
    mean = number(found.mean, measure.digits, sign)
    if found.low is None:
        return mean
    return f"{mean} ({number(found.low, measure.digits)} to {number(found.high, measure.digits)})"


def difference(cell: Comparison, measure: Measure, adjusted: float | None) -> str:
    """Mean difference with its interval, win rate where there is a better side, p as it is and by Holm."""
    won = f"; wins {number(cell.win_rate, 2)}" if measure.better and cell.win_rate is not None else ""
    p = f"; p {probability(cell.p)}, Holm {probability(adjusted)}" if cell.p is not None else ""
    return estimate(cell.difference, measure, sign=True) + won + p


def heads(table: Table) -> list[str]:
    arrows = {1: " ↑", -1: " ↓", 0: ""}
    return [f"{m.title}{arrows[m.better]}" for m in table.measures]


def about_test(table: Table) -> str:
    """What the p values of the differences are."""
    cells = [cell for row in table.differences for cell in row.cells.values() if cell.p is not None]
    if not cells:
        return ""
    least = max(cell.smallest_p or 0 for cell in cells)
    fewest = min(cell.difference.subjects for cell in cells)
    what = (
        f"mean differences of subjects; {fewest} of them can give no p below {probability(least)}, whatever the data"
        if all(cell.p_over == "subjects" for cell in cells)
        else "single pairs of trainings of the one subject, and of it alone it speaks; so few can give no p below "
        f"{probability(least)}"
    )
    return (
        f"p: two-sided Wilcoxon signed-rank test over {what}. "
        "Holm: adjusted over the metrics of the row. Wins: share of subjects on the better side, ties as half."
    )


# Markdown


def markdown(table: Table) -> str:
    """Caption, the lines with their intervals, and the differences."""
    lines = [[line.label, *(estimate(line.cells[m.key], m) for m in table.measures)] for line in table.lines]
    parts = [table.caption, _rows([["", *heads(table)], *lines])]
    if table.differences:
        parts += [
            about_test(table),
            _rows([["difference", *heads(table)], *(_difference(row, table) for row in table.differences)]),
        ]
    return "\n\n".join(part for part in parts if part)


def _difference(row: Difference, table: Table) -> list[str]:
    cells = [difference(row.cells[m.key], m, row.holm[m.key]) for m in table.measures]
    return [f"{row.treated.label} less {row.control.label}", *cells]


def _rows(rows: Sequence[Sequence[str]]) -> str:
    written = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([written[0], "|" + " --- |" * len(rows[0]), *written[1:]])


# LaTeX


def latex(table: Table) -> str:
    """A table environment that needs booktabs; intervals are set small under the means."""
    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    head = " & ".join(["", *(escape(m.title) + arrows[m.better] for m in table.measures)])
    body = [_latex_line(line.label, [_stacked(line.cells[m.key], m) for m in table.measures]) for line in table.lines]
    changes = [
        _latex_line(
            f"{row.treated.label} less {row.control.label}",
            [_stacked(row.cells[m.key].difference, m, sign=True) for m in table.measures],
        )
        for row in table.differences
    ]
    said = " ".join(part for part in (table.caption, about_test(table)) if part)
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{escape(said)}}}",
            rf"\begin{{tabular}}{{l{'c' * len(table.measures)}}}",
            r"\toprule",
            head + r" \\",
            r"\midrule",
            *body,
            *([r"\midrule", *changes] if changes else []),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.replace("\\", "/").translate(_ESCAPES).replace("<", r"$<$").replace(">", r"$>$")


def _latex_line(label: str, cells: Sequence[str]) -> str:
    return " & ".join([escape(label), *cells]) + r" \\"


def _stacked(found: Estimate, measure: Measure, sign: bool = False) -> str:
    mean = number(found.mean, measure.digits, sign)
    mean = f"${mean}$" if mean != ABSENT else mean
    if found.low is None:
        return mean
    low, high = number(found.low, measure.digits), number(found.high, measure.digits)
    return rf"{mean} {{\scriptsize $[{low}, {high}]$}}"


# CSV and JSON

_COLUMNS = (
    "mode",
    "metric",
    "encoder",
    "kind",
    "line",
    "against",
    "mean",
    "low",
    "high",
    "subjects",
    "units",
    "missing",
)
_TESTS = ("win_rate", "p", "p_holm", "p_over")


def long_rows(evaluation: Evaluation, tables: Sequence[Table]) -> list[dict[str, Any]]:
    """Every estimate and every comparison of the tables, one row each, unrounded."""
    rows = []
    for table in tables:
        for m in table.measures:
            common = {"mode": table.mode, "metric": m.key, "encoder": evaluation.encoder(table.mode, m.key) or None}
            for line in table.lines:
                rows.append(common | {"kind": line.kind, "line": line.name} | _numbers(line.cells[m.key]))
            for row in table.differences:
                cell = row.cells[m.key]
                named = {"kind": "difference", "line": row.treated.name, "against": row.control.name}
                tests = {"win_rate": cell.win_rate if m.better else None, "p": cell.p, "p_holm": row.holm[m.key]}
                rows.append(common | named | _numbers(cell.difference) | tests | {"p_over": cell.p_over})
    return rows


def _numbers(found: Estimate) -> dict[str, Any]:
    return {name: getattr(found, name) for name in _COLUMNS[6:]}


def comma_separated(evaluation: Evaluation, tables: Sequence[Table]) -> str:
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, [*_COLUMNS, *_TESTS], lineterminator="\n")
    writer.writeheader()
    writer.writerows(long_rows(evaluation, tables))
    return buffer.getvalue()


def plain(evaluation: Evaluation, tables: Sequence[Table]) -> dict[str, Any]:
    """All of it with captions and facts, JSON-ready."""
    return {
        "title": evaluation.title,
        "captions": [{"mode": table.mode, "caption": table.caption, "test": about_test(table)} for table in tables],
        "rows": long_rows(evaluation, tables),
        "absent": dict(evaluation.absent),
        "notes": list(evaluation.notes),
        "facts": dict(evaluation.facts),
    }
