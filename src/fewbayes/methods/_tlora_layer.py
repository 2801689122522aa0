"""The layer of T-LoRA (`tlora.py`), and the clock that tells it the timesteps. Apart because it is made of torch."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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
