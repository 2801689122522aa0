"""The autoencoder: 64x64 RGB to 16x16x8 latents, trained on scenes, close-ups and heaps of textured shapes.

The shapes (no photograph is used) teach it what scenes lack: arbitrary colours, edges and grain. Half precision where
it is safe; latents are standardised by the scaling factor measured at the end.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL

from fewbayes.world.draw import cells, coverage, ellipse, noise, paint, pixel_grid
from training import Training, batch_indices, device, run_training, to_unit

LOG_VARIANCE = -20.0
KL_WEIGHT = 1e-6
BATCH = 16


def new_autoencoder(latent_channels: int = 8) -> AutoencoderKL:
    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=64,
    )


def texture_heap(seed: int, size: int = 64) -> np.ndarray:
    """A heap of textured ellipses and cells in arbitrary colours: dead leaves, whose statistics are a photograph's."""
    rng = np.random.default_rng((seed, 7))
    x, y = pixel_grid(size)
    canvas = rng.random(3) + 0.15 * noise(rng, size, 4)[..., None] * rng.standard_normal(3)
    canvas = canvas.astype(np.float32)
    for _ in range(rng.integers(4, 40)):
        radius = 0.08 * rng.pareto(1.5) + 0.06
        angle, stretch = rng.uniform(0, np.pi), rng.uniform(0.3, 1)
        dx, dy = x - rng.uniform(-1, 1), y - rng.uniform(-1, 1)
        u, v = np.cos(angle) * dx + np.sin(angle) * dy, -np.sin(angle) * dx + np.cos(angle) * dy
        shape = ellipse(u, v, 0, 0, min(radius, 1.2), min(radius, 1.2) * stretch)
        if rng.random() < 0.3:
            shape = np.maximum(np.abs(u) - radius, np.abs(v) - radius * stretch)
        texture = noise(rng, size, int(rng.integers(1, 5)))[..., None] * rng.normal(0, 0.12) * (0.5 + rng.random(3))
        if rng.random() < 0.2:
            _border, number = cells(u, v, rng.uniform(2, 7), rng.uniform(0, 50))
            texture = texture + (number[..., None] - 0.5) * rng.normal(0, 0.4, 3)
        gradient = 0.4 * rng.standard_normal() * u[..., None]
        paint(canvas, (rng.random(3) + texture + gradient).astype(np.float32), coverage(shape, 2 / size))
    return np.clip(canvas + 0.02 * noise(rng, size, 0)[..., None] * rng.random(), 0, 1)


def mixed_batch(pictures: np.ndarray, step: int) -> torch.Tensor:
    """Half scenes (some of them enlarged), half heaps."""
    half = BATCH // 2
    scenes = to_unit(pictures[batch_indices(step, half, len(pictures))])
    rng = np.random.default_rng((step, 3))
    if rng.random() < 0.3:
        top, left = rng.integers(0, 32, 2)
        scenes = F.interpolate(scenes[:, :, top : top + 32, left : left + 32], scale_factor=2, mode="bicubic").clamp(
            -1, 1
        )
    heaps = np.stack([texture_heap(step * half + i) for i in range(half)])
    return torch.cat([scenes, torch.from_numpy(heaps).permute(0, 3, 1, 2).float() * 2 - 1])


def pretrain_autoencoder(folder: Path, pictures: np.ndarray, steps: int) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = new_autoencoder().to(device(), memory_format=torch.channels_last)
    training = Training(folder, {"vae": vae}, total=steps, peak=2e-3, ema=0.998, decay=1e-4)

    def loss_of(step: int) -> torch.Tensor:
        x = mixed_batch(pictures, step).to(device(), memory_format=torch.channels_last)
        with torch.autocast(x.device.type, torch.bfloat16):
            latents = vae.encode(x).latent_dist
            reconstruction = vae.decode(latents.sample(torch.Generator(x.device).manual_seed(step))).sample.float()
        error = reconstruction - x
        fine = (error - F.avg_pool2d(error, 3, 1, 1)).abs().mean()
        kl = latents.kl().float().sum() / len(x)
        return error.abs().mean() + 2 * error.square().mean() + fine + KL_WEIGHT * kl

    run_training(training, loss_of)
    vae.eval()
    return vae


@torch.no_grad()
def standardise(vae: AutoencoderKL, pictures: np.ndarray) -> None:
    """Set the scaling factor so that latents of scenes have unit standard deviation."""
    x = to_unit(pictures[:512]).to(device())
    vae.register_to_config(scaling_factor=float(1 / vae.encode(x).latent_dist.mean.std()))


@torch.no_grad()
def fix_deviations(vae: AutoencoderKL) -> None:
    """Make the encoder answer its mean, with a deviation of exp(LOG_VARIANCE / 2) everywhere.

    Trainers draw latents from the encoder's Gaussian, and the U-Net was pretrained on its means: what a channel of the
    latents has learned to leave open would be noise that fine-tuning meets for the first time.
    """
    assert vae.quant_conv is not None
    channels = vae.config.latent_channels
    vae.quant_conv.weight[channels:] = 0
    vae.quant_conv.bias[channels:] = LOG_VARIANCE


@torch.no_grad()
def psnr(vae: AutoencoderKL, pictures: np.ndarray) -> np.ndarray:
    """Peak signal-to-noise ratio in dB of the reconstruction of each uint8 picture."""
    x = to_unit(pictures).to(device())
    y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return (-10 * torch.log10(((x - y) / 2).square().mean((1, 2, 3)))).cpu().numpy()
