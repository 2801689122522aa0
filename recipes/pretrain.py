"""Pretrain the embedded world from nothing: autoencoder, text encoder and U-Net, recogniser; then judge and export.

    python recipes/pretrain.py --work build/world            # two CPU cores: under two hours; a GPU: minutes
    python recipes/pretrain.py --work build/world --export   # also replace the weights inside the package

Run it again after an interruption: every stage continues from its last checkpoint.
"""

import argparse
import json
import platform
import shutil
import time
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file

import fewbayes.world
from autoencoder import fix_deviations, pretrain_autoencoder, psnr, standardise
from card import write_card
from fewbayes.models import Family, load_family
from fewbayes.models.tokens import write_slow_tokenizer
from fewbayes.world.scenes import RARE_TOKEN
from judge import judge_pipeline, photograph_psnr, write_sample_grid
from pipeline import pretrain_pipeline
from recogniser import held_out_accuracy, pretrain_recogniser
from training import HELD_OUT, scene_pictures

WEIGHTS = Path(fewbayes.world.__file__).parent / "weights"
# What `fewbayes train` uses on this model where its user says nothing; found in docs/lab-log.md.
RECOMMENDED = {
    "learning_rate": 1e-4,
    "weight_std": 0.01,
    "lora": {"learning_rate": 2e-4},
    "oft": {"learning_rate": 5e-4},
}


def halve(pipeline: DiffusionPipeline, folder: Path, recommended: dict = RECOMMENDED) -> None:
    """Save the pipeline under the names that a plain `from_pretrained` looks for, its large parts in half precision.

    Text encoders stay in float32: transformers 5 loads what it finds, diffusers loads float32.
    """
    scratch = folder.with_name(folder.name + ".tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    parts = {name: it for name, it in pipeline.components.items() if it is not None}
    for name in parts.keys() & {"unet", "transformer", "vae"}:
        parts[name].half().register_to_config(_name_or_path=name)  # not the folder that it was read from
    pipeline.save_pretrained(scratch, safe_serialization=True)
    for name in parts:
        if name.startswith("tokenizer"):
            write_slow_tokenizer(parts[name], scratch / name)
    note = {"rare_token": RARE_TOKEN, "resolution": 64, "recommended": recommended}
    (scratch / "fewbayes.json").write_text(json.dumps(note, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    scratch.rename(folder)


def size_of(module: torch.nn.Module) -> dict:
    return {"class": type(module).__name__, "parameters": sum(p.numel() for p in module.parameters())}


def made_here(family: Family) -> dict:
    """Of what size a pipeline is, and where and when it was made."""
    return {
        "made": time.strftime("%Y-%m-%d"),
        "hardware": f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads",
        "torch": torch.__version__,
        "parts": {name: size_of(it) for name, it in family.modules.items()},
    }


def publish(report: dict, family: Family, folder: Path, name: str, package: Path | None) -> None:
    """The report, samples and card beside the weights in `folder`; all of it into the package's folder, if given."""
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    write_sample_grid(family, folder / "samples.png")
    write_card(report, folder, name)
    print(json.dumps({k: v for k, v in report.items() if k != "stages"}, indent=1))
    if package:
        shutil.copytree(folder, package, dirs_exist_ok=True)


def curve_of(folder: Path) -> dict:
    from safetensors import safe_open

    with safe_open(folder / "state.safetensors", "pt") as file:
        return json.loads(file.metadata()["training"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and results")
    parser.add_argument("--scenes", type=int, default=80_000)
    parser.add_argument("--autoencoder_steps", type=int, default=3000)
    parser.add_argument("--pipeline_steps", type=int, default=6000)
    parser.add_argument("--recogniser_steps", type=int, default=2500)
    parser.add_argument("--photographs", type=Path, help="folder of photographs to judge the autoencoder on")
    parser.add_argument("--export", action="store_true", help="replace the weights in the package")
    options = parser.parse_args()
    work: Path = options.work

    pictures = scene_pictures(work / "data", options.scenes)
    vae = pretrain_autoencoder(work / "autoencoder", pictures, options.autoencoder_steps)
    standardise(vae, pictures)
    fix_deviations(vae)
    latents = work / "data" / f"latents-{options.scenes}-{options.autoencoder_steps}.npy"
    pipeline = pretrain_pipeline(work / "pipeline", vae, pictures, options.pipeline_steps, latents)
    recogniser = pretrain_recogniser(work / "recogniser", pictures, options.recogniser_steps)
    halve(pipeline, work / "export" / "pipeline")
    save_file(
        {k: v.half().cpu().contiguous() for k, v in recogniser.state_dict().items()},
        work / "export" / "recogniser.safetensors",
    )

    family = load_family(str(work / "export" / "pipeline"))
    held_out = scene_pictures(work / "data", 4000, HELD_OUT)
    report = made_here(family) | {
        "scenes": options.scenes,
        "stages": {name: curve_of(work / name) for name in ("autoencoder", "recogniser", "pipeline")},
        "recogniser_held_out": held_out_accuracy(recogniser, work / "data"),
        "autoencoder_psnr_scenes": float(np.mean(psnr(vae.float(), held_out[:500]))),
        "prompts": judge_pipeline(family, recogniser),
    }
    if options.photographs:
        report["autoencoder_psnr_photographs"] = photograph_psnr(vae, options.photographs)
    publish(report, family, work / "export", "tiny", WEIGHTS if options.export else None)


if __name__ == "__main__":
    main()
