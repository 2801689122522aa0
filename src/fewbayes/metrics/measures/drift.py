"""Drift: how far pictures of other things moved from the base model's of the same prompt and seed."""

from __future__ import annotations

from functools import partial

from fewbayes.metrics import scores
from fewbayes.metrics.cases import NO_BASE, NO_UNRELATED, Case, Samples, part_note
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean, Unavailable


def drift(key: str, case: Case, samples: Samples) -> Mean:
    case.check_told()
    if not case.unrelated_pairs:
        raise Unavailable(NO_UNRELATED if case.pairs else NO_BASE)
    tuned, base = ([pair[side] for pair in case.unrelated_pairs] for side in (0, 1))
    values = scores.drift(case.store.matrix(key, tuned), case.store.matrix(key, base))
    return Mean(float(values.mean()), len(values))


def paired(case: Case, samples: Samples) -> str | None:
    if not case.pairs and not case.unrelated_pairs:
        return None
    return part_note(len(case.unrelated_pairs), len(case.unrelated), "pictures have a partner")


register(
    Metric(
        "drift",
        "Drift",
        "how far pictures of prompts without the rare token moved from the base model's",
        partial(drift, "dino"),
        better=-1,
        place=("beside", 9),
        encoder="dino",
        of_base=False,
        note=paired,
    ),
    Metric(
        "drift_dinov2",
        "Drift, DINOv2",
        "as Drift, by DINOv2",
        partial(drift, "dinov2"),
        better=-1,
        encoder="dinov2",
        of_base=False,
        note=paired,
    ),
)
