"""The settings of a training run: names, limits, defaults, and how they are read from YAML and the command line.

The field names are those of the diffusers DreamBooth scripts wherever one exists there. A setting is looked for on the
command line first, then in the YAML file, then among what the model recommends, then among the paper's defaults.

It does not know how a setting is carried out: no torch, no images, nothing but the standard library and yaml.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import inspect
import math
import re
import shutil
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NoReturn, get_args, get_origin, get_type_hints

import yaml

from fewbayes.errors import UserError

RARE_TOKEN_MARK = "<v>"
USUAL_RARE_TOKEN = "sks"
WHERE_PRESETS = ("linear", "linear-no-time", "linear-up", "linear-cross", "norm", "all")
ADAPTER_TARGETS = ("attention", "attention+ff")
CLASS_IMAGES_PER_IMAGE = 200


class ConfigError(UserError):
    """A setting that cannot be used; the message names the value, the limit and the way out."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Everything that is set for one training run. Every instance is valid; `resolve` fills what None leaves open."""

    model: str
    """Pipeline folder or hub id of the model to fine-tune; `tiny` is the one that comes with the package."""
    instance_data_dir: str
    """Folder with the images of the subject, 1 to 1000."""
    instance_prompt: str
    """Prompt of these images, with <v> where the rare token stands: "a photo of a <v> dog"."""
    output_dir: str
    """Run folder. The same command on the same folder continues the run."""
    rare_token: str | None = None
    """The word that <v> stands for. None: the model's own, else `sks`."""

    method: Literal["full", "lora", "oft", "monteclora", "pvera", "tlora"] = "full"
    """What is trained: `full` is every weight of the denoiser; the others train adapters beside frozen weights:
    low-rank (`lora`), orthogonal (`oft`), or other kinds of LoRA to compare with (`monteclora`, `pvera`, `tlora`)."""
    train_text_encoder: bool = False
    """Train the text encoders too, by the same method."""
    train_rare_token: bool = False
    """Learn the embedding of the rare token too (textual inversion), beside the method."""
    rank: int = 4
    """Rank of the low-rank matrices."""
    lora_alpha: float | None = None
    """Low-rank updates are scaled by lora_alpha / rank. None: the rank, so that they are not scaled at all."""
    lora_dropout: float = 0.0
    """Share of the adapters' inputs that is dropped during training."""
    use_dora: bool = False
    """Learn the lengths of the weight's rows apart from their directions (DoRA)."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(rank) instead (rank-stabilised LoRA)."""
    adapter_targets: str = "attention"
    """Layers that get an adapter: attention, attention+ff, or pattern:<regex> over the names of linear layers."""
    oft_blocks: int = 4
    """Number of orthogonal blocks of each layer."""
    oft_block_size: int | None = None
    """Side of the orthogonal blocks, in place of their number; it has to divide the width of every layer."""

    bayes: bool = False
    """Train a Gaussian over the weights instead of the weights alone."""
    weight_std: float | None = None
    """Standard deviation that random weights begin with. None: the model's recommendation, else 0.01."""
    weight_std_tolerance: float | None = None
    """Instead of weight_std: find the largest one that raises the loss on the training images by at most this share
    before training, 0.05 for 5 %. What is found stands in manifest.json."""
    weight_std_mode: Literal["absolute", "relative"] = "absolute"
    """`relative`: weight_std is a multiple of the spread of each weight matrix, and has to be given, say 0.3."""
    weight_std_learn: Literal["elementwise", "row", "fixed"] = "elementwise"
    """One learned standard deviation per weight, one per row, or none learned."""
    prior_std: float | None = None
    """Standard deviation of the prior, whose mean is the pretrained weight. None: as weight_std."""
    kl_weight: float = 0.0
    """Weight of the divergence from the prior (lambda of Eq. 3)."""
    kl_direction: Literal["forward", "reverse"] = "forward"
    """forward: KL(posterior || prior), Eq. 3. reverse: KL(prior || posterior), Algorithm 1 and the authors' code."""
    where: str = "linear"
    """Which weights of the denoiser are random: linear, linear-no-time, linear-up, linear-cross, norm, all, or
    pattern:<regex>. For method full; adapters know which of theirs are."""

    with_prior_preservation: bool = False
    """Train on generated images of the class as well, so that the class is not forgotten."""
    class_data_dir: str | None = None
    """Folder of class images, yours or generated. None: generated ones are kept in the user's cache by content."""
    class_prompt: str | None = None
    """Prompt of the class images: "a photo of a dog". Needed with prior preservation."""
    num_class_images: int | None = None
    """Number of class images. None: 200 per training image."""
    prior_loss_weight: float = 1.0
    """Weight of the loss on class images."""

    resolution: int | None = None
    """Side of the square training images in pixels. None: the model's own."""
    center_crop: bool = False
    """Crop in the centre instead of at random."""
    random_flip: bool = False
    """Mirror each image left to right half of the time."""
    cache_latents: bool = True
    """Encode images and prompts once, when nothing prevents it (random crops, flips, a trained text encoder do)."""

    max_train_steps: int | None = None
    """Number of optimizer steps. None: 200 per training image, 400 for the low-rank methods."""
    train_batch_size: int = 1
    """Images per step and process."""
    gradient_accumulation_steps: int = 1
    """Batches whose gradients are summed into one step."""
    learning_rate: float | None = None
    """Learning rate of AdamW. None: what the model recommends, else 5e-6 for method full and 1e-4 for adapters."""
    text_encoder_lr: float | None = None
    """Learning rate of the text encoders and of the rare token. None: learning_rate."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Learning rate over the steps."""
    lr_warmup_steps: int = 0
    """Steps over which the rate rises from zero; not with lr_scheduler constant."""
    adam_beta1: float = 0.9
    """Decay of the running mean of the gradient."""
    adam_beta2: float = 0.999
    """Decay of the running mean of its square."""
    adam_weight_decay: float = 1e-2
    """Decoupled weight decay."""
    adam_epsilon: float = 1e-8
    """Added to the denominator of the update."""
    use_8bit_adam: bool = False
    """Keep the optimizer's memory in 8 bits; needs the package bitsandbytes."""
    max_grad_norm: float = 1.0
    """Gradients are scaled down to this norm; 1e9 is as good as none."""
    use_ema: bool = False
    """Keep an exponential moving average of the weights beside them."""
    ema_decay: float = 0.99
    """Decay of that average after its warm-up: min(ema_decay, (1 + n) / (10 + n)) at step n."""
    export_weights: Literal["raw", "ema"] = "raw"
    """Which weights become the final result."""

    snr_gamma: float | None = None
    """Weight timesteps by min(signal-to-noise ratio, snr_gamma), usually 5. None: all alike."""
    noise_offset: float = 0.0
    """Add to the noise of each channel one number of this standard deviation; 0.1 where it is used."""
    dropout: float = 0.0
    """Share of activations that the denoiser's own dropout layers drop during training."""
    l2_init_weight: float = 0.0
    """Pull to the initial weights: each step takes learning_rate * l2_init_weight of the distance away, beside AdamW's
    own update. A tool against forgetting that is not Bayesian; with bayes it acts on the means."""

    seed: int = 0
    """Every random draw of the run is a function of this number."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; trained weights stay fp32."""
    gradient_checkpointing: bool = False
    """Recompute activations instead of keeping them: less memory, more time."""
    memory_limit: str | None = None
    """Refuse to begin where training would need more than this, as in 24GB. None: what the device has free."""
    checkpointing_steps: int = 500
    """Steps between checkpoints; one more follows the last step, so that a finished run can be made longer, export its
    averages and show its deviations. 0: no checkpoints at all, to save disk and time; a killed run begins again."""
    checkpoints_total_limit: int | None = None
    """Number of newest checkpoints to keep. None: all."""

    validation_steps: int = 0
    """Steps between samples, step 0 included; 0 is never."""
    validation_prompt: str | None = None
    """Prompt of the samples, several separated by |. None: instance_prompt."""
    num_validation_images: int = 4
    """Samples per prompt."""
    sampler: Literal["ddim", "pndm", "dpm++", "ddpm", "euler"] = "ddim"
    """Sampler of samples and class images."""
    num_inference_steps: int = 25
    """Steps of the sampler."""
    guidance_scale: float = 7.5
    """Classifier-free guidance; 1 is none."""
    negative_prompt: str = ""
    """Prompt that guidance leads away from."""
    sample_batch_size: int = 4
    """Images made at once when sampling."""

    monitor_steps: int = 0
    """Steps between looks of the stage monitor, which tells whether the model is underfit, good, corrupted or memorised
    (stages.jsonl); 0 is never. It sees noise and copies in samples alone, so it needs validation_steps: it looks
    wherever samples are drawn, and keeps the last model whose samples were good in best/. That takes as much of the
    disk as the run's result, a whole pipeline with method full, and twice as much while it is replaced. On the
    embedded model at batch 1 a look by itself took as long as 2.5 steps of LoRA or 1.6 of full fine-tuning, and four
    samples far longer (benchmarks/monitor_cost.py)."""
    stop_when: Literal["never", "corrupted", "memorised"] = "never"
    """End training once the monitor has seen this in the samples of two looks in a row. The result is the last model,
    as always; best/ holds the last good one."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_words(self)
        _check_together(self)

    @property
    def validation_prompts(self) -> tuple[str, ...]:
        """The prompts of the samples, with <v> as written."""
        text = self.validation_prompt or self.instance_prompt
        return tuple(prompt.strip() for prompt in text.split("|") if prompt.strip())

    def with_rare_token(self, prompt: str) -> str:
        """The prompt with the rare token in place of <v>."""
        return prompt.replace(RARE_TOKEN_MARK, self.rare_token or RARE_TOKEN_MARK)

    def resolve(self, recommended: Mapping[str, Any], native_resolution: int, n_images: int) -> TrainConfig:
        """Fills every setting that None leaves open: explicit before recommended by the model before the paper's.

        `recommended` is what the model's fewbayes.json says, which may name the settings that default to None; what it
        says under a method's name goes before the rest. Settings whose switch is off stay open, and so does weight_std
        where weight_std_tolerance is to find it.
        """
        recommended = _recommended_for(self.method, recommended)
        paper = {
            "rare_token": USUAL_RARE_TOKEN,
            "learning_rate": PAPER[self.method].learning_rate,
            "weight_std": 0.01,
            "resolution": native_resolution,
            "max_train_steps": PAPER[self.method].steps_per_image * n_images,
            "num_class_images": CLASS_IMAGES_PER_IMAGE * n_images,
            "validation_prompt": self.instance_prompt,
        }
        offered = paper | {key: _converted(key, value) for key, value in recommended.items()}
        idle = {name for switch, names in _NEEDS.items() if not getattr(self, switch) for name in names}
        if self.weight_std_mode == "relative" or self.weight_std_tolerance is not None:
            idle |= {"weight_std", "prior_std"}  # those on offer are absolute ones
        _check_copies_can_be_told(self, n_images)
        filled = dataclasses.replace(
            self, **{key: v for key, v in offered.items() if getattr(self, key) is None and key not in idle}
        )
        return dataclasses.replace(filled, prior_std=filled.weight_std) if filled.prior_std is None else filled

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        """All settings as a YAML file that `load_config` reads back to an equal config."""
        text = yaml.safe_dump(self.to_dict(), sort_keys=False, allow_unicode=True, width=120)
        if yaml.safe_load(text) == self.to_dict():
            return text
        return yaml.safe_dump(self.to_dict(), sort_keys=False, width=120)  # rare line breaks (U+0085) need escapes

    def fingerprint(self, **content: Any) -> dict[str, Any]:
        """What must agree for a run to be continued, by name.

        Left out: where the run is written, how often it is saved, sampled and looked at and by which sampler, what
        ends it early, which weights are exported, memory_limit and gradient_checkpointing; none of them changes the
        trained weights. cache_latents is
        not left out: latents made in other batches can differ in their last bits. The number of steps is
        left out while the learning rate does not depend on it, so that a run can be made longer. So is what belongs to
        other methods, and what is not used where not using it is the default: a run is not begun anew because a later
        version can do more.
        `content` replaces a path by what lies there, for instance instance_data_dir=[sha256, ...]: then a folder may
        move, and other images under the same path are noticed.
        """
        left_out = _FREE_ON_RESUME | {name for name, methods in _METHODS_OF.items() if self.method not in methods}
        left_out |= {name for name in _OFF_BY_DEFAULT if getattr(self, name) == _fields()[name].default}
        if self.lr_scheduler.startswith("constant"):
            left_out |= {"max_train_steps"}
        unknown = content.keys() - _fields().keys()
        assert not unknown, unknown
        return {key: value for key, value in (self.to_dict() | content).items() if key not in left_out}


_FREE_ON_RESUME = frozenset(
    {
        "output_dir",
        "checkpointing_steps",
        "checkpoints_total_limit",
        "validation_steps",
        "validation_prompt",
        "num_validation_images",
        "sampler",
        "num_inference_steps",
        "guidance_scale",
        "negative_prompt",
        "sample_batch_size",
        "monitor_steps",
        "stop_when",
        "export_weights",
        "gradient_checkpointing",
        "memory_limit",
    }
)
_OFF_BY_DEFAULT = frozenset(
    {
        "train_rare_token",
        "text_encoder_lr",
        "use_8bit_adam",
        "snr_gamma",
        "noise_offset",
        "dropout",
        "l2_init_weight",
    }
)


@dataclass(frozen=True)
class Usual:
    """What the paper's experiments use with a method."""

    learning_rate: float
    steps_per_image: int


