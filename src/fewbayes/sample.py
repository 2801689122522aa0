"""Pictures from a family: one random generator per picture, so that no picture depends on the others of its batch.

`sample_images` is what training and experiments use; `write_samples` is the command, from a run, a checkpoint or any
pipeline folder into a folder of PNGs. Knows nothing of training beyond where a run keeps its config and its weights.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from fewbayes.errors import UserError
from fewbayes.methods import make_method
from fewbayes.models import Family, ModelCard, inspect_model, load_family
from fewbayes.models.adapters import is_adapter, load_adapter
from fewbayes.runs.folder import (
    BEST_STATE,
    CONFIG,
    MANIFEST,
    Checkpoint,
    RunFolder,
    atomic_folder,
    new_folder,
    read_manifest,
    verify_checkpoint,
)
from fewbayes.settings.config import TrainConfig, load_config

log = logging.getLogger(__name__)


def sample_images(
    family: Any,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampler: str = "ddim",
    steps: int = 25,
    guidance: float = 7.5,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 16,
) -> list[Image.Image]:
    """One picture per prompt and seed, in order.

    seeds: one per prompt, as in `torch.Generator().manual_seed(seed)`, so plain diffusers draws the same picture from
    the same seed. A picture is the same alone and in any batch, to float rounding.
    resolution: side in pixels, None for the model's own.
    guidance: 1 or less is none. The text encoder, if it needs gradients, gets none from here.
    """
    if len(prompts) != len(seeds):
        raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed for each prompt")
    if steps < 1:
        raise UserError(f"num_inference_steps is {steps}; it must be at least 1")
    pipeline = family.pipeline(sampler)
    pictures: list[Image.Image] = []
    with torch.no_grad():
        different = list(dict.fromkeys(prompts))
        encoded, negative = family.encode_prompts(different), family.encode_negative(negative_prompt)
        for start in range(0, len(prompts), batch_size):
            rows = [different.index(prompt) for prompt in prompts[start : start + batch_size]]
            latents = pipeline(
                **family.prompt_arguments(encoded[rows], negative[[0] * len(rows)]),
                generator=[torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                num_inference_steps=steps,
                guidance_scale=guidance,
                height=resolution,
                width=resolution,
                output_type="latent",
            ).images
            pictures += [Image.fromarray(picture) for picture in family.decode_latents(latents)]
    return pictures


def load_for_sampling(source: str, weights: str | None = None, *, base: str | None = None) -> tuple[Family, str | None]:
    """The model of a run, its best/, a checkpoint or a pipeline folder (or hub id, or `tiny`), and the rare token.

    weights: "raw" or "ema"; None is what a run has exported, and the raw ones of a checkpoint. What a run has not
    exported is taken from its last checkpoint.
    base: the model under `source`, where that is a LoRA file or a PEFT folder of any trainer; a run knows its own.
    """
    folder = Path(source)
    checkpointed, config = (folder / "trainer_state.json").is_file(), _run_config(folder)
    run = folder.resolve().parent
    config_of_best = _run_config(run) if (folder / BEST_STATE).is_file() and not config else None
    if base is not None:
        return _load_adapter(folder, base, weights, ours=checkpointed or bool(config or config_of_best))
    if checkpointed:
        return _load_checkpoint(verify_checkpoint(folder), weights or "raw")
    if config:
        return _load_run(folder, config, weights)
    if config_of_best and not weights:
        cure = f"it is not written from a checkpoint: sample from {run} itself or one of its checkpoint-N folders"
        return _load_result(run, folder, config_of_best, cure)
    if weights:
        raise UserError(f"{source} is no run and no checkpoint of one, which alone hold raw and averaged weights")
    if is_adapter(folder):
        raise UserError(f"{source} holds what was added to a model, not the model: say which with base")
    card = inspect_model(source)
    return load_family(card), card.rare_token


def _load_adapter(source: Path, base: str, weights: str | None, *, ours: bool) -> tuple[Family, str | None]:
    if ours:
        raise UserError(f"{source} belongs to a run, which knows the model under it; leave base out")
    if weights:
        raise UserError(f"{source} is no run, which alone holds raw and averaged weights; leave weights out")
    if not is_adapter(source):
        raise UserError(
            f"{source} is no adapter for {base}: give a LoRA in a .safetensors file, or a folder that holds "
            "pytorch_lora_weights.safetensors or a PEFT adapter_config.json"
        )
    family = load_family(base)
    load_adapter(family, source)
    return family, family.card.rare_token


def _load_run(run: Path, config: TrainConfig, weights: str | None) -> tuple[Family, str | None]:
    method, manifest = make_method(config), read_manifest(run)
    there = (run / method.result).is_file()
    if weights and not (there and weights == manifest.get("exported")):
        return _load_checkpoint(_last_checkpoint(run, weights), weights)
    if not there:
        raise UserError(
            f"{run} is a run without its result, {method.result}: give its training command again to finish it, or "
            "sample from one of its checkpoint-N folders"
        )
    _warn_if_older(run, manifest)
    cure = f"remove {method.result} and give the training command again, which writes it from the last checkpoint"
    return _load_result(run, run, config, cure)


def _load_result(run: Path, folder: Path, config: TrainConfig, cure: str) -> tuple[Family, str | None]:
    """What the method of a run has exported into `folder`; cure: what helps where that is damaged."""
    method = make_method(config)
    whole = method.result == "model_index.json"
    family = None if whole else load_family(_base_model(run, config.model))
    try:
        if family is None:
            return load_family(str(folder)), config.rare_token
        method.attach(family)
        method.load(family, folder)
    except (SafetensorError, OSError, UserError) as error:
        damaged = folder if whole else folder / method.result
        raise UserError(f"{damaged} is damaged ({error}); {cure}") from error
    return family, config.rare_token


def _warn_if_older(run: Path, manifest: dict[str, Any]) -> None:
    """A finished run that was being trained further when it was stopped still holds its first result."""
    steps, newest = manifest.get("steps"), RunFolder(run).newest_step()
    if manifest.get("status") != "done" and steps is not None and newest is not None and newest > steps:
        log.warning(
            "the result in %s is that of %d steps; training went on and was not finished: give its command again, or "
            "sample from %s",
            run,
            steps,
            run / f"checkpoint-{newest}",
        )


def _run_config(folder: Path) -> TrainConfig | None:
    """The settings of a run; None for what is no run."""
    return load_config(folder / CONFIG, {}) if all((folder / name).is_file() for name in (CONFIG, MANIFEST)) else None


def _last_checkpoint(run: Path, weights: str) -> Checkpoint:
    """The newest whole checkpoint, which in a finished run has to be that of its last step."""
    checkpoint, manifest = RunFolder(run).newest_checkpoint(), read_manifest(run)
    last = manifest.get("steps") if manifest.get("status") == "done" else None
    if checkpoint is None or (last and checkpoint.step != last):
        raise UserError(
            f"{run} holds no checkpoint of its last step, where its {weights} weights would be: it was trained with "
            "checkpointing_steps 0, or the checkpoint was removed or damaged"
        )
    return checkpoint


def _load_checkpoint(checkpoint: Checkpoint, which: str) -> tuple[Family, str | None]:
    """The base model of the run, with the weights of a checkpoint in it."""
    folder = checkpoint.path
    run = folder.resolve().parent
    config = _run_config(run)
    if not config:
        raise UserError(f"{run} has no {CONFIG}, which names the model that {folder.name} belongs to")
    file = checkpoint.path / ("ema.safetensors" if which == "ema" else "weights.safetensors")
    if not file.is_file():
        raise UserError(f"{folder} holds no averaged weights; its run was made without use_ema")
    family, method = load_family(_base_model(run, config.model)), make_method(config)
    method.attach(family)
    saved = load_file(file)
    with torch.no_grad():
        for name, weight in method.trainable(family).items():
            weight.copy_(saved[name])
    return family, config.rare_token


def _base_model(run: Path, model: str) -> ModelCard:
    """The model that the run began from; another one that has come to stand in its place is refused."""
    card = inspect_model(model)
    recorded = read_manifest(run)["model"]["sha256"]
    if card.fingerprint() != recorded:
        raise UserError(
            f"the model {model} is not the one that {run} was trained from (its sha256 was {recorded[:12]}...); "
            f"a checkpoint holds only what was trained, so put that model back, or sample from {run} itself"
        )
    return card


def write_samples(
    source: str,
    prompts: Sequence[str],
    output_dir: str | Path,
    *,
    num_images: int = 4,
    seed: int = 0,
    sampler: str = "ddim",
    steps: int = 25,
    guidance: float = 7.5,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 4,
    weights: str | None = None,
    base: str | None = None,
) -> Path:
    """`num_images` pictures of each prompt, image i from seed + i; returns the folder, which must be new or empty.

    source, weights, base: as in `load_for_sampling`. The folder holds 00.png, 01.png, ... (with as
    many digits as the last one has) and samples.json, which says
    how each was made.
    """
    output = Path(output_dir)
    new_folder(output)
    if not -(2**63) <= seed < 2**64 - num_images:
        raise UserError(f"seed is {seed}; it must be from 0 to 2**64 - 1 with the number of images added")
    family, rare_token = load_for_sampling(source, weights, base=base)
    family.to("cuda" if torch.cuda.is_available() else "cpu")
    words = [prompt.replace("<v>", rare_token or "<v>") for prompt in prompts for _ in range(num_images)]
    seeds = [seed + i for _ in prompts for i in range(num_images)]
    how = {"sampler": sampler, "steps": steps, "guidance": guidance, "negative_prompt": negative_prompt}
    pictures = sample_images(family, words, seeds, **how, resolution=resolution, batch_size=batch_size)
    digits = max(2, len(str(len(pictures) - 1)))
    with atomic_folder(output, new=True) as folder:
        made_of = {"source": source} | ({"base": base} if base else {})
        rows = []
        for i, picture in enumerate(pictures):
            file = f"{i:0{digits}d}.png"
            picture.save(folder / file)
            rows.append({"file": file, **made_of, "prompt": words[i], "seed": seeds[i], **how})
        (folder / "samples.json").write_text(json.dumps(rows, indent=2) + "\n")
    return output
