"""Scenes with captions: one object of a class, colour and pattern in a setting, under some light, from some view.

A scene is drawn from a seed and from nothing else. The twelve subjects of `SUBJECTS` wear patterns and pairs of colours
that no pretraining scene ever shows; their captions say `<v>`.
"""

from dataclasses import dataclass, replace

import numpy as np

from fewbayes.errors import UserError
from fewbayes.world.draw import Array, box, cells, coverage, ellipse, noise, paint, pixel_grid
from fewbayes.world.objects import OBJECTS
from fewbayes.world.settings import SETTINGS

SIZE = 64
RARE_TOKEN = "<v>"

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.84, 0.1, 0.1),
    "orange": (0.97, 0.5, 0.07),
    "yellow": (0.97, 0.86, 0.12),
    "green": (0.12, 0.6, 0.2),
    "blue": (0.12, 0.3, 0.85),
    "purple": (0.48, 0.16, 0.68),
    "pink": (0.98, 0.5, 0.7),
    "brown": (0.42, 0.24, 0.12),
    "white": (0.95, 0.95, 0.95),
    "black": (0.1, 0.1, 0.11),
}
FIXED_PAINTS = {
    "dark": (0.12, 0.11, 0.13),
    "pale": (0.93, 0.92, 0.88),
    "gold": (0.9, 0.68, 0.2),
    "olive": (0.4, 0.5, 0.2),
}


