"""Model families: the only rooms that know diffusers and transformers.

A family converts at its border: pictures are uint8 (batch, height, width, 3), prompts are strings, and everything
above speaks x0, eps and alpha_bar. This file names what every family offers and picks the right one; it imports
neither torch nor diffusers, so that a bad model folder is refused in milliseconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without loading its weights.

    resolution: side of its pictures in pixels; recommended: settings that its folder advises (`fewbayes.json`);
    rare_token: the word its tokenizer keeps for a new subject, None if it has none.
    """

    model: str
    folder: Path
    family: str
    prediction_type: str
    resolution: int
    recommended: dict[str, Any] = field(default_factory=dict)
    rare_token: str | None = None

    def fingerprint(self) -> str:
        """sha256 over the weights and settings of all parts: two folders with one fingerprint are one model."""
        from fewbayes.families.sd import fingerprint

        return fingerprint(self.folder)


class Family(Protocol):
    """A loaded model. Everything is float32 unless said otherwise; pictures are uint8 (batch, height, width, 3)."""

    card: ModelCard

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def text_encoder(self) -> nn.Module: ...
    @property
    def alpha_bar(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    def to(self, device: torch.device | str) -> Family: ...
    def checkpoint_gradients(self, on: bool) -> None: ...
    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Tensor: ...
    def count_tokens(self, word: str) -> int: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor: ...
    def pipeline(self, sampler: str) -> Any: ...
    def save(self, folder: str | Path) -> None: ...


def inspect_model(model: str) -> ModelCard:
    """Look at a model without loading it: `tiny`, a pipeline folder, or an id on the Hugging Face hub.

    Raises ValueError naming the missing part, the pickled weights or the unsupported class.
    """
    from fewbayes.families.sd import inspect_pipeline

    return inspect_pipeline(model)


def load_family(model: str | ModelCard) -> Family:
    """Load a model into memory, on the CPU, in float32."""
    from fewbayes.families.sd import StableDiffusion

    return StableDiffusion.load(model)
