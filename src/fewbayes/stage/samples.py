"""What a set of pictures says without any evaluator: detail where noise shows, contrast, likeness and the like.

No number here means anything alone. Each is to be held against the same number of the base model's pictures of the same
prompts and seeds, and of the training images: corruption.monitor does that. numpy and PIL only; knows no models, no
stages and no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fewbayes.errors import UserError
from fewbayes.metrics.pixels import diagonal

Picture = NDArray[np.uint8]
Floats = NDArray[np.float64]

SCALES = (1, 2, 4)
"""Sides of the pixel blocks whose detail is read, in a picture of some 64 to 128 pixels: about a quarter of a latent
cell, half of one and a whole one in the embedded world; half, one and two in Stable Diffusion at 512 pixels. Corruption
is decoded noise of the latents, so blotches as large as their cells, and no single scale catches them all."""
LARGEST_SIDE = 128
"""Larger pictures are first reduced towards this side by whole factors, so that the scales mean the same for all."""
ROUNDING = 1 / np.sqrt(12)
"""Standard deviation of what storing in whole grey levels adds: the least detail worth speaking of."""
LIMIT_MARGIN = 2
"""Grey levels from 0 or 255 that count as the limit: decoders and resizing miss it by one or two."""
COARSE_SIDE = 16
"""Likeness, diversity and contrast are of pictures reduced to so many squares a side: without their texture."""
SAME = 0.9
"""Training images of this likeness or more are one photograph twice: copies, mirrored ones, the shots of a burst."""
STEEPEST = 10
"""One place in so many is steep, when it is asked how much of a picture's change lies in its outlines."""


@dataclass(frozen=True)
class SampleStats:
    """Of one set of pictures; one number for each picture, in their order, and the set's diversity.

    noise: grey levels of 255, above 0: typical strength of diagonal detail over SCALES, see `detail`. saturation: share
    of the channel values at their limits, in [0, 1]. likeness: highest correlation with a training image, in [-1, 1],
    see `_likeness`; 0 without any to compare with. diversity: mean distance of two pictures of the set, in [0, 1], see
    `_diversity`; 0 for a single one. contrast, unrest: grey levels of 255, see there. distinct: pictures of the set of
    which none is like another by SAME or more. kept: correlation with the twin, the base model's picture of the same
    prompt and seed, in [-1, 1]; empty where there was none to compare with. contours, relief: see
    there; empty in what was kept before they were read. unseen: likeness with an image held out, where one was.
    """

    count: int
    noise: tuple[float, ...]
    saturation: tuple[float, ...]
    likeness: tuple[float, ...]
    diversity: float
    contrast: tuple[float, ...]
    unrest: tuple[float, ...]
    distinct: int
    kept: tuple[float, ...] = ()
    contours: tuple[float, ...] = ()
    relief: tuple[float, ...] = ()
    unseen: tuple[float, ...] = ()


def describe(
    pictures: Sequence[Picture],
    references: Sequence[Picture],
    twins: Sequence[Picture] | None = None,
    unseen: Sequence[Picture] = (),
) -> SampleStats:
    """pictures, references, twins: uint8 (height, width, 3), of any sizes; what `coarse` makes of a twin will do.
    unseen: images that were not trained on.

    A picture that is one of the references, the very array, is compared with those that are not the SAME as it:
    `describe(references, references)` tells how alike different training images are.
    """
    for picture in [*pictures, *references, *(twins or ()), *unseen]:
        _check(picture)
    if twins and len(twins) != len(pictures):
        raise UserError(f"{len(pictures)} pictures and {len(twins)} of the base model; there must be as many")
    small = [coarse(picture) for picture in pictures]
    known = [(reference, coarse(reference)) for reference in references]
    apart = [coarse(image) for image in unseen]
    pairs = zip(small, map(coarse, twins), strict=True) if twins else ()
    return SampleStats(
        count=len(pictures),
        noise=tuple(detail(picture) for picture in pictures),
        saturation=tuple(saturation(picture) for picture in pictures),
        likeness=tuple(_nearest(picture, c, known) for picture, c in zip(pictures, small, strict=True)),
        diversity=_diversity(small),
        contrast=tuple(contrast(picture) for picture in pictures),
        unrest=tuple(unrest(picture) for picture in pictures),
        distinct=_distinct(small),
        kept=tuple(1.0 if (picture == twin).all() else _correlation(picture, twin) for picture, twin in pairs),
        contours=tuple(contours(picture) for picture in pictures),
        relief=tuple(relief(picture) for picture in pictures),
        unseen=tuple(max(_likeness(picture, image) for image in apart) for picture in small) if apart else (),
    )


def coarse(picture: Picture) -> Picture:
    """COARSE_SIDE squares a side: all of a twin that `describe` needs."""
    return np.asarray(Image.fromarray(picture).resize((COARSE_SIDE, COARSE_SIDE), Image.Resampling.BOX))


def contrast(picture: Picture) -> float:
    """Standard deviation of the grey of COARSE_SIDE squares a side, in grey levels of 255: of light and dark at large.

    Noise much finer than the squares is averaged away; a picture that sinks into haze or a single colour loses it.
    """
    return float(coarse(picture).mean(axis=2).std())


