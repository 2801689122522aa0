"""What can be wrong with a picture: noise of several kinds, mottling, garish colours, blur; how bad it is, in words.

Corrupted samples of a fine-tuned model are mostly decoded latent noise, so many of these pictures go through the
embedded autoencoder with perturbed latents, and others through it untouched: its softness is no fault.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Generator, Tensor
from tqdm import tqdm

from autoencoder import texture_heap
from fewbayes.world.scenes import SIZE
from training import device, to_unit

WORDS = {
    "clean": ("good", "clean", "clear"),
    "pixel": ("noisy", "grainy"),
    "coarse": ("blotchy", "mottled", "noisy"),
    "saturated": ("oversaturated", "garish"),
    "blurred": ("blurry",),
    "soft": ("good", "clean", "clear"),
    "white": ("mottled", "blotchy", "noisy"),
    "clouds": ("blotchy", "mottled"),
    "unfinished": ("mottled", "blotchy", "noisy"),
    "cast": ("discoloured",),
}
NOISY = ("pixel", "coarse", "white", "clouds", "unfinished")
DECODED = ("soft", "white", "clouds", "unfinished", "cast")
EASY_TO_SEE = 0.08  # an RMS change of the picture, of 1 from black to white, that takes most of its quality


def severity(pictures: Tensor, clean: Tensor) -> Tensor:
    """How bad (B,), 0 to 1, from the RMS difference of pictures in [-1, 1] to what they should be."""
    rms = (pictures - clean).square().mean((1, 2, 3)).sqrt() / 2
    return 1 - torch.exp(-rms / EASY_TO_SEE)


def log_uniform(count: int, low: float, high: float, random: Generator) -> Tensor:
    """(count, 1, 1, 1) strengths, as many between 1 and 2 as between 2 and 4."""
    return low * (high / low) ** torch.rand(count, 1, 1, 1, generator=random)


def pixel(x: Tensor, random: Generator) -> Tensor:
    grey = torch.rand(len(x), 1, 1, 1, generator=random) < 0.3
    eps = torch.randn(x.shape, generator=random)
    eps = torch.where(grey, eps[:, :1], eps)
    return (x + log_uniform(len(x), 0.02, 0.8, random) * eps).clamp(-1, 1)


def coarse(x: Tensor, random: Generator) -> Tensor:
    """Colour blotches of 4, 8 or 16 pixels."""
    cells = SIZE // int(2 ** torch.randint(2, 5, (), generator=random))
    eps = torch.randn(len(x), 3, cells, cells, generator=random)
    blotches = F.interpolate(eps, size=x.shape[-1], mode="bicubic", align_corners=False)
    return (x + log_uniform(len(x), 0.04, 1.0, random) * blotches).clamp(-1, 1)


def saturated(x: Tensor, random: Generator) -> Tensor:
    grey = x.mean(1, keepdim=True)
    colour, contrast = log_uniform(len(x), 1.1, 5, random), log_uniform(len(x), 1.0, 2.5, random)
    return ((grey + colour * (x - grey)) * contrast).clamp(-1, 1)


def blurred(x: Tensor, random: Generator, low: float = 0.7, high: float = 4) -> Tensor:
    radius = float(log_uniform(1, low, high, random))
    at = torch.arange(-9, 10)
    kernel = torch.exp(-0.5 * (at / radius) ** 2)
    kernel = (kernel / kernel.sum()).expand(3, 1, 1, -1)
    x = F.conv2d(F.pad(x, (9, 9, 0, 0), mode="reflect"), kernel, groups=3)
    return F.conv2d(F.pad(x, (0, 0, 9, 9), mode="reflect"), kernel.transpose(2, 3), groups=3)


DRAWN = {"pixel": pixel, "coarse": coarse, "saturated": saturated, "blurred": blurred}


def perturb(latents: Tensor, kind: str, strength: Tensor, random: Generator) -> Tensor:
    """Latents of unit deviation (B, C, h, w) as a model that went wrong may leave them."""
    eps = torch.randn(latents.shape, generator=random)
    if kind == "soft":
        return latents
    if kind == "white":
        return latents + strength * eps
    if kind == "clouds":
        return latents + 1.5 * strength * F.interpolate(eps[:, :, ::4, ::4], size=latents.shape[-1], mode="bilinear")
    if kind == "cast":
        return latents + strength * eps[:, :, :1, :1]
    return (latents + strength * eps) / (1 + strength**2).sqrt()  # unfinished: noise that was never taken away


def heap_pictures(folder: Path, count: int, first_seed: int = 1_000_000) -> np.ndarray:
    """Heaps of textured shapes, uint8 (count, SIZE, SIZE, 3), drawn once: as near to photographs as drawing gets."""
    path = folder / f"heaps-{first_seed}-{count}.npy"
    if not path.exists():
        seeds = tqdm(range(first_seed, first_seed + count), desc="drawing heaps", mininterval=5)
        pictures = np.stack([np.round(texture_heap(seed) * 255).astype(np.uint8) for seed in seeds])
        scratch = path.with_suffix(".tmp.npy")
        np.save(scratch, pictures)
        os.replace(scratch, path)
    return np.load(path)


@dataclass(frozen=True)
class DecodedPictures:
    """uint8 pictures (N, SIZE, SIZE, 3) by kind, with their scene and severity."""

    pictures: np.ndarray
    scene: np.ndarray
    severity: np.ndarray
    rows: dict[str, np.ndarray]


@torch.no_grad()
def decoded_pictures(
    folder: Path, vae_folder: Path, pictures: np.ndarray, count: int, name: str = "decoded"
) -> DecodedPictures:
    """Each of the first `count` pictures through the autoencoder, once untouched and twice with perturbed latents."""
    path = folder / f"{name}-{count}.npz"
    if not path.exists():
        vae = AutoencoderKL.from_pretrained(vae_folder).to(device()).eval()
        kinds = np.array([DECODED.index("soft"), 0, 0] * count).reshape(count, 3)
        kinds[:, 1:] = np.random.default_rng(31).choice((1, 1, 2, 3, 4), (count, 2))
        parts = [_decode(vae, pictures, i, kinds) for i in tqdm(range(0, count, 50), desc="decoding", mininterval=5)]
        made, bad = (np.concatenate(part) for part in zip(*parts, strict=True))
        scratch = path.with_suffix(".tmp.npz")
        np.savez(scratch, pictures=made, severity=bad, kinds=kinds.ravel(), scene=np.repeat(np.arange(count), 3))
        os.replace(scratch, path)
    kept = np.load(path)
    rows = {kind: np.flatnonzero(kept["kinds"] == i) for i, kind in enumerate(DECODED)}
    return DecodedPictures(kept["pictures"], kept["scene"], kept["severity"], rows)


@torch.no_grad()
def degraded_series(vae: AutoencoderKL, x: Tensor) -> dict[str, dict[float, Tensor]]:
    """The same pictures with the same noise at rising levels, by kind; at level 0 nothing is done but decoding.

    Levels are standard deviations: of the pixels (black to white is 1), and of latents, whose own deviation is 1.
    """
    random = torch.Generator().manual_seed(81)
    eps = torch.randn(x.shape, generator=random)
    series = {"pixel": {level: (x + 2 * level * eps).clamp(-1, 1) for level in (0, 0.02, 0.05, 0.1, 0.2, 0.4)}}
    latents = vae.encode(x.to(vae.device)).latent_dist.mean.cpu() * vae.config.scaling_factor
    for kind in ("white", "clouds", "unfinished"):
        series[kind] = {}
        for level in (0, 0.1, 0.2, 0.4, 0.8, 1.6):
            noisy = perturb(latents, kind, torch.full((len(x), 1, 1, 1), level), torch.Generator().manual_seed(82))
            parts = (noisy / vae.config.scaling_factor).to(vae.device).split(50)
            series[kind][level] = torch.cat([vae.decode(part).sample.cpu() for part in parts]).clamp(-1, 1)
    return series


def _decode(vae: AutoencoderKL, originals: np.ndarray, start: int, kinds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    random = torch.Generator().manual_seed(start)
    x = to_unit(originals[start : start + 50]).to(device())
    with torch.autocast(x.device.type, torch.bfloat16):
        latents = vae.encode(x).latent_dist.mean.float().cpu() * vae.config.scaling_factor
        latents = latents.repeat_interleave(3, 0)
        here = kinds[start : start + 50].ravel()
        strength = log_uniform(len(here), 0.1, 1.6, random)
        for i, kind in enumerate(DECODED):
            rows = np.flatnonzero(here == i)
            latents[rows] = perturb(latents[rows], kind, strength[rows], random)
        made = vae.decode(latents.to(device()) / vae.config.scaling_factor).sample.float().cpu().clamp(-1, 1)
    bad = severity(made, made[::3].repeat_interleave(3, 0))
    pictures = made.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    return pictures, bad.numpy()
