"""Does the guided gap open at the size of Stable Diffusion? Fifteen minutes of a rented GPU, one image, 600 steps.

Every 50 steps: retention of the conditional branch (r_c), of the unconditional one (r_u), and the gains of the model
alone and guided, at six noise levels; at every second look four samples at guidance 1, at 7.5, and at 7.5 where there
is much noise alone, each scored beside the untouched model's. Plain DreamBooth as the paper has it: all weights of the
U-Net, AdamW at 5e-6, batch 1, no prior preservation, latents drawn; bfloat16 autocast on a GPU, probes in float32.
SD 1.5 takes 14 GB for weights and their optimizer, and activations; --gradient_checkpointing makes these small.

    python benchmarks/gpu_guided_gap.py --model stable-diffusion-v1-5/stable-diffusion-v1-5 --images DIR \\
      --prompt "a photo of a sks dog" --output gap

A check of the script itself, a minute or two on a CPU:

    python benchmarks/gpu_guided_gap.py --model tiny --images DIR --prompt "a photo of a <v> fish" --output gap \\
      --learning_rate 1e-3 --steps 20 --every 10 --sampler_steps 4

Written as it comes: gap.json, and a strip of pictures for every sampled look. The last lines apply the rule of
docs/lab-log.md.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fewbayes.data.images import load_images
from fewbayes.diffusion.objective import diffusion_loss
from fewbayes.diffusion.process import level_of_step
from fewbayes.files.atomic import atomic_write
from fewbayes.models import load_family
from fewbayes.models.sampling import sample_images
from fewbayes.runs.provenance import environment
from fewbayes.stage.definition import CORRUPTED
from fewbayes.stage.monitor import corruption
from fewbayes.stage.probes import Prober, ProbeSettings
from fewbayes.stage.samples import describe
from fewbayes.training.batches import Pictures

PROBED_STEPS = (20, 50, 100, 200, 400, 600)
SAMPLED = {"1": {"guidance": 1.0}, "7.5": {"guidance": 7.5}, "within": {"guidance": 7.5, "guidance_interval": "0.83:"}}


class Gap:
    """The model, the image, and what is asked of it at each look."""

    def __init__(self, asked: argparse.Namespace):
        self.asked, self.began = asked, time.monotonic()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.family: Any = load_family(asked.model).to(self.device)
        side = asked.resolution or self.family.card.resolution
        self.image = load_images(asked.images, resolution=side, center_crop=True)[0].pixels
        self.pictures = Pictures(self.family, [self.image], [asked.prompt], side=side)
        settings = ProbeSettings(levels=tuple(map(level_of_step, PROBED_STEPS)), examples=2, guidance=7.5, batch_size=4)
        latents = self.family.encode_images(self.image[None])[0]
        self.prober = Prober(self.family, latents, [asked.prompt], settings=settings)
        self.base: dict[str, list[np.ndarray]] = {}
        self.looks: list[dict[str, Any]] = []

    def autocast(self):
        return torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda")

    def train(self) -> None:
        asked, weights = self.asked, self.family.denoiser.requires_grad_(True)
        self.family.checkpoint_gradients(asked.gradient_checkpointing)
        optimizer = torch.optim.AdamW(weights.parameters(), lr=asked.learning_rate, weight_decay=1e-2)
        self.look(0)
        for step in range(asked.steps):
            batch = self.pictures.batch(self.pictures.draw(asked.seed, step, 1), slice(None))
            with self.autocast():
                loss = diffusion_loss(self.family, batch)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(weights.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if (step + 1) % asked.every == 0:
                self.look(step + 1)

    def look(self, step: int) -> None:
        self.family.denoiser.eval()
        found = self.prober.read(("sigma_1", "losses", "gain", "guided")).guided
        assert found is not None
        row: dict[str, Any] = {"step": step, "t": found.t, "r_c": found.conditional.retention}
        row |= {"r_u": found.unconditional.retention, "unguided": found.conditional.gain, "guided": found.guided.gain}
        if step % (2 * self.asked.every) == 0 or step == self.asked.steps:
            row["corruption"] = {name: self.sampled(step, name) for name in SAMPLED}
        self.looks.append(row | {"seconds": round(time.monotonic() - self.began)})
        told = {"asked": {k: str(v) for k, v in vars(self.asked).items()}, "environment": environment(None)}
        atomic_write(self.asked.output / "gap.json", json.dumps(told | {"looks": self.looks}, indent=1) + "\n")
        pairs = ", ".join(f"{c:.3f} {u:.3f}" for c, u in zip(row["r_c"], row["r_u"], strict=True))
        gains = f"gain {max(row['unguided']):.2f}, guided {max(row['guided']):.2f}"
        scores = ", ".join(f"{name}: {score:.2f}" for name, score in row.get("corruption", {}).items())
        print(f"step {step}: r_c r_u {pairs}; {gains}; corruption {scores or '-'}", flush=True)

    def sampled(self, step: int, name: str) -> float:
        """The monitor's corruption score of four samples beside the untouched model's."""
        how = {"steps": self.asked.sampler_steps, "batch_size": 4, "resolution": len(self.image), **SAMPLED[name]}
        with self.autocast():
            made = sample_images(self.family, [self.asked.prompt] * 4, [0, 1, 2, 3], **how)
        pictures = [np.asarray(picture) for picture in made]
        Image.fromarray(np.concatenate(pictures, 1)).save(self.asked.output / f"step-{step:04d}-{name}.png")
        base = self.base.setdefault(name, pictures)
        real = [self.image]
        return corruption(describe(pictures, real, base), describe(base, real, base), describe(real, real))


def verdict(looks: list[dict[str, Any]]) -> list[str]:
    """The rule: a guided gain above 1 where no unguided one is, and samples that break with guidance alone."""
    told = []
    for name in ("guided", "unguided"):
        above = [row["step"] for row in looks if max(row[name]) > 1]
        told.append(f"the {name} gain passes 1 {f'first at step {above[0]}' if above else 'nowhere'}")
    broken = {n: [r["step"] for r in looks if r.get("corruption", {}).get(n, 0) >= CORRUPTED] for n in SAMPLED}
    told += [f"samples at {name} are corrupted at {steps or 'no look'}" for name, steps in broken.items()]
    opens = "passes 1 first" in told[0] and "nowhere" in told[1]
    if opens and broken["7.5"] and not broken["1"]:
        return [*told, "confirmed: the stage is a gap that guidance multiplies"]
    if broken["7.5"] and len(broken["1"]) >= len(broken["7.5"]):
        return [*told, "refuted: the samples break as often without guidance"]
    return [*told, "open: neither; look at the strips"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--images", type=Path, required=True, help="a folder, of which the first image is taken")
    parser.add_argument("--prompt", required=True)
    parser.add_argument("--output", type=Path, required=True, help="a new folder")
    parser.add_argument("--resolution", type=int, help="side in pixels [the model's own]")
    parser.add_argument("--learning_rate", type=float, default=5e-6)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=50, help="steps between looks")
    parser.add_argument("--sampler_steps", type=int, default=25)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gradient_checkpointing", action="store_true")
    asked = parser.parse_args()
    asked.output.mkdir(parents=True)
    gap = Gap(asked)
    gap.train()
    print("\n".join(verdict(gap.looks)))


if __name__ == "__main__":
    main()
