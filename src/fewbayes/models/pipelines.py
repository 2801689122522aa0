"""What families of diffusers pipelines share: an autoencoder, text encoders, tokenizers, a denoiser and a scheduler.

The autoencoder always computes in float32, whatever autocast surrounds it: SDXL's own gives NaN in half precision.
Knows nothing of training, of posteriors or of run folders.
"""

from __future__ import annotations

import copy
import logging
import re
import shutil
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self, cast

from fewbayes.diffusion.guidance import EVERYWHERE, Interval
from fewbayes.errors import UserError
from fewbayes.models.family import ModelCard, Part, text_parts, tokenizer_of
from fewbayes.models.folders import INDEX, SCHEDULER, SETTINGS, quiet, read_json, settings_of, weight_files
from fewbayes.models.guidance import guiding
from fewbayes.models.parts import HeldParts
from fewbayes.models.tokens import prompt_length, token_ids, word_length, write_slow_tokenizer
from fewbayes.models.unet_clip_keys import clip_name

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from fewbayes.diffusion.conditioning import Conditioning
    from fewbayes.diffusion.process import Process
    from fewbayes.models.prompts import KeptPrompts

log = logging.getLogger("fewbayes")

VAE = Part("diffusers", "AutoencoderKL", "diffusion_pytorch_model", once=True)
POOLED_CLIP = Part("transformers", "CLIPTextModelWithProjection", "model", once=True)
CLIP_EMBEDDINGS = {"text_encoder": "clip_l", "text_encoder_2": "clip_g"}  # as in diffusers' pivotal tuning scripts
DISTILLED = re.compile(r"(^|[^a-z])(turbo|lightning|schnell|distill(ed)?|lcm|hyper-sd)([^a-z]|$)", re.IGNORECASE)
LARGE = 10**9  # bytes of text encoders from which their encodings are kept on the disk
DECODED_AT_ONCE = 2**20  # pixels: one picture of SDXL, four of SD


