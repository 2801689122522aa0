"""Where along a fine-tuning run the corruption stage lies, by a definition that can be said in words.

Numpy only. Knows two curves over training steps and nothing of how they were measured.
"""

import numpy as np
from numpy.typing import ArrayLike

from fewbayes.errors import UserError

SIMILARITY_MARGIN = 0.10
NOISE_RATIO = 1.10
FEWEST_CHECKPOINTS = 2
ROUNDING = 1e-9


def corruption_stages(
    steps: ArrayLike,
    similarity: ArrayLike,
    noise: ArrayLike,
    base_noise: float | None = None,
    *,
    margin: float = SIMILARITY_MARGIN,
    noise_ratio: float = NOISE_RATIO,
) -> list[tuple[int, int]]:
    """Intervals (first step, last step), both measured checkpoints inside the stage; empty when there is none.

    A stage begins at the first checkpoint where similarity lies more than `margin` below its running peak while
    noise exceeds `noise_ratio` times its level at that peak and the level of the base model. A peak counts only
    when it rose more than `margin` above the first checkpoint. The stage lasts while noise stays above that level
    and similarity stays more than half of `margin` below the peak; fewer than two checkpoints in a row are jitter.
    An interval that ends with the last step has not recovered. Checkpoints without a finite value are skipped.
    """
    steps, similarity, noise = (np.asarray(x, dtype=float) for x in (steps, similarity, noise))
    if not steps.shape == similarity.shape == noise.shape or steps.ndim != 1:
        raise UserError(
            f"steps, similarity and noise are three curves of one length, got shapes {steps.shape}, "
            f"{similarity.shape} and {noise.shape}."
        )
    whole = np.isfinite(similarity) & np.isfinite(noise)
    steps, similarity, noise = steps[whole], similarity[whole], noise[whole]
    inside = _inside(similarity, noise, -np.inf if base_noise is None else base_noise, margin, noise_ratio)
    return [
        (int(steps[first]), int(steps[last]))
        for first, last in _stretches(inside)
        if last - first + 1 >= FEWEST_CHECKPOINTS
    ]


def _inside(
    similarity: np.ndarray, noise: np.ndarray, base_noise: float, margin: float, noise_ratio: float
) -> list[bool]:
    inside: list[bool] = []
    peak = 0
    for i, value in enumerate(similarity):
        if value > similarity[peak]:
            peak = i
        tolerated = margin / 2 if inside and inside[-1] else margin
        fallen = value < similarity[peak] - tolerated - ROUNDING
        learned = similarity[peak] > similarity[0] + margin
        noisy = noise[i] > max(noise_ratio * noise[peak], base_noise)
        inside.append(bool(fallen and learned and noisy))
    return inside


def _stretches(inside: list[bool]) -> list[tuple[int, int]]:
    edges = np.diff([0, *inside, 0])
    return list(zip(np.flatnonzero(edges == 1).tolist(), (np.flatnonzero(edges == -1) - 1).tolist(), strict=True))


def definition() -> str:
    """The definition in words, for the page."""
    return (
        f"A corruption stage is a stretch of at least two checkpoints after a peak where image similarity has fallen "
        f"more than {SIMILARITY_MARGIN:.2f} below its running peak while noise is more than "
        f"{NOISE_RATIO - 1:.0%} above its level at that peak, and above the base model's. A peak counts once "
        f"similarity has risen more than {SIMILARITY_MARGIN:.2f} above the first checkpoint. The stage ends with "
        f"recovery: similarity back within {SIMILARITY_MARGIN / 2:.2f} of the peak, or noise back at its level there."
    )
