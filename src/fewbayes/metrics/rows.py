"""Rows of an evaluation: what every registered metric says of a case, or why it has no value.

Knows no files, no command and no formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from typing import Any

import numpy as np

from fewbayes.metrics.cases import Case, Pooled
from fewbayes.metrics.encoders import Encoder, Encoders, Missing
from fewbayes.metrics.folders import Pictures, Sample
from fewbayes.metrics.layout import PictureRow, Row
from fewbayes.metrics.registry import Metric, registered
from fewbayes.metrics.scores import Mean, Unavailable
from fewbayes.metrics.statistics import grouped


def about(encoder: Encoder | Missing | None) -> dict[str, Any]:
    """The encoder's share of a row."""
    if encoder is None:
        return {"encoder": None}
    if isinstance(encoder, Missing):
        return {"encoder": encoder.name}
    identity = encoder.identity
    return {"encoder": identity.name, "encoder_sha256": identity.sha256, "preprocessing": identity.preprocessing}


def sound_rows(case: Case, encoders: Encoders, keys: Mapping[str, Any]) -> tuple[list[Row], list[PictureRow]]:
    """All metrics of one subject: of its pictures, of the base model's, and of its references among themselves."""
    rows: list[Row] = []
    pictures: list[PictureRow] = []
    for metric in registered():
        computed = [("samples", partial(metric.sound, case, case.samples), metric.note(case, case.samples))]
        if case.base and metric.of_base:
            computed.append(("base", partial(metric.sound, case, case.base), metric.note(case, case.base)))
        if case.unseen and metric.ceiling:
            apart = replace(case, references=case.unseen)
            computed.append(("unseen", partial(metric.sound, apart, case.samples), None))
        if metric.real:
            computed.append(("real", partial(metric.real, case), None))
        for kind, compute, note in computed:
            said = {"row": kind, "mode": "sound", "subject": case.subject, **keys, **asdict(case.counts[kind])}
            row, mean = _scored(metric, _player(encoders, metric.encoder), compute, note=note, **said)
            rows.append(row)
            if kind == "samples" and mean and mean.each is not None:
                pictures += _of_each(row, mean, case, keys)
    return rows, pictures


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
    row = Row(metric=metric.name, **said, **about(encoder))
    try:
        if isinstance(encoder, Missing):
            raise Unavailable(encoder.reason)
        mean = compute()
        if not math.isfinite(mean.value):
            raise Unavailable("the value is not a finite number")
    except Unavailable as error:
        return replace(row, reason=str(error)), None
    return replace(row, value=mean.value, n=mean.n), mean


def _of_each(row: Row, mean: Mean, case: Case, keys: Mapping[str, Any]) -> Iterator[PictureRow]:
    """The score of every picture."""
    assert mean.each is not None
    for i, (sample, value) in enumerate(zip(case.samples, mean.each, strict=True)):
        reference = None if mean.nearest is None else case.references[int(mean.nearest[i])].file
        said = {"metric": row.metric, "value": float(value), "encoder": row.encoder, "reference": reference}
        yield _picture_row(sample, keys, **said)


def _picture_row(sample: Sample, keys: Mapping[str, Any], **said: Any) -> PictureRow:
    names = ("file", "subject", "prompt", "prompt_id", "sample", "sha256")
    about_it = {name: getattr(sample, name) for name in names}
    return PictureRow(**about_it, image_seed=sample.seed, **keys, **said)


def picture_rows(
    pictures: Pictures, black: Collection[Sample], scored: Iterable[PictureRow], keys: Mapping[str, Any]
) -> list[PictureRow]:
    """Picture by picture; a black or unreadable one has a row that says so."""
    by_file = grouped((row.file, row) for row in scored)
    rows: list[PictureRow] = []
    for sample in pictures.samples:
        rows += [_picture_row(sample, keys, metric="black", value=1.0)] if sample in black else []
        rows += by_file.get(sample.file, [])
    return rows + [
        PictureRow(file=file, metric="unreadable", subject=lost.subject, reason=lost.reason, **keys)
        for file, lost in pictures.unreadable.items()
    ]


def macro_rows(rows: Sequence[Row]) -> list[Row]:
    """Of several subjects: the mean over subjects, each counted once; null where a subject has no value."""
    return [_macro(group) for group in grouped(((row.metric, row.row, row.encoder), row) for row in rows).values()]


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
        value=None if absent else float(np.mean([row.value for row in group if row.value is not None])),
        reason=f"no value for {', '.join(str(row.subject) for row in absent)}: {absent[0].reason}" if absent else None,
    )
