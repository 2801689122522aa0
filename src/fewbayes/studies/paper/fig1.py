"""Image fidelity over iterations, one training image, plain and Bayesian.

The paper's curve falls by 0.5 amid training and recovers; with Bayesian weights it hardly falls.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from fewbayes.page.look import STAGE, colour
from fewbayes.studies.grid import Arm
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.drawing import Told, by_step, canvas, parts
from fewbayes.studies.paper.fidelity import FALL, SAMPLING, curves, fall, falls, fidelity_axes, noise_axes, strips
from fewbayes.studies.paper.options import Ask

CONSTANTS = SAMPLING


def run(ask: Ask) -> dict[str, Any]:
    std = ask.usual.weight_std
    arms = [
        Arm("plain", "Plain", {}, f"{ask.usual.method} at {ask.usual.learning_rate:g}"),
        Arm("bayes", "Bayesian", {"bayes": True, "weight_std": std}, f"the same, random weights begin with {std:g}"),
    ]
    found = curves(ask, {subject.name: arms for subject in ask.subjects})
    theirs = {"plain": list(paper.FIG1_PLAIN.items()), "bayes": list(paper.FIG1_BAYES.items())}
    about = "Stable Diffusion 1.5, full fine-tuning on one photograph; digitised from the paper's Fig. 1, +-0.004"
    return found | {"paper": {"curves": theirs, "stage": paper.FIG1_STAGE, "about": about}}


def draw(told: Told, folder: Path) -> Figure:
    figure = canvas(told, seen(told), 8.2, [*falls(told), f"Paper: {told['paper']['about']}"])
    top, bottom = parts(figure, (1, 0.85))
    ours, noise, theirs = top.subplots(1, 3)
    fidelity_axes(ours, told)
    ours.set_title("ours")
    noise_axes(noise, told)
    noise.set_title("ours: noise of the samples")
    for i, (label, points) in enumerate(zip(("Plain", "Bayesian"), told["paper"]["curves"].values(), strict=True)):
        theirs.plot(*zip(*points, strict=True), color=colour(i), linewidth=1.6, label=label)
    theirs.axvspan(*told["paper"]["stage"], color=STAGE, alpha=0.15, linewidth=0, zorder=0)
    theirs.set_title("the paper's, its stage shaded")
    theirs.set_xlabel("iterations")
    theirs.set_ylabel("Dino (dino-vits16)")
    theirs.legend(loc="lower right")
    strips(bottom, told, folder)
    return figure


def seen(told: Told) -> str:
    plain, *others = told["arms"]
    noise = by_step(plain["runs"], "noise")[1]
    said = (
        "; ".join(f"{arm['label']}: {fall(arm['dips'])}" for arm in told["arms"])
        + f". Noise of the {plain['label'].lower()} samples: {np.nanmean(noise, axis=0).max():.1f} grey levels at most,"
        + f" {np.nanmean(noise[:, 0]):.1f} at first."
    )
    depth = plain["dips"]["depth"]
    if depth["mean"] < FALL:
        return f"no fall like the paper's 0.5: {said}"
    bands = [(arm["dips"]["depth"]["high"], arm["dips"]["depth"]["mean"]) for arm in others]
    apart = depth["low"] is not None and all(high is not None and high < depth["low"] for high, _ in bands)
    return said if apart or not others else f"no smaller fall with Bayesian weights, beyond the spread of runs: {said}"
