"""Two models of one class that share a sampler's way: one answers between two noise levels, the other beyond them."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fewbayes.diffusion.guidance import Interval
from fewbayes.models.family import Family


@contextmanager
def answering(within: Interval, family: Family, other: Family) -> Iterator[None]:
    """Until the end the denoiser of `family` answers at noise-to-signal ratios of the interval alone, and that of
    `other` at all others; prompts are read by `family`. A sampler has its whole batch at one level.
    """
    import torch

    mine, theirs = family.denoiser.forward, other.denoiser.forward
    called = inspect.signature(mine)

    def forward(*given: Any, **named: Any) -> Any:
        at = torch.as_tensor(called.bind(*given, **named).arguments["timestep"]).flatten()[:1].cpu()
        return (mine if family.levels(at).item() in within else theirs)(*given, **named)

    family.denoiser.forward = forward
    try:
        yield
    finally:
        family.denoiser.forward = mine
