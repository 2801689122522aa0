"""The embedded world: its scenes, its subjects, and the weights that ship with the package."""

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import fewbayes.world
from fewbayes.errors import UserError
from fewbayes.models import load_family
from fewbayes.models.folders import locate
from fewbayes.sample import sample_images
from fewbayes.world import pipelines
from fewbayes.world.objects import LIVE, OBJECTS
from fewbayes.world.recogniser import VOCABULARY, load_recogniser
from fewbayes.world.scenes import (
    ALL_SUBJECTS,
    RARE_TOKEN,
    SIZE,
    SUBJECT_PATTERNS,
    SUBJECTS,
    article,
    draw_scene,
    render,
    subject_photograph,
)
from fewbayes.world.settings import SETTINGS

WEIGHTS = Path(fewbayes.world.__file__).parent / "weights"
HELD_OUT = 10_000_000


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_a_scene_is_a_function_of_its_seed(seed):
    scene, caption = draw_scene(seed)
    picture = render(scene, seed)
    assert (scene, caption) == draw_scene(seed)
    assert np.array_equal(picture, render(scene, seed))
    assert picture.shape == (SIZE, SIZE, 3)
    assert picture.min() >= 0
    assert picture.max() <= 1


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**40))
def test_the_seed_changes_the_view_and_not_the_scene(seed):
    scene, _ = draw_scene(seed)
    assert not np.array_equal(render(scene, seed), render(scene, seed + 1))


def test_scenes_are_rich_in_fine_detail():
    """Neighbouring pixels differ by several grey levels in the median scene: smooth pictures hide corruption."""
    pictures = np.stack([render(draw_scene(seed)[0], seed) for seed in range(100)])
    assert np.median(np.abs(np.diff(pictures, axis=2)).mean((1, 2, 3))) * 255 > 5


def test_pretraining_never_shows_what_makes_a_subject():
    scenes = [draw_scene(seed)[0] for seed in range(20_000)]
    assert not {scene.pattern for scene in scenes} & set(SUBJECT_PATTERNS)
    assert all(scene.second is None for scene in scenes)
    assert {scene.object for scene in scenes} == set(OBJECTS)
    assert {scene.setting for scene in scenes} == set(SETTINGS)


def test_the_rare_token_is_rare_and_says_nothing_of_the_picture():
    drawn = [draw_scene(seed) for seed in range(40_000)]
    with_token = [scene for scene, caption in drawn if RARE_TOKEN in caption]
    assert 0.01 < len(with_token) / len(drawn) < 0.04
    share = max(Counter(scene.object for scene in with_token).values()) / len(with_token)
    assert share < 2 / len(OBJECTS)


@pytest.mark.parametrize("name", ALL_SUBJECTS)
def test_a_subject_is_seen_in_different_settings(name):
    subject = ALL_SUBJECTS[name]
    assert 4 <= len(set(subject.settings)) == len(subject.settings) <= 6
    pictures = [subject_photograph(name, i)[0] for i in range(len(subject.settings))]
    assert min(np.abs(a - b).mean() for i, a in enumerate(pictures) for b in pictures[:i]) > 0.03


def test_subjects_are_twelve_or_more_and_some_are_alive():
    assert len(SUBJECTS) >= 12
    assert sum(subject.class_word in LIVE for subject in SUBJECTS.values()) >= 3
    with pytest.raises(ValueError, match="numbered from 0; got 9"):
        subject_photograph("swirl_mug", 9)


