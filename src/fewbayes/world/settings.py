"""The places of our scenes: each setting paints a whole canvas and has the words that a caption uses for it."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fewbayes.world.draw import Array, cells, hash01, noise, paint, pixel_grid

Painter = Callable[[np.random.Generator, int], Array]


@dataclass(frozen=True)
class Setting:
    """`phrase` ends a caption ("a photo of a mug <phrase>"); `paint(rng, size)` gives an RGB canvas (size, size, 3)."""

    phrase: str
    paint: Painter


def _rgb(*colour: float) -> Array:
    return np.array(colour, np.float32)


def _flat(size: int, colour: Array) -> Array:
    return np.broadcast_to(colour, (size, size, 3)).copy()


def _gradient(size: int, top: Array, bottom: Array) -> Array:
    _, y = pixel_grid(size)
    mix = ((y + 1) / 2)[..., None]
    return (top + mix * (bottom - top)).astype(np.float32)


def _ground(rng: np.random.Generator, size: int, low: float, high: float, roll: float = 0.0) -> tuple[Array, Array]:
    """A horizon between `low` and `high`: (opacity of the ground, depth below the horizon)."""
    x, y = pixel_grid(size)
    edge = rng.uniform(low, high) + rng.uniform(-0.08, 0.08) * x
    if roll:
        edge = edge + roll * np.sin(x * rng.uniform(2, 4) + rng.uniform(0, 6))
    depth = y - edge
    return np.clip(depth * size / 2 + 0.5, 0, 1), np.maximum(depth, 0)


def beach(rng: np.random.Generator, size: int) -> Array:
    canvas = _gradient(size, _rgb(0.45, 0.72, 0.95), _rgb(0.8, 0.92, 1.0))
    _, y = pixel_grid(size)
    sea, _depth = _ground(rng, size, -0.5, -0.25)
    waves = 0.5 + 0.5 * np.sin(y * 34 + noise(rng, size, 3) * 1.2)
    paint(canvas, _rgb(0.08, 0.42, 0.6) + waves[..., None] * _rgb(0.12, 0.22, 0.2), sea)
    sand, _ = _ground(rng, size, 0.05, 0.25, 0.05)
    colour = _rgb(0.9, 0.78, 0.52) + 0.06 * noise(rng, size, 0)[..., None] + 0.04 * noise(rng, size, 3)[..., None]
    paint(canvas, colour, sand)
    return canvas


def snow(rng: np.random.Generator, size: int) -> Array:
    canvas = _gradient(size, _rgb(0.62, 0.7, 0.82), _rgb(0.8, 0.85, 0.92))
    x, y = pixel_grid(size)
    for _ in range(rng.integers(3, 6)):
        cx, top, width = rng.uniform(-1, 1), rng.uniform(-0.9, -0.5), rng.uniform(0.2, 0.35)
        fir = (np.abs(x - cx) < width * np.clip((y - top) / 0.8, 0, 1) * (0.7 + 0.3 * np.sin(y * 40))) & (y < 0.1)
        paint(canvas, _rgb(0.1, 0.25, 0.22) + 0.05 * noise(rng, size, 1)[..., None], fir.astype(np.float32))
    ground, _ = _ground(rng, size, -0.05, 0.15, 0.08)
    paint(canvas, _rgb(0.92, 0.95, 0.99) + 0.035 * noise(rng, size, 2)[..., None] * _rgb(1.2, 1.0, 0.6), ground)
    flakes = noise(rng, size, 0) > 2.0
    paint(canvas, _rgb(1, 1, 1), flakes * np.float32(0.9))
    return canvas


def jungle(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    canvas = _flat(size, _rgb(0.03, 0.16, 0.07))
    for scale in (3.0, 5.0):
        angle = rng.uniform(0, np.pi)
        u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
        border, number = cells(u * 2, v * 0.8, scale, rng.uniform(0, 50))
        leaf = _rgb(0.08, 0.35, 0.1) + number[..., None] * _rgb(0.25, 0.4, 0.12)
        paint(
            canvas, leaf * (0.6 + np.clip(border * 1.6, 0, 0.6))[..., None], (number > 0.35) * np.clip(border * 6, 0, 1)
        )
    return canvas + 0.03 * noise(rng, size, 1)[..., None]


def city(rng: np.random.Generator, size: int) -> Array:
    canvas = _gradient(size, _rgb(0.55, 0.65, 0.8), _rgb(0.95, 0.85, 0.75))
    x, y = pixel_grid(size)
    left = -1.1
    while left < 1.0:
        width, top = rng.uniform(0.22, 0.42), rng.uniform(-0.95, -0.2)
        tower = ((x > left) & (x < left + width) & (y > top)).astype(np.float32)
        shade = rng.uniform(0.25, 0.55)
        paint(canvas, _rgb(shade, shade * 0.97, shade * 1.05), tower)
        panes = (np.sin((x - left) * 44) > 0) & (np.sin((y - top) * 36) > 0)
        lit = hash01(np.floor((x - left) * 7), np.floor((y - top) * 5.73), left) > 0.45
        paint(canvas, _rgb(0.98, 0.9, 0.6), tower * panes * lit * 0.9)
        left += width + rng.uniform(0, 0.05)
    road, _ = _ground(rng, size, 0.35, 0.5)
    paint(canvas, _rgb(0.33, 0.33, 0.35) + 0.04 * noise(rng, size, 0)[..., None], road)
    return canvas


def desert(rng: np.random.Generator, size: int) -> Array:
    canvas = _gradient(size, _rgb(0.95, 0.6, 0.35), _rgb(1.0, 0.85, 0.6))
    x, y = pixel_grid(size)
    for low in (-0.3, 0.1):
        dune, _depth = _ground(rng, size, low, low + 0.2, 0.14)
        ripples = np.sin((y * 46 + 6 * np.sin(x * 2 + rng.uniform(0, 6))) + noise(rng, size, 4))
        paint(
            canvas, _rgb(0.82, 0.48, 0.22) + (0.06 * ripples + 0.03 * noise(rng, size, 0))[..., None] - low * 0.2, dune
        )
    return canvas


def wood(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    planks = rng.uniform(2.2, 3.4)
    row = np.floor(y * planks + 10)
    tone = hash01(row, row * 0, rng.uniform(0, 50))[..., None]
    grain = np.sin(y * 60 + 2.5 * np.sin(x * 3 + row * 2) + noise(rng, size, 3) * 1.5)
    canvas = _rgb(0.55, 0.34, 0.17) + tone * _rgb(0.2, 0.14, 0.08) + 0.05 * grain[..., None]
    seam = np.abs(y * planks + 10 - np.round(y * planks + 10)) < 0.055
    paint(canvas, _rgb(0.2, 0.11, 0.05), seam * np.float32(0.85))
    return canvas.astype(np.float32)


def _cloth(rng: np.random.Generator, size: int, colour: Array) -> Array:
    folds = noise(rng, size, 4) * 0.11
    x, y = pixel_grid(size)
    weave = np.sin(x * 90) * np.sin(y * 90) * 0.05
    return (colour * (1 + folds + weave)[..., None]).astype(np.float32)


def fabric(rng: np.random.Generator, size: int) -> Array:
    return _cloth(rng, size, _rgb(0.96, 0.6, 0.72))


def rug(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    canvas = _cloth(rng, size, _rgb(0.46, 0.2, 0.58))
    count = rng.uniform(2.0, 3.0)
    lozenge = np.abs(np.mod(x * count + y * count, 1) - 0.5) + np.abs(np.mod(x * count - y * count, 1) - 0.5)
    paint(canvas, _rgb(0.78, 0.6, 0.85), (np.abs(lozenge - 0.5) < 0.1) * np.float32(0.8))
    return canvas + 0.04 * noise(rng, size, 0)[..., None]


def meadow(rng: np.random.Generator, size: int) -> Array:
    x, _y = pixel_grid(size)
    canvas = _gradient(size, _rgb(0.4, 0.65, 0.95), _rgb(0.85, 0.93, 1.0))
    paint(canvas, _rgb(1, 1, 1), np.clip(noise(rng, size, 4) - 0.3, 0, 0.8))
    grass, _ = _ground(rng, size, -0.25, 0.05, 0.06)
    blades = np.sin(x * 70 + noise(rng, size, 2) * 3)
    paint(canvas, _rgb(0.25, 0.58, 0.16) + (0.09 * blades + 0.05 * noise(rng, size, 1))[..., None], grass)
    flowers = (noise(rng, size, 0) > 2.1) * grass
    paint(canvas, _rgb(1.0, 0.95, 0.4), flowers)
    return canvas


def brick(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    rows, columns = rng.uniform(4.2, 5.2), rng.uniform(2.0, 2.5)
    row = np.floor(y * rows + 20)
    across = x * columns + 0.5 * np.mod(row, 2) + 20 + rng.uniform(0, 1)
    tone = hash01(np.floor(across), row, rng.uniform(0, 50))[..., None]
    canvas = _rgb(0.6, 0.24, 0.17) + tone * _rgb(0.2, 0.12, 0.1) + 0.04 * noise(rng, size, 1)[..., None]
    gap = np.minimum(
        np.abs(across - np.round(across)) / columns, np.abs(y * rows + 20 - np.round(y * rows + 20)) / rows
    )
    paint(canvas, _rgb(0.8, 0.77, 0.72), (gap < 0.026).astype(np.float32))
    return canvas.astype(np.float32)


def water(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    swell = np.sin(y * 22 + 2 * np.sin(x * 3.5 + rng.uniform(0, 6)) + noise(rng, size, 3) * 1.3)
    canvas = _gradient(size, _rgb(0.05, 0.5, 0.62), _rgb(0.02, 0.25, 0.45)) + 0.07 * swell[..., None]
    paint(canvas, _rgb(0.85, 0.97, 1.0), (swell > 0.86) * np.float32(0.75))
    return canvas


def night(rng: np.random.Generator, size: int) -> Array:
    canvas = _gradient(size, _rgb(0.02, 0.03, 0.14), _rgb(0.12, 0.12, 0.34))
    x, y = pixel_grid(size)
    paint(canvas, _rgb(1, 1, 0.9), (noise(rng, size, 0) > 1.9) * np.float32(0.95))
    moon = np.clip(0.5 - (np.hypot(x - rng.uniform(-0.8, 0.8), y + 0.72) - 0.16) * size / 2, 0, 1)
    paint(canvas, _rgb(0.96, 0.95, 0.82) + 0.04 * noise(rng, size, 3)[..., None], moon)
    hill, _ = _ground(rng, size, 0.25, 0.45, 0.08)
    paint(canvas, _rgb(0.05, 0.09, 0.1) + 0.02 * noise(rng, size, 1)[..., None], hill)
    return canvas


def tiles(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    count, key = rng.uniform(2.0, 2.6), rng.uniform(0, 50)
    tx, ty = x * count + 9 + rng.uniform(0, 1), y * count + 9 + rng.uniform(0, 1)
    tone = hash01(np.floor(tx), np.floor(ty), key)[..., None]
    canvas = _rgb(0.3, 0.5, 0.82) + tone * _rgb(0.25, 0.2, 0.12)
    ornament = np.hypot(np.mod(tx, 1) - 0.5, np.mod(ty, 1) - 0.5)
    paint(canvas, _rgb(0.93, 0.96, 1.0), (np.abs(ornament - 0.3) < 0.06) * np.float32(0.9))
    grout = np.minimum(np.abs(tx - np.round(tx)), np.abs(ty - np.round(ty)))
    paint(canvas, _rgb(0.95, 0.95, 0.93), (grout < 0.07).astype(np.float32))
    return canvas.astype(np.float32)


def autumn(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    canvas = _flat(size, _rgb(0.25, 0.14, 0.08))
    palette = np.stack([_rgb(0.85, 0.32, 0.08), _rgb(0.95, 0.66, 0.12), _rgb(0.6, 0.16, 0.1), _rgb(0.72, 0.48, 0.2)])
    for scale in (2.6, 4.0):
        border, number = cells(x, y, scale, rng.uniform(0, 50))
        leaf = palette[(number * 3.999).astype(int)] * (0.72 + np.clip(border, 0, 0.4))[..., None]
        paint(canvas, leaf, (hash01(number * 97, number * 31, 1.0) > 0.25) * np.clip(border * 7, 0, 1))
    return canvas + 0.03 * noise(rng, size, 1)[..., None]


def mountain(rng: np.random.Generator, size: int) -> Array:
    x, y = pixel_grid(size)
    canvas = _gradient(size, _rgb(0.5, 0.7, 0.95), _rgb(0.9, 0.93, 0.97))
    for _ in range(3):
        cx, top, slope = rng.uniform(-0.9, 0.9), rng.uniform(-0.9, -0.4), rng.uniform(0.8, 1.4)
        ridge = top + slope * np.abs(x - cx) + 0.07 * noise(rng, size, 3)
        rock = np.clip((y - ridge) * size / 2 + 0.5, 0, 1)
        lit = np.where(x < cx, 0.08, -0.06) + 0.05 * noise(rng, size, 2)
        paint(canvas, _rgb(0.42, 0.42, 0.48) + lit[..., None], rock)
        cap = rock * np.clip((top + 0.32 - y + 0.07 * noise(rng, size, 2)) * 12, 0, 1)
        paint(canvas, _rgb(0.97, 0.98, 1.0) + lit[..., None] * 0.5, cap)
    slope, _ = _ground(rng, size, 0.35, 0.55, 0.05)
    paint(canvas, _rgb(0.3, 0.38, 0.22) + 0.05 * noise(rng, size, 1)[..., None], slope)
    return canvas


def wheat(rng: np.random.Generator, size: int) -> Array:
    x, _y = pixel_grid(size)
    canvas = _gradient(size, _rgb(0.45, 0.55, 0.7), _rgb(0.95, 0.88, 0.72))
    field, depth = _ground(rng, size, -0.35, -0.1)
    stalks = np.sin(x * 60 + 5 * depth * np.sin(x * 5) + noise(rng, size, 2) * 2.5)
    colour = _rgb(0.86, 0.66, 0.2) + (0.12 * stalks + 0.05 * noise(rng, size, 1))[..., None] - 0.12 * depth[..., None]
    paint(canvas, colour, field)
    return canvas


SETTINGS: dict[str, Setting] = {
    "beach": Setting("on the beach", beach),
    "snow": Setting("in the snow", snow),
    "jungle": Setting("in the jungle", jungle),
    "city": Setting("with a city in the background", city),
    "desert": Setting("in the desert", desert),
    "wood": Setting("on top of a wooden floor", wood),
    "fabric": Setting("on top of pink fabric", fabric),
    "rug": Setting("on top of a purple rug", rug),
    "meadow": Setting("in a green meadow", meadow),
    "brick": Setting("in front of a brick wall", brick),
    "water": Setting("floating on top of water", water),
    "night": Setting("under the night sky", night),
    "tiles": Setting("on top of blue tiles", tiles),
    "autumn": Setting("with autumn leaves in the background", autumn),
    "mountain": Setting("with a mountain in the background", mountain),
    "wheat": Setting("with a wheat field in the background", wheat),
}
