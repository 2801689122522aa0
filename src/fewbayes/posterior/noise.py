"""Randomness as a pure function: named streams from one seed, and counter-based normal noise for weights.

No state of a generator is ever kept: whoever knows (seed, step, weight name, element) knows the draw, so resume,
sharding, recomputation and other devices see the same numbers. This file does not know what a posterior is, nor what
the weights are for.

Definition of the weight noise
    words     Philox4x64-10, key = hash of the seed, counter = (block + 1, step, hash of the weight's name, 0); four
              64-bit words a block, read as eight 32-bit words s, little-endian, as signed numbers
    tiles     512 elements and 512 words each: the first 256 words give radii, the last 256 angles
    normals   r = sqrt(-2 log((|s| + 1/2) 2^-31)), a = pi 2^-31 s; r cos(a) are the first 256 elements of the tile,
              r sin(a) the last (Box and Muller)
On a CPU the words come from numpy's Philox, on CUDA from one kernel (noise_triton.py) where Triton works, elsewhere
from `reference_normal`; they agree to float rounding.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from hashlib import blake2b
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fewbayes.errors import UserError

if TYPE_CHECKING:
    from fewbayes.posterior.noise_triton import TileNoise

log = logging.getLogger("fewbayes")

_HALF = 256  # radii (and as many angles) in a tile
_TILE = 2 * _HALF
_BLOCKS_PER_TILE = _TILE // 8
_CHUNK = 128 * _TILE  # elements at once: stays in the second-level cache
_PREPARED_SIZES = range(2**16, 2**24)  # below, handing over costs more than drawing; above, a second buffer does
_WORD = 2**64
_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2E7470EE14C6C93, 0xCA5A826395121157)  # Philox4x64, Salmon et al. 2011, Table 2 and section 4
_WEYL = (0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B)
_ROUNDS = 10
_PROBE_WEIGHTS, _PROBE_SIZE, _PROBE_STEP = 4, 3 * _TILE + 5, 2**40 + 3  # what a kernel must get right to be used
_PROBE_TOLERANCE = 1e-5


def _digest(*parts: object, size: int) -> bytes:
    return blake2b("\x1f".join(map(str, parts)).encode(), digest_size=size, person=b"fewbayes").digest()


def stream_seed(seed: int, stream: str, *index: int) -> int:
    """A 63-bit seed for the draw number `index` of the named stream."""
    return int.from_bytes(_digest(seed, stream, *index, size=8), "little") >> 1


def generator(seed: int, stream: str, *index: int) -> torch.Generator:
    """A fresh CPU generator for the draw number `index` of the named stream."""
    return torch.Generator().manual_seed(stream_seed(seed, stream, *index))


def normal(
    seed: int,
    step: int,
    name: str,
    shape: Sequence[int],
    *,
    offset: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """N(0, 1) noise of the weight `name` at `step`: elements offset, offset + 1, ... in row-major order."""
    if torch.device(device).type != "cpu":
        return reference_normal(seed, step, name, shape, offset=offset, device=device, dtype=dtype)
    _check_place(step, offset)
    out = np.empty(math.prod(shape), dtype=np.float32)
    _fill(out, _philox_of(seed), step, _name_word(name), offset)
    return torch.from_numpy(out).view(tuple(shape)).to(dtype)


def reference_normal(
    seed: int,
    step: int,
    name: str,
    shape: Sequence[int],
    *,
    offset: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """The same numbers as `normal` from torch's integer arithmetic alone, on any device (about 350 small kernels)."""
    _check_place(step, offset)
    count = math.prod(shape)
    first, last = offset // _TILE, -(-(offset + count) // _TILE)
    block = torch.arange(first * _BLOCKS_PER_TILE, last * _BLOCKS_PER_TILE, device=device) + 1
    counter = [block, *(torch.full_like(block, _signed(word)) for word in (step, _name_word(name), 0))]
    words = torch.stack(_philox(counter, _key(seed)), dim=-1).view(torch.int32)
    radius_word, angle_word = words.to(torch.float32).view(-1, 2, _HALF).unbind(1)
    radius = radius_word.abs().add(0.5).mul(2.0**-31).log().mul(-2.0).sqrt()
    angle = angle_word * (math.pi * 2.0**-31)
    noise = torch.stack((radius * angle.cos(), radius * angle.sin()), dim=1).view(-1)
    start = offset - first * _TILE
    return noise[start : start + count].view(tuple(shape)).to(dtype)


class WeightNoise:
    """Noise of several named weights, one behind the other in one flat tensor.

    While a step computes, a CPU's spare core prepares the noise of the next step number; a wrong guess costs time,
    never another number. The tensor of `draw` is the caller's to read until the next `draw`.
    """

    def __init__(self, seed: int, names: Sequence[str], sizes: Sequence[int], device: torch.device) -> None:
        self.seed, self.names, self.sizes, self.device = seed, tuple(names), tuple(sizes), device
        self._words = [_name_word(name) for name in self.names]
        self._step: int | None = None
        self._noise: Tensor | None = None
        self._next: tuple[int, Future[Tensor]] | None = None
        prepares = device.type == "cpu" and sum(sizes) in _PREPARED_SIZES
        self._worker = ThreadPoolExecutor(1, "weight-noise") if prepares else None
        self._kernel = _kernel_noise(seed, self.names, self.sizes, device) if device.type == "cuda" else None

    def draw(self, step: int) -> Tensor:
        """All noise of the step, float32, flat, in the order of the names."""
        _check_place(step, 0)
        if self._noise is None or step != self._step:
            self._noise, self._step = self._take(step), step
            if self._worker is not None:
                self._next = (step + 1, self._worker.submit(self._make, step + 1))
        return self._noise

    def _take(self, step: int) -> Tensor:
        self._noise = None
        prepared, self._next = self._next, None
        if prepared is not None and prepared[0] == step:
            return prepared[1].result()
        return self._make(step)

    def _make(self, step: int) -> Tensor:
        if self._kernel is not None:
            return self._kernel.draw(step)
        if self.device.type != "cpu":
            pieces = [
                reference_normal(self.seed, step, name, (size,), device=self.device)
                for name, size in zip(self.names, self.sizes, strict=True)
            ]
            return torch.cat(pieces)
        noise = np.empty(sum(self.sizes), dtype=np.float32)
        philox, start = _philox_of(self.seed), 0
        for word, size in zip(self._words, self.sizes, strict=True):
            _fill(noise[start : start + size], philox, step, word, 0)
            start += size
        return torch.from_numpy(noise)


