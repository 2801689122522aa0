"""Encoders: pinned preprocessing, the true classes from folders, names that weights have to earn, reasons for gaps."""

from __future__ import annotations

import json
import math
import os
import shutil
import threading
import warnings
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn

from fewbayes.files.atomic import file_sha256
from fewbayes.metrics.encoders.base import Missing, encoder_keys, load_encoders, load_from
from fewbayes.metrics.encoders.clip import Clip, projected
from fewbayes.metrics.encoders.clip_iqa import ClipRn50Quality
from fewbayes.metrics.encoders.dino import Vit
from fewbayes.metrics.encoders.lpips import LpipsAlex, PatchDistance, alexnet
from fewbayes.metrics.encoders.places import Place, from_hub, name_of
from fewbayes.metrics.encoders.sscd import Sscd
from fewbayes.metrics.preprocess import CLIP_MEAN, CLIP_STD, Preprocessing, read_preprocessing
from fewbayes.metrics.weights import ALEXNET, HEADS, HUB_MODELS, RN50, SSCD, TOKENS, WEIGHTS, fetch_weights
from small_encoders import (
    build_clip,
    build_dino,
    build_dinov2,
    build_embedded,
    clip_preprocessing,
    dino_preprocessing,
    dinov2_preprocessing,
    picture,
)

slow = pytest.mark.skipif("FEWBAYES_SLOW" not in os.environ, reason="minutes and gigabytes; set FEWBAYES_SLOW=1")
SHAPES = [(24, 24), (40, 24), (24, 41), (9, 13), (16, 16), (301, 200)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return Clip(build_clip(tmp_path_factory.mktemp("clip")), "small clip")


@pytest.fixture(scope="module")
def dino(tmp_path_factory):
    return Vit(build_dino(tmp_path_factory.mktemp("dino")), "small dino")


# --- preprocessing ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [clip_preprocessing, dino_preprocessing, dinov2_preprocessing])
@pytest.mark.parametrize("size", SHAPES)
def test_pictures_are_prepared_as_transformers_does_it_on_pillow(tmp_path, make, size):
    from transformers import BitImageProcessorPil, CLIPImageProcessorPil, ViTImageProcessorPil

    kinds = {"CLIPFeatureExtractor": CLIPImageProcessorPil, "ViTFeatureExtractor": ViTImageProcessorPil}
    config = make(14)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    theirs = kinds.get(config.get("feature_extractor_type"), BitImageProcessorPil).from_pretrained(tmp_path)
    expected = theirs(images=picture(0, *size), return_tensors="np")["pixel_values"]
    ours = read_preprocessing(tmp_path)([picture(0, *size)])
    assert ours.shape == expected.shape == (1, 3, 14, 14)
    np.testing.assert_allclose(ours, expected, atol=1e-6)


def test_clip_crops_what_dino_squashes(tmp_path):
    """A picture whose two ends are red: CLIP does not see them."""
    wide = Image.new("RGB", (96, 32), "red")
    wide.paste((0, 0, 255), (32, 0, 64, 32))
    seen = {}
    for make in (clip_preprocessing, dino_preprocessing):
        (tmp_path / "preprocessor_config.json").write_text(json.dumps({**make(32), "image_mean": [0, 0, 0]}))
        seen[make] = read_preprocessing(tmp_path)([wide])[0, 0]
    assert seen[clip_preprocessing].max() == 0
    assert seen[dino_preprocessing].max() > 0


def test_making_smaller_averages():
    """One-pixel stripes become grey; interpolation without averaging would pick black or white."""
    stripes = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32))).convert("RGB")
    prepared = Preprocessing("squash", 8, 8, "bicubic", (0, 0, 0), (1, 1, 1))([stripes])
    assert prepared.min() > 0.45
    assert prepared.max() < 0.55


def test_preprocessing_is_said_in_words(clip, dino):
    assert clip.identity.preprocessing == "bicubic, shorter side to 16, centre 16 x 16"
    assert dino.identity.preprocessing == "bilinear to 16 x 16, shape not kept"


