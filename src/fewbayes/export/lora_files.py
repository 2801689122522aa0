"""The key layouts of LoRA files: diffusers, PEFT, kohya (which ComfyUI and A1111 read as well).

All of them hold the same numbers: alpha equals the rank everywhere, so a reader that ignores alpha gets the same
pictures as one that does not. Knows nothing of runs; `metadata` writes the headers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fewbayes.export.trained import Layers, LowRank
from fewbayes.models import Family


def diffusers_keys(layers: Layers, family: Family) -> dict[str, Tensor]:
    """For `load_lora_weights`: `<part>.<layer>.lora_A.weight`, layers by the names that all programs know."""
    return {
        f"{part}.{family.lora_name(part, name)}.{end}{_full(part, end, family)}": weight
        for part, named in layers.items()
        for name, layer in named.items()
        for end, weight in _ends(layer).items()
    }


def diffusers_header(layers: Layers) -> dict[str, str]:
    """What diffusers' own writer puts into the header, only with settings that every version of PEFT has."""
    settings = {
        f"{part}.{key}": value for part, named in layers.items() for key, value in _lora_settings(named).items()
    }
    return {"lora_adapter_metadata": json.dumps(settings, indent=2, sort_keys=True)}


def peft_keys(named: Mapping[str, LowRank]) -> dict[str, Tensor]:
    """The file of one module in a PEFT folder; its names are the module's own."""
    return {
        f"base_model.model.{name}.{end}": weight
        for name, layer in named.items()
        for end, weight in _ends(layer).items()
    }


def write_peft_config(folder: Path, named: Mapping[str, LowRank], base: str) -> None:
    settings = {"peft_type": "LORA", "base_model_name_or_path": base, "inference_mode": True} | _lora_settings(named)
    (folder / "adapter_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def kohya_keys(layers: Layers, family: Family) -> dict[str, Tensor]:
    """Two matrices a layer under the name of the network that kohya trains, each with its `.alpha`."""
    together: dict[str, list[LowRank]] = {}
    for part, named in layers.items():
        for name, layer in named.items():
            assert layer.magnitude is None, "kohya's networks.lora has no DoRA"
            together.setdefault(family.kohya_name(part, name), []).append(layer)
    out: dict[str, Tensor] = {}
    for stem, several in together.items():
        layer = several[0] if len(several) == 1 else _side_by_side(several)
        out[f"{stem}.lora_down.weight"], out[f"{stem}.lora_up.weight"] = layer.down, layer.up
        out[f"{stem}.alpha"] = torch.tensor(float(layer.rank))
    return out


def _side_by_side(layers: Sequence[LowRank]) -> LowRank:
    """Query, key and value, in this order, as the one layer that they are elsewhere: the same change at three ranks."""
    assert len(layers) == 3, "a model that trains one of query, key and value trains all"
    return LowRank(torch.cat([layer.down for layer in layers]), torch.block_diag(*(layer.up for layer in layers)))


def _ends(layer: LowRank) -> dict[str, Tensor]:
    ends = {"lora_A.weight": layer.down, "lora_B.weight": layer.up}
    return ends if layer.magnitude is None else ends | {"lora_magnitude_vector": layer.magnitude}


def _full(part: str, end: str, family: Family) -> str:
    """Of DoRA's vector the loader of text encoders knows only the full name, where PEFT leaves the end away."""
    return ".weight" if part in family.text_encoders and end.endswith("magnitude_vector") else ""


def _lora_settings(named: Mapping[str, LowRank]) -> dict[str, Any]:
    """Layers go by their names without `text_model.`: PEFT compares the ends of names, so these fit old and new."""
    (rank,) = {layer.rank for layer in named.values()}
    return {
        "r": rank,
        "lora_alpha": rank,
        "target_modules": sorted(name.removeprefix("text_model.") for name in named),
        "lora_dropout": 0.0,
        "bias": "none",
        "init_lora_weights": True,
        "rank_pattern": {},
        "alpha_pattern": {},
        "use_dora": any(layer.magnitude is not None for layer in named.values()),
        "use_rslora": False,
    }