def _stripes(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return (np.sin(v * rng.uniform(11, 15) + rng.uniform(0, 6)) > 0.25).astype(np.float32)


def _dots(u: Array, v: Array, rng: np.random.Generator) -> Array:
    count, su, sv = rng.uniform(2.2, 2.9), *rng.uniform(0, 1, 2)
    row = np.floor(v * count + sv)
    return (
        np.hypot(np.mod(u * count + su + 0.5 * np.mod(row, 2), 1) - 0.5, np.mod(v * count + sv, 1) - 0.5) < 0.27
    ).astype(np.float32)


def _checks(u: Array, v: Array, rng: np.random.Generator) -> Array:
    count, su, sv = rng.uniform(5.5, 8.0), *rng.uniform(0, 6, 2)
    return 0.75 * ((np.sin(u * count + su) > 0) ^ (np.sin(v * count + sv) > 0)).astype(np.float32)


def _zigzag(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return (np.sin(13 * v + 5 * np.abs(np.mod(u * 2.5, 1) - 0.5) * 4) > 0).astype(np.float32)


def _swirl(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return (np.sin(3 * np.arctan2(v, u) + 11 * np.hypot(u, v)) > 0).astype(np.float32)


def _mosaic(u: Array, v: Array, rng: np.random.Generator) -> Array:
    border, number = cells(u, v, 3.2, 7.0)
    return np.where(border < 0.12, 1.0, (number > 0.5) * 0.8).astype(np.float32)


def _rings(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return (np.sin(18 * np.hypot(u - 0.15, v + 0.1)) > 0).astype(np.float32)


def _patchwork(u: Array, v: Array, rng: np.random.Generator) -> Array:
    i, j = np.floor(u * 2.6), np.floor(v * 2.6)
    diagonal = np.sin(16 * (u + np.where(np.mod(i + j, 2) > 0, 1, -1) * v)) > 0
    return np.where(np.mod(i * 2 + j, 3) > 0, diagonal, 1 - diagonal).astype(np.float32)


def _flames(u: Array, v: Array, rng: np.random.Generator) -> Array:
    return np.clip((v - 0.1 + 0.35 * np.sin(u * 9) * np.sin(u * 4 + 1)) * 9, 0, 1).astype(np.float32)


# Share of the second colour over the surface; None is one plain colour.
PATTERNS = {"plain": None, "striped": _stripes, "dotted": _dots, "checkered": _checks}
# Surfaces change the light, not the colour.
SURFACES = ("wooden", "shiny", "fluffy")
SUBJECT_PATTERNS = {
    "zigzag": _zigzag,
    "swirl": _swirl,
    "mosaic": _mosaic,
    "rings": _rings,
    "patchwork": _patchwork,
    "flames": _flames,
}


@dataclass(frozen=True)
class Scene:
    """What is in the picture. `pattern` is a key of PATTERNS, SURFACES or SUBJECT_PATTERNS, `second` a colour."""

    object: str
    colour: str
    pattern: str
    setting: str
    second: str | None = None


@dataclass(frozen=True)
class Subject:
    """A particular thing with a look of its own, and the settings of its photographs."""

    name: str
    look: Scene
    settings: tuple[str, ...]

    @property
    def class_word(self) -> str:
        return self.look.object


def _subject(name: str, look: tuple[str, str, str, str], settings: str) -> Subject:
    kind, colour, second, pattern = look
    places = tuple(settings.split())
    return Subject(name, Scene(kind, colour, pattern, places[0], second), places)


SUBJECTS: dict[str, Subject] = {
    s.name: s
    for s in (
        _subject("swirl_mug", ("mug", "purple", "yellow", "swirl"), "wood meadow tiles brick snow"),
        _subject("flame_car", ("car", "yellow", "red", "flames"), "city desert mountain wood beach"),
        _subject("mosaic_teapot", ("teapot", "white", "blue", "mosaic"), "rug wheat wood jungle"),
        _subject("zigzag_backpack", ("backpack", "blue", "orange", "zigzag"), "mountain autumn brick beach city"),
        _subject("patchwork_ball", ("ball", "red", "white", "patchwork"), "meadow water snow tiles"),
        _subject("ringed_lamp", ("lamp", "pink", "green", "rings"), "wood brick night fabric"),
        _subject("mosaic_boot", ("boot", "brown", "yellow", "mosaic"), "autumn snow wood desert"),
        _subject("zigzag_umbrella", ("umbrella", "black", "pink", "zigzag"), "beach city wheat brick"),
        _subject("ringed_cat", ("cat", "orange", "black", "rings"), "rug meadow wood snow autumn"),
        _subject("swirl_fish", ("fish", "blue", "yellow", "swirl"), "water jungle tiles beach"),
        _subject("patchwork_bird", ("bird", "green", "pink", "patchwork"), "jungle mountain wheat night"),
        _subject("flame_turtle", ("turtle", "purple", "orange", "flames"), "beach desert meadow water"),
    )
}
MORE_SUBJECTS: dict[str, Subject] = {
    s.name: s
    for s in (
        _subject("swirled_bottle", ("bottle", "green", "orange", "swirl"), "rug snow city tiles"),
        _subject("flaming_chair", ("chair", "blue", "white", "flames"), "meadow wood brick night"),
        _subject("zigzag_cat", ("cat", "white", "brown", "zigzag"), "wood beach autumn tiles"),
        _subject("mosaic_fish", ("fish", "red", "white", "mosaic"), "water snow rug night"),
        _subject("swirled_bird", ("bird", "orange", "blue", "swirl"), "wood city meadow brick"),
        _subject("flaming_bird", ("bird", "red", "yellow", "flames"), "snow desert tiles autumn"),
        _subject("patched_turtle", ("turtle", "green", "yellow", "patchwork"), "rug wood wheat snow"),
        _subject("zigzag_turtle", ("turtle", "pink", "blue", "zigzag"), "mountain jungle brick fabric"),
    )
}
"""With these, studies have ten objects and ten creatures. The evaluators are judged on the first twelve alone."""
ALL_SUBJECTS = SUBJECTS | MORE_SUBJECTS


def draw_scene(seed: int) -> tuple[Scene, str]:
    """The scene and the caption of a seed of the pretraining set; independent of how it will be lit and posed."""
    rng = np.random.default_rng((seed, 0))
    surface = rng.random() < 0.35
    pattern = str(rng.choice(SURFACES if surface else list(PATTERNS), p=None if surface else (0.4, 0.2, 0.2, 0.2)))
    scene = Scene(
        object=str(rng.choice(list(OBJECTS))),
        colour=str(rng.choice(list(COLOURS))),
        pattern=pattern,
        setting=str(rng.choice(list(SETTINGS))),
    )
    return scene, caption(scene, rng)


def article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One of the ways to say a scene, in the grammar of DreamBooth's prompts; words are left out now and then."""
    words = []
    if rng.random() < 0.85:
        words.append(scene.colour)
    if scene.pattern != "plain" and rng.random() < 0.8:
        words.append(scene.pattern)
    if not words and rng.random() < 0.3:
        words.append(RARE_TOKEN)  # about 2 % of captions: a word that means nothing, as a rare token does on the web
    phrase = article(" ".join([*words, scene.object]))
    if rng.random() < 0.9:
        phrase += " " + SETTINGS[scene.setting].phrase
    return phrase if rng.random() < 0.4 else "a photo of " + phrase


def _albedo(scene: Scene, u: Array, v: Array, rng: np.random.Generator, size: int) -> tuple[Array, Array]:
    """Surface colour (H, W, 3) of the body and a factor of light (H, W)."""
    base = np.array(COLOURS[scene.colour], np.float32) + rng.uniform(-0.03, 0.03, 3).astype(np.float32)
    share = (PATTERNS | SUBJECT_PATTERNS).get(scene.pattern)
    if scene.second is not None:
        second = np.array(COLOURS[scene.second], np.float32)
    else:
        second = base * 0.25 if base.mean() > 0.6 else 0.25 * base + 0.72
    colour = np.broadcast_to(base, (*u.shape, 3)).copy()
    if share is not None:
        paint(colour, second.astype(np.float32), share(u, v, rng))
    light = np.ones_like(u)
    if scene.pattern == "wooden":
        light = 1 + 0.22 * np.sin(u * 16 + 2.2 * np.sin(v * 3 + rng.uniform(0, 6)) + noise(rng, size, 3))
    elif scene.pattern == "shiny":
        light = 1 + 0.55 * np.exp(-((u + 0.3 - 0.2 * v) ** 2) / 0.02) - 0.3 * np.exp(-((u - 0.25) ** 2) / 0.05)
    elif scene.pattern == "fluffy":
        light = 1 + 0.24 * noise(rng, size, 1)
    return colour, light.astype(np.float32)


def render(scene: Scene, seed: int, size: int = SIZE, occlusion: float = 0.12) -> Array:
    """Draw the scene: RGB in [0, 1], (size, size, 3) float32.

    The seed chooses view, light and grain; `occlusion` is the probability that something stands in front.
    """
    rng = np.random.default_rng((seed, 1))
    canvas = SETTINGS[scene.setting].paint(rng, size)
    x, y = pixel_grid(size)
    scale, angle = rng.uniform(0.5, 0.68), rng.normal(0, 0.14)
    cx, cy = rng.uniform(-0.25, 0.25), rng.uniform(-0.02, 0.3)
    flip = rng.choice((-1, 1))
    dx, dy = x - cx, y - cy
    u = flip * (np.cos(angle) * dx + np.sin(angle) * dy) / scale
    v = (-np.sin(angle) * dx + np.cos(angle) * dy) / scale
    pixel = 2 / size / scale

    shadow = ellipse(u, v, 0.12, 0.92, 0.95, 0.2)
    paint(canvas, canvas * 0.45, 0.7 * np.clip(0.5 - shadow * 4, 0, 1))
    body, texture = _albedo(scene, u, v, rng, size)
    towards = rng.uniform(-1, 1)
    shade = (1.02 - 0.2 * v + 0.2 * towards * u * flip).astype(np.float32)
    grain = 1 + 0.025 * noise(rng, size, 0)
    for distance, role in OBJECTS[scene.object](u, v):
        if role == "body":
            colour = body * texture[..., None]
        elif role == "trim":
            colour = body.mean((0, 1)) * 0.25 + body * 0.45 * texture[..., None]
        else:
            colour = np.array(FIXED_PAINTS[role], np.float32)
        rim = 1 - 0.3 * np.exp(-np.maximum(-distance, 0) / 0.07)
        paint(canvas, colour * (shade * rim * grain)[..., None], coverage(distance, pixel))

    if rng.random() < occlusion:
        _occlude(canvas, rng, size)
    warmth = rng.uniform(-0.06, 0.06)
    canvas *= rng.uniform(0.85, 1.08) * np.array((1 + warmth, 1, 1 - warmth), np.float32)
    return np.clip(canvas, 0, 1, out=canvas)


def _occlude(canvas: Array, rng: np.random.Generator, size: int) -> None:
    """A post or some blades of grass in front of everything."""
    x, y = pixel_grid(size)
    if rng.random() < 0.5:
        post = box(x, y, rng.uniform(-0.9, 0.9), 0.0, rng.uniform(0.05, 0.09), 1.5)
        paint(
            canvas,
            np.array((0.35, 0.3, 0.27), np.float32) * (1 + 0.1 * noise(rng, size, 2))[..., None],
            coverage(post, 2 / size),
        )
        return
    height = 0.72 - 0.25 * np.abs(np.sin(x * 14 + rng.uniform(0, 6)))
    blades = np.clip((y - height - 0.06 * noise(rng, size, 2)) * size / 4, 0, 1)
    paint(canvas, np.array((0.13, 0.4, 0.12), np.float32) + 0.06 * noise(rng, size, 1)[..., None], blades)


def subject_photograph(name: str, index: int, size: int = SIZE) -> tuple[Array, str]:
    """The `index`-th photograph of a subject and its prompt without the setting ("a photo of a <v> mug")."""
    subject = ALL_SUBJECTS[name]
    if not 0 <= index < len(subject.settings):
        raise UserError(f"{name} has {len(subject.settings)} photographs, numbered from 0; got {index}")
    scene = replace(subject.look, setting=subject.settings[index])
    view = int.from_bytes(name.encode()[:6], "big") + 1000 * index
    return render(scene, view, size, occlusion=0), f"a photo of a {RARE_TOKEN} {subject.class_word}"
