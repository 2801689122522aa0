"""What the probes found of a model at one moment, and what each number says. Without torch, to be kept as JSON.

A *retention* is the share of a deviation that denoising leaves: 0 for a model that answers with a copy, 1 for one that
passes its input through (docs/theory.md). Real models may lie outside. Knows nothing of how the numbers are measured.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import fmean, median

from fewbayes.stage import theory


@dataclass(frozen=True)
class Sigma1:
    """Spread of what the model has learned around an image, by time.

    retention: regression of the answer's error x0_hat - x* on the input's deviation x_t - sqrt(alpha_bar) x*, as a
    share of pass-through. The paper takes a high sigma_1 for the corruption stage and a vanishing one for copies.
    """

    t: tuple[float, ...]
    alpha_bar: tuple[float, ...]
    retention: tuple[float, ...]

    @property
    def sigma_1(self) -> tuple[float, ...]:
        """0 and infinity where the retention is not strictly between 0 and 1."""
        return tuple(float(theory.sigma_1_of(r, a)) for r, a in zip(self.retention, self.alpha_bar, strict=True))

    @property
    def typical(self) -> float:
        """Median over times; the paper's mean would be infinite as soon as one of them is."""
        return median(self.sigma_1)


@dataclass(frozen=True)
class ResidualGain:
    """What becomes of a local disturbance delta' of x_t, by time.

    relative: || change of x0_hat ||^2 / || delta' ||^2 as a share of pass-through 1 / alpha_bar; 0: it vanishes;
    1: it passes; more: it is amplified. retention: the part of the change along delta', as a share of pass-through.
    inside: share of the change's energy that lies in the disturbed patch.
    """

    t: tuple[float, ...]
    relative: tuple[float, ...]
    retention: tuple[float, ...]
    inside: tuple[float, ...]

    @property
    def typical(self) -> float:
        """Median over times of `relative`."""
        return median(self.relative)


@dataclass(frozen=True)
class Losses:
    """|| eps_theta - eps ||^2 / || eps ||^2, by time, whatever the model predicts: 1 if it tells nothing."""

    t: tuple[float, ...]
    loss: tuple[float, ...]

    @property
    def mean(self) -> float:
        return fmean(self.loss)

    def ratio(self, base: Losses) -> tuple[float, ...]:
        """This loss over the base model's, by time: below 1 it has learned, above 1 it has lost."""
        assert self.t == base.t, "these losses are of other times"
        return tuple(mine / its for mine, its in zip(self.loss, base.loss, strict=True))


@dataclass(frozen=True)
class Blank:
    """What the model makes of x_t = 0 under the first image's prompt, by time.

    similarity: correlation of the answer with each training image, the mean of every channel taken out: near 0 for a
    model that knows many pictures, 1 for a copy; scale: projection of the answer on the most similar image, 1 for a
    copy; contrast: standard deviation of the answer over that of the image.
    """

    t: tuple[float, ...]
    similarity: tuple[tuple[float, ...], ...]
    scale: tuple[float, ...]
    contrast: tuple[float, ...]

    @property
    def nearest(self) -> tuple[int, ...]:
        return tuple(max(range(len(row)), key=row.__getitem__) for row in self.similarity)

    @property
    def narrowing(self) -> float:
        """Similarity with the nearest image, at the most telling time: the narrowing index."""
        return max(max(row) for row in self.similarity)


@dataclass(frozen=True)
class Scaled:
    """What the model makes of x_t = k x', x' the first image, under its prompt, at one time.

    factor: projection of the answer on x', by k; similarity: their correlation. slope: of the factor in k, times
    sqrt(alpha_bar): the retention of the theory; 0: a copy, 1: pass-through.
    """

    t: float
    alpha_bar: float
    k: tuple[float, ...]
    factor: tuple[float, ...]
    similarity: tuple[float, ...]

    @property
    def slope(self) -> float:
        middle_k, middle = fmean(self.k), fmean(self.factor)
        products = [(k - middle_k) * (f - middle) for k, f in zip(self.k, self.factor, strict=True)]
        return math.sqrt(self.alpha_bar) * sum(products) / sum((k - middle_k) ** 2 for k in self.k)

    @property
    def at_zero(self) -> float:
        """The factor that the line has at k = 0: 1 for a copy, 0 for pass-through."""
        return fmean(self.factor) - self.slope / math.sqrt(self.alpha_bar) * fmean(self.k)


