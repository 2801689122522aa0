"""What is to be diagnosed: the question as asked, and everything settled before anything is loaded.

The source is a run of ours, a checkpoint, a pipeline folder, or an adapter of any trainer. What can be refused is
refused here, with the way out. Knows nothing of how models are looked at; without torch.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from fewbayes.data.images import DataReport, check_folder
from fewbayes.diffusion.guidance import LIMIT, is_interval
from fewbayes.errors import UserError
from fewbayes.fields import check_fields, setting
from fewbayes.files.atomic import new_folder
from fewbayes.files.safetensors import read_header
from fewbayes.methods import registered
from fewbayes.models import ModelCard, inspect_model
from fewbayes.models.adapters import is_adapter
from fewbayes.models.registry import family_named
from fewbayes.runs.checkpoints import verify_checkpoint
from fewbayes.runs.folder import RunFolder
from fewbayes.runs.opening import Found, find
from fewbayes.settings.agreement import RARE_TOKEN_MARK, worded
from fewbayes.settings.config import TrainConfig

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """The command as given; None is what the run says, else the usual."""

    source: str = setting(positional=True)
    """Run folder, its checkpoint-N, pipeline folder, LoRA file or PEFT folder of any trainer."""
    output_dir: str = setting()
    """A new or empty folder."""
    base: str | None = setting(None, value="MODEL")
    """The model that a pipeline or adapter came from; a run knows its own."""
    lora_alpha: float | None = setting(None, above=0)
    """Of a LoRA file that does not say its own. None: the rank, strength 1."""
    instance_data_dir: str | None = setting(None, value="DIR")
    """The training images. None: the run's."""
    instance_prompt: str | None = None
    """As trained with; <v> is the rare token. None: the run's."""
    rare_token: str | None = None
    """The word that <v> stands for. None: the run's or the model's."""
    sampler: str | None = None
    """The one you use. None: the run's, or the usual one of the model's family."""
    num_inference_steps: int | None = setting(None, above=0)
    """None: the run's, or 25."""
    guidance_scale: float | None = setting(None, at_least=0)
    """1 is none. None: the run's, or 7.5."""
    guidance_interval: str | None = setting(None, value="LOW:HIGH", must=(is_interval, LIMIT))
    """Noise-to-signal ratios that you guide. None: the run's, or all."""
    negative_prompt: str | None = None
    """None: the run's, or none."""
    num_images: int = setting(4, above=0)
    """Pictures of every model that is looked at."""
    seed: int = setting(0, must=(lambda seed: 0 <= seed < 2**63, "from 0 to 2**63 - 1"))
    """Of the first image; image i has seed + i."""
    weights: Literal["raw", "ema"] | None = None
    """Of a run or checkpoint. None: what a run exported."""
    checkpoints: bool = False
    """All checkpoints of a run in order, and which one to keep."""


LOW_NOISE_OFF = "0.83:"
"""Guidance where there is much noise alone: t >= 300 in Stable Diffusion's schedule."""


