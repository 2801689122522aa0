"""Writes an export: the files of its format, export.json (what it came from) and a model card, all at once or not.

One function a way of writing, all with the same arguments, all returning what is to be said of the result.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from fewbayes.errors import UserError
from fewbayes.export.card import Written, write_card
from fewbayes.export.lora_files import diffusers_header, diffusers_keys, kohya_keys, peft_keys, write_peft_config
from fewbayes.export.metadata import kohya_header, model_spec, write_safetensors
from fewbayes.export.record import RECORD, Record
from fewbayes.export.svd import as_lora, residual_rows
from fewbayes.export.trained import Layers, Trained, lora_layers, name_of, weight_changes
from fewbayes.files.atomic import atomic_folder
from fewbayes.files.decode import read_json, typed
from fewbayes.methods import registered
from fewbayes.models.family import embedding_names
from fewbayes.models.folders import quiet

DTYPE = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DIFFUSERS_FILE, ADAPTER_FILE = "pytorch_lora_weights.safetensors", "adapter_model.safetensors"
EMBEDDING_FILE = "learned_embeds.safetensors"


@dataclass
class Asked:
    format: str
    rank: int
    dtype: torch.dtype


def write(trained: Trained, format: str, route: str, output: Path, *, rank: int, dtype: str) -> Path:
    """See `fewbayes.export.write_export`; route is one of its ROUTES, and what can be refused has been."""
    asked = Asked(format, rank, DTYPE[dtype])
    with atomic_folder(output, new=True) as folder:
        word = None if route in ("pipeline", "original") else _embedding(trained, asked, folder)
        written = WAYS[route](trained, asked, folder)
        if word:
            written.notes.append(
                f"{EMBEDDING_FILE} is the rare token's learned embedding: load_textual_inversion(..., token={word!r}), "
                "or rename the file to the word that you type in ComfyUI and A1111; without it the subject is not meant"
            )
            written.word = word
        config = trained.run.config
        record: dict[str, Any] = {
            "format": format,
            "loader": written.loader,
            "file": written.file,
            "run": os.path.relpath(trained.run.path.resolve(), output.resolve()),
            "method": config.method,
            "weights": trained.weights,
            "dtype": dtype,
            "base_model": trained.base.model,
            "base_sha256": trained.base.fingerprint(),
            "family": trained.base.family,
            "prediction_type": trained.base.prediction_type,
            "instance_prompt": config.instance_prompt,
            "rare_token": trained.rare_token,
            "resolution": config.resolution or trained.base.resolution,
            "rank": asked.rank if written.residual else None,
            "residual": written.residual,
            "notes": written.notes,
            "trained": trained.run.manifest.ended,
            "fewbayes": version("fewbayes"),
        }
        (folder / RECORD).write_text(json.dumps(asdict(typed(record, Record, RECORD)), indent=2) + "\n")
        write_card(folder, trained, written)
    return output


# --- the ways ---------------------------------------------------------------------------------------------------------


def _pipeline(trained: Trained, asked: Asked, folder: Path) -> Written:
    """A pipeline folder in the diffusers layout, adapters merged."""
    trained.merge()
    with quiet():  # diffusers warns of any cast, this one is asked for
        for module in trained.family.modules.values():
            module.to(asked.dtype)
    trained.family.save(folder)
    return Written("pipeline")


def _original(trained: Trained, asked: Asked, folder: Path) -> Written:
    """One file in the layout of the original releases, adapters merged."""
    trained.merge()
    tensors = trained.family.original_weights()
    tensors = {
        name: weight.to(asked.dtype) if weight.is_floating_point() else weight for name, weight in tensors.items()
    }
    file = f"{name_of(trained.run)}.safetensors"
    write_safetensors(folder / file, tensors, model_spec(trained, lora=False))
    note = "the file holds no tokenizer and no noise schedule: a loader takes those from its config"
    return Written("original", file, [f"{note} (here: {trained.base.model})"])


def _peft(trained: Trained, asked: Asked, folder: Path) -> Written:
    """PEFT folders, one a module: the denoiser's, and text_encoder/ where it was trained."""
    if registered()[trained.run.config.method].kind == "lora":
        for part, named in lora_layers(trained).items():
            (folder / part).mkdir()
            named = {name: layer.to(asked.dtype) for name, layer in named.items()}
            write_safetensors(folder / part / ADAPTER_FILE, peft_keys(named), model_spec(trained, lora=True))
            write_peft_config(folder / part, named, trained.base.model)
    else:
        _peft_as_it_is(trained, asked, folder)
    note = "PEFT compares names as they are: a text encoder's adapter needs the side of transformers 5.6 that wrote it"
    return Written("peft", None, [note] if (folder / "text_encoder").is_dir() else [])


