"""Z-Image, the base model: one transformer for pictures and words in one sequence, told words by a language model.

Words are the hidden states before the last layer of Qwen3, without their padding; it is never fine-tuned. The network
is told 1 - s, how much of the picture is there, and answers x0 - eps; training draws times evenly from the scheduler's
table, as diffusers' script does. The pipeline's guidance w is ours less one: its answer is c + w (c - u). Knows nothing
of training or of run folders.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.models.configs import FlowScheduler
from fewbayes.models.family import Part
from fewbayes.models.pipelines import VAE, PipelineFamily, named, unread
from fewbayes.models.registry import register
from fewbayes.models.tokens import chat_ids

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning

TOKENS = 512
"""The pipeline's `max_sequence_length`."""
LAYER = -2
"""Of the language model, whose hidden states are read."""
BLOCKS = [f"{part}.{i}" for part, count in (("layers", 64), ("noise_refiner", 8)) for i in range(count)]
"""Those that pictures pass, in any model of this kind; `context_refiner` is for words alone."""


@register
class ZImage(PipelineFamily):
    """6B."""

    name = "z_image"
    pipeline_class = "ZImagePipeline"
    described = "Z-Image"
    parts: Mapping[str, Part] = {
        "vae": VAE,
        "transformer": Part("diffusers", "ZImageTransformer2DModel", "diffusion_pytorch_model"),
        "text_encoder": Part("transformers", "Qwen3Model", "model", once=True),
    }
    denoiser_part = "transformer"
    tokenizer_parts: Mapping[str, str] = {"tokenizer": "Qwen2TokenizerFast"}
    samplers: Mapping[str, str] = {"euler": "FlowMatchEulerDiscreteScheduler"}
    # The joint blocks read pictures and words with one set of weights; what the words have alone is cross-attention.
    layer_groups: Mapping[str, str] = {
        "self-attention": r"^(layers|noise_refiner)\.\d+\.attention\.",
        "cross-attention": r"^context_refiner\.|^cap_embedder\.",
        "feed-forward": r"^(layers|noise_refiner)\.\d+\.feed_forward\.",
        "time": r"^t_embedder\.|\.adaLN_modulation\.",
        "time-embedding": r"^t_embedder\.",
    }
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "ff": tuple(f"{block}.feed_forward.{layer}" for block in BLOCKS for layer in ("w1", "w2", "w3")),
    }
    text_targets: Sequence[str] = ()
    formats: Sequence[str] = ("kohya", "comfyui")
    tag = "z-image"
    scheduler_schema = FlowScheduler
    guidance_less = 1.0

    @classmethod
    def _check(cls, folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        if denoiser["in_channels"] != vae["latent_channels"] or denoiser.get("siglip_feat_dim") is not None:
            raise UserError(
                f"{folder / 'transformer'} takes {denoiser['in_channels']} channels, the autoencoder gives "
                f"{vae['latent_channels']}, and a text-to-image model sees no pictures (siglip_feat_dim is "
                f"{denoiser.get('siglip_feat_dim')}): give Z-Image as it was published"
            )

    @classmethod
    def _side(cls, denoiser: Mapping[str, Any]) -> int:
        return 128

    @classmethod
    def _patch(cls, denoiser: Mapping[str, Any]) -> int:
        return 2

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self._told(chat_ids(self.tokenizers["tokenizer"], prompts, TOKENS, thinking=True))

    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        words, mask = ids[0], ids[1].bool()
        told = self.modules["text_encoder"](words, attention_mask=mask, output_hidden_states=True, use_cache=False)
        return named(tokens=told.hidden_states[LAYER], mask=mask)

    def _lengths(self) -> list[int]:
        return [TOKENS, TOKENS]

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        wide = cast("Any", self.denoiser).config.cap_feat_dim
        return named(tokens=torch.empty(count, tokens, wide), mask=torch.ones(count, tokens, dtype=torch.bool))

    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        import torch

        answers = self.denoiser(list(xt[:, :, None].unbind()), 1 - t.to(xt.dtype), _words(cond), return_dict=False)[0]
        return -torch.stack(answers)[:, :, 0]

    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": _words(cond), "negative_prompt_embeds": _words(negative)}

    def published_as(self) -> tuple[str, str]:
        return "Z-Image", "z_image"

    def kohya_name(self, part: str, layer: str) -> str:
        """By the names of the original release, which ComfyUI reads, and diffusers those of blocks."""
        if layer.startswith("all_"):
            raise unread(layer)
        original = re.sub(r"\.to_[qkv]$", ".qkv", layer).replace(".to_out.0", ".out")
        return f"lora_unet_{original.replace('.', '_')}"


def _words(cond: Conditioning) -> list[Tensor]:
    """(words, width) of each prompt, without padding; of shapes alone, which have no words, all of it."""
    from torch._subclasses.fake_tensor import FakeTensor

    told = list(zip(cond["tokens"], cond["mask"], strict=True))
    return [tokens if isinstance(mask, FakeTensor) or mask.is_meta else tokens[mask] for tokens, mask in told]
