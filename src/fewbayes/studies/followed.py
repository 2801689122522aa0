"""Trainings followed checkpoint by checkpoint: what the map of the corruption stage and the comparison of its remedies
have in common.

A training is made with dense samples, scored by evaluators that training does not use, and weighed: how far its weights
have gone, what its loss on the training images is, what more sampler steps and the mean of its last checkpoints give.
What was done with other settings, another model or other evaluators is refused.

    OUT/<name>.json                        all cells, rounded, and which failed; what tables and pictures are made of
    OUT/<subject>/photographs[-n]/         the training images
    OUT/<subject>/<images>/<arm>-seed<k>/  the trainings, cell.json beside each result

Knows no figure and no verdict.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbayes.errors import UserError
from fewbayes.fields import setting
from fewbayes.files.atomic import atomic_write
from fewbayes.models import Family, inspect_model
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.layout import CONFIG, REFERENCE, checkpoint_folders, read_listing, sample_folders
from fewbayes.runs.provenance import environment
from fewbayes.settings.agreement import RARE_TOKEN_MARK
from fewbayes.settings.config import TrainConfig, load_config
from fewbayes.studies.flags import ScoredFlags, StudyFlags
from fewbayes.studies.grid import Arm, Training, command, grid, run, taught, train, without_path
from fewbayes.studies.memo import recall, remember, rounded
from fewbayes.studies.subjects import StudySubject
from fewbayes.studies.trajectory import QUANTITIES, Judge, encoders_of, identities, open_pictures, pixels, score_run

if TYPE_CHECKING:
    from fewbayes.stage.probes import Prober

log = logging.getLogger("fewbayes")

CELL = "cell.json"
CHECKPOINTS = 8
"""Samples are drawn at so many, evenly along a training."""
MEAN_OF = 5
"""Checkpoints in the running mean of the last ones."""
LOSS_DRAWS = 2
"""Draws of every training image's latents that the loss is of."""
MORE_STEPS = 4
"""By how much the sampler's steps are multiplied where it is asked whether more of them help."""
PLACES = ("model", "instance_data_dir", "class_data_dir", "output_dir")
"""Settings that say where something lies, not what is done; the model and the pictures are told by their content."""


@dataclass(frozen=True, kw_only=True)
class FollowedFlags(StudyFlags, ScoredFlags):
    steps: int = setting(400, at_least=CHECKPOINTS)
    """Of each training."""
    method: str = setting("full", choices=("full", "lora", "oft"))
    """Of the training that the others are changes of."""
    rank: int = setting(16, at_least=1)
    """Of lora."""
    quick: bool = False
    """A look: one seed and few steps."""
    redraw: Path | None = None
    """A kept file of results, whose tables and pictures are made again; nothing is trained."""

    def settings(self, **more: Any) -> dict[str, Any]:
        """What all trainings share."""
        return {
            "model": self.model,
            "method": self.method,
            **({"rank": self.rank} if self.method == "lora" else {}),
            "max_train_steps": self.steps,
            "validation_steps": self.steps // CHECKPOINTS,
            "num_inference_steps": self.num_inference_steps,
            **more,
        }


def trainings(
    out: Path, base: Mapping[str, Any], subjects: Sequence[StudySubject], arms: Sequence[Arm], seeds: Sequence[int]
) -> list[Training]:
    """Every arm of every subject and seed; `base` holds what all share. Sampled with two prompts."""

    def settings(subject: StudySubject) -> TrainConfig:
        noun = f"{RARE_TOKEN_MARK} {subject.class_word}"
        return taught(subject, validation_prompt=f"a photo of a {noun}|a {noun} in the snow", **base)

    return grid({out / s.name / str(len(s.files)): s for s in subjects}, settings, arms, seeds)


def follow(cells: Sequence[Training], flags: FollowedFlags, name: str, facts: Mapping[str, Any]) -> Path:
    """Bring every training to its end and gather them; the same call continues after an interruption.

    A training whose numbers ran away stands under "failed", without scores; UserError where all of them did.
    """
    found = run(cells, partial(_followed, encoders=flags.evaluators), flags.workers)
    arms = {cell.arm.name: {"name": cell.arm.name, "label": cell.arm.label, "note": cell.arm.note} for cell in cells}
    settings = {**facts["settings"], "model": without_path(facts["settings"]["model"])}
    return gather(flags.output_dir / f"{name}.json", {**facts, "settings": settings, "arms": [*arms.values()]}, found)


