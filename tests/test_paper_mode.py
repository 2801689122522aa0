"""Paper mode against a plain loop over files, written from what the authors' evaluator does, quirks included.

The loop knows none of our code: it opens files, prepares pictures with transformers' own processors on pillow, and asks
the models one picture at a time.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fewbayes.metrics import paper
from fewbayes.metrics.encoders.base import EMBEDDED, load_from
from fewbayes.metrics.encoders.places import Place
from fewbayes.metrics.evaluate import evaluate_folder
from fewbayes.metrics.scores import Mean, Unavailable
from small_encoders import black, build_embedded, picture

CLOSE = 1e-6


class PlainLoop:
    """The five metrics as loops over the files of `image_dir/<subject>-<k>/` and `data/<subject>/`."""

    def __init__(self, folder: Path, images: Path, data: Path, subjects: list[str], prompts: dict[str, str]):
        from transformers import AutoImageProcessor, AutoTokenizer, CLIPModel, ViTModel

        self.images, self.data, self.subjects, self.prompts = images, data, subjects, prompts
        self.clip = CLIPModel.from_pretrained(folder / "clip").eval()
        self.words = AutoTokenizer.from_pretrained(folder / "clip")
        self.dino = ViTModel.from_pretrained(folder / "dino", add_pooling_layer=False).eval()
        self.prepare = {
            name: AutoImageProcessor.from_pretrained(folder / name, backend="pil") for name in ("clip", "dino")
        }

    def of_folder(self, folder: Path) -> list[Path]:
        return [folder / f for f in sorted(os.listdir(folder)) if f.endswith((".png", ".jpg"))]

    def generated(self, subject: str) -> list[Path]:
        found = []
        for name in sorted(os.listdir(self.images)):
            if subject + "-" in name:
                found += self.of_folder(self.images / name)[:4]
        return found

    def real(self, subject: str) -> list[Path]:
        return self.of_folder(self.data / subject)

    def is_black(self, path: Path) -> bool:
        return all(low == high == 0 for low, high in Image.open(path).convert("RGB").getextrema())

    @torch.no_grad()
    def clip_feature(self, path: Path) -> torch.Tensor:
        pixels = self.prepare["clip"](images=Image.open(path), return_tensors="pt")
        vision = self.clip.vision_model(**pixels)
        return self.clip.visual_projection(vision.pooler_output)

    @torch.no_grad()
    def text_feature(self, prompt: str) -> torch.Tensor:
        text = self.clip.text_model(**self.words([prompt], padding=True, return_tensors="pt"))
        return self.clip.text_projection(text.pooler_output)

    @torch.no_grad()
    def dino_feature(self, path: Path) -> torch.Tensor:
        pixels = self.prepare["dino"](images=Image.open(path), return_tensors="pt")
        return self.dino(**pixels).last_hidden_state[:, 0, :]

    @torch.no_grad()
    def patches(self, path: Path) -> list[torch.Tensor]:
        """Patch tokens behind a third, two thirds and all of the blocks, each of length 1."""
        states = []
        hooks = [
            layer.register_forward_hook(lambda module, args, out: states.append(out[0] if type(out) is tuple else out))
            for layer in self.dino.layers
        ]
        self.dino_feature(path)
        for hook in hooks:
            hook.remove()
        depth = len(states)
        chosen = [states[round(depth * part / 3) - 1].reshape(-1, states[0].shape[-1])[1:] for part in (1, 2, 3)]
        return [tokens / tokens.norm(dim=-1, keepdim=True) for tokens in chosen]

    def distance(self, a: Path, b: Path) -> float:
        layers = zip(self.patches(a), self.patches(b), strict=True)
        return float(np.mean([float(((x - y) ** 2).sum(-1).mean()) for x, y in layers]))

    @torch.no_grad()
    def quality(self, path: Path) -> float:
        image = self.clip_feature(path)
        good, bad = (
            math.exp(float(self.clip.logit_scale.exp() * torch.cosine_similarity(image, self.text_feature(words))))
            for words in ("Good photo.", "Bad photo.")
        )
        return good / (good + bad)

    def clip_t(self) -> float:
        values = []
        for name in sorted(os.listdir(self.images)):
            for path in self.of_folder(self.images / name)[:4]:
                if not self.is_black(path):
                    text = self.text_feature(self.prompts[name])
                    values.append(float(torch.cosine_similarity(self.clip_feature(path), text)))
        return float(np.mean(values))

    def pairs(self, feature) -> float:
        values = []
        for subject in self.subjects:
            for a in self.real(subject):
                for b in self.generated(subject):
                    if not self.is_black(a) and not self.is_black(b):
                        values.append(float(torch.cosine_similarity(feature(a), feature(b))))
        return float(np.mean(values))

    def real_pairs(self, feature) -> float:
        values = []
        for subject in self.subjects:
            for a in self.real(subject):
                values += [float(torch.cosine_similarity(feature(a), feature(b))) for b in self.real(subject) if b != a]
        return float(np.mean(values))

    def real_lpips(self) -> float:
        values = []
        for subject in self.subjects:
            shown = [path for path in self.real(subject) if not self.is_black(path)]
            values += [self.distance(a, b) for a in shown for b in shown]
        while 0 in values:
            values.remove(0)
        return float(np.mean(values))

    def clip_i(self) -> float:
        return self.pairs(self.clip_feature)

    def dino_i(self) -> float:
        return self.pairs(self.dino_feature)

    def lpips(self) -> float:
        values = []
        for subject in self.subjects:
            files = self.generated(subject)
            for start in range(0, len(files), 4):
                block = files[start : start + 4]
                for a in block:
                    for b in block:
                        if not self.is_black(a) and not self.is_black(b):
                            values.append(self.distance(a, b))
        while 0 in values:
            values.remove(0)
        return float(np.mean(values))

    def clip_iqa(self) -> tuple[float, float]:
        generated, real = [], []
        for subject in self.subjects:
            for a in self.real(subject):
                for b in self.generated(subject):
                    real.append(self.quality(a))
                    generated.append(self.quality(b))
        return float(np.mean(generated)), float(np.mean(real))


SUBJECTS = ["backpack_dog", "dog"]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Path:
    return build_embedded(tmp_path_factory.mktemp("encoders"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory) -> tuple[Path, Path, dict[str, str]]:
    """Everything that the evaluator treats oddly: a name within a name, five pictures, copies, black ones."""
    root = tmp_path_factory.mktemp("scene")
    seed = iter(range(1000))
    for folder, count in (("dog-1", 5), ("dog-2", 4), ("backpack_dog-1", 4), ("backpack_dog-2", 4)):
        (root / "images" / folder).mkdir(parents=True)
        for i in range(count):
            picture(next(seed)).save(root / "images" / folder / f"{i}.png")
    picture(0).save(root / "images" / "dog-1" / "1.png")  # a copy of 0.png
    black().save(root / "images" / "dog-2" / "3.png")
    for subject, count in (("dog", 2), ("backpack_dog", 3)):
        (root / "data" / subject).mkdir(parents=True)
        for i in range(count):
            picture(next(seed), 32, 20).save(root / "data" / subject / f"{i}.png")
    black().save(root / "data" / "dog" / "9.png")
    prompts = {name: f"a <v> dog number {name[-1]}." for name in os.listdir(root / "images")}
    return root / "images", root / "data", prompts


@pytest.fixture(scope="module")
def evaluation(small, scene):
    return _evaluate(small, scene)


def _evaluate(folder, scene):
    images, data, prompts = scene
    metadata = images.parent / "metadata.json"
    metadata.write_text(json.dumps({name: {"data_dir": name, "instance_prompt": p} for name, p in prompts.items()}))
    given = load_from(Place(folder, "cpu", world=True))
    return evaluate_folder(images, reference_dir=data, metadata=metadata, mode="both", encoders=given)


def test_paper_mode_equals_the_plain_loop(small, scene, evaluation):
    _agrees(small, scene, evaluation)


@pytest.mark.skipif(
    not all((EMBEDDED / name / "config.json").is_file() for name in ("clip", "dino")), reason="not shipped yet"
)
def test_paper_mode_equals_the_plain_loop_with_the_embedded_evaluators(scene):
    _agrees(EMBEDDED, scene, _evaluate(EMBEDDED, scene))


def _agrees(folder, scene, evaluation) -> None:
    images, data, prompts = scene
    loop = PlainLoop(folder, images, data, SUBJECTS, prompts)
    assert evaluation.value("clip_t", mode="paper") == pytest.approx(loop.clip_t(), abs=CLOSE)
    assert evaluation.value("clip_i", mode="paper") == pytest.approx(loop.clip_i(), abs=CLOSE)
    assert evaluation.value("dino", mode="paper") == pytest.approx(loop.dino_i(), abs=CLOSE)
    assert evaluation.value("lpips", mode="paper") == pytest.approx(loop.lpips(), abs=CLOSE)
    for metric, feature in (("clip_i", loop.clip_feature), ("dino", loop.dino_feature)):
        value = evaluation.value(metric, mode="paper", row="real")
        assert value == pytest.approx(loop.real_pairs(feature), abs=CLOSE)
    assert evaluation.value("lpips", mode="paper", row="real") == pytest.approx(loop.real_lpips(), abs=CLOSE)
    generated, real = loop.clip_iqa()
    assert evaluation.value("clip_iqa", mode="paper") == pytest.approx(generated, abs=CLOSE)
    assert evaluation.value("clip_iqa", mode="paper", row="real") == pytest.approx(real, abs=CLOSE)


def test_sound_mode_says_something_else_wherever_the_evaluator_is_odd(evaluation):
    for metric in ("clip_t", "clip_i", "dino", "lpips", "clip_iqa"):
        assert abs(evaluation.value(metric) - evaluation.value(metric, mode="paper")) > 1e-4


def test_sound_mode_equals_its_own_loop_over_files(small, scene, evaluation):
    """Exact subjects, all pictures, pairs i < j, black ones left out everywhere, each subject counted once."""
    images, data, prompts = scene
    loop = PlainLoop(small, images, data, SUBJECTS, prompts)
    fidelity, diversity, quality = {}, {}, {}
    for subject in SUBJECTS:
        folders = [images / f"{subject}-1", images / f"{subject}-2"]
        shown = [[path for path in loop.of_folder(folder) if not loop.is_black(path)] for folder in folders]
        real = [path for path in loop.real(subject) if not loop.is_black(path)]
        flat = [path for group in shown for path in group]
        table = [[torch.cosine_similarity(loop.dino_feature(a), loop.dino_feature(b)) for a in real] for b in flat]
        fidelity[subject] = float(np.mean(table))
        pairs = [[loop.distance(a, b) for i, a in enumerate(group) for b in group[:i]] for group in shown]
        diversity[subject] = float(np.mean([np.mean(values) for values in pairs]))
        quality[subject] = float(np.mean([loop.quality(path) for path in flat]))
    for metric, expected in (("dino", fidelity), ("lpips", diversity), ("clip_iqa", quality)):
        for subject in SUBJECTS:
            assert evaluation.value(metric, subject=subject) == pytest.approx(expected[subject], abs=CLOSE)
        assert evaluation.value(metric) == pytest.approx(np.mean(list(expected.values())), abs=CLOSE)


def test_black_pictures_are_counted_and_said(evaluation):
    assert evaluation.facts["counts"]["black pictures"] == 1
    assert evaluation.facts["counts"]["black references"] == 1
    assert evaluation.value("black", subject="dog") == pytest.approx(1 / 9)
    assert all(row.black == 1 for row in evaluation.rows if row.mode == "sound" and row.subject == "dog")
    assert [row.file for row in evaluation.images if row.metric == "black"] == ["dog-2/3.png"]


# --- one oddity at a time, on arrays ----------------------------------------------------------------------------------


def folder(name: str, *rows: int) -> paper.PromptFolder:
    return paper.PromptFolder(name, tuple(f"{row}.png" for row in rows), rows)


FEATURES = np.random.default_rng(0).normal(size=(12, 4))
SEEN, NONE_BLACK = np.zeros(12, dtype=bool), np.zeros(1, dtype=bool)


def table(rows: list[int]) -> np.ndarray:
    return np.linalg.norm(FEATURES[rows][:, None] - FEATURES[rows][None], axis=-1)


def test_a_subject_owns_the_folders_of_longer_names():
    folders = [folder("dog-1", 0, 1), folder("backpack_dog-1", 2), folder("cat-1", 3)]
    assert paper.owned("dog", folders) == [0, 1, 2]
    assert paper.owned("backpack_dog", folders) == [2]


def test_only_the_first_four_png_and_jpg_of_a_folder_count():
    mixed = paper.PromptFolder(
        "dog-1", ("0.png", "1.webp", "2.jpg", "3.PNG", "4.png", "5.png", "6.png"), tuple(range(7))
    )
    assert mixed.first() == [0, 2, 4, 5]


def test_the_first_four_are_so_by_name_whatever_order_a_listing_has():
    listed = paper.PromptFolder("dog-1", ("4.png", "3.png", "2.png", "1.png", "0.png"), (10, 11, 12, 13, 14))
    assert listed.first() == [14, 13, 12, 11]


def test_a_subject_with_more_references_weighs_more():
    folders = [folder("cat-1", 0), folder("dog-1", 1)]
    references = {"cat": (FEATURES[4:5], NONE_BLACK), "dog": (FEATURES[5:8], np.zeros(3, dtype=bool))}
    one = paper.fidelity(FEATURES, {"cat": references["cat"]}, folders, SEEN)
    three = paper.fidelity(FEATURES, {"dog": references["dog"]}, folders, SEEN)
    both = paper.fidelity(FEATURES, references, folders, SEEN)
    assert both == Mean(pytest.approx((one.value + 3 * three.value) / 4), 4)


def test_equal_pictures_raise_the_diversity():
    folders = [folder("dog-1", 0, 0, 0, 1)]
    apart = float(table([0, 1])[0, 1])
    assert paper.lpips(table, ["dog"], folders, SEEN) == Mean(pytest.approx(apart), 6)


def test_a_collapsed_model_has_no_lpips_at_all():
    with pytest.raises(Unavailable, match="no pairs at a distance other than 0"):
        paper.lpips(table, ["dog"], [folder("dog-1", 0, 0, 0, 0)], SEEN)


def test_a_short_folder_shifts_the_blocks_of_four_across_prompts():
    folders = [folder("dog-1", 0, 1, 2), folder("dog-2", 3, 4, 5, 6)]
    blocks = [table([0, 1, 2, 3]), table([4, 5, 6])]
    values = np.concatenate([block.ravel() for block in blocks])
    assert paper.lpips(table, ["dog"], folders, SEEN).value == pytest.approx(values[values > 0].mean())


def test_black_pictures_are_left_out_but_not_of_clip_iqa():
    dark = SEEN.copy()
    dark[1] = True
    folders = [folder("dog-1", 0, 1)]
    alone = paper.clip_t(FEATURES[[0]], FEATURES[[8]], [folder("dog-1", 0)], SEEN[:1])
    assert paper.clip_t(FEATURES[[0, 1]], FEATURES[[8, 9]], folders, dark) == alone
    assert paper.clip_iqa(np.array([0.2, 0.6]), {"dog": 3}, folders) == Mean(pytest.approx(0.4), 6)


def test_clip_iqa_of_one_subject_is_the_plain_mean_and_of_two_is_not():
    folders = [folder("cat-1", 0), folder("dog-1", 1)]
    quality = np.array([0.2, 0.6])
    assert paper.clip_iqa(quality, {"dog": 5}, folders).value == pytest.approx(0.6)
    assert paper.clip_iqa(quality, {"cat": 1, "dog": 3}, folders).value == pytest.approx(0.5)
