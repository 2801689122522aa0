"""What a training step sees: which pictures, their latents and prompts, times and noise.

Everything random here is a pure function of (seed, stream, step). It is drawn for the whole optimizer step on the CPU
and only then cut into micro-batches and processes, so two processes, or two accumulated micro-batches, see what one
batch of double size sees. Knows nothing of losses, optimizers or weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from fewbayes.data.images import crop
from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.objective import Batch
from fewbayes.diffusion.process import Process
from fewbayes.models import Family
from fewbayes.seeds import generator

INSTANCE, CLASS = 0, 1


@dataclass(frozen=True)
class Share:
    """How the examples of one optimizer step are cut: first by micro-batch, then by process."""

    batch_size: int
    processes: int = 1
    rank: int = 0
    micro_batches: int = 1

    @property
    def total(self) -> int:
        return self.batch_size * self.processes * self.micro_batches

    def rows(self, micro_batch: int) -> slice:
        start = (micro_batch * self.processes + self.rank) * self.batch_size
        return slice(start, start + self.batch_size)


@dataclass(frozen=True)
class Draws:
    """The random part of one optimizer step, one entry per example, on the CPU.

    indices: which pictures; t: (total,) times; eps: (total, *latent shape) the noise that is added, its offset
    included;
    latent_eps: the same shape, the draw from the autoencoder's posterior; crop: (total, 3) uniform in [0, 1): the
    top and left margins and the flip; uncaptioned: who is learned under the empty caption.
    """

    indices: list[int]
    t: Tensor
    eps: Tensor
    latent_eps: Tensor
    crop: Tensor
    uncaptioned: list[bool]


def image_indices(seed: int, first: int, count: int, images: int, half: int = INSTANCE) -> list[int]:
    """Examples first .. first + count - 1 of an endless sequence of shuffled passes over the images."""
    passes = range(first // images, (first + count - 1) // images + 1)
    shuffled = [torch.randperm(images, generator=generator(seed, "order", half, number)) for number in passes]
    start = first - passes.start * images
    return torch.cat(shuffled)[start : start + count].tolist()


def draw(
    seed: int,
    step: int,
    total: int,
    images: int,
    latent_shape: Sequence[int],
    process: Process,
    half: int = INSTANCE,
    noise_offset: float = 0.0,
    caption_dropout: float = 0.0,
) -> Draws:
    """All that is random in optimizer step `step` but the weights; `half` keeps instance and class images apart."""
    shape = (total, *latent_shape)
    eps = torch.randn(shape, generator=generator(seed, "noise", step, half))
    if noise_offset:
        eps += noise_offset * channel_offsets(seed, step, shape, half)
    return Draws(
        indices=image_indices(seed, step * total, total, images, half),
        t=process.draw_times(total, generator(seed, "timestep", step, half)),
        eps=eps,
        latent_eps=torch.randn(shape, generator=generator(seed, "latent", step, half)),
        crop=torch.rand((total, 3), generator=generator(seed, "crop", step, half)),
        uncaptioned=(torch.rand(total, generator=generator(seed, "caption", step, half)) < caption_dropout).tolist(),
    )


def channel_offsets(seed: int, step: int, shape: Sequence[int], half: int = INSTANCE) -> Tensor:
    """N(0, 1) for each channel of each example, (total, channels, 1, 1): a shift of brightness and colour.

    Added to the noise it makes a network learn the mean of a picture, which plain noise leaves nearly untouched.
    """
    return torch.randn((*shape[:2], 1, 1), generator=generator(seed, "offset", step, half))


def crop_and_flip(pixels: np.ndarray, side: int, draw: Sequence[float], *, flip: bool) -> np.ndarray:
    """A side x side window of a picture (height, width, 3); `draw` is (down, right, mirrored), each in [0, 1)."""
    window = crop(pixels, side, (draw[0], draw[1]))
    return window[:, ::-1] if flip and draw[2] < 0.5 else window


OPEN = 0.2
"""Share of a channel's spread from which on the autoencoder's own deviation there is no longer small."""
FEW = 4


def open_channels(mean: Tensor, deviation: Tensor) -> dict[int, float]:
    """Channels whose posterior deviation is a large share of the spread of their means, and that share.

    mean, deviation: (count, channels, height, width), of the autoencoder's posterior on some pictures. Latents are
    drawn from it at every step, so a model is trained on that noise: harmless where its pretraining drew as well, a
    source of noisy samples where it saw the means.
    """
    spread = mean.float().std((0, 2, 3)).clamp(min=1e-8)
    shares = deviation.float().mean((0, 2, 3)) / spread
    return {channel: share for channel, share in enumerate(shares.tolist()) if share > OPEN}


class Pictures:
    """Training pictures with their prompts, encoded once where nothing about them changes from step to step.

    pixels: uint8 (height, width, 3) each, no side shorter than `side`. Latents are kept when asked, when no picture
    needs cropping and none is flipped; what is kept is mean and deviation, so latents are still drawn at every step.
    Prompt embeddings are kept when `keep_prompts`, which a text encoder in training forbids. noise_offset: share of
    one more normal number per channel in the noise, 0 for none. masks: uint8 (height, width) of the pictures' sizes,
    None for a picture without one; where they are black a place weighs `mask_weight`, of 1 on white. caption_dropout:
    share of examples under what guidance leads away from. mean_latents: the means of the latents in place of draws.
    process: that draws the times, None for the family's own.
    """

    def __init__(
        self,
        family: Family,
        pixels: Sequence[np.ndarray],
        prompts: Sequence[str],
        *,
        side: int,
        random_flip: bool = False,
        keep_latents: bool = True,
        keep_prompts: bool = True,
        half: int = INSTANCE,
        noise_offset: float = 0.0,
        masks: Sequence[np.ndarray | None] = (),
        mask_weight: float = 1.0,
        caption_dropout: float = 0.0,
        mean_latents: bool = False,
        process: Process | None = None,
    ):
        assert len(pixels) == len(prompts) > 0
        self._masks = list(masks) if mask_weight != 1 and any(mask is not None for mask in masks) else None
        self._mask_weight = mask_weight
        self.family, self.pixels, self.prompts = family, list(pixels), list(prompts)
        self.process = process or family.process
        self.side, self.random_flip, self.half, self.noise_offset = side, random_flip, half, noise_offset
        self.caption_dropout, self.mean_latents = caption_dropout, mean_latents
        still = not random_flip and all(picture.shape[:2] == (side, side) for picture in self.pixels)
        self.different = list(dict.fromkeys(self.prompts))
        self.kept_latents = self._encode_all() if keep_latents and still else None
        with torch.no_grad():
            self.kept_prompts = family.encode_prompts(self.different) if keep_prompts else None
        mean, _ = self.kept_latents or family.encode_images(self.centred(0)[None])
        self.latent_shape = tuple(mean.shape[1:])

    def __len__(self) -> int:
        return len(self.pixels)

    def draw(self, seed: int, step: int, total: int) -> Draws:
        shares = self.half, self.noise_offset, self.caption_dropout
        return draw(seed, step, total, len(self), self.latent_shape, self.process, *shares)

    def centred(self, i: int) -> np.ndarray:
        """Picture i as training sees it on average: its middle, side x side."""
        return crop(self.pixels[i], self.side)

    def batch(self, draws: Draws, rows: slice) -> Batch:
        """The micro-batch of these rows, on the device of the family."""
        device = self.family.device
        indices = draws.indices[rows]
        mean, std = self._latents(indices, draws.crop[rows])
        return Batch(
            x0=mean if self.mean_latents else mean + std * draws.latent_eps[rows].to(device),
            eps=draws.eps[rows].to(device),
            t=draws.t[rows].to(device),
            cond=self._conditions(indices, draws.uncaptioned[rows]),
            weights=self._weights(indices, draws.crop[rows]),
        )

    def open_channels(self) -> dict[int, float]:
        """Channels of the latents that the autoencoder leaves open: see `open_channels`. Of means none counts."""
        if self.mean_latents:
            return {}
        if self.kept_latents is not None:
            return open_channels(*self.kept_latents)
        shown = [self.centred(i) for i in range(min(len(self), FEW))]
        return open_channels(*self.family.encode_images(np.stack(shown)))

    def _latents(self, indices: list[int], crops: Tensor) -> tuple[Tensor, Tensor]:
        if self.kept_latents is not None:
            mean, std = self.kept_latents
            return mean[indices], std[indices]
        windows = [
            crop_and_flip(self.pixels[i], self.side, row, flip=self.random_flip)
            for i, row in zip(indices, crops.tolist(), strict=True)
        ]
        return self.family.encode_images(np.stack(windows))

    def _weights(self, indices: list[int], crops: Tensor) -> Tensor | None:
        """(batch, 1, height, width) of the latents: the mean of the masks over the pixels of each place."""
        if self._masks is None:
            return None
        whole = np.full((self.side, self.side), 255, np.uint8)
        windows = []
        for i, row in zip(indices, crops.tolist(), strict=True):
            mask = self._masks[i]
            windows.append(whole if mask is None else crop_and_flip(mask, self.side, row, flip=self.random_flip))
        white = torch.from_numpy(np.stack(windows)).float().div(255)[:, None]
        height, width = self.latent_shape[-2:]
        white = F.adaptive_avg_pool2d(white, (height, width)).to(self.family.device)
        return self._mask_weight + (1 - self._mask_weight) * white

    def _conditions(self, indices: list[int], uncaptioned: list[bool]) -> Conditioning:
        prompts, kept = [self.prompts[i] for i in indices], self.kept_prompts
        rows = range(len(prompts)) if kept is None else [self.different.index(prompt) for prompt in prompts]
        found = (self.family.encode_prompts(prompts) if kept is None else kept).rows(list(rows))
        if not any(uncaptioned):
            return found
        with nullcontext() if kept is None else torch.no_grad():
            both = found.joined(self.family.encode_negative(""))
        return both.rows([len(prompts) if none else i for i, none in enumerate(uncaptioned)])

    def _encode_all(self, at_once: int = 4) -> tuple[Tensor, Tensor]:
        chunks = [np.stack(self.pixels[i : i + at_once]) for i in range(0, len(self), at_once)]
        encoded = [self.family.encode_images(chunk) for chunk in chunks]
        return torch.cat([mean for mean, _ in encoded]), torch.cat([std for _, std in encoded])
