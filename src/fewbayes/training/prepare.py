"""What a training needs before its first step: refusals, pictures, class images, the method in the model.

Knows nothing of run folders, of the loop, or of how the weights are made random.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from fewbayes.data.captions import few
from fewbayes.data.images import DataReport, TrainImage, crop, load_images
from fewbayes.diffusion.process import Process
from fewbayes.errors import UserError
from fewbayes.files.cache import cache_folder
from fewbayes.methods import Method
from fewbayes.models import Family, ModelCard
from fewbayes.models.family import text_parts
from fewbayes.models.precision import check_precision
from fewbayes.models.registry import family_named
from fewbayes.settings.config import TrainConfig
from fewbayes.training import memory
from fewbayes.training.batches import CLASS, INSTANCE, Pictures
from fewbayes.training.class_images import ClassImageSettings, ensure_class_images, present
from fewbayes.training.stages import probed
from fewbayes.training.validation import sampled_as

log = logging.getLogger("fewbayes")

LOOKS = 8  # at samples, of a training on a GPU that does not say how many
SAID = 6  # open channels, the worst ones


def check_packages(use_8bit_adam: bool, base_precision: str) -> None:
    """Packages that only these settings need."""
    if use_8bit_adam and find_spec("bitsandbytes") is None:
        raise UserError(
            "use_8bit_adam needs the package bitsandbytes, which is not installed: pip install bitsandbytes, or leave "
            "it out and save memory by gradient_checkpointing"
        )
    check_precision(base_precision)


def with_samples(config: TrainConfig, device: torch.device) -> TrainConfig:
    """The settings with validation_steps decided by the device, where they leave it open."""
    if config.validation_steps is not None:
        return config
    assert config.max_train_steps is not None
    every = 0 if device.type == "cpu" else -(-config.max_train_steps // LOOKS)
    return dataclasses.replace(config, validation_steps=every)


def held_apart(config: TrainConfig, images: list[TrainImage]) -> tuple[list[TrainImage], list[np.ndarray]]:
    """The images to train on, and the middle of the one that is held out."""
    if not config.held_out:
        return images, []
    assert config.resolution is not None
    log.info("Held out: %s. It is looked at and never trained on", images[-1].path.name)
    return images[:-1], [crop(images[-1].pixels, config.resolution)]


def check_drawn(card: ModelCard, config: TrainConfig) -> None:
    """The size of the images suits the model, and so do sampler and steps of a run that draws pictures."""
    assert config.sampler is not None
    draws = config.validation_steps or config.with_prior_preservation
    card.check_drawn(config.sampler, config.num_inference_steps if draws else 1, config.resolution)


def check_trained(card: ModelCard, config: TrainConfig) -> None:
    """Text encoders are trained only where the family has some that can be; of distilled models a warning is given."""
    family = family_named(card.family)
    if card.distilled:
        log.warning(
            "%s is distilled to draw in few steps, with little guidance or none: training at all times undoes that, "
            "and pictures of few steps blur. Train the base model and put its LoRA on this one, or draw with 25 steps "
            "and guidance",
            card.model,
        )
    if (config.train_text_encoder or config.train_rare_token) and not family.text_targets:
        raise UserError(
            f"the text encoders of {family.described} are not trained here, nor are words of theirs; leave out "
            "train_text_encoder and train_rare_token"
        )


def training_process(family: Family, config: TrainConfig) -> Process:
    """With the times that are asked for; these and weights of the loss that it is not meant for are refused."""
    if config.snr_gamma is not None:
        family.process.min_snr_weight(family.process.times([family.process.time_of(1.0)]), config.snr_gamma)
    return family.process.drawing(config.training_times, config.time_shift)


@contextmanager
def attached(method: Method, family: Family, config: TrainConfig, *, restore: bool) -> Iterator[None]:
    """The method attached inside; outside all is frozen again and, with `restore`, has its old values bit for bit."""
    method.attach(family)
    weights = method.trainable(family)
    before = {name: weight.detach().clone() for name, weight in weights.items()} if restore else {}
    try:
        yield
    finally:
        for name, weight in weights.items():
            weight.grad = None
            if restore:
                weight.data.copy_(before[name])
        family.checkpoint_gradients(False)
        method.detach(family)


def check_masters(weights: Mapping[str, nn.Parameter]) -> None:
    """Updates of 1e-6 vanish in half precision, and float16's loss scale cannot be taken off such gradients."""
    low = [f"{name} ({weight.dtype})" for name, weight in weights.items() if weight.dtype != torch.float32]
    if low:
        raise UserError(
            f"trained weights have to be float32, but {low[0]} and {len(low) - 1} others are not; give the model as "
            "load_family gives it, and choose the precision of the forward pass by mixed_precision"
        )


