"""T-LoRA, a comparison arm: LoRA with fewer ranks the noisier the picture (arXiv 2507.05964).

    W + alpha / rank (B diag(s) M_t A - B_0 diag(s_0) M_t A_0),  M_t = the first r(t) ranks

A_0, s_0, B_0 are the last singular vectors and values of a random matrix, so that the rows of A_0 and the columns of
B_0 are orthonormal and a rank that is masked takes nothing from the others. Written here and not taken from LyCORIS,
whose mask is a global that every program that samples has to set. A hook tells the layers each example's timestep,
in training and sampling alike. Knows nothing of diffusers.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fewbayes.diffusion.process import Ddpm
from fewbayes.errors import UserError
from fewbayes.methods.adapters import DENOISER_FOLDER, copy_state, replace_layer, target_layers, targeted
from fewbayes.seeds import generator

if TYPE_CHECKING:
    from fewbayes.models import Family
    from fewbayes.settings.config import TrainConfig

FORMAT = "fewbayes.tlora.1"


# r(t) = floor((r - r_min)(T - t) / T) + r_min of that paper, here with r_min half of r
def active_ranks(t: Tensor, rank: int, steps: int) -> Tensor:
    """How many of `rank` ranks are used at the timesteps t (0 is clean, steps - 1 is noise), of the shape of t."""
    least = -(-rank // 2)
    return (rank - least) * (steps - t.long()) // steps + least


class Clock:
    """The timesteps of the forward pass that is going on, shared by all layers of a denoiser."""

    def __init__(self, steps: int) -> None:
        self.steps = steps
        self.t: Tensor | None = None

    def listen(self, denoiser: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """A forward pre-hook: denoisers take the timestep second, or by name."""
        t = kwargs["timestep"] if "timestep" in kwargs else args[1]
        self.t = torch.as_tensor(t).reshape(-1)


class TimestepLora(nn.Module):
    """A linear layer with an update whose rank depends on the timestep; at first the layer itself, bit for bit."""

    def __init__(self, base: nn.Linear, rank: int, scale: float, clock: Clock, random: torch.Generator) -> None:
        super().__init__()
        self.base_layer, self.rank, self.scale, self.clock = base, rank, scale, clock
        matrix = torch.randn(base.out_features, base.in_features, generator=random) / rank
        left, values, right = torch.linalg.svd(matrix, full_matrices=False)
        start = {"A": right[-rank:], "s": values[-rank:], "B": left[:, -rank:]}
        for name, value in start.items():
            value = value.contiguous().to(base.weight.device)
            self.register_parameter(f"lora_{name}", nn.Parameter(value.clone()))
            self.register_buffer(f"start_{name}", value)

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        t = self.clock.t
        assert t is not None, "a layer of the denoiser was called outside of it"
        active = active_ranks(t.to(x.device), self.rank, self.clock.steps)
        mask = torch.arange(self.rank, device=x.device) < active.view(-1, *[1] * (x.dim() - 1))
        learned, start = self._update(x, mask, "lora"), self._update(x, mask, "start")
        return self.base_layer(x, *args, **kwargs) + self.scale * (learned - start)

    def _update(self, x: Tensor, mask: Tensor, kind: str) -> Tensor:
        down, values, up = (getattr(self, f"{kind}_{name}") for name in "AsB")
        return F.linear(F.linear(x, down) * (values * mask), up)


class TLora:
    result = "tlora_weights.safetensors"

    def __init__(self, config: TrainConfig) -> None:
        if config.train_text_encoder:
            raise UserError(
                "method tlora depends on the timestep, which text encoders never see; leave out train_text_encoder, or "
                "take method lora"
            )
        self.config = config
        self._listening: Any = None

    def attach(self, family: Family) -> None:
        config, denoiser = self.config, family.denoiser
        layers = targeted(denoiser, target_layers("denoiser", denoiser, config.adapter_targets))
        for name, layer in layers.items():
            if config.rank > min(layer.in_features, layer.out_features):
                raise UserError(
                    f"rank is {config.rank}, more than the {min(layer.in_features, layer.out_features)} that {name} "
                    "has; give a smaller one"
                )
        if not isinstance(family.process, Ddpm):
            raise UserError(f"method tlora counts the steps of a schedule, which {family.card.model} has not")
        clock = Clock(family.process.steps)
        scale = 1.0 if config.lora_alpha is None else config.lora_alpha / config.rank
        for name, layer in layers.items():
            random = generator(config.seed, f"adapter denoiser.{name}")
            replace_layer(denoiser, name, TimestepLora(layer, config.rank, scale, clock, random))
        self._listening = denoiser.register_forward_pre_hook(clock.listen, with_kwargs=True)

    def trainable(self, family: Family) -> dict[str, nn.Parameter]:
        return {
            f"denoiser.{name}.{key}": parameter
            for name, layer in _layers(family).items()
            for key, parameter in layer.named_parameters(recurse=False)
        }

    def random(self, family: Family, where: str) -> tuple[nn.Module, str]:
        raise AssertionError("a comparison arm has no random weights")

    def penalty(self, family: Family) -> Tensor | None:
        return None

    def begin_step(self, family: Family, step: int, row: int = 0) -> None:
        pass

    def training(self, family: Family, on: bool) -> None:
        pass

    def export(self, family: Family, folder: Path) -> None:
        """A format of its own: a loader that knows no timestep would apply all ranks to all of them."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        layer = next(iter(_layers(family).values()))
        header = {"format": FORMAT, "rank": str(layer.rank), "scale": repr(layer.scale)}
        state = {name: tensor.detach().cpu().clone() for name, tensor in _file_state(family).items()}
        save_file(state, folder / self.result, metadata=header)

    def load(self, family: Family, folder: Path) -> None:
        from safetensors.torch import load_file

        copy_state(_file_state(family), load_file(folder / self.result), folder / self.result)

    def detach(self, family: Family) -> None:
        for name, layer in _layers(family).items():
            replace_layer(family.denoiser, name, layer.base_layer)
        if self._listening is not None:
            self._listening.remove()
        self._listening = None
        family.denoiser.requires_grad_(False)


def _layers(family: Family) -> dict[str, TimestepLora]:
    return {name: layer for name, layer in family.denoiser.named_modules() if isinstance(layer, TimestepLora)}


def _file_state(family: Family) -> dict[str, Tensor]:
    return {
        f"{DENOISER_FOLDER}.{name}.{kind}_{key}": getattr(layer, f"{kind}_{key}")
        for name, layer in _layers(family).items()
        for kind in ("lora", "start")
        for key in "AsB"
    }
