"""Headers of the files that we write: kohya's `ss_*`, Stability's ModelSpec 1.0.1, and files that are whole or absent.

The header is what web interfaces and model sites show of a file; nothing in it is needed to load one. Knows nothing of
key layouts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from fewbayes.export.trained import Trained, name_of
from fewbayes.files.safetensors import sort_header
from fewbayes.settings.agreement import worded

NO_HASH = "0x" + "0" * 64


def model_spec(trained: Trained, *, lora: bool) -> dict[str, str]:
    """ModelSpec 1.0.1. The hash is filled in by `write_safetensors`, which sees the bytes."""
    config, card = trained.run.config, trained.base
    architecture, _ = trained.family.published_as()
    side = config.resolution or card.resolution
    prompt = worded(config.instance_prompt, trained.rare_token)
    fields = {
        "sai_model_spec": "1.0.1",
        "architecture": architecture + ("/lora" if lora else ""),
        "implementation": "https://github.com/Stability-AI/generative-models",
        "title": name_of(trained.run),
        "description": f"{prompt}; fine-tuned from {card.model} with fewbayes {version('fewbayes')}",
        "date": (trained.run.manifest.ended or "")[:10],
        "hash_sha256": NO_HASH,
        "resolution": f"{side}x{side}",
        "prediction_type": {"v_prediction": "v"}.get(card.prediction_type, card.prediction_type),
        "trigger_phrase": prompt,
        "tags": "dreambooth, " + ("bayesian" if config.bayes else "few-shot"),
    }
    return {f"modelspec.{key}": value for key, value in fields.items() if value}


def kohya_header(trained: Trained, rank: int) -> dict[str, str]:
    """The `ss_*` keys that kohya's trainer writes and that have a meaning for a run of ours; all values are text."""
    config, card = trained.run.config, trained.base
    _, version_name = trained.family.published_as()
    side = config.resolution or card.resolution
    images = len(trained.run.manifest.images) or None
    prompt = worded(config.instance_prompt, trained.rare_token)
    values = {
        "ss_base_model_version": version_name,
        "ss_v2": str(version_name == "sd_v2"),
        "ss_sd_model_name": card.model,
        "ss_output_name": name_of(trained.run),
        "ss_network_module": "networks.lora",
        "ss_network_dim": rank,
        "ss_network_alpha": float(rank),
        "ss_resolution": f"({side}, {side})",
        "ss_learning_rate": config.learning_rate,
        "ss_text_encoder_lr": config.text_encoder_lr,
        "ss_max_train_steps": config.max_train_steps,
        "ss_steps": trained.run.step,
        "ss_seed": config.seed,
        "ss_num_train_images": images,
        "ss_mixed_precision": config.mixed_precision,
        "ss_prior_loss_weight": config.prior_loss_weight if config.with_prior_preservation else None,
        "ss_min_snr_gamma": config.snr_gamma,
        "ss_noise_offset": config.noise_offset,
        "ss_caption_dropout_rate": config.caption_dropout,
        "ss_latents": config.latents,
        "ss_tag_frequency": json.dumps({"instance": {prompt: images or 1}}),
        "ss_training_comment": f"method {config.method}, weights {trained.weights}",
    }
    return {key: str(value) for key, value in values.items() if value is not None}


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> None:
    """The file under its name is whole. `modelspec.hash_sha256`, if asked for, is of all bytes after the header."""
    staging = path.with_name(f".tmp-{path.name}")
    try:
        save_file(dict(tensors), staging, metadata={"format": "pt", **header})
        sort_header(staging)
        if header.get("modelspec.hash_sha256") == NO_HASH:
            _fill_in_hash(staging)
        os.replace(staging, path)
    finally:
        staging.unlink(missing_ok=True)


def _fill_in_hash(path: Path) -> None:
    """In place: a hash is as long as the zeros that held its place."""
    with path.open("r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(length)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(8 + header.index(NO_HASH.encode()))
        file.write(f"0x{digest}".encode())
