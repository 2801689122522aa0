"""A second process, for tests alone: the straight path a = 1 - s, b = s at times s in (0, 1), answered by eps - x0."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fewbayes.diffusion.process import Process
from fewbayes.errors import UserError

CLEANEST, NOISIEST = 1e-3, 1 - 1e-3


class Flow(Process):
    def a(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return 1 - t.to(dtype)

    def b(self, t: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        return t.to(dtype)

    def answer(self, t: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
        one = torch.ones_like(t, dtype=dtype)
        return -one, one

    def draw_times(self, count: int, generator: torch.Generator) -> Tensor:
        return torch.rand(count, generator=generator).clamp(CLEANEST, NOISIEST)

    def times(self, values: Sequence[float]) -> Tensor:
        for s in values:
            if not 0 < s < 1:
                raise UserError(f"time {s:g} does not lie between 0 and 1")
        return torch.tensor(values, dtype=torch.float64)

    def time_of(self, noise_to_signal: float) -> float:
        share = 1 / (1 + 1 / noise_to_signal)
        return min(max(share, CLEANEST), NOISIEST)
