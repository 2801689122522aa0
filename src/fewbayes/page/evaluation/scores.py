"""The table of an evaluation: estimates of every line, differences of arms that are compared, and what they say.

Also as text: Markdown, LaTeX, CSV and JSON. The captions name the encoders as they call themselves. What a metric is
called, which way it is better and how many digits it has is read from the registry of metrics.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.registry import Metric, in_table
from fewbayes.metrics.statistics import (
    FEWEST_SUBJECTS,
    Comparison,
    Estimate,
    Units,
    compare,
    grouped,
    holm,
    interval,
    reading,
)
from fewbayes.page.evaluation.reading import POOLED, Arm, Evaluation, has_number
from fewbayes.page.render import counted
from fewbayes.page.table import ABSENT, Column, Table, Value, comma_separated, latex, markdown

ALPHA = 0.05
ROWS = {
    "base": "Base model",
    "noise": "Pure noise",
    "copies": "Copies of the training images",
    "shuffled": "Samples of other subjects",
    "unseen": "Likeness to the image held out",
    "real": "Real against real",
}
"""Rows beside the arms, by the `row` key of metrics.jsonl, with what a table calls them; the last stands last."""


@dataclass(frozen=True)
class Line:
    """An arm ("arm"), or an extra row of ROWS ("row")."""

    name: str
    label: str
    kind: str
    cells: Mapping[str, Estimate]


@dataclass(frozen=True)
class Difference:
    """`treated` less `control` in every metric; `holm` is p adjusted over the metrics of this row. per_subject: the
    mean difference of each subject with the interval over its own seeds."""

    treated: Arm
    control: Arm
    cells: Mapping[str, Comparison]
    holm: Mapping[str, float | None]
    per_subject: Mapping[str, Mapping[str, Estimate]] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{self.treated.label} less {self.control.label}"

    def sides(self, metrics: Sequence[Metric]) -> dict[Metric, int]:
        """1 where a metric's interval lies above zero, -1 where below, 0 where across; of those that have one."""
        found = {metric: self.cells[metric.name].difference for metric in metrics}
        return {m: (d.low > 0) - (d.high < 0) for m, d in found.items() if d.low is not None and d.high is not None}


@dataclass(frozen=True)
class Scores:
    """One mode's numbers of some metrics. test: what the p values of the differences are; empty without any."""

    mode: str
    metrics: list[Metric]
    lines: list[Line]
    differences: list[Difference]
    caption: str
    test: str


def all_scores(evaluation: Evaluation) -> list[Scores]:
    """The paper's five in each mode, then the metrics beside them in each mode that has any."""
    tables = (in_table("paper"), in_table("beside"))
    found = [make_scores(evaluation, mode, metrics) for metrics in tables for mode in evaluation.modes]
    return [scores for scores in found if scores.metrics]


def make_scores(evaluation: Evaluation, mode: str, metrics: Sequence[Metric] | None = None) -> Scores:
    """Estimates of every line, differences of every arm that is compared with another. None: the paper's five."""
    units = evaluation.units[mode]
    shown = [
        metric
        for metric in (in_table("paper") if metrics is None else metrics)
        if any(map(has_number, units.get(metric.name, {}).values()))
    ]
    arms = {arm.name: arm.label for arm in evaluation.arms}
    labels = ROWS | arms
    labels |= {
        f"{name}{POOLED}": f"{label}, pooled over {counted(evaluation.pooled, 'subject')}"
        for name, label in labels.items()
    }
    present = {line for metric in shown for line in units[metric.name]}
    *before, last = ROWS
    order = [*before, *arms, *sorted(present - ROWS.keys() - arms.keys()), last]
    lines = [
        Line(
            name,
            labels.get(name, name),
            "arm" if name in arms else "row",
            {metric.name: interval(units[metric.name].get(name, {})) for metric in shown},
        )
        for name in order
        if name in present
    ]
    differences = _differences(evaluation, units, shown)
    return Scores(mode, shown, lines, differences, _caption(evaluation, mode, shown), _about_test(differences))


def _differences(
    evaluation: Evaluation, units: Mapping[str, Mapping[str, Units]], shown: Sequence[Metric]
) -> list[Difference]:
    by_name = {arm.name: arm for arm in evaluation.arms}
    found = []
    for arm in evaluation.arms:
        control = by_name.get(arm.against or "")
        if control is None:
            continue
        pairs = {m.name: (units[m.name].get(arm.name, {}), units[m.name].get(control.name, {})) for m in shown}
        cells = {m.name: compare(*pairs[m.name], better=m.better or 1) for m in shown}
        per_subject = {name: _per_subject(*pair) for name, pair in pairs.items()}
        adjusted = holm({name: cell.p for name, cell in cells.items()})
        found.append(Difference(arm, control, cells, adjusted, per_subject))
    return found


