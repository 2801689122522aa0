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

from fewbayes.runs.layout import REFERENCE, SAMPLES, read_listing, sample_folders
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
Pixels = Sequence[np.ndarray]


def score_run(folder: Path, encoders: dict[str, Any], rare_token: str) -> dict[str, Any]:
    """The scores of a finished, sampled run; made anew where encoders, rare token, pictures or QUANTITIES are others.

    Returns {"training": scores of the training images, "raw": [...], "ema": [...]}, one dictionary of QUANTITIES with
    "step" per sampled checkpoint in order. Step 0 is the base model.
    """
    made_of = {"encoders": identities(encoders), "rare_token": rare_token, "quantities": list(QUANTITIES)}
    made_of["pictures"] = content(folder / REFERENCE, folder / SAMPLES)
    return remember(folder / FILE, made_of, lambda: _score_run(folder, encoders, rare_token))


def _score_run(folder: Path, encoders: dict[str, Any], rare_token: str) -> dict[str, Any]:
    steps = sample_folders(folder)
    judge = Judge(encoders, open_pictures(folder / REFERENCE), rare_token)
    corrupted = corruption_beside(pixels(drawn(steps[BASE])[0]), pixels(judge.references))
    result: dict[str, Any] = {TRAINING: judge.of_training(), "ema": []}
    for weights in ("raw", "ema") if drawn(max(steps.items())[1], "ema")[0] else ("raw",):
        result[weights] = []
        for step, path in steps.items():
            # Before the first step raw and averaged weights are one.
            pictures, prompts = drawn(path, "raw" if step == BASE else weights)
            if pictures:
                score = {"step": step, "corruption": corrupted(pixels(pictures))}
                result[weights].append(score | judge.scores(pictures, prompts))
    return result


def drawn(samples: Path, weights: str = "raw") -> tuple[list[Image.Image], list[str]]:
    """The pictures in a folder of samples that were drawn from these weights, and their prompts."""
    rows = [row for row in read_listing(samples) if row.weights == weights]
    return [_open(samples / row.file) for row in rows], [row.prompt or "" for row in rows]


def open_pictures(folder: Path) -> list[Image.Image]:
    """The PNGs of a folder by name."""
    return [_open(path) for path in sorted(folder.glob("*.png"))]


def _open(path: Path) -> Image.Image:
    with Image.open(path) as picture:
        return picture.convert("RGB")


def pixels(pictures: Sequence[Image.Image]) -> list[np.ndarray]:
    return [np.asarray(picture) for picture in pictures]


def corruption_beside(base: Pixels, real: Pixels) -> Callable[[Pixels], float]:
    """The monitor's score of pictures beside those of the base model, which come in the same order, and real ones."""
    twins, training = describe(base, real, base), describe(real, real)
    return lambda pictures: corruption(describe(pictures, real, base), twins, training)


@cache
def encoders_of(which: str) -> dict[str, Any]:
    """Loaded once a process."""
    from fewbayes.metrics.encoders import load_encoders

    return load_encoders(which)


def identities(encoders: dict[str, Any]) -> dict[str, list[str]]:
    """Names and fingerprints of the encoders that score."""
    used = ("clip", "dino", "lpips", "clip_iqa")
    return {key: [encoders[key].identity.name, encoders[key].identity.fingerprint] for key in used}


@dataclass(frozen=True)
class Judge:
    """Evaluators, and the training images and the rare token of what they are shown."""

    encoders: dict[str, Any]
    references: Sequence[Image.Image]
    rare_token: str

    def scores(self, pictures: Sequence[Image.Image], prompts: Sequence[str]) -> dict[str, float]:
        """QUANTITIES, but for corruption, of pictures that were made with these prompts."""
        from fewbayes.metrics import scores

        clip, dino, lpips = (self.encoders[key] for key in ("clip", "dino", "lpips"))
        likeness = scores.fidelity(dino.images(pictures), dino.images(self.references))
        told = clip.texts([scores.without_token(prompt, self.rare_token) for prompt in prompts])
        groups = [
            lpips.distances([picture for picture, its in zip(pictures, prompts, strict=True) if its == prompt])
            for prompt in dict.fromkeys(prompts)
        ]
        return {
            "fidelity": likeness.mean,
            "nearest": likeness.nearest,
            "prompt": float(scores.prompt_scores(clip.images(pictures), told).mean()),
            "diversity": scores.diversity(groups).value,
        } | self._alone(pictures)

    def of_training(self) -> dict[str, float]:
        """What perfect pictures of the subject would score, as far as one can say."""
        from fewbayes.metrics import scores

        found = self._alone(self.references)
        if len(self.references) > 1:
            real = scores.real_fidelity(self.encoders["dino"].images(self.references))
            diversity = scores.diversity([self.encoders["lpips"].distances(self.references)]).value
            found |= {"fidelity": real.mean, "nearest": real.nearest, "diversity": diversity}
        return found

    def _alone(self, pictures: Sequence[Image.Image]) -> dict[str, float]:
        """What needs nothing beside the pictures."""
        from fewbayes.metrics.pixels import haar_noise
        from fewbayes.metrics.scores import quality

        iqa = self.encoders["clip_iqa"]
        return {
            "quality": float(quality(iqa.images(pictures), iqa.anchors, iqa.scale).mean()),
            "noise": float(np.mean([haar_noise(picture) for picture in pixels(pictures)])),
        }
