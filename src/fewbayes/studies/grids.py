"""Many trainings that differ in a few settings, each followed checkpoint by checkpoint: what the map of the corruption
stage and the comparison of its remedies have in common.

A cell is one training: a subject, a number of its images, an arm and a seed. It is trained with dense samples, scored
by evaluators that training does not use, and weighed: how far its weights have gone, what its loss on the training
images is, what more sampler steps and the mean of its last checkpoints give. What is done is not done again, and what
was done with other settings, another model or other evaluators is refused.

    OUT/<name>.json                        all cells, rounded, and which failed; what the report reads
    OUT/<subject>/photographs[-n]/         the training images
    OUT/<subject>/<images>/<arm>-seed<k>/  the trainings, cell.json beside each result

Knows no figure and no verdict.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fewbayes.errors import UserError
from fewbayes.models import inspect_model
from fewbayes.runs.folder import CONFIG, RunError, atomic_folder, atomic_write, environment
from fewbayes.settings.config import TrainConfig, load_config
from fewbayes.studies.methods import StudySubject, drawn_subject, photographed_subject
from fewbayes.studies.runner import Arm, command, in_parallel, run_one, watching, without_path
from fewbayes.studies.trajectories import QUANTITIES, identities, open_pictures, score_pictures, score_run

if TYPE_CHECKING:
    from fewbayes.stage.probes import Prober

log = logging.getLogger("fewbayes")

CELL = "cell.json"
DIGITS = 4
MEAN_OF = 5
"""Checkpoints in the running mean of the last ones."""
LOSS_DRAWS = 2
"""Draws of every training image's latents that the loss is of."""
MORE_STEPS = 4
"""By how much the sampler's steps are multiplied where it is asked whether more of them help."""


PLACES = ("model", "instance_data_dir", "class_data_dir", "output_dir")
"""Settings that say where something lies, not what is done; the model and the pictures are told by their content."""


@dataclass(frozen=True)
class Cell:
    """One training of the grid."""

    subject: str
    images: int
    arm: Arm
    seed: int
    config: TrainConfig
    encoders: str

    @property
    def folder(self) -> Path:
        return Path(self.config.output_dir)


def named_subjects(
    drawn: Sequence[str], photographed: Sequence[str], folder: Path, resolution: int, *, world: bool
) -> list[StudySubject]:
    """The subjects of --subjects and --photographs, each of which has a folder of its own name."""
    if not drawn and not photographed:
        raise UserError("name at least one of --subjects and --photographs")
    names = [*drawn, *(Path(given.rpartition(":")[0]).resolve().name for given in photographed)]
    if len(set(names)) < len(names):
        raise UserError(f"two subjects have one name among {', '.join(names)}; leave one out, or rename a folder")
    return [
        *(drawn_subject(name, folder, resolution) for name in drawn),
        *(photographed_subject(given, folder, resolution, world=world) for given in photographed),
    ]


def first_images(subject: StudySubject, count: int | None) -> tuple[Path, int]:
    """A folder with the first `count` images of a subject, None for all, and how many there are in it."""
    files = sorted(subject.photographs.iterdir())
    if count is None or count == len(files):
        return subject.photographs, len(files)
    if count > len(files):
        raise UserError(f"{subject.name} has {len(files)} images; {count} were asked for")
    folder = subject.photographs.with_name(f"photographs-{count}")
    if not folder.is_dir():
        with atomic_folder(folder) as staging:
            for file in files[:count]:
                shutil.copyfile(file, staging / file.name)
    return folder, count


def make_cells(
    out: Path,
    base: Mapping[str, Any],
    subjects: Iterable[tuple[StudySubject, int | None]],
    arms: Sequence[Arm],
    seeds: Sequence[int],
    encoders: str,
) -> list[Cell]:
    """Every arm of every subject for the first seed, then the next seed: what is there can always be compared."""
    cells = []
    places = [(subject, *first_images(subject, count)) for subject, count in subjects]
    for seed in seeds:
        for subject, photographs, count in places:
            prompt = f"a photo of a <v> {subject.class_word}"
            common = TrainConfig(
                **{
                    "instance_data_dir": str(photographs),
                    "instance_prompt": prompt,
                    "validation_prompt": f"{prompt}|a <v> {subject.class_word} in the snow",
                    "output_dir": "set below",
                    "seed": seed,
                    **base,
                }
            )
            for arm in arms:
                folder = out / subject.name / str(count) / f"{arm.name}-seed{seed}"
                config = replace(common, **arm.changes, output_dir=str(folder))
                cells.append(Cell(subject.name, count, arm, seed, config, encoders))
    _assert_apart(cells)
    return cells


