"""Fixed questions and fixed samples, asked of a model before it is trained and again while it is: its stage.

`begin` sees the untouched model, `look` whatever it has become; both leave it as it was, bit for bit. The caller rests
the model first: means of the weights, dropout off, no autocast. Knows a family only as something that predicts, and
nothing of training and of files; how a stage is decided is the monitor's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from torch import Tensor

from fewbayes.diffusion.process import level_of_step
from fewbayes.files.decode import typed
from fewbayes.stage.monitor import Judgement, Look, Memory, Monitor, Stage
from fewbayes.stage.probes import Probe, Probed, Prober, ProbeSettings
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats, coarse, describe

PROBES: tuple[Probe, ...] = ("sigma_1", "losses", "blank", "guided")
"""Those that a look can afford: 14 forwards without other images, 24 with them, of one example each. Two of them,
`blank`, decide nothing, and are left out where no pictures are drawn though others were."""
GUIDED_STEPS = (50, 400)
"""Where the unconditional branch is asked too, once each: a gap that lets noise pass shows at the one, a prompt that
is learned by heart at the other (docs/results/guided.md)."""


@dataclass(frozen=True)
class _Kept:
    """What a checkpoint holds of a watch. twins: the base model's pictures, as `coarse` makes them."""

    monitor: Memory
    twins: list[list[list[list[Annotated[int, Meta(ge=0, le=255)]]]]]
    stage: Stage | None
    sampled_as: dict[str, Any]
    weights: str


class StageWatch:
    """The stage of one model; pictures are uint8 (height, width, 3), in the same order in `begin` and `look`.

    images, prompts, others, other_prompts: what the probes see, as `Prober` has them; probes: their settings, guidance
    and the like as the samples are drawn. references: all training images, as pictures; unseen: those held out.
    sampled_as: all that the samples depend on; weights: which ones are looked at, "raw" or "ema". A watch is not
    continued with other samples or other weights.
    """

    def __init__(
        self,
        family: Probed,
        images: Tensor,
        prompts: Sequence[str],
        references: Sequence[np.ndarray],
        *,
        unseen: Sequence[np.ndarray] = (),
        others: Tensor | None = None,
        other_prompts: Sequence[str] = (),
        sampled_as: Mapping[str, Any] | None = None,
        weights: str = "raw",
        **probes: Any,
    ):
        self._references, self._unseen, self._weights = list(references), list(unseen), weights
        self._sampled_as = dict(sampled_as or {})
        levels = tuple(map(level_of_step, GUIDED_STEPS))
        settings = ProbeSettings(**probes, guided_levels=levels, guided_examples=1)
        self._prober = Prober(family, images, prompts, others=others, other_prompts=other_prompts, settings=settings)
        self._monitor: Monitor | None = None
        self._twins: list[np.ndarray] = []
        self.stage: Stage | None = None
        """The stage of the last look; None before any."""

    @property
    def best(self) -> int | None:
        """The step of the last look whose samples were good; None before any."""
        return self._monitor.best if self._monitor else None

    @property
    def base(self) -> Reading | None:
        """What `begin` read."""
        return self._monitor.base.reading if self._monitor else None

    def begin(self, pictures: Sequence[np.ndarray] | None = None) -> Reading:
        """With the untouched model, and its samples if it is sampled at all."""
        reading = self._prober.read(PROBES)
        self._twins = [coarse(picture) for picture in pictures or ()]
        base = Look(0, reading, self._described(pictures))
        self._monitor = Monitor(base, describe(self._references, self._references))
        return reading

    def look(
        self, step: int, pictures: Sequence[np.ndarray] | None = None, averaged: Sequence[np.ndarray] | None = None
    ) -> tuple[Judgement, Reading]:
        """The model as it is now, with its samples and those of its averaged weights where they were drawn."""
        assert self._monitor is not None, "begin comes first"
        drawn = pictures or not self._twins
        reading = self._prober.read(PROBES if drawn else [probe for probe in PROBES if probe != "blank"])
        look = Look(step, reading, self._described(pictures), self._described(averaged))
        judgement = self._monitor.judge(look)
        self.stage = judgement.stage
        return judgement, reading

    def loss(self) -> float:
        """On the training images, of the model as it is now, at the draws of every look."""
        losses = self._prober.read(("losses",)).losses
        assert losses is not None
        return losses.mean

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        assert self._monitor is not None, "begin comes first"
        twins = [twin.tolist() for twin in self._twins]
        return asdict(_Kept(self._monitor.memory, twins, self.stage, self._sampled_as, self._weights))

    def resume(self, told: Mapping[str, Any] | None) -> bool:
        """Go on as the watch that told `to_dict`; False where what it saw cannot be compared with what is to come."""
        if told is None or told.get("weights") != self._weights or "twins" not in told:
            return False
        kept = typed(told, _Kept, "the stage monitor's part of the checkpoint")
        if self._sampled_as and kept.sampled_as != self._sampled_as:
            return False
        self._sampled_as, self.stage = kept.sampled_as, kept.stage
        self._monitor = Monitor.remembering(kept.monitor)
        self._twins = [np.array(twin, np.uint8) for twin in kept.twins]
        return True

    def _described(self, pictures: Sequence[np.ndarray] | None) -> SampleStats | None:
        return describe(pictures, self._references, self._twins, self._unseen) if pictures else None
