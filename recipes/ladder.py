"""Pretrain a smaller sister of the embedded pipeline `tiny`: its words and autoencoder, a narrower U-Net from nothing.

    python recipes/ladder.py --work build/ladder      # two CPU cores: a quarter of an hour

Run it again after an interruption: it continues from its last checkpoint. With the default steps it follows 42 % of the
objects and 39 % of the settings of prompts. The package holds no weights of it; the study `ladder` takes the folder
`export` as a model.
"""

import argparse
import json
from pathlib import Path

from diffusers import StableDiffusionPipeline

from fewbayes.models import load_family
from fewbayes.world.pipelines import PIPELINES
from fewbayes.world.recogniser import load_recogniser
from judge import judge_pipeline
from pipeline import pretrain_pipeline
from pretrain import curve_of, halve, made_here
from training import scene_pictures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="folder for data, checkpoints and results")
    parser.add_argument("--widths", type=int, nargs=3, default=(24, 36, 48), help="of the U-Net; tiny has 64 96 128")
    parser.add_argument("--scenes", type=int, default=30_000)
    parser.add_argument("--steps", type=int, default=900, help="of Muon")
    options = parser.parse_args()
    work: Path = options.work

    start = StableDiffusionPipeline.from_pretrained(PIPELINES["tiny"])
    pictures, latents = scene_pictures(work / "data", options.scenes), work / "data" / f"latents-{options.scenes}.npy"
    pipeline = pretrain_pipeline(
        work / "pipeline",
        start.vae.float(),
        pictures,
        0,
        latents,
        start,
        finer=options.steps,
        widths=(*options.widths,),
    )
    halve(pipeline, work / "export")

    family = load_family(str(work / "export"))
    stages = {"pipeline/muon": curve_of(work / "pipeline" / "muon")}
    report = made_here(family) | {"scenes": options.scenes, "stages": stages}
    report["prompts"] = judge_pipeline(family, load_recogniser())
    (work / "report.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: v for k, v in report.items() if k != "stages"}, indent=1))


if __name__ == "__main__":
    main()
