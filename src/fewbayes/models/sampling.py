"""Pictures from a family: one random generator per picture, so that no picture depends on the others of its batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from PIL import Image

from fewbayes.diffusion.guidance import EVERYWHERE, Interval
from fewbayes.errors import UserError
from fewbayes.models import Family


def sample_images(
    family: Family,
    prompts: Sequence[str],
    seeds: Sequence[int],
    *,
    sampler: str | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    guidance_interval: str | None = None,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 16,
    said: Callable[[int], object] = lambda done: None,
) -> list[Image.Image]:
    """One picture per prompt and seed, in order.

    seeds: one per prompt, as in `torch.Generator().manual_seed(seed)`, so plain diffusers draws the same picture from
    the same seed. A picture is the same alone and in any batch, to float rounding.
    sampler: None for the usual one of the model's family; resolution: side in pixels, None for the model's own.
    said: told after each batch how many are drawn.
    guidance: 1 or less is none; guidance_interval: LOW:HIGH, the noise-to-signal ratios that are guided, None for all
    (`diffusion.guidance`). The text encoder, if it needs gradients, gets none from here.
    """
    if len(prompts) != len(seeds):
        raise UserError(f"{len(prompts)} prompts and {len(seeds)} seeds; give one seed for each prompt")
    sampler = sampler or family.card.usual_sampler
    family.card.check_drawn(sampler, steps, resolution)
    interval = Interval.read(guidance_interval)
    pictures: list[Image.Image] = []
    with torch.no_grad():
        different = list(dict.fromkeys(prompts))
        encoded, negative = family.encode_prompts(different), family.encode_negative(negative_prompt)
        for start in range(0, len(prompts), batch_size):
            rows = [different.index(prompt) for prompt in prompts[start : start + batch_size]]
            latents = family.draw_latents(
                encoded.rows(rows),
                negative.rows([0] * len(rows)),
                [torch.Generator().manual_seed(seed) for seed in seeds[start : start + batch_size]],
                sampler=sampler,
                steps=steps,
                guidance=guidance,
                resolution=resolution,
                **({} if interval == EVERYWHERE else {"interval": interval}),
            )
            pictures += [Image.fromarray(picture) for picture in family.decode_latents(latents)]
            said(len(pictures))
    return pictures
