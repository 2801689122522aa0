"""`fewbayes-clip`: a small CLIP of pictures and captions of our scenes, with good and bad pictures and words for them.

Contrastive on captions; beside that the antonym prompts of Clip-IQA are asked of every picture, and simple questions
(which object, colour, setting, pattern?) whose answering heads are dropped at the end.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL
from torch import Tensor, nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPTokenizer, CLIPVisionConfig

from degraded import DRAWN, NOISY, WORDS, DecodedPictures, degraded_series, severity
from fewbayes.world.evaluators import QUALITY_PROMPTS
from fewbayes.world.objects import OBJECTS
from fewbayes.world.scenes import COLOURS, PATTERNS, RARE_TOKEN, SURFACES, draw_scene
from fewbayes.world.settings import SETTINGS
from pipeline import kept_tokenizer
from training import Training, device, to_unit

MAX_TOKENS = 48
PARTS = {"clean": 48, "pixel": 14, "coarse": 10, "saturated": 8, "blurred": 10}
PARTS |= {"soft": 12, "white": 10, "clouds": 7, "unfinished": 5, "cast": 4}
BATCH = sum(PARTS.values())
HEAPS = {"clean": 12, "pixel": 6, "coarse": 4, "saturated": 3, "blurred": 4}
HEAPS |= {"soft": 8, "white": 5, "clouds": 3, "unfinished": 2, "cast": 1}
# (good, bad) prompts and the kinds of picture on which each pair has an answer
PAIRS = {
    QUALITY_PROMPTS: tuple(PARTS),
    ("good photo", "bad photo"): tuple(PARTS),
    ("Clean photo.", "Noisy photo."): ("clean", "soft", *NOISY),
    ("Sharp photo.", "Blurry photo."): ("clean", "blurred"),
}
QUESTIONS = {
    "object": list(OBJECTS),
    "colour": list(COLOURS),
    "setting": list(SETTINGS),
    "pattern": [*PATTERNS, *SURFACES],
}
HALF_SEEN = 0.75  # share of the steps in which the model sees a random half of the patches


@dataclass(frozen=True)
class Scenes:
    pictures: np.ndarray
    captions: list[str]
    answers: dict[str, Tensor]


def described(pictures: np.ndarray, first_seed: int = 0) -> Scenes:
    drawn = [draw_scene(first_seed + i) for i in range(len(pictures))]
    answers = {key: torch.tensor([known.index(getattr(s, key)) for s, _ in drawn]) for key, known in QUESTIONS.items()}
    return Scenes(pictures, [caption for _, caption in drawn], answers)


def new_tokenizer(folder: Path, captions: list[str]) -> CLIPTokenizer:
    quality = {word for words in WORDS.values() for word in words} | {"bad", "sharp", "photo", "image", ".", ","}
    tokenizer = kept_tokenizer(folder, [*captions, " ".join(sorted(quality))])
    tokenizer.model_max_length = MAX_TOKENS
    return tokenizer


def new_clip(tokenizer: CLIPTokenizer) -> CLIPModel:
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=MAX_TOKENS,
        projection_dim=128,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    vision = CLIPVisionConfig(
        hidden_size=160,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=4,
        image_size=64,
        patch_size=8,
        projection_dim=128,
    )
    return CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=128))


def random_half(patches: Tensor, random: torch.Generator) -> Tensor:
    """Half of the tokens (B, 1 + N, width) of each picture, its first token kept: twice the pictures in the time."""
    count = patches.shape[1] - 1
    chosen = torch.rand(len(patches), count, generator=random).argsort(1)[:, : count // 2] + 1
    chosen = F.pad(chosen, (1, 0)).to(patches.device)
    return patches.gather(1, chosen[..., None].expand(-1, -1, patches.shape[2]))


def seen(model: CLIPModel, pixels: Tensor, random: torch.Generator | None) -> Tensor:
    """Pooled vision output (B, width); of half the patches where `random` is given."""
    if random is None:
        return model.vision_model(pixels).pooler_output
    tower = model.vision_model
    hidden = tower.pre_layrnorm(random_half(tower.embeddings(pixels), random))
    return tower.post_layernorm(tower.encoder(inputs_embeds=hidden).last_hidden_state[:, 0])


def invented_word(rng: np.random.Generator) -> str:
    """The rare token, or letters that mean nothing: words the model has never met should say nothing."""
    if rng.random() < 0.3:
        return RARE_TOKEN
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), rng.integers(2, 8)))


def spoken(caption: str, kind: str, bad: float, rng: np.random.Generator) -> str:
    """The caption of a scene with words for the quality of the picture, now and then."""
    thing = caption.removeprefix("a photo of ")
    if rng.random() < 0.12:
        articles, rest = thing.split(" ", 1)
        thing = f"{articles} {invented_word(rng)} {rest}"
        caption = "a photo of " + thing if caption.startswith("a photo of") else thing
    word = str(rng.choice(WORDS[kind]))
    if bad > 0.4 and rng.random() < 0.6:
        words = str(rng.choice((f"bad {word}", word, "bad")))
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words} photo of {thing}"
    if bad < 0.05 and rng.random() < 0.35:
        return f"a {word} photo of {thing}"
    return caption


@dataclass(frozen=True)
class ClipBatch:
    pixels: Tensor
    captions: list[str]
    severity: Tensor
    answers: dict[str, Tensor]


def moved(x: Tensor, random: torch.Generator) -> Tensor:
    """Shifted by up to four pixels and mirrored, each picture its own way."""
    padded = F.pad(x, (4, 4, 4, 4), mode="reflect")
    shifts = torch.randint(0, 9, (len(x), 2), generator=random).tolist()
    x = torch.stack([p[:, i : i + x.shape[2], j : j + x.shape[3]] for p, (i, j) in zip(padded, shifts, strict=True)])
    return torch.where(torch.rand(len(x), 1, 1, 1, generator=random) < 0.5, x.flip(3), x)


def kinds_of(parts: dict[str, int]) -> np.ndarray:
    return np.repeat(list(parts), list(parts.values()))


def shown_in(
    parts: dict[str, int], pictures: np.ndarray, decoded: DecodedPictures, rng: np.random.Generator, step: int
) -> tuple[Tensor, Tensor, np.ndarray]:
    """So many pictures of each kind: in [-1, 1], how bad each is, and which it was."""
    random = torch.Generator().manual_seed(step)
    shown, bad, chosen = [], [], []
    for kind, count in parts.items():
        if kind in decoded.rows:
            rows = rng.choice(decoded.rows[kind], count)
            shown.append(moved(to_unit(decoded.pictures[rows]), random))
            bad.append(torch.from_numpy(decoded.severity[rows]))
            chosen.append(decoded.scene[rows])
        else:
            chosen.append(rng.integers(0, len(pictures), count))
            x = moved(to_unit(pictures[chosen[-1]]), random)
            shown.append(DRAWN[kind](x, random) if kind in DRAWN else x)
            bad.append(severity(shown[-1], x))
    return torch.cat(shown), torch.cat(bad).float(), np.concatenate(chosen)


def batch_of(scenes: Scenes, decoded: DecodedPictures, step: int) -> ClipBatch:
    """PARTS of each kind; a function of the step alone."""
    rng = np.random.default_rng((step, 41))
    pixels, bad, who = shown_in(PARTS, scenes.pictures, decoded, rng, step)
    said = zip(who, kinds_of(PARTS), bad, strict=True)
    captions = [spoken(scenes.captions[i], str(kind), float(worse), rng) for i, kind, worse in said]
    return ClipBatch(pixels, captions, bad, {key: value[who] for key, value in scenes.answers.items()})


def words_of(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> Tensor:
    tokens = tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(model.device)
    return F.normalize(model.get_text_features(**tokens).pooler_output.float(), dim=-1)


def quality_loss(difference: Tensor, bad: Tensor, kind: np.ndarray) -> Tensor:
    """Cross-entropy of P(good) = sigmoid(difference) and one less the severity, for each pair of prompts."""
    losses = []
    for logits, kinds in zip(difference.T, PAIRS.values(), strict=True):
        asked = torch.from_numpy(np.isin(kind, kinds))
        target = (1 - bad[asked]).clamp(0.02, 0.98).to(logits.device)
        losses.append(F.binary_cross_entropy_with_logits(logits[asked.to(logits.device)], target))
    return torch.stack(losses).mean()


def contrast_loss(logits: Tensor) -> Tensor:
    """Each picture finds its caption among those of the batch, and each caption its picture."""
    same = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, same) + F.cross_entropy(logits.T, same)) / 2


def antonyms(prompts: Tensor) -> Tensor:
    """Good less bad for each of PAIRS, (width, pairs), from the prompts one after the other."""
    return (prompts[::2] - prompts[1::2]).T


def pretrain_clip(
    folder: Path, scenes: Scenes, decoded: DecodedPictures, held_out: Scenes, steps: int
) -> tuple[CLIPModel, CLIPTokenizer]:
    torch.manual_seed(4)
    tokenizer = new_tokenizer(folder / "tokenizer", scenes.captions)
    model = new_clip(tokenizer).to(device())
    heads = nn.ModuleDict({key: nn.Linear(160, len(known)) for key, known in QUESTIONS.items()}).to(device())
    training = Training(folder, {"clip": model, "heads": heads}, total=steps, peak=1e-3, ema=0.998, decay=0.05)
    prompts = [prompt for pair in PAIRS for prompt in pair]
    for step in training.steps():
        batch = batch_of(scenes, decoded, step)
        random = torch.Generator().manual_seed(step + 1) if step < HALF_SEEN * steps else None
        with torch.autocast(device().type, torch.bfloat16):
            pooled = seen(model, batch.pixels.to(device()), random)
            pictures = F.normalize(model.visual_projection(pooled).float(), dim=-1)
            texts = words_of(model, tokenizer, batch.captions + prompts)
        scale = model.logit_scale.exp()
        contrast = contrast_loss(scale * pictures @ texts[:BATCH].T)
        quality = quality_loss(scale * pictures @ antonyms(texts[BATCH:]), batch.severity, kinds_of(PARTS))
        answers = [F.cross_entropy(heads[key](pooled.float()), batch.answers[key].to(device())) for key in QUESTIONS]
        questions = torch.stack(answers).sum()
        training.descend(
            contrast + quality + 0.3 * questions,
            contrast=contrast.item(),
            quality=quality.item(),
            questions=questions.item(),
            scale=scale.item(),
        )
        with torch.no_grad():
            model.logit_scale.clamp_(max=np.log(100))
        if (step + 1) % 500 == 0:
            model.eval()
            found = retrieval(model, tokenizer, held_out.pictures[:1000], held_out.captions[:1000])
            training.curve.append({"step": step + 1, "retrieval": found})
            tqdm.write(f"held out, not averaged: one caption of 100 found by {100 * found:.1f} %")
            model.train()
    training.use_average()
    return model.eval(), tokenizer


def widen_quality(
    folder: Path,
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    scenes: Scenes,
    decoded: DecodedPictures,
    heaps: np.ndarray,
    decoded_heaps: DecodedPictures,
    steps: int,
) -> CLIPModel:
    """A short second stage: quality is also asked of heaps of textured shapes, lest every photograph look degraded."""
    model.train()
    training = Training(folder, {"clip": model}, total=steps, peak=3e-4, ema=0.99, decay=0.05)
    prompts = [prompt for pair in PAIRS for prompt in pair]
    kind = np.concatenate([kinds_of(PARTS), kinds_of(HEAPS)])
    for step in training.steps(save_every=100):
        batch = batch_of(scenes, decoded, 1_000_000 + step)
        shapes, bad, _ = shown_in(HEAPS, heaps, decoded_heaps, np.random.default_rng((step, 43)), 2_000_000 + step)
        with torch.autocast(device().type, torch.bfloat16):
            pooled = seen(model, torch.cat([batch.pixels, shapes]).to(device()), None)
            pictures = F.normalize(model.visual_projection(pooled).float(), dim=-1)
            texts = words_of(model, tokenizer, batch.captions + prompts)
        scale = model.logit_scale.exp()
        contrast = contrast_loss(scale * pictures[:BATCH] @ texts[:BATCH].T)
        difference = scale * pictures @ antonyms(texts[BATCH:])
        quality = quality_loss(difference, torch.cat([batch.severity, bad]), kind)
        training.descend(contrast + 2 * quality, contrast=contrast.item(), quality=quality.item())
    training.use_average()
    return model.eval()


def chunks(pictures: np.ndarray, size: int = 250) -> Iterator[Tensor]:
    for start in range(0, len(pictures), size):
        yield to_unit(pictures[start : start + size])


@torch.no_grad()
def retrieval(
    model: CLIPModel, tokenizer: CLIPTokenizer, pictures: np.ndarray, captions: list[str], among: int = 100
) -> float:
    """Share of pictures nearest to their own caption among each `among`, in order."""
    seen_ = torch.cat([model.get_image_features(x.to(model.device)).pooler_output for x in chunks(pictures)])
    said = torch.cat([words_of(model, tokenizer, captions[i : i + among]) for i in range(0, len(captions), among)])
    logits = F.normalize(seen_, dim=-1).unflatten(0, (-1, among)) @ said.unflatten(0, (-1, among)).transpose(1, 2)
    return float((logits.argmax(2) == torch.arange(among, device=logits.device)).float().mean())


@torch.no_grad()
def goodness(model: CLIPModel, tokenizer: CLIPTokenizer, x: Tensor) -> Tensor:
    """P(good) of pictures in [-1, 1]: the softmax over the antonym prompts at the model's own scale (Clip-IQA)."""
    good, bad = words_of(model, tokenizer, list(QUALITY_PROMPTS))
    pictures = F.normalize(model.get_image_features(x.to(model.device)).pooler_output, dim=-1)
    return torch.sigmoid(model.logit_scale.exp() * pictures @ (good - bad)).cpu()


def quality_curves(model: CLIPModel, tokenizer: CLIPTokenizer, vae: AutoencoderKL, pictures: np.ndarray) -> dict:
    """P(good) at rising noise, by kind: rows of level, mean, and share of pictures scored below the level before."""
    x = to_unit(pictures)
    return {kind: _rows(model, tokenizer, made) for kind, made in degraded_series(vae, x).items()}


def _rows(model: CLIPModel, tokenizer: CLIPTokenizer, series: dict[float, Tensor]) -> list[dict[str, float]]:
    rows, before = [], None
    for level, x in series.items():
        now = goodness(model, tokenizer, x)
        rows.append({"level": level, "good": float(now.mean())})
        if before is not None:
            rows[-1]["below_the_level_before"] = float((now < before).float().mean())
        before = now
    return rows
