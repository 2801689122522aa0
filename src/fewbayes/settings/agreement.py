"""What the settings of a training must agree on: each function refuses what does not go together, in the user's words.

It knows the settings by name and what methods say of themselves; `TrainConfig` asks it when one is made.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from fewbayes.errors import UserError
from fewbayes.fields import Setting
from fewbayes.methods import registered

if TYPE_CHECKING:
    from fewbayes.settings.config import TrainConfig

RARE_TOKEN_MARK = "<v>"
USUAL_RARE_TOKEN = "sks"
Users = Callable[[str], tuple[str, ...]]


def check_agreement(config: TrainConfig, settings: Mapping[str, Setting], users: Users) -> None:
    """UserError for the first thing that does not go together. users: the methods that use a setting, by its name."""
    _check_rare_token(config)
    _check_switches(config, settings)
    _check_method(config, settings, users)
    _check_base(config)
    _check_weight_std(config)
    _check_monitor(config)
    _check_together(config)


def _check_rare_token(config: TrainConfig) -> None:
    prompt, word = config.instance_prompt, config.rare_token or USUAL_RARE_TOKEN
    if RARE_TOKEN_MARK not in prompt and word not in re.split(r"[\s,.;:!?\"']+", prompt):
        raise UserError(
            f"instance_prompt is {prompt!r}, without a rare token: write {RARE_TOKEN_MARK} where it stands, as in "
            f'"a photo of a {RARE_TOKEN_MARK} dog", or name a word of the prompt by rare_token'
        )


def _check_switches(config: TrainConfig, settings: Mapping[str, Setting]) -> None:
    idle: dict[str, list[str]] = {}
    for name, each in settings.items():
        switch = each.about.needs
        if switch and not getattr(config, switch) and getattr(config, name) != each.default:
            idle.setdefault(switch, []).append(f"{name} is {getattr(config, name)}")
    for switch, given in idle.items():
        them = "it" if len(given) == 1 else "them"
        raise UserError(f"{', '.join(given)}, but {switch} is off, without which nothing uses {them}; add {switch}")


def _check_base(config: TrainConfig) -> None:
    if config.base_precision == "fp32":
        return
    if registered()[config.method].kind == "full":
        raise UserError(
            f"base_precision is {config.base_precision}, in which the updates of method {config.method}, which trains "
            "the base, would vanish: leave it out, or take method lora or oft"
        )
    if config.mixed_precision == "fp16":
        raise UserError(
            f"base_precision is {config.base_precision} and mixed_precision fp16, which do not mix: give "
            "mixed_precision bf16, or leave it out"
        )


def _check_method(config: TrainConfig, settings: Mapping[str, Setting], users: Users) -> None:
    entry = registered()[config.method]
    for name, each in settings.items():
        if config.method not in users(name) and getattr(config, name) != each.default:
            raise UserError(
                f"{name} is {getattr(config, name)}, which method {config.method} never uses; "
                f"leave it out, or take method {' or '.join(users(name))}"
            )
    entry.settings.check(config)
    if config.text_encoder_lr is not None and not (config.train_text_encoder or config.train_rare_token):
        raise UserError(
            f"text_encoder_lr is {config.text_encoder_lr:g}, but nothing of the text encoders is trained; "
            "add train_text_encoder or train_rare_token"
        )


def _check_together(config: TrainConfig) -> None:
    rate = max(config.learning_rate or 0.0, config.text_encoder_lr or 0.0)
    if rate * config.l2_init_weight > 1:
        raise UserError(
            f"l2_init_weight is {config.l2_init_weight:g}, at a learning rate of {rate:g} more than the whole way back "
            f"in one step; it must be at most {1 / rate:g}"
        )
    if config.max_train_steps is not None and config.steps_per_image is not None:
        raise UserError(
            f"max_train_steps is {config.max_train_steps} and steps_per_image is {config.steps_per_image}; "
            "give one of them"
        )
    class_prompt = without_token(config.instance_prompt) if config.class_prompt is None else config.class_prompt
    if config.with_prior_preservation and not (class_prompt or "").strip():
        raise UserError('with_prior_preservation needs class_prompt, as in "a photo of a dog"')
    if config.lr_scheduler == "constant" and config.lr_warmup_steps > 0:
        raise UserError(
            f"lr_warmup_steps is {config.lr_warmup_steps}, which lr_scheduler constant never uses; "
            "take lr_scheduler constant_with_warmup, or lr_warmup_steps 0"
        )
    if config.bayes and config.kl_weight > 0:
        for name in ("weight_std", "prior_std"):
            if getattr(config, name) == 0:
                raise UserError(f"{name} is 0, where the divergence is infinite; take kl_weight 0 or {name} above 0")


def worded(prompt: str, rare_token: str | None) -> str:
    """With the rare token in place of <v>."""
    return prompt.replace(RARE_TOKEN_MARK, rare_token or RARE_TOKEN_MARK)


def without_token(prompt: str) -> str | None:
    """ "a photo of a dog" for "a photo of a <v> dog"; None where no word of the class follows the rare token."""
    return prompt.replace(f"{RARE_TOKEN_MARK} ", "") if re.search(rf"{RARE_TOKEN_MARK} \w", prompt) else None


def refuse_idle(config: TrainConfig) -> None:
    """What is asked for and would do nothing; asked of a training to come, not of the config of one that was."""
    if config.validation_prompt not in (None, config.instance_prompt) and not config.validation_steps:
        raise UserError(
            f"validation_prompt is {config.validation_prompt!r}, but validation_steps is 0 and nothing is drawn; add "
            "validation_steps, 50 is a sensible one"
        )
    token = {RARE_TOKEN_MARK, config.rare_token} & set((config.class_prompt or "").split())
    if token:
        plain = " ".join(word for word in (config.class_prompt or "").split() if word not in token)
        raise UserError(
            f"class_prompt is {config.class_prompt!r}, with the rare token, which names your subject and not its "
            f'class; write "{plain}"'
        )


def _check_weight_std(config: TrainConfig) -> None:
    if config.weight_std_tolerance is not None and config.weight_std is not None:
        raise UserError(
            f"weight_std_tolerance is {config.weight_std_tolerance:g}, which finds weight_std, and weight_std is "
            f"{config.weight_std:g} already; give one of them"
        )
    if config.bayes and config.weight_std_mode == "relative" and not registered()[config.method].has_spread:
        raise UserError(
            "weight_std_mode is relative, in multiples of each weight's spread, but the random weights of method "
            f"{config.method} begin at zero and have none; take weight_std_mode absolute, or method full"
        )
    open_ = config.weight_std is None and config.weight_std_tolerance is None
    if config.weight_std_mode == "relative" and open_:
        raise UserError(
            "weight_std_mode relative needs weight_std, a multiple of each weight's spread: 0.3 is a sensible one; "
            "or have it found by weight_std_tolerance 0.05"
        )


def _check_monitor(config: TrainConfig) -> None:
    if config.stop_when == "never":
        return
    if not config.monitor_steps:
        raise UserError(
            f"stop_when is {config.stop_when}, but monitor_steps is 0 and nobody looks; add monitor_steps, 100 is a "
            "sensible one"
        )
    if not config.validation_steps:
        raise UserError(
            f"stop_when is {config.stop_when}, but validation_steps is 0 and the monitor says that of samples alone; "
            f"add validation_steps, {config.monitor_steps} shows it samples at every look"
        )


def trained_on(config: TrainConfig, n_images: int) -> int:
    """How many of the images are trained on."""
    if config.held_out and n_images < 3:
        raise UserError(
            f"held_out keeps one image apart, which takes three or more, and there are {n_images}; leave held_out out, "
            "or add images"
        )
    return n_images - config.held_out


def check_copies_can_be_told(config: TrainConfig, n_images: int) -> None:
    """Good pictures of one training image are all like it; that they are copies shows in how alike they are."""
    if config.stop_when == "memorised" and n_images == 1 and config.num_validation_images < 2:
        raise UserError(
            f"stop_when is memorised, but with 1 training image and num_validation_images "
            f"{config.num_validation_images} the monitor cannot tell a copy from a good picture: it compares samples "
            "of one prompt; give num_validation_images 2 or more, 4 is a sensible one, or more training images"
        )
