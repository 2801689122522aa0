"""Stable Diffusion 1.x and 2.x: the one file that knows diffusers and transformers.

Loads AutoencoderKL, UNet2DConditionModel, CLIPTextModel and CLIPTokenizer from a pipeline folder in the diffusers
layout, safetensors only, and gives them the common shape of `fewbayes.families.Family`. The safety checker is dropped
on load and so is absent from what is saved. Knows nothing of training, of posteriors or of run folders.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from fewbayes.families import ModelCard

if TYPE_CHECKING:
    import numpy as np
    import torch
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from torch import Tensor
    from transformers import CLIPTextModel, CLIPTokenizer

log = logging.getLogger("fewbayes")

TINY = Path(__file__).parents[1] / "world" / "weights" / "pipeline"
PIPELINES = ("StableDiffusionPipeline",)
# part: (classes that we can train with, stem of its weight files)
WEIGHTED_PARTS = {
    "vae": (("AutoencoderKL",), "diffusion_pytorch_model"),
    "unet": (("UNet2DConditionModel",), "diffusion_pytorch_model"),
    "text_encoder": (("CLIPTextModel",), "model"),
}
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
SETTINGS = "fewbayes.json"
SAMPLERS = {
    "ddim": "DDIMScheduler",
    "pndm": "PNDMScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "ddpm": "DDPMScheduler",
    "euler": "EulerDiscreteScheduler",
}


def inspect_pipeline(model: str) -> ModelCard:
    """Check every part of a pipeline by its files alone; ValueError names the first thing that is wrong."""
    folder = _locate(model)
    index = _read_json(folder / "model_index.json")
    kind = index.get("_class_name")
    if kind not in PIPELINES:
        raise ValueError(f"{model} is a {kind}; this program fine-tunes {', '.join(PIPELINES)} (SD 1.4, 1.5, 2.0, 2.1)")
    for part in WEIGHTED_PARTS:
        _check_weights(folder, part, index)
    _check_tokenizer(folder)
    unet, vae = _read_json(folder / "unet/config.json"), _read_json(folder / "vae/config.json")
    scheduler = _read_json(folder / "scheduler/scheduler_config.json")
    if unet["in_channels"] != vae["latent_channels"]:
        raise ValueError(
            f"{folder / 'unet'} takes {unet['in_channels']} channels and the autoencoder gives "
            f"{vae['latent_channels']}: an inpainting or depth model; choose the text-to-image one"
        )
    settings = _read_json(folder / SETTINGS) if (folder / SETTINGS).is_file() else {}
    return ModelCard(
        model=model,
        folder=folder,
        family="sd",
        prediction_type=scheduler.get("prediction_type", "epsilon"),
        resolution=int(unet["sample_size"]) * 2 ** (len(vae["block_out_channels"]) - 1),
        recommended=settings.get("recommended", {}),
        rare_token=settings.get("rare_token"),
    )


def fingerprint(folder: Path) -> str:
    """sha256 over the files of the parts that we load, names and contents, in sorted order."""
    parts = [*WEIGHTED_PARTS, "tokenizer", "scheduler"]
    # Files of other precisions or formats in the same folder are not what is loaded.
    files = [
        path
        for part in parts
        for path in sorted((folder / part).iterdir())
        if path.suffix in (".json", ".txt") or path in _weight_files(folder, part)
    ]
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(f"{path.relative_to(folder)} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _locate(model: str) -> Path:
    if model == "tiny":
        if not (TINY / "model_index.json").is_file():
            raise ValueError(
                f"the embedded model is not in this installation ({TINY} is missing); install fewbayes anew"
            )
        return TINY
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.is_absolute() or model.startswith((".", "~")) or model.count("/") != 1:
        raise ValueError(
            f"model {model!r}: there is no such folder; give 'tiny', a pipeline folder or a hub id (owner/name)"
        )
    return _from_hub(model)


def _from_hub(model: str) -> Path:
    from diffusers.pipelines.pipeline_utils import DiffusionPipeline

    try:
        without = dict.fromkeys(("safety_checker", "feature_extractor"))
        return Path(DiffusionPipeline.download(model, use_safetensors=True, **cast("Any", without)))
    except Exception as error:  # the hub client has a dozen classes of errors and no common one
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ValueError(
            f"model {model!r} is neither a folder here nor to be had from the hub ({reason}); without a network, "
            "give the path of a pipeline folder or 'tiny'"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path} is missing; a pipeline folder in the diffusers layout has it")
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); fetch or copy the model again") from error


def _weight_files(folder: Path, part: str) -> list[Path]:
    """The safetensors files that loading will read: one file, or the shards of an index."""
    stem = WEIGHTED_PARTS[part][1] if part in WEIGHTED_PARTS else "-"
    for variant in ("", ".fp16"):
        whole = folder / part / f"{stem}{variant}.safetensors"
        if whole.is_file():
            return [whole]
        index = folder / part / f"{stem}.safetensors.index{variant}.json"
        if index.is_file():
            return [folder / part / name for name in sorted(set(_read_json(index)["weight_map"].values()))]
    return []


def _check_weights(folder: Path, part: str, index: dict[str, Any]) -> None:
    classes, stem = WEIGHTED_PARTS[part]
    if not (folder / part).is_dir():
        raise ValueError(f"the model folder {folder} has no {part}/; a Stable Diffusion pipeline needs it")
    found = (index.get(part) or [None, None])[1]
    if found not in classes:
        raise ValueError(f"the {part} of {folder} is a {found}; this program knows {', '.join(classes)}")
    _read_json(folder / part / "config.json")
    weights = _weight_files(folder, part)
    if not weights:
        pickles = sorted(path.name for path in (folder / part).iterdir() if path.suffix in PICKLES)
        if pickles:
            raise ValueError(
                f"{folder / part} holds only pickled weights ({pickles[0]}), which can run any code when they are read "
                "and are refused; save the pipeline once with safe_serialization=True"
            )
        raise ValueError(f"{folder / part} holds no weights; {stem}.safetensors is missing")
    for path in weights:
        if not path.is_file() or path.stat().st_size < 8:
            raise ValueError(f"{path} is missing or empty; fetch or copy the model again")
        _check_header(path)


def _check_header(path: Path) -> None:
    """A file cut short in a download is found by its header, without reading the weights."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        try:
            header = json.loads(file.read(min(length, 2**27)))
            end = max((entry["data_offsets"][1] for key, entry in header.items() if key != "__metadata__"), default=0)
        except (ValueError, AttributeError, KeyError, TypeError):
            raise ValueError(f"{path} is not a safetensors file; fetch or copy the model again") from None
    if path.stat().st_size != 8 + length + end:
        raise ValueError(f"{path} is cut short ({path.stat().st_size} bytes of {8 + length + end}); fetch it again")


