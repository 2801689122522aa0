"""What a denoiser is told beside the picture: the prompts, one row each, in whatever parts a family needs.

Everything between a family's encoder and its denoiser passes it on whole. Knows no text encoder and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Encoded prompts. tokens: (batch, tokens, width); pooled: (batch, width), where the family has it (SDXL)."""

    tokens: Tensor
    pooled: Tensor | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: Sequence[int] | slice | Tensor) -> Conditioning:
        """These rows, in this order; a row may be asked for more than once. A single number is not a set of rows."""
        if isinstance(rows, int):
            raise TypeError(f"rows are a list, a slice or a tensor, not the number {rows}: ask for [[{rows}]]")
        return self._each(lambda part: part[rows])

    def joined(self, other: Conditioning) -> Conditioning:
        """The rows of this one, then those of the other, which must be of the same family."""
        assert (self.pooled is None) == (other.pooled is None), "conditionings of two families"
        pooled = None if self.pooled is None or other.pooled is None else torch.cat([self.pooled, other.pooled])
        return Conditioning(torch.cat([self.tokens, other.tokens]), pooled)

    def to(self, device: torch.device | str) -> Conditioning:
        return self._each(lambda part: part.to(device))

    def detach(self) -> Conditioning:
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(change(self.tokens), None if self.pooled is None else change(self.pooled))
