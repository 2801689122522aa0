"""Every metric by its name: which way is better, what it needs, how each mode computes it, and the words for it.

A file in `fewbayes.metrics.measures` ends in `register(Metric(...))`; that file is all that a new metric takes. Rows,
tables, pages and the terminal read directions, titles and order here. Knows no formula and no file, asks for an encoder
by its key alone, and never imports torch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from fewbayes.metrics.scores import Mean
from fewbayes.registry import Registry

if TYPE_CHECKING:
    from fewbayes.metrics.cases import Case, Pooled, Samples

TableName = Literal["paper", "beside"]
"""The table of the paper's five, and the one beside it."""


@dataclass(frozen=True)
class Metric:
    """One metric. A computation returns a `Mean`, or raises `Unavailable` with the reason why there is no value."""

    name: str
    """Key in metrics.jsonl and images.jsonl."""
    title: str
    """Head of its column."""
    says: str
    """What it measures, in a line that begins in lower case and has no full stop."""
    sound: Callable[[Case, Samples], Mean]
    """Of pictures of one subject. A mean with `each` gives every picture a row in images.jsonl."""
    better: Literal[-1, 0, 1] = 0
    """1 where more is better, -1 where less is, 0 where neither is."""
    digits: int = 3
    place: tuple[TableName | None, int] = (None, 0)
    """Its table, and its column there, counted from 1."""
    ceiling: bool = False
    """Whether what the references have among themselves is the highest score that is no copying."""
    encoder: str | None = None
    """Key of the encoder in sound mode; None where pixels do."""
    of_base: bool = True
    """Whether the base model's pictures are scored too. Not where the metric compares with them."""
    real: Callable[[Case], Mean] | None = None
    """Of one subject's references against each other."""
    note: Callable[[Case, Samples], str | None] = lambda case, samples: None
    """What part of the pictures has a say, where not all have."""
    paper: Callable[[Pooled], Mean] | None = None
    """Of the pictures of all subjects, as the authors' evaluator averages."""
    paper_real: Callable[[Pooled], Mean] | None = None
    paper_encoder: str | None = None
    """Key of the encoder in paper mode, where it is another one."""

    @property
    def key_in_paper(self) -> str | None:
        return self.paper_encoder or self.encoder

    @property
    def arrow(self) -> str:
        return {1: "↑", -1: "↓", 0: ""}[self.better]


METRICS: Registry[Metric] = Registry("fewbayes.metrics.measures")
_TABLES: tuple[TableName | None, ...] = ("paper", "beside", None)


def register(*metrics: Metric) -> None:
    """Adds metrics; a name can be taken once."""
    for metric in metrics:
        METRICS.add(metric.name, metric)


def registered() -> tuple[Metric, ...]:
    """All metrics: the paper's in the order of its tables, those beside them, then the others."""
    found = METRICS.all().values()
    return tuple(sorted(found, key=lambda metric: (_TABLES.index(metric.place[0]), metric.place[1])))


def in_table(table: TableName) -> tuple[Metric, ...]:
    """The columns of a table, from left to right."""
    return tuple(metric for metric in registered() if metric.place[0] == table)
