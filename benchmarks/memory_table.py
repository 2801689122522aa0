"""The memory of one step at each model's own size, from its shapes alone, and what fits on cards of 8 to 48 GB.

LoRA of rank 16 with Bayesian weights, batch of one, gradient checkpointing, mixed precision bf16; no weight is loaded.
Writes docs/results/memory.md, from which docs/models.md is cut, and memory.json. About 10 minutes of one core.

    python benchmarks/memory_table.py --output docs/results
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from fewbayes.models import ModelCard, parameter_counts
from fewbayes.models.registry import families
from fewbayes.page.table import Column, Table, markdown
from fewbayes.settings.config import TrainConfig
from fewbayes.training.memory import SHARE_OF_FREE, estimate

SHAPES = Path(__file__).parent / "shapes"
CARDS = (8, 12, 16, 24, 48)
LADDER = (("fp32", None), ("bf16", None), ("nf4", None), ("nf4", 512))
"""From what changes least to what saves most: the precision of the base, and the side of the pictures."""

CLIP_L = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "projection_dim": 768,
}
CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
}
T5 = {
    "vocab_size": 32128,
    "d_model": 4096,
    "d_kv": 64,
    "d_ff": 10240,
    "num_layers": 24,
    "num_heads": 64,
    "feed_forward_proj": "gated-gelu",
}
QWEN_4B = {
    "vocab_size": 151936,
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "tie_word_embeddings": True,
}
QWEN_8B = QWEN_4B | {"hidden_size": 4096, "intermediate_size": 12288, "tie_word_embeddings": False}
VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 16,
    "sample_size": 1024,
    "use_quant_conv": False,
    "use_post_quant_conv": False,
}
SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "num_layers": 24,
    "attention_head_dim": 64,
    "num_attention_heads": 24,
    "joint_attention_dim": 4096,
    "caption_projection_dim": 1536,
    "pooled_projection_dim": 2048,
    "out_channels": 16,
    "pos_embed_max_size": 192,
}
SD35_MEDIUM = SD3 | {"pos_embed_max_size": 384, "dual_attention_layers": [*range(13)], "qk_norm": "rms_norm"}
SD35_LARGE = SD3 | {
    "num_layers": 38,
    "num_attention_heads": 38,
    "caption_projection_dim": 2432,
    "qk_norm": "rms_norm",
}
KLEIN_4B = {
    "in_channels": 128,
    "num_layers": 5,
    "num_single_layers": 20,
    "attention_head_dim": 128,
    "num_attention_heads": 24,
    "joint_attention_dim": 7680,
    "timestep_guidance_channels": 256,
    "mlp_ratio": 3.0,
    "axes_dims_rope": [32, 32, 32, 32],
    "guidance_embeds": False,
}
KLEIN_9B = KLEIN_4B | {
    "num_layers": 8,
    "num_single_layers": 24,
    "num_attention_heads": 32,
    "joint_attention_dim": 12288,
}
Z_IMAGE = {
    "in_channels": 16,
    "dim": 3840,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "n_heads": 30,
    "n_kv_heads": 30,
    "cap_feat_dim": 2560,
    "axes_dims": [32, 48, 48],
    "axes_lens": [1536, 512, 512],
}


def _klein(denoiser: dict[str, Any], words: dict[str, Any]) -> dict[str, Any]:
    return {"transformer": denoiser, "vae": VAE | {"latent_channels": 32}, "text_encoder": words}


def _sd3(denoiser: dict[str, Any], t5: bool = True) -> dict[str, Any]:
    third = {"text_encoder_3": T5} if t5 else {}
    return {"transformer": denoiser, "vae": VAE, "text_encoder": CLIP_L, "text_encoder_2": CLIP_G, **third}


MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "SD 3.5 medium": ("sd3", _sd3(SD35_MEDIUM)),
    "SD 3.5 large": ("sd3", _sd3(SD35_LARGE)),
    "FLUX.2 klein 4B": ("flux2", _klein(KLEIN_4B, QWEN_4B)),
    "FLUX.2 klein 9B": ("flux2", _klein(KLEIN_9B, QWEN_8B)),
    "Z-Image": ("z_image", {"transformer": Z_IMAGE, "vae": VAE, "text_encoder": QWEN_4B}),
}
"""By what is published, its family and the settings of its parts."""


def write_shapes(model: str, folder: Path) -> ModelCard:
    """The config.json files of a model's parts, without weights, and its card."""
    name, parts = MODELS[model]
    family = families()[name]
    index: dict[str, Any] = {"_class_name": family.pipeline_class}
    for part, it in family.parts.items():
        index[part] = [it.library, it.kind] if part in parts else [None, None]
        if part in parts:
            _write(folder / part / "config.json", parts[part] | {"_class_name": it.kind})
    scheduler = {"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000, "shift": 3.0}
    _write(folder / "model_index.json", index)
    _write(folder / "scheduler/scheduler_config.json", scheduler)
    return family.inspect(model, folder)


def _write(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def peak(card: ModelCard, precision: str, side: int | None) -> int:
    config = TrainConfig(
        model=card.model,
        instance_data_dir="-",
        instance_prompt="a photo of a <v> dog",
        output_dir="-",
        method="lora",
        rank=16,
        bayes=True,
        gradient_checkpointing=True,
        mixed_precision="bf16",
        base_precision=precision,  # pyright: ignore[reportArgumentType]
        resolution=side,
    )
    return estimate(card, config.resolve({}, card.resolution, 1), device="cuda").peak


def row_of(card: ModelCard) -> dict[str, Any]:
    counts = parameter_counts(card)
    texts = sum(count for name, count in counts.items() if name.startswith("text_encoder"))
    peaks = {f"{precision}, {side}" if side else precision: peak(card, precision, side) for precision, side in LADDER}
    fits = {
        str(size_of_card): next(
            (how for how, size in peaks.items() if size <= SHARE_OF_FREE * size_of_card * 1e9), None
        )
        for size_of_card in CARDS
    }
    row = {"model": card.model, "denoiser": counts["denoiser"], "texts": texts, "side": card.resolution}
    return row | {"peaks": peaks, "fits": fits}


def tables(rows: list[dict[str, Any]]) -> str:
    wide = [Column("model"), Column("side"), Column("denoiser"), Column("text encoders")]
    peaks = Table(
        [*wide, *map(Column, rows[0]["peaks"])],
        [
            [row["model"], str(row["side"]), *(f"{row[part] / 1e9:.2f} B" for part in ("denoiser", "texts"))]
            + [f"{size / 1e9:.1f} GB" for size in row["peaks"].values()]
            for row in rows
        ],
    )
    fits = Table(
        [Column("model"), *(Column(f"{card} GB") for card in CARDS)],
        [[row["model"], *(row["fits"][str(card)] or "none" for card in CARDS)] for row in rows],
    )
    return (
        "# Memory of one step\n\n`python benchmarks/memory_table.py --output docs/results`\n\n"
        f"## Peaks\n{markdown(peaks)}\n\n## What fits\n{markdown(fits)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    rows = []
    for name, family, side in (("sd15", "sd", 512), ("sdxl", "sdxl", 1024)):
        rows.append(row_of(ModelCard({"sd15": "SD 1.5", "sdxl": "SDXL"}[name], SHAPES / name, family, "epsilon", side)))
        print(rows[-1], flush=True)
    for model in MODELS:
        with tempfile.TemporaryDirectory() as folder:
            rows.append(row_of(write_shapes(model, Path(folder))))
            print(rows[-1], flush=True)
    (output / "memory.json").write_text(json.dumps(rows, indent=2) + "\n")
    (output / "memory.md").write_text(tables(rows))


if __name__ == "__main__":
    main()
