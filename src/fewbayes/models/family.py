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

from fewbayes.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

    from fewbayes.diffusion.conditioning import Conditioning
    from fewbayes.diffusion.guidance import Interval
    from fewbayes.diffusion.process import Process


@dataclass(frozen=True)
class ModelCard:
    """What is known of a model without loading its weights.

    family: the name of its family in the registry; prediction_type: what its network answers, as its scheduler's
    settings say; resolution: side of its pictures in pixels; recommended: settings that its folder advises
    (`fewbayes.json`); rare_token: the word its tokenizer keeps for a new subject, None if it has none. most_steps: that
    a sampler can take, None for any number; side_unit: a side in pixels is a multiple of it, twice it or more.
    distilled: to draw in few steps, as far as its index and its name say.
    """

    model: str
    folder: Path
    family: str
    prediction_type: str
    resolution: int
    recommended: dict[str, Any] = field(default_factory=dict)
    rare_token: str | None = None
    most_steps: int | None = None
    side_unit: int = 8
    distilled: bool = False

    def check_drawn(self, sampler: str, steps: int = 1, resolution: int | None = None) -> None:
        """UserError where the model draws no pictures so; None: in its own size."""
        from fewbayes.models.registry import family_named

        samplers, unit = family_named(self.family).samplers, self.side_unit
        if sampler not in samplers:
            raise UserError(f"sampler {sampler!r} is not known; choose one of {', '.join(samplers)}")
        if steps < 1:
            raise UserError(f"num_inference_steps is {steps}; it must be at least 1")
        if self.most_steps is not None and steps > self.most_steps:
            raise UserError(
                f"num_inference_steps is {steps}; this model was trained with {self.most_steps}, so give "
                f"{self.most_steps} at most"
            )
        if resolution is not None and (resolution % unit or resolution < 2 * unit):
            raise UserError(f"resolution is {resolution}; it must be a multiple of {unit}, {2 * unit} or more")

    @property
    def usual_sampler(self) -> str:
        """The first that its family names."""
        from fewbayes.models.registry import family_named

        return next(iter(family_named(self.family).samplers))

    def fingerprint(self) -> str:
        """sha256 over the weights and settings of all parts: two folders with one fingerprint are one model."""
        from fewbayes.models.folders import fingerprint
        from fewbayes.models.registry import family_named

        return fingerprint(self.folder, family_named(self.family))


@dataclass(frozen=True)
class Part:
    """A part with weights, a folder of a pipeline: where its class comes from, and the stem of its files.

    dtype: what it is loaded in, whatever it is stored in; once: what it makes of pictures and prompts can be kept, and
    the denoiser predicts without it; optional: a folder may name it as null, with its tokenizer.
    """

    library: str
    kind: str
    stem: str
    dtype: str = "float32"
    once: bool = False
    optional: bool = False


class Layout(Protocol):
    """What a family's pipeline folders hold; known of the class, before any model is loaded.

    name: in the registry; pipeline_class: the one that model_index.json names; described: the models in words; parts:
    by folder, `denoiser_part` among them (a loaded family names those that it has); tokenizer_parts: folders without
    weights, by the class in transformers that reads them; samplers: scheduler classes of diffusers by the names that
    users give, the usual one first.
    layer_groups: of the denoiser, by which `where` speaks: "self-attention", "cross-attention", "feed-forward", "time",
    "time-embedding" (common to all blocks), "up", ... and a regular expression of module paths each; a group that the
    network has not is left out. adapter_targets: "attention" and "ff", endings of the names of linear layers that get
    adapters; text_targets: the same in text encoders.
    embedding_keys: of several text encoders, what a file of learned embeddings calls each by its folder's name.
    formats: of those that need names of other programs ("kohya", "comfyui", "original") the ones it has names for;
    guidance_less: how far the guidance that the pipeline calls its own lies below ours, where 1 is none.
    foreign_arguments: what others have to say to `from_pretrained` of the pipeline's class; tag: of its models on the
    hub.
    """

    name: str
    pipeline_class: str
    described: str
    parts: Mapping[str, Part]
    denoiser_part: str
    tokenizer_parts: Mapping[str, str]
    samplers: Mapping[str, str]
    layer_groups: Mapping[str, str]
    adapter_targets: Mapping[str, Sequence[str]]
    text_targets: Sequence[str]
    embedding_keys: Mapping[str, str]
    formats: Sequence[str]
    foreign_arguments: Mapping[str, Any]
    tag: str
    guidance_less: float

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        """Beyond what all folders are checked for; UserError names what is wrong. Reads no weights."""
        ...


