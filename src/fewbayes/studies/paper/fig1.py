"""Fig. 1: image fidelity over iterations for one training image, plain and with Bayesian weights."""

from __future__ import annotations

from typing import Any

from fewbayes.studies.grid import Arm
from fewbayes.studies.paper import paper
from fewbayes.studies.paper.fidelity import SAMPLING, curves
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
