"""FLUX.2 klein, the base models: a transformer of two kinds of blocks, told words by a language model.

Latents are patches of 2 x 2, whitened by the statistics that the autoencoder keeps. Words are hidden states of three
layers of Qwen3, side by side, with their padding; it is never fine-tuned. Times go into the network as s, and training
draws them evenly, as diffusers' script does; only sampling shifts them. A distilled model of few steps is known by
`is_distilled` in its model_index.json. Knows nothing of training or of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.models.configs import FlowScheduler
from fewbayes.models.family import Part
from fewbayes.models.folders import INDEX, read_json
from fewbayes.models.pipelines import PipelineFamily, named, unread
from fewbayes.models.registry import register
from fewbayes.models.tokens import chat_ids

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning

TOKENS = 512
"""The pipeline's `max_sequence_length`."""
LAYERS = (9, 18, 27)
"""Of the language model, whose hidden states are read."""
PATCH = 2
SINGLE = tuple(f"single_transformer_blocks.{i}.attn.to_out" for i in range(48))  # in other blocks it is no layer
ORIGINAL = {
    **dict.fromkeys(("attn.to_q", "attn.to_k", "attn.to_v"), "img_attn_qkv"),
    **dict.fromkeys(("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"), "txt_attn_qkv"),
    "attn.to_out.0": "img_attn_proj",
    "attn.to_add_out": "txt_attn_proj",
    "ff.linear_in": "img_mlp_0",
    "ff.linear_out": "img_mlp_2",
    "ff_context.linear_in": "txt_mlp_0",
    "ff_context.linear_out": "txt_mlp_2",
    "attn.to_qkv_mlp_proj": "linear1",
    "attn.to_out": "linear2",
}
"""Layers of blocks in kohya's files, which have the names of the original release. diffusers reads these."""


@register
class Flux2Klein(PipelineFamily):
    """4B and 9B."""

    name = "flux2"
    pipeline_class = "Flux2KleinPipeline"
    described = "FLUX.2 klein"
    parts: Mapping[str, Part] = {
        "vae": Part("diffusers", "AutoencoderKLFlux2", "diffusion_pytorch_model", once=True),
        "transformer": Part("diffusers", "Flux2Transformer2DModel", "diffusion_pytorch_model"),
        "text_encoder": Part("transformers", "Qwen3ForCausalLM", "model", once=True),
    }
    denoiser_part = "transformer"
    tokenizer_parts: Mapping[str, str] = {"tokenizer": "Qwen2TokenizerFast"}
    samplers: Mapping[str, str] = {"euler": "FlowMatchEulerDiscreteScheduler"}
    # Single blocks read pictures and words with one set of weights; what the words have alone is cross-attention.
    layer_groups: Mapping[str, str] = {
        "self-attention": r"^transformer_bl.*\.attn\.((to|norm)_[qkv]|to_out)|^single_transformer_blocks\..*\.attn\.",
        "cross-attention": r"\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)$|_context\.|^context_emb|modulation_txt\.",
        "feed-forward": r"\.ff\.",
        "time": r"^time_guidance_embed\.|^(double_stream_modulation_img|single_stream_modulation|norm_out)\.",
        "time-embedding": r"^time_guidance_embed\.",
    }
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0", "to_qkv_mlp_proj", *SINGLE),
        "ff": ("ff.linear_in", "ff.linear_out"),
    }
    text_targets: Sequence[str] = ()
    formats: Sequence[str] = ("kohya", "comfyui")
    tag = "flux2"
    scheduler_schema = FlowScheduler

    @classmethod
    def _check(cls, folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        patched = vae["latent_channels"] * PATCH**2
        if denoiser["in_channels"] != patched or denoiser.get("guidance_embeds"):
            raise UserError(
                f"{folder / 'transformer'} takes {denoiser['in_channels']} channels, the autoencoder gives {patched} "
                "in patches, and klein is not told its guidance: give a klein model as it was published"
            )

    @classmethod
    def _side(cls, denoiser: Mapping[str, Any]) -> int:
        return 128

    @classmethod
    def _patch(cls, denoiser: Mapping[str, Any]) -> int:
        return PATCH

    @property
    def _pixels_per_latent(self) -> int:
        return PATCH * super()._pixels_per_latent

    def _scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self._whitening()
        return (_patched(mean) - shift) / scale, _patched(std) / scale

    def _unscaled(self, latents: Tensor) -> Tensor:
        shift, scale = self._whitening()
        return _unpatched(latents * scale + shift)

    def _whitening(self) -> tuple[Tensor, Tensor]:
        """Mean and deviation of each channel of the patches, (1, channels, 1, 1)."""
        vae = cast("Any", self.vae)
        mean, variance = (kept.view(1, -1, 1, 1) for kept in (vae.bn.running_mean, vae.bn.running_var))
        return mean, (variance + vae.config.batch_norm_eps).sqrt()

    def _drawn(self, latents: Tensor) -> Tensor:
        shift, scale = self._whitening()
        return (_patched(latents) - shift) / scale

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self._told(chat_ids(self.tokenizers["tokenizer"], prompts, TOKENS, thinking=False))

    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        import torch

        words, mask = ids
        told = self.modules["text_encoder"](words, attention_mask=mask, output_hidden_states=True, use_cache=False)
        layers = torch.stack([told.hidden_states[layer] for layer in LAYERS], dim=2)
        return named(tokens=layers.flatten(2))

    def _lengths(self) -> list[int]:
        return [TOKENS, TOKENS]

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        return named(tokens=torch.empty(count, tokens, cast("Any", self.denoiser).config.joint_attention_dim))

    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        words, (height, width) = cond["tokens"], xt.shape[-2:]
        answer = self.denoiser(
            hidden_states=xt.flatten(2).transpose(1, 2),
            timestep=t.to(xt.dtype),
            encoder_hidden_states=words,
            img_ids=_places(height, width, 1).to(xt.device),
            txt_ids=_places(1, 1, words.shape[1]).to(xt.device),
            return_dict=False,
        )[0]
        return answer.transpose(1, 2).reshape(xt.shape)

    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": cond["tokens"], "negative_prompt_embeds": negative["tokens"]}

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"is_distilled": read_json(self.card.folder / INDEX).get("is_distilled", False)}

    def published_as(self) -> tuple[str, str]:
        return "flux-2-klein", "flux2_klein"

    def kohya_name(self, part: str, layer: str) -> str:
        single, _, block = layer.rpartition("transformer_blocks.")
        number, _, inner = block.partition(".")
        if inner not in ORIGINAL:
            raise unread(layer)
        return f"lora_unet_{single or 'double_'}blocks_{number}_{ORIGINAL[inner]}"


def _patched(latents: Tensor) -> Tensor:
    """(batch, channels, height, width) to (batch, 4 channels, height / 2, width / 2)."""
    import torch

    return torch.nn.functional.pixel_unshuffle(latents, PATCH)


def _unpatched(latents: Tensor) -> Tensor:
    import torch

    return torch.nn.functional.pixel_shuffle(latents, PATCH)


def _places(height: int, width: int, words: int) -> Tensor:
    """(tokens, 4): time, row, column, word."""
    import torch

    return torch.cartesian_prod(torch.arange(1), torch.arange(height), torch.arange(width), torch.arange(words))
