"""The stage of a training run, from looks at the model: underfit, good, corrupted or memorised, and what can be done.

Everything is judged against two standards: what the base model gives on the same questions and seeds, and the training
images themselves; numbers in grey levels are what no eye sees. Knows nothing of how looks are taken, of evaluators and
of files; without torch.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from statistics import fmean, median
from typing import Any, Literal

from fewbayes.errors import UserError
from fewbayes.stage.definition import CORRUPTED, IN_A_ROW
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats

Stage = Literal["underfit", "good", "corrupted", "memorised"]
ALARMS = ("corrupted", "memorised")

NOISIER = 1.2
"""Corrupted: the typical picture has so many times the noise that its base twin and the training images account for."""
RESTLESS = 1.0
"""Corrupted too: colour that is restless, see `samples.unrest`, relative to the contrast, so many times as much as in
base twin or training images, times what a strange picture adds."""
ADDED = 2.0
STRANGE = 0.85
"""What it adds: e to the power of ADDED for each unit by which a picture's strangeness is above STRANGE, less below.
Strangeness is 0 for what is the base model's picture or a training image, 1 for what is as unlike both as the base
model's pictures are unlike the training images. Chosen on rated pictures of the embedded world (docs/diagnose.md); not
yet tried on others."""
VISIBLE = 2.0
"""Unrest, in grey levels, that is added in squares to any: pictures calmer than this look alike."""
UNKNOWN = 0.4
"""The most strangeness, that of clean pictures, where the base model's own are not there to compare with."""
CHANCE = 1.5
"""Standard errors by which the typical noise of good pictures and of training images may differ: for their contents."""
SPREAD = 0.3
"""Standard deviation of log noise between photographs of one subject, taken for granted with the weight of one."""
SOFTNESS = 0.25
"""Width, in log, of the corruption score's way from 0 to 1. It shapes the score and decides nothing but CLEAN."""
CLEAN = 1 / (1 + NOISIER ** (1 / SOFTNESS))
"""The corruption score of pictures that stay below the limits by a factor of NOISIER: what averaged weights must reach
for a cure, lest jitter be told where both sets lie about a limit."""
COPY = 0.75
"""A picture is a copy when its likeness has come so far from what unlike pictures have towards 1. By eye on a few runs
that ended in copies: most of these lie above, new views of the subject below."""
COLLAPSED = 0.75
"""With one training image every good picture is like it; copies are told by a diversity below this share of the base
model's. Copies in changed colours still keep 0.4 to 0.65."""
LEARNED = 0.05
"""Share of the base model's loss on the training images that is gone, or of the way from the base model's likeness to
1, that tells of learning. The loss is of fixed noise and exact; the mean likeness of four seeds has a standard error of
about 0.09, so without probes `good` and `underfit` are told apart but loosely: a look too many counts as good."""
DIVERGED = 1.1
"""A loss on the training images of so many times the base model's is no lack of training: the model was damaged."""
UNLIKE = 0.3
"""So is, without probes, a mean likeness lower than the base model's by such a share of the way to 1."""


@dataclass(frozen=True)
class Look:
    """What was seen of a model at one step; None for what was not looked at.

    samples, averaged: of the trained weights and of their running average, the base model's prompts and seeds in the
    same order.
    """

    step: int
    reading: Reading | None = None
    samples: SampleStats | None = None
    averaged: SampleStats | None = None

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Look:
        """Undoes `to_dict`, also after JSON."""
        reading = told["reading"] and Reading.from_dict(told["reading"])
        samples, averaged = (told[key] and SampleStats.from_dict(told[key]) for key in ("samples", "averaged"))
        return cls(told["step"], reading, samples, averaged)


