"""The settings of a training run: names, limits, defaults, and what must agree for a run to be continued.

The field names are those of the diffusers DreamBooth scripts wherever one exists there. A setting is looked for on the
command line first, then in the YAML file, in the recipe that is named there, among what the model recommends, and at
last among the paper's defaults.

It does not know how a setting is carried out: no torch, no images, nothing but the standard library and yaml.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import yaml

from fewbayes.diffusion.guidance import LIMIT, is_interval
from fewbayes.errors import UserError
from fewbayes.fields import Setting, check_fields, compose, setting, settings_of
from fewbayes.methods import registered
from fewbayes.settings.agreement import (
    RARE_TOKEN_MARK,
    USUAL_RARE_TOKEN,
    check_agreement,
    check_copies_can_be_told,
    refuse_idle,
    trained_on,
    without_token,
)
from fewbayes.settings.flags import LINE, Names, asks_for_help, help_text, read_yaml, take_flags
from fewbayes.settings.foreign import ALIASES, INSTEAD
from fewbayes.settings.recipes import RECIPES

if TYPE_CHECKING:
    from fewbayes.models.family import ModelCard

CLASS_IMAGES_PER_IMAGE = 200
CHECKPOINTS, MOST_BETWEEN = 4, 500
"""Checkpoints of a run that does not say how many, and the most steps between two of them."""
METHODS = registered()

# A type checker cannot know the fields of methods that register themselves; the classes of their settings do.
_MethodsOwn: Any = compose([entry.settings for entry in METHODS.values()])


def _prompts(text: str) -> tuple[str, ...]:
    return tuple(prompt.strip() for prompt in text.split("|") if prompt.strip())


def _bytes(text: str) -> int:
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?([MGT])(i?)B", text.strip())
    return int(float(found[1]) * (1024 if found[3] else 1000) ** ("KMGT".index(found[2]) + 1)) if found else 0


@dataclass(frozen=True, kw_only=True)
class TrainConfig(_MethodsOwn):
    """Everything that is set for one training run. Every instance is valid; `resolve` fills what None leaves open.

    Beside these fields it has those of all registered methods: it is an instance of each method's settings.
    """

    model: str = setting(group="model and data")
    """Pipeline folder or hub id of the model to fine-tune; `tiny` is the one that comes with the package."""
    instance_data_dir: str
    """Folder with the images of the subject, 1 to 1000."""
    held_out: bool = setting(False, unsaid_if_default=True)
    """Do not train on the last image by name, of three at least, and tell likeness to it beside likeness to those that
    were trained on, which rewards copying. It costs what one image teaches (one of five:
    0.03 of Dino), so it is off unless asked for."""
    instance_prompt: str
    """Prompt of these images, with <v> where the rare token stands: "a photo of a <v> dog"."""
    output_dir: str = setting(free_on_resume=True)
    """Run folder. The same command on the same folder continues the run."""
    recipe: str | None = setting(
        None,
        choices=tuple(RECIPES),
        free_on_resume=True,
        unsaid_if_default=True,
        own_none=True,
        more="; ".join(f"{name}: {each.about}" for name, each in RECIPES.items()) + ".",
    )
    """Begin with these settings; all that you give goes before them. It is read from files and the command line: in
    code, take `RECIPES[name].settings(bayes)`."""
    rare_token: str | None = setting(None, must=(lambda word: len(word.split()) == 1, "one word"))
    """The word that <v> stands for. None: the model's own, else `sks`."""

    method: str = setting(
        "full",
        group="method",
        choices=tuple(METHODS),
        more="; ".join(f"{name}: {entry.trains}" for name, entry in METHODS.items()) + ".",
    )
    """What is trained."""
    train_text_encoder: bool = False
    """Train the text encoders too, by the same method."""
    train_rare_token: bool = setting(False, unsaid_if_default=True)
    """Learn the embedding of the rare token too (textual inversion), beside the method."""

    bayes: bool = setting(False, group="Bayesian weights")
    """Train a Gaussian over the weights instead of the weights alone."""
    weight_std: float | None = setting(None, at_least=0, needs="bayes")
    """Standard deviation that random weights begin with. None: the model's recommendation, else 0.01."""
    weight_std_tolerance: float | None = setting(None, above=0, needs="bayes", own_none=True)
    """Instead of weight_std: find the largest one that raises the loss on the training images by at most this share
    before training, 0.05 for 5 %. What is found stands in manifest.json."""
    weight_std_mode: Literal["absolute", "relative"] = setting("absolute", needs="bayes")
    """`relative`: weight_std is a multiple of the spread of each weight matrix, and has to be given, say 0.3."""
    weight_std_learn: Literal["elementwise", "row", "fixed"] = setting("elementwise", needs="bayes")
    """One learned standard deviation per weight, one per row, or none learned."""
    prior_std: float | None = setting(None, at_least=0, needs="bayes")
    """Standard deviation of the prior, whose mean is the pretrained weight. None: as weight_std."""
    kl_weight: float = setting(0.0, at_least=0, needs="bayes")
    """Weight of the divergence from the prior (lambda of Eq. 3)."""
    kl_reduction: Literal["sum", "mean"] = setting("sum", needs="bayes", unsaid_if_default=True)
    """kl_weight multiplies the divergence summed over all random weights, as in Eq. 3, which holds them at the prior
    already at 0.1; or its mean over them, where one value means the same for every model and choice of weights."""
    kl_direction: Literal["forward", "reverse"] = setting("forward", needs="bayes")
    """forward: KL(posterior || prior), Eq. 3. reverse: KL(prior || posterior), Algorithm 1 and the authors' code."""

    with_prior_preservation: bool = setting(False, group="prior preservation")
    """Train on generated images of the class as well, so that the class is not forgotten."""
    class_data_dir: str | None = setting(None, needs="with_prior_preservation")
    """Folder of class images, yours or generated. None: generated ones are kept in the user's cache by content."""
    class_prompt: str | None = setting(None, needs="with_prior_preservation")
    """Prompt of the class images: "a photo of a dog". None: instance_prompt without <v>."""
    num_class_images: int | None = setting(None, above=0, needs="with_prior_preservation")
    """Number of class images. None: 200 per training image."""
    prior_loss_weight: float = setting(1.0, at_least=0, needs="with_prior_preservation")
    """Weight of the loss on class images."""

    resolution: int | None = setting(
        None,
        group="images",
        must=(
            lambda side: 16 <= side <= 4096 and side % 8 == 0,
            "a multiple of 8 from 16 to 4096, or left out for the model's own",
        ),
    )
    """Side of the square training images in pixels. None: the model's own."""
    center_crop: bool = False
    """Crop in the centre instead of at random."""
    random_flip: bool = False
    """Mirror each image left to right half of the time."""
    mask_weight: float | None = setting(
        None,
        unsaid_if_default=True,
        own_none=True,
        must=(lambda weight: 0 < weight <= 1, "above 0 and at most 1, where 1 is as without masks"),
    )
    """How much the background counts in the loss, where 00-mask.png beside 00.jpg is white on the subject and black
    elsewhere: 0.1 is usual. Each picture's loss is the weighted mean over its latents. None: masks are not used."""
    cache_latents: bool = True
    """Encode images and prompts once, when nothing prevents it (random crops, flips, a trained text encoder do)."""

    max_train_steps: int | None = setting(None, group="optimization", above=0)
    """Number of optimizer steps. None: those of the paper for the method, 200 or 400 per training image."""
    steps_per_image: int | None = setting(None, above=0, unsaid_if_default=True, own_none=True)
    """Instead of max_train_steps: this many for each training image."""
    train_batch_size: int = setting(1, above=0)
    """Images per step and process."""
    gradient_accumulation_steps: int = setting(1, above=0)
    """Batches whose gradients are summed into one step."""
    learning_rate: float | None = setting(None, above=0)
    """Learning rate of AdamW. None: what the model recommends, else 5e-6 for method full and 1e-4 for adapters."""
    text_encoder_lr: float | None = setting(None, above=0, unsaid_if_default=True, own_none=True)
    """Learning rate of the text encoders and of the rare token. None: learning_rate."""
    lr_scheduler: Literal["constant", "constant_with_warmup", "linear", "cosine"] = "constant"
    """Learning rate over the steps."""
    lr_warmup_steps: int = setting(0, at_least=0)
    """Steps over which the rate rises from zero; not with lr_scheduler constant."""
    adam_beta1: float = setting(0.9, at_least=0, below=1)
    """Decay of the running mean of the gradient."""
    adam_beta2: float = setting(0.999, at_least=0, below=1)
    """Decay of the running mean of its square."""
    adam_weight_decay: float = setting(1e-2, at_least=0)
    """Decoupled weight decay."""
    adam_epsilon: float = setting(1e-8, above=0)
    """Added to the denominator of the update."""
    use_8bit_adam: bool = setting(False, unsaid_if_default=True)
    """Keep the optimizer's memory in 8 bits; needs the package bitsandbytes."""
    max_grad_norm: float = setting(1.0, above=0)
    """Gradients are scaled down to this norm; 1e9 is as good as none."""
    use_ema: bool = False
    """Keep an exponential moving average of the weights beside them."""
    ema_decay: float = setting(0.99, at_least=0, below=1, needs="use_ema")
    """Decay of that average after its warm-up: min(ema_decay, (1 + n) / (10 + n)) at step n. Below 440 steps 0.98
    and 0.99 are the same."""
    export_weights: Literal["raw", "ema"] = setting("raw", needs="use_ema", free_on_resume=True)
    """Which weights become the final result."""

    snr_gamma: float | None = setting(
        None, group="loss and regularisation", above=0, unsaid_if_default=True, own_none=True
    )
    """Weight timesteps by min(signal-to-noise ratio, snr_gamma), usually 5. None: all alike."""
    training_times: str | None = setting(None, value="DENSITY", unsaid_if_default=True, own_none=True)
    """Of flow models: `uniform`, `logit_normal` (the middle; `logit_normal:0.5,1` with mean and deviation) or `mode`
    (`mode:1.29` favours the middle, `mode:-0.8` both ends). None: as the training script of the model's family."""
    time_shift: float | None = setting(None, above=0, unsaid_if_default=True, own_none=True)
    """Of flow models: times s become m s / (1 + (m - 1) s), more noise for m above 1. None: as its script."""
    noise_offset: float = setting(0.0, at_least=0, unsaid_if_default=True)
    """Add to the noise of each channel one number of this standard deviation; 0.1 where it is used."""
    dropout: float = setting(0.0, at_least=0, below=1, unsaid_if_default=True)
    """Share of activations that the denoiser's own dropout layers drop during training."""
    caption_dropout: float = setting(0.0, at_least=0, below=1, unsaid_if_default=True)
    """Share of examples that are learned under the empty caption, so that the branch that guidance leads away from
    learns the subject too; 0.1 is usual in pretraining."""
    latents: Literal["draw", "mean"] = setting("draw", unsaid_if_default=True)
    """What is trained on of the autoencoder's posterior: a draw at every step, as most trainers take, or its mean, as
    pretraining may have done; where the autoencoder is open, draws train on noise."""
    l2_init_weight: float = setting(0.0, at_least=0, unsaid_if_default=True)
    """Pull to the initial weights: each step takes learning_rate * l2_init_weight of the distance away, beside AdamW's
    own update. A tool against forgetting that is not Bayesian; with bayes it acts on the means."""

    seed: int = setting(0, group="run", at_least=0, below=2**63)
    """Every random draw of the run is a function of this number."""
    mixed_precision: Literal["no", "fp16", "bf16"] = "no"
    """Precision of the forward pass; trained weights stay fp32."""
    base_precision: Literal["fp32", "bf16", "int8", "nf4"] = setting("fp32", unsaid_if_default=True)
    """Of what an adapter leaves frozen, whose forward pass is then in bf16. bf16 takes half the memory; int8 and nf4
    take a quarter and a seventh in the blocks, by bitsandbytes."""
    gradient_checkpointing: bool = setting(False, free_on_resume=True)
    """Recompute activations instead of keeping them: less memory, more time."""
    compile: bool = setting(False, unsaid_if_default=True)
    """Compile the denoiser (torch.compile): a minute or more at the start, and less time a step where that is long."""
    memory_limit: str | None = setting(
        None,
        free_on_resume=True,
        own_none=True,
        must=(lambda text: bool(_bytes(text)), "a number with its unit, as in 24GB, 11.5GiB or 800MB"),
    )
    """Refuse to begin where training would need more than this, as in 24GB. None: what the device has free."""
    checkpointing_steps: int | None = setting(None, at_least=0, free_on_resume=True, own_none=True)
    """Steps between checkpoints; one more follows the last step, so that a finished run can be made longer, export its
    averages and show its deviations, and one where you stop it by Ctrl-C. None: a quarter of the run, 500 at most.
    0: none, to save disk and time, but where you stop it; a killed run begins again."""
    checkpoints_total_limit: int | None = setting(None, above=0, free_on_resume=True, own_none=True)
    """Number of newest checkpoints to keep. None: all; but two with method full, whose checkpoints are three models
    large, where checkpointing_steps is None too."""

    report_to: Literal["none", "tensorboard", "wandb", "trackio"] = setting("none", free_on_resume=True)
    """Show curves and samples there too, by accelerate. They lie in output_dir anyway: `fewbayes report --live`."""

    validation_steps: int | None = setting(None, group="samples", at_least=0, free_on_resume=True)
    """Steps between samples, step 0 included; 0 is never. None: on a GPU eight times a training; never on a CPU, where
    four pictures take as long as some 34 steps (of `tiny`), and eight looks longer than many a training."""
    validation_prompt: str | None = setting(
        None,
        joined=" | ",
        free_on_resume=True,
        must=(lambda text: bool(_prompts(text)), "one or more prompts separated by |, or left out for instance_prompt"),
    )
    """Prompt of the samples, several separated by |. None: instance_prompt."""
    num_validation_images: int = setting(4, above=0, free_on_resume=True)
    """Samples per prompt."""
    sampler: str | None = setting(None, free_on_resume=True)
    """Sampler of samples and class images, one of the model's family: ddim, pndm, dpm++, ddpm or euler for Stable
    Diffusion. None: the family's usual one, which is ddim there."""
    num_inference_steps: int = setting(25, above=0, free_on_resume=True)
    """Steps of the sampler."""
    guidance_scale: float = setting(7.5, at_least=0, free_on_resume=True)
    """Classifier-free guidance; 1 is none."""
    guidance_interval: str | None = setting(
        None, value="LOW:HIGH", own_none=True, free_on_resume=True, must=(is_interval, LIMIT)
    )
    """Noise-to-signal ratios between which samples are guided: `0.83:` leaves guidance off at the end of the sampler's
    way, below t = 300 of Stable Diffusion, where it makes most of the noise of a damaged model. None: everywhere."""
    negative_prompt: str = setting("", free_on_resume=True)
    """Prompt that guidance leads away from."""
    sample_batch_size: int = setting(4, above=0, free_on_resume=True)
    """Images made at once when sampling."""

    monitor_steps: int = setting(0, group="stage monitor", at_least=0, free_on_resume=True)
    """Steps between looks of the stage monitor, which tells whether the model is underfit, good, unclear,
    corrupted or memorised (stages.jsonl); 0 is never. It sees noise and copies in samples alone, so it needs
    validation_steps: it looks wherever samples are drawn, and keeps the last model whose samples were good in
    best/. That takes as much of the disk as the run's result, a whole pipeline with method full, and twice as
    much while it is replaced. On the embedded model at batch 1 a look by itself took as long as 2.5 steps of
    LoRA or 1.6 of full fine-tuning, and four samples far longer (benchmarks/monitor_cost.py)."""
    stop_when: Literal["never", "corrupted", "memorised"] = setting("never", free_on_resume=True)
    """End training once the monitor has seen this in the samples of two looks in a row. The result is the last model,
    as always; best/ holds the last good one."""

    def __post_init__(self) -> None:
        check_fields(self)
        check_agreement(self, train_settings(), _users)

    @property
    def validation_prompts(self) -> tuple[str, ...]:
        """The prompts of the samples, with <v> as written."""
        return _prompts(self.validation_prompt or self.instance_prompt)

    def with_rare_token(self, prompt: str) -> str:
        """The prompt with the rare token in place of <v>, and of [trigger] as other trainers write it."""
        return re.sub(r"<v>|\[trigger\]", lambda _: self.rare_token or RARE_TOKEN_MARK, prompt)

    def names_subject(self, prompt: str) -> bool:
        """Whether the rare token stands in a prompt as a word of its own."""
        word = re.escape(self.rare_token or RARE_TOKEN_MARK)
        return re.search(rf"(?<!\w){word}(?!\w)", prompt) is not None

    def resolve(self, recommended: Mapping[str, Any], native_resolution: int, n_images: int) -> TrainConfig:
        """Fills every setting that None leaves open: explicit before recommended by the model before the paper's.

        `recommended` is what the model's fewbayes.json says, which may name the settings that default to None; what it
        says under a method's name goes before the rest. Settings whose switch is off stay open, and so does weight_std
        where weight_std_tolerance is to find it.
        """
        n_images = trained_on(self, n_images)
        paper = {
            "rare_token": USUAL_RARE_TOKEN,
            "learning_rate": METHODS[self.method].learning_rate,
            "weight_std": 0.01,
            "resolution": native_resolution,
            "max_train_steps": (self.steps_per_image or METHODS[self.method].steps_per_image) * n_images,
            "class_prompt": without_token(self.instance_prompt),
            "num_class_images": CLASS_IMAGES_PER_IMAGE * n_images,
            "validation_prompt": self.instance_prompt,
        }
        offered = paper | _names().converted(_recommended_for(self.method, recommended))
        idle = {
            name for name, each in train_settings().items() if each.about.needs and not getattr(self, each.about.needs)
        }
        refuse_idle(self)
        if self.weight_std_mode == "relative" or self.weight_std_tolerance is not None:
            idle |= {"weight_std", "prior_std"}  # those on offer are absolute ones
        check_copies_can_be_told(self, n_images)
        filled = dataclasses.replace(
            self,
            steps_per_image=None,
            **{key: v for key, v in offered.items() if getattr(self, key) is None and key not in idle},
        )
        rest: dict[str, Any] = {} if filled.prior_std is not None else {"prior_std": filled.weight_std}
        if filled.checkpointing_steps is None:
            assert filled.max_train_steps is not None
            rest["checkpointing_steps"] = min(MOST_BETWEEN, -(-filled.max_train_steps // CHECKPOINTS))
            if filled.checkpoints_total_limit is None and METHODS[self.method].kind == "full":
                rest["checkpoints_total_limit"] = 2
        return dataclasses.replace(filled, **rest)

    def to_dict(self) -> dict[str, Any]:
        """All settings by name."""
        return {name: getattr(self, name) for name in train_settings()}

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
        settings = train_settings()
        unknown = content.keys() - settings.keys()
        assert not unknown, unknown
        free_length = self.lr_scheduler.startswith("constant")
        kept = {
            name
            for name, each in settings.items()
            if not each.about.free_on_resume
            and not (each.about.unsaid_if_default and getattr(self, name) == each.default)
            and self.method in _users(name)
            and not (name == "max_train_steps" and free_length)
        }
        return {name: content.get(name, getattr(self, name)) for name in settings if name in kept}


@cache
def train_settings() -> dict[str, Setting]:
    """All settings of a training in the order of the help: those of methods at the end of their group."""
    cls: type = TrainConfig
    found = settings_of(cls)
    ours = TrainConfig.__annotations__
    groups: dict[str, list[str]] = {}
    group = ""
    for name in ours:
        group = found[name].about.group or group
        groups.setdefault(group, []).append(name)
    for entry in METHODS.values():
        for name in entry.own_settings:
            if name in ours:
                raise TypeError(f"{entry.settings.__name__}.{name} is a setting of every training; take another name")
            members = groups.setdefault(found[name].about.group or "method", [])
            members += [name] * (name not in members)
    return {name: found[name] for members in groups.values() for name in members}


def _users(name: str) -> tuple[str, ...]:
    """The methods that use a setting."""
    return tuple(m for m, entry in METHODS.items() if name in entry.own_settings or name in TrainConfig.__annotations__)


@cache
def _names() -> Names:
    return Names(train_settings(), ALIASES, INSTEAD)


def _recommended_for(method: str, recommended: Mapping[str, Any]) -> dict[str, Any]:
    """The model's advice for a method: its own entry over the common ones."""
    source = "the model's fewbayes.json"
    common = {key: value for key, value in recommended.items() if key not in METHODS}
    entries = {key: value for key, value in recommended.items() if key in METHODS}
    for advice in (common, *entries.values()):
        if not isinstance(advice, Mapping):
            raise UserError(f"{source}: under the name of a method stand settings by name, not {advice!r}")
        _names().known(advice, source)
        fixed = sorted(k for k in advice if (each := train_settings()[k]).default is not None or each.about.own_none)
        if fixed:
            raise UserError(f"{source} recommends {', '.join(fixed)}, which a model cannot recommend")
    return common | dict(entries.get(method, {}))


def memory_bytes(text: str) -> int:
    """The bytes of a memory_limit such as 24GB (10^9) or 24GiB (2^30)."""
    train_settings()["memory_limit"].check(text)
    return _bytes(text)


def resolved(config: TrainConfig, card: ModelCard, n_images: int) -> TrainConfig:
    """The settings that a training of this model on so many images has: nothing that it needs is open."""
    token = {"rare_token": card.rare_token} if card.rare_token else {}
    recommended = {"sampler": card.usual_sampler} | card.recommended | token
    return config.resolve(recommended, card.resolution, n_images)


def recommended_rate(method: str, card: ModelCard) -> float:
    """The learning rate that a run of this method has by itself on this model."""
    offered = _names().converted(_recommended_for(method, card.recommended))
    return offered.get("learning_rate") or METHODS[method].learning_rate


# --- reading ----------------------------------------------------------------------------------------------------------


def load_config(yaml_path: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    """The settings of a YAML file (or of none) with `overrides` over them; paths count from the working folder."""
    return _config(yaml_path, _names().named(overrides.items(), LINE))


def parse_train_args(argv: Sequence[str]) -> TrainConfig:
    """The settings of `fewbayes train [config.yaml] --key value ...`; `--help` prints them all and exits."""
    if asks_for_help(argv):
        print(train_help())
        raise SystemExit(0)
    tokens = list(argv)
    yaml_path = tokens.pop(0) if tokens and not tokens[0].startswith("-") else None
    config = _config(yaml_path, _names().named(take_flags(_names(), tokens), LINE))
    refuse_idle(config)
    return config


def _config(yaml_path: str | Path | None, overrides: Mapping[str, Any]) -> TrainConfig:
    settings = (read_yaml(_names(), Path(yaml_path)) if yaml_path is not None else {}) | dict(overrides)
    missing = [name for name, each in train_settings().items() if each.needed and settings.get(name) is None]
    if missing:
        raise UserError(f"missing: {', '.join(missing)}; give --{missing[0]} <value>, or a line in the YAML file")
    if recipe := RECIPES.get(str(settings.get("recipe"))):
        settings = recipe.settings(settings.get("bayes") is True) | settings
    return TrainConfig(**_names().converted(settings))


def train_help() -> str:
    """The text of `fewbayes train --help`: every setting under its heading, with type, default and meaning."""
    opening = (
        "usage: fewbayes train [config.yaml] [--key value ...]\n\n"
        "Fine-tunes a model on a folder of images. Settings come from the YAML file, those given here go before it. "
        "The same command on the same --output_dir continues a run. Flags of the diffusers DreamBooth scripts work. "
        "With --show_config it prints every setting as it would train, and trains nothing; with --dry_run also what "
        "memory, disk and time that would take on this machine."
    )
    return help_text(train_settings().values(), opening)
