"""Train the embedded evaluators from nothing, `fewbayes-clip` and `fewbayes-dino`; then judge and export them.

    python recipes/evaluators.py --work build/world            # one CPU core: about an hour and a half
    python recipes/evaluators.py --work build/world --export   # also replace the evaluators inside the package

Run it again after an interruption: every stage continues from its last checkpoint. The pipeline that ships lends its
autoencoder, for pictures as soft as generated ones, and its samples, to judge on.
"""

import argparse
import json
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import CLIPModel, CLIPTokenizer, PreTrainedModel, ViTModel

import fewbayes.world
from clip import Scenes, described, pretrain_clip, quality_curves, retrieval, widen_quality
from degraded import decoded_pictures, degraded_series, heap_pictures
from dino import held_out_looks, pretrain_dino, same_subject_auc, subjects_auc
from evaluator_cards import write_card
from fewbayes.models import Family, load_family
from fewbayes.models.tokens import write_slow_tokenizer
from fewbayes.world.evaluators import CLIP_NAME, DINO_NAME
from fewbayes.world.scenes import SUBJECTS, subject_photograph
from fewbayes.world.settings import SETTINGS
from judge import ask, sample
from looks import look_pictures
from training import HELD_OUT, scene_pictures, to_unit

WEIGHTS = Path(fewbayes.world.__file__).parent / "weights"
PHOTOGRAPHS = sum(len(subject.settings) for subject in SUBJECTS.values())
PICTURES = {
    "do_convert_rgb": True,
    "do_resize": True,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
CLIP_PICTURES = PICTURES | {
    "image_processor_type": "CLIPImageProcessor",
    "size": {"shortest_edge": 64},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 64, "width": 64},
}
DINO_PICTURES = PICTURES | {
    "image_processor_type": "ViTImageProcessor",
    "size": {"height": 64, "width": 64},
    "resample": 2,
}


def save_halved(model: PreTrainedModel, folder: Path, name: str, pictures: dict) -> None:
    """The model in transformers' layout: half precision on disk, float32 when loaded, as its config says."""
    shutil.rmtree(folder, ignore_errors=True)
    model.config.evaluator_name = name
    model.config.dtype = torch.float32
    model.save_pretrained(folder)
    weights = {key: value.half() for key, value in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)
    (folder / "preprocessor_config.json").write_text(json.dumps(pictures, indent=2) + "\n")


def save_clip(model: CLIPModel, tokenizer: CLIPTokenizer, folder: Path) -> None:
    save_halved(model, folder, CLIP_NAME, CLIP_PICTURES)
    tokenizer.save_pretrained(folder)
    write_slow_tokenizer(tokenizer, folder)


def save_dino(model: ViTModel, folder: Path) -> None:
    """With a pooler that passes the feature through a tanh, so that a plain load finds every weight it wants."""
    torch.nn.init.eye_(model.pooler.dense.weight)
    torch.nn.init.zeros_(model.pooler.dense.bias)
    save_halved(model, folder, DINO_NAME, DINO_PICTURES)


def judge_clip(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    family: Family,
    held_out: Scenes,
    photographs: Path | None,
) -> dict:
    """Retrieval on drawn, softened and generated pictures and on subjects; the quality score at rising noise."""
    pictures, captions = np.asarray(held_out.pictures), held_out.captions
    prompts = [prompt for _, prompt in ask(200, seed=5)]
    made = np.round(np.stack(sample(family, prompts, 5.0)) * 255).astype(np.uint8)
    soft = degraded_series(family.modules["vae"], to_unit(pictures[:400]))["white"][0]
    soft = soft.add(1).mul(127.5).round().byte().permute(0, 2, 3, 1).numpy()
    scored = {"scenes": pictures[:300]} | ({"photographs": photographs_in(photographs)} if photographs else {})
    return {
        "retrieval": {
            "drawn": retrieval(model, tokenizer, pictures, captions),
            "softened": retrieval(model, tokenizer, soft, captions[:400]),
            "generated": retrieval(model, tokenizer, made, prompts),
            "subjects": retrieval(model, tokenizer, *subject_photographs(), among=PHOTOGRAPHS),
        },
        "quality": {name: quality_curves(model, tokenizer, family.modules["vae"], x) for name, x in scored.items()},
    }


