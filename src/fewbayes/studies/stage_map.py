"""Where the corruption stage appears: one setting at a time is changed from a regime that has it.

Learning rate, number of images, rank and kind of method, guidance, sampler and its steps, and the optimizer; texture is
told by the subjects. Weights are the raw ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbayes.errors import UserError
from fewbayes.models import inspect_model
from fewbayes.studies.grids import first_images, make_cells, named_subjects, run_cells
from fewbayes.studies.runner import Arm
from fewbayes.world.scenes import SUBJECTS

NAME = "map"
QUESTION = "Where does the corruption stage appear, and what moves its onset, its depth and its end?"
CHECKPOINTS = 8
FEWER_IMAGES = (1, 2)
CENTRE = Arm("centre", "the regime itself", {})


def axes(rate: float, method: str) -> dict[str, list[Arm]]:
    """Settings by axis, each a change of the regime `CENTRE`."""
    lora, full = {"method": "lora", "rank": 16}, {"method": "full", "rank": 4}
    methods = {
        "full": [
            _arm("LoRA of rank 16, the same rate", **lora),
            _arm("LoRA of rank 16, rate 3 x", **lora, learning_rate=3 * rate),
            _arm("LoRA of rank 64, the same rate", **lora | {"rank": 64}),
            _arm("OFT, rate 3 x", method="oft", learning_rate=3 * rate),
        ],
        "lora": [
            _arm("LoRA of rank 4", rank=4),
            _arm("LoRA of rank 64", rank=64),
            _arm("full, a fifth of the rate", **full, learning_rate=rate / 5),
            _arm("OFT, the same rate", method="oft", rank=4),
        ],
    }
    return {
        "learning rate": [_arm(f"rate {factor:g} x", learning_rate=factor * rate) for factor in (0.1, 0.3, 0.6, 3)],
        "method and size": methods[method],
        "guidance": [_arm(f"guidance {scale:g}", guidance_scale=scale) for scale in (1.0, 3.0)],
        "sampler": [
            _arm("DPM++, 25 steps", sampler="dpm++"),
            _arm("PNDM, 25 steps", sampler="pndm"),
            _arm("DDIM, 100 steps", num_inference_steps=100),
        ],
        "optimizer": [
            _arm("beta2 0.9", adam_beta2=0.9),
            _arm("batch of 2", train_batch_size=2),
            _arm("min-SNR 5", snr_gamma=5.0),
        ],
    }


def _arm(label: str, **changes: Any) -> Arm:
    name = "".join(letter if letter.isalnum() or letter in ".+" else "-" for letter in label.replace(",", ""))
    return Arm(name, label, changes)


def run_map(arguments: Sequence[str]) -> Path:
    """`fewbayes experiment map`: the file of results, to be made into a table and a picture."""
    asked = _parser().parse_args(arguments)
    if asked.quick:
        asked.seeds, asked.steps = 1, CHECKPOINTS
    if asked.seeds < 1 or asked.steps < CHECKPOINTS:
        raise UserError(
            f"--seeds is {asked.seeds} and --steps {asked.steps}; there must be 1 and {CHECKPOINTS} or more"
        )
    card = inspect_model(asked.model)
    world, folder = asked.model == "tiny", asked.output_dir
    subjects = named_subjects(asked.subjects, asked.photographs, folder, card.resolution, world=world)
    base = {
        "model": asked.model,
        "method": asked.method,
        **({"rank": 16} if asked.method == "lora" else {}),
        "learning_rate": asked.learning_rate,
        "center_crop": True,
        "max_train_steps": asked.steps,
        "validation_steps": asked.steps // CHECKPOINTS,
        "checkpointing_steps": 0,
        "num_validation_images": 2,
        "num_inference_steps": asked.num_inference_steps,
    }
    encoders = asked.encoders or ("embedded" if world else "paper")
    grid = {axis: arms for axis, arms in axes(asked.learning_rate, asked.method).items() if axis in asked.axes}
    everywhere = [CENTRE, *(arm for arms in grid.values() for arm in arms)]
    cells = make_cells(folder, base, [(s, None) for s in subjects], everywhere, range(asked.seeds), encoders)
    if IMAGES in asked.axes:
        fewer = [(s, count) for s in subjects for count in FEWER_IMAGES if count < first_images(s, None)[1]]
        cells += make_cells(folder, base, fewer, [CENTRE], range(asked.seeds), encoders)
    facts = {
        "title": "Where the corruption stage appears",
        "question": QUESTION,
        "settings": base,
        "axes": {axis: [arm.name for arm in arms] for axis, arms in grid.items()},
    }
    return run_cells(cells, folder, NAME, facts, asked.workers)


IMAGES = "number of images"


def _parser() -> argparse.ArgumentParser:
    names = [*axes(1, "full"), IMAGES]
    parser = argparse.ArgumentParser("fewbayes experiment map", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/map"))
    parser.add_argument("--model", default="tiny")
    parser.add_argument("--subjects", nargs="*", default=[], metavar="NAME", help=f"of {', '.join(SUBJECTS)}")
    parser.add_argument("--photographs", nargs="*", default=[], metavar="DIR:CLASS", help="all images of a folder")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--method", choices=("full", "lora"), default="full", help="of the regime itself [full]")
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=1e-3, metavar="RATE")
    parser.add_argument("--num_inference_steps", "--num-inference-steps", type=int, default=25)
    parser.add_argument("--axes", nargs="+", default=names, choices=names, metavar="AXIS", help=", ".join(names))
    parser.add_argument("--encoders", metavar="embedded|paper|DIR", help="[embedded for the model tiny, else paper]")
    parser.add_argument("--workers", type=int, help="trainings at a time [one per core]")
    parser.add_argument("--quick", action="store_true", help=f"a look: 1 seed, {CHECKPOINTS} steps")
    return parser