@dataclass(frozen=True)
class Answer:
    """Retention, loss and gain of one answer by time, as `Sigma1`, `Losses` and `ResidualGain.relative` have them.

    Of a guided answer none of them is bounded as a model's own are. gain: None where no disturbance was tried.
    """

    retention: tuple[float, ...]
    loss: tuple[float, ...]
    gain: tuple[float, ...] | None


@dataclass(frozen=True)
class Guided:
    """The two branches that guidance is made of, and the answer that the sampler goes by, at the same inputs by time.

    guidance: 1 where it is off. The guided retention is r_u + guidance (r_c - r_u): beyond 1 in size guidance amplifies
    what no branch does (docs/theory.md).
    """

    t: tuple[float, ...]
    guidance: tuple[float, ...]
    conditional: Answer
    unconditional: Answer
    guided: Answer

    @property
    def gap(self) -> tuple[float, ...]:
        """r_c - r_u by time: above 0 the prompt lets noise pass, below 0 it copies and the other branch lags."""
        return tuple(c - u for c, u in zip(self.conditional.retention, self.unconditional.retention, strict=True))

    @property
    def gain(self) -> tuple[float, ...]:
        """Of the guided answer; its retention squared, what it is around one image, where no disturbance was tried."""
        return self.guided.gain or tuple(r**2 for r in self.guided.retention)


@dataclass(frozen=True)
class Reading:
    """All that was probed of a model at one moment; None for what was not.

    `others_...` are of the other images. forwards: what it cost.
    """

    forwards: int
    sigma_1: Sigma1 | None = None
    from_noise: Sigma1 | None = None
    gain: ResidualGain | None = None
    losses: Losses | None = None
    blank: Blank | None = None
    scaled: Scaled | None = None
    guided: Guided | None = None
    others_sigma_1: Sigma1 | None = None
    others_gain: ResidualGain | None = None
    others_losses: Losses | None = None

    @property
    def excess_error(self) -> tuple[float, ...] | None:
        """Loss less retention^2 on the training images, by time: the error that is no noise left over.

        0 for the one-image model. What comes and goes between neighbouring checkpoints is found here.
        """
        if self.sigma_1 is None or self.losses is None:
            return None
        return tuple(loss - r**2 for loss, r in zip(self.losses.loss, self.sigma_1.retention, strict=True))

    def numbers(self, base: Reading | None = None) -> dict[str, float]:
        """One number per probe, for a row of metrics; with `base` the ratio to the base model too, as `..._ratio`.

        `guided_gain` is the largest over times, `guidance_gap` the largest in size; a gap has no ratio.
        """
        of = {
            "retention": self.sigma_1 and median(self.sigma_1.retention),
            "retention_from_noise": self.from_noise and median(self.from_noise.retention),
            "residual_gain": self.gain and self.gain.typical,
            "loss_training": self.losses and self.losses.mean,
            "excess_error": self.excess_error and fmean(self.excess_error),
            "narrowing": self.blank and self.blank.narrowing,
            "scaled_slope": self.scaled and self.scaled.slope,
            "guided_gain": self.guided and max(self.guided.gain),
            "guidance_gap": self.guided and max(self.guided.gap, key=abs),
            "others_retention": self.others_sigma_1 and median(self.others_sigma_1.retention),
            "others_residual_gain": self.others_gain and self.others_gain.typical,
            "loss_others": self.others_losses and self.others_losses.mean,
        }
        mine = {name: value for name, value in of.items() if value is not None}
        theirs = {name: value for name, value in base.numbers().items() if name != "guidance_gap"} if base else {}
        return mine | {f"{name}_ratio": value / theirs[name] for name, value in mine.items() if theirs.get(name)}
