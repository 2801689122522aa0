"""Which sweeps there are: the setting, its values, and what the paper found at each of them.

Numbers are of arXiv 2405.19931, Stable Diffusion, mean over 30 classes and 5 seeds. Knows no training.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

FIVE = ("clip_t", "dino", "clip_i", "lpips", "clip_iqa")
Gains = Mapping[str, float]
"""By metric."""


@dataclass(frozen=True)
class Sweep:
    """`axis` is a setting of training, or "recipe", "model", "images" for the number of training images, or
    "tuned_within" for the noise-to-signal ratios at which the trained model draws, the base model drawing at others.

    also: settings of all arms. gains: by value and metric, how much more the paper's Bayesian arm has; 1 or -1 where
    it says which way and not how far. signs: the same at values that `gains` has not. sides: plain, Bayesian; the last
    is compared with what `against` says, the plain arm of its value or its own of the first value.
    """

    title: str
    axis: str
    values: Sequence[Any]
    also: Mapping[str, Any] = field(default_factory=dict)
    says: str = ""
    signs: Gains = field(default_factory=dict)
    gains: Mapping[Any, Gains] = field(default_factory=dict)
    against: Literal["plain", "first"] = "plain"
    sides: tuple[bool, ...] = (False, True)

    def expected(self, value: Any) -> Gains:
        """What the paper has at a value; a model goes by the last part of its name."""
        return self.gains.get(value.rpartition("/")[2] if isinstance(value, str) else value, self.signs)


@dataclass(frozen=True)
class View:
    """Another reading of a sweep: a table by "prompts" or of the "spread" over seeds, or panels of chosen pictures.

    subjects: so many at most; each: pictures of it where it is one.
    """

    of: str
    title: str
    shows: tuple[str, ...]
    says: str = ""
    methods: tuple[str, ...] = ()
    subjects: int = 10
    each: int = 8


def _gains(*numbers: float) -> Gains:
    return dict(zip(FIVE, numbers, strict=True))


BETTER = {"dino": 1, "clip_iqa": 1}
"""In likeness and quality, as the paper's figures show them."""
WINDOWS = (None, "0.83:", ":0.83", "2.2:", ":2.2")
"""Noise-to-signal ratios: all, then t from 300 on, below it, from 600 on, below it of Stable Diffusion."""
DREAMBOOTH = _gains(0.010, 0.019, 0.014, 0.029, 0.018)

