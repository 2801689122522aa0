"""What a corruption stage is, in one place: for the monitor, the pages, the figures and the studies.

*Corrupted*: a checkpoint whose pictures have a corruption score (`monitor.corruption`) of CORRUPTED or more. A *stage*
is IN_A_ROW corrupted checkpoints in a row or more; fewer are jitter.

The *fidelity dip*, the fall that the paper's Fig. 1 shows, is a measure of a curve and not another definition of the
stage. Numpy only: knows no pictures and no files.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

CORRUPTED = 0.5
"""The corruption score of pictures that are just at the limit of what is seen as noise."""
IN_A_ROW = 2

STAGE = (
    f"A corruption stage is {IN_A_ROW} checkpoints in a row or more whose pictures have a corruption score of "
    f"{CORRUPTED:g} or more: they are noisier, or their colours more restless, than the base model's pictures and the "
    "training images account for."
)
DIP = (
    "The fidelity dip is the largest fall of image similarity from an earlier peak, each value first the median of it "
    "and its neighbours: what the paper's Fig. 1 shows."
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


def fidelity_dip(steps: Sequence[int], values: Sequence[float]) -> dict[str, float | None]:
    """The largest fall of a curve of fidelity, see DIP; at least one finite value.

    depth: the fall, 0 for a curve that never falls; onset: the first step at which half of it is lost; peak, trough:
    the steps that it lies between.
    """
    kept = np.array([np.median(values[max(0, i - 1) : i + 2]) for i in range(len(values))])
    highest = np.maximum.accumulate(kept)
    trough = int(np.argmax(highest - kept))
    depth = float(highest[trough] - kept[trough])
    if depth == 0:
        return {"depth": 0.0, "onset": None, "peak": None, "trough": None}
    peak = int(np.argmax(kept[: trough + 1]))
    onset = next(i for i in range(peak, trough + 1) if kept[i] <= kept[peak] - depth / 2)
    return {"depth": depth, "onset": steps[onset], "peak": steps[peak], "trough": steps[trough]}