def other_guidance(how: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Without guidance, and with it where there is much noise alone; nothing where there is none."""
    if how["guidance"] <= 1:
        return {}
    within = {"within_interval": {"guidance_interval": LOW_NOISE_OFF}}
    return {"unguided": {"guidance": 1.0}} | ({} if how.get("guidance_interval") else within)


@dataclass(frozen=True)
class Case:
    """What is to be diagnosed, with everything settled and nothing loaded.

    switched: the base model is the source with its adapters off. weights: those of a run that are looked at. kept: the
    checkpoints of a timeline, by step.
    """

    asked: Asked
    card: ModelCard
    config: TrainConfig | None
    step: int
    switched: bool
    prompt: str
    rare_token: str | None
    images: DataReport
    resolution: int
    how: dict[str, Any]
    weights: str | None = None
    kept: dict[int, Path] = field(default_factory=dict)
    latents: Literal["draw", "mean"] | None = None
    """What training took of the autoencoder's posterior; None where the source does not say."""

    @property
    def seeds(self) -> list[int]:
        return [self.asked.seed + i for i in range(self.asked.num_images)]

    def otherwise(self) -> dict[str, dict[str, Any]]:
        """What else the same seeds are sampled with; see `lookalikes.other_samplers` and `other_guidance`."""
        return self.other_samplers() | other_guidance(self.how)

    def other_samplers(self) -> dict[str, dict[str, Any]]:
        from fewbayes.diagnose.lookalikes import other_samplers

        samplers = list(family_named(self.card.family).samplers)
        return other_samplers(self.how["sampler"], self.how["steps"], samplers, self.card.most_steps)

    def worded(self, prompt: str) -> str:
        return worded(prompt, self.rare_token)


def settle(asked: Asked) -> Case:
    """Everything that can be refused, refused; UserError says what to give."""
    check_fields(asked)
    new_folder(asked.output_dir)
    found = find(asked.source)
    if found:
        _check_run(asked, found)
    else:
        _check_foreign(asked, Path(asked.source))
    card = found.base_card() if found else inspect_model(str(asked.base))
    config = found.config if found else None
    folder, prompt = _images_and_prompt(asked, config)
    images = check_folder(folder)
    rare_token = asked.rare_token or (config.rare_token if config else card.rare_token)
    if rare_token is None:
        _check_no_mark([prompt, *(image.caption or "" for image in images.images)], card)
    resolution = (config.resolution if config else None) or card.resolution
    how = _how(asked, config, card)
    card.check_drawn(how["sampler"], how["steps"], resolution)
    return Case(
        asked=asked,
        card=card,
        config=config,
        step=found.step if found else 1,
        switched=_switched(asked, config),
        prompt=prompt,
        rare_token=rare_token,
        images=images,
        resolution=resolution,
        how=how,
        weights=_weights(asked, found) if found else None,
        kept=_checkpoints(found.run) if found and asked.checkpoints else {},
        latents=config.latents if config else _latents(Path(asked.source)),
    )


def _check_run(asked: Asked, found: Found) -> None:
    if asked.base:
        raise UserError(f"{found.path} belongs to a run, which knows the model under it; leave base out")
    if found.kind != "run":
        if asked.checkpoints:
            raise UserError(f"--checkpoints looks at all checkpoints of a run; give the run, {found.run}")
    elif not (asked.checkpoints or asked.weights or (found.run / found.result).is_file()):
        raise UserError(
            f"{found.run} is a run without its result, {found.result}: give its training command again to finish it, "
            "or diagnose one of its checkpoint-N folders, or all of them by --checkpoints"
        )


def _check_foreign(asked: Asked, source: Path) -> None:
    if not source.exists():
        raise UserError(f"there is no {source}; give a run, a checkpoint, a pipeline folder or an adapter's file")
    for name in ("weights", "checkpoints"):
        if getattr(asked, name):
            raise UserError(f"{source} is no run of fewbayes, which alone has them; leave out --{name}")
    if not asked.base:
        raise UserError(
            f"{source} does not say which model it came from, and everything is judged against that one: give --base"
        )
    if not is_adapter(source):
        inspect_model(str(source))  # raises for what is no pipeline
    elif source.is_file():
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(source, framework="np"):
                pass
        except (OSError, SafetensorError) as error:
            raise UserError(f"{source} cannot be read, it is damaged or no safetensors file: {error}") from error


def _latents(source: Path) -> Literal["draw", "mean"] | None:
    """Of an adapter's file, by what its trainer writes into the header: our own word, OneTrainer's, sd-scripts'."""
    if not source.is_file():
        return None
    told = read_header(source).metadata
    if (said := told.get("ss_latents")) in ("draw", "mean"):
        return said
    if "ot_branch" in told:  # OneTrainer takes means for every family
        return "mean"
    return "draw" if "ss_network_module" in told else None  # sd-scripts draw once and keep the draw


def _images_and_prompt(asked: Asked, config: TrainConfig | None) -> tuple[str, str]:
    folder = asked.instance_data_dir or (config.instance_data_dir if config else None)
    prompt = asked.instance_prompt or (config.instance_prompt if config else None)
    if folder is None or prompt is None:
        raise UserError(
            f"{asked.source} is no run of fewbayes, which would name its images and prompt: give --instance_data_dir, "
            "the folder it was trained on, and --instance_prompt, the words it was trained with, as in "
            '"a photo of sks dog"'
        )
    return folder, prompt


def _check_no_mark(prompts: Sequence[str], card: ModelCard) -> None:
    """A mark that stands for no word would be sampled as it is written, which the model was never told of."""
    for prompt in prompts:
        if RARE_TOKEN_MARK in prompt:
            raise UserError(
                f"the prompt {prompt!r} has {RARE_TOKEN_MARK}, and the base model {card.model} names no word for it: "
                'write the word itself, as in "a photo of sks dog", or name it by --rare_token'
            )


def _how(asked: Asked, config: TrainConfig | None, card: ModelCard) -> dict[str, Any]:
    usual = {"sampler": card.usual_sampler, "num_inference_steps": 25, "guidance_scale": 7.5, "negative_prompt": ""}
    found = {
        name: next(v for v in (getattr(asked, name), getattr(config, name, None), value) if v is not None)
        for name, value in usual.items()
    }
    names = {"num_inference_steps": "steps", "guidance_scale": "guidance"}
    interval = asked.guidance_interval or (config.guidance_interval if config else None)
    how = {names.get(name, name): value for name, value in found.items()}
    return how | ({"guidance_interval": interval} if interval else {})


def _switched(asked: Asked, config: TrainConfig | None) -> bool:
    """Whether the base model is what is left when the adapters are off; a learned word is no adapter."""
    if config is None:
        return is_adapter(Path(asked.source))
    return registered()[config.method].kind in ("lora", "adapter") and not config.train_rare_token


def _weights(asked: Asked, found: Found) -> str:
    return asked.weights or (None if asked.checkpoints else found.exported) or "raw"


def _checkpoints(run: Path) -> dict[int, Path]:
    found: dict[int, Path] = {}
    for path in RunFolder(run).checkpoints():
        try:
            found[verify_checkpoint(path).step] = path
        except (UserError, OSError) as error:
            log.warning("skipped a torn checkpoint, %s", error)
    if not found:
        raise UserError(f"{run} has no checkpoints; train with --checkpointing_steps, or leave out --checkpoints")
    return found