def _per_subject(treated: Units, control: Units) -> dict[str, Estimate]:
    def of(units: Units, subject: str) -> Units:
        return {key: value for key, value in units.items() if key[0] == subject}

    subjects = sorted({subject for subject, _ in treated.keys() & control.keys()})
    return {name: compare(of(treated, name), of(control, name)).difference for name in subjects}


# --- words ------------------------------------------------------------------------------------------------------------


def _caption(evaluation: Evaluation, mode: str, shown: Sequence[Metric]) -> str:
    """What was measured, by which encoders under their own names, over how many trainings."""
    units = evaluation.units[mode]
    by = grouped((evaluation.encoder(mode, metric.name) or "no encoder", metric.title) for metric in shown)
    own = any(name.startswith("fewbayes-") for m in shown for name in evaluation.encoders.get((mode, m.name), ()))
    subjects, trainings = _extent(evaluation, mode)
    how = "all pairs, nothing dropped silently"
    if mode == "paper":
        how = "the authors' averaging, quirks included"
    if mode == "paper" and subjects > 1:
        how = "the authors' averaging within each subject, quirks included; macro over subjects"
    ceilings = [
        metric.title
        for metric in shown
        if metric.ceiling
        and any(name.startswith("real") and has_number(line) for name, line in units[metric.name].items())
    ]
    encoders = "; ".join(f"{', '.join(titles)} by {name}" for name, titles in by.items())
    said = [f"{encoders} ({mode} mode: {how})."]
    if own:
        said.append(
            "The encoders called fewbayes- were trained on the embedded world: their numbers compare with one another "
            "and with no published table."
        )
    if subjects:
        said.append(f"Macro mean over {counted(subjects, 'subject')}, with its 95 % interval.")
        said.append(reading(subjects, trainings))
    else:
        said.append(f"One number over the pictures of {counted(evaluation.pooled, 'subject')} together.")
    if ceilings:
        said.append(f"Real against real is a ceiling in {', '.join(ceilings)}, and none in other columns.")
    return " ".join(said)


def _extent(evaluation: Evaluation, mode: str) -> tuple[int, int]:
    """Number of subjects and of trainings (subject, seed) that any arm was measured on."""
    arms = {arm.name for arm in evaluation.arms}
    keys = {
        key
        for lines in evaluation.units[mode].values()
        for name, units in lines.items()
        if name in arms
        for key, value in units.items()
        if value is not None
    }
    return len({subject for subject, _ in keys}), len(keys)


def _about_test(differences: Sequence[Difference]) -> str:
    cells = [cell for row in differences for cell in row.cells.values() if cell.p is not None]
    if not cells:
        return ""
    least = probability(max(cell.smallest_p or 0 for cell in cells))
    fewest = min(cell.difference.subjects for cell in cells)
    what = f"mean differences of subjects; {fewest} of them can give no p below {least}, whatever the data"
    if any(cell.p_over != "subjects" for cell in cells):
        what = "single pairs of trainings of the one subject, and of it alone it speaks; so few can give no p below "
        what += least
    return (
        f"p: two-sided Wilcoxon signed-rank test over {what}. "
        "Holm: adjusted over the metrics of the row. Wins: share of subjects on the better side, ties as half."
    )


def verdict(scores: Scores) -> list[str]:
    """One line a comparison: which intervals lie off zero, of whom that speaks, and what is left of it after Holm's
    adjustment."""
    return [f"{row.label}: {_told(row, scores.metrics)}." for row in scores.differences]


def _told(row: Difference, metrics: Sequence[Metric]) -> str:
    sides = grouped((side, metric.title) for metric, side in row.sides(metrics).items())
    if not sides:
        return "too few trainings for an interval"
    words = {1: "above", -1: "below", 0: "across"}
    said = [f"interval {word} zero in {', '.join(sides[side])}" for side, word in words.items() if side in sides]
    return "; ".join([*said, _sure(row, metrics)])


def _sure(row: Difference, metrics: Sequence[Metric]) -> str:
    """What the tests add, and of whom they and the intervals speak."""
    subjects = max(cell.difference.subjects for cell in row.cells.values())
    if 1 < subjects < FEWEST_SUBJECTS:
        least = 2.0 ** (1 - subjects)
        return f"this speaks of these {subjects} subjects, over which no p can fall below {least:.2g}"
    sure = [m.title for m in metrics if (p := row.holm[m.name]) is not None and p < ALPHA]
    said = f"p below {ALPHA} after Holm's adjustment in {', '.join(sure) or 'none of them'}"
    return said if subjects > 1 else f"{said}; this speaks of this one subject"


