"""LoRA: W + alpha / rank B A on linear layers, by PEFT; with Bayesian weights only the up matrix B is random.

B begins at zero, so its prior mean is zero. (The paper's letters are the other way round: "up matrix A"; PEFT calls the
up matrix lora_B.) Knows of diffusers the layout of its LoRA files.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.fields import setting
from fewbayes.methods.adapters import (
    ADAPTER,
    AdapterSettings,
    PeftMethod,
    copy_state,
    folder_of,
    save_tensors,
    trained_parts,
)
from fewbayes.methods.registry import Registered, register

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family

RESULT = "pytorch_lora_weights.safetensors"


@dataclass(frozen=True, kw_only=True)
class LoraSettings(AdapterSettings):
    rank: int = setting(4, above=0)
    """Rank of the low-rank matrices."""
    lora_dropout: float = setting(0.0, at_least=0, below=1)
    """Share of the adapters' inputs that is dropped during training."""
    lora_alpha: float | None = setting(None, above=0, own_none=True)
    """Low-rank updates are scaled by lora_alpha / rank. None: the rank, so that they are not scaled at all."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    use_dora: bool = False
    """Learn the lengths of the weight's rows apart from their directions (DoRA)."""


class Lora(PeftMethod):
    config: LoraSettings

    def tuner(self) -> Any:
        from peft import LoraModel

        return LoraModel

    def peft_config(self, part: str, module: nn.Module, targets: list[str]) -> Any:
        from peft import LoraConfig

        config = self.config
        return LoraConfig(
            r=config.rank,
            lora_alpha=config.rank if config.lora_alpha is None else config.lora_alpha,  # pyright: ignore
            lora_dropout=config.lora_dropout,
            use_dora=config.use_dora,
            use_rslora=config.use_rslora,
            init_lora_weights="gaussian",  # A ~ N(0, 1 / rank^2), B = 0, as in diffusers' scripts and the authors'
            target_modules=targets,
        )

    def export(self, family: Family, folder: Path) -> None:
        """One file for the pipeline's `load_lora_weights`; alpha, rank and the rest are in its header."""
        state: dict[str, Tensor] = {}
        header: dict[str, Any] = {}
        for name, part in trained_parts(family, self.config).items():
            state |= self.file_state(family, name, part)
            header |= {f"{folder_of(family, name)}.{key}": value for key, value in _header(part).items()}
        told = json.dumps(header, indent=2, sort_keys=True)  # where and how diffusers' own writer puts it
        save_tensors(folder / RESULT, state, {"format": "pt", "lora_adapter_metadata": told})

    def load(self, family: Family, folder: Path) -> None:
        from safetensors.torch import load_file

        target: dict[str, Tensor] = {}
        for name, part in trained_parts(family, self.config).items():
            target |= self.file_state(family, name, part)
        copy_state(target, load_file(folder / RESULT), folder / RESULT)

    def file_state(self, family: Family, name: str, part: nn.Module) -> dict[str, Tensor]:
        """Live tensors by their names in the file, which every program knows."""
        state = {key: tensor for key, tensor in self.state(part).items() if re.search(r"\.lora_(A|B|magnitude)", key)}
        if name != "denoiser":
            # of DoRA's vector transformers knows only the full name, where PEFT leaves the end away
            state = {key + ".weight" * key.endswith("magnitude_vector"): tensor for key, tensor in state.items()}
        folder = folder_of(family, name)
        return {f"{folder}.{family.lora_name(folder, key)}": tensor for key, tensor in state.items()}


def _header(part: nn.Module) -> dict[str, Any]:
    """The settings that a loader needs to give the adapter the strength it was trained with."""
    settings = cast("Any", part).peft_config[ADAPTER].to_dict()
    return {key: sorted(value) if isinstance(value, set) else value for key, value in settings.items()}


register(
    Registered(
        "lora",
        Lora,
        LoraSettings,
        title="LoRA",
        trains="low-rank adapters",
        learning_rate=1e-4,
        steps_per_image=400,
        kind="lora",
        result=RESULT,
        random=r"\.lora_B\.",
    )
)
