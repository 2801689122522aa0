"""The pictures of an evaluation's page: best, average, worst and random ones of each arm, within a budget of bytes.

Best, average and worst follow the paper's appendix I. A choice by score shows what the score likes, so pictures chosen
by a seed alone stand beside them. Small pictures are embedded whole and shown at a whole multiple of their pixels.
Large ones come twice: an overview that is scaled down and says so, and a crop of the centre at 1:1, because scaling
down hides just the noise in question.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from fewbayes.page.evaluation.reading import Evaluation
from fewbayes.page.evaluation.reading import Picture as Sample
from fewbayes.page.evaluation.scores import ROWS
from fewbayes.page.pictures import Picture

WHOLE = 128
"""Pictures up to this side are embedded as they are; larger ones as an overview of twice it and a crop of this side."""
BUDGET = 8_000_000
PER_CASE = 4
FEWEST_SUBJECTS = 2
KEPT = 0.9
FILTERS = ("clip_t", "dino")
RANK = "clip_iqa"
RULE = (
    "Kept: pictures among the top 90 % by Clip-T and among the top 90 % by Dino. Best: the highest Clip-IQA of those; "
    "average: the middle of that rank; worst: the lowest Clip-IQA of all pictures. Random: chosen by a hash of the "
    "file names, before any score."
)


@dataclass(frozen=True)
class Shown:
    """crop: the picture at 1:1, or its centre where it is large. factor: by what `picture` is shown larger. nearest:
    place of the training image that it is nearest to, with their likeness."""

    picture: Picture
    crop: Picture
    factor: int
    sample: Sample
    nearest: int | None
    likeness: float | None

    @property
    def bytes(self) -> int:
        return len(self.picture.uri) + (len(self.crop.uri) if self.crop is not self.picture else 0)


@dataclass(frozen=True)
class Row:
    case: str
    shown: list[Shown]


@dataclass(frozen=True)
class Panel:
    """The pictures of one arm on one subject, by their places in the choosers."""

    subject: int
    arm: int
    rows: list[Row]


@dataclass(frozen=True)
class Gallery:
    """references: the training images of each subject, by its place. unfiltered: filters that no picture has a score
    for, so that the best and the average case are chosen without them. few: whether an arm has so few pictures that
    its cases show the same ones."""

    subjects: list[str]
    arms: list[str]
    panels: list[Panel]
    references: list[list[Picture]]
    notes: list[str]
    unfiltered: list[str]
    few: bool = False


def make_gallery(evaluation: Evaluation, budget: int = BUDGET, seed: int = 0) -> Gallery:
    """Panels for as many subjects and pictures as `budget` bytes hold; pictures of a case go first, then subjects."""
    grouped: dict[tuple[str, str], list[Sample]] = {}
    for sample in evaluation.pictures:
        grouped.setdefault((sample.subject, sample.arm), []).append(sample)
    subjects, present = sorted({subject for subject, _ in grouped}), {arm for _, arm in grouped}
    labels = ROWS | {arm.name: arm.label for arm in evaluation.arms}
    named = [*(arm.name for arm in evaluation.arms), *ROWS]
    arms = [name for name in named if name in present] + sorted(present - set(named))
    shown, count, panels = subjects, PER_CASE, []
    while shown:
        panels = list(_panels(evaluation, grouped, shown, arms, count, seed))
        if sum(item.bytes for panel in panels for row in panel.rows for item in row.shown) <= budget:
            break
        if count > 1 and len(shown) <= FEWEST_SUBJECTS:
            count -= 1
        elif len(shown) > 1:
            shown = shown[: max(len(shown) // 2, 1)]
        else:
            break
    notes = [f"{len(shown)} of {len(subjects)} subjects are shown"] if len(shown) < len(subjects) else []
    return Gallery(
        subjects=shown,
        arms=[labels.get(arm, arm) for arm in arms],
        panels=panels,
        references=[_references(evaluation, subject) for subject in shown],
        notes=notes + ([f"{count} of {PER_CASE} pictures a case"] if count < PER_CASE else []),
        few=any(len(grouped.get((subject, arm), ())) in range(1, PER_CASE + 1) for subject in shown for arm in arms),
        unfiltered=[name for name in FILTERS if not any(name in p.scores for p in evaluation.pictures)],
    )


def _panels(
    evaluation: Evaluation,
    grouped: Mapping[tuple[str, str], list[Sample]],
    subjects: Sequence[str],
    arms: Sequence[str],
    count: int,
    seed: int,
) -> Iterable[Panel]:
    for i, subject in enumerate(subjects):
        references = [path.name for path in evaluation.references.get(subject, ())]
        for k, arm in enumerate(arms):
            if samples := grouped.get((subject, arm)):
                rows = [Row(name, _shown(case, references)) for name, case in choose(samples, count, seed).items()]
                yield Panel(i, k, [row for row in rows if row.shown])


# --- which pictures ---------------------------------------------------------------------------------------------------


def choose(pictures: Sequence[Sample], count: int = 4, seed: int = 0) -> dict[str, list[Sample]]:
    """Best, average, worst and random pictures of one arm, `count` of each; without Clip-IQA the random ones alone.

    The random ones are the same whatever the scores and the order.
    """
    chance = {"random": sorted(pictures, key=lambda picture: _hash(seed, picture))[:count]}
    scored = sorted((picture for picture in pictures if RANK in picture.scores), key=_by_rank)
    if not scored:
        return chance
    ranked = kept(scored)[::-1]
    start = max(0, (len(ranked) - count) // 2)
    return {"best": ranked[:count], "average": ranked[start : start + count], "worst": scored[:count]} | chance


def kept(pictures: Sequence[Sample]) -> list[Sample]:
    """Those in the top 90 % by every filter that has scores; a picture without a score of a filter is not kept."""
    found = list(pictures)
    for metric in FILTERS:
        scored = sorted((p.scores[metric] for p in pictures if metric in p.scores), reverse=True)
        if scored:
            least = scored[math.ceil(KEPT * len(scored)) - 1]
            found = [p for p in found if p.scores.get(metric, -math.inf) >= least]
    return found


def _by_rank(picture: Sample) -> tuple[float, str]:
    return picture.scores[RANK], str(picture.file)


def _hash(seed: int, picture: Sample) -> bytes:
    named = f"{seed}/{picture.subject}/{picture.arm}/{picture.seed}/{picture.file.name}"
    return hashlib.sha256(named.encode()).digest()


# --- how they are shown -----------------------------------------------------------------------------------------------


def _shown(samples: Iterable[Sample], references: Sequence[str]) -> list[Shown]:
    found = []
    for sample in samples:
        if (embedded := _embed(sample.file)) is None:
            continue
        picture, crop = embedded
        factor = max(1, WHOLE // max(picture.width, picture.height)) if crop is picture else 1
        likeness = sample.scores.get("nearest_ncc")
        known = sample.nearest in references and likeness is not None
        place = references.index(sample.nearest) if known and sample.nearest else None
        found.append(Shown(picture, crop, factor, sample, place, likeness))
    return found


@lru_cache(maxsize=8192)
def _embed(path: Path) -> tuple[Picture, Picture] | None:
    """(overview, crop at 1:1), the same object twice for a small picture; None where it cannot be read."""
    image = _opened(path)
    if image is None:
        return None
    if max(image.size) <= WHOLE:
        whole = _picture(image)
        return whole, whole
    left, top = ((side - min(side, WHOLE)) // 2 for side in image.size)
    crop = image.crop((left, top, left + min(image.width, WHOLE), top + min(image.height, WHOLE)))
    return _picture(image, 2 * WHOLE), _picture(crop)


def _references(evaluation: Evaluation, subject: str) -> list[Picture]:
    """The centre square of each training image, so that all of them stand in frames of one size."""
    pictures = []
    for path in evaluation.references.get(subject, ()):
        image = _opened(path)
        if image is None:
            image = Image.new("RGB", (WHOLE, WHOLE), "grey")  # its place must stay, samples point to it
        side = min(*image.size, WHOLE)
        square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
        pictures.append(_picture(square) if side < WHOLE else _picture(square, WHOLE))
    return pictures


def _opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _picture(image: Image.Image, side: int | None = None) -> Picture:
    """Embedded without loss, or as a JPEG of no more than `side` pixels."""
    size, buffer = image.size, io.BytesIO()
    if side is None:
        image.save(buffer, "png", optimize=True)
    else:
        image = image.copy()
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
        image.save(buffer, "jpeg", quality=88)
    data, kind = base64.b64encode(buffer.getvalue()).decode(), "png" if side is None else "jpeg"
    return Picture(f"data:image/{kind};base64,{data}", *image.size, reduced_from=size if size != image.size else None)
