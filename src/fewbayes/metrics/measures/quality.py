"""Clip-IQA: which of two sentences, of a good and of a bad photo, suits a picture."""

from __future__ import annotations

from fewbayes.metrics import paper, scores
from fewbayes.metrics.cases import Case, Pooled, Samples, some
from fewbayes.metrics.features import FeatureStore, Floats
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean

NATIVE = "clip_iqa_native"
"""The encoder of paper mode, which takes small pictures at their own size."""


def _quality(store: FeatureStore, samples: Samples, key: str = "clip_iqa") -> Floats:
    encoder = store.encoders[key]
    return scores.quality(store.matrix(key, samples), encoder.anchors, encoder.scale)


def clip_iqa(case: Case, samples: Samples) -> Mean:
    return Mean.over(_quality(case.store, some(samples)))


def paper_clip_iqa(pooled: Pooled) -> Mean:
    some(pooled.samples)
    counts = {subject: len(pictures) for subject, pictures in pooled.known().items()}
    return paper.clip_iqa(_quality(pooled.store, pooled.samples, NATIVE), counts, pooled.folders)


def paper_real_clip_iqa(pooled: Pooled) -> Mean:
    known = {subject: _quality(pooled.store, pictures, NATIVE) for subject, pictures in pooled.known().items()}
    return paper.real_clip_iqa(known, pooled.folders)


register(
    Metric(
        "clip_iqa",
        "Clip-IQA",
        "which of two sentences, of a good and of a bad photo, suits the picture",
        clip_iqa,
        better=1,
        place=("paper", 5),
        encoder="clip_iqa",
        real=lambda case: clip_iqa(case, case.references),
        paper=paper_clip_iqa,
        paper_real=paper_real_clip_iqa,
        paper_encoder=NATIVE,
    )
)