def photographs_in(folder: Path) -> np.ndarray:
    """All photographs below the folder at 64 pixels, cropped to their centre."""
    files = sorted(folder.rglob("*.jpg"))
    small = [ImageOps.fit(Image.open(f).convert("RGB"), (64, 64), Image.Resampling.LANCZOS) for f in files]
    return np.stack([np.asarray(picture) for picture in small])


def subject_photographs() -> tuple[np.ndarray, list[str]]:
    """All photographs of the twelve subjects; prompts that name class and setting, neither colour nor pattern."""
    pictures, prompts = [], []
    for name, subject in SUBJECTS.items():
        for i, place in enumerate(subject.settings):
            picture, prompt = subject_photograph(name, i)
            pictures.append(np.round(picture * 255))
            prompts.append(f"{prompt} {SETTINGS[place].phrase}")
    return np.stack(pictures).astype(np.uint8), prompts


def judge_dino(model: ViTModel) -> dict:
    """Area under the curve: the same subject in two settings against two subjects of a class."""
    return {"held_out_looks": same_subject_auc(model, *held_out_looks()), "subjects": subjects_auc(model)}


def about(model: PreTrainedModel, *stages: Path) -> dict:
    """What a card says of the making of a model, from the last checkpoints of its stages."""
    made = {}
    for stage in stages:
        with safe_open(stage / "state.safetensors", "pt") as file:
            made[stage.name] = json.loads(file.metadata()["training"])
    return {
        "made": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "class": type(model).__name__,
        "parameters": sum(p.numel() for p in model.parameters()),
        "stages": made,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and results")
    parser.add_argument("--scenes", type=int, default=80_000)
    parser.add_argument("--decoded", type=int, default=8000, help="scenes that also go through the autoencoder")
    parser.add_argument("--looks", type=int, default=24_000)
    parser.add_argument("--heaps", type=int, default=2500, help="heaps of shapes that stand in for photographs")
    parser.add_argument("--clip_steps", type=int, default=3200)
    parser.add_argument("--quality_steps", type=int, default=300)
    parser.add_argument("--dino_steps", type=int, default=2200)
    parser.add_argument("--photographs", type=Path, help="folder of photographs to judge the quality score on")
    parser.add_argument("--export", action="store_true", help="replace the evaluators in the package")
    options = parser.parse_args()
    work: Path = options.work
    out = work / "evaluators"

    scenes = described(scene_pictures(work / "data", options.scenes))
    held_out = described(scene_pictures(work / "data", 4000, HELD_OUT), HELD_OUT)
    decoded = decoded_pictures(work / "data", WEIGHTS / "pipeline" / "vae", scenes.pictures, options.decoded)
    clip, tokenizer = pretrain_clip(work / "clip", scenes, decoded, held_out, options.clip_steps)
    heaps = heap_pictures(work / "data", options.heaps)
    decoded_heaps = decoded_pictures(
        work / "data", WEIGHTS / "pipeline" / "vae", heaps, options.heaps, name="decoded-heaps"
    )
    clip = widen_quality(
        work / "clip-quality", clip, tokenizer, scenes, decoded, heaps, decoded_heaps, options.quality_steps
    )
    dino = pretrain_dino(work / "dino", look_pictures(work / "data", options.looks), options.dino_steps)
    save_clip(clip, tokenizer, out / "clip")
    save_dino(dino, out / "dino")

    clip, dino = CLIPModel.from_pretrained(out / "clip"), ViTModel.from_pretrained(out / "dino")
    family = load_family("tiny")
    judged = judge_clip(clip, tokenizer, family, held_out, options.photographs)
    write_card(CLIP_NAME, about(clip, work / "clip", work / "clip-quality") | judged, out / "clip")
    write_card(DINO_NAME, about(dino, work / "dino") | judge_dino(dino), out / "dino")
    for name in ("clip", "dino"):
        print((out / name / "README.md").read_text())
        if options.export:
            staged = WEIGHTS / f".tmp-{name}"  # a reader meets the old weights or the new ones, never a part
            shutil.copytree(out / name, staged, dirs_exist_ok=True)
            shutil.rmtree(WEIGHTS / name, ignore_errors=True)
            staged.rename(WEIGHTS / name)


if __name__ == "__main__":
    main()
