"""What the monitor says of a look: the evidence, and the options that are left.

Knows scores and stages; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, median

from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats
from fewbayes.stage.scores import COPY, NOISIER, RESTLESS, UNCLEAR, Standards


def learned(cause: str | None, best: int | None) -> list[str]:
    """Of a cause that would otherwise be taken for a lack of training. best: the step of the last good look."""
    if cause == "diverged":
        return ["the model knows the training images worse than the base model does: training has damaged it"]
    if cause == "lost":
        return [f"what the model had learned at step {best} is gone"]
    return []


def pictured(
    standards: Standards, pictures: SampleStats, averaged: SampleStats | None, scores: Mapping[str, float], seen: str
) -> list[str]:
    """Of pictures, what is furthest beyond its limit first. averaged: of the averaged weights; seen: the stage."""
    told = [*_noise(standards, pictures), _likeness(standards, pictures), _saturation(standards, pictures)]
    if seen == "unclear":
        beyond = f"strangeness {scores['strangeness']:.2f}, unclear from {UNCLEAR:g}"
        told.insert(0, f"look yourself: pictures like neither the base model's nor the training images ({beyond})")
    if "diversity" in scores:
        told.append(f"diversity {scores['diversity']:.2f} of the base model's")
    if averaged and seen == "corrupted":
        clean = scores["averaged_corruption"] < CORRUPTED
        told.append(f"the averaged weights' samples are {'clean' if clean else 'corrupted too'}")
    return told


def _noise(standards: Standards, pictures: SampleStats) -> list[str]:
    phrases = [
        (
            standards.excess(pictures),
            NOISIER,
            "samples {:.2f}x as noisy as the base model's and the training images explain",
        ),
        (
            standards.unrest(pictures),
            RESTLESS,
            "colours {:.2f}x as restless as the base model's and the training images explain",
        ),
    ]
    known = sorted(phrases, key=lambda part: math.log(part[1]) - median(part[0]))
    return [
        f"{phrase.format(math.exp(median(logs)))} "
        f"({sum(log > math.log(limit) for log in logs)} of {len(logs)} pictures above {limit}x)"
        for logs, limit, phrase in known
    ]


def _likeness(standards: Standards, pictures: SampleStats) -> str:
    copies = sum(close >= COPY for close in standards.closeness(pictures))
    base = f", {fmean(standards.base.likeness):.2f} from the base model" if standards.base else ""
    mean = fmean(pictures.likeness)
    found = f"{copies} of {pictures.count} are copies" if standards.tells_copies else "copies cannot be told: too few"
    return f"likeness to a training image {mean:.2f}{base}; {found}"


def _saturation(standards: Standards, pictures: SampleStats) -> str:
    mine, theirs = fmean(pictures.saturation), fmean(standards.training.saturation)
    return f"{mine:.0%} of the samples' values saturated, {theirs:.0%} in training images"


def probed(reading: Reading | None, base: Reading | None) -> list[str]:
    """What the probes add. Retention and residual gain rise and fall without any stage: docs/lab-log.md."""
    if reading is None or base is None:
        return []
    found = reading.numbers(base)
    words = {
        "loss_training_ratio": "loss on the training images {:.2f} of the base model's",
        "loss_others_ratio": "on other images {:.2f}",
        "excess_error_ratio": "error beyond noise left over {:.2f} of the base model's",
        "narrowing": "a blank input gives a picture with correlation {:.2f} to a training image",
    }
    told = [phrase.format(found[name]) for name, phrase in words.items() if name in found]
    if found.get("guided_gain", 0.0) > 1:
        told.insert(
            0, f"guidance makes {found['guided_gain']:.1f} times as much of a disturbance as pass-through would"
        )
    return told


def options(stages: set[str], cause: str | None, best: int | None) -> tuple[str, ...]:
    """What can be done. stages: that of the run and that of the last pictures, none before any were drawn."""
    keep = f"keep the last good look, step {best}" if best is not None else "no look was good yet: look more often"
    if cause == "jitter":
        return ("use the averaged weights (--use_ema --export_weights ema)", "lower the learning rate", keep)
    if cause == "diverged":
        return (keep, "lower the learning rate")
    if cause == "lost" and not stages & {"corrupted", "memorised"}:
        return (keep, "lower the learning rate", "stop here")
    if "corrupted" in stages:
        return (
            keep,
            "lower the learning rate",
            "average the weights (--use_ema --export_weights ema)",
            "train with --bayes and a wide --weight_std (0.3 for a LoRA), or --l2_init_weight 40",
            "go on well beyond this step and expect copies",
        )
    if "memorised" in stages:
        return (keep, "stop here", "lower the learning rate", "add training images")
    if "unclear" in stages:
        return ("look at the pictures yourself", keep, "lower the learning rate")
    return ("train longer", "raise the learning rate") if stages == {"underfit"} else ()
