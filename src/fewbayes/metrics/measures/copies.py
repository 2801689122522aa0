"""How near to a copy of a training image: correlation of pixels, and SSCD where it is there."""

from __future__ import annotations

from functools import partial

import numpy as np

from fewbayes.metrics import scores
from fewbayes.metrics.cases import Case, Samples, some
from fewbayes.metrics.features import mirrored
from fewbayes.metrics.measures.likeness import real_nearest
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean

SSCD_CUT = 0.5
"""From this SSCD cosine on a picture is usually called a copy (Somepalli et al., Diffusion Art or Digital Forgery)."""


def nearest_ncc(case: Case, samples: Samples) -> Mean:
    """Correlation with the nearest training image or its mirror image."""
    known = case.of_references("thumbnail")
    found = scores.fidelity(case.features("thumbnail", samples), np.concatenate([known, mirrored(known)]))
    which = found.nearest_reference % len(known)
    return Mean(found.nearest, len(samples), each=found.per_sample_nearest, nearest=which)


def real_ncc(case: Case) -> Mean:
    known = case.of_references("thumbnail")
    return Mean(scores.real_fidelity(known, mirrored(known)).nearest, len(known))


def sscd(case: Case, samples: Samples) -> Mean:
    some(samples)
    return Mean.over(case.likeness("sscd", samples).per_sample_nearest)


def sscd_copies(case: Case, samples: Samples) -> Mean:
    some(samples)
    likeness = case.likeness("sscd", samples).per_sample_nearest
    return Mean(float(np.mean(likeness > SSCD_CUT)), len(likeness))


register(
    Metric(
        "nearest_ncc",
        "Nearest training image",
        "correlation of pixels with the nearest one; 1 is a copy",
        nearest_ncc,
        real=real_ncc,
        place=("beside", 4),
        ceiling=True,
    ),
    Metric(
        "sscd",
        "SSCD",
        "likeness to the nearest training image by a detector of copies",
        sscd,
        real=partial(real_nearest, "sscd"),
        place=("beside", 5),
        encoder="sscd",
        ceiling=True,
    ),
    Metric(
        "sscd_copies",
        "SSCD copies",
        "share of samples that this detector takes for copies",
        sscd_copies,
        better=-1,
        place=("beside", 6),
        encoder="sscd",
    ),
)
