"""Scores in sound mode: numbers from features, nothing dropped on the way. numpy only.

Knows neither pictures nor encoders: features are arrays with one row a picture, in any scale, and a cosine is taken of
them in float64. Where there is nothing to compute a score from, `Unavailable` says so.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating]
Array = NDArray[np.float64]


class Unavailable(Exception):  # noqa: N818  a reason, no error
    """A metric has no value here, because ...: a row of null with this reason.

    No ValueError: those of numpy and torch are mistakes of ours, and a mistake is no missing value.
    """


@dataclass(frozen=True)
class Mean:
    """A mean, and what it is one of. each: the score of every picture; nearest: the place of its likest reference."""

    value: float
    n: int
    each: Array | None = field(default=None, compare=False)
    nearest: NDArray[np.intp] | None = field(default=None, compare=False)

    @classmethod
    def over(cls, values: Floats) -> Mean:
        """Of a score of every picture."""
        return cls(float(np.mean(values)), len(values), np.asarray(values, dtype=np.float64))


def unit(features: Floats) -> Array:
    """Rows of length 1; a row of zeros stays one and is at a right angle to all."""
    rows = np.atleast_2d(np.asarray(features, dtype=np.float64))
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(lengths > 0, lengths, 1)


def cosines(a: Floats, b: Floats) -> Array:
    """(len(a), len(b)), in [-1, 1]."""
    return unit(a) @ unit(b).T


def prompt_scores(images: Floats, texts: Floats) -> Array:
    """Clip-T of each picture: its cosine with its own prompt. Not scaled, and not cut off at 0."""
    if len(images) != len(texts):
        raise ValueError(f"{len(images)} pictures and {len(texts)} prompts; there must be one for each")
    return (unit(images) * unit(texts)).sum(1)


@dataclass(frozen=True)
class Fidelity:
    """Likeness of samples to references. mean: over all pairs. nearest: mean over samples of the likest reference."""

    mean: float
    nearest: float
    pairs: int
    per_sample: Array
    per_sample_nearest: Array
    nearest_reference: NDArray[np.intp]


def fidelity(samples: Floats, references: Floats) -> Fidelity:
    """Clip-I and Dino: cosines of every sample with every reference."""
    if not len(samples) or not len(references):
        raise Unavailable(
            f"{len(samples)} samples and {len(references)} references; there must be one of each at least"
        )
    table = cosines(samples, references)
    nearest = table.max(1)
    return Fidelity(float(table.mean()), float(nearest.mean()), table.size, table.mean(1), nearest, table.argmax(1))


def real_fidelity(references: Floats, mirrors: Floats | None = None) -> Fidelity:
    """The ceiling: references against each other, pairs i < j; the likest one of a reference is another one.

    mirrors: the references as a mirror shows them, in which the likest one is looked for too.
    """
    if len(references) < 2:
        raise Unavailable(f"{len(references)} reference; it takes two to be compared with each other")
    table = cosines(references, references)
    count = len(table)
    likeness = table if mirrors is None else np.maximum(table, cosines(references, mirrors))
    likeness = np.where(np.eye(count, dtype=bool), -np.inf, likeness)
    nearest = likeness.max(1)
    np.fill_diagonal(table, 0)
    above = table[np.triu_indices(count, 1)]
    others = table.sum(1) / (count - 1)
    return Fidelity(float(above.mean()), float(nearest.mean()), len(above), others, nearest, likeness.argmax(1))


def diversity(groups: Sequence[Floats]) -> Mean:
    """Lpips: mean over prompts of the mean distance of their pictures, pairs i < j; n counts the pairs.

    Equal pictures count as pairs at distance 0. Prompts with one picture have no pair and no say.
    """
    pairs = [table[np.triu_indices(len(table), 1)] for table in groups if len(table) > 1]
    if not pairs:
        raise Unavailable("no prompt has two pictures")
    return Mean(float(np.mean([values.mean() for values in pairs])), sum(map(len, pairs)))


def quality(features: Floats, anchors: Floats, scale: float) -> Array:
    """Clip-IQA of each picture: the share of the first of two antonyms in softmax(scale * cosine), in [0, 1]."""
    logits = scale * cosines(features, anchors)
    return 1 / (1 + np.exp(logits[:, 1] - logits[:, 0]))


def vendi(features: Floats) -> float:
    """The effective number of different pictures, in [1, n]: exp of the entropy of the eigenvalues of cosines / n.

    Friedman and Dieng, The Vendi Score (2023), with the cosine as the kernel.
    """
    kernel = cosines(features, features) / len(features)
    values = np.clip(np.linalg.eigvalsh(kernel), 0, None)
    values = values[values > 1e-12] / values.sum()
    return float(np.exp(-(values * np.log(values)).sum()))


def group_vendi(groups: Sequence[Floats]) -> Mean:
    """Mean over prompts of their Vendi scores; prompts with one picture have no say. n counts the prompts."""
    scores = [vendi(features) for features in groups if len(features) > 1]
    if not scores:
        raise Unavailable("no prompt has two pictures")
    return Mean(float(np.mean(scores)), len(scores))


def noise_ratio(samples: Floats, base: Floats) -> float:
    """Noise of the samples over that of the base model's pictures of the same prompts and seeds; 1 is no change.

    The ratio of the means: pictures without any noise are common, and would make a mean of ratios infinite.
    """
    lowest = float(np.mean(base))
    if not lowest > 0:
        raise Unavailable("the base model's pictures have no noise to compare with")
    return float(np.mean(samples)) / lowest


def drift(tuned: Floats, base: Floats) -> Array:
    """How far each picture has moved from the base model's of the same prompt and seed: 1 - cosine, in [0, 2]."""
    return 1 - prompt_scores(tuned, base)


def has_token(prompt: str | None, rare_token: str) -> bool:
    return prompt is not None and re.search(rf"(?<!\w){re.escape(rare_token)}(?!\w)", prompt) is not None


def without_token(prompt: str, rare_token: str) -> str:
    """The prompt in plain words: "a <v> umbrella" becomes "an umbrella"."""
    kept: list[str] = []
    removed = False
    for word in prompt.split():
        bare = word.strip(",.;:!?")
        if bare == rare_token:
            removed = True
            if word != bare and kept:  # keeps the comma that followed it
                kept[-1] += word.partition(rare_token)[2]
            continue
        if removed and kept and kept[-1].lower() in ("a", "an"):
            kept[-1] = kept[-1][0] + ("n" if re.match("[aeiou]", word.lower()) else "")
        removed = False
        kept.append(word)
    return " ".join(kept)
