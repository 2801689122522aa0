"""What Stable Diffusion 1.x, 2.x and XL share: an autoencoder, a U-Net, CLIP text encoders, and how they are loaded,
fed and saved.

The autoencoder always computes in float32, whatever autocast surrounds it: SDXL's own gives NaN in half precision.
The safety checker is dropped on load and so is absent from what is saved. What differs between the families (what a
prompt becomes, what the U-Net is told) is theirs. Knows nothing of training, of posteriors or of run folders.
"""

from __future__ import annotations

import logging
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from fewbayes.errors import UserError
from fewbayes.models import ModelCard
from fewbayes.models.folders import (
    LAYOUTS,
    SCHEDULER,
    SETTINGS,
    inspect_pipeline,
    meta_part,
    part_class,
    quiet,
    read_json,
    weight_files,
)
from fewbayes.models.tokens import prompt_length, token_ids, word_length, write_slow_tokenizer

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor, nn

    from fewbayes.diffusion.conditioning import Conditioning

log = logging.getLogger("fewbayes")

SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
}
DECODED_AT_ONCE = 2**20  # pixels: one picture of SDXL, four of SD


class LatentDiffusion(ABC):
    """A loaded pipeline; see `fewbayes.models.Family` for what every member means."""

    family: ClassVar[str]

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
        self._modules = dict(modules)
        self._tokenizers = dict(tokenizers)
        self.scheduler_config = scheduler_config
        self._alpha_bar = _alpha_bar(scheduler_config)
        self._measured: set[str] = set()

    @classmethod
    def load(cls, model: str | ModelCard) -> Self:
        """Load all parts on the CPU in float32, whatever they are stored in."""
        import torch
        from transformers import CLIPTokenizer

        card = inspect_pipeline(model) if isinstance(model, str) else model
        if (card.folder / "safety_checker").is_dir():
            log.warning("the safety checker of %s is not loaded, and will not be in what is saved", card.model)

        def part(name: str) -> Any:
            kind = part_class(layout.weighted[name])
            variant = "fp16" if ".fp16" in weight_files(card.folder, name, cls.family)[0].name else None
            return kind.from_pretrained(card.folder / name, use_safetensors=True, variant=variant).to(torch.float32)

        layout = LAYOUTS[cls.family]
        with quiet():
            modules = {name: part(name) for name in layout.weighted}
            tokenizers = {name: CLIPTokenizer.from_pretrained(card.folder / name) for name in layout.tokenizers}
        _check_finite(card.folder / "vae", modules["vae"])
        return cls(card, modules, tokenizers, read_json(card.folder / SCHEDULER))

    @classmethod
    def without_weights(cls, card: ModelCard) -> Self:
        """All parts on the meta device, of the shapes that their config.json says; no tokenizers."""
        parts = {name: meta_part(card.folder, cls.family, name) for name in LAYOUTS[cls.family].weighted}
        return cls(card, parts, {}, read_json(card.folder / SCHEDULER))

    @property
    def vae(self) -> AutoencoderKL:
        return cast("AutoencoderKL", self._modules["vae"])

    @property
    def unet(self) -> UNet2DConditionModel:
        return cast("UNet2DConditionModel", self._modules["unet"])

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        return {name: module for name, module in self._modules.items() if name.startswith("text_encoder")}

    @property
    def text_encoder(self) -> nn.Module:
        return self._modules["text_encoder"]

    @property
    def tokenizers(self) -> dict[str, Any]:
        return dict(self._tokenizers)

    @property
    def tokenizer(self) -> Any:
        return self._tokenizers["tokenizer"]

    @property
    def alpha_bar(self) -> Tensor:
        """(steps,), on the device of the model."""
        return self._alpha_bar

    @property
    def prediction_type(self) -> str:
        return self.scheduler_config.get("prediction_type", "epsilon")

    @property
    def device(self) -> torch.device:
        return self.unet.device

    def to(self, device: torch.device | str) -> Self:
        for module in self._modules.values():
            module.to(device)
        self._alpha_bar = self._alpha_bar.to(device)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, more time, the same numbers."""
        verb = "enable" if on else "disable"
        getattr(self.unet, f"{verb}_gradient_checkpointing")()
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

    @property
    def _latent_scale(self) -> float:
        return cast("Any", self.vae.config).scaling_factor

    @property
    def _pixels_per_latent(self) -> int:
        return 2 ** (len(cast("Any", self.vae.config).block_out_channels) - 1)

    def count_tokens(self, word: str) -> int:
        """How many tokens the word is split into, by the tokenizer that splits most; 0 if a part is unknown to one."""
        counts = [word_length(tokenizer, word) for tokenizer in self._tokenizers.values()]
        return max(counts) if all(counts) else 0

    def _token_ids(self, tokenizer: str, prompts: Sequence[str]) -> Tensor:
        """(batch, tokens) on the device; a prompt that is too long is said once."""
        mine = self._tokenizers[tokenizer]
        for prompt in set(prompts) - self._measured:
            if (length := prompt_length(mine, prompt)) > mine.model_max_length:
                log.warning(
                    "the prompt %r has %d tokens; what is beyond %d is ignored", prompt, length, mine.model_max_length
                )
        self._measured.update(prompts)
        return token_ids(mine, prompts).to(self.device)

    @abstractmethod
    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        """Gradients flow if the text encoders' parameters ask for them."""

    @abstractmethod
    def encode_negative(self, prompt: str) -> Conditioning:
        """One row: what guidance leads away from; "" is what the pipeline takes when nothing is said."""

    @abstractmethod
    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        """The network's raw output, of the shape of xt; what it means is said by `prediction_type`."""

    @abstractmethod
    def prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The prompts as arguments of the pipeline's call; as many rows in both."""

    @abstractmethod
    def _pipeline_settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's class beside its parts."""

    def pipeline(self, sampler: str = "ddim") -> Any:
        """The diffusers pipeline around the live modules: it samples from the weights of this moment."""
        return self._pipeline(_scheduler(sampler, self.scheduler_config))

    def _pipeline(self, scheduler: Any) -> Any:
        with quiet():  # the import too has something to say
            import diffusers

            kind = getattr(diffusers, LAYOUTS[self.family].pipeline)
            pipeline = kind(**self._modules, **self._tokenizers, scheduler=scheduler, **self._pipeline_settings())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, folder: str | Path) -> None:
        """Write a plain diffusers pipeline folder, float32 safetensors, with the scheduler the model came with."""
        folder = Path(folder)
        pipeline = self._pipeline(_original_scheduler(self.scheduler_config))
        with quiet():
            pipeline.save_pretrained(folder, safe_serialization=True)
        for name, tokenizer in self._tokenizers.items():
            write_slow_tokenizer(tokenizer, folder / name, like=self.card.folder / name)
        if (self.card.folder / SETTINGS).is_file():
            shutil.copyfile(self.card.folder / SETTINGS, folder / SETTINGS)


def _check_finite(folder: Path, vae: nn.Module) -> None:
    broken = [name for name, weight in vae.named_parameters() if not weight.isfinite().all()]
    if broken:
        raise UserError(
            f"{folder} holds numbers that are not finite ({broken[0]}), as a conversion to half precision may leave "
            "them: every picture would be NaN; put the float32 autoencoder of the same model in its place"
        )


def _alpha_bar(config: dict[str, Any]) -> Tensor:
    import torch

    from fewbayes.diffusion import process as schedule

    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        betas = schedule.betas(
            config["beta_schedule"], config["beta_start"], config["beta_end"], config["num_train_timesteps"]
        )
    return schedule.alpha_bar_of(betas, zero_terminal_snr=config.get("rescale_betas_zero_snr", False))


def _scheduler(sampler: str, config: dict[str, Any]) -> Any:
    if sampler not in SAMPLERS:
        raise UserError(f"sampler {sampler!r} is not known; choose one of {', '.join(SAMPLERS)}")
    with quiet():
        import diffusers

        # Latents are no pictures: clipping them to [-1, 1] (a default of some schedulers) would spoil every sample.
        return getattr(diffusers, SAMPLERS[sampler]).from_config({**config, "clip_sample": False})


def _original_scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)
