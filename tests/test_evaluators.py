"""The evaluators that ship with the embedded world: plain transformers models of a known, modest worth."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from fewbayes.models import load_family
from fewbayes.world.evaluators import (
    CLIP_FOLDER,
    CLIP_NAME,
    DINO_FOLDER,
    DINO_NAME,
    EVALUATORS,
    QUALITY_PROMPTS,
    load_clip,
    load_dino,
)
from fewbayes.world.objects import OBJECTS
from fewbayes.world.scenes import COLOURS, SUBJECT_PATTERNS, Scene, draw_scene, render
from fewbayes.world.settings import SETTINGS

HELD_OUT = 10_000_000


@pytest.fixture(scope="module")
def clip():
    return load_clip()


@pytest.fixture(scope="module")
def dino():
    return load_dino()


@pytest.fixture(scope="module")
def scenes():
    """Two hundred drawn pictures in [-1, 1] that nothing was trained on, and their captions."""
    drawn = [(render(draw_scene(seed)[0], seed), draw_scene(seed)[1]) for seed in range(HELD_OUT, HELD_OUT + 200)]
    pictures, captions = zip(*drawn, strict=True)
    return torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1, list(captions)


@torch.no_grad()
def said(clip, texts):
    model, tokenizer, _ = clip
    tokens = tokenizer(texts, padding=True, return_tensors="pt")
    return F.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)


@torch.no_grad()
def seen(clip, pictures):
    return F.normalize(clip[0].get_image_features(pictures).pooler_output, dim=-1)


def goodness(clip, pictures):
    good, bad = said(clip, list(QUALITY_PROMPTS))
    return torch.sigmoid(clip[0].logit_scale.exp() * seen(clip, pictures) @ (good - bad)).detach()


def test_plain_transformers_loads_both_in_float32():
    """In a process that never imports fewbayes, with nothing missing and nothing left over."""
    program = f"""
import sys, torch
from transformers import AutoTokenizer, CLIPModel, ViTModel
for kind, folder in ((CLIPModel, {str(CLIP_FOLDER)!r}), (ViTModel, {str(DINO_FOLDER)!r})):
    model, said = kind.from_pretrained(folder, local_files_only=True, output_loading_info=True)
    assert not any(said.values()), said
    assert {{p.dtype for p in model.parameters()}} == {{torch.float32}}
tokens = AutoTokenizer.from_pretrained({str(CLIP_FOLDER)!r}, local_files_only=True)("Good photo.").input_ids
assert len(tokens) == 5, tokens
assert not any(name.startswith("fewbayes") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def test_both_are_small_and_hold_no_pickle():
    files = [path for folder in EVALUATORS.values() for path in folder.rglob("*")]
    assert sum(path.stat().st_size for path in files) < 15e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".md"}


@pytest.mark.parametrize("name", EVALUATORS)
def test_nobody_takes_an_evaluator_for_another_model(name):
    folder = EVALUATORS[name]
    config = json.loads((folder / "config.json").read_text())
    card = (folder / "README.md").read_text()
    assert config["evaluator_name"] == name
    assert name.startswith("fewbayes-")
    assert not any(maker in json.dumps(config).lower() for maker in ("openai", "facebook", "meta"))
    assert card.startswith(f"# {name}\n")
    assert "compare with no published table" in card


def test_the_names_are_those_of_the_folders():
    assert {CLIP_NAME: CLIP_FOLDER, DINO_NAME: DINO_FOLDER} == EVALUATORS


def test_a_picture_of_their_own_size_reaches_them_unchanged(clip, dino, scenes):
    array = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    wanted = torch.from_numpy(array).permute(2, 0, 1) / 127.5 - 1
    for processor in (clip[2], dino[1]):
        given = processor(images=[Image.fromarray(array)], return_tensors="pt")["pixel_values"]
        assert torch.allclose(given[0], wanted, atol=1e-5)
        wide = processor(images=[Image.new("RGB", (130, 90))], return_tensors="pt")["pixel_values"]
        assert wide.shape == (1, 3, 64, 64)


