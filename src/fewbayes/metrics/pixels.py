"""Two plain measures on pixels: likeness to the training images, and noise. numpy only.

Neither knows what a picture shows. Likeness is a correlation of pixel values and is fooled by a moved subject; noise is
read off the finest details and takes fine texture for noise, so compare it between arms rather than with zero.

A picture is an array (height, width, 3), uint8 in [0, 255] or floating in [0, 1].
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from fewbayes.errors import UserError

Picture = NDArray[np.uint8] | NDArray[np.floating]

MAD_TO_STD = 0.6745
"""Median of |z| for a standard normal z: what turns a median absolute deviation into a standard deviation."""


def _unit(picture: Picture) -> NDArray[np.float64]:
    """The picture as float64 in [0, 1]."""
    pixels = np.asarray(picture)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise UserError(f"a picture of shape {pixels.shape}; it must be (height, width, 3)")
    if pixels.dtype == np.uint8:
        return pixels.astype(np.float64) / 255
    if not np.issubdtype(pixels.dtype, np.floating):
        raise UserError(f"a picture of type {pixels.dtype}; it must be uint8 in [0, 255] or floating in [0, 1]")
    return pixels.astype(np.float64)


def normalised_cross_correlation(a: Picture, b: Picture) -> float:
    """Correlation of two pictures of one size over all their RGB values, in [-1, 1]; 1 for equal pictures.

    sum((a - mean a)(b - mean b)) / sqrt(sum((a - mean a)^2) sum((b - mean b)^2)), each mean one number over all three
    channels, so a likeness of colour counts, and a change of brightness or contrast does not. This is the zero-mean
    normalised cross-correlation of template matching at zero shift (Lewis, Fast Normalized Cross-Correlation, 1995).
    A picture of one value throughout correlates with nothing: 0.
    """
    x, y = _unit(a), _unit(b)
    if x.shape != y.shape:
        raise UserError(f"pictures of shapes {x.shape} and {y.shape}; they must agree")
    x, y = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float(np.clip((x * y).sum() / scale, -1.0, 1.0)) if scale > 1e-12 * x.size else 0.0


def image_similarity(samples: Sequence[Picture], references: Sequence[Picture]) -> float:
    """Mean over samples of the correlation with the nearest reference, in [-1, 1]: a stand-in for subject fidelity.

    Chance is above 0, since unrelated photographs correlate (both brighter at the top, say): read it against step 0.
    """
    if not len(samples) or not len(references):
        raise UserError(f"{len(samples)} samples and {len(references)} references; there must be one of each at least")
    nearest = [max(normalised_cross_correlation(sample, reference) for reference in references) for sample in samples]
    return float(np.mean(nearest))


def haar_noise(image: Picture) -> float:
    """Standard deviation of the noise in a picture, in grey levels of 255, 0 or more.

    255 median(|d|) / 0.6745 averaged over the channels, where d = (p00 - p01 - p10 + p11) / 2 over blocks of 2 x 2
    pixels is the finest diagonal Haar band, whose centre is 0. White noise of standard deviation s gives d the same s;
    a smooth picture and straight level or upright edges give it nothing (Donoho and Johnstone, Ideal spatial
    adaptation by wavelet shrinkage, 1994). An odd last row or column is left out.
    """
    pixels = _unit(image)
    if min(pixels.shape[:2]) < 2:
        raise UserError(f"a picture of shape {pixels.shape}; it must be 2 x 2 or larger")
    per_channel = np.median(np.abs(diagonal(pixels)), axis=(0, 1)) / MAD_TO_STD
    return float(255 * per_channel.mean())


def diagonal(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """The finest diagonal Haar band, (p00 - p01 - p10 + p11) / 2 over blocks of 2 x 2, by channel."""
    height, width = pixels.shape[0] // 2 * 2, pixels.shape[1] // 2 * 2
    pixels = pixels[:height, :width]
    return (pixels[::2, ::2] - pixels[::2, 1::2] - pixels[1::2, ::2] + pixels[1::2, 1::2]) / 2