def _peft_as_it_is(trained: Trained, asked: Asked, folder: Path) -> None:
    """Adapters of other kinds: the settings and the tensors that their method writes."""
    from fewbayes.methods import make_method

    config = replace(trained.run.config, train_rare_token=False)
    make_method(config).export(trained.family, folder)
    for file in folder.glob(f"*/{ADAPTER_FILE}"):
        tensors = {name: weight.to(asked.dtype) for name, weight in load_file(file).items()}
        write_safetensors(file, tensors, {})
        settings = read_json(file.parent / "adapter_config.json", dict[str, Any])
        settings |= {"inference_mode": True, "base_model_name_or_path": trained.base.model}
        (file.parent / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def _new_word(word: str, tokenizers: list[Any]) -> str:
    """The word, or one made of it where a tokenizer knows it already: loaders refuse to overwrite a known word.

    A special token inside it (SDXL's second tokenizer pads with "!") would tear the new word apart.
    """
    if not any(word in tokenizer.get_vocab() for tokenizer in tokenizers):
        return word
    special = {token for tokenizer in tokenizers for token in tokenizer.all_special_tokens}
    names = [f"<{word.strip('<>')}-{end}>" for end in ("learned", "new", "own")]
    return next((name for name in names if not any(token in name for token in special)), names[0])


def _embedding(trained: Trained, asked: Asked, folder: Path) -> str | None:
    """Writes the rare token's learned embedding beside an adapter, where there is one; what is typed for it."""
    rows = trained.rare_rows()
    if not rows:
        return None
    word = trained.rare_token or "<v>"
    name = _new_word(word, list(trained.family.tokenizers.values()))
    keys = embedding_names(trained.family, name)
    tensors = {keys[encoder]: vectors.to(asked.dtype) for encoder, vectors in rows.items()}
    write_safetensors(folder / EMBEDDING_FILE, tensors, {"token": name, "stands_for": word})
    return name


def _svd(trained: Trained, asked: Asked, folder: Path) -> Written:
    """A LoRA near the change that the run has made, with what it loses of it."""
    changes = weight_changes(trained)
    if not changes:
        raise UserError(f"{trained.run.path} has the weights of its base model: there is nothing to export")
    if asked.format in ("kohya", "comfyui"):  # a layer without a name there is refused before the decomposition
        for part, named in changes.items():
            for name in (name for name, delta in named.items() if delta.dim() > 1):
                trained.family.kohya_name(part, name.removesuffix(".weight"))
    sides = [min(delta.flatten(1).shape) for named in changes.values() for delta in named.values() if delta.dim() > 1]
    asked.rank = min(asked.rank, max(sides, default=1))  # beyond the widest layer's a LoRA holds nothing but zeros
    layers, losses = as_lora(changes, trained.parts, asked.rank, asked.dtype)
    if not layers:
        raise UserError(
            f"{trained.run.path} has changed no linear or convolutional layer, which are all that a LoRA can "
            "hold; choose merged or original"
        )
    written = _lora_file(trained, asked, folder, layers)
    written.residual = residual_rows(losses)
    lost = written.residual[-1]["residual"]
    written.notes.append(f"an approximation by SVD at rank {asked.rank}: |change - kept| / |change| = {lost:.4f}")
    return written


def _lora_file(trained: Trained, asked: Asked, folder: Path, layers: Layers) -> Written:
    layers = {part: {name: layer.to(asked.dtype) for name, layer in named.items()} for part, named in layers.items()}
    rank = next(layer.rank for named in layers.values() for layer in named.values())
    header = kohya_header(trained, rank) | model_spec(trained, lora=True)
    if asked.format in ("kohya", "comfyui"):
        file = f"{name_of(trained.run)}.safetensors"
        tensors = kohya_keys(layers, trained.family)
    else:
        file = DIFFUSERS_FILE
        tensors, header = diffusers_keys(layers, trained.family), header | diffusers_header(layers)
    write_safetensors(folder / file, {name: weight.contiguous() for name, weight in tensors.items()}, header)
    return Written("lora", file)


WAYS: dict[str, Callable[[Trained, Asked, Path], Written]] = {
    "pipeline": _pipeline,
    "original": _original,
    "peft": _peft,
    "lora": lambda trained, asked, folder: _lora_file(trained, asked, folder, lora_layers(trained)),
    "svd": _svd,
}
