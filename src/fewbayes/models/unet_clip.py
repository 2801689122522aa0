"""Stable Diffusion 1.x, 2.x and XL: an autoencoder, a U-Net and CLIP text encoders.

The autoencoder always computes in float32, whatever autocast surrounds it: SDXL's own gives NaN in half precision.
The safety checker is dropped on load and so is absent from what is saved. 1.x predicts eps; 2.1 predicts v, has linear
projections and OpenCLIP's text encoder, all of which its own config.json says. XL is the base model without its
refiner. Knows nothing of training, of posteriors or of run folders.
"""

from __future__ import annotations

import copy
import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, cast

from fewbayes.errors import UserError
from fewbayes.models.configs import DdpmScheduler, ToldSizes
from fewbayes.models.family import ModelCard, Part
from fewbayes.models.folders import (
    AGAIN,
    INDEX,
    SCHEDULER,
    SETTINGS,
    loading,
    meta_part,
    part_class,
    quiet,
    read_json,
    settings_of,
    weight_files,
)
from fewbayes.models.registry import register
from fewbayes.models.tokens import prompt_length, token_ids, word_length, write_slow_tokenizer
from fewbayes.models.unet_clip_checks import check_channels, check_finite, check_time_ids
from fewbayes.models.unet_clip_keys import clip_name, kohya_name, published_as, single_file

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from torch import Tensor, nn

    from fewbayes.diffusion.conditioning import Conditioning
    from fewbayes.diffusion.process import Ddpm

log = logging.getLogger("fewbayes")

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
VAE = Part("diffusers", "AutoencoderKL", "diffusion_pytorch_model", once=True)
UNET = Part("diffusers", "UNet2DConditionModel", "diffusion_pytorch_model")
CLIP = Part("transformers", "CLIPTextModel", "model", once=True)
POOLED_CLIP = Part("transformers", "CLIPTextModelWithProjection", "model", once=True)
DECODED_AT_ONCE = 2**20  # pixels: one picture of SDXL, four of SD


