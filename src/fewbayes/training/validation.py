"""What is seen of a model while it trains: samples from fixed seeds with their scores, and the training images beside.

Samples are drawn as the user draws them (sampler, steps, guidance, precision), so they show what the user will get.
Leaves training as it was. Knows where pictures lie in a run folder, and nothing of losses, optimizers or stages.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from fewbayes.data.images import numbered
from fewbayes.files.atomic import atomic_folder
from fewbayes.metrics.pixels import haar_noise, image_similarity
from fewbayes.models import Family
from fewbayes.models.sampling import sample_images
from fewbayes.progress import doing
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import HELD_OUT, REFERENCE
from fewbayes.seeds import stream_seed
from fewbayes.settings.config import TrainConfig
from fewbayes.training.batches import Pictures
from fewbayes.training.ema import WeightAverage

SCORED_SIDE = 128  # pixels: larger pictures are averaged down to it before they are correlated with every reference


def write_reference(run: RunFolder, pictures: Pictures) -> None:
    """The training images as the model sees them, cut in the middle where steps cut at random."""
    if (run.path / REFERENCE).is_dir():
        return
    _write_pictures(run.path / REFERENCE, [pictures.centred(i) for i in range(len(pictures))])


def write_held_out(run: RunFolder, pictures: Sequence[np.ndarray]) -> None:
    """Training images that are not trained on, beside those that are."""
    if pictures and not (run.path / HELD_OUT).is_dir():
        _write_pictures(run.path / HELD_OUT, pictures)


def _write_pictures(place: Path, pictures: Sequence[np.ndarray]) -> None:
    with atomic_folder(place) as folder:
        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(folder / numbered(i, len(pictures)))


def sampled_as(config: TrainConfig) -> dict[str, Any]:
    """All that the samples of one model depend on: sets that were sampled alike can be compared picture by picture."""
    prompts = [prompt for prompt in config.validation_prompts for _ in range(config.num_validation_images)]
    return {
        "prompts": [config.with_rare_token(prompt) for prompt in prompts],
        "seeds": [stream_seed(config.seed, "sample", i) for i in range(len(prompts))],
        "negative_prompt": config.negative_prompt,
        "sampler": config.sampler,
        "steps": config.num_inference_steps,
        "guidance": config.guidance_scale,
    } | ({"guidance_interval": config.guidance_interval} if config.guidance_interval else {})


def draw(config: TrainConfig, family: Family, accelerator: Accelerator) -> list[np.ndarray]:
    """The samples of the model as it is now, uint8 (height, width, 3)."""
    with accelerator.autocast():
        pictures = sample_images(
            family, **sampled_as(config), resolution=config.resolution, batch_size=config.sample_batch_size
        )
    return [np.asarray(picture) for picture in pictures]


def validate(
    done: int,
    config: TrainConfig,
    run: RunFolder,
    family: Family,
    average: WeightAverage | None,
    instance: Pictures,
    accelerator: Accelerator,
    unseen: Sequence[np.ndarray] = (),
) -> dict[str, list[np.ndarray]]:
    """Samples of the raw weights and of the averages, in the run folder with their scores; {} beside the main process.

    Before the first step the averages are the weights: one set of samples serves both.
    """
    found: dict[str, list[np.ndarray]] = {}
    if accelerator.is_main_process:
        for weights in ("raw", "ema") if average and done else ("raw",):
            swapped = average.swapped() if average and weights == "ema" else nullcontext()
            with doing(f"Drawing samples at step {done}", quietly=done > 0), swapped:
                found[weights] = draw(config, family, accelerator)
        references = [at_scored_size(instance.centred(i)) for i in range(len(instance))]
        apart = [at_scored_size(picture) for picture in unseen]
        told = {w: [scores(picture, references, apart) for picture in pictures] for w, pictures in found.items()}
        _write_samples(run, done, found, told, config)
        _log_means(run, done, told | ({"ema": told["raw"]} if average and not done else {}))
    accelerator.wait_for_everyone()
    return found


def _write_samples(
    run: RunFolder,
    done: int,
    found: dict[str, list[np.ndarray]],
    told: dict[str, list[dict[str, float]]],
    config: TrainConfig,
) -> None:
    how = sampled_as(config)
    prompts, seeds, negative = how.pop("prompts"), how.pop("seeds"), how.pop("negative_prompt")
    rows = []
    with atomic_folder(run.sample_folder(done)) as folder:
        for weights, pictures in found.items():
            (folder / weights).mkdir()
            for i, picture in enumerate(pictures):
                file = f"{weights}/{numbered(i, len(pictures))}"
                Image.fromarray(picture).save(folder / file)
                words = {"prompt": prompts[i], "negative_prompt": negative, "seed": seeds[i]}
                rows.append({"file": file, "weights": weights, **words, **how, **told[weights][i]})
        (folder / "samples.json").write_text(json.dumps(rows, indent=2) + "\n")


def _log_means(run: RunFolder, done: int, told: dict[str, list[dict[str, float]]]) -> None:
    for weights, rows in told.items():
        for name in rows[0]:
            run.log(done, name, float(np.mean([row[name] for row in rows])), weights=weights)


def scores(
    picture: np.ndarray, references: Sequence[np.ndarray], unseen: Sequence[np.ndarray] = ()
) -> dict[str, float]:
    """References and unseen images are of `at_scored_size` already."""
    small = [at_scored_size(picture)]
    apart = {"unseen_similarity": image_similarity(small, unseen)} if unseen else {}
    return {"image_similarity": image_similarity(small, references), **apart, "haar_noise": haar_noise(picture)}


def at_scored_size(picture: np.ndarray) -> np.ndarray:
    """The square picture at no more than SCORED_SIDE a side: 1000 references are then scored in a second or so."""
    if len(picture) <= SCORED_SIDE:
        return picture
    return np.asarray(Image.fromarray(picture).resize((SCORED_SIDE, SCORED_SIDE), Image.Resampling.BOX))