def gather(file: Path, facts: Mapping[str, Any], found: Sequence[Mapping[str, Any]]) -> Path:
    """The result of a study: `facts`, what made it, and its cells, those that failed apart. UserError if all did."""
    failed = [cell for cell in found if "failed" in cell]
    for cell in failed:
        log.warning("%s, %s, seed %d failed: %s", cell["subject"], cell["arm"], cell["seed"], cell["failed"])
    told = {
        **facts,
        "provenance": {"command": command(), **environment(None)},
        "cells": [cell for cell in found if "failed" not in cell],
        "failed": failed,
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(file, json.dumps(told, separators=(",", ":")) + "\n")
    if len(failed) == len(found):
        raise UserError(f"all {len(found)} trainings failed, and {file.name} says how; a lower rate is the usual cure")
    return file


def named(cell: Training) -> dict[str, Any]:
    """What a result says a training is."""
    return {"subject": cell.subject.name, "images": len(cell.subject.files), "arm": cell.arm.name, "seed": cell.seed}


def _followed(cell: Training, encoders: str) -> dict[str, Any]:
    """Train, score and weigh one training; with "failed", the reason, for scores where its numbers ran away."""
    kept, config, asked = cell.folder / CELL, cell.folder / CONFIG, made_of(cell, encoders)
    if kept.is_file():
        same = recall(kept, asked) is not None
    else:  # what is left open here, the training has settled
        known = settings_of(load_config(config, {})) if config.is_file() else {}
        same = all(known.get(name, value) == value for name, value in asked["settings"].items() if value is not None)
    if not same:
        raise UserError(
            f"{cell.folder} holds another training, or one that was measured otherwise; give another output_dir"
        )
    result = remember(kept, asked, lambda: named(cell) | _measured(cell, encoders))
    forget_checkpoints(cell.folder)
    return result


def _measured(cell: Training, encoders: str) -> dict[str, Any]:
    if failure := train(cell):
        return {"failed": failure}
    scores = score_run(cell.folder, encoders_of(encoders), rare_token(cell.folder))
    return rounded(scores | (_weighed(cell, encoders) if cell.config.checkpointing_steps else {}))


def made_of(cell: Training, encoders: str) -> dict[str, Any]:
    """What a training's numbers follow from, beside its pictures: settings with what None stands for, model and
    evaluators."""
    card = inspect_model(cell.config.model)
    recommended = card.recommended | ({"rare_token": card.rare_token} if card.rare_token else {})
    return {
        "settings": settings_of(cell.config.resolve(recommended, card.resolution, len(cell.subject.files))),
        "model": _fingerprint(cell.config.model),
        "encoders": identities(encoders_of(encoders)),
        "quantities": list(QUANTITIES),
    }


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings of a run but PLACES."""
    return {name: value for name, value in config.to_dict().items() if name not in PLACES}


@cache
def _fingerprint(model: str) -> str:
    return inspect_model(model).fingerprint()


def rare_token(folder: Path) -> str:
    """The word that <v> stood for in a run, which records it."""
    token = load_config(folder / CONFIG, {}).rare_token
    assert token is not None
    return token


# --- checkpoints ------------------------------------------------------------------------------------------------------


def forget_checkpoints(run: Path) -> None:
    """Everything that was asked of them has been answered."""
    for checkpoint in checkpoint_folders(run).values():
        shutil.rmtree(checkpoint)


def put(trained: Mapping[str, Any], *checkpoints: Path) -> None:
    """The mean over checkpoints of every trained weight, a learned rare token's rows included, put in place."""
    import torch
    from safetensors.torch import load_file

    saved = [load_file(path / "weights.safetensors") for path in checkpoints]
    assert trained.keys() == saved[0].keys(), trained.keys() ^ saved[0].keys()
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(torch.stack([one[name] for one in saved]).mean(0))


# --- weighing ---------------------------------------------------------------------------------------------------------


def _weighed(cell: Training, encoders: str) -> dict[str, Any]:
    """What the weights themselves say, from the checkpoints of a run."""
    from fewbayes.methods import make_method
    from fewbayes.models import load_family

    paths = checkpoint_folders(cell.folder)
    assert max(paths) == RunFolder(cell.folder).manifest.steps
    family, method = load_family(cell.config.model), make_method(load_config(cell.folder / CONFIG, {}))
    prober, steps = _prober(family, cell), cell.config.num_inference_steps
    losses = [[0, _loss(prober)]]
    method.attach(family)
    for step, path in paths.items():
        put(method.trainable(family), path)
        losses.append([step, _loss(prober)])
    found = {
        "displacement": [[step, _displacement(path, cell)] for step, path in paths.items()],
        "losses": losses,
        "more_steps": _pictured(family, cell, encoders, steps * MORE_STEPS),
    }
    put(method.trainable(family), *[*paths.values()][-MEAN_OF:])
    return found | {"mean_of_last": _pictured(family, cell, encoders, steps)}


def _displacement(checkpoint: Path, cell: Training) -> float | None:
    """Frobenius norm of the change of the denoiser's weights; None where it is no sum over full or LoRA's matrices."""
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "weights.safetensors")
    total = 0.0
    if cell.config.method == "full":
        start = _initial_weights(cell.config.model)
        for name, weight in weights.items():
            total += float((weight - start[name]).square().sum()) if name in start else 0.0
    elif cell.config.method == "lora" and not cell.config.use_dora:
        rank = cell.config.rank
        scale = (cell.config.lora_alpha or rank) / (rank**0.5 if cell.config.use_rslora else rank)
        for name, up in weights.items():
            if "lora_B" in name and name.startswith("denoiser."):
                total += float((scale * up @ weights[name.replace("lora_B", "lora_A")]).square().sum())
    else:
        return None
    return total**0.5