class PipelineFamily(HeldParts):
    """See `fewbayes.models.family` for what every member means."""

    name: str
    pipeline_class: str
    described: str
    samplers: Mapping[str, str]
    layer_groups: Mapping[str, str]
    adapter_targets: Mapping[str, Sequence[str]]
    text_targets: Sequence[str] = ("q_proj", "k_proj", "v_proj", "out_proj")
    embedding_keys: Mapping[str, str] = {}
    formats: Sequence[str] = ()
    foreign_arguments: Mapping[str, Any] = {}
    tag: str
    guidance_less: float = 0.0
    scheduler_schema: ClassVar[Any] = dict[str, Any]
    drawn_with: ClassVar[Mapping[str, Any]] = {}

    def __init__(self, *arguments: Any, **dropped: bool):
        super().__init__(*arguments, **dropped)
        self.process: Process = self._process(self.scheduler_config)
        self._measured: set[str] = set()
        self._kept: KeptPrompts | None = None

    def to(self, device: torch.device | str) -> Self:
        self.process = self.process.to(device)
        return super().to(device)

    time_density: ClassVar[str] = "uniform"
    """Of a flow model's training times, as its script draws them."""

    @classmethod
    def _process(cls, scheduler: Mapping[str, Any]) -> Process:
        """Of a scheduler's settings."""
        from fewbayes.diffusion.process import Flow, TrainingTimes

        # a table that is shifted by the number of tokens when it is sampled from is not shifted in training
        shift = 1.0 if scheduler.get("use_dynamic_shifting") else scheduler.get("shift", 1.0)
        return Flow(TrainingTimes(cls.time_density, shift=shift, steps=scheduler.get("num_train_timesteps", 1000)))

    @classmethod
    def inspect(cls, model: str, folder: Path) -> ModelCard:
        denoiser, vae = read_json(folder / cls.denoiser_part / "config.json"), read_json(folder / "vae/config.json")
        cls._check(folder, denoiser, vae)
        pixels = 2 ** (len(vae["block_out_channels"]) - 1)
        scheduler, settings = read_json(folder / SCHEDULER, cls.scheduler_schema), settings_of(folder)
        return ModelCard(
            model=model,
            folder=folder,
            family=cls.name,
            prediction_type=cls._predicts(scheduler),
            resolution=settings.get("resolution") or cls._side(denoiser) * pixels,
            recommended=settings.get("recommended", {}),
            rare_token=settings.get("rare_token"),
            most_steps=scheduler.get("num_train_timesteps"),
            side_unit=pixels * cls._patch(denoiser),
            distilled=_distilled(model, folder, denoiser),
        )

    @classmethod
    def _side(cls, denoiser: Mapping[str, Any]) -> int:
        """Of the latents that the pipeline draws where nobody says another."""
        return int(denoiser["sample_size"])

    @classmethod
    def _patch(cls, denoiser: Mapping[str, Any]) -> int:
        """Side in latents of what the denoiser takes for one."""
        return denoiser.get("patch_size", 1)

    @classmethod
    @abstractmethod
    def _check(cls, folder: Path, denoiser: Mapping[str, Any], vae: Mapping[str, Any]) -> None:
        """UserError for what names this pipeline and cannot be trained here."""

    @classmethod
    def _predicts(cls, scheduler: Mapping[str, Any]) -> str:
        return "flow"

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
            return self._scaled(latents.mean, latents.std)

    def decode_latents(self, latents: Tensor) -> np.ndarray:
        """uint8 pictures (batch, height, width, 3) of scaled latents, a megapixel at a time."""
        import torch

        pixels = latents[0, 0].numel() * self._pixels_per_latent**2
        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            unscaled = self._unscaled(latents.to(self.device, self.vae.dtype))
            chunks = unscaled.split(max(1, DECODED_AT_ONCE // pixels))
            decoded = torch.cat([self.vae.decode(cast("Any", chunk), return_dict=False)[0] for chunk in chunks])
            shades = (decoded * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float()
        return (shades.cpu().numpy() * 255).round().astype("uint8")

    def decoded(self, latents: Tensor, dtype: torch.dtype) -> Tensor:
        import torch

        with torch.no_grad():
            vae: Any = torch.nn.Module.to(copy.deepcopy(self.vae), dtype)  # diffusers' own `to` has something to say
            unscaled = self._unscaled(latents.to(self.device))
            return vae.decode(unscaled.to(dtype), return_dict=False)[0].float()

    def _scaled(self, mean: Tensor, std: Tensor) -> tuple[Tensor, Tensor]:
        return (mean - self._latent_shift) * self._latent_scale, std * self._latent_scale

    def _unscaled(self, latents: Tensor) -> Tensor:
        return latents / self._latent_scale + self._latent_shift

    @property
    def _latent_scale(self) -> float:
        return cast("Any", self.modules["vae"]).config.scaling_factor

    @property
    def _latent_shift(self) -> float:
        return cast("Any", self.modules["vae"]).config.shift_factor or 0.0

    @property
    def _pixels_per_latent(self) -> int:
        return 2 ** (len(cast("Any", self.modules["vae"]).config.block_out_channels) - 1)

    def count_tokens(self, word: str) -> int:
        read = {tokenizer_of(name) for name in self.text_encoders} or {*self.tokenizers}
        counts = [word_length(tokenizer, word) for name, tokenizer in self.tokenizers.items() if name in read]
        return max(counts) if all(counts) else 0

    def _token_ids(self, tokenizer: str, prompts: Sequence[str]) -> Tensor:
        """(batch, tokens); a prompt that is too long is said once."""
        mine = self.tokenizers[tokenizer]
        for prompt in set(prompts) - self._measured:
            if (length := prompt_length(mine, prompt)) > mine.model_max_length:
                log.warning(
                    "the prompt %r has %d tokens; what is beyond %d is ignored", prompt, length, mine.model_max_length
                )
        self._measured.update(prompts)
        return token_ids(mine, prompts)

    def encode_prompts(self, prompts: Sequence[str]) -> Conditioning:
        return self._told([self._token_ids(tokenizer, prompts) for tokenizer in self.tokenizers])

    def keep_prompts(self, folder: Path, *, on: torch.device | str | None = None) -> None:
        from fewbayes.models.prompts import KeptPrompts

        self._apart |= dict.fromkeys(text_parts(self), on) if on else {}
        files = [file for name in text_parts(self) for file in weight_files(self.card.folder, name, self.parts[name])]
        self._kept = KeptPrompts(folder if sum(file.stat().st_size for file in files) >= LARGE else None)

    def _told(self, ids: Sequence[Tensor]) -> Conditioning:
        if self._kept is None:
            return self._read(ids)
        import torch

        from fewbayes.models.prompts import key_of

        kind = self._reading.type
        half = torch.is_autocast_enabled(kind) and torch.get_autocast_dtype(kind)
        key = key_of(ids, self.name, kind, self.precision, half, torch.__version__)
        if (found := self._kept.find(key)) is None:
            found = self._read(ids)
            self._kept.keep(key, found)
        return found.to(self.device)

    @property
    def _reading(self) -> torch.device:
        import torch

        return torch.device(self._apart.get(text_parts(self)[0], self.device))

    def _read(self, ids: Sequence[Tensor]) -> Conditioning:
        """Through the text encoders, where these are."""
        self.fetch(*text_parts(self))
        with self._computing(self._reading.type):
            cond = self._encoded([its.to(self._reading) for its in ids])
        return cond if self.precision == "fp32" else cond.float32()

    @abstractmethod
    def _encoded(self, ids: Sequence[Tensor]) -> Conditioning:
        """Of (batch, tokens) ids for each text encoder."""

    def example_batch(self, count: int, resolution: int, *, encode: bool) -> tuple[Tensor, Tensor, Conditioning]:
        import torch

        ids = [torch.zeros(count, tokens, dtype=torch.long) for tokens in self._lengths()]
        cond = self._told(ids) if encode else self._shaped(count, ids[0].shape[1])
        side = resolution // self._pixels_per_latent
        xt = torch.empty(count, cast("Any", self.denoiser).config.in_channels, side, side)
        return xt, self.process.draw_times(count, torch.Generator()), cond

    def _lengths(self) -> list[int]:
        """Of a prompt in tokens, for each text encoder."""
        return [encoder.config.max_position_embeddings for encoder in self.text_encoders.values()]

    @abstractmethod
    def _shaped(self, count: int, tokens: int) -> Conditioning:
        """Numbers that mean nothing in the shapes of encoded prompts."""

    def encode_negative(self, prompt: str) -> Conditioning:
        return self.encode_prompts([prompt])

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        with self._computing():
            answer = self._predicted(xt, t, cond)
        return answer if self.precision == "fp32" else answer.float()

    @abstractmethod
    def _predicted(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor: ...

    @abstractmethod
    def _prompt_arguments(self, cond: Conditioning, negative: Conditioning) -> dict[str, Any]:
        """The prompts as arguments of the pipeline's call; as many rows in both."""

    def _pipeline_settings(self) -> dict[str, Any]:
        """Arguments of the pipeline's class beside its parts; None for parts that it can do without."""
        return dict.fromkeys({*type(self).parts, *self.tokenizer_parts} - {*self.modules, *self.tokenizers})

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
        interval: Interval = EVERYWHERE,
    ) -> Tensor:
        side = resolution or self.card.resolution
        pipeline = self.pipeline(sampler)
        with self._computing():
            drawn = pipeline(
                **self._prompt_arguments(cond, negative),
                **guiding(pipeline, guidance, interval, self.levels, self.guidance_less),
                generator=list(generators),
                num_inference_steps=steps,
                height=side,
                width=side,
                output_type="latent",
            ).images
        return self._drawn(drawn)

    def _drawn(self, latents: Tensor) -> Tensor:
        """Scaled latents of what the pipeline calls latents."""
        return latents

    def levels(self, timesteps: Tensor) -> Tensor:
        from fewbayes.diffusion.process import Flow

        flow = isinstance(self.process, Flow)
        return self.process.to("cpu").noise_to_signal(timesteps / 1000 if flow else timesteps.round().long())

    def pipeline(self, sampler: str | None = None) -> Any:
        """The diffusers pipeline around the live modules: it samples from the weights of this moment."""
        sampler = sampler or self.card.usual_sampler
        self.card.check_drawn(sampler)
        return self._pipeline(_scheduler(self.samplers[sampler], {**self.scheduler_config, **self.drawn_with}))

    def _pipeline(self, scheduler: Any) -> Any:
        """Without the text encoders that were dropped: it is told encoded prompts."""
        self.fetch("vae", self.denoiser_part)
        parts = self.modules | dict.fromkeys(self._dropped)
        with quiet():  # the import too has something to say
            import diffusers

            kind = getattr(diffusers, self.pipeline_class)
            pipeline = kind(**parts, **self.tokenizers, scheduler=scheduler, **self._pipeline_settings())
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def lora_name(self, part: str, layer: str) -> str:
        """transformers 5.6 dropped `text_model.`: newer loaders strip that part and older ones want it."""
        return layer if part == self.denoiser_part else clip_name(layer)

    @abstractmethod
    def published_as(self) -> tuple[str, str]: ...

    def kohya_name(self, part: str, layer: str) -> str:
        raise AssertionError(f"{self.formats} has no kohya")

    def original_weights(self) -> dict[str, Tensor]:
        raise AssertionError(f"{self.formats} has no original")

    def save(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.fetch()
        pipeline = self._pipeline(_scheduler(self.scheduler_config["_class_name"], self.scheduler_config))
        with quiet():
            pipeline.save_pretrained(folder, safe_serialization=True)
        for name, tokenizer in self.tokenizers.items():
            if self.tokenizer_parts[name] == "CLIPTokenizer":
                write_slow_tokenizer(tokenizer, folder / name, like=self.card.folder / name)
        if (self.card.folder / SETTINGS).is_file():
            shutil.copyfile(self.card.folder / SETTINGS, folder / SETTINGS)


def named(**tensors: Tensor) -> Conditioning:
    from fewbayes.diffusion.conditioning import Conditioning

    return Conditioning(**tensors)


def unread(layer: str) -> UserError:
    return UserError(
        f"{layer} has no name in kohya's files by which a program here reads it; take diffusers or svd-lora, whose "
        "keys ComfyUI reads too"
    )


def _distilled(model: str, folder: Path, denoiser: Mapping[str, Any]) -> bool:
    """By its index where that says so, else by the names that it goes or went by."""
    index = read_json(folder / INDEX)
    names = (model, index.get("_name_or_path"), denoiser.get("_name_or_path"))
    return bool(index.get("is_distilled")) or any(DISTILLED.search(Path(str(name)).name) for name in names)


def _scheduler(kind: str, config: Mapping[str, Any]) -> Any:
    with quiet():  # of settings that another scheduler has no use for
        import diffusers

        return getattr(diffusers, kind).from_config(dict(config))
