"""`fewbayes diagnose`: the stage of a model that somebody has trained, and what explains it. Nothing is trained.

All that is found lies in one folder: diagnosis.json and pictures/. Knows nothing of pages.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from fewbayes.diagnose.ask import SAMPLERS, Asked, settle
from fewbayes.diagnose.verdict import Diagnosis, spoken
from fewbayes.files.atomic import atomic_folder

log = logging.getLogger(__name__)


def diagnose(asked: Asked) -> Diagnosis:
    """Look at the source and its base model, judge, try the look-alikes; writes `output_dir`, which must be new."""
    case = settle(asked)
    for note in case.images.notes:
        log.info("%s: %s", case.images.folder, note)
    began = time.monotonic()
    from fewbayes.diagnose.course import single, timeline  # with torch, which no refusal waits for
    from fewbayes.diagnose.examine import Book

    with atomic_folder(asked.output_dir, new=True) as folder:
        book = Book(case, folder)
        diagnosis = timeline(book) if case.kept else single(book)
        book.write(diagnosis, time.monotonic() - began)
    return diagnosis


def run_diagnose(arguments: Sequence[str], page: Callable[[Path], Path] | None = None) -> int:
    """The command `fewbayes diagnose`; 0 whatever the verdict. page: writes the page of the folder, its path."""
    asked = Asked(**vars(_parser().parse_args(list(arguments))))
    diagnosis = diagnose(asked)
    print("\n".join(spoken(diagnosis)))
    written = page(Path(asked.output_dir)) if page else asked.output_dir
    print(f"\ndone: {written}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "fewbayes diagnose",
        description="The stage of a trained model (underfit, good, corrupted, memorised) and what explains it.",
    )
    add = parser.add_argument
    add("source", help="run folder, its checkpoint-N, pipeline folder, LoRA file or PEFT folder of any trainer")
    add("--output_dir", "--output-dir", required=True, help="a new or empty folder")
    add("--base", metavar="MODEL", help="the model that a pipeline or adapter came from; runs know theirs")
    add("--instance_data_dir", "--instance-data-dir", metavar="DIR", help="the training images [the run's]")
    add(
        "--instance_prompt", "--instance-prompt", metavar="P", help="as trained with; <v> is the rare token [the run's]"
    )
    add("--rare_token", "--rare-token", metavar="W", help="the word that <v> stands for [the run's or the model's]")
    add("--sampler", choices=SAMPLERS, help="the one you use [the run's, or ddim]")
    add("--num_inference_steps", "--num-inference-steps", type=_positive, metavar="N", help="[the run's, or 25]")
    add("--guidance_scale", "--guidance-scale", type=float, metavar="X", help="1 is none [the run's, or 7.5]")
    add("--negative_prompt", "--negative-prompt", metavar="TEXT", help="[the run's, or none]")
    add("--num_images", "--num-images", type=_positive, default=4, metavar="N", help="[4]")
    add("--seed", type=int, default=0, help="of the first image; image i has seed + i [0]")
    add("--weights", choices=("raw", "ema"), help="of a run or checkpoint [what a run exported]")
    add("--checkpoints", action="store_true", help="all checkpoints of a run in order, and which one to keep")
    return parser


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value