class Family(Layout, Protocol):
    """A loaded model. Networks compute in float32 unless said otherwise.

    denoiser: what is fine-tuned; text_encoders, those that may be fine-tuned too, and tokenizers: by their folders'
    names, "text_encoder" and "tokenizer", "text_encoder_2" and "tokenizer_2", ...
    """

    card: ModelCard
    precision: str

    @classmethod
    def load(cls, card: ModelCard, *, whole: bool = True) -> Self:
        """On the CPU. Not whole: a part may wait until `fetch`, or until it is used."""
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

    def reduce(self, precision: str) -> None:
        """Keep the weights of denoiser and text encoders in "bf16", "int8" or "nf4", and compute with them in bfloat16.

        What is put in afterwards keeps its precision; predictions, conditionings and latents stay float32. "fp32" is no
        change. `precision` is the one that they are in.
        """
        ...

    def fetch(self, *parts: str) -> None:
        """Load these parts, or all, where they are not there."""
        ...

    def drop(self, *parts: str) -> None:
        """Free the memory of parts that nobody has changed, until they are used again."""
        ...

    def keep_prompts(self, folder: Path, *, on: torch.device | str | None = None) -> None:
        """Encode no prompt twice: encodings are kept, those of large text encoders in this folder too.

        For text encoders that stay as they are. on: another device than the denoiser's, where they read.
        """
        ...

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, more time, the same numbers."""
        ...

    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of uint8 pictures: a draw is mean + std * normal."""
        ...

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """uint8 pictures of scaled latents."""
        ...

    def decoded(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        """Pictures (batch, 3, height, width), black at -1 and white at 1, decoded in a precision that is to be tried.

        Of a copy of the autoencoder, in float32 numbers; what lies beyond black and white is not cut off.
        """
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
        interval: Interval = ...,
    ) -> Tensor:
        """Scaled latents of new pictures, one for each row of both conditionings, from a generator each.

        guidance: 1 or less is none; resolution: side in pixels, None for the model's own; interval: of the noise levels
        that are guided, all of them where it is not given.
        """
        ...

    def levels(self, timesteps: Tensor) -> Tensor:
        """Noise-to-signal ratios of a scheduler's timesteps; one between two of a table counts as the nearer."""
        ...

    def example_batch(self, count: int, resolution: int, *, encode: bool) -> tuple[Tensor, Tensor, Conditioning]:
        """x_t, t and prompts of the shapes of training, for an estimate of memory; the numbers mean nothing.

        encode: through the text encoders, as where gradients pass them; no tokenizer is asked.
        """
        ...

    def save(self, folder: str | Path) -> None:
        """Write a plain pipeline folder, float32 safetensors, with the scheduler the model came with."""
        ...

    def lora_name(self, part: str, layer: str) -> str:
        """The name of a layer of a changeable part in LoRA files for the pipeline, without the part's own."""
        ...

    def kohya_name(self, part: str, layer: str) -> str:
        """What the names of a layer's tensors begin with in kohya's files, "lora_unet_..."; for format kohya.

        Query, key and value of one name are one layer there. UserError of a layer that nobody here reads there.
        """
        ...

    def original_weights(self) -> dict[str, Tensor]:
        """All weights under the names of the original release, one file of them; for format original."""
        ...

    def published_as(self) -> tuple[str, str]:
        """The architecture's id in Stability's ModelSpec, and kohya's base version: what file headers say."""
        ...


def tokenizer_of(encoder: str) -> str:
    """The folder of a text encoder's tokenizer, by the encoder's own."""
    return encoder.replace("text_encoder", "tokenizer")


def text_parts(family: Family) -> list[str]:
    """All parts that read prompts."""
    return [name for name in family.parts if tokenizer_of(name) in family.tokenizer_parts]


def embedding_names(family: Family, word: str) -> dict[str, str]:
    """By text encoder, its name in a file of learned embeddings: the word's own where there is one encoder."""
    encoders = family.text_encoders
    return {name: family.embedding_keys[name] if len(encoders) > 1 else word for name in encoders}


def changeable(family: Family) -> dict[str, nn.Module]:
    """The modules that fine-tuning may change, by their folders' names: the denoiser and the text encoders."""
    return {family.denoiser_part: family.denoiser, **family.text_encoders}