# DreamBooth, LoRA and OFT as in the paper's section on settings; the other adapters are kinds of LoRA.
PAPER = {
    "full": Usual(5e-6, 200),
    "lora": Usual(1e-4, 400),
    "oft": Usual(1e-4, 200),
    "monteclora": Usual(1e-4, 400),
    "pvera": Usual(1e-4, 400),
    "tlora": Usual(1e-4, 400),
}

_GROUPS = {
    "model and data": "model",
    "method": "method",
    "Bayesian weights": "bayes",
    "prior preservation": "with_prior_preservation",
    "images": "resolution",
    "optimization": "max_train_steps",
    "loss and regularisation": "snr_gamma",
    "run": "seed",
    "samples": "validation_steps",
    "stage monitor": "monitor_steps",
}
"""Headings of the help, each with the first field under it."""

# --- limits -----------------------------------------------------------------------------------------------------------

_POSITIVE = (
    "rank",
    "lora_alpha",
    "oft_blocks",
    "oft_block_size",
    "text_encoder_lr",
    "snr_gamma",
    "num_class_images",
    "max_train_steps",
    "train_batch_size",
    "gradient_accumulation_steps",
    "learning_rate",
    "adam_epsilon",
    "max_grad_norm",
    "weight_std_tolerance",
    "checkpoints_total_limit",
    "num_validation_images",
    "num_inference_steps",
    "sample_batch_size",
)
_NOT_NEGATIVE = (
    "noise_offset",
    "l2_init_weight",
    "weight_std",
    "prior_std",
    "kl_weight",
    "prior_loss_weight",
    "lr_warmup_steps",
    "adam_weight_decay",
    "seed",
    "checkpointing_steps",
    "validation_steps",
    "monitor_steps",
    "guidance_scale",
)
_BELOW_ONE = ("adam_beta1", "adam_beta2", "ema_decay", "lora_dropout", "dropout")
_SEED_LIMIT = 2**63
_RESOLUTION_STEP, _RESOLUTION_RANGE = 8, (16, 4096)