def detail(picture: Picture) -> float:
    """Strength of the diagonal detail that is everywhere in a picture, in grey levels of 255: where noise shows.

    At each of SCALES: median over places of the length over R, G, B of the diagonal Haar coefficient
    (p00 - p01 - p10 + p11) / 2 of block means; then the geometric mean over the scales. The median passes over edges
    and single textured objects, the diagonal over level and upright lines; brightness does not matter. Texture over
    most of the picture counts as noise, so compare with pictures that should have it.
    """
    pixels = _reduced(picture)
    scales = [scale for scale in SCALES if min(pixels.shape[:2]) >= 2 * scale]
    found = [np.median(np.linalg.norm(diagonal(_block_means(pixels, scale)), axis=2)) for scale in scales]
    return float(np.exp(np.mean(np.log(np.hypot(found, ROUNDING)))))


def unrest(picture: Picture) -> float:
    """How much the colour changes from place to place in the calm parts of a picture, in grey levels of 255, above 0.

    Lower quartile over places of the length over R, G, B of the differences between a block of the largest of SCALES
    and its right and lower neighbours, what is common to the channels taken out. Few pictures of things have colour
    that changes in three quarters of the places from one latent cell to the next; mottling has. A single textured
    object does not count, and neither do lines of light and dark.
    """
    pixels = _reduced(picture)
    side = max(scale for scale in SCALES if min(pixels.shape[:2]) >= 2 * scale)
    blocks = _block_means(pixels, side)
    blocks = blocks - blocks.mean(2, keepdims=True)
    return float(np.hypot(np.quantile(np.sqrt(_steps(blocks)), 0.25), ROUNDING))


def contours(picture: Picture) -> float:
    """Share of the squared differences to the right and lower neighbours that the steepest places have.

    A picture of things changes at their outlines and is calm between them; where things have dissolved into blotches,
    it changes everywhere. Brightness and contrast do not matter; what rounding adds to the six differences of a place
    is taken off.
    """
    pixels = _reduced(picture)
    change = np.sort(np.maximum(_steps(pixels) - 12 * ROUNDING**2, 0), axis=None)[::-1]
    return float(change[: max(1, len(change) // STEEPEST)].sum() / max(change.sum(), 1e-9))


def relief(picture: Picture) -> float:
    """Log of how much steeper steep places (the 95th percentile) are than usual ones, between blocks of the largest of
    SCALES; half a grey level is added to each. At the size of latent cells, as `contours` is at that of pixels."""
    pixels = _reduced(picture)
    side = max(scale for scale in SCALES if min(pixels.shape[:2]) >= 2 * scale)
    steep, usual = np.quantile(np.sqrt(_steps(_block_means(pixels, side))) + 0.5, (0.95, 0.5))
    return float(np.log(steep / usual))


def _steps(pixels: Floats) -> Floats:
    """Squared differences of each place to its right and lower neighbours, over the channels."""
    right, lower = pixels[:-1, 1:] - pixels[:-1, :-1], pixels[1:, :-1] - pixels[:-1, :-1]
    return (right**2 + lower**2).sum(2)


def saturation(picture: Picture) -> float:
    """Share of the channel values within LIMIT_MARGIN of 0 or 255."""
    return float(((picture <= LIMIT_MARGIN) | (picture >= 255 - LIMIT_MARGIN)).mean())


def _reduced(picture: Picture) -> Floats:
    factor = max(1, min(picture.shape[:2]) // LARGEST_SIDE)
    return _block_means(picture.astype(np.float64), factor)


def _block_means(pixels: Floats, side: int) -> Floats:
    """Of the whole blocks; the rest at the right and the bottom is left out."""
    height, width = pixels.shape[0] // side, pixels.shape[1] // side
    return pixels[: height * side, : width * side].reshape(height, side, width, side, -1).mean((1, 3))


def _nearest(picture: Picture, small: Picture, known: Sequence[tuple[Picture, Picture]]) -> float:
    """Highest likeness with a reference; one of the references is spared its own duplicates."""
    found = [_likeness(small, theirs) for reference, theirs in known if reference is not picture]
    if any(reference is picture for reference, _ in known):
        found = [like for like in found if like < SAME]
    return max(found, default=0.0)


def _distinct(small: Sequence[Picture]) -> int:
    """Flat pictures are like nothing, not even each other, and count one by one."""
    kept: list[Picture] = []
    for picture in small:
        if all(_likeness(picture, other) < SAME for other in kept):
            kept.append(picture)
    return len(kept)


def _likeness(picture: Picture, reference: Picture) -> float:
    """The higher correlation of the two ways round, means of the channels taken out: in [-1, 1], 0 if either is flat.

    So brightness, contrast and a cast of colour do not count: copies often come recoloured.
    """
    return max(_correlation(picture, reference), _correlation(picture, reference[:, ::-1]))


def _correlation(picture: Picture, other: Picture) -> float:
    a, b = (part - part.mean((0, 1)) for part in (picture, other))
    size = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip((a * b).sum() / size, -1, 1)) if size > 1e-9 else 0.0


def _diversity(small: Sequence[Picture]) -> float:
    """Root mean square difference over the range, mean over pairs."""
    pairs = [np.sqrt(((a - b.astype(float)) ** 2).mean()) / 255 for a, b in combinations(small, 2)]
    return float(np.mean(pairs)) if pairs else 0.0


def _check(picture: Picture) -> None:
    if picture.ndim != 3 or picture.shape[2] != 3 or picture.dtype != np.uint8:
        raise UserError(
            f"a picture of shape {picture.shape} and type {picture.dtype}; give (height, width, 3) in uint8"
        )
    if min(picture.shape[:2]) < 2 * SCALES[0]:
        raise UserError(f"a picture of {picture.shape[1]} x {picture.shape[0]} pixels; it must be 2 x 2 or larger")
