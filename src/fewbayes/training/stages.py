"""The stages of one run: what the watch finds goes into the run folder, as rows, stages.jsonl and best/.

Training asks `begin` once, with the untouched model, and `look` from time to time; both leave the model as it was, bit
for bit. The caller rests the model first: means of the weights, dropout off, no autocast. What a look costs is PROBES
on the training images, and on class images where training has them, measured by benchmarks/monitor_cost.py; other
pictures are not drawn for it. Knows nothing of optimizers and processes; how a stage is decided is the monitor's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbayes.diffusion.guidance import Interval
from fewbayes.methods import Method
from fewbayes.models import Family
from fewbayes.runs.folder import RunFolder
from fewbayes.settings.config import TrainConfig
from fewbayes.stage.watch import StageWatch
from fewbayes.stage.words import LOOKS, fitted
from fewbayes.training.batches import Pictures
from fewbayes.training.ema import WeightAverage
from fewbayes.training.validation import sampled_as

log = logging.getLogger("fewbayes")

PROBED_IMAGES = 16  # training images that the probes see at most, evenly chosen
PROBED_OTHERS = 2  # class images, one for each example of the probes

DAMAGE = ("diverged", "lost")
"""Causes that are said when they come, whatever the stage."""


class RunStages:
    """The watch of one run, on its main process; it looks at the weights that are exported.

    sources: the training images, and the class images if there are any. recommended: the learning rate that a run has
    by itself, None for that of the config. unseen: images held out.
    """

    def __init__(
        self,
        config: TrainConfig,
        run: RunFolder,
        family: Family,
        sources: Sequence[Pictures],
        average: WeightAverage | None,
        recommended: float | None = None,
        unseen: Sequence[np.ndarray] = (),
    ):
        self._config, self._run, self._family = config, run, family
        self._recommended = recommended
        self._average = average if config.export_weights == "ema" else None
        self._all_averages = average
        self._cause: str | None = None
        training, *others = sources
        images, prompts = _mean_latents(family, training, PROBED_IMAGES)
        theirs, their_prompts = _mean_latents(family, others[0], PROBED_OTHERS) if others else (None, [])
        self._watch = StageWatch(
            family,
            images,
            prompts,
            [training.centred(i) for i in range(len(training))],
            unseen=unseen,
            others=theirs,
            other_prompts=their_prompts,
            batch_size=_at_once(config),
            prompts_change=config.train_text_encoder or config.train_rare_token,
            guidance=config.guidance_scale,
            interval=Interval.read(config.guidance_interval),
            negative_prompt=config.negative_prompt,
            sampled_as=sampled_as(config) if config.validation_steps else {},
            weights=config.export_weights,
        )

    @property
    def stop(self) -> bool:
        """Whether the last look found what training is to stop at."""
        return self._watch.stage == self._config.stop_when

    def begin(self, step: int, pictures: Sequence[np.ndarray] | None) -> None:
        """With the untouched model and its samples, at whatever step the run begins to be watched."""
        if not self._config.validation_steps:
            log.warning("the monitor judges pictures, and none are drawn: add --validation_steps")
        base = self._watch.begin(pictures)
        if step:
            kept = f". {self._kept()}" if self._run.best() else ""
            log.warning("the monitor begins anew at step %d and knows nothing of before%s", step, kept)
            return
        self._log(0, base.numbers())

    def look(self, step: int, pictures: Mapping[str, Sequence[np.ndarray]], method: Method) -> bool:
        """Whether to stop; pictures: the samples of this step, "raw" and "ema"."""
        before, exported = (self._watch.stage, self._cause), self._config.export_weights
        rate = self._config.learning_rate or 0.0
        averaged = pictures.get("ema") if exported == "raw" else None
        with self._average.swapped() if self._average else nullcontext():
            judgement, reading = self._watch.look(step, pictures.get(exported), averaged)
            options = fitted(judgement.options, rate, self._recommended or rate)
            judgement = replace(judgement, options=options)
            scores = {f"stage_{name}": value for name, value in judgement.scores.items()}
            numbers = scores | reading.numbers(self._watch.base)
            if self._watch.best == step:
                self._write_best(asdict(judgement), method)
        if pictures and self._all_averages:  # beside samples of both it costs little
            numbers["jitter"] = self._jitter(numbers["loss_training"])
        self._log(step, numbers)
        self._run.log_stage(asdict(judgement))  # last: a row tells of a best/ that is there
        self._cause = judgement.cause
        changed = judgement.stage != before[0] or (judgement.cause in DAMAGE and judgement.cause != before[1])
        if pictures or changed:
            level = logging.INFO if judgement.seen in ("underfit", "good") else logging.WARNING
            kept = f". {self._kept()}" if self._watch.best is not None else ""
            log.log(level, "%s%s", judgement.line, kept)
        return self.stop

    def _jitter(self, exported: float) -> float:
        """Loss of the raw weights over that of their averages: what their going back and forth costs, 1 for none."""
        assert self._all_averages is not None
        if self._average:
            return self._watch.loss() / exported
        with self._all_averages.swapped():
            return exported / self._watch.loss()

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
            log.warning("%s. best/ is written again at the next good samples", self._kept())
            return
        with self._average.swapped() if self._average else nullcontext():
            self._write_best(row, method)

    def say_end(self, step: int) -> None:
        stage, told = self._watch.stage, self._run.best()
        if self.stop:
            said = "Stopped at step %d of %s: %s. %s. To go on anyway: --stop_when never"
            log.warning(said, step, self._config.max_train_steps, stage, self._kept())
        elif stage is None:
            log.info("The monitor has not looked since it began. %s", self._kept())
        elif told is None or told.step != step:
            log.info("The last step, %d: %s. %s", step, LOOKS[stage], self._kept())

    def _kept(self) -> str:
        """What best/ holds, by its own word."""
        if told := self._run.best():
            return f"Step {told.step} is kept in best/"
        if self._watch.best is None:
            return "No samples were good, so nothing is kept in best/"
        return f"Samples were last good at step {self._watch.best}, which best/ does not hold any more"

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


def probed(count: int, at_most: int = PROBED_IMAGES) -> list[int]:
    """Which of so many pictures the probes see."""
    return [i * count // min(count, at_most) for i in range(min(count, at_most))]


def _mean_latents(family: Family, pictures: Pictures, at_most: int) -> tuple[Tensor, list[str]]:
    """Mean latents of the pictures' middles, with their prompts."""
    chosen = probed(len(pictures), at_most)
    means = [family.encode_images(pictures.centred(i)[None])[0].cpu() for i in chosen]
    return torch.cat(means), [pictures.prompts[i] for i in chosen]