def check_rare_token(family: Family, word: str | None) -> None:
    """Unknown to the tokenizer: UserError; more than one token: a warning."""
    count = family.count_tokens(word) if word else 1
    if count == 0:
        raise UserError(f"rare_token {word!r} is unknown to the tokenizer of {family.card.model}; choose another word")
    if count > 1:
        log.warning("rare_token %r is %d tokens; a word that is one token is learned better", word, count)


def encode_prompts(
    config: TrainConfig,
    family: Family,
    images: Sequence[TrainImage],
    model_hash: str,
    accelerator: Accelerator,
    need: memory.MemoryEstimate,
) -> None:
    """All that this run will ask of the text encoders, which are not there afterwards.

    Text encoders that are larger than all of the training read in main memory.
    In the batches and the precisions in which it will be asked, as these change the last bits. What is asked beyond
    them loads the text encoders again.
    """
    family.keep_prompts(cache_folder() / "prompts" / model_hash[:16], on="cpu" if need.before > need.training else None)
    mine, theirs = captions_of(config, images, INSTANCE), []
    if config.with_prior_preservation:
        theirs = [config.with_rare_token(config.class_prompt or "")]
    shown = sampled_as(config)["prompts"] if config.validation_steps else []
    with torch.no_grad():
        watched = [mine[i] for i in probed(len(mine))] + theirs if config.monitor_steps else []
        asked = [(mine, False), (theirs, False), (watched, False), (shown, True), (theirs, True)]
        for prompts, low in asked:
            with accelerator.autocast() if low else nullcontext():
                if prompts:
                    family.encode_prompts(list(dict.fromkeys(prompts)))
        if watched:
            family.encode_negative(config.negative_prompt)
        with accelerator.autocast():
            for prompt in [config.negative_prompt] * bool(shown or theirs) + [""] * (config.caption_dropout > 0):
                family.encode_negative(prompt)
    family.drop(*text_parts(family))


def captions_of(config: TrainConfig, images: Sequence[TrainImage], half: int) -> list[str]:
    """Of each image its caption, or the prompt of its half."""
    usual = (config.class_prompt or "") if half == CLASS else config.instance_prompt
    told = [usual if half == CLASS else (image.caption or usual) for image in images]
    return [config.with_rare_token(caption) for caption in told]


def pictures_of(
    config: TrainConfig, family: Family, images: Sequence[TrainImage], half: int, process: Process
) -> Pictures:
    """Images as training sees them."""
    assert config.resolution is not None
    return Pictures(
        family,
        [image.pixels for image in images],
        captions_of(config, images, half),
        side=config.resolution,
        random_flip=config.random_flip,
        keep_latents=config.cache_latents,
        keep_prompts=config.cache_latents and not (config.train_text_encoder or config.train_rare_token),
        noise_offset=config.noise_offset,
        caption_dropout=config.caption_dropout,
        mean_latents=config.latents == "mean",
        half=half,
        masks=[image.mask for image in images],
        process=process,
        mask_weight=1.0 if config.mask_weight is None or half == CLASS else config.mask_weight,
    )


