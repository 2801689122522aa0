"""What evaluators say of a run's samples, checkpoint by checkpoint: the curves that the corruption stage is seen in.

A run keeps the pictures of its checkpoints, from raw weights and, where it averages, from averaged ones; here they are
scored, once, into `trajectory.json` beside them. Knows folders of pictures, encoders and the stage monitor's score, and
nothing of arms or of how the run was trained.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from fewbayes.files.decode import read_json
from fewbayes.runs.layout import LISTING
from fewbayes.stage.monitor import corruption
from fewbayes.stage.samples import describe
from fewbayes.studies.memo import content, remember

FILE = "trajectory.json"
QUANTITIES = {
    "quality": "P(good): the share of the better of two antonyms, in [0, 1]",
    "fidelity": "Dino: cosine with the training images, mean over all pairs",
    "nearest": "Dino: cosine with the likest training image",
    "prompt": "Clip-T: cosine with the picture's own prompt, the rare token left out",
    "diversity": "distance of pictures of one prompt, mean over pairs",
    "noise": "Haar's median deviation, in grey levels",
    "corruption": "the stage monitor's score of the pictures beside the base model's, in [0, 1]; needs no evaluator",
}
"""What is scored; all but the last are the mean over the pictures of a checkpoint."""
TRAINING, BASE = "training", 0


def score_run(folder: Path, encoders: dict[str, Any], rare_token: str) -> dict[str, Any]:
    """The scores of a finished, sampled run; made anew where encoders, rare token, pictures or QUANTITIES are others.

    Returns {"training": scores of the training images, "raw": [...], "ema": [...]}, one dictionary of QUANTITIES with
    "step" per sampled checkpoint in order. Step 0 is the base model.
    """
    made_of = {"encoders": identities(encoders), "rare_token": rare_token, "quantities": list(QUANTITIES)}
    made_of["pictures"] = content(folder / "reference", folder / "samples")
    return remember(folder / FILE, made_of, lambda: _score_run(folder, encoders, rare_token))


def _score_run(folder: Path, encoders: dict[str, Any], rare_token: str) -> dict[str, Any]:
    steps = sorted((folder / "samples").glob("step-*"), key=_step)
    references = open_pictures(folder / "reference")
    result: dict[str, Any] = {TRAINING: _of_training(references, encoders), "ema": []}
    corrupted = _beside(_pixels(steps[0], _rows(steps[0], "raw")), references)
    for weights in ("raw", "ema") if _rows(steps[-1], "ema") else ("raw",):
        result[weights] = [
            {"step": _step(path), "corruption": corrupted(_pixels(path, rows))}
            | _scores(path, rows, references, encoders, rare_token)
            for path in steps
            if (rows := _rows(path, weights))
        ]
    return result


@cache
def encoders_of(which: str) -> dict[str, Any]:
    """Loaded once a process."""
    from fewbayes.metrics.encoders import load_encoders

    return load_encoders(which)


def identities(encoders: dict[str, Any]) -> dict[str, list[str]]:
    """Names and fingerprints of the encoders that score."""
    used = ("clip", "dino", "lpips", "clip_iqa")
    return {key: [encoders[key].identity.name, encoders[key].identity.fingerprint] for key in used}


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step-"))


def open_pictures(folder: Path) -> list[Image.Image]:
    """The PNGs of a folder by name."""
    return [_open(path) for path in sorted(folder.glob("*.png"))]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


@dataclass(frozen=True)
class Sampled:
    """What is read of a row of a run's samples.json."""

    file: str
    prompt: str
    seed: int
    weights: str


def read_sampled(folder: Path) -> list[Sampled]:
    """What was drawn at one checkpoint."""
    return read_json(folder / LISTING, list[Sampled])


def _rows(path: Path, weights: str) -> list[Sampled]:
    """What was drawn from these weights; before the first step raw and averaged weights are one."""
    wanted = "raw" if weights == "ema" and _step(path) == BASE else weights
    return [row for row in read_sampled(path) if row.weights == wanted]


def _beside(base: Sequence[np.ndarray], references: Sequence[Image.Image]) -> Callable[[Sequence[np.ndarray]], float]:
    """The monitor's score of pictures beside those of the base model, which come in the same order."""
    real = [np.asarray(picture) for picture in references]
    twins, training = describe(base, real, base), describe(real, real)
    return lambda pictures: corruption(describe(pictures, real, base), twins, training)


def _pixels(path: Path, rows: Sequence[Sampled]) -> list[np.ndarray]:
    return [np.asarray(_open(path / row.file)) for row in rows]


def _scores(
    path: Path,
    rows: Sequence[Sampled],
    references: Sequence[Image.Image],
    encoders: dict[str, Any],
    rare_token: str,
) -> dict[str, float]:
    pictures = [_open(path / row.file) for row in rows]
    return score_pictures(pictures, [row.prompt for row in rows], references, encoders, rare_token)


def score_pictures(
    pictures: Sequence[Image.Image],
    prompts: Sequence[str],
    references: Sequence[Image.Image],
    encoders: dict[str, Any],
    rare_token: str,
) -> dict[str, float]:
    """What evaluators say of pictures that were made with these prompts."""
    from fewbayes.metrics import scores

    plain = [scores.without_token(prompt, rare_token) for prompt in prompts]
    likeness = scores.fidelity(encoders["dino"].images(pictures), encoders["dino"].images(references))
    groups = [
        encoders["lpips"].distances([picture for picture, its in zip(pictures, prompts, strict=True) if its == prompt])
        for prompt in dict.fromkeys(prompts)
    ]
    told = scores.prompt_scores(encoders["clip"].images(pictures), encoders["clip"].texts(plain))
    return {
        "quality": float(_quality(pictures, encoders).mean()),
        "fidelity": likeness.mean,
        "nearest": likeness.nearest,
        "prompt": float(told.mean()),
        "diversity": scores.diversity(groups).value,
        "noise": _noise(pictures),
    }


def _of_training(references: Sequence[Image.Image], encoders: dict[str, Any]) -> dict[str, float]:
    """What perfect pictures of the subject would score, as far as one can say."""
    from fewbayes.metrics import scores

    found = {"quality": float(_quality(references, encoders).mean()), "noise": _noise(references)}
    if len(references) > 1:
        real = scores.real_fidelity(encoders["dino"].images(references))
        diversity = scores.diversity([encoders["lpips"].distances(references)]).value
        found |= {"fidelity": real.mean, "nearest": real.nearest, "diversity": diversity}
    return found


def _quality(pictures: Sequence[Image.Image], encoders: dict[str, Any]) -> np.ndarray:
    from fewbayes.metrics import scores

    judge = encoders["clip_iqa"]
    return scores.quality(judge.images(pictures), judge.anchors, judge.scale)


def _noise(pictures: Sequence[Image.Image]) -> float:
    from fewbayes.metrics.pixels import haar_noise

    return float(np.mean([haar_noise(np.asarray(picture)) for picture in pictures]))
