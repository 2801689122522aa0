"""`fewbayes sample`: pictures of whatever can be opened as a model, in a folder that says how each was made.

One call draws a grid: each prompt by each checkpoint, strength of the adapter and guidance, all from the same seeds.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from fewbayes.data.images import numbered
from fewbayes.diffusion.guidance import Interval
from fewbayes.errors import UserError
from fewbayes.fields import did_you_mean
from fewbayes.files.atomic import atomic_folder, new_folder
from fewbayes.models.adapters import lora_layers, scaled
from fewbayes.models.sampling import sample_images
from fewbayes.progress import doing, progress
from fewbayes.runs.layout import BEST, LISTING, checkpoint_folders
from fewbayes.runs.opening import card_of, find, open_model
from fewbayes.settings.agreement import worded

log = logging.getLogger("fewbayes")


def write_samples(
    source: str,
    prompts: Sequence[str],
    output_dir: str | Path,
    *,
    num_images: int = 4,
    seed: int = 0,
    sampler: str | None = None,
    steps: int = 25,
    guidance: float | Sequence[float] = 7.5,
    guidance_interval: str | None = None,
    strengths: Sequence[float] = (),
    checkpoints: Sequence[str] = (),
    negative_prompt: str = "",
    resolution: int | None = None,
    batch_size: int = 4,
    weights: str | None = None,
    base: str | None = None,
    lora_alpha: float | None = None,
    precision: str = "fp32",
) -> Path:
    """`num_images` pictures of each prompt, image i from seed + i; returns the folder, which must be new or empty.

    source, weights, base, lora_alpha, precision: as in `open_model`; sampler: None for the usual one of the family.
    guidance: one or several; guidance_interval: as in `sample_images`. strengths: of a LoRA, as multiples of its own;
    none is that. checkpoints: of the run `source`, see `parts_of`; none is the source itself. The folder holds 00.png,
    01.png, ... (with as many digits as the last one has) and samples.json, which says how each was made.
    """
    output = Path(output_dir)
    new_folder(output)
    if not -(2**63) <= seed < 2**64 - num_images:
        raise UserError(f"seed is {seed}; it must be from 0 to 2**64 - 1 with the number of images added")
    if not prompts:
        raise UserError("there is no prompt; give --prompt or --prompt_file")
    Interval.read(guidance_interval)  # refused before a model is loaded
    sources = parts_of(source, checkpoints) if checkpoints else [source]
    guidances = [guidance] if isinstance(guidance, int | float) else list(guidance)
    for each in sources:
        card = card_of(each, base)
        card.check_drawn(sampler or card.usual_sampler, steps, resolution)
        _check_strengths(each, base, strengths)
    settings = {"num_images": num_images, "seed": seed, "steps": steps, "negative_prompt": negative_prompt}
    settings |= {"guidance_interval": guidance_interval} if guidance_interval else {}
    settings |= {"resolution": resolution, "batch_size": batch_size}
    count = len(sources) * (len(strengths) or 1) * len(guidances) * len(prompts) * num_images
    log.info("%d pictures of %d steps each", count, steps)
    made_of = ({"base": base} if base else {}) | ({} if lora_alpha is None else {"lora_alpha": lora_alpha})
    made_of |= {"base_precision": precision} if precision != "fp32" else {}
    listening = log.isEnabledFor(logging.INFO)
    with atomic_folder(output, new=True) as folder, progress(count, 0, listening, "picture") as advance:
        rows: list[dict[str, Any]] = []
        for each in sources:
            with doing(f"Loading {each}"):
                family, rare_token = open_model(each, weights, base=base, lora_alpha=lora_alpha, precision=precision)
                family.to("cuda" if torch.cuda.is_available() else "cpu")
            words = [worded(prompt, rare_token) for prompt in prompts]
            usual = sampler or card_of(each, base).usual_sampler

            def said(drawn: int, before: list[Any] = rows) -> None:
                advance(len(before) + drawn, None)

            for row, picture in _drawn(
                family, words, guidances, strengths, {**settings, "sampler": usual, "said": said}
            ):
                file = numbered(len(rows), count)
                picture.save(folder / file)
                rows.append({"file": file, "source": each, **made_of, **row})
        (folder / LISTING).write_text(json.dumps(rows, indent=2) + "\n")
    return output


def _drawn(
    family: Any, prompts: Sequence[str], guidances: Sequence[float], strengths: Sequence[float], how: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Image.Image]]:
    """Every picture of one model with what samples.json says of it."""
    words = [prompt for prompt in prompts for _ in range(how["num_images"])]
    seeds = [how["seed"] + i for _ in prompts for i in range(how["num_images"])]
    told = {name: how[name] for name in ("sampler", "steps", "negative_prompt", "guidance_interval") if name in how}
    layers = lora_layers(family.denoiser, *family.text_encoders.values()) if strengths else []
    for strength in strengths or (None,):
        for guidance in guidances:
            with scaled(layers, 1.0 if strength is None else strength):
                pictures = sample_images(
                    family, words, seeds, **told, guidance=guidance, resolution=how["resolution"],
                    batch_size=how["batch_size"], said=how["said"],
                )  # fmt: skip
            more = {} if strength is None else {"strength": strength}
            for prompt, seed, picture in zip(words, seeds, pictures, strict=True):
                yield {"prompt": prompt, "seed": seed, **told, "guidance": guidance, **more}, picture


def parts_of(source: str, names: Sequence[str]) -> list[str]:
    """Checkpoints of a run by step, `best`, or `all` for every checkpoint in order; UserError for what is not there."""
    run = Path(source)
    steps = checkpoint_folders(run)
    known = [*map(str, steps), *([BEST] if (run / BEST).is_dir() else [])]
    if not known:
        raise UserError(f"{source} has neither checkpoints nor best/; leave --checkpoints out, or give a run that has")
    wanted = [name for given in names for name in (map(str, steps) if given == "all" else [given])]
    if missing := [name for name in wanted if name not in known]:
        raise UserError(
            f"checkpoints: {source} has no {missing[0]}{did_you_mean(missing[0], known)}; there are {', '.join(known)}"
        )
    return [str(run / (name if name == BEST else f"checkpoint-{name}")) for name in dict.fromkeys(wanted)]


def read_prompts(file: Path) -> list[str]:
    """A prompt a line; empty lines and those that begin with # are left out. UserError where there are none."""
    try:
        lines = [line.strip() for line in file.read_text("utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"prompt_file: {file} cannot be read as text: {error}") from error
    prompts = [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"prompt_file: {file} has no prompts; write one a line")
    return prompts


def _check_strengths(source: str, base: str | None, strengths: Sequence[float]) -> None:
    if not strengths:
        return
    found = find(source)
    method = found.config.method if found else None
    if method != "lora" and not (found is None and base):
        what = f"was trained by method {method}" if found else "is a whole model"
        raise UserError(f"strength is for a LoRA, and {source} {what}; leave --strength out")
