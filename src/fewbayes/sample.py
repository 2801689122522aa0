"""`fewbayes sample`: pictures of whatever can be opened as a model, in a folder that says how each was made."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from fewbayes.data.images import numbered
from fewbayes.errors import UserError
from fewbayes.files.atomic import atomic_folder, new_folder
from fewbayes.models.sampling import sample_images
from fewbayes.runs.opening import card_of, open_model


def write_samples(
    source: str,
    prompts: Sequence[str],
    output_dir: str | Path,
    *,
    num_images: int = 4,
    seed: int = 0,
    sampler: str | None = None,
    steps: int = 25,
    guidance: float = 7.5,
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 4,
    weights: str | None = None,
    base: str | None = None,
    lora_alpha: float | None = None,
) -> Path:
    """`num_images` pictures of each prompt, image i from seed + i; returns the folder, which must be new or empty.

    source, weights, base, lora_alpha: as in `open_model`; sampler: None for the usual one of the model's family. The
    folder holds 00.png, 01.png, ... (with as many digits as the last one has) and samples.json, which says how each was
    made.
    """
    output = Path(output_dir)
    new_folder(output)
    if not -(2**63) <= seed < 2**64 - num_images:
        raise UserError(f"seed is {seed}; it must be from 0 to 2**64 - 1 with the number of images added")
    card = card_of(source, base)
    card.check_drawn(sampler or card.usual_sampler, steps, resolution)
    family, rare_token = open_model(source, weights, base=base, lora_alpha=lora_alpha)
    family.to("cuda" if torch.cuda.is_available() else "cpu")
    words = [prompt.replace("<v>", rare_token or "<v>") for prompt in prompts for _ in range(num_images)]
    seeds = [seed + i for _ in prompts for i in range(num_images)]
    how = {
        "sampler": sampler or card.usual_sampler,
        "steps": steps,
        "guidance": guidance,
        "negative_prompt": negative_prompt,
    }
    pictures = sample_images(family, words, seeds, **how, resolution=resolution, batch_size=batch_size)
    with atomic_folder(output, new=True) as folder:
        made_of = {"source": source} | ({"base": base} if base else {})
        made_of |= {} if lora_alpha is None else {"lora_alpha": lora_alpha}
        rows = []
        for i, picture in enumerate(pictures):
            file = numbered(i, len(pictures))
            picture.save(folder / file)
            rows.append({"file": file, **made_of, "prompt": words[i], "seed": seeds[i], **how})
        (folder / "samples.json").write_text(json.dumps(rows, indent=2) + "\n")
    return output