def _check_numbers(config: TrainConfig) -> None:
    for name, value in config.to_dict().items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name} is {value}; it must be a finite number")
    for name in _POSITIVE:
        _must(name, getattr(config, name), lambda value: value > 0, "greater than 0")
    for name in _NOT_NEGATIVE:
        _must(name, getattr(config, name), lambda value: value >= 0, "0 or more")
    for name in _BELOW_ONE:
        _must(name, getattr(config, name), lambda value: 0 <= value < 1, "at least 0 and below 1")
    _must("seed", config.seed, lambda value: value < _SEED_LIMIT, "below 2^63")
    low, high = _RESOLUTION_RANGE
    _must(
        "resolution",
        config.resolution,
        lambda value: low <= value <= high and value % _RESOLUTION_STEP == 0,
        f"a multiple of {_RESOLUTION_STEP} from {low} to {high}, or left out for the model's own",
    )


def _must(name: str, value: Any, holds: Any, limit: str) -> None:
    if value is not None and not holds(value):
        raise ConfigError(f"{name} is {value}; it must be {limit}")


def _check_words(config: TrainConfig) -> None:
    for name in ("model", "instance_data_dir", "instance_prompt", "output_dir"):
        if not getattr(config, name).strip():
            raise ConfigError(f"{name} is empty")
    for name, allowed in _choices().items():
        if getattr(config, name) not in allowed:
            raise ConfigError(f"{name} is {getattr(config, name)!r}; it must be one of {', '.join(allowed)}")
    if config.rare_token is not None and len(config.rare_token.split()) != 1:
        raise ConfigError(f"rare_token is {config.rare_token!r}; it must be one word")
    if config.validation_prompt is not None and not config.validation_prompts:
        raise ConfigError(
            f"validation_prompt is {config.validation_prompt!r}, which holds no prompt; "
            "write prompts separated by |, or leave it out for instance_prompt"
        )
    _check_pattern("where", config.where, WHERE_PRESETS)
    _check_pattern("adapter_targets", config.adapter_targets, ADAPTER_TARGETS)
    _check_rare_token(config)
    memory_bytes(config.memory_limit or "1GB")


