"""`fewbayes train --dry_run`: settings, memory, disk and time of a training, from two short ones that leave nothing.

The time is that of this machine now: one step and four are taken in a temporary folder, and pictures drawn where the
run would draw some. The disk is counted from what these leave.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from fewbayes.data.images import DataReport
from fewbayes.files.atomic import size_of, standing
from fewbayes.models import Family, inspect_model, load_family
from fewbayes.models.sampling import sample_images
from fewbayes.progress import doing, lasting
from fewbayes.settings.config import TrainConfig, resolved
from fewbayes.training import memory
from fewbayes.training.prepare import own_class_images, with_samples
from fewbayes.training.train import train
from fewbayes.training.validation import sampled_as

STEPS = (1, 4)


def dry_run(config: TrainConfig, report: DataReport) -> list[str]:
    """Lines for the terminal: what a training of these settings is, needs and takes. UserError as `train` raises it."""
    card = inspect_model(config.model)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    settled = with_samples(resolved(config, card, len(report.images)), device)
    need = memory.check(card, settled, device)
    with doing(f"Loading {config.model} and timing a few steps"):
        family = load_family(card, whole=False)
        family.reduce(settled.base_precision)
        family.to(device)
        family.fetch()
        step, kept, result = _short(settled, family, report)
        picture = _drawing(settled, family)
    assert settled.max_train_steps is not None
    steps, every = settled.max_train_steps, settled.validation_steps
    looks = (2 + (steps - 1) // every) if every else 0
    pictures = looks * len(sampled_as(settled)["prompts"])
    drawn = (settled.num_class_images or 0) if settled.with_prior_preservation else 0
    written = -(-steps // settled.checkpointing_steps) if settled.checkpointing_steps else 0
    written = min(written, settled.checkpoints_total_limit or written)
    seconds = steps * step + (pictures + drawn) * picture
    free = shutil.disk_usage(standing(Path(config.output_dir))).free
    return [
        settled.to_yaml(),
        f"memory: at least {memory.shown(need.peak)}, most of it for {need.largest()}",
        f"disk: {memory.shown(written * kept + result)}: {written} checkpoints of {memory.shown(kept)} and the result "
        f"of {memory.shown(result)}, without pictures; {memory.shown(free)} are free",
        f"time: about {lasting(seconds)} on this machine: {steps} steps of {step:.2g} s"
        + (f", {pictures + drawn} pictures of {picture:.2g} s" if pictures + drawn else ""),
        "Nothing was kept. Leave --dry_run out to train.",
    ]


def _short(config: TrainConfig, family: Family, report: DataReport) -> tuple[float, int, int]:
    """Seconds of a step, bytes of a checkpoint and of the result."""
    seconds = []
    own: dict[str, Any] = {} if not config.with_prior_preservation else {"num_class_images": 1, "sample_batch_size": 1}
    with tempfile.TemporaryDirectory() as folder:
        if own:
            own["class_data_dir"] = config.class_data_dir if own_class_images(config) else f"{folder}/class"
        runs = [Path(folder) / f"{steps} steps" for steps in STEPS]
        for run, steps in zip(runs, STEPS, strict=True):
            short = dataclasses.replace(
                config,
                output_dir=str(run),
                max_train_steps=steps,
                checkpointing_steps=steps,
                validation_steps=0,
                validation_prompt=None,
                monitor_steps=0,
                stop_when="never",
                **own,
            )
            began = time.monotonic()
            train(short, family=family, progress=False, report=report)
            seconds.append(time.monotonic() - began)
        kept = size_of(runs[1] / f"checkpoint-{STEPS[1]}")
        return max(0.0, seconds[1] - seconds[0]) / (STEPS[1] - STEPS[0]), kept, size_of(runs[1]) - kept


def _drawing(config: TrainConfig, family: Family) -> float:
    """Seconds of a picture; 0 where none are drawn."""
    if not (config.validation_steps or config.with_prior_preservation):
        return 0.0
    how = sampled_as(config)
    count = min(config.sample_batch_size, len(how["prompts"]))
    how |= {"prompts": how["prompts"][:count], "seeds": how["seeds"][:count]}
    began = time.monotonic()
    sample_images(family, **how, resolution=config.resolution, batch_size=count)
    return (time.monotonic() - began) / count
