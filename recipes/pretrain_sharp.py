"""Continue the embedded pipeline `tiny` on a sharper autoencoder: `tiny-sharp`; then judge and export it.

    python recipes/pretrain_sharp.py --work build/sharp            # two CPU cores: under two hours; a GPU: minutes
    python recipes/pretrain_sharp.py --work build/sharp --export   # also place the weights inside the package

Run it again after an interruption: every stage continues from its last checkpoint.
"""

import argparse
import json
from pathlib import Path

import numpy as np
from diffusers import AutoencoderKL, StableDiffusionPipeline

from autoencoder import fix_deviations, psnr, standardise
from fewbayes.models import load_family
from fewbayes.world.pipelines import PIPELINES
from fewbayes.world.recogniser import load_recogniser
from judge import judge_pipeline, photograph_psnr
from pipeline import pretrain_pipeline
from pretrain import curve_of, halve, made_here, publish
from sharp_autoencoder import ADAM, MUON, pretrain_sharp_autoencoder
from training import HELD_OUT, scene_pictures

SHIPPED = PIPELINES["tiny-sharp"] / "vae"
CURVES = SHIPPED.with_name("autoencoder.json")
"""How the shipped one was trained, as `curve_of` has it, by stage."""


def sharp_autoencoder(work: Path, pictures: np.ndarray) -> AutoencoderKL:
    """The autoencoder of `tiny-sharp` and `tiny-flow`, standardised, in float32: the shipped one, unless `work` began
    one of its own."""
    if SHIPPED.is_dir() and not (work / "autoencoder").is_dir():
        return AutoencoderKL.from_pretrained(SHIPPED).float()
    narrow = AutoencoderKL.from_pretrained(PIPELINES["tiny"] / "vae").float()
    vae = pretrain_sharp_autoencoder(work / "autoencoder", narrow, pictures)
    standardise(vae, pictures)
    fix_deviations(vae)
    vae.register_to_config(shift_factor=0.0)
    return vae


def _autoencoder_curves(work: Path) -> dict:
    stages = ("autoencoder/adam", "autoencoder/muon")
    own = (work / "autoencoder").is_dir()
    return {name: curve_of(work / name) for name in stages} if own else json.loads(CURVES.read_text())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and results")
    parser.add_argument("--scenes", type=int, default=80_000)
    parser.add_argument("--pipeline_steps", type=int, default=1600, help="of Adam")
    parser.add_argument("--finer_steps", type=int, default=3000, help="of Muon, after them")
    parser.add_argument("--photographs", type=Path, help="folder of photographs to judge the autoencoder on")
    parser.add_argument("--export", action="store_true", help="place the weights in the package")
    options = parser.parse_args()
    work: Path = options.work

    pictures = scene_pictures(work / "data", options.scenes)
    vae = sharp_autoencoder(work, pictures)
    latents = work / "data" / f"latents-{options.scenes}-{ADAM + MUON}.npy"
    start = StableDiffusionPipeline.from_pretrained(PIPELINES["tiny"])
    pipeline = pretrain_pipeline(
        work / "pipeline", vae, pictures, options.pipeline_steps, latents, start, peak=6e-4, finer=options.finer_steps
    )
    halve(pipeline, work / "export")

    family = load_family(str(work / "export"))
    report = made_here(family) | {
        "scenes": options.scenes,
        "stages": _autoencoder_curves(work) | {name: curve_of(work / name) for name in ("pipeline", "pipeline/muon")},
        "autoencoder_psnr_scenes": float(
            np.mean(psnr(vae.float(), scene_pictures(work / "data", 4000, HELD_OUT)[:500]))
        ),
        "prompts": judge_pipeline(family, load_recogniser()),
    }
    if options.photographs:
        report["autoencoder_psnr_photographs"] = photograph_psnr(vae, options.photographs)
    publish(report, family, work / "export", "tiny-sharp", PIPELINES["tiny-sharp"] if options.export else None)


if __name__ == "__main__":
    main()
