"""Noise in the pixels, by itself and against the base model's pictures of the same prompts and seeds."""

from __future__ import annotations

import numpy as np

from fewbayes.metrics import scores
from fewbayes.metrics.cases import NO_BASE, Case, Samples, part_note, some
from fewbayes.metrics.features import Floats
from fewbayes.metrics.registry import Metric, register
from fewbayes.metrics.scores import Mean, Unavailable


def _levels(case: Case, samples: Samples) -> Floats:
    return case.store.matrix("pixels", samples)[:, 1]


def haar_noise(case: Case, samples: Samples) -> Mean:
    return Mean.over(_levels(case, some(samples)))


def _of_pairs(case: Case) -> tuple[Floats, Floats]:
    """Noise of the pictures that have a partner of the base model, and of these."""
    pairs = [*case.pairs, *case.unrelated_pairs]
    if not pairs:
        raise Unavailable(NO_BASE)
    return _levels(case, [tuned for tuned, _ in pairs]), _levels(case, [base for _, base in pairs])


def noise_ratio(case: Case, samples: Samples) -> Mean:
    now, before = _of_pairs(case)
    return Mean(scores.noise_ratio(now, before), len(now))


def noisier_than_base(case: Case, samples: Samples) -> Mean:
    now, before = _of_pairs(case)
    return Mean(float(np.mean(now > before)), len(now))


def paired(case: Case, samples: Samples) -> str | None:
    pairs = len(case.pairs) + len(case.unrelated_pairs)
    return part_note(pairs, case.visible, "pictures have a partner of the base model") if pairs else None


register(
    Metric(
        "noise_ratio",
        "Relative noise",
        "noise over that of the base model's pictures of the same seeds",
        noise_ratio,
        digits=2,
        place=("beside", 8),
        of_base=False,
        note=paired,
    ),
    Metric(
        "noisier_than_base",
        "Noisier than base",
        "share of pictures that are noisier than the base model's of the same seed",
        noisier_than_base,
        of_base=False,
        note=paired,
    ),
    Metric(
        "haar_noise",
        "Noise",
        "noise in grey levels, from the finest diagonal detail",
        haar_noise,
        digits=2,
        real=lambda case: haar_noise(case, case.references),
    ),
)