def _check_pattern(name: str, value: str, presets: Sequence[str]) -> None:
    kind, colon, pattern = value.partition(":")
    if kind == "pattern" and colon:
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"{name} is {value!r}, which is not a regular expression ({error})") from error
    elif value not in presets:
        raise ConfigError(
            f"{name} is {value!r}; it must be one of {', '.join(presets)}, or pattern:<regular expression>"
            f"{_did_you_mean(value, presets)}"
        )


def memory_bytes(text: str) -> int:
    """The bytes of a memory_limit such as 24GB (10^9) or 24GiB (2^30)."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])(i?)B", text.strip())
    if not found or float(found[1]) == 0:
        raise ConfigError(f"memory_limit is {text!r}; it must be a number with its unit, as in 24GB, 11.5GiB or 800MB")
    power = "KMGT".index(found[2]) + 1
    return int(float(found[1]) * (1024 if found[3] else 1000) ** power)


def _check_rare_token(config: TrainConfig) -> None:
    prompt, word = config.instance_prompt, config.rare_token or USUAL_RARE_TOKEN
    if RARE_TOKEN_MARK not in prompt and word not in re.split(r"[\s,.;:!?\"']+", prompt):
        raise ConfigError(
            f"instance_prompt is {prompt!r}, without a rare token: write {RARE_TOKEN_MARK} where it stands, as in "
            f'"a photo of a {RARE_TOKEN_MARK} dog", or name a word of the prompt by rare_token'
        )


_NEEDS: dict[str, tuple[str, ...]] = {
    "bayes": (
        "weight_std",
        "weight_std_tolerance",
        "weight_std_mode",
        "weight_std_learn",
        "prior_std",
        "kl_weight",
        "kl_direction",
        "where",
    ),
    "with_prior_preservation": ("class_data_dir", "class_prompt", "num_class_images", "prior_loss_weight"),
    "use_ema": ("ema_decay", "export_weights"),
}
"""Switches, each with the settings that mean nothing without it."""

_LOW_RANK = ("lora", "monteclora", "pvera", "tlora")
_METHODS_OF: dict[str, tuple[str, ...]] = {
    "rank": _LOW_RANK,
    "lora_alpha": ("lora", "monteclora", "tlora"),
    "lora_dropout": ("lora", "monteclora", "pvera"),
    "use_dora": ("lora",),
    "use_rslora": ("lora", "monteclora"),
    "adapter_targets": (*_LOW_RANK, "oft"),
    "oft_blocks": ("oft",),
    "oft_block_size": ("oft",),
    "where": ("full",),
}
"""Settings, each with the methods that use it."""


def _check_switches(config: TrainConfig) -> None:
    for switch, names in _NEEDS.items():
        changed = [name for name in names if getattr(config, name) != _fields()[name].default]
        if changed and not getattr(config, switch):
            given = ", ".join(f"{name} is {getattr(config, name)}" for name in changed)
            them = "it" if len(changed) == 1 else "them"
            raise ConfigError(f"{given}, but {switch} is off, without which nothing uses {them}; add {switch}")


def _check_method(config: TrainConfig) -> None:
    for name, methods in _METHODS_OF.items():
        value, default = getattr(config, name), _fields()[name].default
        if config.method not in methods and value != default:
            raise ConfigError(
                f"{name} is {value}, which method {config.method} never uses; "
                f"leave it out, or take method {' or '.join(methods)}"
            )
    if config.bayes and config.method in ("monteclora", "pvera", "tlora"):
        raise ConfigError(
            f"method {config.method} is there to be compared with Bayesian weights and does not take them; "
            "leave bayes out, or take method lora"
        )
    if config.oft_block_size is not None and config.oft_blocks != _fields()["oft_blocks"].default:
        raise ConfigError(
            f"oft_blocks is {config.oft_blocks} and oft_block_size is {config.oft_block_size}; give one of them"
        )
    if config.text_encoder_lr is not None and not (config.train_text_encoder or config.train_rare_token):
        raise ConfigError(
            f"text_encoder_lr is {config.text_encoder_lr:g}, but nothing of the text encoders is trained; "
            "add train_text_encoder or train_rare_token"
        )


def _check_together(config: TrainConfig) -> None:
    _check_switches(config)
    _check_method(config)
    _check_weight_std(config)
    _check_monitor(config)
    rate = max(config.learning_rate or 0.0, config.text_encoder_lr or 0.0)
    if rate * config.l2_init_weight > 1:
        raise ConfigError(
            f"l2_init_weight is {config.l2_init_weight:g}, at a learning rate of {rate:g} more than the whole way back "
            f"in one step; it must be at most {1 / rate:g}"
        )
    if config.with_prior_preservation and not (config.class_prompt or "").strip():
        raise ConfigError('with_prior_preservation needs class_prompt, as in "a photo of a dog"')
    if config.lr_scheduler == "constant" and config.lr_warmup_steps > 0:
        raise ConfigError(
            f"lr_warmup_steps is {config.lr_warmup_steps}, which lr_scheduler constant never uses; "
            "take lr_scheduler constant_with_warmup, or lr_warmup_steps 0"
        )
    if config.bayes and config.kl_weight > 0:
        for name in ("weight_std", "prior_std"):
            if getattr(config, name) == 0:
                raise ConfigError(f"{name} is 0, where the divergence is infinite; take kl_weight 0 or {name} above 0")


def _check_weight_std(config: TrainConfig) -> None:
    if config.weight_std_tolerance is not None and config.weight_std is not None:
        raise ConfigError(
            f"weight_std_tolerance is {config.weight_std_tolerance:g}, which finds weight_std, and weight_std is "
            f"{config.weight_std:g} already; give one of them"
        )
    if config.bayes and config.weight_std_mode == "relative" and config.method != "full":
        raise ConfigError(
            "weight_std_mode is relative, in multiples of each weight's spread, but the random weights of method "
            f"{config.method} begin at zero and have none; take weight_std_mode absolute, or method full"
        )
    open_ = config.weight_std is None and config.weight_std_tolerance is None
    if config.weight_std_mode == "relative" and open_:
        raise ConfigError(
            "weight_std_mode relative needs weight_std, a multiple of each weight's spread: 0.3 is a sensible one; "
            "or have it found by weight_std_tolerance 0.05"
        )


def _check_monitor(config: TrainConfig) -> None:
    if config.stop_when == "never":
        return
    if not config.monitor_steps:
        raise ConfigError(
            f"stop_when is {config.stop_when}, but monitor_steps is 0 and nobody looks; add monitor_steps, 100 is a "
            "sensible one"
        )
    if not config.validation_steps:
        raise ConfigError(
            f"stop_when is {config.stop_when}, but validation_steps is 0 and the monitor says that of samples alone; "
            f"add validation_steps, {config.monitor_steps} shows it samples at every look"
        )


def _check_copies_can_be_told(config: TrainConfig, n_images: int) -> None:
    """Good pictures of one training image are all like it; that they are copies shows in how alike they are."""
    if config.stop_when == "memorised" and n_images == 1 and config.num_validation_images < 2:
        raise ConfigError(
            f"stop_when is memorised, but with 1 training image and num_validation_images "
            f"{config.num_validation_images} the monitor cannot tell a copy from a good picture: it compares samples "
            "of one prompt; give num_validation_images 2 or more, 4 is a sensible one, or more training images"
        )


_NOT_OF_A_MODEL = (
    "weight_std_tolerance",
    "lora_alpha",
    "oft_block_size",
    "text_encoder_lr",
    "snr_gamma",
    "memory_limit",
)
"""Settings where None has a meaning of its own."""


def _recommended_for(method: str, recommended: Mapping[str, Any]) -> dict[str, Any]:
    """The model's advice for a method: its own entry over the common ones."""
    source = "the model's fewbayes.json"
    common = {key: value for key, value in recommended.items() if key not in PAPER}
    entries = {key: value for key, value in recommended.items() if key in PAPER}
    for advice in (common, *entries.values()):
        if not isinstance(advice, Mapping):
            raise ConfigError(f"{source}: under the name of a method stand settings by name, not {advice!r}")
        _known(advice, source)
        fixed = sorted(k for k in advice if _fields()[k].default is not None or k in _NOT_OF_A_MODEL)
        if fixed:
            raise ConfigError(f"{source} recommends {', '.join(fixed)}, which a model cannot recommend")
    return common | dict(entries.get(method, {}))


