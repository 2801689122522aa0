"""How far pictures are from two standards: what the base model gives on the same seeds, and the training images.

Numbers in grey levels are what no eye sees. Knows scores and no stages; without torch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median

from fewbayes.errors import UserError
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats

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
yet tried on others. From STRANGE on a typical picture is like nothing that is known, and not judged at all."""
VISIBLE = 2.0
"""Unrest, in grey levels, that is added in squares to any: pictures calmer than this look alike."""
OUTLINES = {"contours": -0.005, "relief": 0.0}
"""What is read of outlines, of the typical picture less that of its base twin, and below what no number here can call
it good. By definition 0; -0.005 is what rounding to grey levels changes. How often it errs: docs/diagnose.md."""
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


@dataclass(frozen=True)
class Standards:
    """training: `describe(references, references)`. base, reading: of the base model; None for what was not looked at.

    Of other pictures everything here is one number for each, in their order, or one for the set.
    """

    training: SampleStats
    base: SampleStats | None = None
    reading: Reading | None = None

    def __post_init__(self) -> None:
        if self.training.count < 1:
            raise UserError("there are no training images to compare with; give one at least")

    @property
    def tells_copies(self) -> bool:
        """Whether `memorised` can be seen: one training image and less than two samples give no means for it."""
        base = self.base
        return self.several or bool(base and base.count > 1 and base.diversity > 0)

    def scores(
        self, reading: Reading | None, pictures: SampleStats | None, averaged: SampleStats | None
    ) -> dict[str, float]:
        scores: dict[str, float] = {}
        if pictures:
            scores["corruption"] = self.corruption(pictures)
            scores["memorisation"] = median(self.closeness(pictures))
            scores["strangeness"] = median(self.strangeness(pictures))
            if pictures.unseen:
                scores["likeness"], scores["unseen_likeness"] = fmean(pictures.likeness), fmean(pictures.unseen)
            scores |= self.outlines(pictures)
            if (diversity := self.diversity(pictures)) is not None:
                scores["diversity"] = diversity
        if averaged:
            scores["averaged_corruption"] = self.corruption(averaged)
        learning = [gain for gain in (self.likeness_gain(pictures), self.loss_fall(reading)) if gain is not None]
        return scores | ({"learning": max(learning)} if learning else {})

    def corruption(self, samples: SampleStats) -> float:
        """Logistic in how far the typical picture is beyond the limit that it passes by most."""
        found = [(self.excess(samples), NOISIER), (self.unrest(samples), RESTLESS)]
        beyond = max(median(logs) - math.log(limit) for logs, limit in found)
        return 1 / (1 + math.exp(-beyond / SOFTNESS))

    def excess(self, samples: SampleStats) -> list[float]:
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
        allowed = [copied if close >= COPY else typical for close in self.closeness(samples)]
        if base := self.base:
            most = max(typical, *known)
            allowed = [max(limit, min(math.log(twin), most)) for limit, twin in zip(allowed, base.noise, strict=True)]
        return [math.log(noise) - limit for noise, limit in zip(samples.noise, allowed, strict=True)]

    def unrest(self, samples: SampleStats) -> list[float]:
        """Log of each picture's unrest over contrast, less that of its twin or of the typical training image, and more
        for strange pictures. A copy may have that of any training image."""
        known, base = _unrest_over_contrast(self.training), self.base
        typical, copied = fmean(known), max(known)
        allowed = [copied if close >= COPY else typical for close in self.closeness(samples)]
        if base:
            allowed = [max(limit, twin) for limit, twin in zip(allowed, _unrest_over_contrast(base), strict=True)]
        found = zip(_unrest_over_contrast(samples), allowed, self.strangeness(samples), strict=True)
        return [mine - limit + ADDED * (strange - STRANGE) for mine, limit, strange in found]

    def strangeness(self, samples: SampleStats) -> list[float]:
        """Of each picture, at most 1; without twins at most UNKNOWN."""
        unrelated = median((self.base or self.training).likeness)
        kept, most = (samples.kept, 1.0) if samples.kept else (samples.likeness, UNKNOWN)
        related = [max(pair) for pair in zip(samples.likeness, kept, strict=True)]
        return [min(most, (1 - like) / max(1 - unrelated, 1e-6)) for like in related]

    def outlines(self, samples: SampleStats) -> dict[str, float]:
        """Of each of OUTLINES the typical picture's less its base twin's; none of what was not read of both."""
        both = {name: (getattr(samples, name), getattr(self.base, name, ())) for name in OUTLINES}
        return {
            name: median(a - b for a, b in zip(mine, twins, strict=True))
            for name, (mine, twins) in both.items()
            if mine and len(mine) == len(twins)
        }

    def closeness(self, samples: SampleStats) -> list[float]:
        """Of each picture to a copy: 0 at the likeness of the base model's pictures and of training images, 1 at 1."""
        unlike = max(median(of.likeness) for of in (self.training, self.base) if of)
        return [min(1.0, max(0.0, (like - unlike) / max(1 - unlike, 1e-6))) for like in samples.likeness]

    @property
    def several(self) -> bool:
        """Training images that differ."""
        return self.training.distinct > 1

    def diversity(self, samples: SampleStats) -> float | None:
        base = self.base
        return samples.diversity / base.diversity if base and base.diversity > 0 else None

    def likeness_gain(self, samples: SampleStats | None) -> float | None:
        """Mean over pictures, as a share of the way from the base model's likeness to 1; with the image held out if
        there is one, since copies are like the others."""
        if samples is None or (base := self.base) is None:
            return None
        before, now = (fmean(of.unseen or of.likeness) for of in (base, samples))
        return (now - before) / max(1 - before, 1e-6)

    def loss_fall(self, reading: Reading | None) -> float | None:
        """Share of the base model's loss on the training images that is gone."""
        before = self.reading
        if not (reading and reading.losses and before and before.losses):
            return None
        return 1 - reading.losses.mean / before.losses.mean


def _unrest_over_contrast(samples: SampleStats) -> list[float]:
    """In log, by picture; the grey level more keeps flat pictures finite."""
    return [math.log(math.hypot(u, VISIBLE) / (c + 1)) for u, c in zip(samples.unrest, samples.contrast, strict=True)]
