"""Rows of an evaluation: what every registered metric says of a case, or why it has no value.

Turns cases into the rows of metrics.jsonl and of images.jsonl. Knows no files, no command and no formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal

from fewbayes.metrics import scores
from fewbayes.metrics.cases import Case, Pooled
from fewbayes.metrics.encoders import Encoder, Encoders, Missing
from fewbayes.metrics.registry import Metric, registered
from fewbayes.metrics.scores import Mean, Unavailable

PictureScores = dict[str, list[dict[str, Any]]]
"""The scores of single pictures, by file."""


@dataclass(frozen=True)
class Row:
    """A row of metrics.jsonl. row: whose pictures. average: over subjects. black, unreadable: pictures not scored."""

    metric: str
    value: float | None
    mode: Literal["sound", "paper"]
    row: str
    n: int
    subject: str | None
    arm: str | None
    seed: int | None
    black: int | None = None
    unreadable: int | None = None
    encoder: str | None = None
    encoder_sha256: str | None = None
    preprocessing: str | None = None
    average: Literal["macro", "micro"] | None = None
    note: str | None = None
    reason: str | None = None

    def plain(self) -> dict[str, Any]:
        """As it is written: of what a row need not say, nothing where there is nothing."""
        found = asdict(self)
        always = ("value", "subject", "arm", "seed", "encoder")
        return {key: value for key, value in found.items() if value is not None or key in always}


def about(encoder: Encoder | Missing | None) -> dict[str, Any]:
    """The encoder's share of a row."""
    if encoder is None:
        return {"encoder": None}
    if isinstance(encoder, Missing):
        return {"encoder": encoder.name}
    identity = encoder.identity
    return {"encoder": identity.name, "encoder_sha256": identity.sha256, "preprocessing": identity.preprocessing}


def sound_rows(case: Case, encoders: Encoders, keys: Mapping[str, Any]) -> tuple[list[Row], PictureScores]:
    """All metrics of one subject: of its pictures, of the base model's, and of its references among themselves."""
    rows: list[Row] = []
    images: PictureScores = {}
    for metric in registered():
        computed = [("samples", partial(metric.sound, case, case.samples), metric.note(case, case.samples))]
        if case.base and metric.of_base:
            computed.append(("base", partial(metric.sound, case, case.base), metric.note(case, case.base)))
        if metric.real:
            computed.append(("real", partial(metric.real, case), None))
        for kind, compute, note in computed:
            said = {"row": kind, "mode": "sound", "subject": case.subject, **keys, **asdict(case.counts[kind])}
            row, mean = _scored(metric, _player(encoders, metric.encoder), compute, note=note, **said)
            rows.append(row)
            if kind == "samples" and mean and mean.each is not None:
                _keep_each(row, mean, case, images)
    return rows, images


def paper_rows(pooled: Pooled, encoders: Encoders, keys: Mapping[str, Any]) -> list[Row]:
    """The paper's metrics over all subjects at once."""
    average = "micro" if len(pooled.references) > 1 else None
    said = {"mode": "paper", "subject": pooled.subject, "average": average, **keys}
    return [
        _scored(metric, _player(encoders, metric.key_in_paper), partial(compute, pooled), row=kind, **said)[0]
        for metric in registered()
        for kind, compute in (("samples", metric.paper), ("real", metric.paper_real))
        if compute
    ]


def _player(encoders: Encoders, key: str | None) -> Encoder | Missing | None:
    """The encoder of a metric; None for one that is of pixels."""
    return None if key is None else encoders.get(key, Missing(key, "there is no such encoder"))


def _scored(
    metric: Metric, encoder: Encoder | Missing | None, compute: Callable[[], Mean], **said: Any
) -> tuple[Row, Mean | None]:
    """A row, and the mean that it holds where it holds one."""
    row = Row(metric.name, None, n=0, **said, **about(encoder))
    try:
        if isinstance(encoder, Missing):
            raise Unavailable(encoder.reason)
        mean = compute()
        if not math.isfinite(mean.value):
            raise Unavailable("the value is not a finite number")
    except Unavailable as error:
        return replace(row, reason=str(error)), None
    return replace(row, value=mean.value, n=mean.n), mean


def _keep_each(row: Row, mean: Mean, case: Case, images: PictureScores) -> None:
    assert mean.each is not None
    for i, (sample, value) in enumerate(zip(case.samples, mean.each, strict=True)):
        entry = {"metric": row.metric, "value": float(value), "encoder": row.encoder}
        if mean.nearest is not None:
            entry["reference"] = case.references[int(mean.nearest[i])].file
        images.setdefault(sample.file, []).append(entry)


def macro_rows(rows: Sequence[Row]) -> list[Row]:
    """Of several subjects: the mean over subjects, each counted once; null where a subject has no value."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.metric, row.row, row.encoder), []).append(row)
    return [_macro(group) for group in groups.values()]


def _macro(group: Sequence[Row]) -> Row:
    absent = [row for row in group if row.value is None]
    notes = [f"{row.subject}: {row.note}" for row in group if row.note]
    return replace(
        group[0],
        subject=None,
        average="macro",
        n=len(group),
        black=sum(row.black or 0 for row in group),
        unreadable=sum(row.unreadable or 0 for row in group),
        note="; ".join(notes) or None,
        value=None if absent else scores.macro({str(row.subject): row.value for row in group if row.value is not None}),
        reason=f"no value for {', '.join(str(row.subject) for row in absent)}: {absent[0].reason}" if absent else None,
    )
