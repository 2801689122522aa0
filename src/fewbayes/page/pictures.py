"""Pictures for a page: read, made small enough to send, and each with the training image that it is nearest to.

Small pictures are embedded as they are. Larger ones become JPEG at their own size while the page's budget allows it,
then smaller ones, and the page says so. Pillow and numpy only.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

LOSSLESS = 160
"""Pictures up to this side are embedded without loss."""
SIDES = (1024, 512, 256)
"""The largest side of an embedded picture, from the first to the last as a page grows too large."""
BUDGET = 10_000_000
"""Characters of all pictures of a page."""
FEWEST = 5
"""Columns and rows are thinned to so many, no further, before panels are left out."""
COARSE = 32
"""Pictures are compared at this side."""


@dataclass(frozen=True)
class Picture:
    """A picture ready for an <img>: `width` and `height` are its pixels as embedded; `size` those of the file."""

    uri: str
    width: int
    height: int
    size: tuple[int, int]

    @property
    def reduced_from(self) -> tuple[int, int] | None:
        return self.size if self.size != (self.width, self.height) else None


def embed(path: Path, side: int = SIDES[0], *, square: bool = False) -> Picture | None:
    """None when the file is not a readable picture: a killed training may leave half of one. square: its centre."""
    return _embed(path, *stamp, side, square) if (stamp := _stamp(path)) else None


def _stamp(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name that no file can have
        return None
    return status.st_mtime_ns, status.st_size


@lru_cache(maxsize=8192)
def _embed(path: Path, _time: int, _bytes: int, side: int, square: bool) -> Picture | None:
    image = opened(path)
    if image is None:
        return None
    if square:
        image = ImageOps.fit(image, (min(image.size), min(image.size)))
    size, buffer = image.size, io.BytesIO()
    if max(size) <= (below := next((it for it in SIDES if it < side), 0)):
        return _embed(path, _time, _bytes, below, square)
    if max(size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = "png" if max(size) <= LOSSLESS else "jpeg"
    image.save(buffer, kind, **({"optimize": True} if kind == "png" else {"quality": 90, "subsampling": 0}))
    data = base64.b64encode(buffer.getvalue()).decode()
    return Picture(f"data:image/{kind};base64,{data}", *image.size, size)


def opened(path: Path) -> Image.Image | None:
    """Upright and in RGB; None where it cannot be read."""
    try:
        with Image.open(path) as found:
            return ImageOps.exif_transpose(found).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def weigh(files: Iterable[Path | None], side: int) -> int:
    """Characters that these take when embedded."""
    return sum(len(picture.uri) for file in files if file and (picture := embed(file, side)))


def fit(weight: Callable[[int], int], budget: int = BUDGET) -> int:
    """The largest of SIDES at which `weight(side)` is within the budget, the smallest where none is."""
    return next((side for side in SIDES if weight(side) <= budget), SIDES[-1])


def spread(values: Sequence[int], count: int, keep: int | None = None) -> list[int]:
    """`count` of the values: first, last and evenly between; `keep` takes the place of its neighbour."""
    chosen = {round(i * (len(values) - 1) / (count - 1)) for i in range(count)} if count > 1 else {0}
    if keep in values and (place := values.index(keep)) not in chosen:
        inner = [i for i in chosen if i not in (0, len(values) - 1)]
        chosen -= {min(inner, key=lambda i: abs(i - place))} if inner else set()
        chosen.add(place)
    return [values[i] for i in sorted(chosen)]


def nearest(file: Path, training: Sequence[Path]) -> tuple[int, float] | None:
    """(place, likeness) of the training image that a picture is nearest to: the highest correlation of coarse pixels,
    in [-1, 1], mirrored ones included; None where there is nothing to compare."""
    mine = _vector(file, *stamp, False) if (stamp := _stamp(file)) else None
    if mine is None:
        return None
    found = [
        (float(mine @ theirs), place)
        for place, path in enumerate(training)
        for mirrored in (False, True)
        if (stamp := _stamp(path)) and (theirs := _vector(path, *stamp, mirrored)) is not None
    ]
    return (best[1], best[0]) if (best := max(found, default=None)) else None


@lru_cache(maxsize=8192)
def _vector(path: Path, _time: int, _bytes: int, mirrored: bool) -> np.ndarray | None:
    """The centre square, coarse, its channels' means taken out, of length 1."""
    image = opened(path)
    if image is None:
        return None
    small = ImageOps.fit(image, (COARSE, COARSE), Image.Resampling.BOX)
    pixels = np.asarray(ImageOps.mirror(small) if mirrored else small, dtype=float)
    pixels = (pixels - pixels.mean((0, 1))).ravel()
    return pixels / max(float(np.linalg.norm(pixels)), 1e-9)
