"""What holding one image out costs: the same training with all images and without the last one, paired.

Six drawn subjects, full fine-tuning of the embedded model at its own rate, equal steps and seeds, five images and
three. At the end eight pictures of the training prompt and two in each of four settings that no training image has.
Likeness is Dino's with eight photographs that neither training saw, quality P(good) of fewbayes-clip, corruption the
monitor's score of the training prompt's pictures; in all three the difference is held out less all. The margins and
the rule are those of docs/lab-log.md. Resumable: one file a training.

    OMP_NUM_THREADS=1 python benchmarks/held_out.py runs/held_out
"""

import argparse
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewbayes.metrics.encoders import load_encoders
from fewbayes.metrics.scores import fidelity, quality
from fewbayes.metrics.statistics import compare
from fewbayes.models import load_family
from fewbayes.models.sampling import sample_images
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig
from fewbayes.stage.monitor import corruption
from fewbayes.stage.samples import describe
from fewbayes.studies.memo import remember
from fewbayes.training.train import train
from fewbayes.world.scenes import SUBJECTS, render
from fewbayes.world.settings import SETTINGS

NAMES = ("flame_car", "swirl_mug", "mosaic_teapot", "zigzag_backpack", "ringed_cat", "patchwork_bird")
IMAGES, SEEDS, STEPS = (5, 3), 2, 200
PICTURES, ELSEWHERE, SAMPLER_STEPS, UNSEEN = 8, 4, 16, 8
MARGINS = {"likeness": -0.02, "quality": -0.02, "corruption": 0.05}
"""What is no cost: the interval's bad end stays on this side."""


def photographs(name: str) -> tuple[list[Image.Image], list[Image.Image], list[str]]:
    """Five to train on, each in a setting of its own; UNSEEN others; and settings that none of the five has."""
    subject = SUBJECTS[name]
    places = [*subject.settings, *(place for place in SETTINGS if place not in subject.settings)]
    rest = places[max(IMAGES) :]
    view = int.from_bytes(name.encode()[:6], "big")

    def drawn(setting: str, index: int) -> Image.Image:
        pixels = render(replace(subject.look, setting=setting), view + 1000 * index, occlusion=0)
        return Image.fromarray((255 * pixels).round().astype(np.uint8))

    shown = [drawn(setting, i) for i, setting in enumerate(places[: max(IMAGES)])]
    return shown, [drawn(rest[i % len(rest)], 100 + i) for i in range(UNSEEN)], rest[:ELSEWHERE]


def look_at(work: Path, name: str, images: int, seed: int, held_out: bool) -> dict[str, float]:
    begin = time.process_time()
    shown, unseen, elsewhere = photographs(name)
    place = work / "training"
    shutil.rmtree(place, ignore_errors=True)
    (place / "photographs").mkdir(parents=True)
    for i, picture in enumerate(shown[:images]):
        picture.save(place / "photographs" / f"{i}.png")
    prompt = f"a photo of a <v> {SUBJECTS[name].class_word}"
    config = TrainConfig(
        model="tiny",
        instance_data_dir=str(place / "photographs"),
        instance_prompt=prompt,
        output_dir=str(place / "run"),
        max_train_steps=STEPS,
        checkpointing_steps=0,
        held_out=held_out,
        seed=seed,
    )
    run = train(config, progress=False).folder
    there = [f"{prompt} {SETTINGS[setting].phrase}" for setting in elsewhere for _ in range(2)]
    prompts, seeds = [prompt] * PICTURES + there, range(PICTURES + len(there))
    encoders: Any = load_encoders("embedded")
    dino, good = encoders["dino"], encoders["clip_iqa"]
    made = sample_images(load_family(str(run)), prompts, seeds, steps=SAMPLER_STEPS)
    base = sample_images(load_family("tiny"), prompts[:PICTURES], seeds[:PICTURES], steps=SAMPLER_STEPS)
    known, twins, mine = ([np.asarray(p) for p in part] for part in (shown[:images], base, made[:PICTURES]))
    real, of_made = dino.images(unseen), dino.images(made)
    training = dino.images(shown[: images - 1])
    return {
        "likeness": fidelity(of_made, real).mean,
        "likeness_same_prompt": fidelity(of_made[:PICTURES], real).mean,
        "likeness_elsewhere": fidelity(of_made[PICTURES:], real).mean,
        "likeness_to_trained": fidelity(of_made[:PICTURES], training).mean,
        "quality": float(quality(good.images(made), good.anchors, good.scale).mean()),
        "corruption": corruption(describe(mine, known, twins), describe(twins, known, twins), describe(known, known)),
        "cpu_seconds": time.process_time() - begin,
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for images in IMAGES:
        told: dict[str, Any] = {}
        for measure in ("likeness", "likeness_same_prompt", "likeness_elsewhere", "quality", "corruption"):
            apart, whole = (
                {
                    (row["subject"], row["seed"]): row[measure]
                    for row in rows
                    if row["images"] == images and row["held_out"] is held
                }
                for held in (True, False)
            )
            got = compare(apart, whole, better=-1 if measure == "corruption" else 1)
            low, high = got.difference.low, got.difference.high
            told[measure] = {
                "all": float(np.mean(list(whole.values()))),
                "difference": got.difference.mean,
                "interval": [low, high],
                "subjects": got.difference.subjects,
                "pairs": got.difference.units,
                "p": got.p,
            }
            if measure in MARGINS and low is not None and high is not None:
                margin = MARGINS[measure]
                told[measure]["no_cost"] = bool(low > margin if margin < 0 else high < margin)
        told["no_cost"] = all(told[measure].get("no_cost", False) for measure in MARGINS)
        found[str(images)] = told
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "held_out.json")
    asked = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for seed in range(SEEDS):
        for name in NAMES:
            for images in IMAGES:
                for held_out in (False, True):
                    cell = {"subject": name, "images": images, "seed": seed, "held_out": held_out}
                    file = asked.runs / f"{name}-{images}-seed{seed}-{'held' if held_out else 'all'}.json"
                    made_of = cell | {"steps": STEPS, "pictures": PICTURES, "sampler_steps": SAMPLER_STEPS}
                    args = (asked.runs, name, images, seed, held_out)
                    rows.append(cell | remember(file, made_of, lambda args=args: look_at(*args)))
                    print(file.stem, round(rows[-1]["cpu_seconds"], 1), flush=True)
    told = {"margins": MARGINS, "summary": summary(rows), "trainings": rows, "environment": environment(None)}
    asked.output.write_text(json.dumps(told, indent=1) + "\n")
    print(json.dumps(told["summary"], indent=1))


if __name__ == "__main__":
    main()