# --- types ------------------------------------------------------------------------------------------------------------


@cache
def _fields() -> dict[str, dataclasses.Field[Any]]:
    return {field.name: field for field in dataclasses.fields(TrainConfig)}


@cache
def _types() -> dict[str, tuple[Any, bool]]:
    """Per field its type without None, and whether None is allowed."""
    types = {}
    for name, hint in get_type_hints(TrainConfig).items():
        members = get_args(hint) if get_origin(hint) is UnionType else (hint,)
        types[name] = (next(member for member in members if member is not NoneType), NoneType in members)
    return types


@cache
def _choices() -> dict[str, tuple[str, ...]]:
    return {name: get_args(kind) for name, (kind, _) in _types().items() if get_origin(kind) is Literal}


def _switches() -> set[str]:
    return {name for name, (kind, _) in _types().items() if kind is bool}


def _converted(name: str, value: Any) -> Any:
    """The value in the type of its field; YAML and the command line both come through here."""
    kind, may_be_none = _types()[name]
    if may_be_none and (value is None or (isinstance(value, str) and value.lower() in ("none", "null"))):
        return None
    if get_origin(kind) is Literal:
        return "no" if value is False and "no" in get_args(kind) else value  # YAML reads a bare no as false
    if kind is bool:
        return _boolean(name, value)
    if kind is int:
        return _integer(name, value)
    if kind is float:
        return _real(name, value)
    if name == "validation_prompt" and isinstance(value, list) and all(isinstance(prompt, str) for prompt in value):
        return " | ".join(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}; it must be text (in YAML, put it in quotes)")
    return value


