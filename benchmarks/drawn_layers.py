"""Bayesian weights as others have them, put into a training script of diffusers: for `peers.py`.

textbook    Blundell et al. 2015 as libraries of Bayesian layers do it: mu + softplus(rho) * eps at each forward, the
            closed-form KL in the loss
authors     the paper's own code as it is described: mu + sigma * eps, sigma clamped by writing it anew at each forward,
            with full fine-tuning a frozen copy of the U-Net and the KL in the graph whatever its weight
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

WEIGHT_STD = 0.01


@dataclass(frozen=True)
class Arm:
    """program: "fewbayes" or "diffusers"; variant: of its Bayesian weights, "" for none."""

    program: str
    method: str
    variant: str = ""

    @property
    def name(self) -> str:
        return f"{self.program}, {self.variant}" if self.variant else f"{self.program}, plain"


class Drawn(nn.Linear):
    """A linear layer whose weights are drawn at every forward; `convert` makes one of a plain layer."""

    variant: str

    def forward(self, input: Tensor) -> Tensor:
        draw = self._textbook if self.variant == "textbook" else self._authors
        bias = None if self.bias is None else draw(self.bias, self.spread_bias)
        return F.linear(input, draw(self.weight, self.spread_weight), bias)

    @staticmethod
    def _textbook(mu: Tensor, rho: Tensor) -> Tensor:
        return mu + F.softplus(rho) * torch.randn_like(mu)

    @staticmethod
    def _authors(mu: Tensor, sigma: Tensor) -> Tensor:
        sigma.data = torch.maximum(sigma.data, torch.ones_like(sigma) * 1e-7)
        return mu + sigma * torch.randn_like(mu)

    def kl(self) -> Tensor:
        pairs = [("weight", self.weight, self.spread_weight)]
        pairs += [] if self.bias is None else [("bias", self.bias, self.spread_bias)]
        return torch.stack([self._divergence(*pair) for pair in pairs]).sum()

    def _divergence(self, name: str, mu: Tensor, spread: Tensor) -> Tensor:
        prior = getattr(self, f"prior_{name}")
        if self.variant == "textbook":
            std = F.softplus(spread)
            return (torch.log(WEIGHT_STD / std) + (std**2 + (mu - prior) ** 2) / (2 * WEIGHT_STD**2) - 0.5).sum()
        found = torch.log(spread / WEIGHT_STD) - 0.5 + (WEIGHT_STD**2 + (prior - mu) ** 2) / (2 * spread**2)
        if torch.isnan(found).any():
            raise ArithmeticError("the KL is not a number")
        low = found < -1e-7
        if low.any():
            found[low] *= 0.0
        return found.sum()


def convert(layer: nn.Linear, variant: str, prior: bool) -> None:
    layer.__class__ = Drawn
    layer.variant = variant  # pyright: ignore[reportAttributeAccessIssue]
    start = float(torch.tensor(WEIGHT_STD).expm1().log()) if variant == "textbook" else WEIGHT_STD
    for name, mu in [*layer.named_parameters(recurse=False)]:
        layer.register_parameter(f"spread_{name}", nn.Parameter(torch.full_like(mu, start)))
        if prior:
            layer.register_buffer(f"prior_{name}", mu.detach().clone(), persistent=False)


def random_layers(denoiser: nn.Module, method: str) -> list[nn.Linear]:
    """Those whose weights are random in our arms."""
    from fewbayes.models.sd3 import StableDiffusion3
    from fewbayes.models.unet_clip import StableDiffusion
    from fewbayes.posterior.where import Rule, select

    if method == "lora":
        return [m for name, m in denoiser.named_modules() if ".lora_B." in name and isinstance(m, nn.Linear)]
    groups = (StableDiffusion if type(denoiser).__name__.startswith("UNet") else StableDiffusion3).layer_groups
    paths = {chosen.name.rpartition(".")[0] for chosen in select(denoiser, Rule("linear", groups))}
    return [m for name, m in denoiser.named_modules() if name in paths and isinstance(m, nn.Linear)]


def put_in(arm: Arm) -> dict[str, Any]:
    """Patches diffusers and accelerate so that the script trains an arm's Bayesian weights; what it trains is in
    "denoiser" as soon as it is loaded."""
    import diffusers
    from accelerate import Accelerator

    found: dict[str, Any] = {}
    kl_weight = 1e-8 if arm.variant == "textbook" else 0.0
    keeps_kl = arm.variant == "textbook" or (arm.variant == "authors" and arm.method == "full")

    def converted(denoiser: nn.Module) -> None:
        found["denoiser"] = denoiser
        if arm.variant == "authors" and arm.method == "full":
            found["frozen copy"] = copy.deepcopy(denoiser).requires_grad_(False)
        found["layers"] = random_layers(denoiser, arm.method) if arm.variant else []
        for layer in found["layers"]:
            convert(layer, arm.variant, keeps_kl)

    for kind in (diffusers.UNet2DConditionModel, diffusers.SD3Transformer2DModel):
        if arm.method == "full":
            kind.from_pretrained = _then(kind.from_pretrained, converted)
        else:
            kind.add_adapter = _then(kind.add_adapter, converted, of_self=True)
    backward = Accelerator.backward

    def with_kl(self: Accelerator, loss: Tensor, **more: Any) -> None:
        if keeps_kl:
            loss = loss + kl_weight * torch.stack([layer.kl() for layer in found["layers"]]).sum()
        backward(self, loss, **more)

    Accelerator.backward = with_kl
    return found


def _then(function: Callable[..., Any], last: Callable[[Any], None], of_self: bool = False) -> Callable[..., Any]:
    def wrapped(*arguments: Any, **more: Any) -> Any:
        answer = function(*arguments, **more)
        last(arguments[0] if of_self else answer)
        return answer

    return wrapped
