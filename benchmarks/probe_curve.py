"""The probes along one-shot fine-tunings of the embedded model, beside what its samples look like.

Full fine-tuning of the U-Net on one photograph, AdamW, batch 1, constant rate. The raw weights are probed every few
steps, at every few readings also their running average, and samples are drawn. Writes one JSON; --picture draws it.

    python benchmarks/probe_curve.py --photographs DIR/backpack:backpack --rates 1e-5 1e-4 1e-3 --output probes.json
    python benchmarks/probe_curve.py --draw probes.json --picture probes.png
"""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from fewbayes.data.images import crop, load_images
from fewbayes.diffusion.objective import diffusion_loss
from fewbayes.diffusion.process import level_of_step
from fewbayes.files.decode import typed
from fewbayes.metrics.pixels import haar_noise, image_similarity
from fewbayes.models import load_family
from fewbayes.sample import sample_images
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.stage.readings import Reading
from fewbayes.training.batches import Pictures, Share
from fewbayes.training.ema import WeightAverage

SETTINGS = ProbeSettings(levels=tuple(map(level_of_step, (50, 100, 200, 400, 600, 800))), examples=2)
SAMPLES = {"sampler": "ddim", "steps": 25, "guidance": 7.5}


def photograph(folder: Path, side: int) -> np.ndarray:
    return crop(load_images(folder, resolution=side, center_crop=True)[0].pixels, side)


def run(args: argparse.Namespace, folder: Path, noun: str, rate: float, seed: int) -> dict[str, object]:
    """One fine-tuning; rows of every reading."""
    family = load_family("tiny")
    side, prompt = family.card.resolution, f"a photo of <v> {noun}"
    shown = photograph(folder, side)
    pictures = Pictures(family, [shown], [prompt], side=side)
    others = [path for path in sorted(folder.parent.iterdir()) if path.is_dir() and path != folder][
        :: args.others_every
    ]
    prober = Prober(
        family,
        family.encode_images(shown[None])[0],
        [prompt],
        others=family.encode_images(np.stack([photograph(path, side) for path in others]))[0],
        other_prompts=["a photo"] * len(others),
        settings=SETTINGS,
    )
    family.denoiser.requires_grad_(True)
    weights = dict(family.denoiser.named_parameters())
    average = WeightAverage(weights)
    optimizer = torch.optim.AdamW(weights.values(), lr=rate, weight_decay=1e-2)
    rows, seconds = [], {"steps": 0.0, "readings": 0.0}
    base = prober.read()

    def look(step: int, kind: str) -> None:
        began = time.perf_counter()
        reading = prober.read()
        seconds["readings"] += time.perf_counter() - began
        row = {"step": step, "weights": kind} | reading.numbers(base) | {"reading": asdict(reading)}
        if step % args.sample_every == 0:
            seeds = list(range(args.samples))
            drawn = [np.asarray(picture) for picture in sample_images(family, [prompt] * len(seeds), seeds, **SAMPLES)]
            row["image_similarity"] = image_similarity(drawn, [shown])
            row["haar_noise"] = float(np.mean([haar_noise(picture) for picture in drawn]))
        rows.append(row)

    look(0, "raw")
    for step in range(args.steps):
        began = time.perf_counter()
        loss = diffusion_loss(family, pictures.batch(pictures.draw(seed, step, 1), Share(1).rows(0)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights.values(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.update()
        seconds["steps"] += time.perf_counter() - began
        if (step + 1) % args.read_every == 0:
            look(step + 1, "raw")
        if (step + 1) % args.sample_every == 0:
            with average.swapped():
                look(step + 1, "averaged")
    print(f"{noun} {rate:g} seed {seed}: {seconds}", flush=True)
    return {"subject": noun, "rate": rate, "seed": seed, "seconds": seconds, "forwards": base.forwards, "rows": rows}


PANELS = {
    "similarity of samples": lambda row, base: row.get("image_similarity"),
    "residual gain, t = 50": lambda row, base: row["reading"]["gain"]["relative"][0],
    "residual gain, others, t = 50": lambda row, base: row["reading"]["others_gain"]["relative"][0],
    "retention, t = 50": lambda row, base: row["reading"]["sigma_1"]["retention"][0],
    "excess error, t = 50": lambda row, base: excess_error(row),
    "similarity of the blank, t = 999": lambda row, base: row["reading"]["blank"]["similarity"][1][0],
    "loss on others / base": lambda row, base: row["loss_others"] / base["loss_others"],
}


def excess_error(row: dict) -> float:
    excess = typed(row["reading"], Reading, "reading").excess_error
    assert excess is not None
    return excess[0]


def rounded(value: object) -> object:
    """Four digits after the point: results are kept in the repository."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(item) for item in value]
    return round(value, 4) if isinstance(value, float) and value > 1e-3 else value


def draw(runs: list[dict], picture: Path) -> None:
    """A column per rate, a row per number; raw weights in solid lines, their running average dashed."""
    from matplotlib.figure import Figure

    rates = sorted({run["rate"] for run in runs})
    figure = Figure(figsize=(3.2 * len(rates), 1.7 * len(PANELS)), layout="constrained")
    axes = figure.subplots(len(PANELS), len(rates), sharex=True, sharey="row", squeeze=False)
    colours = dict(zip(sorted({run["subject"] for run in runs}), ("tab:blue", "tab:orange", "tab:green"), strict=False))
    for axis_row, (title, pick) in zip(axes, PANELS.items(), strict=True):
        axis_row[0].set_ylabel(title, fontsize=7)
        for axis, rate in zip(axis_row, rates, strict=True):
            for one in (run for run in runs if run["rate"] == rate):
                base = one["rows"][0]
                for kind, style in (("averaged", "--"), ("raw", "-")):
                    points = [(row["step"], pick(row, base)) for row in one["rows"] if row["weights"] == kind]
                    kept = [point for point in points if point[1] is not None]
                    label = f"{one['subject']}, {kind}" if one["seed"] == min(r["seed"] for r in runs) else None
                    axis.plot(*zip(*kept, strict=True), style, color=colours[one["subject"]], lw=1, label=label)
    for axis, rate in zip(axes[0], rates, strict=True):
        axis.set_title(f"rate {rate:g}", fontsize=9)
    axes[0][0].legend(fontsize=6)
    for axis in axes[-1]:
        axis.set_xlabel("step")
    figure.savefig(picture, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photographs", nargs="+", default=[], help="FOLDER:NOUN; other folders beside it are `others`"
    )
    parser.add_argument("--rates", nargs="+", type=float, default=[1e-5, 1e-4, 1e-3])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--read_every", type=int, default=25)
    parser.add_argument("--sample_every", type=int, default=50)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--others_every", type=int, default=5, help="every how many-th of the other folders is probed")
    parser.add_argument("--output", type=Path, default=Path("probes.json"))
    parser.add_argument("--draw", type=Path, help="draw this file instead of running")
    parser.add_argument("--picture", type=Path)
    args = parser.parse_args()
    if args.draw:
        draw(json.loads(args.draw.read_text()), args.picture)
        return
    runs = json.loads(args.output.read_text()) if args.output.exists() else []
    done = {(run["subject"], run["rate"], run["seed"]) for run in runs}
    for photographs in args.photographs:
        folder, _, noun = photographs.rpartition(":")
        for seed in args.seeds:
            for rate in args.rates:
                if (noun, rate, seed) not in done:
                    runs.append(run(args, Path(folder), noun, rate, seed))
                    args.output.write_text(json.dumps(rounded(runs)) + "\n")


if __name__ == "__main__":
    main()
