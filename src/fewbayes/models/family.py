"""What every model family offers: the one description of a model that the rest of the program is written against.

A family owns all that is particular to a kind of model and converts at its border: pictures are uint8 (batch, height,
width, 3), prompts are strings, and everything above speaks x0, eps, times of a `Process`, and `Conditioning`. Imports
neither torch nor diffusers, so that a bad model folder is refused in milliseconds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, Self

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from fewbayes.diffusion.conditioning import Conditioning
    from fewbayes.diffusion.process import Process


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without loading its weights.

    family: the name of its family in the registry; prediction_type: what its network answers, as its scheduler's
    settings say; resolution: side of its pictures in pixels; recommended: settings that its folder advises
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
        from fewbayes.models.registry import family_named

        return fingerprint(self.folder, family_named(self.family))


@dataclass(frozen=True)
class Part:
    """A part with weights, a folder of a pipeline: where its class comes from, and the stem of its files.

    dtype: what it is loaded in, whatever it is stored in; once: what it makes of pictures and prompts can be kept, and
    the denoiser predicts without it.
    """

    library: str
    kind: str
    stem: str
    dtype: str = "float32"
    once: bool = False


class Layout(Protocol):
    """What a family's pipeline folders hold; known of the class, before any model is loaded.

    name: in the registry; pipeline_class: the one that model_index.json names; described: the models in words; parts:
    by folder, `denoiser_part` among them; tokenizer_parts: folders without weights.
    """

    name: str
    pipeline_class: str
    described: str
    parts: Mapping[str, Part]
    denoiser_part: str
    tokenizer_parts: Sequence[str]

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        """Beyond what all folders are checked for; UserError names what is wrong. Reads no weights."""
        ...


class Family(Layout, Protocol):
    """A loaded model. Networks compute in float32 unless said otherwise.

    samplers: by the names that users give, the usual one first. denoiser: what is fine-tuned; text_encoders and
    tokenizers: by their folders' names, "text_encoder" and "tokenizer", "text_encoder_2" and "tokenizer_2", ...
    """

    samplers: Sequence[str]

    card: ModelCard

    @classmethod
    def load(cls, card: ModelCard) -> Self:
        """On the CPU."""
        ...

    @classmethod
    def without_weights(cls, card: ModelCard) -> Self:
        """On the meta device, from the config.json of each part; there are no tokenizers."""
        ...

    @property
    def process(self) -> Process: ...
    @property
    def modules(self) -> Mapping[str, nn.Module]:
        """All parts, by their folders' names."""
        ...

    @property
    def denoiser(self) -> nn.Module: ...
    @property
    def text_encoders(self) -> Mapping[str, Any]: ...
    @property
    def tokenizers(self) -> Mapping[str, Any]: ...
    @property
    def device(self) -> torch.device: ...
    def to(self, device: torch.device | str) -> Self: ...

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, more time, the same numbers."""
        ...

    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of uint8 pictures: a draw is mean + std * normal."""
        ...

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """uint8 pictures of scaled latents."""
        ...

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """One row a prompt. Gradients flow if the text encoders' parameters ask for them."""
        ...

    def encode_negative(self, prompt: str) -> Conditioning:
        """One row: what guidance leads away from; "" is what the pipeline takes when nothing is said."""
        ...

    def count_tokens(self, word: str) -> int:
        """How many tokens the word is split into, by the tokenizer that splits most; 0 if a part is unknown to one."""
        ...

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The network's output in the convention of `process`, of the shape of xt; t: (batch,) times of the process."""
        ...

    def draw_latents(
        self,
        cond: Conditioning,
        negative: Conditioning,
        generators: Sequence[torch.Generator],
        *,
        sampler: str,
        steps: int,
        guidance: float,
        resolution: int | None,
    ) -> Tensor:
        """Scaled latents of new pictures, one for each row of both conditionings, from a generator each.

        guidance: 1 or less is none; resolution: side in pixels, None for the model's own.
        """
        ...

    def save(self, folder: str | Path) -> None:
        """Write a plain pipeline folder, float32 safetensors, with the scheduler the model came with."""
        ...


def changeable(family: Family) -> dict[str, nn.Module]:
    """The modules that fine-tuning may change, by their folders' names: the denoiser and the text encoders."""
    return {family.denoiser_part: family.denoiser, **family.text_encoders}
