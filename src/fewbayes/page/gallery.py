"""The pictures of an evaluation's page: best, average, worst and random ones of each arm, within a budget of bytes.

Small pictures are embedded whole and shown at a whole multiple of their pixels. Large ones come twice: an overview that
is scaled down and says so, and a crop of the centre at 1:1, because scaling down hides just the noise in question.
"""

import base64
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageOps

from fewbayes.page.cases import FILTERS, choose
from fewbayes.page.evaluation import ROWS, Evaluation
from fewbayes.page.evaluation import Picture as Sample
from fewbayes.page.nearest import nearest
from fewbayes.page.pictures import Picture

WHOLE = 128
"""Pictures up to this side are embedded as they are; larger ones as an overview of twice it and a crop of this side."""
BUDGET = 8_000_000
PER_CASE = 4
FEWEST_SUBJECTS = 2


@dataclass(frozen=True)
class Shown:
    """crop: the picture at 1:1, or its centre where it is large. factor: by what `picture` is shown larger."""

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
    subjects = sorted({subject for subject, _ in grouped})
    arms = _arm_order(evaluation, {arm for _, arm in grouped})
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
    labels = ROWS | {arm.name: arm.label for arm in evaluation.arms}
    return Gallery(
        subjects=list(shown),
        arms=[labels.get(arm, arm) for arm in arms],
        panels=panels,
        references=[_references(evaluation, subject) for subject in shown],
        notes=_left_out(len(shown), len(subjects), count),
        few=any(len(grouped.get((subject, arm), ())) in range(1, PER_CASE + 1) for subject in shown for arm in arms),
        unfiltered=[name for name in FILTERS if not any(name in p.scores for p in evaluation.pictures)],
    )


def _left_out(shown: int, subjects: int, count: int) -> list[str]:
    notes = [f"{shown} of {subjects} subjects are shown"] if shown < subjects else []
    return notes + ([f"{count} of {PER_CASE} pictures a case"] if count < PER_CASE else [])


def _arm_order(evaluation: Evaluation, present: set[str]) -> list[str]:
    named = [*(arm.name for arm in evaluation.arms), *ROWS]
    return [name for name in named if name in present] + sorted(present - set(named))


def _panels(
    evaluation: Evaluation,
    grouped: dict[tuple[str, str], list[Sample]],
    subjects: Sequence[str],
    arms: Sequence[str],
    count: int,
    seed: int,
) -> Iterable[Panel]:
    for i, subject in enumerate(subjects):
        for k, arm in enumerate(arms):
            if samples := grouped.get((subject, arm)):
                references = evaluation.references.get(subject, ())
                rows = [Row(case.name, _shown(case.pictures, references)) for case in choose(samples, count, seed)]
                yield Panel(i, k, [row for row in rows if row.shown])


def _shown(samples: Iterable[Sample], references: Sequence[Path]) -> list[Shown]:
    found = []
    for sample in samples:
        embedded = _embed(sample.file)
        if embedded is None:
            continue
        picture, crop = embedded
        near = _nearest(sample, references)
        place = references.index(near[0]) if near else None
        factor = max(1, WHOLE // max(picture.width, picture.height)) if crop is picture else 1
        found.append(Shown(picture, crop, factor, sample, place, near[1] if near else None))
    return found


def _nearest(sample: Sample, references: Sequence[Path]) -> tuple[Path, float] | None:
    """As the evaluation has it, else found here."""
    named = next((path for path in references if path.name == sample.nearest), None)
    if named and "nearest_ncc" in sample.scores:
        return named, sample.scores["nearest_ncc"]
    return nearest(sample.file, references)


@lru_cache(maxsize=8192)
def _embed(path: Path) -> tuple[Picture, Picture] | None:
    """(overview, crop at 1:1), the same object twice for a small picture; None where it cannot be read."""
    image = _opened(path)
    if image is None:
        return None
    if max(image.size) <= WHOLE:
        whole = _lossless(image, None)
        return whole, whole
    left, top = ((side - min(side, WHOLE)) // 2 for side in image.size)
    crop = image.crop((left, top, left + min(image.width, WHOLE), top + min(image.height, WHOLE)))
    return _overview(image, 2 * WHOLE), _lossless(crop, None)


def _references(evaluation: Evaluation, subject: str) -> list[Picture]:
    """The centre square of each training image, so that all of them stand in frames of one size."""
    pictures = []
    for path in evaluation.references.get(subject, ()):
        image = _opened(path)
        if image is None:
            image = Image.new("RGB", (WHOLE, WHOLE), "grey")  # its place must stay, samples point to it
        side = min(*image.size, WHOLE)
        square = ImageOps.fit(image, (side, side), Image.Resampling.LANCZOS)
        pictures.append(_lossless(square, None) if side < WHOLE else _overview(square, WHOLE))
    return pictures


def _opened(path: Path) -> Image.Image | None:
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _lossless(image: Image.Image, reduced_from: tuple[int, int] | None) -> Picture:
    buffer = io.BytesIO()
    image.save(buffer, "png", optimize=True)
    return Picture(f"data:image/png;base64,{_text(buffer)}", *image.size, reduced_from=reduced_from)


def _overview(image: Image.Image, side: int) -> Picture:
    size = image.size
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "jpeg", quality=88)
    reduced = size if size != image.size else None
    return Picture(f"data:image/jpeg;base64,{_text(buffer)}", *image.size, reduced_from=reduced)


def _text(buffer: io.BytesIO) -> str:
    return base64.b64encode(buffer.getvalue()).decode()
