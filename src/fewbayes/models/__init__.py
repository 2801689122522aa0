"""Model families: the only rooms that know diffusers and transformers.

A family converts at its border: pictures are uint8 (batch, height, width, 3), prompts are strings, and everything
above speaks x0, eps, alpha_bar and `Conditioning`. This file names what every family offers and picks the right one;
it imports neither torch nor diffusers, so that a bad model folder is refused in milliseconds.
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

    from fewbayes.diffusion.conditioning import Conditioning


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without loading its weights.

    family: "sd" or "sdxl"; resolution: side of its pictures in pixels; recommended: settings that its folder advises
    (`fewbayes.json`); rare_token: the word its tokenizer keeps for a new subject, None if it has none.
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
        from fewbayes.models.folders import fingerprint

        return fingerprint(self.folder, self.family)


class Family(Protocol):
    """A loaded model. Everything is float32 unless said otherwise; pictures are uint8 (batch, height, width, 3).

    denoiser: what is fine-tuned; text_encoders, tokenizers: by the name that a pipeline gives them, "text_encoder"
    and "tokenizer", with "text_encoder_2" and "tokenizer_2" where there are two.
    """

    card: ModelCard

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def text_encoders(self) -> dict[str, nn.Module]: ...
    @property
    def tokenizers(self) -> dict[str, Any]: ...
    @property
    def vae(self) -> nn.Module: ...
    @property
    def alpha_bar(self) -> Tensor: ...
    @property
    def prediction_type(self) -> str: ...
    @property
    def device(self) -> torch.device: ...
    def to(self, device: torch.device | str) -> Family: ...
    def checkpoint_gradients(self, on: bool) -> None: ...
    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]: ...
    def decode_latents(self, latents: Tensor) -> np.ndarray: ...
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning: ...
    def encode_negative(self, prompt: str) -> Conditioning: ...
    def count_tokens(self, word: str) -> int: ...
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...
    def prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Tensor]: ...
    def pipeline(self, sampler: str) -> Any: ...
    def save(self, folder: str | Path) -> None: ...


def inspect_model(model: str) -> ModelCard:
    """Look at a model without loading it: `tiny`, a pipeline folder, or an id on the Hugging Face hub.

    Raises UserError naming the missing part, the pickled weights or the unsupported class.
    """
    from fewbayes.models.folders import inspect_pipeline

    return inspect_pipeline(model)


def load_family(model: str | ModelCard) -> Family:
    """Load a model into memory, on the CPU, in float32."""
    card = inspect_model(model) if isinstance(model, str) else model
    return _class_of(card).load(card)


def meta_family(card: ModelCard) -> Family:
    """A model on the meta device: the true classes, names and shapes of all parts, no weights and no memory.

    Only the config.json of each part is read, so the folder needs no weights; there are no tokenizers.
    """
    return _class_of(card).without_weights(card)


def meta_denoiser(card: ModelCard) -> nn.Module:
    """The denoiser alone, on the meta device."""
    from fewbayes.models.folders import meta_part

    return meta_part(card.folder, card.family, "unet")


def parameter_counts(card: ModelCard) -> dict[str, int]:
    """Parameters of each part of a model: "denoiser", "text_encoder", "text_encoder_2" if there is one, and "vae".

    Only the config.json of each part is read.
    """
    from fewbayes.models.folders import meta_part, weighted_parts

    modules = {part: meta_part(card.folder, card.family, part) for part in weighted_parts(card.family)}
    return {
        "denoiser" if part == "unet" else part: sum(parameter.numel() for parameter in module.parameters())
        for part, module in modules.items()
    }


def _class_of(card: ModelCard) -> Any:
    if card.family == "sdxl":
        from fewbayes.models.sdxl import StableDiffusionXL

        return StableDiffusionXL
    from fewbayes.models.sd import StableDiffusion

    return StableDiffusion