def _assert_apart(cells: Sequence[Cell]) -> None:
    folders = [cell.folder for cell in cells]
    assert len(set(folders)) == len(folders), "two cells would write into one folder"


def run_cells(cells: Sequence[Cell], out: Path, name: str, facts: Mapping[str, Any], workers: int | None) -> Path:
    """Bring every cell to its end and gather them; the same call continues after an interruption.

    A training whose numbers ran away stands under "failed", without scores; ValueError where all of them did.
    """
    _assert_apart(cells)
    with watching({str(cell.folder): cell.config for cell in cells}):
        found = in_parallel(_run_cell, cells, workers)
    failed = [cell for cell in found if "failed" in cell]
    for cell in failed:
        log.warning("%s, %s, seed %d failed: %s", cell["subject"], cell["arm"], cell["seed"], cell["failed"])
    arms = {cell.arm.name: cell.arm for cell in cells}.values()
    described = {
        **facts,
        "settings": {**facts["settings"], "model": without_path(facts["settings"]["model"])},
        "arms": [{"name": arm.name, "label": arm.label, "note": arm.note} for arm in arms],
        "provenance": {"command": command(), **environment(None)},
        "cells": [cell for cell in found if "failed" not in cell],
        "failed": failed,
    }
    file = out / f"{name}.json"
    atomic_write(file, json.dumps(described, separators=(",", ":")) + "\n")
    if len(failed) == len(found):
        raise UserError(f"all {len(found)} trainings failed, and {file.name} says how; a lower rate is the usual cure")
    return file


def _run_cell(cell: Cell) -> dict[str, Any]:
    """Train, score and weigh one cell; with "failed", the reason, in place of scores where its numbers ran away."""
    kept, asked = cell.folder / CELL, made_of(cell)
    if kept.is_file():
        result = json.loads(kept.read_text())
        if result.pop("made_of", None) != asked:
            raise _other(cell.folder)
        return result
    if (cell.folder / CONFIG).is_file() and settings_of(load_config(cell.folder / CONFIG, {})) != asked["settings"]:
        raise _other(cell.folder)
    result: dict[str, Any] = {
        "subject": cell.subject,
        "images": cell.images,
        "arm": cell.arm.name,
        "seed": cell.seed,
    }
    failure = run_one(cell.config)
    result |= {"failed": failure} if failure else rounded(_measured(cell))
    atomic_write(kept, json.dumps(result | {"made_of": asked}) + "\n")
    for checkpoint in cell.folder.glob("checkpoint-*"):  # everything that was asked of them has been answered
        shutil.rmtree(checkpoint)
    return result


def _measured(cell: Cell) -> dict[str, Any]:
    trajectory = score_run(cell.folder, _encoders(cell.encoders), _rare_token(cell.folder))
    scores = {key: trajectory[key] for key in ("training", "raw", "ema")}
    return scores | (_weighed(cell) if cell.config.checkpointing_steps else {})


def made_of(cell: Cell) -> dict[str, Any]:
    """What a cell's numbers follow from, beside its pictures: settings with what None stands for, model, evaluators."""
    card = inspect_model(cell.config.model)
    recommended = card.recommended | ({"rare_token": card.rare_token} if card.rare_token else {})
    return {
        "settings": settings_of(cell.config.resolve(recommended, card.resolution, cell.images)),
        "model": _fingerprint(cell.config.model),
        "encoders": identities(_encoders(cell.encoders)),
        "quantities": list(QUANTITIES),
    }


def settings_of(config: TrainConfig) -> dict[str, Any]:
    """All settings of a run but PLACES."""
    return {name: value for name, value in config.to_dict().items() if name not in PLACES}


@cache
def _fingerprint(model: str) -> str:
    return inspect_model(model).fingerprint()


def _other(folder: Path) -> RunError:
    return RunError(f"{folder} holds another training, or one that was measured otherwise; give another output_dir")


def rounded(value: Any) -> Any:
    """Four digits after the point, in whatever holds the numbers."""
    if isinstance(value, Mapping):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, DIGITS) if isinstance(value, float) else value


@cache
def _encoders(which: str) -> dict[str, Any]:
    from fewbayes.metrics.encoders import load_encoders

    return load_encoders(which)


def _rare_token(folder: Path) -> str:
    token = load_config(folder / CONFIG, {}).rare_token
    assert token is not None, "a run records the word that <v> stood for"
    return token


