"""The stage monitor during training: fixed questions and fixed samples, asked of the base model once and then again.

`StageWatch` asks and judges; `RunStages` keeps in a run folder what it finds: rows, stages.jsonl, best/. `begin` sees
the untouched model, `look` whatever it has become; both leave it as it was, bit for bit. The caller rests the model
first: means of the weights, dropout off, no autocast. What a look costs is PROBES on the training images, and on class
images where training has them; other pictures are not drawn for it. Knows nothing of optimizers and processes; how a
stage is decided is the monitor's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbayes.batches import Pictures
from fewbayes.config import TrainConfig
from fewbayes.corruption.monitor import ALARMS, Judgement, Look, Monitor, Stage
from fewbayes.corruption.probes import Probe, Prober, ProbeSettings
from fewbayes.corruption.readings import Reading
from fewbayes.corruption.samples import SampleStats, describe
from fewbayes.ema import WeightAverage
from fewbayes.families import Family
from fewbayes.methods import Method
from fewbayes.runs import RunFolder
from fewbayes.validation import sampled_as

log = logging.getLogger("fewbayes")

PROBES: tuple[Probe, ...] = ("sigma_1", "losses", "blank")
"""Those that a look can afford: 12 forwards without class images, 22 with them, of one example each."""
PROBED_IMAGES = 16  # training images that the probes see at most, evenly chosen


class StageWatch:
    """The stage of one run; pictures are uint8 (height, width, 3), in the same order in `begin` and `look`.

    batch_size: examples at once. sampled_as: all that the samples depend on; a watch is not continued with others.
    """

    def __init__(
        self,
        family: Any,
        training: Pictures,
        others: Pictures | None = None,
        *,
        batch_size: int = 8,
        sampled_as: Mapping[str, Any] | None = None,
    ):
        self._references = [training.centred(i) for i in range(len(training))]
        self._sampled_as = dict(sampled_as or {})
        settings = _settings(family.alpha_bar, batch_size)
        images, prompts = _latents(family, training, PROBED_IMAGES)
        theirs, their_prompts = _latents(family, others, settings.examples) if others else (None, [])
        self._prober = Prober(family, images, prompts, others=theirs, other_prompts=their_prompts, settings=settings)
        self._monitor: Monitor | None = None
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
        base = Look(0, reading, self._described(pictures))
        self._monitor = Monitor(base, describe(self._references, self._references))
        return reading

    def look(
        self, step: int, pictures: Sequence[np.ndarray] | None = None, averaged: Sequence[np.ndarray] | None = None
    ) -> tuple[Judgement, Reading]:
        """The model as it is now, with its samples and those of its averaged weights where they were drawn."""
        assert self._monitor is not None, "begin comes first"
        reading = self._prober.read(PROBES)
        look = Look(step, reading, self._described(pictures), self._described(averaged))
        judgement = self._monitor.judge(look)
        self.stage = judgement.stage
        return judgement, reading

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        assert self._monitor is not None, "begin comes first"
        return {"monitor": self._monitor.to_dict(), "stage": self.stage, "sampled_as": self._sampled_as}

    def resume(self, told: Mapping[str, Any] | None) -> bool:
        """Go on as the watch that told `to_dict`; False where its samples cannot be compared with those to come."""
        if told is None or (self._sampled_as and told["sampled_as"] != self._sampled_as):
            return False
        self._sampled_as = told["sampled_as"]
        self._monitor = Monitor.from_dict(told["monitor"])
        self.stage = told["stage"]
        return True

    def _described(self, pictures: Sequence[np.ndarray] | None) -> SampleStats | None:
        return describe(pictures, self._references) if pictures else None


class RunStages:
    """The watch of one run, on its main process; it looks at the weights that are exported.

    sources: the training images, and the class images if there are any.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        family: Family,
        sources: Sequence[Pictures],
        average: WeightAverage | None,
    ):
        self._config, self._run, self._family = config, run, family
        self._average = average if config.export_weights == "ema" else None
        alike = sampled_as(config) if config.validation_steps else {}
        others = sources[1] if len(sources) > 1 else None
        # Guidance doubles what sampling does at once: looks need no more memory than samples.
        self._watch = StageWatch(family, sources[0], others, batch_size=2 * config.sample_batch_size, sampled_as=alike)

    @property
    def stop(self) -> bool:
        """Whether the last look found what training is to stop at."""
        return self._watch.stage == self._config.stop_when

    def begin(self, step: int, pictures: Sequence[np.ndarray] | None) -> None:
        """With the untouched model and its samples, at whatever step the run begins to be watched."""
        if not self._config.validation_steps:
            log.warning("the stage monitor sees noise and copies in samples alone: give validation_steps for these")
        base = self._watch.begin(pictures)
        if step:
            log.warning("the stage monitor begins anew at step %d and knows nothing of before", step)
            return
        self._log(0, base.numbers())

    def look(self, step: int, pictures: Mapping[str, Sequence[np.ndarray]], method: Method) -> bool:
        """Whether to stop; pictures: the samples of this step, "raw" and "ema"."""
        before, exported = self._watch.stage, self._config.export_weights
        averaged = pictures.get("ema") if exported == "raw" else None
        with self._average.swapped() if self._average else nullcontext():
            judgement, reading = self._watch.look(step, pictures.get(exported), averaged)
            scores = {f"stage_{name}": value for name, value in judgement.scores.items()}
            self._log(step, scores | reading.numbers(self._watch.base))
            if self._watch.best == step:
                told = {"step": step, "stage": judgement.stage, "scores": judgement.scores, "weights": exported}
                self._run.write_best(lambda folder: method.export(self._family, folder), told)
        self._run.log_stage(judgement.to_dict())  # last: a row tells of a best/ that is there
        if judgement.stage != before:
            log.log(logging.WARNING if judgement.stage in ALARMS else logging.INFO, "%s", judgement.line)
        return self.stop

    def to_dict(self) -> dict[str, Any]:
        """For the state of a checkpoint."""
        return {"stages": self._watch.to_dict()}

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Go on from the state of a checkpoint; False where it holds nothing to go on from."""
        return self._watch.resume(state.get("stages"))

    def say_end(self, step: int) -> None:
        stage, best = self._watch.stage, self._watch.best
        kept = "no samples were good" if best is None else f"best/ holds step {best}"
        if self.stop:
            log.warning("stopped at step %d of %s: %s; %s", step, self._config.max_train_steps, stage, kept)
        elif best != step:
            log.info("the last look, at step %d, says %s; %s", step, stage, kept)

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._run.log(step, name, value, weights=self._config.export_weights)


def _settings(alpha_bar: Tensor, batch_size: int) -> ProbeSettings:
    """The usual timesteps on a schedule of any length; one that ends in pure noise is asked just before."""
    usual, last = ProbeSettings(), int(alpha_bar.nonzero()[-1])
    if len(alpha_bar) == 1000 and last == 999:
        return ProbeSettings(batch_size=batch_size)
    scale = len(alpha_bar) / 1000
    return ProbeSettings(
        timesteps=tuple(int(t * scale) for t in usual.timesteps),
        blank_timesteps=(int(usual.blank_timesteps[0] * scale), last),
        scaled_timestep=int(usual.scaled_timestep * scale),
        batch_size=batch_size,
    )


def _latents(family: Any, pictures: Pictures, at_most: int) -> tuple[Tensor, list[str]]:
    """Mean latents of the pictures' middles, with their prompts."""
    count = min(len(pictures), at_most)
    chosen = [i * len(pictures) // count for i in range(count)]
    means = [family.encode_images(pictures.centred(i)[None])[0].cpu() for i in chosen]
    return torch.cat(means), [pictures.prompts[i] for i in chosen]
