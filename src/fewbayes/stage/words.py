"""What the monitor says of a look: how it looks, the evidence, and the options that are left.

Knows scores and stages; decides nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean, median

from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.readings import Reading
from fewbayes.stage.samples import SampleStats
from fewbayes.stage.scores import COPY, NOISIER, OUTLINES, RESTLESS, STRANGE, Standards

LOOKS = {
    "underfit": "not learned yet",
    "good": "looks good",
    "unclear": "look yourself",
    "corrupted": "looks corrupted",
    "memorised": "copies the training images",
}
LOWER, BELOW = "lower the learning rate", 10
"""The advice that names rates, and from how many times the recommended rate on it comes first."""


def how_it_looks(stage: str, seen: str, patience: int) -> str:
    """Of a look that saw one thing while the run is held to be at a stage."""
    alarms = ("corrupted", "memorised")
    if seen in alarms and stage not in alarms:
        return f"{LOOKS[seen]} (first warning; the alarm comes after {patience} in a row)"
    if stage in alarms and seen not in alarms:
        return f"{LOOKS[seen]} (the alarm ends after {patience} such looks in a row)"
    return LOOKS[seen]


def fitted(options: tuple[str, ...], rate: float, recommended: float) -> tuple[str, ...]:
    """The options for a run at this rate: it is named, and comes first where it is far above the recommended one."""
    if LOWER not in options:
        return options
    times = rate / recommended
    if times < BELOW:
        return options
    named = f"{LOWER}: {rate:g} is {times:.0f} times the recommended {recommended:g}"
    return (named, *(option for option in options if option != LOWER))


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
        told.insert(0, _unclear(scores))
    if "diversity" in scores:
        told.append(f"diversity {scores['diversity']:.2f} of the base model's")
    if averaged and seen == "corrupted":
        clean = scores["averaged_corruption"] < CORRUPTED
        told.append(f"the averaged weights' samples are {'clean' if clean else 'corrupted too'}")
    return told


def _unclear(scores: Mapping[str, float]) -> str:
    if scores["strangeness"] >= STRANGE:
        beyond = f"strangeness {scores['strangeness']:.2f}, unclear from {STRANGE:g}"
        return f"the pictures are like neither what the model drew before nor your photographs ({beyond})"
    weaker = [f"{name} {scores[name]:+.3f}" for name, limit in OUTLINES.items() if scores.get(name, limit) < limit]
    return f"shapes stand out less than in what the model drew before ({', '.join(weaker)}; 0 is as much)"


def _noise(standards: Standards, pictures: SampleStats) -> list[str]:
    """Times what the base model's pictures and the training images explain, the typical picture."""
    kinds = [(standards.excess(pictures), NOISIER, "noise"), (standards.unrest(pictures), RESTLESS, "mottling")]
    known = sorted(kinds, key=lambda part: math.log(part[1]) - median(part[0]))
    return [
        f"{kind} {math.exp(median(logs)):.2f} (alarm at {limit:g}), "
        f"{sum(log > math.log(limit) for log in logs)} of {len(logs)} pictures over"
        for logs, limit, kind in known
    ]


def _likeness(standards: Standards, pictures: SampleStats) -> str:
    copies = sum(close >= COPY for close in standards.closeness(pictures))
    base = f", {fmean(standards.base.likeness):.2f} from the base model" if standards.base else ""
    mean = fmean(pictures.likeness)
    found = f"{copies} of {pictures.count} are copies" if standards.tells_copies else "copies cannot be told: too few"
    apart = f", {fmean(pictures.unseen):.2f} to the image held out" if pictures.unseen else ""
    return f"likeness to a training image {mean:.2f}{base}{apart}; {found}"


def _saturation(standards: Standards, pictures: SampleStats) -> str:
    mine, theirs = fmean(pictures.saturation), fmean(standards.training.saturation)
    return f"{mine:.0%} of the pictures is pure black, white or colour; {theirs:.0%} of the training images is"


def probed(reading: Reading | None, base: Reading | None) -> list[str]:
    """What the probes add. Retention and residual gain rise and fall without any stage: docs/lab-log.md."""
    if reading is None or base is None:
        return []
    found = reading.numbers(base)
    words = {
        "loss_training_ratio": "loss on the training images {:.2f} of the base model's",
        "loss_others_ratio": "on other images {:.2f}",
        "excess_error_ratio": "what noise alone does not explain of that loss: {:.2f} of the base model's",
        "narrowing": "asked for nothing, it draws something like a training image by {:.2f} (1 is a copy)",
    }
    told = [phrase.format(found[name]) for name, phrase in words.items() if name in found]
    if found.get("guided_gain", 0.0) > 1:
        gain = found["guided_gain"]
        told.insert(0, f"guidance makes {gain:.1f} times as much of a disturbance as pass-through would: lower it")
    return told


def options(stages: set[str], cause: str | None, best: int | None) -> tuple[str, ...]:
    """What can be done. stages: that of the run and that of the last pictures, none before any were drawn."""
    none = "no look was good yet: look more often (a smaller --monitor_steps)"
    keep = f"keep the last good look, step {best}" if best is not None else none
    if cause == "jitter":
        return ("use the averaged weights (--use_ema --export_weights ema)", LOWER, keep)
    if cause == "diverged":
        return (keep, LOWER)
    if cause == "lost" and not stages & {"corrupted", "memorised"}:
        return (keep, LOWER, "stop here")
    if "corrupted" in stages:
        return (
            keep,
            LOWER,
            "average the weights (--use_ema --export_weights ema)",
            "where the training images are noisy: --bayes --weight_std 0.3 (for a LoRA), or --l2_init_weight 40",
        )
    if "memorised" in stages:
        return (keep, "stop here", LOWER, "add training images")
    if "unclear" in stages:
        return ("look at the pictures yourself", keep, LOWER)
    return ("train longer", "raise the learning rate") if stages == {"underfit"} else ()