def _check_tokenizer(folder: Path) -> None:
    tokenizer = folder / "tokenizer"
    if (tokenizer / "tokenizer.json").is_file():
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (tokenizer / name).is_file()]
    if missing:
        raise ValueError(f"the tokenizer of {folder} lacks {' and '.join(missing)}; fetch or copy the model again")


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading bars and advice of the libraries say nothing to our users."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    before = diffusers_logging.get_verbosity(), transformers_logging.get_verbosity()
    bars = diffusers_logging.is_progress_bar_enabled(), transformers_logging.is_progress_bar_enabled()
    for library in (diffusers_logging, transformers_logging):
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, verbosity, bar in zip((diffusers_logging, transformers_logging), before, bars, strict=True):
            library.set_verbosity(verbosity)
            if bar:
                library.enable_progress_bar()


class StableDiffusion:
    """A loaded Stable Diffusion 1.x or 2.x; see `fewbayes.families.Family` for what every member means."""

    def __init__(
        self,
        card: ModelCard,
        vae: AutoencoderKL,
        unet: UNet2DConditionModel,
        text_encoder: CLIPTextModel,
        tokenizer: CLIPTokenizer,
        scheduler_config: dict[str, Any],
    ):
        self.card = card
        self.vae = vae.eval().requires_grad_(False)
        self.unet = unet.eval().requires_grad_(False)
        self._text_encoder = cast("Any", text_encoder).eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.scheduler_config = scheduler_config
        self._alpha_bar = _alpha_bar(scheduler_config)
        self._measured: set[str] = set()

    @classmethod
    def load(cls, model: str | ModelCard) -> StableDiffusion:
        """Load all parts on the CPU in float32, whatever they are stored in."""
        import torch
        from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
        from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
        from transformers import CLIPTextModel, CLIPTokenizer

        card = inspect_pipeline(model) if isinstance(model, str) else model
        if (card.folder / "safety_checker").is_dir():
            log.warning("the safety checker of %s is not loaded, and will not be in what is saved", card.model)

        def part(kind: Any, name: str) -> Any:
            variant = "fp16" if ".fp16" in _weight_files(card.folder, name)[0].name else None
            loaded = kind.from_pretrained(card.folder / name, use_safetensors=True, variant=variant)
            return loaded.to(torch.float32)

        with _quiet():
            return cls(
                card,
                part(AutoencoderKL, "vae"),
                part(UNet2DConditionModel, "unet"),
                part(CLIPTextModel, "text_encoder"),
                CLIPTokenizer.from_pretrained(card.folder / "tokenizer"),
                _read_json(card.folder / "scheduler/scheduler_config.json"),
            )

    @property
    def denoiser(self) -> UNet2DConditionModel:
        return self.unet

    @property
    def text_encoder(self) -> CLIPTextModel:
        return self._text_encoder

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

    def to(self, device: torch.device | str) -> StableDiffusion:
        for module in (self.vae, self.unet, self._text_encoder):
            cast("Any", module).to(device)
        self._alpha_bar = self._alpha_bar.to(device)
        return self

    def checkpoint_gradients(self, on: bool) -> None:
        """Recompute activations in the backward pass: less memory, more time, the same numbers."""
        verb = "enable" if on else "disable"
        text_encoder = cast("Any", self._text_encoder)
        getattr(self.unet, f"{verb}_gradient_checkpointing")()
        # transformers 5 has renamed its own
        ours = getattr(text_encoder, f"activation_checkpointing_{verb}", None)
        (ours or getattr(text_encoder, f"gradient_checkpointing_{verb}"))()
        text_encoder.train(on)  # transformers recompute in training mode only; SD's text encoders have no dropout

    def encode_images(self, pixels: np.ndarray | Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the scaled latents of uint8 pictures (batch, height, width, 3).

        A draw of the latents is mean + std * normal, already multiplied by the autoencoder's scaling factor.
        """
        import torch

        with torch.no_grad(), torch.autocast(self.device.type, enabled=False):
            # a copy: arrays of pictures are often read-only, which torch does not like
            batch = (pixels if isinstance(pixels, torch.Tensor) else torch.tensor(pixels)).to(self.device)
            if batch.dtype != torch.uint8 or batch.dim() != 4 or batch.shape[-1] != 3:
                raise ValueError(
                    f"pictures must be uint8 (batch, height, width, 3), not {batch.dtype} {tuple(batch.shape)}"
                )
            scaled = batch.permute(0, 3, 1, 2).to(self.vae.dtype) / 127.5 - 1
            latents = cast("Any", self.vae.encode(scaled)).latent_dist
            scale = cast("Any", self.vae.config).scaling_factor
            return latents.mean * scale, latents.std * scale

    def encode_prompts(self, prompts: Sequence[str]) -> Tensor:
        """(batch, tokens, width). Gradients flow if the text encoder's parameters ask for them."""
        tokenizer = cast("Any", self.tokenizer)
        longest = tokenizer.model_max_length
        ids = tokenizer(list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        for prompt in set(prompts) - self._measured:
            _say_if_cut(tokenizer, prompt, longest)
        self._measured.update(prompts)
        return cast("Any", self._text_encoder)(ids.input_ids.to(self.device))[0]

    def count_tokens(self, word: str) -> int:
        """How many tokens the word is split into; 0 if a part of it is unknown to the tokenizer."""
        tokenizer = cast("Any", self.tokenizer)
        ids = tokenizer(word, add_special_tokens=False).input_ids
        return 0 if tokenizer.unk_token_id in ids else len(ids)

    def predict(self, xt: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        """The network's raw output, of the shape of xt; what it means is said by `prediction_type`."""
        return self.unet(xt, t, encoder_hidden_states=cond, return_dict=False)[0]

    def pipeline(self, sampler: str = "ddim") -> Any:
        """A StableDiffusionPipeline around the live modules: it samples from the weights of this moment."""
        with _quiet():  # the import too has something to say
            from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

            pipeline = StableDiffusionPipeline(
                vae=self.vae,
                unet=self.unet,
                text_encoder=self._text_encoder,
                tokenizer=self.tokenizer,
                scheduler=_scheduler(sampler, self.scheduler_config),
                safety_checker=cast("Any", None),
                feature_extractor=cast("Any", None),
                requires_safety_checker=False,
            )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline

    def save(self, folder: str | Path) -> None:
        """Write a plain diffusers pipeline folder, float32 safetensors, with the scheduler the model came with."""
        folder = Path(folder)
        pipeline = self.pipeline()
        pipeline.register_modules(scheduler=_original_scheduler(self.scheduler_config))
        with _quiet():
            pipeline.save_pretrained(folder, safe_serialization=True)
        write_slow_tokenizer(self.tokenizer, folder / "tokenizer", like=self.card.folder / "tokenizer")
        if (self.card.folder / SETTINGS).is_file():
            shutil.copyfile(self.card.folder / SETTINGS, folder / SETTINGS)


SLOW_TOKENIZER = ("vocab.json", "merges.txt", "added_tokens.json")


def write_slow_tokenizer(tokenizer: Any, folder: str | Path, *, like: str | Path | None = None) -> None:
    """Write the files that transformers 4 reads into a saved tokenizer's folder; transformers 5 leaves them out.

    tokenizer: a CLIPTokenizer; its byte pairs become vocab.json and merges.txt, words added to them (a rare token)
    added_tokens.json. like: a folder whose files, if it has the first two, are copied instead.
    """
    folder, like = Path(folder), Path(like) if like else None
    if like and all((like / name).is_file() for name in SLOW_TOKENIZER[:2]):
        for name in SLOW_TOKENIZER:
            if (like / name).is_file():
                shutil.copyfile(like / name, folder / name)
        return
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary, merges = backend["model"]["vocab"], backend["model"]["merges"]
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in merges]
    added = {token["content"]: token["id"] for token in backend["added_tokens"] if token["content"] not in vocabulary}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *pairs]) + "\n", encoding="utf-8")
    if added:
        (folder / "added_tokens.json").write_text(json.dumps(added, ensure_ascii=False), encoding="utf-8")


