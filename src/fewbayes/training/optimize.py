"""The optimizer of a training, its rates over time, and the pull back to the start.

Knows parameters by name and nothing of what they belong to.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fewbayes.errors import UserError
from fewbayes.settings.config import TrainConfig


def make_optimizer(config: TrainConfig, named: Mapping[str, nn.Parameter]) -> torch.optim.Optimizer:
    """AdamW over one group of parameters, or two where the text encoders have a rate of their own."""
    assert config.learning_rate is not None
    rates = dict.fromkeys(named, config.learning_rate)
    if config.text_encoder_lr is not None:
        rates |= {name: config.text_encoder_lr for name in named if name.startswith(("text_encoder", "rare_token"))}
    groups: list[dict[str, Any]] = [
        {"params": [named[name] for name in named if rates[name] == rate], "lr": rate, "full_rate": rate}
        for rate in dict.fromkeys(rates.values())
    ]
    settings = {
        "betas": (config.adam_beta1, config.adam_beta2),
        "eps": config.adam_epsilon,
        "weight_decay": config.adam_weight_decay,
    }
    if config.use_8bit_adam:
        import bitsandbytes  # pyright: ignore[reportMissingImports]

        return bitsandbytes.optim.AdamW8bit(groups, **settings)
    return torch.optim.AdamW(groups, **settings, fused=True)


def rate_factor(scheduler: str, step: int, warmup: int, total: int) -> float:
    """The learning rate of update `step` (from 0) as a share of the full one, the curves of diffusers' schedulers."""
    if scheduler == "constant":
        return 1.0
    if step < warmup:
        return step / max(1, warmup)
    if scheduler == "constant_with_warmup":
        return 1.0
    passed = (step - warmup) / max(1, total - warmup)
    if scheduler == "linear":
        return max(0.0, 1 - passed)
    if scheduler == "cosine":
        return max(0.0, 0.5 * (1 + math.cos(math.pi * passed)))
    raise UserError(f"lr_scheduler {scheduler!r} is not known")


def rate_now(config: TrainConfig, step: int) -> float:
    """The share of the full rates that update `step` takes."""
    assert config.max_train_steps is not None
    return rate_factor(config.lr_scheduler, step, config.lr_warmup_steps, config.max_train_steps)


def new_rate(config: TrainConfig, step: int) -> float | None:
    """The rate where it differs from that of the step before, which is all that needs a row."""
    assert config.learning_rate is not None
    factor = rate_now(config, step)
    return config.learning_rate * factor if step == 0 or factor != rate_now(config, step - 1) else None


def set_rates(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Each group's own full rate, times the factor."""
    for group in optimizer.param_groups:
        group["lr"] = group["full_rate"] * factor


def clip_gradients(parameters: Collection[nn.Parameter], largest: float) -> Tensor:
    """Scale all gradients alike so that their norm is `largest` at most; the norm that they had.

    As torch's own, bit for bit. On a CPU, where the norm is known without waiting, gradients that are short enough are
    left alone; torch multiplies them by 1.
    """
    norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm.device.type != "cpu" or not largest / (norm + 1e-6) >= 1:
        nn.utils.clip_grads_with_norm_(parameters, largest, norm)
    return norm


class Pull:
    """The way back to the weights of the start: theta <- theta - rate * weight * (theta - theta_0) at each step.

    Apart from the gradient, as AdamW has its decay: Adam's division by past gradients would change its strength from
    weight to weight.
    """

    def __init__(self, weights: Mapping[str, nn.Parameter]):
        self._start = {weight: weight.detach().clone() for weight in weights.values()}

    @torch.no_grad()
    def towards_start(self, optimizer: torch.optim.Optimizer, weight: float) -> None:
        """One step of the pull, at the rates of now."""
        for group in optimizer.param_groups:
            pulled = [parameter for parameter in group["params"] if parameter in self._start]
            start = [self._start[parameter] for parameter in pulled]
            if pulled:
                torch._foreach_lerp_(pulled, start, group["lr"] * weight)  # pyright: ignore[reportPrivateImportUsage]