def _boolean(name: str, value: Any) -> bool:
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{name} is {value!r}; it must be true or false (on the command line --{name} or --no-{name})")


def _integer(name: str, value: Any) -> int:
    number = _real(name, value, "a whole number")
    if not math.isfinite(number) or number != int(number):
        raise ConfigError(f"{name} is {value}; it must be a whole number")
    return int(str(value)) if re.fullmatch(r"[+-]?\d+", str(value)) else int(number)


def _real(name: str, value: Any, wanted: str = "a number") -> float:
    try:
        if isinstance(value, bool) or not isinstance(value, (int, float, str)):
            raise ValueError
        return float(value)  # text too: YAML reads 5e-6, without a point, as text
    except (ValueError, OverflowError):
        raise ConfigError(f"{name} is {value!r}; it must be {wanted}") from None


# --- names ------------------------------------------------------------------------------------------------------------

_ALIASES = {
    "pretrained_model_name_or_path": "model",
    "init_sigma": "weight_std",
    "prior_sigma": "prior_std",
    "lambda1": "kl_weight",
    "offset_noise": "noise_offset",
}
"""Names of the diffusers scripts and of the paper's released script for what is called otherwise here."""

_HUB = "upload the finished folder instead: hf upload <name> <output_dir>"
_TRACKER = "not needed: metrics.jsonl and samples/ in output_dir hold curves and images, fewbayes report makes a page"
_ELSEWHERE: dict[str, str] = {
    "revision": "download that revision (hf download <model> --revision <revision>) and give its folder as --model",
    "variant": "download that variant and give its folder as --model",
    "tokenizer_name": "the tokenizer of --model is used; change it in that folder",
    "cache_dir": "set the environment variable HF_HUB_CACHE",
    "num_train_epochs": "count steps by --max_train_steps; an epoch is images / batch size steps",
    "validation_epochs": "count steps by --validation_steps",
    "resume_from_checkpoint": "not needed: the same command continues from the newest whole checkpoint in --output_dir",
    "scale_lr": "give the scaled rate as --learning_rate",
    "lr_num_cycles": "--lr_scheduler has constant, constant_with_warmup, linear and cosine, which need no cycles",
    "lr_power": "--lr_scheduler has constant, constant_with_warmup, linear and cosine, which need no power",
    "optimizer": "AdamW is used; leave it out",
    "dataloader_num_workers": "not needed: the images are held in memory",
    "push_to_hub": _HUB,
    "hub_token": _HUB,
    "hub_model_id": _HUB,
    "report_to": _TRACKER,
    "logging_dir": _TRACKER,
    "tracker_name": _TRACKER,
    "allow_tf32": "set torch's own environment variable TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1",
    "local_rank": "set by accelerate launch; leave it out",
    "lora_layers": "choose the layers by --adapter_targets",
    "lora_bias": "biases are not trained with adapters",
    "train_text_encoder_ti": "use --train_rare_token",
    "learnable_property": "use --train_rare_token",
    "dataset_name": "give a folder by --instance_data_dir",
    "dataset_config_name": "give a folder by --instance_data_dir",
    "image_column": "give a folder by --instance_data_dir",
    "caption_column": "put captions beside the images, as 00.txt for 00.jpg or as metadata.jsonl",
    "repeats": "count steps by --max_train_steps; images are gone through as often as needed",
    "pre_compute_text_embeddings": "--cache_latents caches prompts too, and is on",
    "prior_generation_precision": "class images are made in the precision of --mixed_precision",
    "enable_xformers_memory_efficient_attention": "not needed: torch's own efficient attention is used",
    "set_grads_to_none": "not needed: it is always so",
    "validation_scheduler": "use --sampler",
    "validation_images": "use --num_validation_images and --validation_prompt",
    "convert_linear": "use --where linear",
    "convert_attn2": "use --where linear-cross",
    "convert_up_block": "use --where linear-up",
}
"""Flags of the diffusers scripts, and of the paper's released one, that are not here, with what to do instead."""


