"""What a denoiser is told beside the picture: tensors by name, one row a prompt.

A family's encoder chooses the names ("tokens", "pooled", "mask", ...) and its denoiser reads them; everything between
passes them on whole. Knows no text encoder and no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor


class Conditioning(Mapping[str, Tensor]):
    """Encoded prompts: a mapping of names to tensors (prompts, ...), all with the same number of rows."""

    def __init__(self, **tensors: Tensor):
        if len({len(tensor) for tensor in tensors.values()}) != 1:
            raise ValueError(f"rows of { ({name: tuple(t.shape) for name, t in tensors.items()}) } do not agree")
        self._tensors = tensors

    def __getitem__(self, name: str) -> Tensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        """The number of names; that of prompts is `count`."""
        return len(self._tensors)

    @property
    def count(self) -> int:
        return len(next(iter(self._tensors.values())))

    def rows(self, rows: Sequence[int] | slice | Tensor) -> Conditioning:
        """These rows, in this order; a row may be asked for more than once. A single number is not a set of rows."""
        if isinstance(rows, int):
            raise TypeError(f"rows are a list, a slice or a tensor, not the number {rows}: ask for [{rows}]")
        return self._each(lambda tensor: tensor[rows])

    def joined(self, other: Conditioning) -> Conditioning:
        """The rows of this one, then those of the other, which must be of the same family."""
        assert self.keys() == other.keys(), f"conditionings of two families: {[*self]} and {[*other]}"
        return Conditioning(**{name: torch.cat([tensor, other[name]]) for name, tensor in self.items()})

    def to(self, device: torch.device | str) -> Conditioning:
        return self._each(lambda tensor: tensor.to(device))

    def float32(self) -> Conditioning:
        """Numbers in float32; a mask stays what it is."""
        return self._each(lambda tensor: tensor.float() if tensor.is_floating_point() else tensor)

    def detach(self) -> Conditioning:
        return self._each(Tensor.detach)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Conditioning:
        return Conditioning(**{name: change(tensor) for name, tensor in self.items()})
