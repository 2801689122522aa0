"""Encoders of the true classes with random weights, small enough to make and use in a moment, as folders."""

from __future__ import annotations

import json
import string
from pathlib import Path

import numpy as np
import torch
from PIL import Image

CLIP_COLOURS = {
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
IMAGENET_COLOURS = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def clip_preprocessing(side: int) -> dict:
    """As openai/clip-vit-large-patch14 has it."""
    cut = {"do_resize": True, "size": side, "resample": 3, "do_center_crop": True, "crop_size": side}
    return {**cut, "do_normalize": True, **CLIP_COLOURS, "feature_extractor_type": "CLIPFeatureExtractor"}


def dino_preprocessing(side: int) -> dict:
    """As facebook/dino-vits16 has it."""
    squashed = {"do_resize": True, "size": side, "resample": 2, "do_normalize": True}
    return {**squashed, **IMAGENET_COLOURS, "feature_extractor_type": "ViTFeatureExtractor"}


def dinov2_preprocessing(side: int) -> dict:
    """As facebook/dinov2-small has it."""
    return {
        "crop_size": {"height": side, "width": side},
        "do_center_crop": True,
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_rescale": True,
        "do_resize": True,
        **IMAGENET_COLOURS,
        "image_processor_type": "BitImageProcessor",
        "resample": 3,
        "rescale_factor": 1 / 255,
        "size": {"shortest_edge": side * 8 // 7},
    }


def build_tokenizer(folder: Path, length: int) -> int:
    """Letters, digits and signs, each a token of its own; returns the size of the vocabulary."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits + ".,<>"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={piece: i for i, piece in enumerate(pieces)}, merges=[], model_max_length=length)
    tokenizer.save_pretrained(folder)
    return len(pieces)


def build_clip(folder: Path, *, side: int = 16, depth: int = 2, width: int = 16, heads: int = 2, seed: int = 0) -> Path:
    from transformers import CLIPConfig, CLIPModel

    folder.mkdir(parents=True, exist_ok=True)
    words = build_tokenizer(folder, 77)
    shared = {"num_hidden_layers": depth, "num_attention_heads": heads, "hidden_size": width}
    inner = {**shared, "intermediate_size": 4 * width}
    text = {"vocab_size": words, "bos_token_id": words - 2, "eos_token_id": words - 1, "pad_token_id": words - 1}
    config = CLIPConfig(
        text_config={**inner, **text, "max_position_embeddings": 77},
        vision_config={**inner, "image_size": side, "patch_size": 8},
        projection_dim=12,
    )
    torch.manual_seed(seed)
    model = CLIPModel(config)
    for weight in model.parameters():  # so that features differ between pictures
        weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(clip_preprocessing(side)))
    return folder


def build_dino(folder: Path, *, side: int = 16, depth: int = 3, width: int = 16, heads: int = 2, seed: int = 1) -> Path:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        hidden_size=width,
        num_hidden_layers=depth,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        image_size=side,
        patch_size=8,
    )
    torch.manual_seed(seed)
    model = ViTModel(config, add_pooling_layer=False)
    for weight in model.parameters():
        weight.data += 0.1 * torch.randn_like(weight)
    model.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dino_preprocessing(side)))
    return folder


def build_dinov2(folder: Path, *, side: int = 14, seed: int = 2) -> Path:
    from transformers import Dinov2Config, Dinov2Model

    config = Dinov2Config(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, mlp_ratio=2, image_size=2 * side, patch_size=7
    )
    torch.manual_seed(seed)
    Dinov2Model(config).save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps(dinov2_preprocessing(side)))
    return folder


def build_embedded(folder: Path) -> Path:
    """A folder in the layout of the embedded world's weights."""
    build_clip(folder / "clip")
    build_dino(folder / "dino")
    return folder


def picture(seed: int, width: int = 24, height: int = 24) -> Image.Image:
    """A smooth random picture with some noise on it, different for every seed."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height), Image.BICUBIC)
    noisy = np.asarray(coarse, dtype=np.float64) + rng.normal(0, 8, (height, width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def black(width: int = 24, height: int = 24) -> Image.Image:
    return Image.new("RGB", (width, height))
