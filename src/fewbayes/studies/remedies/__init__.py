"""What removes the corruption stage: Bayesian weights, a lower rate, averages, a pull to the start, dropout, more
sampler steps, or a learned rare token? Same pictures, timesteps, noise and sampling seeds in every arm.

Averaged weights, the mean of the last checkpoints and more sampler steps are measured in every arm, on the same
trainings. Written are `remedies.json` with every number, tables, curves, and for each subject a strip of samples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.files.decode import read_json
from fewbayes.studies import study
from fewbayes.studies.flags import asked
from fewbayes.studies.followed import CHECKPOINTS, FollowedFlags, follow, trainings
from fewbayes.studies.grid import Arm
from fewbayes.studies.remedies.pictures import draw, shown
from fewbayes.studies.remedies.tables import tables

NAME = "remedies"
QUESTION = (
    "In a regime with a corruption stage that lasts: what shortens it, what softens it, and is it more than what a "
    "lower rate or averaged weights give?"
)
STDS = {"full": (0.01, 0.03, 0.1), "lora": (0.01, 0.1, 0.3, 1.0)}
"""Standard deviations by method, the paper's first. Full: of trained weights that spread by 0.03 to 0.07 themselves;
LoRA: of up matrices that begin at zero."""
FIXED = {"full": 0.03, "lora": 0.3}
PULLS = {"full": (10.0,), "lora": (10.0, 40.0)}


def arms(rate: float, method: str) -> dict[str, Arm]:
    """The first is what the others are compared with."""

    def arm(name: str, label: str, note: str, **changes: Any) -> Arm:
        return Arm(name, label, {"learning_rate": rate} | changes, note)

    def bayesian(std: float) -> Arm:
        note = f"standard deviation {std:g}, learned elementwise, no divergence in the loss"
        return arm(f"bayes-{std:g}", f"Bayesian, {std:g}", note, bayes=True, weight_std=std)

    def pulled(weight: float) -> Arm:
        note = f"each step takes {weight:g} x rate of the distance to the initial weights away"
        return arm(f"l2-{weight:g}", f"Pull to the start, {weight:g}", note, l2_init_weight=weight)

    fixed = {"bayes": True, "weight_std": FIXED[method], "weight_std_learn": "fixed"}
    chosen = [
        arm("plain", "Plain", f"AdamW at {rate:g}"),
        *map(bayesian, STDS[method]),
        arm("fixed", f"Fixed noise, {FIXED[method]:g}", "as Bayesian, the deviations not learned", **fixed),
        arm("slow", "Plain, quarter rate", f"AdamW at {rate / 4:g}", learning_rate=rate / 4),
        arm(
            "slow-bayes",
            f"Bayesian, {FIXED[method]:g}, quarter rate",
            "both",
            learning_rate=rate / 4,
            bayes=True,
            weight_std=FIXED[method],
        ),
        *map(pulled, PULLS[method]),
        arm("caption-dropout", "Caption dropout", "one example in ten under the empty caption", caption_dropout=0.1),
        arm("dropout", "Dropout", "noise on activations: the denoiser's dropout layers at 0.1", dropout=0.1),
    ]
    if method == "full":  # up matrices of a LoRA have no spread to be relative to
        relative = {"bayes": True, "weight_std": 0.3, "weight_std_mode": "relative"}
        note = "standard deviation 0.3 of each weight matrix's own spread, learned elementwise"
        chosen.append(arm("relative", "Bayesian, 0.3 of the spread", note, **relative))
    else:
        token = {"train_rare_token": True, "text_encoder_lr": 4 * rate}
        chosen.append(arm("token", "Rare token learned", f"its embedding trained too, at {4 * rate:g}", **token))
    return {arm.name: arm for arm in chosen}


@dataclass(frozen=True, kw_only=True)
class RemediesFlags(FollowedFlags):
    output_dir: Path = Path("runs/remedies")
    rank: int = setting(16, at_least=1)
    """Of lora."""
    arms: tuple[str, ...] = setting((), several=True, value="ARM")
    """All without it; a wrong one is answered with the list."""
    fewer_seeds: tuple[str, ...] = setting((), several=True, value="ARM=N")
    """Arms with the first N seeds only."""
    num_images: int = setting(2, at_least=2)
    """Samples per prompt and checkpoint; diversity is between them."""
    monitor_steps: int = setting(0, at_least=0)
    """The stage monitor looks every so many steps, 0 for never."""
    sampler: str | None = None
    """Of the samples. None: the model's usual one."""
    guidance_scale: float = setting(7.5, at_least=0)
    """Of the samples."""
    shown: tuple[str, ...] = setting((), several=True, value="ARM")
    """The arms in the pictures; without it a few of each kind."""


@study("remedies", "what removes the corruption stage: Bayesian weights, lower rates, averages, and other controls")
def run_remedies(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its tables and its pictures."""
    flags = asked(RemediesFlags, arguments, NAME, __doc__)
    return write(flags.redraw or _train(replace(flags, seeds=1, steps=20) if flags.quick else flags), flags.shown)


def write(file: Path, arms: Sequence[str] = ()) -> list[Path]:
    """Tables, and pictures of some arms, beside the results `file`; all of them."""
    told = read_json(file, dict[str, Any])
    known = {arm["name"]: arm for arm in told["arms"]}
    target = file.with_suffix(".md")
    atomic_write(target, tables(told))
    return [file, target, *draw(told, file, _named(arms, known) if arms else shown(told))]


def _train(flags: RemediesFlags) -> Path:
    subjects = flags.study_subjects()
    every = flags.steps // CHECKPOINTS
    base = {
        "model": flags.model,
        "method": flags.method,
        **({"rank": flags.rank} if flags.method == "lora" else {}),
        "use_ema": True,
        "center_crop": True,
        "max_train_steps": flags.steps,
        "validation_steps": every,
        "checkpointing_steps": every,
        "num_validation_images": flags.num_images,
        "sampler": flags.sampler,
        "num_inference_steps": flags.num_inference_steps,
        "guidance_scale": flags.guidance_scale,
        "monitor_steps": flags.monitor_steps,
    }
    known = arms(flags.learning_rate, flags.method)
    chosen = [known[name] for name in _named(list(dict.fromkeys(flags.arms or known)), known)]
    grid = trainings(flags.output_dir, base, subjects, chosen, range(flags.seeds))
    fewer = dict(_arm_and_number(text, known) for text in flags.fewer_seeds)
    cells = [cell for cell in grid if cell.seed < fewer.get(cell.arm.name, flags.seeds)]
    facts = {"title": "What removes the corruption stage", "question": QUESTION, "settings": base, "against": "plain"}
    return follow(cells, flags.output_dir, NAME, facts, flags.evaluators, flags.workers)


def _named(names: Sequence[str], known: Mapping[str, Any]) -> Sequence[str]:
    unknown = [name for name in names if name not in known]
    if unknown:
        raise UserError(f"{', '.join(unknown)} is not among the arms {', '.join(known)}")
    return names


def _arm_and_number(text: str, known: Mapping[str, Arm]) -> tuple[str, int]:
    arm, _, number = text.rpartition("=")
    if not number.isdecimal():
        raise UserError(f"--fewer_seeds {text!r} is not ARM=N, as in dropout=2")
    return _named([arm], known)[0], int(number)
