"""Classifier-free guidance: the answer led away from the unconditional one, everywhere or between two noise levels.

Levels are noise-to-signal ratios b / a, as in Kynkaanniemi et al. (arXiv 2404.07724), who found that guidance pays in
the middle of a sampler's way and does harm at its ends. Without torch; knows nothing of networks and samplers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewbayes.errors import UserError

LIMIT = (
    "two noise-to-signal ratios LOW:HIGH, either of which may be left out: 0.83: is none below t = 300 of Stable "
    "Diffusion"
)
"""What an interval looks like, in words."""


def guided(conditional: Any, unconditional: Any, guidance: Any) -> Any:
    """The answer that a guided sampler goes by; at guidance 1 it is the conditional one. Numbers or tensors."""
    return unconditional + guidance * (conditional - unconditional)


@dataclass(frozen=True)
class Interval:
    """Noise-to-signal ratios from `low` to `high`, both included."""

    low: float = 0.0
    high: float = math.inf

    @classmethod
    def read(cls, text: str | None, name: str = "guidance_interval") -> Interval:
        """From "0.83:4", "0.83:" or ":4"; None is everywhere. UserError for what says no interval; name: of the
        setting that says it."""
        low, colon, high = (text or ":").partition(":")
        try:
            found = cls(float(low or 0), float(high or math.inf))
        except ValueError:
            found = cls(1, 0)
        if not colon or not 0 <= found.low <= found.high:
            raise UserError(f"{name} is {text!r}; it must be {LIMIT}")
        return found

    def __contains__(self, level: float) -> bool:
        return self.low <= level <= self.high

    def scales(self, levels: Sequence[float], guidance: float) -> list[float]:
        """The guidance at each of these levels: 1 outside of the interval."""
        return [guidance if level in self else 1.0 for level in levels]


EVERYWHERE = Interval()


def is_interval(text: str) -> bool:
    """Whether `Interval.read` takes it."""
    try:
        Interval.read(text)
    except UserError:
        return False
    return True