def test_plain_diffusers_loads_and_samples_the_shipped_pipelines():
    """In a process that never imports fewbayes; no pickles, under 75 MB together."""
    program = f"""
import json, pathlib, sys
from diffusers import DiffusionPipeline
for folder in {[str(pipelines.PIPELINES[name]) for name in pipelines.shipped()]!r}:
    index = json.loads((pathlib.Path(folder) / "model_index.json").read_text())
    absent = {{part: None for part, where in index.items() if where == [None, None]}}  # a T5, say
    pipe = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **absent)
    pipe.set_progress_bar_config(disable=True)
    image = pipe("a photo of a red mug on the beach", num_inference_steps=2, output_type="np").images[0]
    assert image.shape == (64, 64, 3), image.shape
    assert image.std() > 0.02
assert not any(name.startswith("fewbayes") for name in sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
    files = [path for path in WEIGHTS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 75e6
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".txt", ".png", ".md"}


def test_every_word_of_our_captions_is_one_token():
    tokenizer = load_family("tiny").tokenizers["tokenizer"]
    captions = [draw_scene(seed)[1] for seed in range(500)]
    for caption in captions:
        assert len(tokenizer.tokenize(caption)) == len(caption.split()), caption
    assert tokenizer.unk_token_id not in tokenizer("a zebra wearing sunglasses").input_ids[1:-1]


def test_the_recogniser_is_right_on_scenes_it_never_saw():
    recogniser = load_recogniser()
    seeds = range(HELD_OUT, HELD_OUT + 600)
    scenes = [draw_scene(seed)[0] for seed in seeds]
    pictures = np.stack([render(scene, seed) for scene, seed in zip(scenes, seeds, strict=True)])
    seen = recogniser.recognise(torch.from_numpy(pictures).permute(0, 3, 1, 2) * 2 - 1)
    for key in VOCABULARY:
        right = np.mean([getattr(a, key) == getattr(b, key) for a, b in zip(seen, scenes, strict=True)])
        assert right >= 0.97, (key, right)


@pytest.mark.parametrize("model", pipelines.shipped())
def test_a_pipeline_follows_prompts(model):
    """A small look, with room for chance; recipes/judge.py asks two hundred for the model's card."""
    weaker = {"tiny-flow": {"object": 0.6}, "tiny-sharp": {"setting": 0.65}}
    at_least = {"object": 0.9, "colour": 0.9, "setting": 0.95} | weaker.get(model, {})
    rng = np.random.default_rng(5)
    asked = [{key: str(rng.choice(known)) for key, known in VOCABULARY.items()} for _ in range(24)]
    prompts = [f"a photo of {article(a['colour'] + ' ' + a['object'])} {SETTINGS[a['setting']].phrase}" for a in asked]
    pictures = sample_images(load_family(model), prompts, list(range(24)), steps=20, guidance=5.0, batch_size=24)
    array = np.stack([np.asarray(picture) for picture in pictures])
    seen = load_recogniser().recognise(torch.from_numpy(array).permute(0, 3, 1, 2).float() / 127.5 - 1)
    for key in VOCABULARY:
        right = [getattr(s, key) == a[key] for s, a in zip(seen, asked, strict=True)]
        assert np.mean(right) >= at_least[key], (key, right)


@pytest.mark.parametrize("model", pipelines.shipped())
def test_training_sees_the_latents_that_the_model_was_pretrained_on(model):
    """The U-Net knows the encoder's means; trainers draw from its Gaussian, which must therefore be narrow."""
    family = load_family(model)
    pictures = np.stack([np.round(subject_photograph("swirl_fish", i)[0] * 255).astype(np.uint8) for i in range(2)])
    mean, deviation = family.encode_images(pictures)
    assert float(deviation.max()) < 0.01 * float(mean.std((0, 2, 3)).min())


def test_an_embedded_name_is_a_folder_that_is_shipped_or_a_line_that_says_what_is(monkeypatch, tmp_path):
    assert "tiny" in pipelines.shipped()
    for name in pipelines.shipped():
        assert locate(name) == pipelines.PIPELINES[name]
    monkeypatch.setitem(pipelines.PIPELINES, "tiny-flow", tmp_path)
    with pytest.raises(UserError, match=r"tiny-flow is not in this installation.*here are tiny"):
        locate("tiny-flow")
