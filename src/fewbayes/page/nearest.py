"""The training image that a sample is most like, pixel by pixel at small size: what a copy would be a copy of.

For the eye, not for a table: a correlation of 32 x 32 pixels, of the picture and of its mirror image. numpy and pillow.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.metrics.folders import open_picture
from fewbayes.metrics.pixels import normalised_cross_correlation

SIDE = 32
SAID = f"the training image with the highest correlation of pixels at {SIDE} x {SIDE}, mirrored ones included"


def nearest(sample: Path, references: Sequence[Path]) -> tuple[Path, float] | None:
    """The nearest reference and its correlation in [-1, 1]; None without a readable picture of both kinds."""
    here = _small(sample)
    if here is None:
        return None
    found = [(score, path) for path in references if (score := _likeness(here, path)) is not None]
    if not found:
        return None
    score, path = max(found, key=lambda pair: pair[0])
    return path, score


def _likeness(here: NDArray[np.uint8], path: Path) -> float | None:
    there = _small(path)
    if there is None:
        return None
    return max(normalised_cross_correlation(here, there), normalised_cross_correlation(here, there[:, ::-1]))


@lru_cache(maxsize=4096)
def _small(path: Path) -> NDArray[np.uint8] | None:
    """The whole picture at SIDE x SIDE, as the metric sees it."""
    try:
        image = open_picture(path)
    except (OSError, ValueError):
        return None
    return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BOX))
