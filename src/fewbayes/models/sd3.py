"""Stable Diffusion 3 and 3.5: a transformer that reads pictures and words in one sequence, trained on straight paths.

Three text encoders speak to it: two of CLIP, side by side, and T5, in a sequence behind them. A folder may do without
T5 (`null` in its model_index.json); zeros stand in its place as in the pipeline, computed once. Fine-tuning changes the
CLIP encoders at most, as diffusers' script does. Times go into the network as 1000 s, and training draws them as the
script does: logit-normal, then shifted like the scheduler's table. Knows nothing of training or of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.errors import UserError
from fewbayes.models.configs import FlowScheduler
from fewbayes.models.family import Part
from fewbayes.models.pipelines import CLIP_EMBEDDINGS, POOLED_CLIP, VAE, PipelineFamily, named
from fewbayes.models.registry import register
from fewbayes.models.tokens import token_ids

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning

T5_TOKENS = 256
"""The pipeline's usual `max_sequence_length`."""


@register
class StableDiffusion3(PipelineFamily):
    """3 medium, 3.5 medium and 3.5 large."""

    name = "sd3"
    pipeline_class = "StableDiffusion3Pipeline"
    described = "SD 3, 3.5"
    parts: Mapping[str, Part] = {
        "vae": VAE,
        "transformer": Part("diffusers", "SD3Transformer2DModel", "diffusion_pytorch_model"),
        "text_encoder": POOLED_CLIP,
        "text_encoder_2": POOLED_CLIP,
        "text_encoder_3": Part("transformers", "T5EncoderModel", "model", once=True, optional=True),
    }
    denoiser_part = "transformer"
    embedding_keys: Mapping[str, str] = CLIP_EMBEDDINGS
    tokenizer_parts: Mapping[str, str] = {
        "tokenizer": "CLIPTokenizer",
        "tokenizer_2": "CLIPTokenizer",
        "tokenizer_3": "T5TokenizerFast",
    }
    samplers: Mapping[str, str] = {"euler": "FlowMatchEulerDiscreteScheduler"}
    # Cross-attention is here what the stream of words has for itself: with it, `where` means what it does on a U-Net.
    layer_groups: Mapping[str, str] = {
        "self-attention": r"\.attn\.(to|norm)_[qkv]|\.attn\.to_out\.|\.attn2\.",
        "cross-attention": r"\.(add_[qkv]_proj|norm_added_[qk]|to_add_out)(\.|$)|_context\.|^context_embedder$",
        "feed-forward": r"\.ff\.",
        "time": r"^time_text_embed\.|\.norm1\.|^norm_out\.",
        "time-embedding": r"^time_text_embed\.timestep_embedder\.",
    }
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": tuple(
            f"attn.{layer}"
            for layer in ("to_q", "to_k", "to_v", "to_out.0", "add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
        ),
        "ff": ("ff.net.0.proj", "ff.net.2"),
    }
    tag = "stable-diffusion-3"
    scheduler_schema = FlowScheduler
    time_density = "logit_normal"

    def _placed(self, name: str) -> None:
        super()._placed(name)
        if name == self.denoiser_part and not self._has_t5:
            from fewbayes.models._sd3_attention import OneForMany

            clip = self.text_encoders["text_encoder"].config.max_position_embeddings
            cast("Any", self.denoiser).set_attn_processor(OneForMany(clip + 1, T5_TOKENS))

    @classmethod
    def _check(cls, folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        if denoiser["in_channels"] != vae["latent_channels"]:
            raise UserError(
                f"{folder / 'transformer'} takes {denoiser['in_channels']} channels and the autoencoder gives "
                f"{vae['latent_channels']}: they are of two models; give a text-to-image model as it was published"
            )

    @property
    def _has_t5(self) -> bool:
        return "text_encoder_3" in self.modules

    def _lengths(self) -> list[int]:
        return super()._lengths() + [T5_TOKENS] * self._has_t5

    def _token_ids(self, tokenizer: str, prompts: Sequence[str]) -> Tensor:
        if tokenizer != "tokenizer_3":
            return super()._token_ids(tokenizer, prompts)
        return token_ids(self.tokenizers[tokenizer], prompts, T5_TOKENS)

    # Hidden states before the last layer of both CLIP encoders side by side, widened with zeros to T5's, then T5's.
    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        import torch

        encoders = self.text_encoders.values()
        clip = [encoder(its, output_hidden_states=True) for encoder, its in zip(encoders, ids[:2], strict=True)]
        words = torch.cat([output.hidden_states[-2] for output in clip], dim=-1)
        wide = cast("Any", self.denoiser).config.joint_attention_dim
        words = torch.nn.functional.pad(words, (0, wide - words.shape[-1]))
        if self._has_t5:
            more = self.modules["text_encoder_3"](ids[2])[0].to(words.dtype)
        else:
            more = words.new_zeros(len(words), 1, wide)
        pooled = torch.cat([output.text_embeds for output in clip], dim=-1)
        return named(tokens=torch.cat([words, more], dim=1), pooled=pooled)

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        config = cast("Any", self.denoiser).config
        words = torch.empty(count, tokens + (T5_TOKENS if self._has_t5 else 1), config.joint_attention_dim)
        return named(tokens=words, pooled=torch.empty(count, config.pooled_projection_dim))

    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(xt, cond["tokens"], cond["pooled"], 1000 * t.to(xt.dtype), return_dict=False)[0]

    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {
            "prompt_embeds": cond["tokens"],
            "pooled_prompt_embeds": cond["pooled"],
            "negative_prompt_embeds": negative["tokens"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def published_as(self) -> tuple[str, str]:
        """ModelSpec lists 3 medium alone; kohya's trainer writes no base version of this family."""
        return "stable-diffusion-3", "sd3"
