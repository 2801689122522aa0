"""What the stage monitor says of a run's checkpoints by their pictures alone, for runs that nobody watched.

The monitor, its limits and its hysteresis are those of training; here it has no probes. Reads picture files only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np

from fewbayes.page.pictures import opened
from fewbayes.stage.monitor import Judgement, Look, Monitor
from fewbayes.stage.samples import Picture, SampleStats, describe


def judge(
    pictures: Mapping[tuple[int, str], Sequence[Path]], references: Sequence[Path], weights: str
) -> list[Judgement]:
    """In the order of steps, of those with as many readable pictures as the base model has, step 0; [] without these.

    pictures: by (step, weights), in the same order of prompts and seeds throughout.
    """
    base, real = _versions(pictures.get((0, "raw"), ())), _versions(references)
    before, training = _described(base, real, base), _described(real, real, ())
    if before is None or training is None:
        return []
    monitor = Monitor(Look(0, samples=before), training)
    found = []
    for (step, kind), files in sorted(pictures.items()):
        if kind == weights and len(files) == len(base) and (mine := _described(_versions(files), real, base)):
            found.append(monitor.judge(Look(step, samples=mine)))
    return found


def _versions(files: Sequence[Path]) -> tuple[tuple[Path, int], ...]:
    return tuple((file, file.stat().st_mtime_ns) for file in files)


@lru_cache(maxsize=4096)
def _described(files: tuple, references: tuple, twins: tuple) -> SampleStats | None:
    """None where there are none, or one is not readable: a killed training may leave half of one."""
    mine, real, base = _opened(files), _opened(references), _opened(twins)
    if not mine or not real or (twins and not base):
        return None
    return describe(real if files == references else mine, real, base or None)


@lru_cache(maxsize=64)
def _opened(files: tuple[tuple[Path, int], ...]) -> list[Picture]:
    pictures = [opened(file) for file, _ in files]
    return [] if None in pictures else [np.asarray(picture) for picture in pictures]