SWEEPS: Mapping[str, Sweep] = {
    "table1": Sweep(
        "Methods, plain and Bayesian, in the five metrics",
        "recipe",
        ("paper-dreambooth", "paper-lora", "paper-oft"),
        says="Bayesian weights improve every method in every metric, on objects and on people.",
        gains={
            "paper-dreambooth": DREAMBOOTH,
            "paper-lora": _gains(0.009, 0.076, 0.047, 0.028, 0.026),
            "paper-oft": _gains(0.009, 0.012, 0.005, 0.017, 0.023),
        },
    ),
    "table2": Sweep(
        "Models, plain and Bayesian",
        "model",
        (),  # the embedded ones that are there
        says="Bayesian weights improve SD 1.4, 1.5 and 2.0 alike.",
        signs=dict.fromkeys(FIVE, 1),
        gains={
            "stable-diffusion-v1-5": DREAMBOOTH,
            "stable-diffusion-v1-4": _gains(0.001, 0.026, 0.015, 0.038, 0.023),
            "stable-diffusion-2": _gains(0.008, 0.047, 0.025, 0.045, 0.050),
        },
    ),
    "table4": Sweep(
        "Which weights are random, with memory and time",
        "where",
        ("linear", "linear-up", "linear-cross", "norm"),
        says="Every choice improves quality; cross-attention costs likeness; norms alone have the best likeness.",
        gains={
            "linear": DREAMBOOTH,
            "linear-up": _gains(0.013, 0.0, 0.005, 0.035, 0.015),
            "linear-cross": _gains(0.026, -0.003, -0.011, 0.061, 0.022),
            "norm": _gains(0.008, 0.036, 0.021, 0.032, 0.014),
        },
    ),
    "fig7": Sweep(
        "Steps for each training image, plain and Bayesian",
        "steps_per_image",
        (50, 100, 200, 400),
        says="Quality is better throughout; likeness above 100 steps for each image, slightly worse at 100.",
        gains={value: {"dino": -1 if value <= 100 else 1, "clip_iqa": 1} for value in (50, 100, 200, 400)},
    ),
    "fig8": Sweep(
        "Number of training images, plain and Bayesian",
        "images",
        (1, 2, 4),
        says="Likeness and quality are better with any number, most with many.",
        signs=BETTER,
    ),
    "fig9a": Sweep(
        "Standard deviation that the weights begin with",
        "weight_std",
        (0.003, 0.01, 0.03, 0.1),
        says="A moderate one improves likeness and quality; with too large a one the model collapses.",
        gains=dict.fromkeys((0.003, 0.01, 0.03), BETTER) | {0.1: {"dino": -1, "clip_iqa": -1}},
    ),
    "fig9b": Sweep(
        "Weight of the divergence from the prior (lambda)",
        "kl_weight",
        (0.0, 1.0, 10.0, 100.0),
        also={"kl_reduction": "mean"},
        says="More of it raises diversity and lowers likeness.",
        signs={"lpips": 1, "dino": -1},
        against="first",
    ),
    "rate": Sweep("Learning rate, plain and Bayesian", "learning_rate", (3e-5, 1e-4, 3e-4, 1e-3)),
    "timesteps": Sweep(
        "Which noise levels need the tuned weights (a reviewer's question)",
        "tuned_within",
        WINDOWS,
        against="first",
        sides=(False,),
    ),
    "timesteps_fast": Sweep(
        "Which noise levels spoil the pictures at ten times the recommended rate",
        "tuned_within",
        WINDOWS,
        also={"learning_rate": 1e-3},
        against="first",
        sides=(False,),
    ),
    "rate_averaged": Sweep(
        "Learning rate with averaged weights, plain and Bayesian",
        "learning_rate",
        (1e-4, 3e-4, 1e-3),
        also={"use_ema": True, "export_weights": "ema"},
    ),
    "noise_fast": Sweep(
        "Standard deviation at three times the recommended rate",
        "weight_std",
        (0.003, 0.01, 0.03, 0.1),
        also={"learning_rate": 3e-4},
    ),
    "pull_fast": Sweep(
        "Pull to the initial weights at three times the recommended rate",
        "l2_init_weight",
        (1.0, 10.0, 30.0, 100.0),
        also={"learning_rate": 3e-4},
        sides=(False,),
    ),
    "batch_size": Sweep("Batch size, plain and Bayesian (a reviewer's question)", "train_batch_size", (1, 2, 4)),
    "caption_dropout": Sweep("Examples under the empty caption, plain and Bayesian", "caption_dropout", (0.0, 0.1)),
    "adam": Sweep(
        "Adam in 32 and 8 bits, plain and Bayesian (the authors' plain arms had 8)", "use_8bit_adam", (False, True)
    ),
    "relative_noise": Sweep(
        "Noise relative to the spread of each weight matrix, not learned, as in Flat-LoRA",
        "weight_std",
        (0.03, 0.1, 0.3),
        also={"weight_std_mode": "relative", "weight_std_learn": "fixed", "prior_std": None},
    ),
}

VIEWS: Mapping[str, View] = {
    "table5": View("table1", "The prompts of Table 1, each with its scores", ("prompts",)),
    "table6": View("table1", "The spread of Table 1 over training seeds", ("spread",)),
    "fig6": View("table1", "Best and average pictures of every method, plain and Bayesian", ("best", "average")),
    "fig13": View(
        "table1",
        "Worst pictures of DreamBooth, plain and Bayesian",
        ("worst",),
        "Without Bayesian weights the worst pictures are corrupted.",
        ("paper-dreambooth",),
    ),
    "fig14": View(
        "table1", "More pictures of one subject: best, average, worst", ("best", "average", "worst"), subjects=1
    ),
    "fig15": View("table1", "Pictures of every subject, chosen before any score", ("random",)),
}

ONLY_FOR: Mapping[str, Mapping[str, Any]] = {
    "stable-diffusion-v1-4": {"kl_weight": 0.1},
    "stable-diffusion-2": {"steps_per_image": 400},
}
"""Settings of the paper for models of these names, section H.2."""


def titled(name: str) -> str:
    """Fig. 9a of fig9a, Table 1 of table1, a name that is neither as it is."""
    return re.sub("^(fig|table)(?=[0-9])", lambda found: {"fig": "Fig. ", "table": "Table "}[found[1]], name)


def titles() -> dict[str, str]:
    """Of all sweeps and views by name."""
    return {name: entry.title for name, entry in {**SWEEPS, **VIEWS}.items()}
