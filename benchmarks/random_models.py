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
from memory_table import CLIP_G, CLIP_L, SD35_MEDIUM, T5, VAE

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
# Of T5 one block, since it runs once a prompt.
SD35M: dict[str, dict[str, Any]] = {
    "transformer": SD35_MEDIUM,
    "vae": VAE,
    "text_encoder": CLIP_L,
    "text_encoder_2": CLIP_G,
    "text_encoder_3": T5 | {"num_layers": 1, "vocab_size": 32},
}


def config_of(name: str, part: str) -> dict[str, Any]:
    return SD35M[part] if name == "sd35m" else json.loads((SHAPES / name / part / "config.json").read_text())


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


def with_t5(model: Path, folder: Path) -> Path:
    """A copy of an SD 3 that has no T5, with one of random weights and one block: the scripts of diffusers want it."""
    from transformers import T5Config, T5EncoderModel

    if not folder.exists():
        shutil.copytree(model, folder)
        width = json.loads((folder / "transformer/config.json").read_text())["joint_attention_dim"]
        config = T5 | {"num_layers": 1, "vocab_size": 32, "d_model": width, "d_kv": 8, "num_heads": 4, "d_ff": 64}
        T5EncoderModel(T5Config(**config)).save_pretrained(folder / "text_encoder_3")
        kind = _write_tokenizer(folder / "tokenizer_3", "T5EncoderModel")
        index = json.loads((folder / "model_index.json").read_text())
        index |= {"text_encoder_3": ["transformers", "T5EncoderModel"], "tokenizer_3": ["transformers", kind]}
        (folder / "model_index.json").write_text(json.dumps(index))
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
