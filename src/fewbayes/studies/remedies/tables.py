"""The tables of the comparison of remedies, in words and Markdown."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from fewbayes.metrics.statistics import reading
from fewbayes.page.table import Column, Entry, Table, Value, markdown
from fewbayes.studies.course import MEASURES, PROMPT_FREE, SHARES, WEIGHED, WEIGHTS, Along
from fewbayes.studies.remedies.reading import EXTRA, FAR, Arm, Lead, by_arm, equally_far, leads, levels, trainings

CONTROLS = ("plain", "slow", "l2-10", "l2-40", "token")
"""What Bayesian training is held against beyond plain training of the same weights."""
CONTRASTED = ("usable", "corrupted", "best", "fidelity", "quality", "diversity")


def tables(study: Mapping[str, Any]) -> str:
    """The tables in words and Markdown."""
    table, labels = by_arm(study), {arm["name"]: arm["label"] for arm in study["arms"]}
    units = sorted({(cell["subject"], cell["seed"]) for cell in study["cells"]})
    subjects = sorted({subject for subject, _ in units})
    counts = trainings(study)
    notes = [f"- {arm['label']}: {arm['note']}" for arm in study["arms"]]
    parts = [
        f"{len(study['cells'])} trainings: {len(labels)} arms on {', '.join(subjects)}, "
        f"up to {len({seed for _, seed in units})} seeds. {reading(len(subjects), len(units))} "
        "A difference is followed by the pairs of trainings on the better side of zero, ties as half.",
        "\n".join(notes),
        *_incomplete(study),
        "## Levels\n\nMacro means over subjects, with 95 % intervals where there are several trainings. The last loss "
        "is of the means of the raw weights on the training images, relative to telling nothing, at the same draws "
        "in every arm: the lower, the better they are fitted.\n\n" + _levels(table, counts, labels),
        "## At the last checkpoint, other weights and more sampler steps\n\n" + _extras(table, counts, labels),
        "## Against plain training, raw weights\n\n" + _against(table, labels, [("plain", "raw")], table),
        "## Bayesian training against the other remedies\n\n" + _bayesian(table, labels),
        "## At the same distance from the initial weights\n\nLead over plain training that has gone as far, over the "
        "checkpoints that are not farther out than plain training ever was.\n\n"
        + _equally_far("displacement", study, labels),
        "## At the same loss on the training images\n\nLead over plain training whose loss has fallen as far, over the "
        "checkpoints that are not better fitted than plain training ever was; of the trainings whose loss was measured "
        "at every checkpoint.\n\n" + _equally_far("losses", study, labels),
    ]
    return "\n\n".join(parts) + "\n"


def _incomplete(study: Mapping[str, Any]) -> list[str]:
    """A paragraph on arms with fewer trainings than others, and one on trainings that failed, where there are any."""
    lost, labels = study.get("failed", ()), {arm["name"]: arm["label"] for arm in study["arms"]}
    begun = Counter(cell["arm"] for cell in (*study["cells"], *lost))
    most = max(begun.values())
    fewer = "; ".join(f"{labels[arm]} {count}" for arm, count in begun.items() if count < most)
    said = (
        f"Begun with fewer than {most} trainings: {fewer}. Levels of these are of fewer seeds than the others'; "
        "differences are between trainings of the same subject and seed."
    )
    failed = [f"- {labels[c['arm']]} on {c['subject']}, seed {c['seed']}: {c['failed']}" for c in lost]
    return [
        *([said] if fewer else []),
        *(["Failed, and in no number below:\n\n" + "\n".join(failed)] if failed else []),
    ]


def _levels(table: Mapping[Arm, Any], counts: Mapping[str, str], labels: Mapping[str, str]) -> str:
    shown = [_column(name) for name in MEASURES] + [Column(words) for words in WEIGHED.values()]
    rows: list[list[Entry]] = []
    for (arm, weights), found in table.items():
        if weights in WEIGHTS:
            values = levels(found)
            rows.append(
                [labels[arm], WEIGHTS[weights], counts[arm], *(values.get(name) for name in (*MEASURES, *WEIGHED))]
            )
    return _table(["arm", "weights", "trainings"], shown, rows)


def _extras(table: Mapping[Arm, Any], counts: Mapping[str, str], labels: Mapping[str, str]) -> str:
    rows: list[list[Entry]] = []
    for arm in labels:
        for kind, words in (WEIGHTS | EXTRA).items():
            if (arm, kind) in table:
                values = levels(table[arm, kind])
                rows.append([labels[arm], words, counts[arm], *(values[name] for name in PROMPT_FREE)])
    return _table(["arm", "weights", "trainings"], [_column(name) for name in PROMPT_FREE], rows)


def _against(
    table: Mapping[Arm, Any],
    labels: Mapping[str, str],
    controls: Sequence[Arm],
    treated: Sequence[Arm] | Mapping[Arm, Any],
) -> str:
    rows: list[list[Entry]] = []
    for control in controls:
        for arm in treated:
            if arm != control and arm in table and control in table and arm[1] in WEIGHTS:
                found = leads(table[arm], table[control])
                pairs = str(max(found[name].pairs for name in CONTRASTED))
                words = f"{_named(arm, labels)} less {_named(control, labels)}"
                rows.append([words, pairs, *(_lead(found[name]) for name in CONTRASTED)])
    return _table(["difference", "trainings"], [_column(name) for name in CONTRASTED], rows)


def _bayesian(table: Mapping[Arm, Any], labels: Mapping[str, str]) -> str:
    """Each standard deviation, so that none is picked after the fact; averaged against averaged."""
    arms = [arm for arm in labels if arm.startswith(("bayes", "fixed", "relative", "slow-bayes"))]
    pieces = [
        _against(table, labels, [(c, w) for c in CONTROLS if (c, w) != ("plain", "raw")], [(arm, w) for arm in arms])
        for w in WEIGHTS
    ]
    crossed = _against(table, labels, [("plain", "ema")], [(arm, "raw") for arm in arms])
    return "\n\n".join(piece for piece in (*pieces, crossed) if piece)


def _equally_far(along: Along, study: Mapping[str, Any], labels: Mapping[str, str]) -> str:
    rows: list[list[Entry]] = [
        [
            labels[arm],
            str(found["corruption"].units),
            *(Value(found[name], sign=True) for name in FAR),
            found["compared"],
        ]
        for arm, found in equally_far(along, study).items()
        if found["corruption"].units
    ]
    shown = [*(Column(words) for words in FAR.values()), Column("checkpoints compared, %", 0, percent=True)]
    return _table(["arm", "trainings"], shown, rows) or "Not measured."


def _named(arm: Arm, labels: Mapping[str, str]) -> str:
    return f"{labels[arm[0]]}, {(WEIGHTS | EXTRA)[arm[1]]}"


def _column(name: str) -> Column:
    words, unit, _ = MEASURES[name]
    share = name in SHARES
    return Column(f"{words}, {unit}" if unit else words, digits=0 if share else 2, percent=share)


def _lead(found: Lead) -> Value:
    return Value(found.difference, sign=True, after=f"; {found.wins:g} of {found.pairs}")


def _table(heads: Sequence[str], columns: Sequence[Column], rows: Sequence[Sequence[Entry]]) -> str:
    return markdown(Table([*map(Column, heads), *columns], rows)) if rows else ""