# --- weighing ---------------------------------------------------------------------------------------------------------


def _weighed(cell: Cell) -> dict[str, Any]:
    """What the weights themselves say, from the checkpoints of a run."""
    from fewbayes.methods import make_method
    from fewbayes.models import load_family
    from fewbayes.runs.folder import RunFolder

    steps = sorted(int(path.name.removeprefix("checkpoint-")) for path in cell.folder.glob("checkpoint-*"))
    paths = [cell.folder / f"checkpoint-{step}" for step in steps]
    assert steps[-1:] == [RunFolder(cell.folder).manifest["steps"]]
    family, method = load_family(cell.config.model), make_method(load_config(cell.folder / CONFIG, {}))
    prober = _prober(family, cell)
    losses = [[0, _loss(prober)]]
    method.attach(family)
    for step, path in zip(steps, paths, strict=True):
        _set_mean(method.trainable(family), [path])
        losses.append([step, _loss(prober)])
    found = {
        "displacement": [[step, _displacement(path, cell)] for step, path in zip(steps, paths, strict=True)],
        "losses": losses,
        "more_steps": _pictured(family, cell, cell.config.num_inference_steps * MORE_STEPS),
    }
    _set_mean(method.trainable(family), paths[-MEAN_OF:])
    return found | {"mean_of_last": _pictured(family, cell, cell.config.num_inference_steps)}


def _displacement(checkpoint: Path, cell: Cell) -> float | None:
    """Frobenius norm of the change of the denoiser's weights; None for methods that are neither full nor LoRA."""
    from safetensors.torch import load_file

    weights = load_file(checkpoint / "weights.safetensors")
    total = 0.0
    if cell.config.method == "full":
        start = _initial_weights(cell.config.model)
        for name, weight in weights.items():
            total += float((weight - start[name]).square().sum()) if name in start else 0.0
    elif cell.config.method == "lora":
        scale = (cell.config.lora_alpha or cell.config.rank) / cell.config.rank
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


def _prober(family: Any, cell: Cell) -> Prober:
    """Asks for the loss that training lowers: of latents drawn as training draws them, LOSS_DRAWS for each image."""
    import torch

    from fewbayes.seeds import generator
    from fewbayes.stage.probes import Prober, ProbeSettings

    pictures = np.stack([np.asarray(picture) for picture in open_pictures(cell.folder / "reference")])
    prompt = cell.config.instance_prompt.replace("<v>", _rare_token(cell.folder))
    means, deviations = (part.repeat(LOSS_DRAWS, 1, 1, 1) for part in family.encode_images(pictures))
    latents = means + deviations * torch.randn(means.shape, generator=generator(0, "latents of the loss"))
    settings = ProbeSettings(examples=len(latents))
    return Prober(family, latents, [prompt] * len(latents), settings=settings)


def _loss(prober: Prober) -> float:
    """Of the weights as they are on the training images, relative to telling nothing; fixed draws (probes.Losses)."""
    losses = prober.read(("losses",)).losses
    assert losses is not None
    return losses.mean


def _pictured(family: Any, cell: Cell, steps: int) -> dict[str, float]:
    """Scores of the same prompts and seeds as the run's own samples, with `steps` steps of its sampler."""
    from fewbayes.sample import sample_images

    last = max((cell.folder / "samples").glob("step-*"), key=lambda path: int(path.name.removeprefix("step-")))
    rows = [row for row in json.loads((last / "samples.json").read_text()) if row["weights"] == "raw"]
    prompts = [row["prompt"] for row in rows]
    c = cell.config
    how = {"sampler": c.sampler, "guidance": c.guidance_scale, "steps": steps}
    pictures = sample_images(family, prompts, [row["seed"] for row in rows], **how, resolution=c.resolution)
    references = open_pictures(cell.folder / "reference")
    return score_pictures(pictures, prompts, references, _encoders(cell.encoders), _rare_token(cell.folder))


def _set_mean(trained: Mapping[str, Any], checkpoints: Sequence[Path]) -> None:
    """The mean over several checkpoints of every trained weight, a learned rare token's rows included, put in place."""
    import torch
    from safetensors.torch import load_file

    saved = [load_file(path / "weights.safetensors") for path in checkpoints]
    assert trained.keys() == saved[0].keys(), trained.keys() ^ saved[0].keys()
    with torch.no_grad():
        for name, weight in trained.items():
            weight.copy_(torch.stack([one[name] for one in saved]).mean(0))