@dataclass(frozen=True)
class Judgement:
    """stage: after hysteresis; seen: by this look alone, or, where it drew no samples, by the last one that did.

    scores: `corruption` in [0, 1]; `averaged_corruption`, of the averaged weights; `memorisation` in [0, 1], 1 for
    copies; `diversity` over the base model's; `learning`, at most 1, below LEARNED for underfit. Those that the look
    had no means for are not there. cause: "jitter" where averaging the weights cures the pictures; "diverged" where the
    model knows the training images worse than the base model does; "lost" where a good look was followed by one that
    shows no learning.
    """

    step: int
    stage: Stage
    seen: Stage
    scores: dict[str, float]
    cause: str | None
    evidence: tuple[str, ...]
    options: tuple[str, ...]

    @property
    def line(self) -> str:
        """One line for the console, with the first two pieces of evidence."""
        stage = self.stage if self.seen == self.stage else f"{self.stage}, this look alone: {self.seen}"
        cause = f" ({self.cause})" if self.cause else ""
        options = f"; options: {' / '.join(self.options)}" if self.options else ""
        return f"step {self.step}: {stage}{cause}: {'; '.join(self.evidence[:2])}{options}"

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Judgement:
        """Undoes `to_dict`, also after JSON."""
        lists: dict[str, Any] = {key: tuple(told[key]) for key in ("evidence", "options")}
        return cls(**(told | lists))


@dataclass(frozen=True)
class _State:
    """All that is remembered of earlier looks.

    streak: sampled looks in a row that saw an alarm, or that saw none, like the last; goods: that saw `good`. cured:
    corrupted looks, since the averaged weights last were corrupted too, at which these were clean.
    """

    step: int
    stage: Stage = "underfit"
    seen: Stage = "underfit"
    streak: int = 0
    goods: int = 0
    cured: int = 0
    best: int | None = None