# --- transformers -----------------------------------------------------------------------------------------------------


def test_features_are_read_from_transformers_4_and_5():
    """The former gives them as a tensor, the latter inside an output."""
    from transformers.modeling_outputs import BaseModelOutputWithPooling

    features = torch.arange(3.0)
    assert projected(features) is features
    output = BaseModelOutputWithPooling(last_hidden_state=torch.zeros(1), pooler_output=features)
    assert projected(output) is features


def test_a_picture_has_the_same_features_alone_and_in_a_batch(clip, dino):
    pictures = [picture(seed, *size) for seed, size in enumerate(SHAPES)]
    for encoder in (clip, dino):
        alone = np.concatenate([encoder.images([one]) for one in pictures])
        np.testing.assert_allclose(encoder.images(pictures), alone, atol=1e-5)


def test_features_are_those_of_the_model_called_by_hand(clip, dino):
    from transformers import CLIPTokenizer

    pixels = torch.from_numpy(clip.prepare([picture(0)]))
    with torch.no_grad():
        image = clip.model.visual_projection(clip.model.vision_model(pixel_values=pixels).pooler_output)
        ids = CLIPTokenizer.from_pretrained(clip.tokenizer.name_or_path)(["a <v> dog."], return_tensors="pt")
        text = clip.model.text_projection(clip.model.text_model(**ids).pooler_output)
        token = dino.model(torch.from_numpy(dino.prepare([picture(0)]))).last_hidden_state[:, 0]
    np.testing.assert_allclose(clip.images([picture(0)]), image, atol=1e-6)
    np.testing.assert_allclose(clip.texts(["a <v> dog."]), text, atol=1e-6)
    np.testing.assert_allclose(dino.images([picture(0)]), token, atol=1e-6)


def test_a_prompt_that_is_too_long_is_named(clip):
    assert clip.cut_off(["a dog", "a " * 80]) == ["a " * 80]
    assert clip.texts(["a " * 80]).shape == (1, 12)


def test_dinov2_gives_its_class_token(tmp_path):
    encoder = Vit(build_dinov2(tmp_path), "small dinov2")
    with torch.no_grad():
        expected = encoder.model(torch.from_numpy(encoder.prepare([picture(0)]))).last_hidden_state[:, 0]
    np.testing.assert_allclose(encoder.images([picture(0)]), expected, atol=1e-6)


def test_a_checkpoint_that_lacks_weights_is_refused_and_not_filled_with_random_ones(tmp_path):
    folder = build_dino(tmp_path)
    weights = load_file(folder / "model.safetensors")
    del weights["layernorm.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of its model, layernorm\.weight"):
        Vit(folder, "damaged")


def test_patch_distance_is_0_to_itself_symmetric_and_the_same_in_any_company(dino):
    encoder = PatchDistance(dino)
    pictures = [picture(seed) for seed in (0, 1, 0, 2)]
    distances = encoder.distances(pictures)
    assert distances[0, 2] == 0
    assert (distances == distances.T).all()
    assert 0 < distances[0, 1] < 4
    np.testing.assert_allclose(encoder.distances(pictures[:2]), distances[:2, :2], atol=1e-6)


# --- single files -----------------------------------------------------------------------------------------------------


def random_alexnet(folder):
    """Weights under the names of torchvision's file, its classifier left out."""
    torch.manual_seed(0)
    net = alexnet()
    weights = {f"features.{name}": value for name, value in net.state_dict().items()}
    torch.save(weights, folder / ALEXNET.file)
    heads = {f"lin{i}.model.1.weight": torch.rand(1, width, 1, 1) for i, width in enumerate((64, 192, 384, 256, 256))}
    torch.save(heads, folder / HEADS.file)
    return weights, heads


