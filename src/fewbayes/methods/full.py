"""Full fine-tuning: every weight of the denoiser is trained, on request those of the text encoders too.

Which of the denoiser's weights may be random is left to `where` (Table 4 of the paper). Knows nothing of diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from fewbayes.methods.adapters import DENOISER_FOLDER, copy_state, trained_parts

if TYPE_CHECKING:
    from torch import Tensor, nn

    from fewbayes.models import Family
    from fewbayes.settings.config import TrainConfig


class Full:
    result = "model_index.json"

    def __init__(self, config: TrainConfig) -> None:
        self.config = config

    def attach(self, family: Family) -> None:
        for part in trained_parts(family, self.config).values():
            part.requires_grad_(True)

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return {
            f"{name}.{key}": parameter
            for name, part in trained_parts(family, self.config).items()
            for key, parameter in part.named_parameters()
        }

    def random(self, family: Family, where: str) -> tuple[nn.Module, str]:
        return family.denoiser, where

    def penalty(self, family: Family) -> Tensor | None:
        return None

    def begin_step(self, family: Family, step: int, row: int = 0) -> None:
        pass

    def training(self, family: Family, on: bool) -> None:
        pass

    def export(self, family: Family, folder: Path) -> None:
        family.save(folder)

    def load(self, family: Family, folder: Path) -> None:
        """Read a pipeline folder's denoiser and text encoders, trained or not."""
        from safetensors.torch import load_file

        for name, part in {DENOISER_FOLDER: family.denoiser, **family.text_encoders}.items():
            shards = [load_file(file) for file in sorted((folder / name).glob("*.safetensors"))]
            copy_state(
                part.state_dict(), {key: value for shard in shards for key, value in shard.items()}, folder / name
            )

    def detach(self, family: Family) -> None:
        for part in (family.denoiser, *family.text_encoders.values()):
            part.requires_grad_(False)
