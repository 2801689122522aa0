"""Pipeline folders of true shapes and random weights, to time what no weights are needed for.

python benchmarks/random_models.py sd15 --output /tmp/models
"""

from __future__ import annotations

import argparse
import json
import shutil
import string
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from fewbayes.world.pipelines import PIPELINES

SHAPES = Path(__file__).parent / "shapes"
CLASSES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "sd15": {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
    },
    "sdxl": {
        "unet": ("diffusers", "UNet2DConditionModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModel"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    },
    "sd35m": {
        "transformer": ("diffusers", "SD3Transformer2DModel"),
        "vae": ("diffusers", "AutoencoderKL"),
        "text_encoder": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
        "text_encoder_3": ("transformers", "T5EncoderModel"),
    },
}
PIPELINE = {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline", "sd35m": "StableDiffusion3Pipeline"}
SCHEDULER = {"sd15": "PNDMScheduler", "sdxl": "EulerDiscreteScheduler", "sd35m": "FlowMatchEulerDiscreteScheduler"}
# Stable Diffusion 3.5 medium, by its published config.json files; of T5 one block, since it runs once a prompt.
SD35M: dict[str, dict[str, Any]] = {
    "transformer": {
        "sample_size": 128,
        "patch_size": 2,
        "in_channels": 16,
        "out_channels": 16,
        "num_layers": 24,
        "attention_head_dim": 64,
        "num_attention_heads": 24,
        "joint_attention_dim": 4096,
        "caption_projection_dim": 1536,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 384,
        "dual_attention_layers": tuple(range(13)),
        "qk_norm": "rms_norm",
    },
    "vae": {
        "latent_channels": 16,
        "scaling_factor": 1.5305,
        "shift_factor": 0.0609,
        "use_quant_conv": False,
        "use_post_quant_conv": False,
    },
    "text_encoder_3": {"d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 1, "num_heads": 64, "vocab_size": 32},
}


def config_of(name: str, part: str) -> dict[str, Any]:
    """A part's config.json: SD 3.5 shares autoencoder blocks and CLIP encoders with SDXL."""
    kept = SHAPES / ("sdxl" if name == "sd35m" else name) / part / "config.json"
    known = json.loads(kept.read_text()) if kept.exists() else {}
    if name == "sd35m":
        known |= SD35M.get(part, {})
        if part == "text_encoder":
            known |= {"projection_dim": 768}
    return known


def make(name: str, folder: Path) -> Path:
    """The folder, made where it is not there yet: random weights in float32, tokenizers of the embedded model."""
    import diffusers
    import transformers

    if (folder / "model_index.json").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    index: dict[str, Any] = {"_class_name": PIPELINE[name], "scheduler": ["diffusers", SCHEDULER[name]]}
    for part, (library, kind) in CLASSES[name].items():
        maker = getattr(diffusers if library == "diffusers" else transformers, kind)
        config = config_of(name, part)
        network = maker.from_config(config) if library == "diffusers" else maker(maker.config_class(**config))
        network.save_pretrained(folder / part)
        index[part] = [library, kind]
        if part.startswith("text_encoder"):
            tokenizer = part.replace("text_encoder", "tokenizer")
            index[tokenizer] = ["transformers", _write_tokenizer(folder / tokenizer, kind)]
    if name == "sd35m":
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).save_pretrained(folder / "scheduler")
    else:
        shutil.copytree(SHAPES / name / "scheduler", folder / "scheduler")
    index |= {"sd15": {"safety_checker": [None, None], "feature_extractor": [None, None]}}.get(name, {})
    (folder / "fewbayes.json").write_text(json.dumps({"rare_token": "<v>"}))
    (folder / "model_index.json").write_text(json.dumps(index, indent=2))
    return folder


def _write_tokenizer(folder: Path, kind: str) -> str:
    if kind == "T5EncoderModel":
        from transformers import T5TokenizerFast

        pieces = ["<pad>", "</s>", "<unk>", "\u2581", *string.ascii_lowercase]
        T5TokenizerFast(vocab=[(piece, -float(i)) for i, piece in enumerate(pieces)], extra_ids=0).save_pretrained(
            folder
        )
        return "T5TokenizerFast"
    shutil.copytree(PIPELINES["tiny"] / "tokenizer", folder)
    return "CLIPTokenizer"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=CLASSES)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    print(make(args.name, args.output / args.name))


if __name__ == "__main__":
    main()