def plain_lpips(weights, heads, a: Image.Image, b: Image.Image) -> float:
    """From the definition: scale, five ReLU layers, unit length in every place, weighted squares, mean over places."""

    def layers(image):
        image = image.resize((512, 512), Image.Resampling.BILINEAR)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 * 2 - 1
        x = (x - torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1)) / torch.tensor([0.458, 0.448, 0.450]).view(
            1, 3, 1, 1
        )
        found = []
        for number, stride, padding, pooled in ((0, 4, 2, 0), (3, 1, 2, 1), (6, 1, 1, 1), (8, 1, 1, 0), (10, 1, 1, 0)):
            x = F.max_pool2d(x, 3, 2) if pooled else x
            kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
            x = F.relu(F.conv2d(x, kernel, bias, stride, padding))
            found.append(x / x.norm(dim=1, keepdim=True).clamp(min=1e-10))
        return found

    pairs = enumerate(zip(layers(a), layers(b), strict=True))
    return sum(float(F.conv2d((x - y) ** 2, heads[f"lin{i}.model.1.weight"]).mean()) for i, (x, y) in pairs)


def test_lpips_is_what_its_definition_says(tmp_path):
    weights, heads = random_alexnet(tmp_path)
    encoder = LpipsAlex(tmp_path / ALEXNET.file, tmp_path / HEADS.file, "random alexnet")
    pictures = [picture(0, 64, 48), picture(1, 64, 48), picture(2)]
    distances = encoder.distances(pictures)
    for i, a in enumerate(pictures):
        for j, b in enumerate(pictures):
            assert distances[i, j] == pytest.approx(plain_lpips(weights, heads, a, b), abs=1e-6)


def test_lpips_equals_the_package_with_its_true_heads(tmp_path):
    try:  # torchvision, which it needs, may be there and be made for another torch
        import lpips
    except Exception as error:
        pytest.skip(f"the lpips package cannot be imported: {error}")
    random_alexnet(tmp_path)
    encoder = Place(tmp_path, "cpu").need("lpips")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    saved = torch.load(tmp_path / ALEXNET.file, weights_only=True)
    theirs.net.load_state_dict({name: saved["features." + name.partition(".")[2]] for name in theirs.net.state_dict()})
    a, b = picture(0, 64, 48), picture(1, 64, 48)
    pixels = [torch.from_numpy(encoder.prepare([one])) for one in (a, b)]
    with torch.no_grad():
        expected = theirs(*pixels).item()
    assert encoder.distances([a, b])[0, 1] == pytest.approx(expected, abs=1e-6)


