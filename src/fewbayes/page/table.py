"""One description of a table, and four ways to write it: Markdown, LaTeX, CSV, and the cells of a page.

A table is columns and rows of entries: words, numbers, or estimates with their intervals. How many digits a number has,
whether it is a share in per cent and which way is better belongs to its column. Knows no study and no metric.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass

from fewbayes.metrics.statistics import Estimate

ABSENT = "-"
ARROWS = {1: " ↑", -1: " ↓", 0: ""}
_ESCAPES = str.maketrans({c: f"\\{c}" for c in "&%$#_{}"} | {"~": r"\textasciitilde{}", "^": r"\textasciicircum{}"})


@dataclass(frozen=True)
class Column:
    """digits: after the point. better: 1 where more is better, -1 where less is, 0 where neither. percent: the numbers
    are shares, shown times 100."""

    title: str
    digits: int = 2
    better: int = 0
    percent: bool = False

    def number(self, value: float | None, sign: bool = False) -> str:
        """As this column shows it, never as a negative zero; ABSENT for None."""
        if value is None:
            return ABSENT
        rounded = round(100 * value if self.percent else value, self.digits) + 0.0
        return f"{rounded:{'+' if sign else ''}.{self.digits}f}"


@dataclass(frozen=True)
class Value:
    """An estimate as an entry. sign: a difference, shown with its sign. after: words that Markdown puts behind it."""

    found: Estimate
    sign: bool = False
    after: str = ""


Entry = str | float | None | Estimate | Value


@dataclass(frozen=True)
class Table:
    """rows: one entry for each column."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Entry]]

    @property
    def titles(self) -> list[str]:
        return [column.title + ARROWS[column.better] for column in self.columns]

    @property
    def cells(self) -> list[list[tuple[str, str]]]:
        """For a page: each entry, and what stands small below it, parts of it apart by semicolons."""
        return [[_in_two(entry, column) for entry, column in _paired(row, self)] for row in self.rows]


def markdown(table: Table) -> str:
    """A pipe table, intervals behind their means: 0.50 (0.40 to 0.60)."""
    lines = [table.titles, ["---"] * len(table.columns)]
    lines += [[_words(entry, c) for entry, c in _paired(row, table)] for row in table.rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def latex(tables: Sequence[Table], caption: str) -> str:
    """A table environment that needs booktabs; the tables share their columns and stand under one another.

    The first column is set left, the others in their middle, and intervals small behind their means.
    """
    columns = tables[0].columns
    arrows = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
    head = " & ".join(escape(column.title) + arrows[column.better] for column in columns)
    parts = [
        [" & ".join(_typeset(entry, c) for entry, c in _paired(row, table)) + r" \\" for row in table.rows]
        for table in tables
    ]
    return "\n".join(
        [
            "% needs \\usepackage{booktabs}",
            r"\begin{table}",
            rf"\caption{{{escape(caption)}}}",
            rf"\begin{{tabular}}{{l{'c' * (len(columns) - 1)}}}",
            r"\toprule",
            head + r" \\",
            *(line for part in parts if part for line in (r"\midrule", *part)),
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
        ]
    )


def comma_separated(table: Table) -> str:
    """CSV of unrounded numbers; an estimate takes three columns, its mean, low and high, and None is empty."""
    wide = [any(isinstance(row[i], Estimate | Value) for row in table.rows) for i, _ in enumerate(table.columns)]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(
        name
        for column, three in zip(table.columns, wide, strict=True)
        for name in ((column.title, f"{column.title} low", f"{column.title} high") if three else (column.title,))
    )
    for row in table.rows:
        entries = zip(row, wide, strict=True)
        writer.writerow(cell for entry, three in entries for cell in (_three(entry) if three else (entry,)))
    return buffer.getvalue()


def escape(text: str) -> str:
    """Text that LaTeX prints as it is."""
    return text.replace("\\", "/").translate(_ESCAPES).replace("<", r"$<$").replace(">", r"$>$")


def _paired(row: Sequence[Entry], table: Table) -> list[tuple[Entry, Column]]:
    return list(zip(row, table.columns, strict=True))


def _words(entry: Entry, column: Column) -> str:
    if isinstance(entry, str):
        return entry
    if isinstance(entry, Estimate):
        entry = Value(entry)
    if not isinstance(entry, Value):
        return column.number(entry)
    found, mean = entry.found, column.number(entry.found.mean, entry.sign)
    if found.low is not None:
        mean = f"{mean} ({column.number(found.low)} to {column.number(found.high)})"
    return mean + entry.after


def _in_two(entry: Entry, column: Column) -> tuple[str, str]:
    if isinstance(entry, str):
        return entry, ""
    found = Value(entry) if isinstance(entry, Estimate) else entry
    if not isinstance(found, Value):
        return _minus(column.number(found)), ""
    low, high = (_minus(column.number(bound, found.sign)) for bound in (found.found.low, found.found.high))
    small = f"{low} to {high}" if found.found.low is not None else ""
    return _minus(column.number(found.found.mean, found.sign)), (small + found.after).removeprefix("; ")


def _minus(text: str) -> str:
    return "\N{EN DASH}" if text == ABSENT else text.replace("-", "\N{MINUS SIGN}")


def _typeset(entry: Entry, column: Column) -> str:
    if isinstance(entry, str):
        return escape(entry)
    if isinstance(entry, Estimate):
        entry = Value(entry)
    value, sign = (entry.found.mean, entry.sign) if isinstance(entry, Value) else (entry, False)
    mean = column.number(value, sign)
    mean = f"${mean}$" if mean != ABSENT else mean
    if not isinstance(entry, Value) or entry.found.low is None:
        return mean
    return rf"{mean} {{\scriptsize $[{column.number(entry.found.low)}, {column.number(entry.found.high)}]$}}"


def _three(entry: Entry) -> tuple[object, object, object]:
    found = entry.found if isinstance(entry, Value) else entry
    return (found.mean, found.low, found.high) if isinstance(found, Estimate) else (found, None, None)