@cache
def _initial_weights(model: str) -> dict[str, Any]:
    from fewbayes.models import load_family

    named = load_family(model).denoiser.named_parameters()
    return {f"denoiser.{name}": weight.detach().clone() for name, weight in named}


def _prober(family: Family, cell: Training) -> Prober:
    """Asks for the loss that training lowers: of latents drawn as training draws them, LOSS_DRAWS for each image."""
    import torch

    from fewbayes.seeds import generator
    from fewbayes.stage.probes import Prober, ProbeSettings

    pictures = np.stack(pixels(open_pictures(cell.folder / REFERENCE)))
    prompt = cell.config.instance_prompt.replace("<v>", rare_token(cell.folder))
    means, deviations = (part.repeat(LOSS_DRAWS, 1, 1, 1) for part in family.encode_images(pictures))
    latents = means + deviations * torch.randn(means.shape, generator=generator(0, "latents of the loss"))
    settings = ProbeSettings(examples=len(latents))
    return Prober(family, latents, [prompt] * len(latents), settings=settings)


def _loss(prober: Prober) -> float:
    """Of the weights as they are on the training images, relative to telling nothing; fixed draws (probes.Losses)."""
    losses = prober.read(("losses",)).losses
    assert losses is not None
    return losses.mean


def _pictured(family: Family, cell: Training, encoders: str, steps: int) -> dict[str, float]:
    """Scores of the same prompts and seeds as the run's own samples, with `steps` steps of its sampler."""
    from fewbayes.sample import sample_images

    last, c = max(sample_folders(cell.folder).items())[1], cell.config
    rows = [row for row in read_listing(last) if row.weights == "raw"]
    prompts, seeds = [row.prompt or "" for row in rows], [row.seed or 0 for row in rows]
    how = {"sampler": c.sampler, "guidance": c.guidance_scale, "steps": steps, "resolution": c.resolution}
    pictures = sample_images(family, prompts, seeds, **how)
    judge = Judge(encoders_of(encoders), open_pictures(cell.folder / REFERENCE), rare_token(cell.folder))
    return judge.scores(pictures, prompts)
