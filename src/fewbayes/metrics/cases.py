"""What metrics are computed from: the pictures of one subject (sound mode), or of all together (paper mode).

Sorts pictures by what their prompts ask for, takes black ones out and counts them, and pairs pictures with the base
model's. Knows no metric and no encoder; features come from a store.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from fewbayes.metrics import paper, scores
from fewbayes.metrics.features import FeatureStore, Floats
from fewbayes.metrics.folders import NO_PICTURES, Pictures, Sample
from fewbayes.metrics.listing import Kind
from fewbayes.metrics.scores import Unavailable, has_token
from fewbayes.metrics.statistics import grouped

Samples = Sequence[Sample]
Some = TypeVar("Some", bound=Sized)

NO_REFERENCES = "there are no references; give --reference_dir"
NO_PROMPTS = "the prompts are not known; give --prompt, or a samples.json beside the pictures"
NO_UNRELATED = "there are no pictures of prompts of other things, made by both models from the same seeds"
NO_CLASS = "there are no pictures of a prompt that asks for the class alone, without the rare token"
NO_BASE = "there are no pictures of the base model from the same prompts and seeds; give --base_dir"


def no_token(rare_token: str) -> str:
    return f"no prompt holds the rare token {rare_token!r}; give --rare_token"


# --- what metrics ask -------------------------------------------------------------------------------------------------


def some(pictures: Some, what: str = "readable and not black") -> Some:
    """The pictures, of which there must be one."""
    if not len(pictures):
        raise Unavailable(f"there are no pictures that are {what}")
    return pictures


def prompts_of(samples: Samples) -> list[str]:
    """The prompt of every picture, all of which must be known."""
    prompts = [sample.prompt for sample in samples if sample.prompt is not None]
    if len(prompts) < len(samples):
        raise Unavailable(NO_PROMPTS)
    return prompts


def check_prompts(samples: Samples) -> None:
    """Whether it is known which pictures are of one prompt, be it from folders alone."""
    if any(sample.prompt is None and "/" not in sample.file for sample in samples):
        raise Unavailable(NO_PROMPTS)


def by_prompt(samples: Samples) -> list[list[Sample]]:
    return list(grouped(((sample.prompt, sample.prompt_id), sample) for sample in samples).values())


def part_note(part: int, whole: int, what: str) -> str | None:
    return f"{part} of {whole} {what}" if part < whole else None


@dataclass(frozen=True)
class Lost:
    """Pictures that count and are not scored."""

    black: int = 0
    unreadable: int = 0


@dataclass(frozen=True)
class Case:
    """One subject in sound mode: its pictures without black ones, its references, and what the base model made.

    unseen: the image that a run held out. in_class, unrelated: pictures of prompts without the rare token, of the class
    alone and of other things; they say nothing of the subject. pairs, unrelated_pairs: (picture, base
    model's picture of the same prompt and seed),
    the former of the subject and the class. counts: by kind of row. told: whether it is known which prompts are of the
    subject, be it from a listing or from the rare token in one of them.
    """

    store: FeatureStore
    subject: str | None
    samples: Samples
    references: Samples
    unseen: Samples = ()
    in_class: Samples = ()
    unrelated: Samples = ()
    base: Samples = ()
    pairs: Sequence[tuple[Sample, Sample]] = ()
    unrelated_pairs: Sequence[tuple[Sample, Sample]] = ()
    counts: Mapping[str, Lost] = field(default_factory=dict)
    rare_token: str = ""
    told: bool = True

    @property
    def visible(self) -> int:
        """Pictures of all three kinds of prompts that are not black."""
        return len(self.samples) + len(self.in_class) + len(self.unrelated)

    def features(self, key: str, samples: Samples) -> Floats:
        """(n, width) of an encoder, for pictures of which there must be one."""
        return self.store.matrix(key, some(samples))

    def of_references(self, key: str) -> Floats:
        if not self.references:
            raise Unavailable(NO_REFERENCES)
        return self.store.matrix(key, self.references)

    def likeness(self, key: str, samples: Samples) -> scores.Fidelity:
        references = self.of_references(key)
        return scores.fidelity(self.features(key, samples), references)

    def check_told(self) -> None:
        if not self.told:
            raise Unavailable(no_token(self.rare_token))


class Pooled:
    """All subjects at once in paper mode, as the authors' evaluator has them; black pictures are among them."""

    def __init__(self, store: FeatureStore, samples: Samples, references: Mapping[str | None, Samples]):
        """references: of every subject that owns pictures, be they none."""
        self.store, self.samples = store, samples
        self.references = {subject or "subject": pictures for subject, pictures in references.items()}
        self.subject = next(iter(references)) if len(references) == 1 else None
        rows = grouped((sample.folder, i) for i, sample in enumerate(samples))
        self.folders = [
            paper.PromptFolder(name, tuple(samples[i].path.name for i in inside), tuple(inside))
            for name, inside in rows.items()
        ]

    def black(self, samples: Samples) -> NDArray[np.bool_]:
        return _black(samples, self.store)

    def known(self) -> dict[str, Samples]:
        """The references of the subjects that have any."""
        found = {subject: pictures for subject, pictures in self.references.items() if pictures}
        if not found:
            raise Unavailable(NO_REFERENCES)
        return found

    def features(self, key: str) -> Floats:
        return self.store.matrix(key, some(self.samples))

    def of_references(self, key: str) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
        """Features by subject, and which are of black pictures."""
        return {
            subject: (self.store.matrix(key, pictures), self.black(pictures))
            for subject, pictures in self.known().items()
        }


# --- from pictures to cases -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Material:
    """All that is scored, of all subjects. The store has computed its features."""

    pictures: Pictures
    base: Pictures
    references: Mapping[str | None, Pictures]
    store: FeatureStore
    unseen: Pictures = NO_PICTURES

    def case(self, subject: str | None, rare_token: str) -> Case:
        """One subject's share."""
        references = self.references.get(subject, NO_PICTURES)
        everything, told = _kinds(self.pictures.of(subject), rare_token)
        kinds = {kind: visible(samples, self.store) for kind, samples in everything.items()}
        base = visible(self.base.of(subject), self.store)
        parts = {"samples": self.pictures, "base": self.base, "real": references, "unseen": self.pictures}
        return Case(
            self.store,
            subject,
            kinds["subject"],
            visible(references.samples, self.store),
            unseen=visible(self.unseen.samples, self.store),
            in_class=kinds["class"],
            unrelated=kinds["unrelated"],
            base=_kinds(base, rare_token)[0]["subject"],
            pairs=_pairs([*kinds["subject"], *kinds["class"]], base),
            unrelated_pairs=_pairs(kinds["unrelated"], base),
            counts={row: _lost(part, subject, self.store) for row, part in parts.items()},
            rare_token=rare_token,
            told=told,
        )

    def pooled(self) -> Pooled:
        """All subjects, those without references too: they still own pictures of their own."""
        of = {subject: self.references.get(subject, NO_PICTURES).samples for subject in self.pictures.subjects}
        return Pooled(self.store, self.pictures.samples, of)


def _black(samples: Samples, store: FeatureStore) -> NDArray[np.bool_]:
    return store.matrix("pixels", samples)[:, 0] > 0


def visible(samples: Samples, store: FeatureStore) -> list[Sample]:
    """Without black pictures, which are counted: a safety filter's, or a model that makes no numbers any more."""
    if not samples:
        return []
    return [sample for sample, dark in zip(samples, _black(samples, store), strict=True) if not dark]


def _lost(part: Pictures, subject: str | None, store: FeatureStore) -> Lost:
    found = part.of(subject)
    return Lost(len(found) - len(visible(found, store)), part.lost(subject))


def _kinds(samples: Samples, rare_token: str) -> tuple[dict[Kind, list[Sample]], bool]:
    """Pictures by what their prompts ask for, and whether that is known at all.

    A listing may say the kind. Else a prompt with the rare token is of the subject; one without is of the class where
    it is "(a photo of) a WORDS" and these words follow the token in another prompt, and unrelated otherwise. Pictures
    without a prompt are never unrelated; and where no prompt holds the token, all are taken for the subject's.
    """
    with_token = [str(sample.prompt) for sample in samples if has_token(sample.prompt, rare_token)]
    kinds: dict[Kind, list[Sample]] = {"subject": [], "class": [], "unrelated": []}
    for sample in samples:
        kind = sample.kind or "subject"
        if sample.kind is None and sample.prompt and with_token and not has_token(sample.prompt, rare_token):
            kind = "class" if _of_class(sample.prompt, with_token, rare_token) else "unrelated"
        kinds[kind].append(sample)
    return kinds, bool(with_token) or any(sample.kind for sample in samples)


def _of_class(prompt: str, with_token: Sequence[str], rare_token: str) -> bool:
    match = re.fullmatch(r"(?:a (?:photo|picture) of )?an? (.+?)[.\s]*", prompt, re.IGNORECASE)
    if not match:
        return False
    words = rf"{re.escape(rare_token)}\s+{re.escape(match[1])}(?!\w)"
    return any(re.search(words, other, re.IGNORECASE) for other in with_token)


def _pairs(samples: Samples, base: Samples) -> list[tuple[Sample, Sample]]:
    known: dict[Any, Sample] = {}
    for sample in base:
        known.setdefault(sample.pair, sample)
    return [(sample, known[sample.pair]) for sample in samples if sample.pair in known]
