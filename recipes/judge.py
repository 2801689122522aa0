"""How good is the embedded pipeline? Are prompts followed, are photographs held?"""

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from PIL import Image, ImageOps

from autoencoder import psnr
from fewbayes.models import Family
from fewbayes.models.sampling import sample_images
from fewbayes.world.recogniser import VOCABULARY, Recogniser
from fewbayes.world.scenes import COLOURS, SUBJECTS, Scene, article, render, subject_photograph
from fewbayes.world.settings import SETTINGS
from training import HELD_OUT


def ask(count: int, seed: int = 0) -> list[tuple[dict[str, str], str]]:
    """Prompts that name object, colour and setting, with the answers that a recogniser should give."""
    rng = np.random.default_rng((seed, 11))
    asked = []
    for _ in range(count):
        truth = {key: str(rng.choice(known)) for key, known in VOCABULARY.items()}
        words = article(f"{truth['colour']} {truth['object']}")
        asked.append((truth, f"a photo of {words} {SETTINGS[truth['setting']].phrase}"))
    return asked


def sample(family: Family, prompts: list[str], guidance: float, steps: int = 25) -> list[np.ndarray]:
    """Float RGB in [0, 1], by the model's usual sampler."""
    seeds = list(range(len(prompts)))
    made = sample_images(family, prompts, seeds, steps=steps, guidance=guidance, batch_size=20)
    return [np.asarray(picture, np.float32) / 255 for picture in made]


def found(recogniser: Recogniser, pictures: np.ndarray, truths: list[dict[str, str]]) -> dict[str, float]:
    """Share of float RGB pictures in which the recogniser finds what is named."""
    seen = recogniser.cpu().recognise(torch.from_numpy(pictures).permute(0, 3, 1, 2).float() * 2 - 1)
    return {
        key: float(np.mean([getattr(s, key) == truth[key] for s, truth in zip(seen, truths, strict=True)]))
        for key in VOCABULARY
    }


def judge_drawn(family: Family, recogniser: Recogniser, count: int = 200) -> dict[str, dict[str, float]]:
    """The same of scenes drawn as the prompts ask, as they are and through the autoencoder: no model can have more."""
    truths = [truth for truth, _ in ask(count)]
    drawn = np.stack([render(Scene(pattern="plain", **truth), HELD_OUT + i) for i, truth in enumerate(truths)])
    pixels = (drawn * 255).round().astype(np.uint8)
    coded = [family.decode_latents(family.encode_images(pixels[i : i + 50])[0]) for i in range(0, count, 50)]
    return {
        "as they are": found(recogniser, drawn, truths),
        "through the autoencoder": found(recogniser, np.concatenate(coded) / np.float32(255), truths),
    }


def judge_pipeline(family: Family, recogniser: Recogniser, count: int = 200) -> dict:
    """Share of pictures in which the recogniser finds what the prompt named, at three guidance scales."""
    asked, result = ask(count), {}
    for guidance in (3.0, 5.0, 7.5):
        pictures = np.stack(sample(family, [prompt for _, prompt in asked], guidance))
        result[str(guidance)] = found(recogniser, pictures, [truth for truth, _ in asked])
    return result


def photograph_psnr(vae: AutoencoderKL, folder: Path) -> float:
    """Mean PSNR in dB at 64 px over all photographs below the folder, centre-cropped."""
    files = sorted(folder.rglob("*.jpg"))
    pictures = [
        np.asarray(ImageOps.fit(Image.open(f).convert("RGB"), (64, 64), Image.Resampling.LANCZOS)) for f in files
    ]
    return float(np.mean(psnr(vae, np.stack(pictures))))


def tile(pictures: list[np.ndarray], columns: int, zoom: int) -> Image.Image:
    """Float RGB pictures side by side, enlarged without smoothing."""
    size, rows = pictures[0].shape[0], len(pictures) // columns
    sheet = np.stack(pictures[: rows * columns]).reshape(rows, columns, size, size, 3).transpose(0, 2, 1, 3, 4)
    image = Image.fromarray(
        np.round(np.clip(sheet, 0, 1) * 255).astype(np.uint8).reshape(rows * size, columns * size, 3)
    )
    return image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST)


def write_sample_grid(family: Family, path: Path, zoom: int = 2) -> None:
    """Eight by four samples at guidance 5: object by object, colour and setting going round."""
    objects, colours, settings = VOCABULARY["object"], list(COLOURS), list(SETTINGS)
    things = [article(f"{colours[i % 10]} {objects[i % 16]}") for i in range(32)]
    places = [SETTINGS[settings[(5 * i + i // 16) % 16]].phrase for i in range(32)]
    prompts = [f"a photo of {thing} {place}" for thing, place in zip(things, places, strict=True)]
    tile(sample(family, prompts, 5.0, 50), 8, zoom).save(path)


def write_subject_grid(path: Path, zoom: int = 2) -> None:
    pictures = [subject_photograph(name, i)[0] for name in SUBJECTS for i in range(4)]
    tile(pictures, 8, zoom).save(path)
