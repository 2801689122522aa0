"""Adapters made by any trainer, put on a loaded family: LoRA files of all layouts, and folders of PEFT.

What `fewbayes` trains is loaded by its own methods; this is for what comes without a run. Knows no method.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbayes.errors import UserError
from fewbayes.files.decode import plain_json
from fewbayes.models.family import Family, changeable
from fewbayes.models.lora_reading import attach, read_lora

if TYPE_CHECKING:
    from torch import nn

log = logging.getLogger("fewbayes")

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE, PEFT_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PEFT_PREFIX = "base_model.model."  # of names in PEFT's files


def is_adapter(source: Path) -> bool:
    """Whether this looks like what `load_adapter` reads."""
    if source.is_file():
        return source.suffix.lower() == ".safetensors"
    return (source / LORA_FILE).is_file() or bool(_peft_folders(source, ("",)))


def load_adapter(family: Family, source: Path, *, alpha: float | None = None, spoilt: bool = False) -> None:
    """Put a LoRA file, or a PEFT folder with one adapter or one per part, on the family, to stay there.

    alpha: of a file that does not say its own; spoilt: with numbers that are not finite too. UserError where nothing of
    it, or not all of it, fits the model.
    """
    modules = changeable(family)
    folders = _peft_folders(source, list(modules))
    if unknown := folders.keys() - modules.keys():
        raise UserError(f"{source} holds an adapter for a {min(unknown)}, which {family.card.model} has not")
    for part, folder in folders.items():
        if _kind(folder) == "LORA":
            _load_lora(family, {part: modules[part]}, folder / PEFT_WEIGHTS, alpha, spoilt)
        else:
            _load_peft(modules[part], folder)
    if not folders:
        _load_lora(family, modules, source if source.is_file() else source / LORA_FILE, alpha, spoilt)


def _load_lora(family: Family, modules: dict[str, nn.Module], file: Path, alpha: float | None, spoilt: bool) -> None:
    lora = read_lora(file, modules, partial(_spelled, family), alpha=alpha, spoilt=spoilt)
    if lora.unsaid:
        log.warning("%s does not say its alpha; the rank is taken for it (strength 1), --lora_alpha sets another", file)
    if lora.left_out:
        log.warning("%s bundles learned words, which are left out: %s", file, ", ".join(lora.left_out))
    attach(modules, lora)


def _spelled(family: Family, part: str, layer: str) -> list[str]:
    """A layer's names in kohya's files, of one text encoder and of the first of several."""
    stem = "unet" if part == family.denoiser_part else part
    plain = [f"lora_{each}_{layer.replace('.', '_')}" for each in {stem, part}]  # diffusers' own, by some trainers
    if "kohya" not in family.formats:
        return plain
    try:
        name = family.kohya_name(part, layer)
    except UserError:  # an architecture or a layer that kohya's trainers have no names for
        return plain
    return [name, name.replace("lora_te_", "lora_te1_", 1), *plain]


def _peft_folders(source: Path, parts: Sequence[str]) -> dict[str, Path]:
    """Folders with a PEFT adapter by the part they are for; one without a part's name is for the first, the denoiser.

    A file named as PEFT names its weights stands for its folder, where the settings lie.
    """
    if source.name == PEFT_WEIGHTS and source.with_name(PEFT_FILE).is_file():
        source = source.parent
    found = {inner.parent.name: inner.parent for inner in source.glob(f"*/{PEFT_FILE}")} if source.is_dir() else {}
    return found or ({parts[0]: source} if (source / PEFT_FILE).is_file() else {})


def _kind(folder: Path) -> str:
    told = plain_json(folder / PEFT_FILE, cure="save the adapter again")
    if not isinstance(told, dict) or not isinstance(told.get("peft_type"), str):
        raise UserError(f"{folder / PEFT_FILE} names no peft_type; save the adapter again")
    return told["peft_type"].upper()


def _load_peft(module: nn.Module, folder: Path) -> None:
    """Any other kind that PEFT knows, OFT for instance."""
    from peft import PeftConfig, get_peft_model_state_dict
    from peft.functional import inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights
    from safetensors import SafetensorError

    try:
        settings = PeftConfig.from_pretrained(str(folder))
        settings.inference_mode = True
        inject_adapter_in_model(settings, module)
        loaded = load_peft_weights(str(folder), "cpu")
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder} cannot be read, it is damaged or no safetensors file: {error}") from error
    except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:  # all they raise
        raise UserError(
            f"{folder} is a {_kind(folder)} adapter that does not fit the model or this version of PEFT "
            f"({type(error).__name__})"
        ) from error
    weights = {key.removeprefix(PEFT_PREFIX): weight for key, weight in loaded.items()}
    live = get_peft_model_state_dict(module, save_embedding_layers=False)
    if different := sorted(live.keys() ^ weights.keys()):
        raise UserError(f"{folder}: {len(different)} names of its tensors and of the layers differ, as {different[0]}")
    for name, tensor in live.items():
        if tensor.shape != weights[name].shape:
            found, wanted = tuple(weights[name].shape), tuple(tensor.shape)
            raise UserError(f"{folder} is for another base model: {name} is {found} there and {wanted} here")
    set_peft_model_state_dict(module, weights)


def lora_layers(*modules: nn.Module) -> list[Any]:
    """Layers of PEFT whose strength is a number that can be changed."""
    layers = [layer for module in modules for layer in module.modules() if hasattr(layer, "base_layer")]
    return [layer for layer in layers if hasattr(layer, "lora_A") and isinstance(getattr(layer, "scaling", None), dict)]


@contextmanager
def scaled(layers: Sequence[Any], factor: float) -> Iterator[None]:
    """Inside, the adapters act with this multiple of their strength; afterwards with their own, bit for bit."""
    before = [dict(layer.scaling) for layer in layers]
    try:
        for layer in layers:
            layer.scaling.update({name: factor * own for name, own in layer.scaling.items()})
        yield
    finally:
        for layer, own in zip(layers, before, strict=True):
            layer.scaling.update(own)
