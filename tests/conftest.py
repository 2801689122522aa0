"""A Stable Diffusion pipeline of the true classes, so small and random that a training step takes milliseconds."""

from __future__ import annotations

import json
import os
import string
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

os.environ.setdefault("HF_HUB_OFFLINE", "1")

RARE_TOKEN = "<v>"
SIDE = 32


def _tokenizer(folder: Path) -> None:
    """A byte-pair tokenizer of single letters, two whole words and the rare token."""
    from transformers import CLIPTokenizer

    letters = string.ascii_lowercase + string.digits
    pieces = [*letters, *(f"{c}</w>" for c in letters), "ph", "pho", "phot", "photo</w>", "of</w>"]
    merges = [("p", "h"), ("ph", "o"), ("pho", "t"), ("phot", "o</w>"), ("o", "f</w>")]
    vocabulary = {piece: i for i, piece in enumerate([*pieces, "<|startoftext|>", "<|endoftext|>"])}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=16)
    tokenizer.add_tokens([RARE_TOKEN])
    tokenizer.save_pretrained(folder)


def build_pipeline(folder: Path, *, prediction_type: str = "epsilon", seed: int = 0) -> Path:
    """Write a whole pipeline folder; pictures are 32 x 32, latents 4 x 8 x 8."""
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, PNDMScheduler, StableDiffusionPipeline, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    _tokenizer(folder / "tokenizer")
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=16,
        attention_head_dim=2,
        norm_num_groups=4,
    )
    vae = AutoencoderKL(
        block_out_channels=(4, 4, 8),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=4,
        sample_size=SIDE,
    )
    text = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if prediction_type == "epsilon":
        scheduler = PNDMScheduler(**betas, skip_prk_steps=True)
    else:
        scheduler = DDIMScheduler(**betas, prediction_type=prediction_type, clip_sample=False, set_alpha_to_one=False)
    StableDiffusionPipeline(
        vae, CLIPTextModel(text), tokenizer, unet, scheduler, None, None, requires_safety_checker=False
    ).save_pretrained(folder)
    (folder / "fewbayes.json").write_text(json.dumps({"rare_token": RARE_TOKEN, "recommended": {}}))
    return folder


@pytest.fixture(scope="session")
def eps_model(tmp_path_factory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("eps_model"))


@pytest.fixture(scope="session")
def v_model(tmp_path_factory) -> Path:
    return build_pipeline(tmp_path_factory.mktemp("v_model"), prediction_type="v_prediction")


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Three pictures, all different, already square and of the model's size."""
    folder = tmp_path_factory.mktemp("photos")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def settings(eps_model, photos, tmp_path):
    """Makes the config of a run of a few steps: settings(output="name", learning_rate=1e-3, ...)."""
    from fewbayes.config import TrainConfig

    def make(output: str = "run", **changes) -> TrainConfig:
        usual = {
            "model": str(eps_model),
            "instance_data_dir": str(photos),
            "instance_prompt": f"a photo of {RARE_TOKEN} dog",
            "output_dir": str(tmp_path / output),
            "max_train_steps": 4,
            "learning_rate": 1e-3,
            "num_inference_steps": 2,
            "num_validation_images": 2,
        }
        return TrainConfig(**(usual | changes))

    return make


@pytest.fixture(scope="session")
def family(eps_model):
    """A loaded model that tests share; training gives it back as it was."""
    from fewbayes.families import load_family

    return load_family(str(eps_model))