class UnetClip(ABC):
    """What they share; see `fewbayes.models.family` for what every member means."""

    name: str
    pipeline_class: str
    described: str
    parts: Mapping[str, Part]
    denoiser_part = "unet"
    tokenizer_parts: Sequence[str]
    samplers: Mapping[str, str] = SAMPLERS
    layer_groups: Mapping[str, str] = LAYER_GROUPS
    adapter_targets: Mapping[str, Sequence[str]] = {
        "attention": ("to_q", "to_k", "to_v", "to_out.0"),
        "ff": ("ff.net.0.proj", "ff.net.2"),
    }
    text_targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj")
    formats: Sequence[str] = ("kohya", "comfyui", "original")
    foreign_arguments: Mapping[str, Any]
    tag: str

    def __init__(
        self,
        card: ModelCard,
        modules: Mapping[str, nn.Module],
        tokenizers: Mapping[str, Any],
        scheduler_config: dict[str, Any],
    ):
        for module in modules.values():
            module.eval().requires_grad_(False)
        self.card = card
        self.modules = dict(modules)
        self.tokenizers = dict(tokenizers)
        self.scheduler_config = scheduler_config
        self.process = _process(scheduler_config)
        self._measured: set[str] = set()

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        unet, vae = read_json(folder / "unet/config.json"), read_json(folder / "vae/config.json")
        check_channels(folder, unet, vae)
        settings = settings_of(folder)
        return ModelCard(
            model=model,
            folder=folder,
            family=cls.name,
            prediction_type=read_json(folder / SCHEDULER, DdpmScheduler).get("prediction_type", "epsilon"),
            resolution=int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1),
            recommended=settings.get("recommended", {}),
            rare_token=settings.get("rare_token"),
            most_steps=read_json(folder / SCHEDULER, DdpmScheduler)["num_train_timesteps"],
            side_unit=2 ** (len(vae["block_out_channels"]) - 1),
        )

    @classmethod
    def load(cls, card: ModelCard) -> Self:
        """Load all parts on the CPU in float32, whatever they are stored in."""
        import torch
        from transformers import CLIPTokenizer

        if (card.folder / "safety_checker").is_dir():
            log.warning("the safety checker of %s is not loaded, and will not be in what is saved", card.model)

        def loaded(name: str, part: Part) -> Any:
            variant = "fp16" if ".fp16" in weight_files(card.folder, name, part)[0].name else None
            with loading(card.folder / name):
                module = part_class(part).from_pretrained(card.folder / name, use_safetensors=True, variant=variant)
                return module.to(getattr(torch, part.dtype))

        def tokenizer(name: str) -> Any:
            with loading(card.folder / name):
                found = CLIPTokenizer.from_pretrained(card.folder / name)
            longest = found.model_max_length
            if type(longest) is not int or longest < 2 or found.pad_token_id is None:
                raise UserError(
                    f"{card.folder / name / 'tokenizer_config.json'}: model_max_length is {longest!r} and pad_token "
                    f"{found.pad_token!r}; they must be a whole number of at least 2 and a token; {AGAIN}"
                )
            return found

        with quiet():
            modules = {name: loaded(name, part) for name, part in cls.parts.items()}
            tokenizers = {name: tokenizer(name) for name in cls.tokenizer_parts}
        check_finite(card.folder / "vae", modules["vae"])
        return cls(card, modules, tokenizers, read_json(card.folder / SCHEDULER))

    @classmethod
    def without_weights(cls, card: ModelCard) -> Self:
        modules = {name: meta_part(card.folder, name, part) for name, part in cls.parts.items()}
        return cls(card, modules, {}, read_json(card.folder / SCHEDULER))

    @property
    def vae(self) -> AutoencoderKL:
        return cast("AutoencoderKL", self.modules["vae"])

    @property
    def denoiser(self) -> nn.Module:
        return self.modules["unet"]

    @property
    def text_encoders(self) -> dict[str, Any]:
        return {name: module for name, module in self.modules.items() if name.startswith("text_encoder")}

    @property
    def device(self) -> torch.device:
        return cast("Any", self.denoiser).device

    def to(self, device: torch.device | str) -> Self:
        for module in self.modules.values():
            module.to(device)
        self.process = self.process.to(device)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        verb = "enable" if on else "disable"
        getattr(self.denoiser, f"{verb}_gradient_checkpointing")()
        for text_encoder in self.text_encoders.values():
            # transformers 5 has renamed its own
            ours = getattr(text_encoder, f"activation_checkpointing_{verb}", None)
            (ours or getattr(text_encoder, f"gradient_checkpointing_{verb}"))()
            text_encoder.train(on)  # transformers recompute in training mode only; CLIP's text encoders drop nothing

    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of uint8 pictures (batch, height, width, 3).

        A draw of the latents is mean + std * normal, already multiplied by the autoencoder's scaling factor.
        """
        import torch

        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            # a copy: arrays of pictures are often read-only, which torch does not like
            batch = (pixels if isinstance(pixels, torch.Tensor) else torch.tensor(pixels)).to(self.device)
            if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[-1] != 3:
                raise UserError(
                    f"pictures must be uint8 (batch, height, width, 3), not {batch.dtype} {tuple(batch.shape)}"
                )
            scaled = batch.permute(0, 3, 1, 2).to(self.vae.dtype) / 127.5 - 1
            latents = cast("Any", self.vae.encode(scaled)).latent_dist
            return latents.mean * self._latent_scale, latents.std * self._latent_scale

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """uint8 pictures (batch, height, width, 3) of scaled latents, a megapixel at a time."""
        import torch

        pixels = latents[0, 0].numel() * self._pixels_per_latent**2
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            unscaled = latents.to(self.device, self.vae.dtype) / self._latent_scale
            chunks = unscaled.split(max(1, DECODED_AT_ONCE // pixels))
            decoded = torch.cat([self.vae.decode(cast("Any", chunk), return_dict=False)[0] for chunk in chunks])
            shades = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        return (shades.cpu().numpy() * 255).round().astype("uint8")

    def decoded(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        import torch

        with torch.no_grad():
            vae: Any = torch.nn.Module.to(copy.deepcopy(self.vae), dtype)  # diffusers' own `to` has something to say
            unscaled = latents.to(self.device) / self._latent_scale
            return vae.decode(unscaled.to(dtype), return_dict=False)[0].float()

    @property
    def _latent_scale(self) -> float:
        return cast("Any", self.vae.config).scaling_factor

    @property
    def _pixels_per_latent(self) -> int:
        return 2 ** (len(cast("Any", self.vae.config).block_out_channels) - 1)

    def count_tokens(self, word: str) -> int:
        counts = [word_length(tokenizer, word) for tokenizer in self.tokenizers.values()]
        return max(counts) if all(counts) else 0

    def _token_ids(self, tokenizer: str, prompts: Sequence[str]) -> Tensor:
        """(batch, tokens) on the device; a prompt that is too long is said once."""
        mine = self.tokenizers[tokenizer]
        for prompt in set(prompts) - self._measured:
            if (length := prompt_length(mine, prompt)) > mine.model_max_length:
                log.warning(
                    "the prompt %r has %d tokens; what is beyond %d is ignored", prompt, length, mine.model_max_length
                )
        self._measured.update(prompts)
        return token_ids(mine, prompts).to(self.device)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self._encoded([self._token_ids(tokenizer, prompts) for tokenizer in self.tokenizer_parts])

    @abstractmethod
    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        """Of (batch, tokens) ids for each text encoder."""

    def example_batch(self, count: int, resolution: int, *, encode: bool) -> tuple[Tensor, Tensor, Conditioning]:
        import torch

        encoders = list(self.text_encoders.values())
        ids = [torch.zeros(count, it.config.max_position_embeddings, dtype=torch.long) for it in encoders]
        cond = self._encoded(ids) if encode else self._shaped(count, ids[0].shape[1])
        side = resolution // self._pixels_per_latent
        xt = torch.empty(count, cast("Any", self.denoiser).config.in_channels, side, side)
        return xt, torch.zeros(count, dtype=torch.long), cond

    @abstractmethod
    def _shaped(self, count: int, tokens: int) -> Conditioning:
        """Numbers that mean nothing in the shapes of encoded prompts."""

    @abstractmethod
    def encode_negative(self, prompt: str) -> Conditioning:
        """One row: what guidance leads away from; "" is what the pipeline takes when nothing is said."""

    @abstractmethod
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...

    @abstractmethod
    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The prompts as arguments of the pipeline's call; as many rows in both."""

    @abstractmethod
    def _pipeline_settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's class beside its parts."""

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
        return self.pipeline(sampler)(
            **self._prompt_arguments(cond, negative),
            generator=list(generators),
            num_inference_steps=steps,
            guidance_scale=guidance,
            height=resolution,
            width=resolution,
            output_type="latent",
        ).images

    def pipeline(self, sampler: str = "ddim") -> Any:
        """The diffusers pipeline around the live modules: it samples from the weights of this moment."""
        return self._pipeline(_scheduler(sampler, self.scheduler_config))

    def _pipeline(self, scheduler: Any) -> Any:
        with quiet():  # the import too has something to say
            import diffusers

            kind = getattr(diffusers, self.pipeline_class)
            pipeline = kind(**self.modules, **self.tokenizers, scheduler=scheduler, **self._pipeline_settings())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def lora_name(self, part: str, layer: str) -> str:
        """transformers 5.6 dropped `text_model.`: newer loaders strip that part and older ones want it."""
        return layer if part == self.denoiser_part else clip_name(layer)

    def kohya_name(self, part: str, layer: str) -> str:
        return kohya_name(self.name, part, layer, cast("Any", self.denoiser).config)

    def original_weights(self) -> dict[str, Tensor]:
        return single_file(self.modules)

    def published_as(self) -> tuple[str, str]:
        width = cast("Any", self.denoiser).config.cross_attention_dim
        return published_as(self.name, width, predicts_v=self.process.prediction == "v_prediction")

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        pipeline = self._pipeline(_original_scheduler(self.scheduler_config))
        with quiet():
            pipeline.save_pretrained(folder, safe_serialization=True)
        for name, tokenizer in self.tokenizers.items():
            write_slow_tokenizer(tokenizer, folder / name, like=self.card.folder / name)
        if (self.card.folder / SETTINGS).is_file():
            shutil.copyfile(self.card.folder / SETTINGS, folder / SETTINGS)


