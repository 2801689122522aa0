"""Full fine-tuning: every weight of the denoiser is trained, on request those of the text encoder too.

Which of the denoiser's weights may be random is left to `where` (Table 3 of the paper). Knows nothing of diffusers.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Full:
    train_text_encoder: bool = False

    def attach(self, family: Any) -> None:
        family.denoiser.requires_grad_(True)
        family.text_encoder.requires_grad_(self.train_text_encoder)

    def trainable(self, family: Any) -> dict[str, nn.Parameter]:
        named = {f"denoiser.{name}": p for name, p in family.denoiser.named_parameters()}
        if self.train_text_encoder:
            named |= {f"text_encoder.{name}": p for name, p in family.text_encoder.named_parameters()}
        return named

    def random(self, family: Any, where: str) -> tuple[nn.Module, str]:
        return family.denoiser, where

    def export(self, family: Any, folder: Path) -> None:
        family.save(folder)

    def detach(self, family: Any) -> None:
        family.denoiser.requires_grad_(False)
        family.text_encoder.requires_grad_(False)
