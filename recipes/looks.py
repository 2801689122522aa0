"""Looks for the self-supervised evaluator: things in two colours and a pattern of their own, seen in several scenes.

A look is to a subject what a pretraining scene is to its photograph: it has everything but the patterns of `SUBJECTS`,
none of which is drawn here.
"""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from fewbayes.world.objects import OBJECTS
from fewbayes.world.scenes import COLOURS, SIZE, SUBJECT_PATTERNS, Scene, render
from fewbayes.world.settings import SETTINGS

Array = NDArray[np.floating]
VIEWS = 4


def waves(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """Bands across a direction, bent."""
    angle, count, start = rng.uniform(0, np.pi), rng.uniform(4, 14), rng.uniform(0, 6)
    bend, bends, width = rng.uniform(0, 1.5), rng.uniform(1, 5), rng.uniform(-0.5, 0.5)

    def share(u: Array, v: Array) -> Array:
        along, across = np.cos(angle) * u + np.sin(angle) * v, np.cos(angle) * v - np.sin(angle) * u
        return np.sin(count * across + bend * np.sin(bends * along) + start) > width

    return share


def blobs(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """Patches where a few random waves add up, as on a cow."""
    directions, starts = rng.normal(0, rng.uniform(2, 6), (6, 2)), rng.uniform(0, 6, 6)
    level = rng.uniform(-0.8, 0.8)

    def share(u: Array, v: Array) -> Array:
        return sum(np.sin(a * u + b * v + c) for (a, b), c in zip(directions, starts, strict=True)) > level

    return share


def motifs(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """A lattice of discs, squares, diamonds or crosses, turned."""
    angle, count = rng.uniform(0, np.pi), rng.uniform(1.2, 3.5)
    su, sv = rng.uniform(0, 1, 2)
    size, kind = rng.uniform(0.2, 0.4), rng.integers(4)

    def share(u: Array, v: Array) -> Array:
        a = np.abs(np.mod((np.cos(angle) * u + np.sin(angle) * v) * count + su, 1) - 0.5)
        b = np.abs(np.mod((np.cos(angle) * v - np.sin(angle) * u) * count + sv, 1) - 0.5)
        return (
            np.hypot(a, b) < size,
            np.maximum(a, b) < size,
            a + b < size * 1.3,
            (np.minimum(a, b) < size / 3) & (np.maximum(a, b) < 0.42),
        )[kind]

    return share


def blocks(rng: np.random.Generator) -> Callable[[Array, Array], Array]:
    """One or two straight borders between the colours."""
    angles, places = rng.uniform(0, np.pi, 2), rng.uniform(-0.3, 0.3, 2)
    two = rng.random() < 0.5

    def share(u: Array, v: Array) -> Array:
        first, second = (np.cos(a) * u + np.sin(a) * v > p for a, p in zip(angles, places, strict=True))
        return first ^ second if two else first

    return share


FAMILIES = (waves, blobs, motifs, blocks)


def draw_look(seed: int) -> tuple[Scene, Callable[[Array, Array], Array]]:
    """What a look is, but for its setting, and where its second colour lies."""
    rng = np.random.default_rng((seed, 51))
    first, second = rng.choice(list(COLOURS), 2, replace=False)
    pattern = FAMILIES[rng.integers(len(FAMILIES))](rng)
    return Scene(str(rng.choice(list(OBJECTS))), str(first), f"look {seed}", "", str(second)), pattern


def render_look(seed: int, views: int = VIEWS) -> NDArray[np.uint8]:
    """The look in `views` different settings, positions and lights: (views, SIZE, SIZE, 3)."""
    look, share = draw_look(seed)
    rng = np.random.default_rng((seed, 52))
    SUBJECT_PATTERNS[look.pattern] = lambda u, v, _rng: share(u, v).astype(np.float32)
    try:
        scenes = [
            Scene(look.object, look.colour, look.pattern, str(setting), look.second)
            for setting in rng.choice(list(SETTINGS), views, replace=False)
        ]
        pictures = [render(scene, 20_000_000 + seed * views + i) for i, scene in enumerate(scenes)]
    finally:
        del SUBJECT_PATTERNS[look.pattern]
    return np.round(np.stack(pictures) * 255).astype(np.uint8)


def look_pictures(folder: Path, count: int) -> np.ndarray:
    """`count` looks as a uint8 memory map (count, VIEWS, SIZE, SIZE, 3), drawn once; about 8 ms each."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"looks-{count}.npy"
    if not path.exists():
        scratch = path.with_suffix(".tmp")
        shape = (count, VIEWS, SIZE, SIZE, 3)
        pictures = np.lib.format.open_memmap(scratch, mode="w+", dtype=np.uint8, shape=shape)
        for seed in tqdm(range(count), desc="drawing looks", mininterval=5):
            pictures[seed] = render_look(seed)
        pictures.flush()
        os.replace(scratch, path)
    return np.load(path, mmap_mode="r")
