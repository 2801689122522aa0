"""Named streams from one seed: every draw of this package is a function of (seed, stream, index).

No state of a generator is ever kept, so resuming, sampling in between and another number of processes see the same
numbers. Knows nothing of what is drawn.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


def digest(*parts: object, size: int) -> bytes:
    """A hash of `size` bytes in which no two parts run together."""
    return blake2b("\x1f".join(map(str, parts)).encode(), digest_size=size, person=b"fewbayes").digest()


def stream_seed(seed: int, stream: str, *index: int) -> int:
    """A 63-bit seed for the draw number `index` of the named stream."""
    return int.from_bytes(digest(seed, stream, *index, size=8), "little") >> 1


def generator(seed: int, stream: str, *index: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A fresh generator for the draw number `index` of the named stream."""
    import torch

    return torch.Generator(device).manual_seed(stream_seed(seed, stream, *index))
