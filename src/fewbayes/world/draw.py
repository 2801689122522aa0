"""Drawing by signed distance: shapes, procedural textures and compositing on a small RGB canvas.

Everything is NumPy on arrays of the canvas's size. Lengths are in units of half the canvas; `v` and `y` point down;
colours are float RGB in [0, 1]. The file knows nothing of objects, settings or captions.
"""

from functools import cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


@cache
def pixel_grid(size: int) -> tuple[Array, Array]:
    """Pixel centres (x, y) of a square canvas, each (size, size) in (-1, 1)."""
    centres = ((np.arange(size, dtype=np.float32) + 0.5) / size) * 2 - 1
    x, y = np.meshgrid(centres, centres)
    return x, y


def circle(u: Array, v: Array, cu: float, cv: float, radius: float) -> Array:
    return np.hypot(u - cu, v - cv) - radius


def ellipse(u: Array, v: Array, cu: float, cv: float, ru: float, rv: float) -> Array:
    """Distance to an ellipse, exact on its border and of the right sign elsewhere."""
    return (np.hypot((u - cu) / ru, (v - cv) / rv) - 1) * min(ru, rv)


def box(u: Array, v: Array, cu: float, cv: float, hu: float, hv: float, rounding: float = 0.0) -> Array:
    """Rectangle of half sides (hu, hv) with corners rounded by `rounding`."""
    du, dv = np.abs(u - cu) - (hu - rounding), np.abs(v - cv) - (hv - rounding)
    return np.hypot(np.maximum(du, 0), np.maximum(dv, 0)) + np.minimum(np.maximum(du, dv), 0) - rounding


def segment(u: Array, v: Array, a: tuple[float, float], b: tuple[float, float], radius: float) -> Array:
    """Capsule of the given radius around the segment from a to b."""
    bu, bv = b[0] - a[0], b[1] - a[1]
    along = np.clip(((u - a[0]) * bu + (v - a[1]) * bv) / (bu * bu + bv * bv), 0, 1)
    return np.hypot(u - a[0] - along * bu, v - a[1] - along * bv) - radius


def convex(u: Array, v: Array, *corners: tuple[float, float]) -> Array:
    """Convex polygon, corners in order either way round; a bound of the distance outside."""
    edges = list(zip(corners, corners[1:] + corners[:1], strict=True))
    orientation = np.sign(sum(au * bv - av * bu for (au, av), (bu, bv) in edges))
    distance = np.full_like(u, -np.inf)
    for (au, av), (bu, bv) in edges:
        length = orientation * np.hypot(bu - au, bv - av)
        distance = np.maximum(distance, ((u - au) * (bv - av) - (v - av) * (bu - au)) / length)
    return distance


def ring(distance: Array, width: float) -> Array:
    return np.abs(distance) - width


def union(*distances: Array) -> Array:
    return np.minimum.reduce(distances)


def minus(distance: Array, cut: Array) -> Array:
    return np.maximum(distance, -cut)


def coverage(distance: Array, pixel: float) -> Array:
    """Share of each pixel inside the shape, for a pixel of side `pixel` in the units of the distance."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def paint(canvas: Array, colour: Array, alpha: Array) -> None:
    """Lay a colour, (3,) or (H, W, 3), over the canvas in place with opacity `alpha` (H, W)."""
    canvas += alpha[..., None] * (colour - canvas)


NOISE_TILE = 256


@cache
def _noise_tiles() -> tuple[Array, ...]:
    """Periodic unit-variance noise with spectra 1/f^p for p = 0, 0.5, 1, 1.5, 2: grain, sand, cloth, bark, clouds."""
    rng = np.random.default_rng(20240531)
    fy, fx = np.meshgrid(np.fft.fftfreq(NOISE_TILE), np.fft.rfftfreq(NOISE_TILE), indexing="ij")
    frequency = np.hypot(fx, fy)
    frequency[0, 0] = np.inf
    tiles = []
    for power in (0.0, 0.5, 1.0, 1.5, 2.0):
        spectrum = np.fft.rfft2(rng.standard_normal((NOISE_TILE, NOISE_TILE))) * np.maximum(frequency, 1e-3) ** -power
        spectrum[0, 0] = 0
        tile = np.fft.irfft2(spectrum, s=(NOISE_TILE, NOISE_TILE))
        tiles.append((tile / tile.std()).astype(np.float32))
    return tuple(tiles)


def noise(rng: np.random.Generator, size: int, roughness: int) -> Array:
    """Texture of about unit variance; roughness 0 is white grain, 4 is smooth clouds."""
    top, left = rng.integers(0, NOISE_TILE - size, 2)
    tile = _noise_tiles()[roughness][top : top + size, left : left + size]
    return tile.T if rng.random() < 0.5 else tile


def hash01(i: Array, j: Array, key: float) -> Array:
    """A repeatable pseudo-random number in [0, 1) for each integer cell (i, j)."""
    value = np.sin(i * 12.9898 + j * 78.233 + key * 37.719) * 43758.5453
    return (value - np.floor(value)).astype(np.float32)


def cells(x: Array, y: Array, count: float, key: float) -> tuple[Array, Array]:
    """Voronoi cells of a jittered grid of `count` per unit: (distance border to border, cell number in [0, 1))."""
    gx, gy = x * count, y * count
    bx, by = np.floor(gx), np.floor(gy)
    nearest = np.full(x.shape, 9.0, np.float32)
    second = nearest.copy()
    number = np.zeros_like(nearest)
    for ox in (-1, 0, 1):
        for oy in (-1, 0, 1):
            i, j = bx + ox, by + oy
            jitter_x, jitter_y = hash01(i, j, key), hash01(j, i, key + 1.7)
            distance = np.hypot(i + jitter_x - gx, j + jitter_y - gy)
            closer = distance < nearest
            second = np.where(closer, nearest, np.minimum(second, distance))
            number = np.where(closer, hash01(i, j, key + 5.3), number)
            nearest = np.where(closer, distance, nearest)
    return second - nearest, number
