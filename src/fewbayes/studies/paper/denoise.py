"""Denoising by hand, from any x_t: in one step, or in the few deterministic steps of a picture that is nearly clean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewbayes.diffusion.process import eps_from_x0, to_x0
from fewbayes.models import Family


@torch.no_grad()
def one_step(family: Family, xt: Tensor, t: int, prompt: str) -> Tensor:
    """x0_hat of latents (batch, channels, height, width), without guidance."""
    xt = xt.to(family.device)
    ts = torch.full((len(xt),), t, device=family.device)
    answer = family.predict(xt, ts, family.encode_prompts([prompt])[[0] * len(xt)])
    return to_x0(family.prediction_type, answer, xt, ts, family.alpha_bar)


def ddim(family: Family, xt: Tensor, timesteps: Sequence[int], prompt: str) -> Tensor:
    """Clean latents by DDIM steps at falling timesteps, the first of which is that of `xt`."""
    xt = xt.to(family.device)
    for now, then in pairwise(timesteps):
        x0 = one_step(family, xt, now, prompt)
        ts = torch.full((len(xt),), now, device=family.device)
        eps = eps_from_x0(xt, x0, ts, family.alpha_bar)
        xt = family.alpha_bar[then].sqrt() * x0 + (1 - family.alpha_bar[then]).sqrt() * eps
    return one_step(family, xt, timesteps[-1], prompt)


def encoded(family: Family, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents of photographs that are of the model's size already; the means, on the CPU."""
    return family.encode_images(np.stack([np.asarray(picture) for picture in pictures]))[0].float().cpu()


SIDE = 256


def keep(folder: Path, name: str, picture: np.ndarray) -> str:
    """Write a picture of the figure, no larger than it is shown; its path in the figure's folder."""
    image = Image.fromarray(picture)
    if max(image.size) > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    image.save(folder / "pictures" / f"{name}.png")
    return f"pictures/{name}.png"
