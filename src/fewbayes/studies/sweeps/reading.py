"""What a sweep found, read off its scores: the paper's claims beside it, spread over seeds, prompts, and costs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from fewbayes.files.atomic import atomic_write
from fewbayes.metrics.registry import Metric, in_table
from fewbayes.metrics.statistics import Comparison, Estimate, Units, compare, finite, holm, interval
from fewbayes.page.evaluation import make_scores, read_evaluation
from fewbayes.page.evaluation.reading import Arm, Evaluation
from fewbayes.page.evaluation.scores import ALPHA, all_scores, as_markdown, probability
from fewbayes.page.table import ABSENT, Column, Entry, Table, Value, markdown
from fewbayes.studies.sweeps.catalogue import Sweep, View
from fewbayes.studies.sweeps.cells import HELD_APART
from fewbayes.studies.sweeps.pictures import curves, panels

GIGA = 1e9


def write_sweep(folder: Path, name: str, sweep: Sweep) -> list[Path]:
    """`<name>.md` with all tables, `<name>.png`, and in `<name>_pictures.png` samples chosen before any score."""
    evaluation = read_evaluation(folder)
    costs = cost_table(evaluation)
    claims = judged(evaluation, sweep)
    parts = [
        _head(evaluation, evaluation.title, evaluation.question),
        *([_claims(claims)] if claims else []),
        *map(as_markdown, all_scores(evaluation)),
    ]
    unseen = unseen_table(evaluation)
    parts += ["Likeness to images that training did not see.", markdown(unseen)] if unseen.rows else []
    parts += ["What a training costs.", markdown(costs)] if costs.rows else []
    atomic_write(folder / f"{name}.md", "\n\n".join([*parts, *evaluation.notes]) + "\n")
    samples = panels(evaluation, View(name, sweep.title, ("random",)), folder / f"{name}_pictures.png")
    return [folder / f"{name}.md", curves(evaluation, sweep, folder / f"{name}.png"), samples]


def write_view(folder: Path, name: str, view: View) -> Path:
    """`<name>.md` or `<name>.png` in the folder of its sweep."""
    evaluation = read_evaluation(folder)
    tables: dict[str, Callable[[Evaluation], Table]] = {"prompts": prompt_table, "spread": spread_table}
    if view.shows[0] not in tables:
        return panels(evaluation, view, folder / f"{name}.png")
    text = "\n\n".join([_head(evaluation, view.title, view.says), markdown(tables[view.shows[0]](evaluation))])
    atomic_write(folder / f"{name}.md", text + "\n")
    return folder / f"{name}.md"


def _head(evaluation: Evaluation, title: str, paper: str) -> str:
    facts = evaluation.facts
    tried = ["Only tried out: nothing follows from it."] if facts.get("quick") else []
    says = [f"Paper: {paper}"] if paper else []
    command = facts.get("provenance", {}).get("command", "")
    return "\n\n".join([f"# {title}", f"    {command}", *says, *tried])


# --- the paper's claims -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """A claim of the paper beside what was found. expected: its difference, or 1 or -1 where it says only which way;
    p: by Holm over all claims of the table."""

    words: str
    metric: Metric
    expected: float
    found: Comparison
    p: float | None

    @property
    def verdict(self) -> str:
        """Open unless a test over subjects says otherwise: one subject, or too few, confirms and refutes nothing."""
        told = self.found.difference.mean
        if told is None or self.p is None or self.p >= ALPHA or self.found.p_over != "subjects":
            return "open"
        return "confirmed" if told * self.expected > 0 else "refuted"


def judged(evaluation: Evaluation, sweep: Sweep) -> list[Judged]:
    scores = make_scores(evaluation, evaluation.modes[0])
    values = {arm["name"]: arm["value"] for arm in evaluation.facts["arms"]}
    claims = [
        (row, metric, gain)
        for row in scores.differences
        for metric in scores.metrics
        if (gain := sweep.expected(values[row.treated.name]).get(metric.name))
    ]
    adjusted = holm({str(i): row.cells[metric.name].p for i, (row, metric, _) in enumerate(claims)})
    return [
        Judged(row.label, metric, gain, row.cells[metric.name], adjusted[str(i)])
        for i, (row, metric, gain) in enumerate(claims)
    ]


def _claims(claims: Sequence[Judged]) -> str:
    rows: list[list[Entry]] = [
        [
            one.words,
            one.metric.title,
            f"{one.expected:+.3f}" if isinstance(one.expected, float) else "more" if one.expected > 0 else "less",
            Value(one.found.difference, sign=True),
            one.found.win_rate,
            probability(one.p),
            one.verdict,
        ]
        for one in claims
    ]
    least = max((one.found.smallest_p or 1) for one in claims) * len(claims)
    note = (
        f"Holm over these {len(claims)} claims. So few subjects can give no such p below {probability(min(least, 1))}, "
        "whatever the data, so that all of them stay open."
        if least >= ALPHA
        else f"Holm over these {len(claims)} claims; open: p of {ALPHA} or more."
    )
    heads = ("difference", "metric", "paper", "here", "wins", "p, Holm", "the paper's sign is")
    columns = [Column(head, 3 if head == "here" else 2) for head in heads]
    return "\n\n".join([markdown(Table(columns, rows)), note])


# --- other readings ---------------------------------------------------------------------------------------------------


def _sides(evaluation: Evaluation) -> list[tuple[Arm, Arm]]:
    """Arms and what they are compared with."""
    named = {arm.name: arm for arm in evaluation.arms}
    return [(arm, named[arm.against]) for arm in evaluation.arms if arm.against in named]


def spread_table(evaluation: Evaluation) -> Table:
    """The standard deviation over the seeds of a subject, mean over subjects; and differences in units of the plain
    arm's, which says whether another seed would do as much."""
    units, metrics = evaluation.units[evaluation.modes[0]], in_table("paper")

    def of(metric: Metric, arm: Arm) -> float | None:
        return _spread(units.get(metric.name, {}).get(arm.name, {}))

    def gain(metric: Metric, treated: Arm, control: Arm) -> float | None:
        lines, spread = units.get(metric.name, {}), of(metric, control)
        found = compare(lines.get(treated.name, {}), lines.get(control.name, {})).difference.mean
        return found / spread if spread and found is not None else None

    rows: list[list[Entry]] = [[arm.label, *(of(metric, arm) for metric in metrics)] for arm in evaluation.arms]
    rows += [
        [f"{a.label} less {b.label}, in spreads of the latter", *(gain(metric, a, b) for metric in metrics)]
        for a, b in _sides(evaluation)
    ]
    return Table([Column("spread over seeds"), *(Column(metric.title, 4) for metric in metrics)], rows)


