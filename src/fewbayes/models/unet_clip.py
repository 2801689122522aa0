"""Stable Diffusion 1.x, 2.x and XL: an autoencoder, a U-Net and CLIP text encoders.

The safety checker is dropped on load and so is absent from what is saved. 1.x predicts eps; 2.1 predicts v, has linear
projections and OpenCLIP's text encoder, all of which its own config.json says. XL is the base model without its
refiner. Knows nothing of training, of posteriors or of run folders.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from fewbayes.models.configs import DdpmScheduler, ToldSizes
from fewbayes.models.family import ModelCard, Part
from fewbayes.models.folders import INDEX, read_json
from fewbayes.models.pipelines import CLIP_EMBEDDINGS, POOLED_CLIP, VAE, PipelineFamily, named
from fewbayes.models.registry import register
from fewbayes.models.unet_clip_checks import check_channels, check_time_ids
from fewbayes.models.unet_clip_keys import kohya_name, published_as, single_file

if TYPE_CHECKING:
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning
    from fewbayes.diffusion.process import Ddpm

LAYER_GROUPS = {
    "self-attention": r"(^|\.)attn1(\.|$)",
    "cross-attention": r"(^|\.)attn2(\.|$)",
    "feed-forward": r"(^|\.)ff(\.|$)",
    "time": r"(^|\.)(time_embedding|time_emb_proj|add_embedding)(\.|$)",
    "time-embedding": r"^time_embedding(\.|$)",
    "down": r"^down_blocks\.",
    "middle": r"^mid_block\.",
    "up": r"^up_blocks\.",
}
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
}
UNET = Part("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model")
CLIP = Part("transformers", "CLIPTextModel", "model", once=True)


class UnetClip(PipelineFamily):
    """What they share."""

    denoiser_part = "unet"
    samplers: Mapping[str, str] = SAMPLERS
    layer_groups: Mapping[str, str] = LAYER_GROUPS
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "ff": ("ff.net.0.proj", "ff.net.2"),
    }
    formats: Sequence[str] = ("kohya", "comfyui", "original")
    scheduler_schema = DdpmScheduler
    # Latents are no pictures: clipping them to [-1, 1] (a default of some schedulers) would spoil every sample.
    drawn_with: ClassVar[Mapping[str, Any]] = {"clip_sample": False}

    @classmethod
    def _check(cls, folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        check_channels(folder, denoiser, vae)

    @classmethod
    def _predicts(cls, scheduler: Mapping[str, Any]) -> str:
        return scheduler.get("prediction_type", "epsilon")

    @classmethod
    def _process(cls, scheduler: Mapping[str, Any]) -> Ddpm:
        import torch

        from fewbayes.diffusion.process import Ddpm, alpha_bar_of, betas

        if scheduler.get("trained_betas") is not None:
            steps = torch.tensor(scheduler["trained_betas"], dtype=torch.float32)
        else:
            told = (scheduler[name] for name in ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps"))
            steps = betas(*told)
        alpha_bars = alpha_bar_of(steps, zero_terminal_snr=scheduler.get("rescale_betas_zero_snr", False))
        return Ddpm(alpha_bars, cls._predicts(scheduler))

    def kohya_name(self, part: str, layer: str) -> str:
        return kohya_name(self.name, part, layer, cast("Any", self.denoiser).config)

    def original_weights(self) -> dict[str, Tensor]:
        return single_file(self.modules)

    def published_as(self) -> tuple[str, str]:
        width = cast("Any", self.denoiser).config.cross_attention_dim
        return published_as(self.name, width, predicts_v=self.card.prediction_type == "v_prediction")


@register
class StableDiffusion(UnetClip):
    """1.x and 2.x: one text encoder, whose last hidden states are the whole conditioning."""

    name = "sd"
    pipeline_class = "StableDiffusionPipeline"
    described = "SD 1.4, 1.5, 2.0, 2.1"
    parts: Mapping[str, Part] = {"vae": VAE, "unet": UNET, "text_encoder": CLIP}
    tokenizer_parts: Mapping[str, str] = {"tokenizer": "CLIPTokenizer"}
    foreign_arguments: Mapping[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    tag = "stable-diffusion"

    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        return named(tokens=self.text_encoders["text_encoder"](ids[0])[0])

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        return named(tokens=torch.empty(count, tokens, self.text_encoders["text_encoder"].config.hidden_size))

    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        return self.denoiser(xt, t, encoder_hidden_states=cond["tokens"], return_dict=False)[0]

    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {"prompt_embeds": cond["tokens"], "negative_prompt_embeds": negative["tokens"]}

    def _pipeline_settings(self) -> dict[str, Any]:
        return {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}


@register
class StableDiffusionXL(UnetClip):
    """XL's base: two text encoders, a pooled prompt and six sizes.

    A picture is said to be of its own size and uncropped (original = target = the size of xt in pixels, crop 0, 0), as
    diffusers' pipeline says it when nothing else is asked. Training says the same, also of photographs that were
    cropped at random: what was cut off is not known here.
    """

    name = "sdxl"
    pipeline_class = "StableDiffusionXLPipeline"
    described = "SDXL"
    parts: Mapping[str, Part] = {"vae": VAE, "unet": UNET, "text_encoder": CLIP, "text_encoder_2": POOLED_CLIP}
    tokenizer_parts: Mapping[str, str] = {"tokenizer": "CLIPTokenizer", "tokenizer_2": "CLIPTokenizer"}
    embedding_keys: Mapping[str, str] = CLIP_EMBEDDINGS
    tag = "stable-diffusion-xl"

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        card = super().inspect(model, folder)
        check_time_ids(folder, read_json(folder / "unet/config.json", ToldSizes))
        return card

    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        """Penultimate hidden states of both text encoders side by side; pooled is the second one's projection."""
        import torch

        encoders = self.text_encoders.values()
        outputs = [encoder(its, output_hidden_states=True) for encoder, its in zip(encoders, ids, strict=True)]
        tokens = torch.cat([output.hidden_states[-2] for output in outputs], dim=-1)
        return named(tokens=tokens, pooled=outputs[1].text_embeds)

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        first, second = (encoder.config for encoder in self.text_encoders.values())
        wide = torch.empty(count, tokens, first.hidden_size + second.hidden_size)
        return named(tokens=wide, pooled=torch.empty(count, second.projection_dim))

    def encode_negative(self, prompt: str) -> Conditioning:
        """Zeros for "" where the model was made so, which SDXL's own base is."""
        import torch

        encoded = self.encode_prompts([prompt])
        if prompt or not self._zeros_for_no_prompt:
            return encoded
        return named(**{name: torch.zeros_like(tensor) for name, tensor in encoded.items()})

    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        added = {"text_embeds": cond["pooled"], "time_ids": self.time_ids(xt)}
        return self.denoiser(xt, t, cond["tokens"], added_cond_kwargs=added, return_dict=False)[0]

    def time_ids(self, xt: Tensor) -> Tensor:
        """(batch, 6): original height and width, top and left of the crop, target height and width, in pixels."""
        height, width = (side * self._pixels_per_latent for side in xt.shape[-2:])
        return xt.new_tensor([height, width, 0, 0, height, width]).expand(len(xt), -1)

    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        return {
            "prompt_embeds": cond["tokens"],
            "pooled_prompt_embeds": cond["pooled"],
            "negative_prompt_embeds": negative["tokens"],
            "negative_pooled_prompt_embeds": negative["pooled"],
        }

    def _pipeline_settings(self) -> dict[str, Any]:
        # Pictures are compared with each other and with photographs: none of them gets an invisible watermark.
        return {"force_zeros_for_empty_prompt": self._zeros_for_no_prompt, "add_watermarker": False}

    @property
    def _zeros_for_no_prompt(self) -> bool:
        return read_json(self.card.folder / INDEX).get("force_zeros_for_empty_prompt", True)