def random_rn50(folder, *, blocks=(1, 2, 1, 1), width=8, outputs=12, inner=64, depth=2, words=20, seed=0):
    """A torchscript file with the names and shapes of OpenAI's RN50.pt, and the tokens of the two antonyms."""
    torch.manual_seed(seed)
    weights: dict[str, torch.Tensor] = {}

    def normed(name: str, size: int) -> None:
        weights[f"{name}.weight"], weights[f"{name}.bias"] = 1 + 0.1 * torch.randn(size), 0.1 * torch.randn(size)
        weights[f"{name}.running_mean"], weights[f"{name}.running_var"] = torch.randn(size), 1 + torch.rand(size)
        weights[f"{name}.num_batches_tracked"] = torch.tensor(1)

    def conv(name: str, norm: str, inputs: int, out: int, side: int) -> None:
        weights[f"{name}.weight"] = torch.randn(out, inputs, side, side) / math.sqrt(inputs * side * side)
        normed(norm, out)

    def linear(name: str, inputs: int, out: int, weight: str = ".weight", bias: str = ".bias") -> None:
        weights[name + weight] = torch.randn(out, inputs) / math.sqrt(inputs)
        weights[name + bias] = 0.1 * torch.randn(out)

    half = width // 2
    for number, (inputs, out) in enumerate(((3, half), (half, half), (half, width)), start=1):
        conv(f"visual.conv{number}", f"visual.bn{number}", inputs, out, 3)
    inputs = width
    for stage, count in enumerate(blocks, start=1):
        narrow = width * 2 ** (stage - 1)
        for i in range(count):
            name = f"visual.layer{stage}.{i}"
            conv(f"{name}.conv1", f"{name}.bn1", inputs, narrow, 1)
            conv(f"{name}.conv2", f"{name}.bn2", narrow, narrow, 3)
            conv(f"{name}.conv3", f"{name}.bn3", narrow, 4 * narrow, 1)
            if i == 0:
                conv(f"{name}.downsample.0", f"{name}.downsample.1", inputs, 4 * narrow, 1)
            inputs = 4 * narrow
    weights["visual.attnpool.positional_embedding"] = torch.randn(50, inputs)
    for name in ("q_proj", "k_proj", "v_proj"):
        linear(f"visual.attnpool.{name}", inputs, inputs)
    linear("visual.attnpool.c_proj", inputs, outputs)
    weights["token_embedding.weight"] = torch.randn(words, inner)
    weights["positional_embedding"] = 0.1 * torch.randn(77, inner)
    for i in range(depth):
        name = f"transformer.resblocks.{i}"
        linear(f"{name}.attn", inner, 3 * inner, ".in_proj_weight", ".in_proj_bias")
        linear(f"{name}.attn.out_proj", inner, inner)
        linear(f"{name}.mlp.c_fc", inner, 4 * inner)
        linear(f"{name}.mlp.c_proj", 4 * inner, inner)
        for norm in ("ln_1", "ln_2"):
            weights[f"{name}.{norm}.weight"], weights[f"{name}.{norm}.bias"] = torch.ones(inner), torch.zeros(inner)
    weights["ln_final.weight"], weights["ln_final.bias"] = torch.ones(inner), torch.zeros(inner)
    weights["text_projection"] = torch.randn(inner, outputs) / math.sqrt(inner)
    weights["logit_scale"] = torch.tensor(3.0)
    # The published file holds 16 bits, to which piq rounds whatever it is given.
    weights = {name: value.half().float() for name, value in weights.items()}
    weights |= {"input_resolution": torch.tensor(224), "context_length": torch.tensor(77)}
    weights["vocab_size"] = torch.tensor(words)
    save_torchscript(weights, folder / RN50.file)
    tokens = torch.zeros(2, 77, dtype=torch.int64)
    tokens[:, :4] = torch.tensor([[words - 2, 1, 2, words - 1], [words - 2, 3, 2, words - 1]])
    torch.save(tokens, folder / TOKENS.file)
    return weights, tokens


def save_torchscript(weights, path) -> None:
    root = nn.Module()
    for name, value in weights.items():
        module, (*above, leaf) = root, name.split(".")
        for part in above:
            if part not in module._modules:
                module.add_module(part, nn.Module())
            module = module.get_submodule(part)
        module.register_buffer(leaf, value)
    with warnings.catch_warnings():  # deprecated, and what the published file is
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(root).save(path)


