"""The stage monitor during training: fixed questions and fixed samples, asked of the base model once and then again.

`StageWatch` asks and judges; `RunStages` keeps in a run folder what it finds: rows, stages.jsonl, best/. `begin` sees
the untouched model, `look` whatever it has become; both leave it as it was, bit for bit. The caller rests the model
first: means of the weights, dropout off, no autocast. What a look costs is PROBES on the training images, and on class
images where training has them, measured by benchmarks/monitor_cost.py; other pictures are not drawn for it. Knows
nothing of optimizers and processes; how a stage is decided is the monitor's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbayes.methods import Method
from fewbayes.models import Family
from fewbayes.runs.folder import RunFolder
from fewbayes.settings.config import TrainConfig
from fewbayes.stage.monitor import ALARMS, Judgement, Look, Monitor, Stage
from fewbayes.stage.probes import Probe, Prober, ProbeSettings
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats, coarse, describe
from fewbayes.training.batches import Pictures
from fewbayes.training.ema import WeightAverage
from fewbayes.training.validation import sampled_as

log = logging.getLogger("fewbayes")

PROBES: tuple[Probe, ...] = ("sigma_1", "losses", "blank")
"""Those that a look can afford: 12 forwards without class images, 22 with them, of one example each."""
PROBED_IMAGES = 16  # training images that the probes see at most, evenly chosen

DAMAGE = ("diverged", "lost")
"""Causes that are said when they come, whatever the stage."""


class StageWatch:
    """The stage of one run; pictures are uint8 (height, width, 3), in the same order in `begin` and `look`.

    batch_size: examples at once. sampled_as: all that the samples depend on; weights: which ones are looked at, "raw"
    or "ema". A watch is not continued with other samples or other weights.
    """

    def __init__(
        self,
        family: Any,
        training: Pictures,
        others: Pictures | None = None,
        *,
        batch_size: int = 8,
        sampled_as: Mapping[str, Any] | None = None,
        weights: str = "raw",
    ):
        self._weights = weights
        self._references = [training.centred(i) for i in range(len(training))]
        self._sampled_as = dict(sampled_as or {})
        settings = _settings(family.alpha_bar, batch_size)
        images, prompts = _latents(family, training, PROBED_IMAGES)
        theirs, their_prompts = _latents(family, others, settings.examples) if others else (None, [])
        self._prober = Prober(family, images, prompts, others=theirs, other_prompts=their_prompts, settings=settings)
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
        reading = self._prober.read(PROBES)
        look = Look(step, reading, self._described(pictures), self._described(averaged))
        judgement = self._monitor.judge(look)
        self.stage = judgement.stage
        return judgement, reading

    def to_dict(self) -> dict[str, Any]:
        """For a checkpoint, as JSON."""
        assert self._monitor is not None, "begin comes first"
        how = {"sampled_as": self._sampled_as, "weights": self._weights}
        twins = [twin.tolist() for twin in self._twins]
        return {"monitor": self._monitor.to_dict(), "twins": twins, "stage": self.stage} | how

    def resume(self, told: Mapping[str, Any] | None) -> bool:
        """Go on as the watch that told `to_dict`; False where what it saw cannot be compared with what is to come."""
        if told is None or told.get("weights") != self._weights or "twins" not in told:
            return False
        if self._sampled_as and told["sampled_as"] != self._sampled_as:
            return False
        self._sampled_as = told["sampled_as"]
        self._monitor = Monitor.from_dict(told["monitor"])
        self._twins = [np.array(twin, np.uint8) for twin in told["twins"]]
        self.stage = told["stage"]
        return True

    def _described(self, pictures: Sequence[np.ndarray] | None) -> SampleStats | None:
        return describe(pictures, self._references, self._twins) if pictures else None


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
        self._cause: str | None = None
        alike = sampled_as(config) if config.validation_steps else {}
        others = sources[1] if len(sources) > 1 else None
        batch_size, weights = _at_once(config), config.export_weights
        self._watch = StageWatch(family, sources[0], others, batch_size=batch_size, sampled_as=alike, weights=weights)

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
            kept = f"; {self._kept()}" if self._run.best() else ""
            log.warning("the stage monitor begins anew at step %d and knows nothing of before%s", step, kept)
            return
        self._log(0, base.numbers())

    def look(self, step: int, pictures: Mapping[str, Sequence[np.ndarray]], method: Method) -> bool:
        """Whether to stop; pictures: the samples of this step, "raw" and "ema"."""
        before, exported = (self._watch.stage, self._cause), self._config.export_weights
        averaged = pictures.get("ema") if exported == "raw" else None
        with self._average.swapped() if self._average else nullcontext():
            judgement, reading = self._watch.look(step, pictures.get(exported), averaged)
            scores = {f"stage_{name}": value for name, value in judgement.scores.items()}
            self._log(step, scores | reading.numbers(self._watch.base))
            if self._watch.best == step:
                self._write_best(judgement.to_dict(), method)
        self._run.log_stage(judgement.to_dict())  # last: a row tells of a best/ that is there
        self._cause = judgement.cause
        if judgement.stage != before[0] or (judgement.cause in DAMAGE and judgement.cause != before[1]):
            log.log(logging.WARNING if judgement.stage in ALARMS else logging.INFO, "%s", judgement.line)
        return self.stop

    def to_dict(self) -> dict[str, Any]:
        """For the state of a checkpoint."""
        return {"stages": self._watch.to_dict()}

    def resume(self, state: Mapping[str, Any]) -> bool:
        """Go on from the state of a checkpoint; False where it holds nothing to go on from."""
        return self._watch.resume(state.get("stages"))

    def restore_best(self, step: int, method: Method) -> None:
        """After `resume` at `step`, with its weights in place: best/ had gone on to steps that will be taken again."""
        if self._run.best() or self._watch.best is None:
            return
        row = next((row for row in self._run.stages() if row["step"] == step), None)
        if row is None or self._watch.best != step:
            log.warning("%s; best/ is written again at the next good samples", self._kept())
            return
        with self._average.swapped() if self._average else nullcontext():
            self._write_best(row, method)

    def say_end(self, step: int) -> None:
        stage, told = self._watch.stage, self._run.best()
        if self.stop:
            log.warning("stopped at step %d of %s: %s; %s", step, self._config.max_train_steps, stage, self._kept())
        elif stage is None:
            log.info("the stage monitor has not looked since it began; %s", self._kept())
        elif told is None or told["step"] != step:
            log.info("the last look, at step %d, says %s; %s", step, stage, self._kept())

    def _kept(self) -> str:
        """What best/ holds, by its own word."""
        if told := self._run.best():
            return f"best/ holds step {told['step']}"
        if self._watch.best is None:
            return "no samples were good"
        return f"samples were last good at step {self._watch.best}, whose weights best/ does not hold any more"

    def _write_best(self, judgement: Mapping[str, Any], method: Method) -> None:
        """The weights that are in the family now; judgement: as in stages.jsonl."""
        told = {name: judgement[name] for name in ("step", "stage", "seen", "scores")}
        told["weights"] = self._config.export_weights
        self._run.write_best(lambda folder: method.export(self._family, folder), told)

    def _log(self, step: int, numbers: Mapping[str, float]) -> None:
        for name, value in numbers.items():
            self._run.log(step, name, value, weights=self._config.export_weights)


def _at_once(config: TrainConfig) -> int:
    """As many examples as sampling puts through the denoiser at once, which guidance doubles.

    Half as many where sampling is in half precision, as probes are always in float32; one at least.
    """
    guided = config.sample_batch_size * (2 if config.guidance_scale > 1 else 1)
    return guided if config.mixed_precision == "no" else max(1, guided // 2)


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