def _say_if_cut(tokenizer: Any, prompt: str, longest: int) -> None:
    count = len(tokenizer(prompt, verbose=False).input_ids)
    if count > longest:
        log.warning("the prompt %r has %d tokens; what is beyond %d is ignored", prompt, count, longest)


def _alpha_bar(config: dict[str, Any]) -> Tensor:
    import torch

    from fewbayes import schedule

    if config.get("trained_betas") is not None:
        betas = torch.tensor(config["trained_betas"], dtype=torch.float32)
    else:
        betas = schedule.betas(
            config["beta_schedule"], config["beta_start"], config["beta_end"], config["num_train_timesteps"]
        )
    return schedule.alpha_bar_of(betas, zero_terminal_snr=config.get("rescale_betas_zero_snr", False))


def _scheduler(sampler: str, config: dict[str, Any]) -> Any:
    import diffusers

    if sampler not in SAMPLERS:
        raise ValueError(f"sampler {sampler!r} is not known; choose one of {', '.join(SAMPLERS)}")
    # Latents are no pictures: clipping them to [-1, 1] (a default of some schedulers) would spoil every sample.
    return getattr(diffusers, SAMPLERS[sampler]).from_config({**config, "clip_sample": False})


def _original_scheduler(config: dict[str, Any]) -> Any:
    import diffusers

    return getattr(diffusers, config["_class_name"]).from_config(config)
