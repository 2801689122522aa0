"""Which average of the weights a run should export: decays of 0.99 and 0.98, or a power average, on the same trainings.

One training keeps all averages at once, so that they differ in nothing else: full fine-tuning of the embedded model on
four pictures of drawn subjects. Each is sampled half way and at the end; corruption is the stage monitor's score, Dino
that of the embedded encoder (valid on drawn subjects alone). The power average is that of Karras et al. (arXiv
2312.02696) with sigma_rel 0.1: its memory grows with the run, and it needs no warm-up. Resumable: one file a training.

    OMP_NUM_THREADS=1 python benchmarks/ema_decay.py runs/ema --output benchmarks/results/ema_decay.json
"""

import argparse
import json
import time
from pathlib import Path
from statistics import fmean
from typing import Any, ClassVar

import numpy as np
import torch

from fewbayes.methods import make_method
from fewbayes.metrics.encoders import load_encoders
from fewbayes.metrics.scores import fidelity
from fewbayes.models import load_family
from fewbayes.models.sampling import sample_images
from fewbayes.runs.provenance import environment
from fewbayes.settings.config import TrainConfig, load_config
from fewbayes.stage.monitor import corruption
from fewbayes.stage.samples import describe
from fewbayes.studies.memo import remember
from fewbayes.studies.subjects import drawn_subject
from fewbayes.studies.trajectory import open_pictures
from fewbayes.training import train as training
from fewbayes.training.ema import WeightAverage

SUBJECTS, RATES = ("flame_car", "ringed_lamp", "patchwork_bird"), (1e-4, 1e-3)
STEPS, LOOKS, PICTURES, SAMPLER_STEPS = 200, (100, 200), 4, 16
DECAYS = {"0.99": 0.99, "0.98": 0.98}
GAMMA = 6.94
"""Of the power average: sigma_rel is 0.1."""


class Several(WeightAverage):
    """Keeps every average, and all of them as they are at the looks."""

    kept: ClassVar[dict[int, dict[str, dict[str, torch.Tensor]]]] = {}

    def __init__(self, parameters: Any, decay: float = 0.99):
        super().__init__(parameters, decay)
        self._others = {name: WeightAverage(parameters, value) for name, value in DECAYS.items()}
        self._power = WeightAverage(parameters, 0)
        self._power.decay_now = lambda: (1 - 1 / (self._power.updates + 1)) ** (GAMMA + 1)

    def update(self) -> None:
        super().update()
        for other in (*self._others.values(), self._power):
            other.update()
        if self.updates in LOOKS:
            averages = {name: other.state_dict() for name, other in self._others.items()}
            found = {"raw": dict(self._parameters), "power": self._power.state_dict(), **averages}
            self.kept[self.updates] = {
                way: {name: weights[name].detach().clone() for name in self._parameters}
                for way, weights in found.items()
            }


def look_at(folder: Path, name: str, rate: float, seed: int) -> dict[str, Any]:
    subject = drawn_subject(name, folder, 64).first(4)
    config = TrainConfig(
        model="tiny",
        instance_data_dir=str(subject.photographs),
        instance_prompt=f"a photo of a <v> {subject.class_word}",
        output_dir=str(folder / f"{name}-{rate:g}-seed{seed}"),
        learning_rate=rate,
        center_crop=True,
        max_train_steps=STEPS,
        checkpointing_steps=0,
        use_ema=True,
        seed=seed,
    )
    begin = time.process_time()
    training.WeightAverage, Several.kept = Several, {}
    run = training.train(config, family=load_family("tiny"), progress=False)
    resolved, family = load_config(run.folder / "config.yaml", {}), load_family("tiny")
    prompt, method = resolved.with_rare_token(resolved.instance_prompt), make_method(resolved)
    pictures = [np.asarray(picture) for picture in open_pictures(subject.photographs)]
    dino: Any = load_encoders("embedded")["dino"]
    real = dino.images(open_pictures(subject.photographs))

    def drawn() -> list[Any]:
        return list(sample_images(family, [prompt] * PICTURES, range(PICTURES), steps=SAMPLER_STEPS))

    base = [np.asarray(picture) for picture in drawn()]
    of_base, of_real = describe(base, pictures, base), describe(pictures, pictures)
    method.attach(family)
    weights, rows = method.trainable(family), []
    for step, ways in Several.kept.items():
        for way, its in ways.items():
            with torch.no_grad():
                for key, weight in weights.items():
                    weight.copy_(its[key])
            made = drawn()
            score = corruption(describe([np.asarray(one) for one in made], pictures, base), of_base, of_real)
            rows.append({"step": step, "way": way, "corruption": score, "dino": fidelity(dino.images(made), real).mean})
    told = {"subject": name, "rate": rate, "seed": seed, "rows": rows}
    return told | {"cpu_seconds": time.process_time() - begin}


def summary(cells: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At every rate and look, each way's means over trainings, and the trainings in which it beats a decay of 0.99."""
    found = []
    for rate in RATES:
        for step in LOOKS:
            its = [
                {row["way"]: row for row in cell["rows"] if row["step"] == step}
                for cell in cells
                if cell["rate"] == rate
            ]
            for way in its[0]:
                row: dict[str, Any] = {"rate": rate, "step": step, "way": way, "trainings": len(its)}
                for key, sign in (("corruption", -1), ("dino", 1)):
                    row[key] = fmean(one[way][key] for one in its)
                    row[f"{key}_better"] = sum(sign * (one[way][key] - one["0.99"][key]) > 0 for one in its)
                found.append(row)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "ema_decay.json")
    parser.add_argument("--seeds", type=int, default=3)
    asked = parser.parse_args()
    cells = []
    for seed in range(asked.seeds):
        for name in SUBJECTS:
            for rate in RATES:
                file, args = asked.runs / f"{name}-{rate:g}-seed{seed}.json", (asked.runs, name, rate, seed)
                cells.append(remember(file, {"steps": STEPS, "looks": LOOKS}, lambda args=args: look_at(*args)))
                print(file.stem, round(cells[-1]["cpu_seconds"], 1), flush=True)
    told = {"summary": summary(cells), "trainings": cells, "environment": environment(None)}
    asked.output.write_text(json.dumps(told, indent=1) + "\n")
    for row in told["summary"]:
        print(row)


if __name__ == "__main__":
    main()