def _did_you_mean(name: str, among: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(among), n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else ""


def _known(keys: Iterable[str], source: str) -> None:
    """Raises for the keys that are not settings, all of them in one message."""
    lines = []
    for key in keys:
        if key in _ELSEWHERE:
            lines.append(f"{key} is not a setting here: {_ELSEWHERE[key]}")
        elif key not in _fields():
            lines.append(f"{key} is not a setting{_did_you_mean(str(key), [*_fields(), *_ALIASES])}")
    if lines:
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines))


def _own_names(settings: Mapping[str, Any], source: str) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for key, value in settings.items():
        plain = str(key).replace("-", "_")
        name = _ALIASES.get(plain, plain)
        if name in named:
            raise ConfigError(f"{source}: {name} is given twice")
        named[name] = value
    _known(named, source)
    return named


# --- reading ----------------------------------------------------------------------------------------------------------


class _Loader(yaml.SafeLoader):
    """YAML without the silent rule that the last of two equal keys wins."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        twice = sorted({key for key in keys if keys.count(key) > 1})
        if twice:
            raise yaml.YAMLError(f"{', '.join(twice)} is given twice")
        return super().construct_mapping(node, deep)


def load_config(yaml_path: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The settings of a YAML file (or of none) with `overrides` over them; paths count from the working folder."""
    settings = _read_yaml(Path(yaml_path)) if yaml_path is not None else {}
    settings |= _own_names(overrides, "command line")
    needed = [name for name, field in _fields().items() if field.default is dataclasses.MISSING]
    missing = [name for name in needed if settings.get(name) is None]
    if missing:
        raise ConfigError(f"missing: {', '.join(missing)}; give --{missing[0]} <value>, or a line in the YAML file")
    return TrainConfig(**{name: _converted(name, value) for name, value in settings.items()})


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        settings = yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        beside = [str(path.with_name(other.name)) for other in path.parent.glob("*.y*ml")]
        raise ConfigError(f"there is no file {path}{_did_you_mean(str(path), beside)}") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from error
    if settings is None:
        return {}
    if not isinstance(settings, dict):
        raise ConfigError(f"{path} holds no settings; write lines such as `seed: 0`")
    return _own_names(settings, str(path))


