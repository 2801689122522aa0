"""The weight noise that noise.py defines, for all weights in one kernel of a GPU.

Imported only where a GPU draws weight noise, and only there needs Triton. This file does not know seeds and names, only
the words made of them, and does not judge its own numbers: noise.py compares them with the reference before use.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.language as tl  # pyright: ignore[reportMissingImports]
from torch import Tensor

_TILE = 512
_TILES_PER_PROGRAM = 4
_WORD = tl.constexpr(2.0**-31)
_ANGLE = tl.constexpr(math.pi * 2.0**-31)


def tile_table(name_words: Sequence[int], sizes: Sequence[int]) -> Tensor:
    """int64, 4 x tiles: the name's word (its bits), the tile's number in its weight, its first element, its length."""
    sizes_ = np.array(sizes, dtype=np.int64)
    tiles = -(-sizes_ // _TILE)
    of_weight = np.repeat(np.arange(len(tiles)), tiles)
    number = np.arange(len(of_weight)) - (np.cumsum(tiles) - tiles)[of_weight]
    start = (np.cumsum(sizes_) - sizes_)[of_weight] + number * _TILE
    length = np.minimum(sizes_[of_weight] - number * _TILE, _TILE)
    words = np.array(name_words, dtype=np.uint64).view(np.int64)
    return torch.from_numpy(np.stack([words[of_weight], number, start, length]))


@triton.jit
def _words(block, step, name_word, key0, key1):
    """The eight 32-bit words of each block, one behind the other along the last axis, as float32."""
    c0, c1, c2, c3 = tl.philox_impl((block + 1).to(tl.uint64), step, name_word, tl.zeros_like(name_word), key0, key1)
    words = tl.interleave(tl.interleave(c0, c2), tl.interleave(c1, c3))
    return tl.interleave(words.to(tl.int32), (words >> 32).to(tl.int32)).to(tl.float32)


# The types are fixed and nothing is specialised: every step and seed runs what the first one compiled.
@triton.jit(do_not_specialize=["num_tiles", "step", "key0", "key1"])
def _fill_tiles(out, table, num_tiles: tl.int64, step: tl.int64, key0: tl.int64, key1: tl.int64, tiles: tl.constexpr):
    tile = tl.program_id(0).to(tl.int64) * tiles + tl.arange(0, tiles)[:, None]
    inside = tile < num_tiles
    name_word = tl.load(table + tile, inside, other=0).to(tl.uint64)
    number = tl.load(table + num_tiles + tile, inside, other=0)
    start = tl.load(table + 2 * num_tiles + tile, inside, other=0)
    length = tl.load(table + 3 * num_tiles + tile, inside, other=0)

    block = number * 64 + tl.arange(0, 32)[None, :]
    step, key0, key1 = step.to(tl.uint64), key0.to(tl.uint64), key1.to(tl.uint64)
    radius_word = _words(block, step, name_word, key0, key1)
    angle = _words(block + 32, step, name_word, key0, key1) * _ANGLE
    radius = tl.sqrt_rn(tl.log((tl.abs(radius_word) + 0.5) * _WORD) * -2.0)

    element = tl.arange(0, 256)[None, :]
    tl.store(out + start + element, radius * tl.cos(angle), element < length)
    tl.store(out + start + element + 256, radius * tl.sin(angle), element + 256 < length)


class TileNoise:
    """Draws the noise of several weights, one behind the other, into one buffer that it keeps."""

    def __init__(
        self, key: tuple[int, int], name_words: Sequence[int], sizes: Sequence[int], device: torch.device
    ) -> None:
        self._key = np.array(key, dtype=np.uint64).view(np.int64).tolist()
        self._table = tile_table(name_words, sizes).to(device)
        self._size = sum(sizes)
        self._out: Tensor | None = None

    def draw(self, step: int) -> Tensor:
        """float32, flat; the tensor is the same one, overwritten, at every call."""
        if self._out is None:
            self._out = torch.empty(self._size, dtype=torch.float32, device=self._table.device)
        num_tiles = self._table.shape[1]
        launch = _fill_tiles[(triton.cdiv(num_tiles, _TILES_PER_PROGRAM),)]  # pyright: ignore[reportIndexIssue]
        with torch.cuda.device_of(self._out):
            launch(self._out, self._table, num_tiles, step, *self._key, tiles=_TILES_PER_PROGRAM)
        return self._out