def _kernel_noise(seed: int, names: Sequence[str], sizes: Sequence[int], device: torch.device) -> TileNoise | None:
    """The noise in one kernel if it works here and draws the numbers of the reference, else None, said aloud."""
    try:
        from fewbayes.posterior.noise_triton import TileNoise

        words = [_name_word(name) for name in names]
        probe = {name: min(size, _PROBE_SIZE) for name, size in zip(names[:_PROBE_WEIGHTS], sizes, strict=False)}
        drawn = TileNoise(_key(seed), words[: len(probe)], list(probe.values()), device).draw(_PROBE_STEP)
        _compare_with_reference(drawn, seed, _PROBE_STEP, probe)
        return TileNoise(_key(seed), words, sizes, device)
    except Exception as reason:  # whatever fails in there, the slow way is right
        log.warning(
            "weight noise on %s is drawn by the reference, the same numbers in hundreds of small kernels a weight and "
            "therefore slow, because the fused Triton kernel is not usable here (%s: %s)",
            device,
            type(reason).__name__,
            reason,
        )
        return None


def _compare_with_reference(drawn: Tensor, seed: int, step: int, sizes: Mapping[str, int]) -> None:
    pieces = [reference_normal(seed, step, name, (size,), device=drawn.device) for name, size in sizes.items()]
    difference = float((drawn - torch.cat(pieces)).abs().max())
    if not difference <= _PROBE_TOLERANCE:
        raise ArithmeticError(f"its numbers differ from the reference by up to {difference}")


def _check_place(step: int, offset: int) -> None:
    if not 0 <= step < 2**63:
        raise UserError(f"the step of weight noise must lie in 0 .. 2^63 - 1, but is {step}")
    if offset < 0:
        raise UserError(f"the offset of weight noise must not be negative, but is {offset}")


def _key(seed: int) -> tuple[int, int]:
    digest = _digest(seed, "weights", size=16)
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def _name_word(name: str) -> int:
    return int.from_bytes(_digest(name, size=8), "little")


def _philox_of(seed: int) -> np.random.Philox:
    return np.random.Philox(key=np.array(_key(seed), dtype=np.uint64))


def _fill(out: np.ndarray, philox: np.random.Philox, step: int, name_word: int, offset: int) -> None:
    """Write elements offset .. offset + len(out) of one weight's noise, chunk by chunk."""
    first = offset // _TILE
    state = philox.state
    # numpy counts up before it draws: block b is drawn with b + 1
    state["state"]["counter"] = np.array([first * _BLOCKS_PER_TILE, step, name_word, 0], dtype=np.uint64)
    state["buffer_pos"] = 4  # nothing left of the block before
    philox.state = state
    end = offset + len(out)
    for start in range(first * _TILE, end, _CHUNK):
        stop = min(start + _CHUNK, -(-end // _TILE) * _TILE)
        raw = philox.random_raw((stop - start) // 2)
        if offset <= start and stop <= end:
            _box_muller(raw, out[start - offset : stop - offset].reshape(-1, 2, _HALF))
        else:
            whole = np.empty(stop - start, dtype=np.float32)
            _box_muller(raw, whole.reshape(-1, 2, _HALF))
            low, high = max(start, offset), min(stop, end)
            out[low - offset : high - offset] = whole[low - start : high - start]


def _box_muller(raw: np.ndarray, out: np.ndarray) -> None:
    words = raw.view("<i4").astype(np.float32).reshape(-1, 2, _HALF)
    radius = np.abs(words[:, 0])
    radius += 0.5
    radius *= 2.0**-31
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    angle = words[:, 1] * (math.pi * 2.0**-31)
    np.cos(angle, out=out[:, 0])
    np.sin(angle, out=out[:, 1])
    out *= radius[:, None]


def _signed(word: int) -> int:
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _philox(counter: Sequence[Tensor], key: tuple[int, int]) -> list[Tensor]:
    """Philox4x64-10 on int64 tensors that hold the bits of unsigned words."""
    c0, c1, c2, c3 = counter
    for turn in range(_ROUNDS):
        k0, k1 = (_signed(word + turn * weyl) for word, weyl in zip(key, _WEYL, strict=True))
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
    return [c0, c1, c2, c3]


def _multiply(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    """High and low 64 bits of the unsigned product, from products of 32-bit halves."""
    high, low = (word >> 32) & _MASK, word & _MASK
    factor_high, factor_low = factor >> 32, factor & _MASK
    low_low, low_high, high_low = low * factor_low, low * factor_high, high * factor_low
    middle = ((low_low >> 32) & _MASK) + (low_high & _MASK) + (high_low & _MASK)
    upper = high * factor_high + ((low_high >> 32) & _MASK) + ((high_low >> 32) & _MASK) + (middle >> 32)
    return upper, word * _signed(factor)
