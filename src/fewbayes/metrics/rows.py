"""Rows of an evaluation: what every registered metric says of a case, or why it has no value.

Turns cases into the rows of metrics.jsonl and of images.jsonl. Knows no files, no command and no formula.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from fewbayes.metrics import scores
from fewbayes.metrics.cases import Case, Lost, Pooled
from fewbayes.metrics.encoders import Encoders, Missing
from fewbayes.metrics.registry import Metric, registered
from fewbayes.metrics.scores import Mean, Unavailable


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


@dataclass
class Rows:
    """Rows of one case in one mode as they come. images: scores of single pictures, by file and metric."""

    mode: Literal["sound", "paper"]
    encoders: Encoders
    about: Mapping[str, Any]
    """Subject, arm and seed; and `average` where pictures of several subjects are together."""
    rows: list[Row] = field(default_factory=list)
    images: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def add(
        self,
        metric: Metric,
        key: str | None,
        compute: Callable[[], Mean],
        row: str,
        lost: Lost | None = None,
        note: str | None = None,
    ) -> Mean | None:
        """One row; the value that it has, None where it has none."""
        encoder = self.encoders.get(key) if key else None
        found = Row(
            metric.name,
            None,
            self.mode,
            row,
            0,
            **self.about,
            **(asdict(lost) if lost else {}),
            **about(encoder),
            note=note,
        )
        try:
            if isinstance(encoder, Missing):
                raise Unavailable(encoder.reason)
            mean = compute()
            if not math.isfinite(mean.value):
                raise Unavailable("the value is not a finite number")
        except Unavailable as error:
            self.rows.append(replace(found, reason=str(error)))
            return None
        self.rows.append(replace(found, value=mean.value, n=mean.n))
        return mean

    def keep_each(self, metric: Metric, case: Case, mean: Mean) -> None:
        """The score of every picture."""
        if mean.each is None:
            return
        name = self.rows[-1].encoder
        for i, (sample, value) in enumerate(zip(case.samples, mean.each, strict=True)):
            entry = {"metric": metric.name, "value": float(value), "encoder": name}
            if mean.nearest is not None:
                entry["reference"] = case.references[int(mean.nearest[i])].file
            self.images.setdefault(sample.file, {})[metric.name] = entry


def about(encoder: Any) -> dict[str, Any]:
    """The encoder's share of a row."""
    if encoder is None:
        return {"encoder": None}
    if isinstance(encoder, Missing):
        return {"encoder": encoder.name}
    identity = encoder.identity
    return {"encoder": identity.name, "encoder_sha256": identity.sha256, "preprocessing": identity.preprocessing}


def sound_rows(case: Case, encoders: Encoders, keys: Mapping[str, Any]) -> Rows:
    """All metrics of one subject: of its pictures, of the base model's, and of its references among themselves."""
    out = Rows("sound", encoders, {"subject": case.subject, **keys})
    for metric in registered():
        key = metric.encoder
        note = metric.note(case, case.samples)
        mean = out.add(
            metric, key, lambda m=metric: m.sound(case, case.samples), "samples", case.counts["samples"], note
        )
        if mean:
            out.keep_each(metric, case, mean)
        if case.base and metric.of_base:
            note = metric.note(case, case.base)
            out.add(metric, key, lambda m=metric: m.sound(case, case.base), "base", case.counts["base"], note)
        if real := metric.real:
            out.add(metric, key, lambda real=real: real(case), "real", case.counts["real"])
    return out


def paper_rows(pooled: Pooled, encoders: Encoders, keys: Mapping[str, Any]) -> list[Row]:
    """The paper's metrics over all subjects at once."""
    average = {"average": "micro"} if len(pooled.references) > 1 else {}
    out = Rows("paper", encoders, {"subject": pooled.subject, **keys, **average})
    for metric in registered():
        for row, compute in (("samples", metric.paper), ("real", metric.paper_real)):
            if compute:
                out.add(metric, metric.key_in_paper, lambda compute=compute: compute(pooled), row)
    return out.rows


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
