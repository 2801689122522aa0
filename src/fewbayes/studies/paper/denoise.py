"""Denoising by hand, from any x_t: in one step, or in the few deterministic steps of a picture that is nearly clean."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from fewbayes.diffusion.conditioning import Conditioning
from fewbayes.diffusion.guidance import guided
from fewbayes.models import Family
from fewbayes.stage.probes import Probed
from fewbayes.studies.trajectory import pixels


class Guided:
    """A family whose answers are the guided ones: whatever asks a model can ask it what a sampler goes by.

    The rest is the family's own. A mix of two answers to one x_t is that of the x0_hat which they stand for.
    """

    def __init__(self, family: Any, guidance: float):
        self._family, self._guidance = family, guidance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._family, name)

    def predict(self, xt: Tensor, t: Tensor, cond: Conditioning) -> Tensor:
        none = self._family.encode_negative("").rows([0] * len(xt))
        return guided(self._family.predict(xt, t, cond), self._family.predict(xt, t, none), self._guidance)


@torch.no_grad()
def one_step(family: Probed, xt: Tensor, t: float, prompt: str) -> Tensor:
    """x0_hat of latents (batch, channels, height, width) at a time of the process, by the answer to the prompt.

    xt: on the variance-preserving path, x_t / sqrt(a^2 + b^2), on which the paper's process lies.
    """
    ts = family.process.times([t] * len(xt)).to(family.device)
    xt = xt.to(family.device) * family.process.scale(ts, xt.dtype).view(-1, 1, 1, 1)
    answer = family.predict(xt, ts, family.encode_prompts([prompt]).rows([0] * len(xt)))
    return family.process.x0(answer, xt, ts)


def ddim(family: Probed, xt: Tensor, times: Sequence[float], prompt: str) -> Tensor:
    """Clean latents by DDIM steps at falling times, the first of which is that of `xt`, given as in `one_step`."""
    xt = xt.to(family.device)
    for now, then in pairwise(times):
        x0 = one_step(family, xt, now, prompt)
        left, right = (family.process.times([t] * len(xt)).to(family.device) for t in (now, then))
        scales = [family.process.scale(ts, xt.dtype).view(-1, 1, 1, 1) for ts in (left, right)]
        xt = family.process.noised(x0, family.process.eps_of_x0(x0, xt * scales[0], left), right) / scales[1]
    return one_step(family, xt, times[-1], prompt)


def encoded(family: Family, pictures: Sequence[Image.Image]) -> Tensor:
    """Latents of photographs that are of the model's size already; the means, on the CPU."""
    return family.encode_images(np.stack(pixels(pictures)))[0].float().cpu()


SIDE = 256


def keep(folder: Path, name: str, picture: np.ndarray) -> str:
    """Write a picture of the figure, no larger than it is shown; its path in the figure's folder."""
    image = Image.fromarray(picture)
    if max(image.size) > SIDE:
        image = image.resize((SIDE, SIDE), Image.Resampling.BOX)
    (folder / "pictures").mkdir(parents=True, exist_ok=True)
    image.save(folder / "pictures" / f"{name}.png")
    return f"pictures/{name}.png"
