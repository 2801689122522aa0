"""Normal noise for weights as a function of (seed, step): no state is kept between draws.

Knows neither what a posterior is nor what the weights are for.

Definition on a CPU, by weight name and element
    words     Philox4x64-10, key = hash of the seed, counter = (block + 1, step, hash of the weight's name, 0); four
              64-bit words a block, read as eight 32-bit words s, little-endian, as signed numbers
    tiles     512 elements and 512 words each: the first 256 words give radii, the last 256 angles
    normals   r = sqrt(-2 log((|s| + 1/2) 2^-31)), a = pi 2^-31 s; r cos(a) are the first 256 elements of the tile,
              r sin(a) the last (Box and Muller)
Elsewhere one torch.randn of all weights in their order, by a generator of that device seeded by (seed, step). Its
numbers are others than the CPU's, and may differ between two models of GPU; on one of them they repeat.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from fewbayes.errors import UserError
from fewbayes.seeds import digest, generator

_HALF = 256  # radii (and as many angles) in a tile
_TILE = 2 * _HALF
_BLOCKS_PER_TILE = _TILE // 8
_CHUNK = 128 * _TILE  # elements at once: stays in the second-level cache
_PREPARED_SIZES = range(2**16, 2**24)  # below, handing over costs more than drawing; above, a second buffer does


def normal(seed: int, step: int, name: str, shape: Sequence[int], *, offset: int = 0) -> Tensor:
    """N(0, 1) noise of the weight `name` at `step` on a CPU: elements offset, offset + 1, ... in row-major order."""
    _check_place(step, offset)
    out = np.empty(math.prod(shape), dtype=np.float32)
    _fill(out, _philox_of(seed), step, _name_word(name), offset)
    return torch.from_numpy(out).view(tuple(shape))


def device_normal(seed: int, step: int, count: int, device: torch.device) -> Tensor:
    """`count` numbers N(0, 1) from the device's own generator, float32."""
    _check_place(step, 0)
    return torch.randn(count, generator=generator(seed, "weight noise", step, device=device), device=device)


class WeightNoise:
    """Noise of several named weights, one behind the other in one flat tensor.

    While a step computes, a CPU's spare core prepares the noise of the next step number; a wrong guess costs time,
    never another number. The tensor of `draw` is the caller's to read until the next `draw`.
    """

    def __init__(self, seed: int, names: Sequence[str], sizes: Sequence[int], device: torch.device) -> None:
        self.seed, self.sizes, self.count, self.device = seed, tuple(sizes), sum(sizes), device
        self._words = [_name_word(name) for name in names]
        self._step: int | None = None
        self._noise: Tensor | None = None
        self._next: tuple[int, Future[Tensor]] | None = None
        prepares = device.type == "cpu" and self.count in _PREPARED_SIZES
        self._worker = ThreadPoolExecutor(1, "weight-noise") if prepares else None

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
        if self.device.type != "cpu":
            return device_normal(self.seed, step, self.count, self.device)
        noise = np.empty(self.count, dtype=np.float32)
        philox, start = _philox_of(self.seed), 0
        for word, size in zip(self._words, self.sizes, strict=True):
            _fill(noise[start : start + size], philox, step, word, 0)
            start += size
        return torch.from_numpy(noise)


def _check_place(step: int, offset: int) -> None:
    if not 0 <= step < 2**63:
        raise UserError(f"the step of weight noise must lie in 0 .. 2^63 - 1, but is {step}")
    if offset < 0:
        raise UserError(f"the offset of weight noise must not be negative, but is {offset}")


def _name_word(name: str) -> int:
    return int.from_bytes(digest(name, size=8), "little")


def _philox_of(seed: int) -> np.random.Philox:
    return np.random.Philox(key=np.frombuffer(digest(seed, "weights", size=16), dtype="<u8"))


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
