"""Adapters made by any trainer, put on a loaded family: LoRA files as diffusers reads them, and folders of PEFT.

What `fewbayes` trains is loaded by its own methods; this is for what comes without a run. Knows no method.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import TYPE_CHECKING

from fewbayes.errors import UserError
from fewbayes.models.folders import quiet

if TYPE_CHECKING:
    from torch import nn

    from fewbayes.models.family import Family

LORA_FILE = "pytorch_lora_weights.safetensors"
PEFT_FILE = "adapter_config.json"
PEFT_PREFIX = "base_model.model."  # of names in PEFT's files


def is_adapter(source: Path) -> bool:
    """Whether this looks like what `load_adapter` reads."""
    if source.is_file():
        return source.suffix == ".safetensors"
    return (source / LORA_FILE).is_file() or bool(_peft_folders(source))


def load_adapter(family: Family, source: Path) -> None:
    """Put a LoRA file, or a PEFT folder with one adapter or one per part, on the family, to stay there.

    UserError where nothing of it, or not all of it, fits the model.
    """
    from safetensors import SafetensorError

    folders = _peft_folders(source)
    try:
        # transformers says at length on stderr what we say in a line
        with quiet(), contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            if folders:
                for part, folder in folders.items():
                    _load_peft(_part(family, part), folder)
            else:
                file = source if source.is_file() else source / LORA_FILE
                family.load_lora(file)
                _check_all_used(family, file)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{source} cannot be read, it is damaged or no safetensors file: {error}") from error
    except (AttributeError, ImportError, LookupError, RuntimeError, TypeError, ValueError) as error:  # all they raise
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"{source} does not fit {family.card.model}: {' '.join(lines[:2]).strip()}") from error
    if not any(hasattr(module, "peft_config") for module in (family.denoiser, *family.text_encoders.values())):
        raise UserError(f"nothing in {source} belongs to the denoiser or a text encoder of {family.card.model}")


def _peft_folders(source: Path) -> dict[str, Path]:
    """Folders with a PEFT adapter by the part they are for; one without a part's name is for the denoiser."""
    parts = ("unet", "text_encoder", "text_encoder_2")
    found = {part: source / part for part in parts if (source / part / PEFT_FILE).is_file()}
    return found or ({"unet": source} if (source / PEFT_FILE).is_file() else {})


def _part(family: Family, part: str) -> nn.Module:
    if part == "unet":
        return family.denoiser
    if part not in family.text_encoders:
        raise UserError(f"it holds an adapter for a {part}, which this model has not")
    return family.text_encoders[part]


def _load_peft(module: nn.Module, folder: Path) -> None:
    from peft import PeftConfig, get_peft_model_state_dict
    from peft.functional import inject_adapter_in_model, set_peft_model_state_dict
    from peft.utils import load_peft_weights

    settings = PeftConfig.from_pretrained(str(folder))
    settings.inference_mode = True
    inject_adapter_in_model(settings, module)
    weights = {key.removeprefix(PEFT_PREFIX): weight for key, weight in load_peft_weights(str(folder), "cpu").items()}
    live = get_peft_model_state_dict(module, save_embedding_layers=False)
    if different := sorted(live.keys() ^ weights.keys()):
        raise UserError(f"{len(different)} names of its tensors and of the layers differ, as {different[0]}")
    set_peft_model_state_dict(module, weights)


def _check_all_used(family: Family, file: Path) -> None:
    """diffusers passes over layers of a LoRA that the model has not, and half a LoRA is none."""
    from safetensors.torch import load_file

    # kohya's names and the oldest of diffusers are other than PEFT's, and their alphas are no weights of layers
    weights = [name for name in load_file(file) if not name.endswith(".alpha")]
    held = sum(any(mark in name for mark in ("lora_", "lora.", "dora_")) for name in weights)
    used = sum(
        ".lora_" in name
        for module in (family.denoiser, *family.text_encoders.values())
        for name, _ in module.named_parameters()
    )
    if used < held:
        raise UserError(f"{held - used} of its {held} tensors belong to no layer")
