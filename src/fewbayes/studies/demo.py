"""The demo: one photograph, plain and Bayesian fine-tuning and a lower rate, a few seeds, in minutes on two cores."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from fewbayes.errors import UserError
from fewbayes.studies.one_shot import arms, drawn_photograph, one_photograph, one_shot
from fewbayes.studies.runner import run_experiment
from fewbayes.world.scenes import RARE_TOKEN, SUBJECTS

SUBJECT = "swirl_fish"
RATE, WEIGHT_STD, STEPS, SAMPLE_EVERY = 1e-3, 0.01, 1000, 100


def run_demo(arguments: Sequence[str]) -> Path:
    """Parse the demo's options and run it; the experiment folder, to be made into a page."""
    parser = argparse.ArgumentParser("fewbayes demo", description=__doc__)
    parser.add_argument("--output_dir", "--output-dir", type=Path, default=Path("runs/demo"))
    parser.add_argument("--image", type=Path, help="a photograph of yours instead of a drawn one")
    parser.add_argument("--class_word", "--class-word", help="what it shows, one of the objects of the embedded world")
    parser.add_argument("--subject", default=SUBJECT, choices=list(SUBJECTS), metavar="NAME", help=", ".join(SUBJECTS))
    parser.add_argument("--seeds", type=int, default=3, help="runs per arm [3]")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps per run [{STEPS}]")
    parser.add_argument("--learning_rate", "--learning-rate", type=float, default=RATE, help=f"[{RATE:g}]")
    parser.add_argument("--weight_std", "--weight-std", type=float, default=WEIGHT_STD, help=f"[{WEIGHT_STD:g}]")
    asked = parser.parse_args(arguments)
    for name in ("seeds", "steps"):
        if getattr(asked, name) < 1:
            raise UserError(f"--{name} is {getattr(asked, name)}; it must be 1 or more")
    if asked.image and not asked.class_word:
        raise UserError("--image needs --class_word, the word for what it shows, for instance --class_word backpack")
    folder: Path = asked.output_dir
    if asked.image:
        images, word = one_photograph(asked.image, folder / "photograph"), asked.class_word
    else:
        images, word = drawn_photograph(asked.subject, folder / "photograph"), SUBJECTS[asked.subject].class_word
    known = arms(asked.learning_rate, asked.weight_std)
    experiment = one_shot(
        images,
        f"a photo of a {RARE_TOKEN} {word}",
        word,
        chosen=[known[name] for name in ("plain", "bayes", "slow")],
        steps=asked.steps,
        sample_every=min(SAMPLE_EVERY, asked.steps),
        seeds=range(asked.seeds),
    )
    return run_experiment(experiment, folder)