def probability(p: float | None) -> str:
    if p is None:
        return ABSENT
    return "< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


# --- files ------------------------------------------------------------------------------------------------------------


def write_scores(evaluation: Evaluation, output: Path) -> None:
    """Write `<output>.md`, `.tex`, `.csv` and `.json`, every mode and the metrics beside the paper's in each."""
    found = all_scores(evaluation)
    rows = long_rows(evaluation, found)
    columns = [Column(name) for name in dict.fromkeys(key for row in rows for key in row)]
    long = Table(columns, [[row.get(column.title) for column in columns] for row in rows])
    told = {
        "title": evaluation.title,
        "captions": [{"mode": scores.mode, "caption": scores.caption, "test": scores.test} for scores in found],
        "rows": rows,
        "units": _plain(evaluation.units),
        "absent": dict(evaluation.absent),
        "notes": list(evaluation.notes),
        "facts": dict(evaluation.facts),
    }
    atomic_write(output.with_suffix(".md"), "\n\n".join(map(as_markdown, found)) + "\n")
    atomic_write(output.with_suffix(".tex"), "\n\n".join(map(as_latex, found)) + "\n")
    atomic_write(output.with_suffix(".csv"), comma_separated(long))
    atomic_write(output.with_suffix(".json"), json.dumps(told, indent=1, allow_nan=False) + "\n")


def _plain(units: Mapping[str, Mapping[str, Mapping[str, Units]]]) -> dict[str, Any]:
    """mode -> metric -> line -> "subject/seed" -> value: what any other statistic can be made of. Metrics without any
    number are left out; `absent` has the reason."""
    return {
        mode: {
            metric: {name: {f"{s}/{seed}": v for (s, seed), v in its.items()} for name, its in lines.items()}
            for metric, lines in metrics.items()
            if any(map(has_number, lines.values()))
        }
        for mode, metrics in units.items()
    }


def as_markdown(scores: Scores) -> str:
    """Caption, the lines with their intervals, and the differences with their tests."""
    lines, differences = tables_of(scores)
    parts = [scores.caption, markdown(lines)]
    if differences.rows:
        parts += [scores.test, markdown(differences)]
    return "\n\n".join(part for part in parts if part)


def as_latex(scores: Scores) -> str:
    return latex([table for table in tables_of(scores) if table.rows], f"{scores.caption} {scores.test}".rstrip())


def tables_of(scores: Scores) -> tuple[Table, Table]:
    """The lines, and the differences: win rate where there is a better side, p as it is and by Holm."""
    columns = [Column(metric.title, metric.digits, metric.better) for metric in scores.metrics]
    lines = [[line.label, *(line.cells[m.name] for m in scores.metrics)] for line in scores.lines]
    differences = [
        [row.label, *(Value(row.cells[m.name].difference, sign=True, after=_tested(row, m)) for m in scores.metrics)]
        for row in scores.differences
    ]
    return Table([Column(""), *columns], lines), Table([Column("difference"), *columns], differences)


def _tested(row: Difference, metric: Metric) -> str:
    cell = row.cells[metric.name]
    won = f"; wins {cell.win_rate:.2f}" if metric.better and cell.win_rate is not None else ""
    p = f"; p {probability(cell.p)}, Holm {probability(row.holm[metric.name])}" if cell.p is not None else ""
    return won + p


def long_rows(evaluation: Evaluation, found: Sequence[Scores]) -> list[dict[str, Any]]:
    """Every estimate and every comparison, one row each, unrounded."""
    rows = []
    for scores in found:
        for m in scores.metrics:
            common = {"mode": scores.mode, "metric": m.name, "encoder": evaluation.encoder(scores.mode, m.name) or None}
            for line in scores.lines:
                named = {"kind": line.kind, "line": line.name, "against": None}
                rows.append(common | named | _numbers(line.cells[m.name]))
            for row in scores.differences:
                cell = row.cells[m.name]
                named = {"kind": "difference", "line": row.treated.name, "against": row.control.name}
                tests = {"win_rate": cell.win_rate if m.better else None, "p": cell.p, "p_holm": row.holm[m.name]}
                rows.append(common | named | _numbers(cell.difference) | tests | {"p_over": cell.p_over})
    return rows


def _numbers(found: Estimate) -> dict[str, Any]:
    return {name: getattr(found, name) for name in ("mean", "low", "high", "subjects", "units", "missing")}