def _spread(units: Units) -> float | None:
    by_subject: dict[str, list[float]] = {}
    for (subject, _), value in finite(units).items():
        by_subject.setdefault(subject, []).append(value)
    spreads = [stdev(values) for values in by_subject.values() if len(values) > 1]
    return mean(spreads) if spreads else None


def unseen_table(evaluation: Evaluation) -> Table:
    """Differences in likeness to images held out, whose lines stand in the first table."""
    units = evaluation.units[evaluation.modes[0]]
    metrics = [
        metric for metric in in_table("paper") if any(n.endswith(HELD_APART) for n in units.get(metric.name, {}))
    ]

    def gain(metric: Metric, *arms: Arm) -> Value:
        treated, control = (units[metric.name].get(arm.name + HELD_APART, {}) for arm in arms)
        return Value(compare(treated, control).difference, sign=True)

    rows: list[list[Entry]] = [
        [f"{a.label} less {b.label}", *(gain(metric, a, b) for metric in metrics)] for a, b in _sides(evaluation)
    ]
    columns = [Column(metric.title, metric.digits, metric.better) for metric in metrics]
    return Table([Column("difference"), *columns], rows if metrics else [])


def prompt_table(evaluation: Evaluation) -> Table:
    """Each prompt with the scores of the first plain arm, and how much more the Bayesian one has."""
    facts, found = evaluation.facts, {}
    nouns = {subject["name"]: subject["class_word"] for subject in facts["subjects"]}
    for picture in evaluation.pictures:
        text = picture.prompt.replace(facts["token"], "[V]").replace(nouns[picture.subject], "[object]")
        if "[V]" in text:
            for metric, value in picture.scores.items():
                each = found.setdefault(text, {}).setdefault((metric, picture.arm), {})
                each.setdefault((picture.subject, picture.seed), []).append(value)
    metrics = [m for m in in_table("paper") if any(m.name == name for each in found.values() for name, _ in each)]
    sides = _sides(evaluation)[:1]
    rows: list[list[Entry]] = []
    for text, lines in sorted(found.items()):
        row: list[Entry] = [text]
        for metric in metrics:
            for treated, control in sides:
                a, b = (_means(lines.get((metric.name, arm.name), {})) for arm in (treated, control))
                row += [interval(b).mean, Value(compare(a, b).difference, sign=True)]
        rows.append(row)
    columns = [Column(title, m.digits) for m in metrics for title in (m.title, f"{m.title}, Bayesian less plain")]
    return Table([Column("prompt"), *columns[: 2 * len(metrics) * len(sides)]], rows)


def _means(values: Mapping[tuple[str, int], Sequence[float]]) -> dict[tuple[str, int], float | None]:
    return {key: mean(each) for key, each in values.items()}


def cost_table(evaluation: Evaluation) -> Table:
    """Time and memory of a training by arm, and as a multiple of what it is compared with."""
    costs: list[dict[str, Any]] = evaluation.facts.get("costs", [])
    if not costs:
        return Table([], [])

    def of(arm: str, key: str) -> dict[tuple[str, int], float | None]:
        return {(c["subject"], c["seed"]): float(c[key]) for c in costs if c["arm"] == arm}

    def times(arm: Arm, key: str) -> Entry:
        mine, plain = of(arm.name, key), of(arm.against or "", key)
        shared = {unit: (mine[unit] or 0) / (plain[unit] or 1) for unit in mine.keys() & plain.keys()}
        return interval(shared) if shared else ABSENT

    def gigabytes(arm: Arm) -> Estimate:
        return interval({unit: (value or 0) / GIGA for unit, value in of(arm.name, "bytes").items()})

    rows: list[list[Entry]] = []
    for arm in evaluation.arms:
        time = interval(of(arm.name, "processor_seconds")), times(arm, "processor_seconds")
        rows.append([arm.label, *time, gigabytes(arm), times(arm, "bytes")])
    peak = "peak GB" if all(cost["measured"] for cost in costs) else "GB, estimated"
    heads = (("", 0), ("processor seconds", 1), ("times", 2), (peak, 3), ("times", 2))
    return Table([Column(title, digits) for title, digits in heads], rows)