def plain_clip_iqa(w, tokens, image: Image.Image) -> float:
    """From the papers: ResNet with averaged strides, attention of the mean over places, no position; softmax."""

    def norm(x, name):
        mean, var = w[f"{name}.running_mean"], w[f"{name}.running_var"]
        return F.batch_norm(x, mean, var, w[f"{name}.weight"], w[f"{name}.bias"])

    def step(x, name, bn, **options):
        return norm(F.conv2d(x, w[f"{name}.weight"], **options), bn)

    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    x = (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255 - mean) / std
    for number, stride in ((1, 2), (2, 1), (3, 1)):
        x = F.relu(step(x, f"visual.conv{number}", f"visual.bn{number}", stride=stride, padding=1))
    x = F.avg_pool2d(x, 2)
    for name in sorted({".".join(key.split(".")[:3]) for key in w if key.startswith("visual.layer")}):
        stride = 2 if name.endswith(".0") and "layer1" not in name else 1
        y = F.relu(step(x, f"{name}.conv1", f"{name}.bn1"))
        y = F.avg_pool2d(F.relu(step(y, f"{name}.conv2", f"{name}.bn2", padding=1)), stride)
        y = step(y, f"{name}.conv3", f"{name}.bn3")
        if f"{name}.downsample.0.weight" in w:
            x = step(F.avg_pool2d(x, stride), f"{name}.downsample.0", f"{name}.downsample.1")
        x = F.relu(x + y)
    places = x[0].flatten(1).T
    q, k, v = (
        part @ w[f"visual.attnpool.{name}.weight"].T + w[f"visual.attnpool.{name}.bias"]
        for name, part in (
            ("q_proj", places.mean(0, keepdim=True)),
            ("k_proj", torch.cat([places.mean(0, keepdim=True), places])),
            ("v_proj", torch.cat([places.mean(0, keepdim=True), places])),
        )
    )
    heads = [slice(64 * i, 64 * (i + 1)) for i in range(q.shape[1] // 64)]
    pooled = torch.cat([torch.softmax(q[:, h] @ k[:, h].T / 8, 1) @ v[:, h] for h in heads], 1)
    feature = pooled @ w["visual.attnpool.c_proj.weight"].T + w["visual.attnpool.c_proj.bias"]
    anchors = torch.stack([plain_text(w, ids) for ids in tokens])
    logits = w["logit_scale"].exp() * F.cosine_similarity(feature, anchors)
    return float(torch.softmax(logits, 0)[0])


def plain_text(w, ids):
    """Up to and including the closing token: what comes after it is not seen by it."""
    x = w["token_embedding.weight"][ids] + w["positional_embedding"]
    x = x[: int(ids.argmax()) + 1]
    width = x.shape[1]
    for name in sorted({".".join(key.split(".")[:3]) for key in w if key.startswith("transformer.resblocks")}):
        y = F.layer_norm(x, (width,), w[f"{name}.ln_1.weight"], w[f"{name}.ln_1.bias"])
        q, k, v = (y @ w[f"{name}.attn.in_proj_weight"].T + w[f"{name}.attn.in_proj_bias"]).chunk(3, 1)
        mixed = torch.zeros_like(x)
        for h in (slice(64 * i, 64 * (i + 1)) for i in range(width // 64)):
            for i in range(len(x)):
                mixed[i, h] = torch.softmax(q[i, h] @ k[: i + 1, h].T / 8, 0) @ v[: i + 1, h]
        x = x + mixed @ w[f"{name}.attn.out_proj.weight"].T + w[f"{name}.attn.out_proj.bias"]
        y = F.layer_norm(x, (width,), w[f"{name}.ln_2.weight"], w[f"{name}.ln_2.bias"])
        y = y @ w[f"{name}.mlp.c_fc.weight"].T + w[f"{name}.mlp.c_fc.bias"]
        x = x + (y * torch.sigmoid(1.702 * y)) @ w[f"{name}.mlp.c_proj.weight"].T + w[f"{name}.mlp.c_proj.bias"]
    last = F.layer_norm(x[-1], (width,), w["ln_final.weight"], w["ln_final.bias"])
    return last @ w["text_projection"]


def scored(encoder, pictures) -> np.ndarray:
    from fewbayes.metrics.scores import quality

    return quality(encoder.images(pictures), encoder.anchors, encoder.scale)


def test_clip_iqa_is_what_its_definition_says_at_any_size(tmp_path):
    weights, tokens = random_rn50(tmp_path)
    encoder = ClipRn50Quality(tmp_path / RN50.file, tmp_path / TOKENS.file, "random rn50")
    pictures = [picture(0, 64, 64), picture(1, 96, 64)]
    expected = [plain_clip_iqa(weights, tokens, image) for image in pictures]
    assert scored(encoder, pictures) == pytest.approx(expected, abs=1e-6)


def test_clip_iqa_equals_piq(tmp_path):
    try:
        from piq.feature_extractors import clip as piq_clip
    except Exception as error:
        pytest.skip(f"piq cannot be imported: {error}")
    weights, tokens = random_rn50(tmp_path, blocks=(3, 4, 6, 3), inner=128, depth=3)
    encoder = ClipRn50Quality(tmp_path / RN50.file, tmp_path / TOKENS.file, "random rn50")
    theirs = piq_clip.build_model(dict(weights)).float().eval()
    pixels = torch.from_numpy(encoder.prepare([picture(0, 96, 64)]))
    with torch.no_grad():
        image, anchors = theirs.encode_image(pixels, pos_embedding=False), theirs.encode_text(tokens)
        logits = theirs.logit_scale.exp() * F.cosine_similarity(image, anchors)
    assert scored(encoder, [picture(0, 96, 64)])[0] == pytest.approx(torch.softmax(logits, 0)[0].item(), abs=1e-6)


def test_in_sound_mode_small_pictures_are_enlarged_for_clip_iqa_and_large_ones_are_not(tmp_path):
    random_rn50(tmp_path)
    files = tmp_path / RN50.file, tmp_path / TOKENS.file
    native, sound = (ClipRn50Quality(*files, "rn50", smallest=smallest) for smallest in (0, 64))
    small, large = picture(0, 40, 40), picture(1, 64, 80)
    assert scored(native, [large]) == pytest.approx(scored(sound, [large]))
    assert scored(native, [small.resize((64, 64), Image.Resampling.BICUBIC)]) == pytest.approx(scored(sound, [small]))
    assert native.identity.fingerprint != sound.identity.fingerprint


def test_sscd_is_run_from_its_torchscript(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 8, 8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.script(model).save(tmp_path / SSCD.file)
    encoder = Sscd(tmp_path / SSCD.file, "sscd")
    with torch.no_grad():
        expected = model(torch.from_numpy(encoder.prepare([picture(0, 50, 40)])))
    np.testing.assert_allclose(encoder.images([picture(0, 50, 40)]), expected, atol=1e-6)


# --- names, gaps, files -----------------------------------------------------------------------------------------------


@pytest.fixture
def collection(tmp_path):
    """A folder as --fetch-weights fills it, of the true classes with weights of nobody."""
    build_clip(tmp_path / HUB_MODELS["clip"].folder)
    build_dino(tmp_path / HUB_MODELS["dino"].folder)
    build_dinov2(tmp_path / HUB_MODELS["dinov2"].folder)
    random_alexnet(tmp_path)
    random_rn50(tmp_path)
    return tmp_path


def test_every_encoder_but_sscd_loads_from_a_folder_and_none_takes_a_name_that_is_not_its_own(collection):
    found = load_encoders(str(collection))
    assert set(found) == {"clip", "clip_iqa", "clip_iqa_native", "dino", "dinov2", "lpips", "sscd"}
    assert isinstance(found.pop("sscd"), Missing)
    for key, encoder in found.items():
        file, _, digits = encoder.identity.name.partition("@")
        assert file in {"clip-vit-large-patch14", "dino-vits16", "dinov2-small", "alexnet-owt-7be5be79", "RN50"}, key
        assert encoder.identity.sha256.startswith(digits[:12].partition(" ")[0])


def test_the_published_name_belongs_to_the_published_weights(collection):
    model, folder = HUB_MODELS["clip"], collection / HUB_MODELS["clip"].folder
    there = {file: file_sha256(folder / file) for file in ("model.safetensors", "config.json", "tokenizer.json")}
    own = f"clip-vit-large-patch14@{there['model.safetensors'][:12]}"
    assert name_of(folder, replace(model, files=there)) == model.repository
    other = replace(model, files=there | {"config.json": "0" * 64, "vocab.json": "1" * 64})
    assert name_of(folder, other) == f"{own} with another config.json, vocab.json"
    assert name_of(folder, replace(model, files=there | {"model.safetensors": "0" * 64})) == own
    assert name_of(folder, replace(model, files=there | {"tokenizer.json": None})) == f"{own} (unverified)"


def test_a_copy_whose_published_hash_is_not_known_says_so_wherever_it_came_from(collection, tmp_path):
    dino = load_encoders(str(collection))["dino"].identity
    assert dino.name == f"dino-vits16@{dino.sha256[:12]} (unverified)"
    elsewhere = (tmp_path / "snapshots" / "0123").resolve()  # a folder of the hub's cache is called by its revision
    shutil.copytree(collection / "dino-vits16", elsewhere)
    assert name_of(elsewhere, HUB_MODELS["dino"]) == dino.name
    quality = load_encoders(str(collection))["clip_iqa"].identity.name
    assert "clipiqa_tokens@" in quality
    assert quality.endswith("(unverified)")


def test_features_are_kept_apart_by_the_configuration_beside_the_weights(tmp_path):
    folder = build_clip(tmp_path / "clip")
    before = Clip(folder, "clip").identity.fingerprint
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["hidden_act"] = "gelu"
    (folder / "config.json").write_text(json.dumps(config))
    assert Clip(folder, "clip").identity.fingerprint != before


def test_a_download_from_the_hub_that_was_cut_off_is_not_taken_for_whole(monkeypatch, tmp_path):
    place = tmp_path / "models--facebook--dino-vits16"
    (place / "refs").mkdir(parents=True)
    (place / "refs" / "main").write_text("0" * 40)
    whole = build_dino(place / "snapshots" / ("0" * 40))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert from_hub(HUB_MODELS["dino"], True).resolve() == whole.resolve()
    (whole / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="is not in the cache of the hub"):
        from_hub(HUB_MODELS["dino"], True)


def test_what_is_absent_or_damaged_is_missing_with_its_reason(collection):
    (collection / HUB_MODELS["dino"].folder / "model.safetensors").write_bytes(b"cut off")
    (collection / HUB_MODELS["dinov2"].folder / "preprocessor_config.json").unlink()
    (collection / ALEXNET.file).unlink()
    (collection / TOKENS.file).write_bytes(b"")
    found = load_encoders(str(collection))
    gaps = {key: encoder.reason for key, encoder in found.items() if isinstance(encoder, Missing)}
    assert set(gaps) == {"dino", "dinov2", "lpips", "clip_iqa", "clip_iqa_native", "sscd"}
    assert all(gaps.values())
    assert "preprocessor_config.json is missing" in gaps["dinov2"]
    assert ALEXNET.file in gaps["lpips"]


def test_without_a_network_the_published_encoders_are_missing_and_say_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.delenv("FEWBAYES_MODELS", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    for key, encoder in load_encoders("paper", offline=True).items():
        assert isinstance(encoder, Missing), key
        assert "--fetch-weights" in encoder.reason


def test_the_embedded_evaluators_go_by_their_own_names(tmp_path):
    found = load_from(Place(build_embedded(tmp_path), "cpu", world=True))
    names = {key: encoder.identity.name for key, encoder in found.items() if not isinstance(encoder, Missing)}
    assert names == {
        "clip": "fewbayes-clip",
        "dino": "fewbayes-dino",
        "lpips": "fewbayes-dino patches",
        "clip_iqa": "fewbayes-clip",
        "clip_iqa_native": "fewbayes-clip",
    }


def test_an_unknown_place_of_encoders_is_refused():
    with pytest.raises(ValueError, match="neither 'embedded', nor 'paper', nor a folder"):
        load_encoders("papers")


def test_weight_files_are_listed_with_where_they_come_from_and_under_which_licence():
    assert {weight.encoder for weight in WEIGHTS} == set(encoder_keys()) - {"clip_iqa_native"}
    for weight in WEIGHTS:
        assert weight.url.startswith("https://")
        assert weight.licence
        assert weight.sha256 is None or len(bytes.fromhex(weight.sha256)) == 32


def test_fetching_fills_a_folder_once_and_refuses_another_file(tmp_path):
    (tmp_path / "there").write_bytes(b"weights")
    sha256 = file_sha256(tmp_path / "there")
    weight = replace(SSCD, file="sub/here.pt", url=(tmp_path / "there").as_uri(), sha256=sha256)
    said: list[str] = []
    [path] = fetch_weights(tmp_path / "folder", weights=[weight], say=said.append)
    assert path.read_bytes() == b"weights"
    fetch_weights(tmp_path / "folder", weights=[weight], say=said.append)
    assert [line.partition(": ")[2].split()[0] for line in said] == ["fetching", "there"]
    (tmp_path / "there").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="it was changed or cut off on the way"):
        fetch_weights(tmp_path / "another", weights=[weight], say=said.append)
    assert [file for file in (tmp_path / "another").rglob("*") if file.is_file()] == []


def test_a_download_that_ends_early_is_refused_even_where_no_hash_is_known(tmp_path):
    class Cut(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"tokens")

        def log_message(self, format, *args):
            pass

    with HTTPServer(("127.0.0.1", 0), Cut) as server:
        thread = threading.Thread(target=server.handle_request)
        thread.start()
        weight = replace(TOKENS, url=f"http://127.0.0.1:{server.server_port}/tokens")
        with pytest.raises(ValueError, match="6 of 100 bytes"):
            fetch_weights(tmp_path, weights=[weight], say=lambda line: None)
        thread.join()
    assert list(tmp_path.iterdir()) == []


def test_fetching_what_cannot_be_reached_says_so(tmp_path):
    weight = replace(SSCD, url=(tmp_path / "nothing").as_uri())
    with pytest.raises(ValueError, match="run this on a machine with a network"):
        fetch_weights(tmp_path, weights=[weight], say=lambda line: None)


# --- the true architectures -------------------------------------------------------------------------------------------


@slow
def test_the_true_architectures_load_and_encode(tmp_path):
    """CLIP ViT-L/14, DINO ViT-S/16, AlexNet and CLIP RN50 at full size, random weights."""
    from transformers import CLIPConfig, CLIPModel, ViTConfig, ViTModel

    clip, dino = tmp_path / HUB_MODELS["clip"].folder, tmp_path / HUB_MODELS["dino"].folder
    words = build_clip(clip).joinpath("tokenizer.json").stat().st_size
    assert words
    text = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    vision = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
    config = CLIPConfig(text_config=text, vision_config={**vision, "patch_size": 14}, projection_dim=768)
    CLIPModel(config).save_pretrained(clip)
    (clip / "preprocessor_config.json").write_text(json.dumps(clip_preprocessing(224)))
    ViTModel(ViTConfig(hidden_size=384, num_attention_heads=6, intermediate_size=1536)).save_pretrained(dino)
    (dino / "preprocessor_config.json").write_text(json.dumps(dino_preprocessing(224)))
    random_alexnet(tmp_path)
    random_rn50(tmp_path, blocks=(3, 4, 6, 3), width=64, outputs=1024, inner=512, depth=12, words=49408)
    found = load_encoders(str(tmp_path))
    image = [picture(0, 300, 200)]
    assert found["clip"].images(image).shape == found["clip"].texts(["a dog"]).shape == (1, 768)
    assert found["dino"].images(image).shape == (1, 384)
    assert found["lpips"].distances([*image, picture(1)]).shape == (2, 2)
    assert found["clip_iqa"].images(image).shape == (1, 1024)
    assert (clip / "model.safetensors").stat().st_size == pytest.approx(HUB_MODELS["clip"].bytes, rel=1e-3)
    assert (dino / "model.safetensors").stat().st_size == pytest.approx(HUB_MODELS["dino"].bytes, rel=0.02)