class Monitor:
    """Judges the looks at one run, fed in the order of their steps.

    base: the look at the base model. training: `describe(references, references)`. patience: looks with samples in a
    row before a change into or out of an alarm is believed.
    """

    def __init__(self, base: Look, training: SampleStats, *, patience: int = IN_A_ROW):
        if patience < 1:
            raise UserError(f"patience is {patience}; a stage takes one look at least, so give 1 or more")
        if training.count < 1:
            raise UserError("there are no training images to compare with; give one at least")
        self.base, self.training, self.patience = base, training, patience
        self._state = _State(base.step)

    @property
    def best(self) -> int | None:
        """Step of the last look whose samples were good; None before any. In an alarm one good look replaces none."""
        return self._state.best

    @property
    def tells_copies(self) -> bool:
        """Whether `memorised` can be seen: one training image and less than two samples give no means for it."""
        base = self._base_samples
        return self._several or bool(base and base.count > 1 and base.diversity > 0)

    def judge(self, look: Look) -> Judgement:
        """The stage with this look; it joins the history. samples of no pictures are none."""
        if look.step < self._state.step:
            raise UserError(f"a look at step {look.step} after one at {self._state.step}; looks come in order")
        pictures = self._checked(look.samples, "samples")
        averaged = self._checked(look.averaged, "samples of the averaged weights")
        scores = self._scores(look.reading, pictures, averaged)
        if pictures is None:
            self._state = replace(self._state, step=look.step)  # no stage begins or ends
        else:
            self._state = self._with_samples(look, scores)
        cause = self._cause(look.reading, scores)
        evidence = (*self._learned(cause, scores), *self._seen_in(pictures, averaged, scores))
        evidence = (*evidence, *self._probed(look.reading))
        state = self._state
        return Judgement(look.step, state.stage, state.seen, scores, cause, evidence, self._options(cause))

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON; the restored monitor judges on as this one would."""
        return {
            "base": self.base.to_dict(),
            "training": self.training.to_dict(),
            "patience": self.patience,
            "state": asdict(self._state),
        }

    @classmethod
    def from_dict(cls, told: dict[str, Any]) -> Monitor:
        """Undoes `to_dict`, also after JSON."""
        base, training = Look.from_dict(told["base"]), SampleStats.from_dict(told["training"])
        monitor = cls(base, training, patience=told["patience"])
        monitor._state = _State(**told["state"])
        return monitor

    # --- scores -------------------------------------------------------------------------------------------------------

    def _checked(self, samples: SampleStats | None, name: str) -> SampleStats | None:
        if samples is None or samples.count == 0:
            return None
        base = self._base_samples
        if base and base.count != samples.count:
            raise UserError(
                f"{samples.count} {name} and {base.count} of the base model; they are compared one by one, so draw as "
                "many, of the same prompts and seeds"
            )
        return samples

    @property
    def _base_samples(self) -> SampleStats | None:
        return self.base.samples if self.base.samples and self.base.samples.count else None

    def _scores(
        self, reading: Reading | None, pictures: SampleStats | None, averaged: SampleStats | None
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        if pictures:
            scores["corruption"] = self._corruption(pictures)
            scores["memorisation"] = median(self._closeness(pictures))
            if (diversity := self._diversity(pictures)) is not None:
                scores["diversity"] = diversity
        if averaged:
            scores["averaged_corruption"] = self._corruption(averaged)
        learning = [gain for gain in (self._likeness_gain(pictures), self._loss_fall(reading)) if gain is not None]
        return scores | ({"learning": max(learning)} if learning else {})

    def _corruption(self, samples: SampleStats) -> float:
        """Logistic in how far the typical picture is beyond the limit that it passes by most."""
        found = [(self._excess(samples), NOISIER), (self._unrest(samples), RESTLESS)]
        beyond = max(median(logs) - math.log(limit) for logs, limit in found)
        return 1 / (1 + math.exp(-beyond / SOFTNESS))

    def _excess(self, samples: SampleStats) -> list[float]:
        """Log of each picture's noise over what may be there: its base twin's or what such training images may have.

        The latter is their typical noise and CHANCE standard errors of a difference between two sets. The base model's
        texture excuses no more than the richest training image has. A copy may be as rich as that one, and NOISIER
        again: its lines are redrawn by the decoder.
        """
        known = [math.log(noise) for noise in self.training.noise]
        typical, count = fmean(known), len(known)
        spread = (sum((noise - typical) ** 2 for noise in known) + SPREAD**2) / count
        typical += CHANCE * math.sqrt(spread * (1 / count + 1 / samples.count))
        copied = max(known) + math.log(NOISIER)
        allowed = [copied if close >= COPY else typical for close in self._closeness(samples)]
        if base := self._base_samples:
            most = max(typical, *known)
            allowed = [max(limit, min(math.log(twin), most)) for limit, twin in zip(allowed, base.noise, strict=True)]
        return [math.log(noise) - limit for noise, limit in zip(samples.noise, allowed, strict=True)]

    def _unrest(self, samples: SampleStats) -> list[float]:
        """Log of each picture's unrest over contrast, less that of its twin or of the typical training image, and more
        for strange pictures. A copy may have that of any training image."""
        known, base = _unrest_over_contrast(self.training), self._base_samples
        typical, copied = fmean(known), max(known)
        allowed = [copied if close >= COPY else typical for close in self._closeness(samples)]
        if base:
            allowed = [max(limit, twin) for limit, twin in zip(allowed, _unrest_over_contrast(base), strict=True)]
        found = zip(_unrest_over_contrast(samples), allowed, self._strangeness(samples), strict=True)
        return [mine - limit + ADDED * (strange - STRANGE) for mine, limit, strange in found]

    def _strangeness(self, samples: SampleStats) -> list[float]:
        """Of each picture, at most 1; without twins at most UNKNOWN."""
        unrelated = median((self._base_samples or self.training).likeness)
        kept, most = (samples.kept, 1.0) if samples.kept else (samples.likeness, UNKNOWN)
        related = [max(pair) for pair in zip(samples.likeness, kept, strict=True)]
        return [min(most, (1 - like) / max(1 - unrelated, 1e-6)) for like in related]

    def _closeness(self, samples: SampleStats) -> list[float]:
        """Of each picture to a copy: 0 at the likeness of the base model's pictures and of training images, 1 at 1."""
        unlike = max(median(of.likeness) for of in (self.training, self._base_samples) if of)
        return [min(1.0, max(0.0, (like - unlike) / max(1 - unlike, 1e-6))) for like in samples.likeness]

    @property
    def _several(self) -> bool:
        """Training images that differ."""
        return self.training.distinct > 1

    def _diversity(self, samples: SampleStats) -> float | None:
        base = self._base_samples
        return samples.diversity / base.diversity if base and base.diversity > 0 else None

    def _likeness_gain(self, samples: SampleStats | None) -> float | None:
        """Mean over pictures, as a share of the way from the base model's likeness to 1."""
        if samples is None or (base := self._base_samples) is None:
            return None
        before = fmean(base.likeness)
        return (fmean(samples.likeness) - before) / max(1 - before, 1e-6)

    def _loss_fall(self, reading: Reading | None) -> float | None:
        """Share of the base model's loss on the training images that is gone."""
        before = self.base.reading
        if not (reading and reading.losses and before and before.losses):
            return None
        return 1 - reading.losses.mean / before.losses.mean

    # --- stages -------------------------------------------------------------------------------------------------------

    def _see(self, scores: dict[str, float]) -> Stage:
        """Of this look alone. Noise comes first: a noisy picture is no copy that anybody wants to keep or fear."""
        if scores["corruption"] >= CORRUPTED:
            return "corrupted"
        if scores["memorisation"] >= COPY and (self._several or scores.get("diversity", 1.0) < COLLAPSED):
            return "memorised"
        return "good" if scores.get("learning", 0.0) >= LEARNED else "underfit"

    def _with_samples(self, look: Look, scores: dict[str, float]) -> _State:
        """Into and out of the alarms with `patience`; from one to the other, and among the rest, at once."""
        state, seen = self._state, self._see(scores)
        alarm, before = seen in ALARMS, state.stage in ALARMS
        streak = state.streak + 1 if alarm == (state.seen in ALARMS) else 1
        goods = state.goods + 1 if seen == "good" else 0
        kept = seen == "good" and (not before or state.best is None or goods >= self.patience)
        return _State(
            look.step,
            stage=seen if alarm == before or streak >= self.patience else state.stage,
            seen=seen,
            streak=streak,
            goods=goods,
            cured=self._cured(seen, scores),
            best=look.step if kept else state.best,
        )

    def _cured(self, seen: Stage, scores: dict[str, float]) -> int:
        averaged = scores.get("averaged_corruption")
        if averaged is None:
            return self._state.cured
        if averaged >= CORRUPTED:
            return 0
        return self._state.cured + (seen == "corrupted" and averaged <= CLEAN)

    def _cause(self, reading: Reading | None, scores: dict[str, float]) -> str | None:
        """Averages lag behind, so that one clean look of theirs at the onset is no cure yet."""
        clean = scores.get("averaged_corruption", 1.0) <= CLEAN
        if self._state.seen == "corrupted" and clean and self._state.cured >= self.patience:
            return "jitter"
        fall, unlearned = self._loss_fall(reading), scores.get("learning", 1.0)
        if (fall is not None and fall <= 1 - DIVERGED) or (fall is None and unlearned <= -UNLIKE):
            return "diverged"
        return "lost" if self._state.best is not None and unlearned < LEARNED else None

    # --- words --------------------------------------------------------------------------------------------------------

    def _learned(self, cause: str | None, scores: dict[str, float]) -> list[str]:
        """What would otherwise be taken for a lack of training."""
        if cause == "diverged":
            return ["the model knows the training images worse than the base model does: training has damaged it"]
        if cause == "lost":
            return [f"what the good look at step {self._state.best} had learned is not to be seen any more"]
        if not self._state.streak and scores.get("learning", 0.0) >= LEARNED:
            return ["the loss on the training images has fallen; whether the pictures are good, only samples tell"]
        return []

    def _seen_in(
        self, pictures: SampleStats | None, averaged: SampleStats | None, scores: dict[str, float]
    ) -> list[str]:
        if pictures is None:
            since = "the stage is that of the last samples" if self._state.streak else "there have been none yet"
            return [f"no samples at this step, so noise and copies cannot be seen ({since})"]
        told = [*self._noise_in_words(pictures), self._likeness_in_words(pictures)]
        told.append(self._saturation_in_words(pictures))
        if "diversity" in scores:
            told.append(f"diversity {scores['diversity']:.2f} of the base model's")
        if averaged and self._state.seen == "corrupted":
            clean = scores["averaged_corruption"] < CORRUPTED
            told.append(f"the averaged weights' samples are {'clean' if clean else 'corrupted too'}")
        return told

    def _noise_in_words(self, pictures: SampleStats) -> list[str]:
        """What is furthest beyond its limit first."""
        found = [
            (self._excess(pictures), NOISIER, "samples {:.2f}x as noisy as base model and training images account for"),
            (self._unrest(pictures), RESTLESS, "colours {:.2f}x as restless as accounted for, strangeness weighed in"),
        ]
        known = sorted(found, key=lambda part: math.log(part[1]) - median(part[0]))
        return [
            f"{phrase.format(math.exp(median(logs)))} "
            f"({sum(log > math.log(limit) for log in logs)} of {len(logs)} pictures above {limit}x)"
            for logs, limit, phrase in known
        ]

    def _likeness_in_words(self, pictures: SampleStats) -> str:
        copies = sum(close >= COPY for close in self._closeness(pictures))
        base = f", {fmean(self._base_samples.likeness):.2f} from the base model" if self._base_samples else ""
        mean = fmean(pictures.likeness)
        found = f"{copies} of {pictures.count} are copies" if self.tells_copies else "copies cannot be told: too few"
        return f"likeness to a training image {mean:.2f}{base}; {found}"

    def _saturation_in_words(self, pictures: SampleStats) -> str:
        mine, theirs = fmean(pictures.saturation), fmean(self.training.saturation)
        return f"{mine:.0%} of the samples' values saturated, {theirs:.0%} in training images"

    def _probed(self, reading: Reading | None) -> list[str]:
        """What the probes add. Retention and residual gain rise and fall without any stage: docs/lab-log.md."""
        if reading is None or self.base.reading is None:
            return []
        found = reading.numbers(self.base.reading)
        words = {
            "loss_training_ratio": "loss on the training images {:.2f} of the base model's",
            "loss_others_ratio": "on other images {:.2f}",
            "excess_error_ratio": "error beyond noise left over {:.2f} of the base model's",
            "narrowing": "a blank input gives a picture with correlation {:.2f} to a training image",
        }
        return [phrase.format(found[name]) for name, phrase in words.items() if name in found]

    def _options(self, cause: str | None) -> tuple[str, ...]:
        stages = {self._state.stage, self._state.seen}
        best = self._state.best
        keep = f"keep the last good look, step {best}" if best is not None else "no look was good yet: look more often"
        if cause == "jitter":
            return ("use the averaged weights (--use_ema --export_weights ema)", "lower the learning rate", keep)
        if cause == "diverged":
            return (keep, "lower the learning rate", "train with --bayes")
        if cause == "lost" and not stages & set(ALARMS):
            return (keep, "lower the learning rate", "stop here")
        if "corrupted" in stages:
            return (
                keep,
                "train with --bayes",
                "lower the learning rate",
                "for LoRA, --train_rare_token",
                "go on well beyond this step and expect copies",
            )
        if "memorised" in stages:
            return (keep, "stop here", "lower the learning rate", "add training images")
        return ("train longer", "raise the learning rate") if stages == {"underfit"} and self._state.streak else ()


def corruption(samples: SampleStats, base: SampleStats, training: SampleStats) -> float:
    """The corruption score of one set of pictures, as a judgement has it: corrupted from CORRUPTED on.

    base: of the base model's pictures of the same prompts and seeds. training: `describe(references, references)`.
    """
    return Monitor(Look(0, None, base), training)._corruption(samples)


def _unrest_over_contrast(samples: SampleStats) -> list[float]:
    """In log, by picture; the grey level more keeps flat pictures finite."""
    return [math.log(math.hypot(u, VISIBLE) / (c + 1)) for u, c in zip(samples.unrest, samples.contrast, strict=True)]
