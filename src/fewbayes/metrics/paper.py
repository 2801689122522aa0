"""Scores in paper mode: the averaging of the authors' evaluator, with what it drops and what it counts twice.

For comparison with published tables and nothing else. Pictures lie in folders `<subject>-<k>`, one a prompt, and:

- of each folder the first four pictures count, PNG and JPG alone (their order was the file system's; ours is by name);
- a subject owns every folder whose name *contains* `<subject>-`, so `dog` also owns those of `backpack_dog`;
- pairs of all subjects go into one list, so subjects with more references weigh more;
- black pictures are left out, but not from Clip-IQA;
- Lpips goes over blocks of four pictures, all ordered pairs, and forgets every distance that is exactly 0, so that
  equal pictures, which a collapsed model makes, raise the diversity.

numpy only; features are arrays with one row a picture.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbayes.metrics.scores import Floats, Mean, Unavailable, cosines, prompt_scores

PER_PROMPT = 4
ENDINGS = (".png", ".jpg")


@dataclass(frozen=True)
class PromptFolder:
    """The pictures of one prompt: names of files, and the row of each in the arrays of features."""

    name: str
    files: tuple[str, ...]
    rows: tuple[int, ...]

    def first(self) -> list[int]:
        """Rows of the pictures that count."""
        named = sorted(zip(self.files, self.rows, strict=True))
        return [row for file, row in named if file.endswith(ENDINGS)][:PER_PROMPT]


Folders = Sequence[PromptFolder]
Black = NDArray[np.bool_]


def owned(subject: str, folders: Folders) -> list[int]:
    """Rows of a subject's pictures, by the substring test."""
    return [row for folder in folders if f"{subject}-" in folder.name for row in folder.first()]


def clip_t(images: Floats, texts: Floats, folders: Folders, black: Black) -> Mean:
    """Mean cosine of pictures with their prompts, rare token included; all folders, whoever's they are."""
    rows = [row for folder in folders for row in folder.first() if not black[row]]
    _some(rows, "pictures that are not black")
    return _mean(prompt_scores(images[rows], texts[rows]))


def fidelity(images: Floats, references: Mapping[str, tuple[Floats, Black]], folders: Folders, black: Black) -> Mean:
    """Clip-I and Dino: mean cosine over all pairs of a reference and a picture, of all subjects in one list."""
    values = []
    for subject, (features, dark) in references.items():
        rows = [row for row in owned(subject, folders) if not black[row]]
        if rows and not dark.all():
            values.append(cosines(features[~dark], images[rows]).ravel())
    _some(values, "pairs of a reference and a picture")
    return _mean(np.concatenate(values))


def lpips(distances: Callable[[list[int]], Floats], subjects: Sequence[str], folders: Folders, black: Black) -> Mean:
    """Mean distance over ordered pairs in blocks of four, without zeros. n counts the pairs that were kept.

    distances: from rows to the table of distances between their pictures. A folder with fewer than four shifts the
    blocks, so that they mix prompts; an incomplete last block, at which the evaluator stops with an error, is used.
    """
    values = []
    for subject in subjects:
        rows = owned(subject, folders)
        for start in range(0, len(rows), PER_PROMPT):
            block = [row for row in rows[start : start + PER_PROMPT] if not black[row]]
            if block:
                values.append(np.asarray(distances(block)).ravel())
    return _without_zeros(values)


def real_lpips(tables: Sequence[Floats]) -> Mean:
    """Ordered pairs of each subject's references, without zeros, in one list."""
    return _without_zeros([np.asarray(table).ravel() for table in tables])


def real_fidelity(references: Mapping[str, tuple[Floats, Black]]) -> Mean:
    """Ordered pairs of different references of a subject, in one list: black ones are not left out here."""
    tables = [cosines(features, features) for features, _ in references.values() if len(features) > 1]
    _some(tables, "subjects with two references")
    return _mean(np.concatenate([table[~np.eye(len(table), dtype=bool)] for table in tables]))


def clip_iqa(quality: Floats, references: Mapping[str, int], folders: Folders) -> Mean:
    """Mean over pairs of a reference and a picture of the picture's quality, black ones included.

    For one subject it is the mean over pictures; of several, the one with more references weighs more.
    """
    values = [np.repeat(quality[owned(subject, folders)], count) for subject, count in references.items()]
    return _mean(_some(np.concatenate([np.empty(0), *values]), "pairs of a reference and a picture"))


def real_clip_iqa(quality: Mapping[str, Floats], folders: Folders) -> Mean:
    """The same over the references: each counts once for every picture of its subject."""
    values = [np.repeat(scores, len(owned(subject, folders))) for subject, scores in quality.items()]
    return _mean(_some(np.concatenate([np.empty(0), *values]), "pairs of a reference and a picture"))


def _without_zeros(values: Sequence[Floats]) -> Mean:
    flat = np.concatenate([np.empty(0), *values])
    return _mean(_some(flat[flat != 0], "pairs at a distance other than 0"))


def _mean(values: Floats) -> Mean:
    return Mean(float(np.mean(values)), len(values))


def _some(values: Any, what: str) -> Any:
    if not len(values):
        raise Unavailable(f"there are no {what}")
    return values
