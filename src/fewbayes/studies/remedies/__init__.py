"""What removes the corruption stage: Bayesian weights, a lower rate, averages, a pull to the start, dropout, more
sampler steps, or a learned rare token? Same pictures, timesteps, noise and sampling seeds in every arm.

Averaged weights, the mean of the last checkpoints and more sampler steps are measured in every arm, on the same
trainings. Written are `remedies.json` with every number, tables, curves, and for each subject a strip of samples.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_write
from fewbayes.models import inspect_model
from fewbayes.studies import study
from fewbayes.studies.followed import follow, trainings
from fewbayes.studies.grid import Arm
from fewbayes.studies.remedies.pictures import draw, shown
from fewbayes.studies.remedies.tables import tables
from fewbayes.studies.subjects import named_subjects
from fewbayes.world.scenes import SUBJECTS

NAME = "remedies"
QUESTION = (
    "In a regime with a corruption stage that lasts: what shortens it, what softens it, and is it more than what a "
    "lower rate or averaged weights give?"
)
CHECKPOINTS = 8
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


@study(NAME, "what removes the corruption stage: Bayesian weights, lower rates, averages, and other controls")
def run_remedies(arguments: Sequence[str]) -> list[Path]:
    """The file of results, its tables and its pictures."""
    asked = _parser().parse_args(arguments)
    return write(asked.redraw or _train(asked), asked.shown)


def write(file: Path, arms: Sequence[str] | None = None) -> list[Path]:
    """Tables, and pictures of some arms, beside the results `file`; all of them."""
    told = json.loads(file.read_text(encoding="utf-8"))
    known = {arm["name"]: arm for arm in told["arms"]}
    target = file.with_suffix(".md")
    atomic_write(target, tables(told))
    return [file, target, *draw(told, file, _named(arms, known) if arms else shown(told))]


def _train(asked: argparse.Namespace) -> Path:
    if asked.quick:
        asked.seeds, asked.steps = 1, 20
    if asked.seeds < 1 or asked.steps < CHECKPOINTS:
        raise UserError(
            f"--seeds is {asked.seeds} and --steps {asked.steps}; there must be 1 and {CHECKPOINTS} or more"
        )
    if asked.num_images < 2:
        raise UserError(f"--num_images is {asked.num_images}; it must be 2 or more: diversity is between samples")
    card = inspect_model(asked.model)
    world, folder = asked.model == "tiny", asked.output_dir
    subjects = named_subjects(asked.subjects, asked.photographs, folder, card.resolution, world=world)
    every = asked.steps // CHECKPOINTS
    base = {
        "model": asked.model,
        "method": asked.method,
        **({"rank": asked.rank} if asked.method == "lora" else {}),
        "use_ema": True,
        "center_crop": True,
        "max_train_steps": asked.steps,
        "validation_steps": every,
        "checkpointing_steps": every,
        "num_validation_images": asked.num_images,
        "sampler": asked.sampler,
        "num_inference_steps": asked.num_inference_steps,
        "guidance_scale": asked.guidance_scale,
        "monitor_steps": asked.monitor_steps,
    }
    known = arms(asked.learning_rate, asked.method)
    chosen = [known[name] for name in _named(list(dict.fromkeys(asked.arms or known)), known)]
    encoders = asked.encoders or ("embedded" if world else "paper")
    grid = trainings(folder, base, subjects, chosen, range(asked.seeds))
    fewer = dict(_arm_and_number(text, known) for text in asked.fewer_seeds)
    cells = [cell for cell in grid if cell.seed < fewer.get(cell.arm.name, asked.seeds)]
    facts = {"title": "What removes the corruption stage", "question": QUESTION, "settings": base, "against": "plain"}
    return follow(cells, folder, NAME, facts, encoders, asked.workers)


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


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("fewbayes experiment remedies", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/remedies"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="DIR:CLASS", help="all images of a folder")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--method", choices=tuple(STDS), default="full")
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=1e-3, metavar="RATE")
    parser.add_argument(
        "--fewer_seeds",
        "--fewer-seeds",
        nargs="*",
        default=[],
        metavar="ARM=N",
        help="arms with the first N seeds only",
    )
    parser.add_argument("--arms", nargs="+", metavar="ARM", help="[all; a wrong one is answered with the list]")
    parser.add_argument(
        "--num_images", "--num-images", type=int, default=2, help="samples per prompt and checkpoint [2]"
    )
    parser.add_argument(
        "--monitor_steps", "--monitor-steps", type=int, default=0, help="watch every N steps [0: never]"
    )
    parser.add_argument("--sampler", default="ddim")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", type=int, default=25)
    parser.add_argument("--guidance_scale", "--guidance-scale", type=float, default=7.5)
    parser.add_argument("--encoders", metavar="embedded|paper|DIR", help="[embedded for the model tiny, else paper]")
    parser.add_argument(
        "--redraw", type=Path, metavar="FILE", help="tables and pictures of a remedies.json again; trains nothing"
    )
    parser.add_argument("--shown", nargs="+", metavar="ARM", help="the arms in the pictures [a few of each kind]")
    parser.add_argument("--workers", type=int, help="trainings at a time [one per core]")
    parser.add_argument("--quick", action="store_true", help="a look: 1 seed, 20 steps")
    return parser