def _named(**tensors: Tensor) -> Conditioning:
    from fewbayes.diffusion.conditioning import Conditioning

    return Conditioning(**tensors)


@register
class StableDiffusion(UnetClip):
    """1.x and 2.x: one text encoder, whose last hidden states are the whole conditioning."""

    name = "sd"
    pipeline_class = "StableDiffusionPipeline"
    described = "SD 1.4, 1.5, 2.0, 2.1"
    parts: Mapping[str, Part] = {"vae": VAE, "unet": UNET, "text_encoder": CLIP}
    tokenizer_parts: Sequence[str] = ("tokenizer",)
    foreign_arguments: Mapping[str, Any] = {"safety_checker": None, "requires_safety_checker": False}
    tag = "stable-diffusion"

    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        return _named(tokens=self.text_encoders["text_encoder"](ids[0])[0])

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        return _named(tokens=torch.empty(count, tokens, self.text_encoders["text_encoder"].config.hidden_size))

    def encode_negative(self, prompt: str) -> Conditioning:
        return self.encode_prompts([prompt])

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
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
    tokenizer_parts: Sequence[str] = ("tokenizer", "tokenizer_2")
    foreign_arguments: Mapping[str, Any] = {}
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
        return _named(tokens=tokens, pooled=outputs[1].text_embeds)

    def _shaped(self, count: int, tokens: int) -> Conditioning:
        import torch

        first, second = (encoder.config for encoder in self.text_encoders.values())
        wide = torch.empty(count, tokens, first.hidden_size + second.hidden_size)
        return _named(tokens=wide, pooled=torch.empty(count, second.projection_dim))

    def encode_negative(self, prompt: str) -> Conditioning:
        """Zeros for "" where the model was made so, which SDXL's own base is."""
        import torch

        encoded = self.encode_prompts([prompt])
        if prompt or not self._zeros_for_no_prompt:
            return encoded
        return _named(**{name: torch.zeros_like(tensor) for name, tensor in encoded.items()})

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
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


def _process(config: dict[str, Any]) -> Ddpm:
    import torch

    from fewbayes.diffusion.process import Ddpm, alpha_bar_of, betas

    if config.get("trained_betas") is not None:
        steps = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        steps = betas(config["beta_schedule"], config["beta_start"], config["beta_end"], config["num_train_timesteps"])
    alpha_bars = alpha_bar_of(steps, zero_terminal_snr=config.get("rescale_betas_zero_snr", False))
    return Ddpm(alpha_bars, config.get("prediction_type", "epsilon"))


def _scheduler(sampler: str, config: dict[str, Any]) -> Any:
    with quiet():
        import diffusers

        # Latents are no pictures: clipping them to [-1, 1] (a default of some schedulers) would spoil every sample.
        return getattr(diffusers, SAMPLERS[sampler]).from_config({**config, "clip_sample": False})


def _original_scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)
