"""Rows of an evaluation: what each metric is computed from in either mode, and why a value is missing where it is.

Turns pictures of one or several subjects, a store of features and the encoders into plain dictionaries. Knows no files
and no command; the numbers themselves come from `scores.py` and `paper.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fewbayes.errors import UserError
from fewbayes.metrics import paper, scores
from fewbayes.metrics.encoders import Encoders, Missing
from fewbayes.metrics.features import FeatureStore, mirrored
from fewbayes.metrics.folders import Sample
from fewbayes.metrics.scores import Mean

Row = dict[str, Any]
Floats = NDArray[np.floating]
Samples = Sequence[Sample]

FIDELITY = {"clip_i": "clip", "dino": "dino", "dinov2": "dinov2"}
"""Metrics of likeness to the references, and the encoder of each."""
NO_REFERENCES = "there are no references; give --reference_dir"
NO_PROMPTS = "the prompts are not known; give --prompt, or a samples.json beside the pictures"
NO_UNRELATED = "there are no pictures of prompts of other things, made by both models from the same seeds"
NO_CLASS = "there are no pictures of a prompt that asks for the class alone, without the rare token"
NO_BASE = "there are no pictures of the base model from the same prompts and seeds; give --base_dir"


@dataclass(frozen=True)
class Case:
    """One subject: its pictures without black ones, its references, and what the base model made in its place.

    in_class, unrelated: pictures of prompts without the rare token, of the class alone and of other things; they say
    nothing of the subject. pairs, unrelated_pairs: (picture, base model's picture of the same prompt and seed), the
    former of the subject and the class. counts: black and unreadable pictures by kind of row. told: whether it is known
    which prompts are of the subject, be it from a listing or from the rare token in one of them.
    """

    subject: str | None
    samples: Samples
    references: Samples
    in_class: Samples = ()
    unrelated: Samples = ()
    base: Samples = ()
    pairs: Sequence[tuple[Sample, Sample]] = ()
    unrelated_pairs: Sequence[tuple[Sample, Sample]] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rare_token: str = ""
    told: bool = True


@dataclass
class Collector:
    """Rows as they come; what cannot be computed becomes a null with the reason."""

    encoders: Encoders
    mode: str
    keys: Mapping[str, Any]
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Further entries by kind of row."""
    rows: list[Row] = field(default_factory=list)
    images: dict[str, dict[str, Row]] = field(default_factory=dict)
    """By file and metric."""

    def add(self, metric: str, key: str | None, compute: Callable[[], Mean], row: str = "samples", **more: Any) -> None:
        encoder = self.encoders.get(key) if key else None
        entry: Row = {"metric": metric, "value": None, "mode": self.mode, "row": row, "n": 0, **self.keys}
        entry |= self.counts.get(row, {})
        entry |= about(encoder)
        if isinstance(encoder, Missing):
            self.rows.append(entry | more | {"reason": encoder.reason})
            return
        try:
            mean = compute()
        except UserError as error:
            self.rows.append(entry | more | {"reason": str(error)})
            return
        if not math.isfinite(mean.value):
            self.rows.append(entry | more | {"reason": "the value is not a finite number"})
            return
        self.rows.append(entry | more | {"value": mean.value, "n": mean.n})

    def each(self, samples: Samples, metric: str, key: str | None, values: Floats, more: Sequence[Row] = ()) -> None:
        """A score of every picture."""
        encoder = about(self.encoders.get(key) if key else None)
        for i, (sample, value) in enumerate(zip(samples, values, strict=True)):
            extra = more[i] if more else {}
            entry = {"metric": metric, "value": float(value), "encoder": encoder["encoder"], **extra}
            self.images.setdefault(sample.file, {})[metric] = entry


def about(encoder: Any) -> Row:
    """The encoder's share of a row."""
    if encoder is None:
        return {"encoder": None}
    if isinstance(encoder, Missing):
        return {"encoder": encoder.name}
    identity = encoder.identity
    return {"encoder": identity.name, "encoder_sha256": identity.sha256, "preprocessing": identity.preprocessing}


# --- sound ------------------------------------------------------------------------------------------------------------


class Sound:
    """All metrics of one subject in sound mode."""

    def __init__(self, case: Case, store: FeatureStore, encoders: Encoders, keys: Mapping[str, Any]):
        self.case, self.store, self.encoders = case, store, encoders
        self.out = Collector(encoders, "sound", {"subject": case.subject, **keys}, case.counts)
        self.texts = _Texts(encoders.get("clip"))

    def run(self) -> Collector:
        case = self.case
        self.pictures(case.samples, "samples")
        if case.base:
            self.pictures(case.base, "base")
        self.real()
        self.against_base()
        black = case.counts["samples"]["black"]
        everything = len(case.samples) + len(case.in_class) + len(case.unrelated) + black
        self.out.add("black", None, lambda: Mean(black / _many(everything, "readable"), everything))
        return self.out

    def pictures(self, samples: Samples, row: str) -> None:
        """The metrics of a set of pictures, against prompts, references, each other and nothing."""
        each = row == "samples"
        self.prompts(samples, row, each)
        for metric, key in FIDELITY.items():
            self.likeness(metric, f"{metric}_nearest", key, samples, row, each)
        self.copies(samples, row, each)
        self.variety(samples, row)
        self.add_each("clip_iqa", "clip_iqa", samples, row, each, lambda: self.quality(samples))
        self.add_each("haar_noise", None, samples, row, each, lambda: self.noise(samples))
        if each:
            self.out.add("pres", "dino", self.preservation, row)

    def add_each(
        self, metric: str, key: str | None, samples: Samples, row: str, each: bool, compute: Callable[[], Floats]
    ) -> None:
        """A metric that is the mean of a score of every picture."""

        def mean() -> Mean:
            _many(len(samples))
            values = compute()
            if each:
                self.out.each(samples, metric, key, values)
            return Mean(float(np.mean(values)), len(values))

        self.out.add(metric, key, mean, row)

    def prompts(self, samples: Samples, row: str, each: bool) -> None:
        def against(words: Callable[[str], str]) -> Floats:
            prompts = [sample.prompt for sample in samples]
            if any(prompt is None for prompt in prompts):
                raise UserError(NO_PROMPTS)
            texts = self.texts([words(prompt) for prompt in prompts if prompt is not None])
            return scores.prompt_scores(self.store.matrix("clip", samples), texts)

        self.add_each("clip_t", "clip", samples, row, each, lambda: against(str))
        token = self.case.rare_token

        def plain() -> Floats:
            known = [sample.prompt for sample in samples if sample.prompt]
            if known and not any(scores.has_token(prompt, token) for prompt in known):
                raise UserError(no_token(token))
            return against(lambda prompt: scores.without_token(prompt, token))

        self.add_each("clip_t_class", "clip", samples, row, each, plain)

    def preservation(self) -> Mean:
        self.check_told()
        if not self.case.in_class:
            raise UserError(NO_CLASS)
        found = self.compared("dino", self.case.in_class)
        return Mean(found.mean, found.pairs)

    def check_told(self) -> None:
        if not self.case.told:
            raise UserError(no_token(self.case.rare_token))

    def compared(self, key: str, samples: Samples) -> scores.Fidelity:
        if not self.case.references:
            raise UserError(NO_REFERENCES)
        _many(len(samples))
        return scores.fidelity(self.store.matrix(key, samples), self.store.matrix(key, self.case.references))

    def likeness(self, metric: str, nearest: str, key: str, samples: Samples, row: str, each: bool) -> None:
        def mean() -> Mean:
            found = self.compared(key, samples)
            if each:
                self.out.each(samples, metric, key, found.per_sample)
                self.out.each(samples, nearest, key, found.per_sample_nearest, self.named(found.nearest_reference))
            return Mean(found.mean, found.pairs)

        self.out.add(metric, key, mean, row)
        self.out.add(nearest, key, lambda: Mean(self.compared(key, samples).nearest, len(samples)), row)

    def named(self, references: Sequence[Any] | NDArray[np.intp]) -> list[Row]:
        return [{"reference": self.case.references[int(i)].file} for i in references]

    def copies(self, samples: Samples, row: str, each: bool) -> None:
        """How near to a copy of a training image: pixels, mirrored ones included, and SSCD where it is there."""

        def by_pixels() -> Mean:
            if not self.case.references:
                raise UserError(NO_REFERENCES)
            _many(len(samples))
            known = self.store.matrix("thumbnail", self.case.references)
            both = np.concatenate([known, mirrored(known)])
            found = scores.fidelity(self.store.matrix("thumbnail", samples), both)
            if each:
                which = self.named(found.nearest_reference % len(known))
                self.out.each(samples, "nearest_ncc", None, found.per_sample_nearest, which)
            return Mean(found.nearest, len(samples))

        def by_sscd() -> Floats:
            return self.compared("sscd", samples).per_sample_nearest

        self.out.add("nearest_ncc", None, by_pixels, row)
        self.add_each("sscd", "sscd", samples, row, each, by_sscd)
        self.add_each("sscd_copies", "sscd", samples, row, False, lambda: (by_sscd() > scores.SSCD_CUT).astype(float))

    def variety(self, samples: Samples, row: str) -> None:
        groups = list(by_prompt(samples).values())

        def check() -> None:
            _many(len(samples))
            if any(sample.prompt is None and "/" not in sample.file for sample in samples):
                raise UserError(NO_PROMPTS)

        def lpips() -> Mean:
            check()
            return scores.diversity(self.store.tables("lpips", [group for group in groups if len(group) > 1]))

        def vendi(key: str) -> Mean:
            check()
            return scores.group_vendi([self.store.matrix(key, group) for group in groups])

        note = _part_note(sum(len(group) > 1 for group in groups), len(groups), "prompts have two pictures")
        self.out.add("lpips", "lpips", lpips, row, **note)
        for key in ("dino", "dinov2"):
            self.out.add("vendi" if key == "dino" else "vendi_dinov2", key, lambda key=key: vendi(key), row, **note)

    def quality(self, samples: Samples) -> Floats:
        encoder = self.encoders["clip_iqa"]
        return scores.quality(self.store.matrix("clip_iqa", samples), encoder.anchors, encoder.scale)

    def noise(self, samples: Samples) -> Floats:
        return self.store.matrix("pixels", samples)[:, 1]

    def real(self) -> None:
        """The references against each other: what a perfect model would score, and where preprocessing goes wrong."""
        references = self.case.references

        def against(key: str, nearest: bool) -> Mean:
            found = scores.real_fidelity(self.reals(key))
            return Mean(found.nearest, len(references)) if nearest else Mean(found.mean, found.pairs)

        for metric, key in FIDELITY.items():
            self.out.add(metric, key, lambda key=key: against(key, False), "real")
            self.out.add(f"{metric}_nearest", key, lambda key=key: against(key, True), "real")

        def pixels() -> Mean:
            known = self.reals("thumbnail")
            return Mean(scores.real_fidelity(known, mirrored(known)).nearest, len(known))

        self.out.add("nearest_ncc", None, pixels, "real")
        self.out.add("sscd", "sscd", lambda: against("sscd", True), "real")
        self.out.add("lpips", "lpips", self.real_lpips, "real")
        for key, metric in (("dino", "vendi"), ("dinov2", "vendi_dinov2")):
            self.out.add(metric, key, lambda key=key: scores.group_vendi([self.reals(key)]), "real")
        self.add_each("clip_iqa", "clip_iqa", references, "real", False, lambda: self.quality(references))
        self.add_each("haar_noise", None, references, "real", False, lambda: self.noise(references))

    def reals(self, key: str) -> Floats:
        if not self.case.references:
            raise UserError(NO_REFERENCES)
        return self.store.matrix(key, self.case.references)

    def real_lpips(self) -> Mean:
        if len(self.case.references) < 2:
            raise UserError(f"{len(self.case.references)} reference; it takes two to be compared with each other")
        return scores.diversity(self.store.tables("lpips", [self.case.references]))

    def against_base(self) -> None:
        """Noise and drift, picture by picture, against the base model's of the same prompt and seed."""
        case = self.case
        pairs = [*case.pairs, *case.unrelated_pairs]
        everything = len(case.samples) + len(case.in_class) + len(case.unrelated)
        note, drift_note = {}, {}
        if pairs:
            note = _part_note(len(pairs), everything, "pictures have a partner of the base model")
            drift_note = _part_note(len(case.unrelated_pairs), len(case.unrelated), "pictures have a partner")
        tuned, base = [a for a, _ in pairs], [b for _, b in pairs]

        def levels() -> tuple[Floats, Floats]:
            if not pairs:
                raise UserError(NO_BASE)
            return self.noise(tuned), self.noise(base)

        def noisier() -> Mean:
            now, before = levels()
            return Mean(float(np.mean(now > before)), len(pairs))

        self.out.add("noise_ratio", None, lambda: Mean(scores.noise_ratio(*levels()), len(pairs)), **note)
        self.out.add("noisier_than_base", None, noisier, **note)
        for key, metric in (("dino", "drift"), ("dinov2", "drift_dinov2")):
            self.out.add(metric, key, lambda key=key: self.drift(key), **drift_note)

    def drift(self, key: str) -> Mean:
        self.check_told()
        if not self.case.unrelated_pairs:
            raise UserError(NO_UNRELATED if self.case.pairs else NO_BASE)
        tuned, base = ([pair[side] for pair in self.case.unrelated_pairs] for side in (0, 1))
        values = scores.drift(self.store.matrix(key, tuned), self.store.matrix(key, base))
        return Mean(float(values.mean()), len(values))


class _Texts:
    """Features of prompts, each encoded once."""

    def __init__(self, clip: Any):
        self.clip = clip
        self.known: dict[str, Floats] = {}

    def __call__(self, prompts: Sequence[str]) -> Floats:
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            self.known |= dict(zip(new, self.clip.texts(new), strict=True))
        return np.stack([self.known[prompt] for prompt in prompts])


def by_prompt(samples: Samples) -> dict[Any, list[Sample]]:
    groups: dict[Any, list[Sample]] = {}
    for sample in samples:
        groups.setdefault((sample.prompt, sample.prompt_id), []).append(sample)
    return groups


def _many(count: int, what: str = "readable and not black") -> int:
    if not count:
        raise UserError(f"there are no pictures that are {what}")
    return count


def no_token(rare_token: str) -> str:
    return f"no prompt holds the rare token {rare_token!r}; give --rare_token"


def _part_note(part: int, whole: int, what: str) -> Row:
    return {"note": f"{part} of {whole} {what}"} if part < whole else {}


def macro_rows(rows: Sequence[Row]) -> list[Row]:
    """Of several subjects: the mean over subjects, each counted once; null where a subject has no value."""
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["metric"], row["row"], row["encoder"]), []).append(row)
    found = []
    for group in groups.values():
        absent = [str(row["subject"]) for row in group if row["value"] is None]
        entry = {key: value for key, value in group[0].items() if key not in ("reason", "note")}
        counts = {name: sum(row[name] for row in group) for name in ("black", "unreadable") if name in group[0]}
        entry |= {"subject": None, "average": "macro", "n": len(group), **counts, "value": None}
        notes = [f"{row['subject']}: {row['note']}" for row in group if "note" in row]
        if notes:
            entry["note"] = "; ".join(notes)
        if absent:
            entry["reason"] = f"no value for {', '.join(absent)}: {next(r['reason'] for r in group if 'reason' in r)}"
        else:
            entry["value"] = scores.macro({str(row["subject"]): row["value"] for row in group})
        found.append(entry)
    return found


