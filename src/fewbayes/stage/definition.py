"""What a corruption stage is, in one place: for the monitor, the pages, the figures and the studies.

*Corrupted*: a checkpoint whose pictures have a corruption score (`monitor.corruption`) of CORRUPTED or more. A *stage*
is IN_A_ROW corrupted checkpoints in a row or more; fewer are jitter.

The *fidelity dip*, the fall and recovery that the paper's Fig. 1 shows, is a measure of two curves beside it and not
another definition of the stage. Numpy only: knows no pictures and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from fewbayes.errors import UserError

CORRUPTED = 0.5
"""The corruption score of pictures that are just at the limit of what is seen as noise."""
IN_A_ROW = 2

DIP_MARGIN = 0.10
DIP_NOISE = 1.10
ROUNDING = 1e-9

STAGE = (
    f"A corruption stage is {IN_A_ROW} checkpoints in a row or more whose pictures have a corruption score of "
    f"{CORRUPTED:g} or more: they are noisier, or their colours more restless, than the base model's pictures and the "
    "training images account for."
)
DIP = (
    f"A fidelity dip is {IN_A_ROW} checkpoints or more after a peak where image similarity has fallen more than "
    f"{DIP_MARGIN:.2f} below its running peak while noise is more than {DIP_NOISE - 1:.0%} above its level at that "
    f"peak, and above the base model's. A peak counts once similarity has risen more than {DIP_MARGIN:.2f} above the "
    f"first checkpoint. The dip ends when similarity is back within {DIP_MARGIN / 2:.2f} of the peak, or noise at its "
    "level there."
)
"""Both in words, for pages."""


def stretches(corrupted: Iterable[bool]) -> list[tuple[int, int]]:
    """(begin, end) of each stage in a row of checkpoints, the end excluded."""
    edges = np.diff([0, *map(int, corrupted), 0])
    found = zip(np.flatnonzero(edges == 1).tolist(), np.flatnonzero(edges == -1).tolist(), strict=True)
    return [(begin, end) for begin, end in found if end - begin >= IN_A_ROW]


def longest(corrupted: Iterable[bool]) -> tuple[int, int] | None:
    """(begin, end) of the longest stage, the first of several; None without any."""
    return max(stretches(corrupted), key=lambda stage: stage[1] - stage[0], default=None)


def stages(steps: Sequence[int], scores: Sequence[float]) -> list[tuple[int, int]]:
    """(first step, last step) of each stage, both of them corrupted; scores: by checkpoint, in the order of steps."""
    found = stretches(score >= CORRUPTED for score in scores)
    return [(int(steps[begin]), int(steps[end - 1])) for begin, end in found]


def fidelity_dips(
    steps: ArrayLike, similarity: ArrayLike, noise: ArrayLike, base_noise: float | None = None
) -> list[tuple[int, int]]:
    """(first step, last step) of each fidelity dip, see DIP; one that ends with the last step has not recovered.

    base_noise: of the base model's pictures. Checkpoints without a finite value are skipped.
    """
    steps, similarity, noise = (np.asarray(x, dtype=float) for x in (steps, similarity, noise))
    if not steps.shape == similarity.shape == noise.shape or steps.ndim != 1:
        raise UserError(
            f"steps, similarity and noise are three curves of one length, got shapes {steps.shape}, "
            f"{similarity.shape} and {noise.shape}."
        )
    whole = np.isfinite(similarity) & np.isfinite(noise)
    steps, similarity, noise = steps[whole], similarity[whole], noise[whole]
    inside: list[bool] = []
    peak = 0
    for i, value in enumerate(similarity):
        if value > similarity[peak]:
            peak = i
        tolerated = DIP_MARGIN / 2 if inside and inside[-1] else DIP_MARGIN
        fallen = value < similarity[peak] - tolerated - ROUNDING
        learned = similarity[peak] > similarity[0] + DIP_MARGIN
        noisy = noise[i] > max(DIP_NOISE * noise[peak], -np.inf if base_noise is None else base_noise)
        inside.append(bool(fallen and learned and noisy))
    return [(int(steps[begin]), int(steps[end - 1])) for begin, end in stretches(inside)]
