"""The sharp autoencoder: 64x64 RGB to 16x16x16 latents, continued from the eight-channel one, whose blocks it keeps.

Latents are means with a little noise of one fixed size, never a learned deviation: no channel can be left open.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import nn

from autoencoder import mixed_batch, new_autoencoder
from muon import Muon
from training import Training, device, run_training

CHANNELS = 16
NOISE = 0.05  # standard deviation of what is added to latents while training; they themselves have about 1
ADAM, MUON = 2500, 800  # steps
SHRINK = 1e-4  # weight of half the mean square latent, which keeps them there


@torch.no_grad()
def widened(narrow: AutoencoderKL) -> AutoencoderKL:
    """`narrow` with CHANNELS latent channels: the old ones as they were, the new ones nearly unused."""
    vae, old = new_autoencoder(CHANNELS), narrow.config.latent_channels
    torch.manual_seed(2)
    for ours, theirs in zip(vae.parameters(), narrow.parameters(), strict=True):
        if ours.shape == theirs.shape:
            ours.copy_(theirs)
    mixing, out, back = narrow.quant_conv.weight[:old, :, 0, 0], narrow.encoder.conv_out, narrow.post_quant_conv
    for part in (vae.quant_conv, vae.post_quant_conv):
        nn.init.dirac_(part.weight)
        nn.init.zeros_(part.bias)
    vae.encoder.conv_out.weight[:old] = torch.einsum("ij,jchw->ichw", mixing, out.weight)
    vae.encoder.conv_out.bias[:old] = mixing @ out.bias + narrow.quant_conv.bias[:old]
    vae.decoder.conv_in.weight[:, :old] = torch.einsum(
        "ojhw,ji->oihw", narrow.decoder.conv_in.weight, back.weight[:, :, 0, 0]
    )
    vae.decoder.conv_in.weight[:, old:] *= 0.3
    vae.decoder.conv_in.bias.copy_(
        narrow.decoder.conv_in.bias + torch.einsum("ojhw,j->o", narrow.decoder.conv_in.weight, back.bias)
    )
    return vae


def pretrain_sharp_autoencoder(folder: Path, narrow: AutoencoderKL, pictures: np.ndarray) -> AutoencoderKL:
    """By Adam, then by Muon, which alone would have been quicker."""
    vae = widened(narrow).to(device(), memory_format=torch.channels_last)
    adam = Training(folder / "adam", {"vae": vae}, total=ADAM, peak=1.5e-3, ema=0.998, decay=1e-4)
    run_training(adam, lambda step: _loss(vae, pictures, step))
    muon = Training(folder / "muon", {"vae": vae}, total=MUON, peak=1.5e-2, ema=0.98, warm=20, optimizer=Muon)
    run_training(muon, lambda step: _loss(vae, pictures, ADAM + step))
    return vae.eval()


def _loss(vae: AutoencoderKL, pictures: np.ndarray, step: int) -> torch.Tensor:
    x = mixed_batch(pictures, step).to(device(), memory_format=torch.channels_last)
    random = torch.Generator(x.device).manual_seed(step)
    with torch.autocast(x.device.type, torch.bfloat16):
        latents = vae.encode(x).latent_dist.mean.float()
        noisy = latents + NOISE * torch.randn(latents.shape, generator=random, device=x.device)
        error = vae.decode(noisy).sample.float() - x
    fine = (error - F.avg_pool2d(error, 3, 1, 1)).abs().mean()
    return error.abs().mean() + 5 * error.square().mean() + fine + SHRINK / 2 * latents.square().mean()