def check_photographs(config: TrainConfig, report: DataReport) -> list[str]:
    """What is to be said of the photographs beside these settings; UserError for masks that are asked for in vain."""
    said, side = [], config.resolution or 0
    masked = sum(image.mask is not None for image in report.images)
    if config.mask_weight is None and masked:
        said.append(
            f"the masks of {masked} images are not used; --mask_weight 0.1 would have the background count less"
        )
    if config.mask_weight is not None and not masked:
        raise UserError(
            f"mask_weight is {config.mask_weight:g}, but {report.folder} holds no masks; put 00-mask.png beside "
            "00.jpg, white where the subject is, or leave it out"
        )
    small = [image for image in report.images if min(image.width, image.height) < side]
    if small:
        least = min(small, key=lambda image: min(image.width, image.height))
        said.append(
            f"{len(small)} of {len(report.images)} images are smaller than {side} pixels and are enlarged, the "
            f"smallest from {least.width} x {least.height}: the model learns the blur; take larger ones, or a lower "
            "--resolution"
        )
    told = [(image.path.name, config.with_rare_token(image.caption)) for image in report.images if image.caption]
    without = [name for name, caption in told if not config.names_subject(caption)]
    if without:
        said.append(
            f"{len(without)} of {len(told)} captions lack the rare token {config.rare_token}, so nothing ties it to "
            f"the subject there ({few(without)}); write <v> where it stands, as in {config.instance_prompt!r}"
        )
    return said


def own_class_images(config: TrainConfig) -> list[TrainImage]:
    """The user's own class images, where class_data_dir holds any."""
    if not config.with_prior_preservation or config.class_data_dir is None:
        return []
    folder = Path(config.class_data_dir)
    if not folder.is_dir() or not any(path.is_file() and not path.name.startswith(".") for path in folder.iterdir()):
        return []
    assert config.resolution is not None
    found = load_images(folder, resolution=config.resolution, center_crop=config.center_crop)
    more = f", though num_class_images is {n}" if (n := config.num_class_images or 0) > len(found) else ""
    log.info("class images: your own %d in %s; none are drawn beside them%s", len(found), folder, more)
    return found


def class_settings(config: TrainConfig, model_hash: str) -> ClassImageSettings:
    """What class images depend on, where the model has to draw them; model_hash: of the untrained one."""
    assert config.resolution is not None
    assert config.class_prompt is not None
    assert config.sampler is not None
    return ClassImageSettings(
        model=model_hash,
        prompt=config.with_rare_token(config.class_prompt),
        negative_prompt=config.negative_prompt,
        resolution=config.resolution,
        sampler=config.sampler,
        steps=config.num_inference_steps,
        guidance=config.guidance_scale,
        precision=config.mixed_precision,
        seed=config.seed,
    )


def generated_class_images(
    config: TrainConfig, family: Family, settings: ClassImageSettings, accelerator: Accelerator
) -> list[TrainImage]:
    """Class images drawn by the untrained model, drawn now or found whole from before."""
    assert config.num_class_images is not None
    with accelerator.autocast():
        folder = ensure_class_images(
            family,
            Path(config.class_data_dir) if config.class_data_dir else cache_folder() / "class_images",
            settings,
            config.num_class_images,
            batch_size=config.sample_batch_size,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            said=lambda done, total: log.info("class images: block %d of %d", done, total),
        )
    accelerator.wait_for_everyone()
    found = present(folder, config.num_class_images)
    assert len(found) == config.num_class_images, f"{folder} was changed while it was being filled"
    return [
        TrainImage(found[i], found[i].stem, np.asarray(Image.open(found[i]).convert("RGB")), None)
        for i in range(config.num_class_images)
    ]


def warn_of_open_channels(found: Mapping[int, float]) -> None:
    """found: as `batches.open_channels` gives them."""
    if found:
        worst = sorted(sorted(found, key=lambda channel: -found[channel])[:SAID])
        shares = ", ".join(f"{channel} ({found[channel]:.1f} of its spread)" for channel in worst)
        more = f" and {len(found) - SAID} more" if len(found) > SAID else ""
        log.warning(
            "the autoencoder leaves channels of the latents open, %s%s, and every step trains on noise there; unless "
            "the model was pretrained on such draws too, samples will fill with noise. Take the autoencoder that the "
            "model was pretrained with, or one whose encoder answers its mean",
            shares,
            more,
        )
