"""The corruption score of a run's checkpoints, from their pictures beside the base model's and the training images.

The score is the stage monitor's; what is corrupted by it, `stage/definition.py` says. Reads picture files only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from fewbayes.stage.monitor import corruption
from fewbayes.stage.samples import Picture, describe


def scores(pictures: Mapping[tuple[int, str], Sequence[Path]], references: Sequence[Path], weights: str) -> dict:
    """By step, of the checkpoints with as many readable pictures as the base model has, step 0; {} without these.

    pictures: by (step, weights), in the same order of prompts and seeds throughout.
    """
    base = tuple(pictures.get((0, "raw"), ()))
    found = {
        step: _score(_versions(files), _versions(base), _versions(references))
        for (step, kind), files in sorted(pictures.items())
        if kind == weights and references and len(files) == len(base)
    }
    return {step: score for step, score in found.items() if score is not None}


def _versions(files: Sequence[Path]) -> tuple[tuple[Path, int], ...]:
    return tuple((file, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4096)
def _score(files: tuple, base: tuple, references: tuple) -> float | None:
    """None where a picture is not readable: a killed training may leave half of one."""
    real, before, mine = _opened(references), _opened(base), _opened(files)
    if not (real and before and mine):
        return None
    return corruption(describe(mine, real, before), describe(before, real, before), describe(real, real))


@lru_cache(maxsize=64)
def _opened(files: tuple[tuple[Path, int], ...]) -> list[Picture]:
    pictures = []
    for file, _ in files:
        try:
            with Image.open(file) as opened:
                pictures.append(np.asarray(opened.convert("RGB")))
        except (OSError, ValueError, Image.DecompressionBombError):
            return []
    return pictures