def test_clip_finds_the_caption_of_a_picture_among_a_hundred(clip, scenes):
    pictures, captions = scenes
    logits = seen(clip, pictures).unflatten(0, (2, 100)) @ said(clip, captions).unflatten(0, (2, 100)).mT
    assert (logits.argmax(2) == torch.arange(100)).float().mean() > 0.9


def test_clip_knows_every_word_of_our_captions_and_of_quality(clip, scenes):
    tokenizer = clip[1]
    for caption in [*scenes[1], "a bad noisy photo of a mug", "a mottled photo of a blue car"]:
        assert len(tokenizer.tokenize(caption)) == len(caption.split()), caption
    assert tokenizer.unk_token_id not in tokenizer("a zebra wearing sunglasses").input_ids[1:-1]


def test_a_word_without_a_meaning_says_less_than_any_colour(clip):
    plain, rare, letters, *coloured = said(
        clip,
        [f"a photo of a {word} in the snow" for word in ("mug", "<v> mug", "qwe mug", *(f"{c} mug" for c in COLOURS))],
    )
    assert min(plain @ rare, plain @ letters) > max(plain @ other for other in coloured)


def test_the_quality_score_falls_as_pixels_grow_noisy(clip, scenes):
    pictures = scenes[0][:60]
    eps = torch.randn(pictures.shape, generator=torch.Generator().manual_seed(0))
    scores = [goodness(clip, (pictures + 2 * level * eps).clamp(-1, 1)).mean() for level in (0, 0.05, 0.1, 0.2, 0.4)]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > 0.8
    assert scores[-1] < 0.3


@torch.no_grad()
def test_the_quality_score_falls_as_latents_grow_noisy_and_forgives_softness(clip, scenes):
    """What the corruption stage shows is decoded latent noise; all generated pictures are soft."""
    pictures, vae = scenes[0][:16], load_family("tiny").vae
    latents = vae.encode(pictures).latent_dist.mean * vae.config.scaling_factor
    eps = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0))
    decoded = [vae.decode((latents + level * eps) / vae.config.scaling_factor).sample for level in (0, 0.4, 1.2)]
    scores = [goodness(clip, picture.clamp(-1, 1)).mean() for picture in decoded]
    assert scores == sorted(scores, reverse=True)
    assert scores[0] > goodness(clip, pictures).mean() - 0.1
    assert scores[-1] < 0.3


def test_dino_knows_a_subject_again_in_another_setting(dino):
    """Against other subjects of the class; three settings each, patterns that no training showed."""
    rng = np.random.default_rng(3)
    pictures, rows = [], []
    for kind in OBJECTS:
        for pattern in rng.choice(list(SUBJECT_PATTERNS), 3, replace=False):
            first, second = rng.choice(list(COLOURS), 2, replace=False)
            for setting in rng.choice(list(SETTINGS), 3, replace=False):
                scene = Scene(kind, str(first), str(pattern), str(setting), str(second))
                pictures.append(render(scene, 5 * HELD_OUT + len(pictures), occlusion=0))
                rows.append((kind, f"{kind} {pattern}"))
    x = torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2) * 2 - 1
    with torch.no_grad():
        features = F.normalize(dino[0](x).last_hidden_state[:, 0], dim=-1).numpy()
    kinds, looks = (np.array(column) for column in zip(*rows, strict=True))
    similarity, pairs = features @ features.T, np.triu(np.ones((len(x), len(x)), bool), 1)
    same = similarity[pairs & (looks[:, None] == looks)]
    others = similarity[pairs & (kinds[:, None] == kinds) & (looks[:, None] != looks)]
    assert (same[:, None] > others).mean() > 0.95


def test_a_feature_does_not_depend_on_the_batch(clip, dino, scenes):
    pictures = scenes[0][:8]
    assert torch.allclose(seen(clip, pictures)[3], seen(clip, pictures[3:4])[0], atol=1e-5)
    with torch.no_grad():
        together, alone = dino[0](pictures).last_hidden_state[3], dino[0](pictures[3:4]).last_hidden_state[0]
    assert torch.allclose(together, alone, atol=1e-4)