# --- paper ------------------------------------------------------------------------------------------------------------


class Paper:
    """The paper's five metrics over all subjects at once, as the authors' evaluator has them."""

    def __init__(
        self,
        samples: Samples,
        references: Mapping[str | None, Samples],
        store: FeatureStore,
        encoders: Encoders,
        keys: Mapping[str, Any],
    ):
        """samples, references: readable ones, black ones included."""
        self.samples, self.store, self.encoders = samples, store, encoders
        self.references = {subject or "subject": pictures for subject, pictures in references.items()}
        one = next(iter(references)) if len(references) == 1 else None
        average = {} if len(references) < 2 else {"average": "micro"}
        self.out = Collector(encoders, "paper", {"subject": one, **average, **keys})
        self.folders = _folders(samples)

    def black(self, samples: Samples) -> NDArray[np.bool_]:
        return self.store.matrix("pixels", samples)[:, 0] > 0

    def run(self) -> Collector:
        self.out.add("clip_t", "clip", self.clip_t)
        for metric, key in (("clip_i", "clip"), ("dino", "dino")):
            self.out.add(metric, key, lambda key=key: self.fidelity(key))
            self.out.add(metric, key, lambda key=key: paper.real_fidelity(self.known(key)), "real")
        self.out.add("lpips", "lpips", self.lpips)
        self.out.add("lpips", "lpips", self.real_lpips, "real")
        self.out.add("clip_iqa", "clip_iqa_native", self.clip_iqa)
        self.out.add("clip_iqa", "clip_iqa_native", self.real_clip_iqa, "real")
        return self.out

    def clip_t(self) -> Mean:
        prompts = [sample.prompt for sample in self.samples]
        if any(prompt is None for prompt in prompts):
            raise UserError(NO_PROMPTS)
        _many(len(prompts))
        texts = _Texts(self.encoders["clip"])([str(prompt) for prompt in prompts])
        return paper.clip_t(self.store.matrix("clip", self.samples), texts, self.folders, self.black(self.samples))

    def known(self, key: str) -> dict[str, tuple[Floats, NDArray[np.bool_]]]:
        if not any(self.references.values()):
            raise UserError(NO_REFERENCES)
        return {
            subject: (self.store.matrix(key, pictures), self.black(pictures))
            for subject, pictures in self.references.items()
            if pictures
        }

    def fidelity(self, key: str) -> Mean:
        _many(len(self.samples))
        features = self.store.matrix(key, self.samples)
        return paper.fidelity(features, self.known(key), self.folders, self.black(self.samples))

    def lpips(self) -> Mean:
        _many(len(self.samples))

        def distances(rows: list[int]) -> Floats:
            return self.store.distances("lpips", [self.samples[row] for row in rows])

        return paper.lpips(distances, list(self.references), self.folders, self.black(self.samples))

    def real_lpips(self) -> Mean:
        groups = [[p for p, dark in zip(ps, self.black(ps), strict=True) if not dark] for ps in self.reals()]
        return paper.real_lpips(self.store.tables("lpips", groups))

    def reals(self) -> list[Samples]:
        if not any(self.references.values()):
            raise UserError(NO_REFERENCES)
        return [pictures for pictures in self.references.values() if pictures]

    def quality(self, samples: Samples) -> Floats:
        encoder = self.encoders["clip_iqa_native"]
        return scores.quality(self.store.matrix("clip_iqa_native", samples), encoder.anchors, encoder.scale)

    def clip_iqa(self) -> Mean:
        _many(len(self.samples))
        counts = {subject: len(pictures) for subject, pictures in self.references.items()}
        if not sum(counts.values()):
            raise UserError(NO_REFERENCES)
        return paper.clip_iqa(self.quality(self.samples), counts, self.folders)

    def real_clip_iqa(self) -> Mean:
        self.reals()
        known = {subject: self.quality(pictures) for subject, pictures in self.references.items() if pictures}
        return paper.real_clip_iqa(known, self.folders)


def _folders(samples: Samples) -> list[paper.PromptFolder]:
    rows: dict[str, list[int]] = {}
    for i, sample in enumerate(samples):
        rows.setdefault(sample.folder, []).append(i)
    return [
        paper.PromptFolder(name, tuple(samples[i].path.name for i in inside), tuple(inside))
        for name, inside in rows.items()
    ]
