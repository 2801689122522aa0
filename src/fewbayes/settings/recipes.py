"""Named settings for `fewbayes train --recipe NAME`: those of the paper, of its authors' code, and ours.

A recipe stands below all else that is given: what a file or the command line says goes before it, and
what the model recommends comes after it. Each value stands beside its source: a section of arXiv 2405.19931, or the
authors' scripts (Nicholas0228/BNN-Finetuning-DMs, run_scripts_*.sh). Knows no training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """about: what it is. always, bayesian, plain: settings and their sources; the last two with and without bayes."""

    about: str
    always: Mapping[str, tuple[Any, str]]
    bayesian: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    plain: Mapping[str, tuple[Any, str]] = field(default_factory=dict)

    def settings(self, bayes: bool) -> dict[str, Any]:
        return {name: value for name, (value, _) in {**self.always, **(self.bayesian if bayes else self.plain)}.items()}


_PICTURES = {
    "sampler": ("pndm", "the pipeline's default in the authors' test_dreambooth.py"),
    "num_inference_steps": (50, "the same"),
    "guidance_scale": (7.5, "the same"),
    "num_validation_images": (4, "4 per prompt, section 5.1"),
}
_PRIOR = {
    "with_prior_preservation": (True, "section 5.1; the class prompt is the prompt without the rare token"),
    "prior_loss_weight": (1.0, "section 5.1"),
}
_DEVIATIONS = {
    "weight_std": (0.01, "section 5.1"),
    "prior_std": (0.01, "section 5.1"),
    "kl_weight": (0.0, "section 5.1; Table 2 takes 0.1 for SD 1.4"),
    "kl_direction": ("reverse", "as Table 2's lambda was used: the authors' code and Algorithm 1"),
}
_OFT_DEVIATIONS = _DEVIATIONS | {
    "weight_std": (0.01 / 2**0.5, "PEFT's skew matrix has the noise of one entry, the authors' of a difference of two"),
    "prior_std": (0.01 / 2**0.5, "the same"),
}


def _of(method: str, rate: float, steps: tuple[int, str], **more: tuple[Any, str]) -> dict[str, tuple[Any, str]]:
    common = {
        "method": (method, "section 5.1"),
        "learning_rate": (rate, "section 5.1"),
        "train_batch_size": (1, "section 5.1"),
        "steps_per_image": steps,
    }
    return common | more | _PICTURES


_AUTHORS = {
    "rare_token": ("qwe", "the scripts"),
    "num_class_images": (200, "the scripts; the paper says 200 per image"),
}
_EIGHT_BITS = {"use_8bit_adam": (True, "the script")}

RECIPES: Mapping[str, Recipe] = {
    "paper-dreambooth": Recipe(
        "DreamBooth as the paper's text has it",
        _of("full", 5e-6, (200, "section 5.1; 250 for people, 400 for SD 2.0"), **_PRIOR),
        _DEVIATIONS | {"where": ("linear", "section 5.1: linear layers without cross-attention")},
    ),
    "paper-lora": Recipe(
        "LoRA as the paper's text has it, without prior preservation",
        _of("lora", 1e-4, (400, "section 5.1"), rank=(4, "the authors' default")),
        _DEVIATIONS,
    ),
    "paper-oft": Recipe(
        "OFT as the paper's text has it, without prior preservation",
        _of("oft", 1e-4, (200, "the script: 1200 for 6 images"), oft_blocks=(4, "the authors' default")),
        _OFT_DEVIATIONS,
    ),
    "authors-dreambooth": Recipe(
        "DreamBooth as the authors' script runs it: plain with 8-bit Adam, Bayesian with 32 bits",
        _of("full", 5e-6, (200, "the script: 1200 for 6 images"), **_PRIOR, **_AUTHORS),
        _DEVIATIONS | {"where": ("linear", "the flags convert_linear, convert_ff without convert_attn2")},
        _EIGHT_BITS,
    ),
    "authors-lora": Recipe(
        "LoRA as the authors' script runs it: with prior preservation, which the paper says it had not",
        _of("lora", 1e-4, (400, "the script: 2400 for 6 images"), rank=(4, "the script"), **_PRIOR, **_AUTHORS),
        _DEVIATIONS,
    ),
    "authors-oft": Recipe(
        "OFT as the authors' script runs it: with prior preservation and 8-bit Adam (theirs is Bayesian in up blocks "
        "alone, which this program's is not)",
        _of("oft", 1e-4, (200, "the script"), oft_blocks=(4, "the script"), **_PRIOR, **_AUTHORS, **_EIGHT_BITS),
        _OFT_DEVIATIONS,
    ),
    "recommended": Recipe(
        "what this project recommends: the model's own rate, and averaged weights",
        {
            "use_ema": (True, "docs/corruption.md: averaging takes the mottles of too high a rate away"),
            "export_weights": ("ema", "the same"),
        },
    ),
}