def parse_train_args(argv: Sequence[str]) -> TrainConfig:
    """The settings of `fewbayes train [config.yaml] --key value ...`; `--help` prints them all and exits.

    Names take hyphens or underscores, `--key=value` works too, switches are bare: --bayes, --no-bayes.
    """
    if any(token in ("--help", "-h") for token in argv):
        print(train_help())
        raise SystemExit(0)
    tokens = list(argv)
    yaml_path = tokens.pop(0) if tokens and not tokens[0].startswith("-") else None
    return load_config(yaml_path, _overrides(tokens))


def _overrides(tokens: list[str]) -> dict[str, Any]:
    overrides: dict[str, Any] = {}
    while tokens:
        name, value = _take_flag(tokens)
        if name in overrides:
            raise ConfigError(f"command line: {name} is given twice")
        overrides[name] = value
    return overrides


def _take_flag(tokens: list[str]) -> tuple[str, Any]:
    """Takes one flag with its value off the front."""
    token = tokens.pop(0)
    if not token.startswith("--"):
        _refuse_stray(token)
    flag, equals, text = token[2:].partition("=")
    flag = flag.replace("-", "_")
    name = _ALIASES.get(flag, flag)
    if name in _switches() or (name.startswith("no_") and name[3:] in _switches()):
        if equals or (tokens and tokens[0].lower() in ("true", "false", "1", "0", "yes", "no")):
            switch = name.removeprefix("no_")
            raise ConfigError(f"--{switch} takes no value; write --{switch} or --no-{switch}")
        return name.removeprefix("no_"), not name.startswith("no_")
    _known([name], "command line")
    if equals:
        return name, text
    if not tokens or tokens[0].startswith("--"):
        raise ConfigError(f"--{name} needs a value")
    return name, tokens.pop(0)


def _refuse_stray(token: str) -> NoReturn:
    hint = "a YAML file comes first" if token.endswith((".yaml", ".yml")) else "put text with spaces in quotes"
    raise ConfigError(f"command line: {token!r} belongs to no flag; {hint}")


# --- help -------------------------------------------------------------------------------------------------------------


@cache
def field_docs() -> dict[str, str]:
    """The docstring under each field of TrainConfig."""
    [definition] = ast.parse(inspect.getsource(TrainConfig)).body
    assert isinstance(definition, ast.ClassDef)
    docs = {}
    for field, below in zip(definition.body, definition.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant):
            docs[getattr(field.target, "id", "")] = str(below.value.value)
    return docs


def train_help() -> str:
    """The text of `fewbayes train --help`: every setting under its heading, with type, default and meaning."""
    headings = {first: heading for heading, first in _GROUPS.items()}
    width = min(shutil.get_terminal_size().columns, 110)
    lines = [
        "usage: fewbayes train [config.yaml] [--key value ...]",
        "",
        "Fine-tunes a model on a folder of images. Settings come from the YAML file, those given here go before it.",
        "The same command on the same --output_dir continues a run. Flags of the diffusers DreamBooth scripts work.",
    ]
    for name, field in _fields().items():
        if name in headings:
            lines += ["", f"{headings[name]}:"]
        lines.append(f"  {_usage(name, field)}")
        lines += textwrap.wrap(
            " ".join(field_docs()[name].split()), width, initial_indent=" " * 6, subsequent_indent=" " * 6
        )
    return "\n".join(lines)


def _usage(name: str, field: dataclasses.Field[Any]) -> str:
    kind, _ = _types()[name]
    if kind is bool:
        return f"--{name}, --no-{name}  [{'on' if field.default else 'off'}]"
    value = "{" + ",".join(_choices()[name]) + "}" if name in _choices() else {str: "TEXT", int: "N", float: "X"}[kind]
    if field.default is dataclasses.MISSING:
        return f"--{name} {value}  (needed)"
    return f"--{name} {value}" + ("" if field.default in (None, "") else f"  [{field.default}]")
